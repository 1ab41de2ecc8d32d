"""T5 and VAE in single files, as other programs keep them, become parts of a model in place."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.cli import main
from app.models import own_models
from app.models.importing import import_model
from app.models.rows import ImportOptions
from pipelines.catalog import Catalog
from pipelines.errors import ModelError, RequestError, SaveError
from pipelines.memory import model_numbers
from pipelines.memory.planning import DevicePlan
from pipelines.models import loader
from pipelines.models.hub_store import FOLDER
from pipelines.models.original_layout import SIGMA_TOKENS
from pipelines.text.tokens import tokenize
from tests import original, sparse, tiny
from tests.pipelines.text.test_spiece import spiece_file

CPU = DevicePlan(device="cpu", precision="float32")
T5 = "model.safetensors"
VAE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of the machine that the tests run on."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    # What a power cut leaves is not tested, and a busy disk takes its time.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.build(tmp_path_factory.mktemp("whole") / "tiny")
    (folder / "model.toml").unlink()
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def comfy(whole: Path, tmp_path: Path) -> Path:
    """Another program's folder: T5 in one file, without any configuration."""
    file = tmp_path / "ComfyUI" / "models" / "text_encoders" / "t5_small.safetensors"
    file.parent.mkdir(parents=True)
    shutil.copyfile(whole / "text_encoder" / T5, file)
    return file


def with_tokenizer(folder: Path) -> None:
    shutil.copyfile(tiny.NANO / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")


def test_t5_in_one_file_is_used_where_it_lies(whole: Path, models: Path, comfy: Path) -> None:
    with_tokenizer(comfy.parent)
    wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy))
    spec = import_model(whole / "transformer", models, wanted)
    link = spec.folder / "text_encoder" / T5
    assert link.readlink() == comfy.resolve()
    assert not spec.places.keys() & {"text_encoder", "tokenizer"}
    assert not Catalog(user_models=models).problems
    there = loader.part(spec, "text_encoder", torch.float32).state_dict()
    for key, value in load_file(comfy).items():
        assert torch.equal(there[key], value)
    assert model_numbers.of(spec).text > 0
    # Its bytes are not the model's: removing it frees only what was written.
    size = own_models.find(models, "mine").size
    assert size < comfy.stat().st_size + (spec.folder / "transformer" / VAE).stat().st_size
    own_models.remove(models, "mine")
    assert comfy.is_file()


def test_a_file_that_is_gone_is_one_problem(whole: Path, models: Path, comfy: Path) -> None:
    with_tokenizer(comfy.parent)
    wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy))
    import_model(whole / "transformer", models, wanted)
    comfy.unlink()
    catalog = Catalog(user_models=models)
    assert len(catalog.problems) == 1
    assert f"is a link to {comfy.resolve()}, which is gone" in catalog.problems[0]
    with pytest.raises(ModelError):
        catalog.find("mine")


def test_where_the_tokenizer_comes_from(whole: Path, models: Path, comfy: Path) -> None:
    wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy))
    with pytest.raises(RequestError, match=r"no tokenizer beside it.*spiece\.model.*0\.8 MB"):
        import_model(whole / "transformer", models, wanted)
    assert list(models.iterdir()) == []
    # Of a model with the same encoder.
    other = import_model(whole, models, ImportOptions(id="other"))
    spec = import_model(whole / "transformer", models, wanted)
    assert spec.part("tokenizer") == (other.folder / "tokenizer").resolve()
    with pytest.raises(ModelError, match="“mine” reads the tokenizer of “other”"):
        own_models.remove(models, "other")
    # Beside it first.
    (comfy.parent / "tokenizer").mkdir()
    with_tokenizer(comfy.parent / "tokenizer")
    again = ImportOptions(id="again", vae=str(whole / "vae"), text=str(comfy))
    spec = import_model(whole / "transformer", models, again)
    assert spec.part("tokenizer") == (comfy.parent / "tokenizer").resolve()


