"""Weights of other programs: found, used where they lie, and never touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.catalog import Catalog
from pipelines.errors import DownloadError, ModelError
from pipelines.memory import model_numbers
from pipelines.models import downloads, hub_rows, local_weights
from tests import sparse
from tests.fake_hub import FakeHub, safetensors
from tests.hub.conftest import ALPHA, BIG, COMMIT, T5, WANTED, Shelf, parts

COCO_FILE = hub_rows.known()["alpha-256-coco"].parts[0].file
ALPHA_1024 = hub_rows.known()["alpha-1024"]


def cache(root: Path, repo: str, commit: str, files: dict[str, bytes]) -> Path:
    """The hub's own cache: blobs, and a snapshot of links to them."""
    base = root / f"models--{repo.replace('/', '--')}"
    snapshot = base / "snapshots" / commit
    for i, (name, data) in enumerate(files.items()):
        blob = base / "blobs" / f"{i}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def t5(folder: Path) -> Path:
    for name, data in parts().items():
        if name.startswith("text_encoder/") and name in WANTED:
            file = folder / Path(name).name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return folder


def test_a_model_in_the_hubs_cache_is_used_where_it_lies(
    hub: FakeHub, shelf: Shelf, tmp_path: Path
) -> None:
    snapshot = cache(tmp_path / "cache", ALPHA, COMMIT, parts())
    row = next(row for row in shelf.store.rows() if row.id == "alpha-1024")
    assert row.left == 0
    assert row.state == "known"
    plan = shelf.store.plan("alpha-1024")
    assert plan is not None
    assert plan.left == 0
    assert shelf.store.download(plan)
    assert hub.asked == []
    model = Catalog(user_models=shelf.settings.models).find("alpha-1024")
    assert model.part("transformer") == snapshot / "transformer"
    assert shelf.store.remove("alpha-1024") == 0
    assert (snapshot / BIG).read_bytes() == parts()[BIG]


def test_what_was_used_where_it_lay_and_is_gone_is_one_sentence(
    hub: FakeHub, shelf: Shelf, tmp_path: Path
) -> None:
    encoder = t5(tmp_path / "comfy" / "models" / "text_encoders" / "t5")
    shelf.settings.workspace.mkdir()
    os.environ["PIXART_STUDIO_MODEL_FOLDERS"] = str(tmp_path / "comfy")
    try:
        assert shelf.get()
    finally:
        del os.environ["PIXART_STUDIO_MODEL_FOLDERS"]
    assert not any(a.path.startswith("text_encoder") for a in hub.asked)
    catalog = Catalog(user_models=shelf.settings.models)
    assert catalog.find("alpha-1024").part("text_encoder") == encoder
    (encoder / "config.json").rename(encoder / "config.old")
    catalog.reload()
    assert [model.id for model in catalog] == ["nano"]
    with pytest.raises(ModelError) as caught:
        catalog.find("alpha-1024")
    assert str(encoder) in str(caught.value)
    assert "models download alpha-1024" in str(caught.value)
    repaired = Shelf(tmp_path / "workspace")
    assert repaired.get()
    assert any(a.path.startswith("text_encoder") for a in hub.asked)
    catalog.reload()
    assert catalog.find("alpha-1024")


def test_the_encoder_of_another_model_is_the_same_encoder(tmp_path: Path) -> None:
    files = {
        name.replace("text_encoder/", "text_encoder_2/"): data
        for name, data in parts().items()
        if name.startswith("text_encoder/")
    }
    snapshot = cache(tmp_path / "cache", "black-forest-labs/FLUX.1-dev", "f" * 40, files)
    places = local_weights.look().places(ALPHA_1024)
    assert places == {"text_encoder": snapshot / "text_encoder_2"}


def test_another_commit_or_another_vae_is_not_taken(tmp_path: Path) -> None:
    cache(tmp_path / "cache", ALPHA, "1" * 40, parts())
    cache(tmp_path / "cache", "someone/else", "2" * 40, parts())
    assert set(local_weights.look().places(ALPHA_1024)) == {"text_encoder"}


