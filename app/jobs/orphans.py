"""What a studio that was killed had started: waited for, before its jobs go on.

The painting process finishes the picture that it has begun to write, a training writes a
checkpoint; then they end by themselves, because their studio is gone. A job that went on meanwhile
would paint that picture a second time, or find its run taken.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

from lora_manager import drafts

# A process that still lives so long after its studio hangs.
PATIENCE_SECONDS = 15.0
_POLL_SECONDS = 0.05
log = logging.getLogger(__name__)


def wait_for(writer: str, given_up: Callable[[], bool], patience: float = PATIENCE_SECONDS) -> None:
    """Returns when the process `writer` (as `drafts.writer` names it) is not there any more."""
    end = time.monotonic() + patience
    while (process := drafts.process_of(writer)) is not None and not given_up():
        if time.monotonic() > end:
            log.warning("process %d of an earlier studio hangs and is killed", process)
            os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            end += patience
        time.sleep(_POLL_SECONDS)
