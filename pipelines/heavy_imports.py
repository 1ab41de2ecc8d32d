"""The first import of torch, diffusers and transformers in a process: what has to be said before,
and what makes it cost half."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.memory import address_space

# Nothing of the studio reaches them through diffusers, which imports both with its models: painting
# with LoRAs is its own, training asks peft itself, and a T5 in 8 or 4 bits is of transformers.
_NOT_THROUGH_DIFFUSERS = ("peft", "bitsandbytes")


def before_torch() -> None:
    """What has to be said before torch and diffusers are imported. Raises OutOfMemoryError where
    the system allows too little address space for them.

    Threads sleep while they wait. By default they spin: with a browser on the same two cores, a
    spinning thread keeps its partner from running, and a picture took twenty times as long
    (docs/decisions/0005). And bitsandbytes does not advise people to install an optional package.
    """
    address_space.check(address_space.TORCH)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def importing_torch() -> Iterator[None]:
    """Around the first import of torch. Raises OutOfMemoryError, as `before_torch`."""
    before_torch()
    with _first("torch"):
        yield


@contextmanager
def importing_diffusers() -> Iterator[None]:
    """Around the first import of what paints or trains. Raises OutOfMemoryError, as `before_torch`.

    It takes 3.3 s of processor time in here, and 5.5 s elsewhere (docs/decisions/0029).
    """
    before_torch()
    with _first("diffusers") as is_first:
        if is_first:
            _tell_diffusers_what_is_there()
        yield


@contextmanager
def _first(library: str) -> Iterator[bool]:
    if library in sys.modules:
        yield False
        return
    # Frozen at the end, the bindings of Triton take their own objects for leaks, and say so.
    atexit.register(gc.unfreeze)
    with uncollected():
        yield True


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports without looking for garbage.

    What imports make stays for ever: searching it again and again takes a sixth of the start, and
    later each search of the whole heap would go through it once more.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def _tell_diffusers_what_is_there() -> None:
    """Has diffusers look for its optional libraries, and not find those that nobody needs there."""
    hidden = [name for name in _NOT_THROUGH_DIFFUSERS if name not in sys.modules]
    # What cannot be imported, as Python writes it down.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import diffusers.utils.import_utils  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
