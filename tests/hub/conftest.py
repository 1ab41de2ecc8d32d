"""A fake hub with small files in the places of the real ones."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.models.store import ModelStore
from app.settings import Settings
from pipelines.models import hub_rows
from pipelines.models.hub import Hub, Patience
from pipelines.processes.inside import ParentPipe
from tests import fake_hub
from tests.fake_hub import FakeHub, safetensors

ALPHA = "PixArt-alpha/PixArt-XL-2-1024-MS"
COMMIT = hub_rows.known()["alpha-1024"].parts[0].revision
BIG = "transformer/diffusion_pytorch_model.safetensors"
T5 = {
    "architectures": ["T5EncoderModel"],
    **dict(hub_rows.known()["alpha-1024"].parts[1].like),
}
FAST = Patience(connect=2, stall=0.4, tries=3, pause=0.01, longest_pause=0.02)


def shards(stem: str, count: int, size: int) -> dict[str, bytes]:
    names = [f"{stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    index = {"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    files = {name: safetensors(size, i, f"w{i}") for i, name in enumerate(names)}
    return {**files, f"{stem}.safetensors.index.json": json.dumps(index).encode()}


def parts(seed: int = 0) -> dict[str, bytes]:
    """A repository as the real one: twins, variants and pictures included."""
    weights = "diffusion_pytorch_model"
    text = {f"text_encoder/{n}": d for n, d in shards("model", 2, 50_000).items()}
    return {
        "model_index.json": b"{}",
        "README.md": b"# PixArt",
        "asset/teaser.png": b"\x89PNG" * 500,
        "scheduler/scheduler_config.json": b'{"beta_start": 0.0001}',
        "text_encoder/config.json": json.dumps(T5).encode(),
        **text,
        "text_encoder/pytorch_model-00001-of-00002.bin": b"pickle" * 500,
        "tokenizer/spiece.model": b"spiece" * 300,
        "tokenizer/tokenizer_config.json": b"{}",
        "transformer/config.json": b'{"_class_name": "Transformer2DModel"}',
        f"transformer/{weights}.safetensors": safetensors(400_000, seed),
        f"transformer/{weights}.fp16.safetensors": safetensors(5000),
        f"transformer/{weights}.bin": b"pickle" * 500,
        "vae/config.json": b'{"_class_name": "AutoencoderKL"}',
        f"vae/{weights}.safetensors": safetensors(30_000),
    }


WANTED = {
    *("scheduler/scheduler_config.json", "tokenizer/spiece.model"),
    *("tokenizer/tokenizer_config.json", "text_encoder/config.json"),
    "text_encoder/model.safetensors.index.json",
    *(f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    *("transformer/config.json", BIG, "vae/config.json"),
    "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_children: None) -> None:
    """No weights, tokens or proxies of the machine that the tests run on."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    # What a power cut leaves is not tested, and a busy disk takes its time.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.delenv("PIXART_STUDIO_MODEL_FOLDERS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.serve() as served:
        served.put(ALPHA, COMMIT, parts())
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


class Shelf:
    """A store in a workspace, and what was seen while it worked."""

    def __init__(self, workspace: Path, **arguments: Any) -> None:
        self.settings = Settings(workspace=workspace)
        self.root = self.settings.models / "hub"
        self.store = ModelStore(self.settings, hub=lambda: Hub(patience=FAST, **arguments))
        self.readings: list[Any] = []

    def get(self, model: str = "alpha-1024", **options: Any) -> bool:
        plan = self.store.plan(model, **options)
        assert plan is not None
        return self.store.download(plan, report=self.readings.append)

    def folder(self, repo: str = ALPHA, commit: str = COMMIT) -> Path:
        return self.root / repo.replace("/", "--") / commit

    def files(self, repo: str = ALPHA, commit: str = COMMIT) -> dict[str, bytes]:
        base = self.folder(repo, commit)
        return {
            f.relative_to(base).as_posix(): f.read_bytes() for f in base.rglob("*") if f.is_file()
        }


def convert_for_ever(pipe: ParentPipe, file: str, folder: str) -> None:
    """In place of a conversion, which may be over before a stop is obeyed."""
    threading.Event().wait()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "workspace")
