"""Ports for servers of tests that run beside each other."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def free() -> int:
    """A free port below those that the system gives to whoever asks for any."""
    while True:
        port = random.SystemRandom().randint(20_000, 32_000)
        with suppress(OSError), socket.create_server(("", port)):
            return port
