"""Tiny models on the fake hub, laid out as the real repositories are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from pipelines.models import convert, hub_rows
from pipelines.models.sources import ReadOptions
from tests import tiny
from tests.fake_hub import FakeHub
from tests.hub.conftest import ALPHA, COMMIT
from tests.pipelines.text.test_spiece import spiece_file

COCO = "alpha-256-coco"
PTH = hub_rows.known()[COCO].parts[0].file
FIRST_SEEN = "a" * 40


def old_pipeline(folder: Path) -> dict[str, bytes]:
    """A tiny model as the real repository: sharded T5, spiece.model, the old null caption."""
    tiny.build(folder, micro_conditions=True, seed=3)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    null_caption = tensors["proj_out.bias"].clone()
    save_file(tensors | {"caption_projection.y_embedding": null_caption}, weights)
    config = folder / "transformer" / "config.json"
    values = json.loads(config.read_text("utf-8"))
    # As the old configurations: another name, and nothing about additional conditions.
    values |= {"_class_name": "Transformer2DModel"}
    values.pop("use_additional_conditions")
    config.write_text(json.dumps(values), "utf-8")
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder")
    shutil.rmtree(folder / "text_encoder")
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="60KB")
    vocabulary = folder / "tokenizer" / "tokenizer.json"
    (folder / "tokenizer" / "spiece.model").write_bytes(spiece_file(vocabulary))
    vocabulary.unlink()
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    """Every file by its path in the repository."""
    found = [file for file in folder.rglob("*") if file.is_file()]
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in found}


def put(hub: FakeHub, model_id: str, folder: Path) -> None:
    """Publishes the parts of `folder` in the repositories that the row of `model_id` reads."""
    hub.repos.clear()
    for source in hub_rows.known()[model_id].parts:
        revision = FIRST_SEEN if source.revision == "main" else source.revision
        data = {f"{source.folder}/{n}": d for n, d in files(folder / source.part).items()}
        hub.put(source.repo, revision, data)


def put_original(hub: FakeHub, folder: Path) -> bytes:
    """Publishes `folder` as the row does that comes as a .pth; returns that file."""
    convert.convert(folder, folder.with_suffix(".pth"), ReadOptions())
    data = folder.with_suffix(".pth").read_bytes()
    own, *shared = hub_rows.known()[COCO].parts
    for source in shared:
        assert (source.repo, source.revision) == (ALPHA, COMMIT)
    hub.repos[ALPHA].files.clear()
    hub.put(ALPHA, COMMIT, {n: d for n, d in files(folder).items() if "transformer" not in n})
    hub.put(own.repo, own.revision, {PTH: data, "README.md": b"# PixArt", "other.pth": b"PK"})
    return data
