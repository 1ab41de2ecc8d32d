"""Encoded prompts on disk: found again, never wrong, never too many, never in the way."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5EncoderModel

from pipelines.catalog import Catalog
from pipelines.engine import Engine
from pipelines.memory import planning
from pipelines.request import complete
from pipelines.text import prompt_files, text_loader
from pipelines.text.prompt_cache import PromptCache
from tests.pipelines.conftest import CPU

IDS = (5, 9, 1)


def features(value: float = 1.0, tokens: int = 3) -> torch.Tensor:
    return torch.full((tokens, 4), value, dtype=torch.bfloat16)


def only(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_what_was_kept_is_found_to_the_bit(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path / "prompts")
    assert cache.find(IDS, "t5") is None
    cache.keep(IDS, "t5", features())
    again = PromptCache(tmp_path / "prompts").find(IDS, "t5")
    assert again is not None
    assert again.dtype == torch.bfloat16
    assert torch.equal(again, features())
    assert cache.find(IDS, "t5 in int8") is None
    assert cache.find((5, 1), "t5") is None


@pytest.mark.parametrize("damage", ["cut", "empty", "other shape", "not finite", "no tensors"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    cache = PromptCache(tmp_path)
    cache.keep(IDS, "t5", features())
    file = only(tmp_path)
    if damage in ("other shape", "not finite"):
        other = PromptCache(tmp_path / "other")
        wrong = features(tokens=2) if damage == "other shape" else features(float("nan"))
        other.keep(IDS, "t5", wrong)
        file.write_bytes(only(tmp_path / "other").read_bytes())
    else:
        data = file.read_bytes()
        file.write_bytes({"cut": data[:-3], "empty": b"", "no tensors": b"x" * 99}[damage])
    assert cache.find(IDS, "t5") is None
    assert not file.exists()
    cache.keep(IDS, "t5", features())
    assert cache.find(IDS, "t5") is not None


def test_the_least_used_go_first(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    for number in range(6):
        cache.keep((number, 1, 2), "t5", features())
        for age, file in enumerate(sorted(tmp_path.iterdir(), key=os.path.getmtime)):
            os.utime(file, (age, age))
    one = prompt_files.size(tmp_path) // 6
    cache.find((0, 1, 2), "t5")
    small = PromptCache(tmp_path, max_bytes=3 * one)
    small.keep((9, 1, 2), "t5", features())
    assert prompt_files.size(tmp_path) <= 3 * one
    kept = {n for n in (*range(6), 9) if cache.find((n, 1, 2), "t5") is not None}
    assert kept == {0, 5, 9}


def test_one_text_is_forgotten_whoever_encoded_it(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    for ids in (IDS, (5, 1)):
        for encoder in ("t5", "t5 in int8"):
            cache.keep(ids, encoder, features(tokens=len(ids)))
    (tmp_path / ("0" * 40 + ".safetensors")).write_bytes(b"of an earlier version")
    prompt_files.forget(tmp_path, IDS)
    prompt_files.forget(tmp_path / "missing", IDS)
    assert len(list(tmp_path.iterdir())) == 2
    assert [cache.find(IDS, encoder) for encoder in ("t5", "t5 in int8")] == [None, None]
    assert all(cache.find((5, 1), encoder) is not None for encoder in ("t5", "t5 in int8"))


def test_one_prompt_or_all_can_be_forgotten(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    for number in range(3):
        cache.keep((number, 1, 2), "t5", features())
    prompt_files.forget(tmp_path, (1, 1, 2))
    assert cache.find((1, 1, 2), "t5") is None
    there = prompt_files.size(tmp_path)
    assert there > 0
    (tmp_path / "notes.txt").write_text("mine")
    assert prompt_files.clear(tmp_path) == there
    assert prompt_files.size(tmp_path) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert prompt_files.clear(tmp_path / "never made") == 0


def test_what_cannot_be_deleted_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PromptCache(tmp_path).keep(IDS, "t5", features())

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    assert prompt_files.clear(tmp_path) == 0
    assert prompt_files.size(tmp_path) > 0


def test_a_full_disk_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    cache = PromptCache(tmp_path)
    cache.keep(IDS, "t5", features())
    assert cache.find(IDS, "t5") is None


def test_a_queue_is_encoded_in_one_visit(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 comes once for three jobs where it does not stay."""
    loads: list[object] = []
    load = text_loader.load

    def counted(*given: Any) -> Any:
        loads.append(given)
        return load(*given)

    monkeypatch.setattr(text_loader, "load", counted)
    plan = planning.plan
    monkeypatch.setattr(
        planning, "plan", lambda *g: dataclasses.replace(plan(*g), keeps_text=False)
    )
    jobs = [
        complete({"prompt": f"{n} red apples", "model": "tiny", "steps": 2}, catalog)
        for n in ("two", "three", "four")
    ]
    engine = Engine(catalog, inputs=tmp_path, machine=CPU)
    for number, job in enumerate(jobs):
        rest = jobs[number + 1 :]
        made = engine.generate(job, lambda progress: None, lambda: False, upcoming=rest)
        assert len(list(made)) == 1
    assert len(loads) == 1


def test_the_second_run_of_a_prompt_never_loads_the_text_encoder(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = complete({"prompt": "a red apple", "model": "tiny", "steps": 2}, catalog)

    def paint(cache: Path | None) -> list[bytes]:
        engine = Engine(catalog, inputs=tmp_path, cache=cache, machine=CPU)
        made = engine.generate(request, lambda progress: None, lambda: False)
        return [picture.image.tobytes() for picture in made]

    first = paint(tmp_path)
    assert first == paint(None)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the text encoder was loaded")

    monkeypatch.setattr(T5EncoderModel, "from_pretrained", never)
    assert paint(tmp_path) == first
    with pytest.raises(Exception, match="was loaded"):
        paint(None)
