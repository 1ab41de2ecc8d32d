"""The end of a process that has torch loaded."""

from __future__ import annotations

import atexit
import os
import sys
import threading


def leave(code: int) -> None:
    """Ends the process with that exit code, as Python does, but does not take its modules apart.

    With torch among them that takes 1.6 s of processor time, and gives back what the system takes
    back anyway; `multiprocessing` ends its forks in the same way. Returns where Python has
    something to say or to wait for at the end: then it is for the caller to end.
    """
    others = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if "torch" not in sys.modules or others:
        return
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (OSError, ValueError):
        return
    os._exit(code)
