"""The released models: rows of presets/hub.toml. Reading them never touches disk or network."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FILE = Path(__file__).resolve().parents[2] / "presets" / "hub.toml"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
MAIN = "main"

ReleaseKind = Literal["model", "original", "controlnet", "lora"]


class HubSource(BaseModel):
    """Where one part lies on the hub: a folder of a repository, or one file of it.

    `name` is the key in the table of shared parts, "" for what only one model has. `like` are
    facts of a config.json by which the same part is known in another place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    part: str = Field(
        pattern="^(transformer|vae|text_encoder|tokenizer|scheduler|adapter|controlnet)$"
    )
    title: str = ""
    repo: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
    revision: str = Field(pattern=r"^([0-9a-f]{40}|main)$")
    folder: str = ""
    file: str = ""
    size: int = Field(gt=0, alias="bytes")
    exact: bool
    like: Mapping[str, int | str] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two sources the same files."""
        return self.repo, self.revision, self.file or self.folder

    @property
    def label(self) -> str:
        """How people call it."""
        return self.title or self.part


class Known(BaseModel):
    """A released model, downloaded or not. `row` holds the fields of its ModelSpec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=_NAME)
    kind: ReleaseKind = "model"
    base: str | None = None
    title: str
    summary: str
    licence: str
    parts: tuple[HubSource, ...]
    row: Mapping[str, Any] = {}

    @model_validator(mode="after")
    def _fits(self) -> Known:
        names = [source.part for source in self.parts]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.id} names a part twice")
        return self

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(source.size for source in self.parts)

    @property
    def exact(self) -> bool:
        """Whether `size` is known to the byte before the hub was asked."""
        return all(source.exact for source in self.parts)

    @property
    def paints(self) -> bool:
        """Whether it is a model by itself, which can be chosen once it is here."""
        return self.kind in ("model", "original")


@cache
def known() -> Mapping[str, Known]:
    """Every released model by id, in the order of the file."""
    table = tomllib.loads(_FILE.read_text("utf-8"))
    shared = {
        name: HubSource.model_validate({**values, "name": name})
        for name, values in table["parts"].items()
    }
    return {name: _known(name, values, shared) for name, values in table["models"].items()}


def _known(name: str, values: Mapping[str, Any], shared: Mapping[str, HubSource]) -> Known:
    row = dict(values)
    parts = (
        HubSource.model_validate(row.pop("own")),
        *(shared[share] for share in row.pop("shares", ())),
    )
    fields = {key: row.pop(key) for key in ("kind", "base") if key in row}
    texts = {key: row[key] for key in ("title", "summary", "licence")}
    if fields.get("kind") in ("controlnet", "lora"):
        row = {key: row[key] for key in ("distilled",) if key in row}
    return Known(id=name, parts=parts, row=row, **fields, **texts)


def shared_by(source: HubSource) -> tuple[str, ...]:
    """The ids of the models that read `source`, the one they are asked for included."""
    return tuple(
        row.id for row in known().values() if source.key in (part.key for part in row.parts)
    )
