"""Ctrl+C that came before anybody could hear it."""

from __future__ import annotations

import signal


def is_unheard(code: int, err: str) -> bool:
    """Whether a start of `launch.py` was ended by SIGINT before its `main` had begun.

    Python itself ends it then, silently or with a traceback of its own start; how long that start
    takes is the machine's.
    """
    ended = code == -signal.SIGINT or (code == 1 and "KeyboardInterrupt" in err)
    return ended and ", in main" not in err
