"""Whether the studio is a Hugging Face Space, and what is different for its visitors.

Standard library and light modules only: the command line asks here before anything is loaded.
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from types import ModuleType

from pipelines.errors import RequestError
from pipelines.request import GenerationRequest
from pipelines.request_values import MAX_COUNT

SPACE = "SPACE_ID"
SPACE_HOSTS = "SPACE_HOST"
ZERO_GPU = "SPACES_ZERO_GPU"
# What Spaces mount where their owner has storage that outlives a restart.
STORAGE = Path("/data")
FOLDER = "pixart-studio"
MOST_PICTURES = 4
MOST_STEPS = 100
log = logging.getLogger(__name__)


def on_space() -> bool:
    """True on a Hugging Face Space: everybody who comes is a stranger."""
    return bool(os.environ.get(SPACE))


def space_hosts() -> tuple[str, ...]:
    """The names under which the Space is reached; () where it does not say."""
    return tuple(name.strip() for name in os.environ.get(SPACE_HOSTS, "").split(",") if name)


def default_host() -> str:
    """The address to listen on where none is asked for."""
    return "0.0.0.0" if on_space() else "127.0.0.1"


def storage() -> Path | None:
    """The workspace in a Space's lasting storage; None where it has none that can be written."""
    if on_space() and STORAGE.is_dir() and os.access(STORAGE, os.W_OK | os.X_OK):
        return STORAGE / FOLDER
    return None


def most_pictures() -> int:
    """How many pictures one job may have."""
    return MOST_PICTURES if on_space() else MAX_COUNT


def check(request: GenerationRequest) -> None:
    """Raises RequestError where a visitor of a Space asks for more than a share of its time."""
    if not on_space():
        return
    if request.count > MOST_PICTURES:
        raise RequestError(
            "count",
            f"On this Space a job has at most {MOST_PICTURES} pictures, not {request.count}.",
        )
    if request.steps > MOST_STEPS:
        raise RequestError(
            "steps", f"On this Space a picture has at most {MOST_STEPS} steps, not {request.steps}."
        )


def zero_gpu() -> ModuleType | None:
    """The package `spaces` where this is a Space on ZeroGPU, else None and nothing is imported.

    It changes torch while it is imported, so it has to come before anything that uses a GPU.
    """
    if os.environ.get(ZERO_GPU, "").lower() not in ("1", "t", "true"):
        return None
    try:
        return importlib.import_module("spaces")
    except ImportError as error:
        log.warning("this Space is on ZeroGPU, but its package is not there (%s)", error)
        return None