def make_foreign(vocabulary: Path) -> None:
    """As that of another encoder: nothing ends a text."""
    values = json.loads(vocabulary.read_text("utf-8"))
    vocabulary.write_text(json.dumps(values | {"post_processor": None}), "utf-8")


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_of_another_programs_folder_only_the_vocabulary_is_taken(
    name: str, whole: Path, models: Path, comfy: Path
) -> None:
    """Where the sentence says to put it, all encoders of that program lie."""
    with_tokenizer(comfy.parent)
    if name == "spiece.model":
        # With the vocabulary of a model that is none of ours beside it.
        vocabulary = comfy.parent / "tokenizer.json"
        (comfy.parent / name).write_bytes(spiece_file(vocabulary))
        make_foreign(vocabulary)
    (comfy.parent / "clip_l.safetensors").write_bytes(b"<html>")
    (comfy.parent / "tokenizer_config.json").write_text("[")
    wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy))
    spec = import_model(whole / "transformer", models, wanted)
    assert [file.name for file in spec.part("tokenizer").iterdir()] == [name]
    assert spec.part("tokenizer").parent == models / "mine"
    assert tokenize("a cat", spec).ids
    before = loader.fingerprint(spec)
    (comfy.parent / "clip_g.safetensors").write_bytes(b"new")
    assert loader.fingerprint(spec) == before


def test_a_foreign_vocabulary_beside_a_file_is_passed_over(
    whole: Path, models: Path, comfy: Path
) -> None:
    with_tokenizer(comfy.parent)
    vocabulary = comfy.parent / "tokenizer.json"
    make_foreign(vocabulary)
    wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy))
    with pytest.raises(RequestError, match="no tokenizer beside it that fits"):
        import_model(whole / "transformer", models, wanted)
    other = import_model(whole, models, ImportOptions(id="other"))
    spec = import_model(whole / "transformer", models, wanted)
    assert spec.part("tokenizer") == (other.folder / "tokenizer").resolve()


def test_a_t5_with_its_head_is_refused_as_it_lies(whole: Path, models: Path, comfy: Path) -> None:
    """The encoder's class cannot load it; a copy would be the same file."""
    with_tokenizer(comfy.parent)
    state = load_file(comfy)
    save_file(state | {"lm_head.weight": state["shared.weight"].clone()}, comfy)
    for copy in (False, True):
        wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy), copy_files=copy)
        with pytest.raises(ModelError, match=r"a T5 with its decoder .“lm_head\.weight”"):
            import_model(whole / "transformer", models, wanted)
    assert list(models.iterdir()) == []


def test_another_file_in_the_place_of_a_linked_one_is_noticed(
    whole: Path, models: Path, comfy: Path
) -> None:
    with_tokenizer(comfy.parent)
    wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy))
    import_model(whole / "transformer", models, wanted)
    state = load_file(comfy)
    comfy.unlink()
    save_file({key: value.to(torch.float8_e4m3fn) for key, value in state.items()}, comfy)
    with pytest.raises(ModelError, match=r"t5_small\.safetensors, which has changed: .*quantised"):
        Catalog(user_models=models).find("mine")
    save_file({key: value.bfloat16() for key, value in state.items()}, comfy)
    assert Catalog(user_models=models).find("mine")


def test_without_links_it_has_to_be_copied(
    whole: Path, models: Path, comfy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tokenizer(comfy.parent)

    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "symlink", refused)
    monkeypatch.setattr(os, "link", refused)
    wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy))
    with pytest.raises(RequestError, match=r"No link to .*Add --copy to have its .* copied"):
        import_model(whole / "transformer", models, wanted)
    assert list(models.iterdir()) == []
    told: list[tuple[int, int]] = []
    copied = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(comfy), copy_files=True)
    spec = import_model(
        whole / "transformer",
        models,
        copied,
        copying=lambda done, total: told.append((done, total)),
    )
    copy = spec.folder / "text_encoder" / T5
    assert not copy.is_symlink()
    assert copy.read_bytes() == comfy.read_bytes()
    assert told[-1] == (comfy.stat().st_size, comfy.stat().st_size)


