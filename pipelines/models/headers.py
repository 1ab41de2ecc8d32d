"""The header of a safetensors file of a model, as `lora_manager.headers` reads and checks it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from lora_manager import headers
from lora_manager.headers import ITEM_BYTES as ITEM_BYTES
from lora_manager.headers import Header as Header
from pipelines.errors import model_errors


def read(file: Path) -> Header:
    """The checked header of `file`. Raises ModelError that says what is wrong."""
    with model_errors():
        return headers.read(file)


def of_stream(stream: BinaryIO, name: str) -> Header:
    """The checked header of an open file that people know as `name`. Raises ModelError, OSError."""
    with model_errors():
        return headers.of_stream(stream, name)
