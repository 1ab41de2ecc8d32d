"""What every test shares: no network, no home, no leftover workspace, two threads at most."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Time is no result of a test: a busy machine must not fail one.
settings.register_profile("studio", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("studio")

# Before torch or a hub library is imported anywhere, also in child processes.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    # As the studio sets it: the suite runs beside a browser.
    OMP_WAIT_POLICY="PASSIVE",
)
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.pop("PIXART_STUDIO_WORKSPACE", None)

_connect = socket.socket.connect


def _is_here(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guarded(self: socket.socket, address: Any) -> None:
    if not _is_here(address):
        raise OSError(f"tests have no network: {address!r}")
    _connect(self, address)


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    socket.socket.connect = _guarded  # type: ignore[method-assign, assignment]
    yield
    socket.socket.connect = _connect  # type: ignore[method-assign]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that everything in this test writes to."""
    folder = tmp_path / "workspace"
    monkeypatch.setenv("PIXART_STUDIO_WORKSPACE", str(folder))
    return folder