@pytest.mark.parametrize("in_place", [False, True])
def test_weights_of_a_folder_named_by_themselves(
    whole: Path, models: Path, in_place: bool, tmp_path: Path
) -> None:
    """With a configuration beside them there is nothing to make: the folder is the part."""
    vae, text = whole / "vae" / VAE, whole / "text_encoder" / T5
    wanted = ImportOptions(id="mine", vae=str(vae), text=str(text), in_place=in_place)
    spec = import_model(whole / "transformer", models, wanted)
    assert spec.part("vae") == (whole / "vae").resolve()
    assert spec.part("text_encoder") == (whole / "text_encoder").resolve()
    assert spec.part("tokenizer") == (whole / "tokenizer").resolve()


def checkpoint(file: Path, *, sigma: bool = False) -> Path:
    """A .pth that reads T5 XXL."""
    tokens = SIGMA_TOKENS if sigma else 120
    state = original.state(width=48, layers=2, captions=4096, tokens=tokens, grid=8)
    torch.save({"state_dict": state}, file)
    return file


def test_xxl_of_the_real_size_costs_no_room(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9.5 GB of T5 are looked at by their header alone, and neither read nor copied."""
    comfy = tmp_path / "ComfyUI" / "models"
    t5 = sparse.write(comfy / "text_encoders" / "t5xxl_fp16.safetensors", sparse.t5_xxl())
    vae = sparse.write(comfy / "VAE" / "mine.safetensors", sparse.vae())
    with_tokenizer(t5.parent)
    assert t5.stat().st_size > 9_500_000_000
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    source = checkpoint(tmp_path / "net.pth")
    wanted = ImportOptions(text=str(t5), vae=str(vae), head_dim=24)
    spec = import_model(source, models, wanted)
    assert (spec.part("text_encoder") / T5).readlink() == t5.resolve()
    assert (spec.part("vae") / VAE).readlink() == vae.resolve()
    assert not spec.places.keys() & {"vae", "text_encoder"}
    loader.check(spec)
    assert model_numbers.of(spec).text > 4_700_000_000
    loader.vae(spec, CPU)
    with pytest.raises(SaveError, match="no space"):
        import_model(
            source,
            models,
            ImportOptions(id="b", text=str(t5), vae=str(vae), head_dim=24, copy_files=True),
        )
    assert [p.name for p in models.iterdir()] == ["net"]


@pytest.mark.parametrize(
    ("name", "sigma", "scaling"),
    [
        ("vae.safetensors", False, 0.18215),
        ("vae.safetensors", True, 0.13025),
        ("sdxl_vae.safetensors", True, 0.13025),
        ("vae-ft-mse-840000-ema-pruned.safetensors", False, 0.18215),
    ],
)
def test_a_vae_in_one_file_gets_the_scaling_of_its_family(
    name: str, sigma: bool, scaling: float, models: Path, tmp_path: Path
) -> None:
    t5 = sparse.write(tmp_path / "t5" / "t5.safetensors", sparse.t5_xxl(), "BF16")
    with_tokenizer(t5.parent)
    vae = sparse.write(tmp_path / name, sparse.vae())
    source = checkpoint(tmp_path / "net.pth", sigma=sigma)
    spec = import_model(source, models, ImportOptions(text=str(t5), vae=str(vae), head_dim=24))
    config = json.loads((spec.part("vae") / "config.json").read_text())
    assert config["scaling_factor"] == scaling


@pytest.mark.parametrize(
    ("name", "tokens", "scaling"),
    [
        ("vae.safetensors", None, None),
        ("vae.safetensors", 120, 0.18215),
        ("vae.safetensors", SIGMA_TOKENS, 0.13025),
        ("sdxl_vae.safetensors", None, 0.13025),
        ("vae-ft-mse-840000-ema-pruned.safetensors", None, 0.18215),
    ],
)
def test_the_scaling_of_a_vae_is_never_guessed(
    name: str,
    tokens: int | None,
    scaling: float | None,
    whole: Path,
    models: Path,
    tmp_path: Path,
) -> None:
    """A transformer's folder below 1024 px is of α or Σ, and its shapes do not tell."""
    vae = sparse.write(tmp_path / name, sparse.vae())
    wanted = ImportOptions(id="mine", text=str(whole), vae=str(vae), tokens=tokens)
    if scaling is None:
        with pytest.raises(RequestError, match=r"Stable Diffusion 1 or of SDXL.*--tokens 300"):
            import_model(whole / "transformer", models, wanted)
        assert list(models.iterdir()) == []
        # A whole pipeline says which it is.
        spec = import_model(indexed(whole, tmp_path / "source"), models, wanted)
        scaling = 0.18215
    else:
        spec = import_model(whole / "transformer", models, wanted)
    config = json.loads((spec.part("vae") / "config.json").read_text())
    assert config["scaling_factor"] == scaling


def indexed(whole: Path, folder: Path) -> Path:
    """The pipeline's folder as it is published."""
    shutil.copytree(whole, folder)
    text = json.dumps({"_class_name": "PixArtAlphaPipeline"})
    (folder / "model_index.json").write_text(text, "utf-8")
    return folder


def test_a_vae_of_the_first_code_is_converted(whole: Path, models: Path, tmp_path: Path) -> None:
    """As nearly all programs keep it: other names, and its attention as convolutions."""
    shapes = sparse.first_vae()
    generator = torch.Generator().manual_seed(1)
    state = {k: torch.zeros(s, dtype=torch.float16) for k, s in shapes.items()}
    for part in ("q", "k", "v", "proj_out"):
        key = f"decoder.mid.attn_1.{part}.weight"
        state[key] = torch.randn(shapes[key], generator=generator).half()
    state["decoder.up.0.block.0.nin_shortcut.bias"] += 3
    vae = tmp_path / "sd-vae.safetensors"
    save_file(state, vae)
    source = whole / "transformer"
    wanted = ImportOptions(id="mine", text=str(whole), vae=str(vae), tokens=120)
    spec = import_model(source, models, wanted)
    net = loader.vae(spec, CPU).state_dict()
    for part, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        made = net[f"decoder.mid_block.attentions.0.{name}.weight"]
        assert torch.equal(made, state[f"decoder.mid.attn_1.{part}.weight"][:, :, 0, 0].float())
    assert (net["decoder.up_blocks.3.resnets.0.conv_shortcut.bias"] == 3).all()
    assert not (spec.folder / "vae" / VAE).is_symlink()


def pickles(whole: Path, folder: Path) -> dict[str, torch.Tensor]:
    """T5 as the original repository keeps it: two pickles, a configuration, a vocabulary."""
    state = load_file(whole / "text_encoder" / T5)
    folder.mkdir(parents=True)
    names = sorted(state)
    for number, part in ((1, names[::2]), (2, names[1::2])):
        torch.save(
            {name: state[name] for name in part},
            folder / f"pytorch_model-0000{number}-of-00002.bin",
        )
    shutil.copyfile(whole / "text_encoder" / "config.json", folder / "config.json")
    with_tokenizer(folder)
    return state


def test_t5_of_the_original_repository_is_converted(
    whole: Path, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "output" / "pretrained_models" / "t5_ckpts" / "t5-v1_1-xxl"
    state = pickles(whole, folder)
    wanted = ImportOptions(id="mine", vae=str(whole / "vae"), text=str(folder))
    spec = import_model(whole / "transformer", models, wanted)
    assert spec.part("tokenizer") == folder.resolve()
    there = loader.part(spec, "text_encoder", torch.float32).state_dict()
    assert all(torch.equal(there[key], value) for key, value in state.items())
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        import_model(
            whole / "transformer", models, ImportOptions(id="b", vae=str(whole), text=str(folder))
        )
    assert [p.name for p in models.iterdir()] == ["mine"]


def test_a_pipeline_with_t5_as_pickles_cannot_stay_in_place(
    whole: Path, models: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(whole, tmp_path / "source")
    shutil.rmtree(source / "text_encoder")
    pickles(whole, source / "text_encoder")
    with pytest.raises(RequestError, match="has to be converted"):
        import_model(source, models, ImportOptions(id="mine", in_place=True))
    spec = import_model(source, models, ImportOptions(id="mine"))
    assert loader.part(spec, "text_encoder", torch.float32)


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("text", "nowhere/t5.safetensors", "no folder or file of weights"),
        ("text", "vae.safetensors", "is not a T5 v1.1 text encoder"),
        ("vae", "t5.safetensors", "is not the VAE that PixArt has"),
        ("text", "notes.txt", "no folder or file of weights"),
    ],
)
def test_wrong_files_are_one_sentence(
    option: str, name: str, words: str, whole: Path, models: Path, tmp_path: Path
) -> None:
    shutil.copyfile(whole / "vae" / VAE, tmp_path / "vae.safetensors")
    shutil.copyfile(whole / "text_encoder" / T5, tmp_path / "t5.safetensors")
    (tmp_path / "notes.txt").touch()
    parts = {"vae": str(whole), "text": str(whole), option: str(tmp_path / name)}
    wanted = ImportOptions(vae=parts["vae"], text=parts["text"])
    with pytest.raises((RequestError, ModelError), match=words) as caught:
        import_model(whole / "transformer", models, wanted)
    assert "\n" not in str(caught.value)
    assert list(models.iterdir()) == []


def test_the_hubs_own_tokenizer_fits_every_xxl(models: Path, tmp_path: Path) -> None:
    """A tokenizer alone, as a download that was cut leaves it, or in the hub's cache."""
    from pipelines.models import hub_rows

    source = next(s for s in hub_rows.known()["alpha-1024"].parts if s.part == "tokenizer")
    repo = tmp_path / "cache" / f"models--{source.repo.replace('/', '--')}"
    folder = repo / "snapshots" / source.revision / source.folder
    folder.mkdir(parents=True)
    with_tokenizer(folder)
    t5 = sparse.write(tmp_path / "t5.safetensors", sparse.t5_xxl())
    vae = sparse.write(tmp_path / "vae.safetensors", sparse.vae())
    spec = import_model(
        checkpoint(tmp_path / "net.pth"),
        models,
        ImportOptions(text=str(t5), vae=str(vae), head_dim=24),
    )
    assert spec.part("tokenizer") == folder.resolve()
    assert not (models / FOLDER).exists()


@pytest.mark.parametrize("copy", [False, True])
def test_the_command(
    copy: bool, whole: Path, models: Path, comfy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tokenizer(comfy.parent)
    words = ["models", "import", str(whole / "transformer"), "--id", "mine", "--json"]
    words += ["--text", str(comfy), "--vae", str(whole), "--workspace", str(models.parent)]
    assert main.main([*words, *(["--copy"] if copy else [])]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["places"].keys() == {"vae"}
    assert (models / "mine" / "text_encoder" / T5).is_symlink() == (not copy)
    assert main.main(["models", "list", "--json", "--workspace", str(models.parent)]) == 0
    rows = {row["id"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    own = sum(f.lstat().st_size for f in (models / "mine").rglob("*") if not f.is_dir())
    link = (models / "mine" / "text_encoder" / T5).lstat().st_size
    assert rows["mine"]["bytes"] == own - (0 if copy else link)