BREAK: dict[str, Callable[[Path], object]] = {
    "no config": lambda f: (f / "config.json").unlink(),
    "other size": lambda f: (f / "config.json").write_text(json.dumps(T5 | {"d_model": 512})),
    "no index": lambda f: (f / "model.safetensors.index.json").unlink(),
    "a shard is missing": lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
    "a shard is cut": lambda f: os.truncate(f / "model-00002-of-00002.safetensors", 40_000),
    "a shard is a web page": lambda f: (f / "model-00001-of-00002.safetensors").write_text(
        "<html>"
    ),
    "the index is damaged": lambda f: (f / "model.safetensors.index.json").write_text("["),
    "the index names others": lambda f: (f / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00003-of-00003.safetensors"}}'
    ),
    "pickles only": lambda f: [
        file.rename(file.with_suffix(".bin")) for file in f.glob("*.safetensors")
    ],
    "a shard lies elsewhere": lambda f: os.symlink(
        (f / "model-00001-of-00002.safetensors").rename(f.parents[3] / "outside"),
        f / "model-00001-of-00002.safetensors",
    ),
}


@pytest.mark.parametrize("how", ["", *BREAK])
def test_only_a_whole_part_is_taken(tmp_path: Path, how: str) -> None:
    folder = t5(tmp_path / "comfy" / "models" / "text_encoders" / "t5")
    if how:
        BREAK[how](folder)
    places = local_weights.look([tmp_path / "comfy"]).places(ALPHA_1024)
    assert places == ({} if how else {"text_encoder": folder})


