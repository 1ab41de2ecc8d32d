"""How much address space the system lets this process have (`ulimit -v`), and what we need of it.

Where it runs out, libraries fail in many ways, and some end the process without a word.
"""

from __future__ import annotations

import errno

from pipelines.errors import OutOfMemoryError

TORCH = 3_500_000_000
"""Bytes without which torch and diffusers cannot even be loaded (measured: 3.2 to 3.7 GB)."""
PAGE = 900_000_000
"""The page itself, with the threads that answer it (measured: 0.75 GB)."""
_OUT_OF_MEMORY = ("cannot allocate memory", "failed to map segment", "can't start new thread")
_WAY_OUT = "Raise that limit (ulimit -v unlimited), in the shell or where the service is set up."


def limit() -> int | None:
    """The limit in bytes; None without one."""
    try:
        import resource
    # Windows has no such thing.
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def check(needed: int) -> None:
    """Raises OutOfMemoryError where this process may have less than `needed` bytes."""
    allowed = limit()
    if allowed is not None and allowed < needed:
        raise _too_little(allowed)


def out_of_memory(error: BaseException) -> OutOfMemoryError | None:
    """What to say where `error` comes of too little memory or address space, else None."""
    numbered = isinstance(error, OSError) and error.errno == errno.ENOMEM
    worded = isinstance(error, (ImportError, RuntimeError, OSError)) and any(
        words in str(error).lower() for words in _OUT_OF_MEMORY
    )
    if not (isinstance(error, MemoryError) or numbered or worded):
        return None
    allowed = limit()
    if allowed is not None:
        return _too_little(allowed)
    return OutOfMemoryError("There is not enough memory.", "Close other programs and try again.")


def _too_little(allowed: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"The system allows this process {allowed / 1e9:.1f} GB of address space, which is too"
        " little.",
        _WAY_OUT,
    )