def test_single_files_are_reported_with_their_use(tmp_path: Path) -> None:
    comfy, forge = tmp_path / "comfy" / "models", tmp_path / "forge" / "models"
    original = Path("output/pretrained_models")
    alone = original / "half" / "t5-v1_1-xxl" / "pytorch_model-00001-of-00002.bin"
    encoder, control = "T5-XXL text encoder", "PixArt ControlNet"
    sparse.write(comfy / "text_encoders" / "t5xxl_fp8.safetensors", sparse.t5_xxl(), "F8_E4M3")
    sparse.write(comfy / "text_encoders" / "t5xxl_fp16.safetensors", sparse.t5_xxl())
    sparse.write(comfy / "vae" / "new.safetensors", sparse.vae())
    sparse.write(comfy / "vae" / "first.safetensors", sparse.first_vae())
    sparse.write(comfy / "vae" / "ae.safetensors", {k: (1,) for k in sparse.vae()})
    files = {
        comfy / "diffusion_models" / "mine.safetensors": safetensors(
            10, name="adaln_single.linear.weight"
        ),
        comfy / "checkpoints" / "old.safetensors": safetensors(10, name="t_block.1.weight"),
        forge / "Stable-diffusion" / "PixArt-XL-2-512x512.pth": b"PK",
        forge / "Stable-diffusion" / "sd15.safetensors": safetensors(10, name="x"),
        forge / "VAE" / "broken.safetensors": b"\xff" * 20,
        forge / "ControlNet" / "PixArt-XL-2-512-ControlNet.pth": b"PK",
        original / COCO_FILE: b"PK",
        original / "t5_ckpts" / "t5-v1_1-xxl" / "pytorch_model-00001-of-00002.bin": b"PK",
        original / "t5_ckpts" / "t5-v1_1-xxl" / "pytorch_model-00002-of-00002.bin": b"PK",
        alone: b"PK",
    }
    for file, data in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    seen = local_weights.look([tmp_path / "comfy", tmp_path / "forge"])
    assert seen.parts == ()
    told = {item.file.relative_to(tmp_path).as_posix(): item for item in seen.files}
    assert {name: (item.what, item.use) for name, item in told.items()} == {
        "comfy/models/text_encoders/t5xxl_fp8.safetensors": (encoder, ""),
        "comfy/models/text_encoders/t5xxl_fp16.safetensors": (encoder, "text"),
        "comfy/models/vae/new.safetensors": ("VAE", "vae"),
        "comfy/models/vae/first.safetensors": ("VAE", "first-vae"),
        "comfy/models/vae/ae.safetensors": ("VAE", ""),
        "comfy/models/diffusion_models/mine.safetensors": ("PixArt model", "model"),
        "comfy/models/checkpoints/old.safetensors": ("PixArt model", "model"),
        "forge/models/Stable-diffusion/PixArt-XL-2-512x512.pth": ("PixArt model", "model"),
        "forge/models/ControlNet/PixArt-XL-2-512-ControlNet.pth": (control, ""),
        f"output/pretrained_models/{COCO_FILE}": ("PixArt model", "model"),
        "output/pretrained_models/t5_ckpts/t5-v1_1-xxl/pytorch_model-00001-of-00002.bin": (
            encoder,
            "pickles",
        ),
        "output/pretrained_models/half/t5-v1_1-xxl/pytorch_model-00001-of-00002.bin": (encoder, ""),
    }
    ways = {name.rpartition("/")[2]: item.way() for name, item in told.items()}
    assert "cannot be used: “t5xxl_fp8.safetensors” is quantised" in ways["t5xxl_fp8.safetensors"]
    assert "ControlNet is not a model" in ways["PixArt-XL-2-512-ControlNet.pth"]
    assert ways["t5xxl_fp16.safetensors"].endswith('t5xxl_fp16.safetensors"')
    assert (
        "where it lies: launch.py models import TRANSFORMER --text"
        in ways["t5xxl_fp16.safetensors"]
    )
    assert "TRANSFORMER --vae" in ways["new.safetensors"]
    assert "converted: " in ways["first.safetensors"]
    assert "models download alpha-256-coco" in ways[COCO_FILE]
    assert 'models import "' in ways["mine.safetensors"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_t5_in_one_file_spares_its_download(
    whole: bool, hub: FakeHub, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """19 GB are not fetched where another program has the encoder in bf16 or fp16."""
    comfy = tmp_path / "comfy"
    file = comfy / "models" / "text_encoders" / "t5xxl_fp16.safetensors"
    sparse.write(file, sparse.t5_xxl(), "F16" if whole else "F8_E4M3")
    monkeypatch.setenv("PIXART_STUDIO_MODEL_FOLDERS", str(comfy))
    assert shelf.get()
    fetched = any(a.path.startswith("text_encoder") for a in hub.asked)
    assert fetched == (not whole)
    if not whole:
        return
    spec = Catalog(user_models=shelf.settings.models).find("alpha-1024")
    link = spec.part("text_encoder") / "model.safetensors"
    assert link.readlink() == file.resolve()
    assert model_numbers._t5(json.loads((link.parent / "config.json").read_text()))
    # Read by a model of one's own, the link stays.
    own = shelf.settings.models / "mine" / "model.toml"
    own.parent.mkdir()
    own.write_text(f"[places]\ntext_encoder = {json.dumps(str(link.parent))}\n", "utf-8")
    shelf.store.remove("alpha-1024")
    assert link.is_file()
    own.unlink()
    # Given up, the link goes and the file stays.
    assert shelf.get()
    shelf.store.remove("alpha-1024")
    assert file.is_file()
    assert not link.parent.exists()
    assert shelf.get(own_copy=True)
    assert any(a.path.startswith("text_encoder") for a in hub.asked)


def single_t5(comfy: Path, monkeypatch: pytest.MonkeyPatch, dtype: str = "F16") -> Path:
    file = comfy / "models" / "text_encoders" / "t5xxl_fp16.safetensors"
    monkeypatch.setenv("PIXART_STUDIO_MODEL_FOLDERS", str(comfy))
    return sparse.write(file, sparse.t5_xxl(), dtype)


def during(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Has `act` done while a download is on its way, after its last file."""
    fetch = downloads._fetch_all

    def fetch_all(*arguments: Any) -> None:
        fetch(*arguments)
        act()

    monkeypatch.setattr(downloads, "_fetch_all", fetch_all)


@pytest.mark.parametrize("how", ["gone", "quantised"])
def test_mending_looks_anew_for_what_lies_elsewhere(
    how: str, hub: FakeHub, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One store for the whole life of the page."""
    file = single_t5(tmp_path / "comfy", monkeypatch)
    assert shelf.get()
    if how == "gone":
        file.unlink()
    else:
        single_t5(tmp_path / "comfy", monkeypatch, "F8_E4M3")
    row = next(row for row in shelf.store.rows() if row.id == "alpha-1024")
    assert row.state == "broken"
    # It is that program's file that the sentence names, not our folder with a link to it.
    words = "is gone" if how == "gone" else "is quantised"
    assert f"its text encoder is a link to {file.resolve()}, which " in row.problem
    assert words in row.problem
    catalog = Catalog(user_models=shelf.settings.models)
    with pytest.raises(ModelError, match=words):
        catalog.find("alpha-1024")
    encoder = next(part for part in row.parts if part.source.part == "text_encoder")
    assert encoder.folder is None
    assert row.left == encoder.source.size
    assert shelf.get(check=True)
    assert any(a.path.startswith("text_encoder") for a in hub.asked)
    row = next(row for row in shelf.store.rows() if row.id == "alpha-1024")
    assert row.state == "downloaded"
    catalog.reload()
    place = catalog.find("alpha-1024").part("text_encoder")
    assert place == shelf.folder() / "text_encoder"


@pytest.mark.parametrize("when", ["planned", "fetching"])
def test_what_goes_away_during_a_download_is_not_installed(
    when: str, hub: FakeHub, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = single_t5(tmp_path / "comfy", monkeypatch)
    plan = shelf.store.plan("alpha-1024")
    assert plan is not None
    if when == "planned":
        file.unlink()
    with pytest.raises(DownloadError, match=r"t5xxl_fp16\.safetensors is gone"):
        during(monkeypatch, lambda: file.unlink(missing_ok=True))
        shelf.store.download(plan)
    assert next(row for row in shelf.store.rows() if row.id == "alpha-1024").state == "known"
    assert shelf.get()
    assert any(a.path.startswith("text_encoder") for a in hub.asked)


def test_a_folder_that_is_damaged_during_a_download_is_not_installed(
    hub: FakeHub, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = t5(tmp_path / "comfy" / "models" / "text_encoders" / "t5")
    monkeypatch.setenv("PIXART_STUDIO_MODEL_FOLDERS", str(tmp_path / "comfy"))
    plan = shelf.store.plan("alpha-1024")
    assert plan is not None
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DownloadError, match=r"text_encoders/t5 cannot be used: files are missing"):
        shelf.store.download(plan)
    assert next(row for row in shelf.store.rows() if row.id == "alpha-1024").state == "known"


def test_removing_another_model_spares_what_a_download_links_to(
    hub: FakeHub, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single_t5(tmp_path / "comfy", monkeypatch)
    (source,) = hub_rows.known()["controlnet-hed-512"].parts
    hub.put(source.repo, "a" * 40, {source.file: b"PK" * 500})
    assert shelf.get("controlnet-hed-512")
    removed: list[int] = []

    def remove() -> None:
        removed.append(Shelf(tmp_path / "workspace").store.remove("controlnet-hed-512"))

    during(monkeypatch, remove)
    assert shelf.get()
    assert removed
    spec = Catalog(user_models=shelf.settings.models).find("alpha-1024")
    assert (spec.part("text_encoder") / "model.safetensors").is_file()


def test_a_hostile_folder_does_no_harm(tmp_path: Path) -> None:
    root = tmp_path / "deep"
    inner = root
    for i in range(30):
        inner = inner / f"{i}"
    inner.mkdir(parents=True)
    (root / "loop").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    secret = t5(tmp_path / "secret")
    (root / "linked").symlink_to(secret)
    os.mkfifo(root / "pipe.safetensors")
    (root / "many").mkdir()
    for i in range(2000):
        (root / "many" / f"{i}.txt").touch()
    os.mkfifo(root / "many" / "config.json")
    assert (
        local_weights.look([root, tmp_path / "nowhere", root / "pipe.safetensors"])
        == local_weights.LocalWeights()
    )
