"""Models from elsewhere become rows that load; what cannot paint is refused and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.cli import main
from app.models import import_parts, rows
from app.models.import_parts import ImportedPart
from app.models.importing import import_model
from app.models.rows import ImportOptions
from pipelines.catalog import Catalog, ModelSpec
from pipelines.errors import ModelError, RequestError, StudioError
from pipelines.memory.planning import DevicePlan
from pipelines.models import loader, original_layout
from pipelines.models.convert import NULL_CAPTION_FILE, WEIGHTS
from pipelines.models.original_layout import Design, Sizes
from tests import original, tiny

CPU = DevicePlan(device="cpu", precision="float32")
INDEX = {
    "_class_name": "PixArtAlphaPipeline",
    "_diffusers_version": "0.25.0",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete pipeline in diffusers layout, as it is downloaded."""
    folder = tiny.build(tmp_path_factory.mktemp("whole") / "PixArt tiny")
    (folder / "model.toml").unlink()
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A .pth of the original code that fits the small text encoder."""
    state = original.state(width=48, layers=2, captions=32, scale=2.0)
    torch.save({"state_dict": {}, "state_dict_ema": state}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def loads(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """The transformer's weights, after all parts were loaded as for painting."""
    state: dict[str, torch.Tensor] = loader.transformer(spec, CPU).state_dict()
    return state


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def test_a_whole_pipeline_is_copied(whole: Path, models: Path) -> None:
    spec = import_model(whole, models, ImportOptions())
    assert spec.id == "PixArt-tiny"
    assert spec.folder == models / "PixArt-tiny"
    assert (spec.tokens, spec.bins, spec.size, spec.max_side) == (120, "128", "128x128", 256)
    assert (spec.sampler, spec.steps, spec.learned_variance) == ("dpm-solver++", None, True)
    assert not spec.places
    assert same(whole / "transformer" / WEIGHTS, spec.folder / "transformer" / WEIGHTS)
    assert same(whole / "vae" / WEIGHTS, spec.folder / "vae" / WEIGHTS)
    assert loads(spec)
    assert [p.name for p in models.iterdir()] == ["PixArt-tiny"]
    found = Catalog(user_models=models)
    assert not found.problems
    assert found.default == spec


def test_only_what_is_read_is_copied(whole: Path, models: Path, tmp_path: Path) -> None:
    source = shutil.copytree(whole, tmp_path / "source")
    text = source / "text_encoder"
    for name in ("pytorch_model.bin", "modeling.py", "setup.sh"):
        (text / name).write_bytes(b"x")
    shutil.copyfile(text / "model.safetensors", text / "model.fp16.safetensors")
    spec = import_model(source, models, ImportOptions())
    names = {p.name for p in (spec.folder / "text_encoder").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    assert {p.name for p in (spec.folder / "vae").iterdir()} == {"config.json", WEIGHTS}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "vae/x.safetensors",
        "vae/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        f"transformer/{WEIGHTS}",
    ],
)
def test_a_pipe_is_not_waited_for(
    name: str, in_place: bool, whole: Path, models: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(whole, tmp_path / "source")
    (source / name).unlink(missing_ok=True)
    os.mkfifo(source / name)
    with pytest.raises(ModelError):
        import_model(source, models, ImportOptions(in_place=in_place))
    assert list(models.iterdir()) == []


def test_a_row_that_comes_along_is_kept(models: Path, tmp_path: Path) -> None:
    source = tiny.build(tmp_path / "other")
    with open(source / "model.toml", "a", encoding="utf-8") as stream:
        stream.write('sampler = "lcm"\ndistilled = "lcm"\n')
    spec = import_model(source, models, ImportOptions(id="mine", title='A "name" \\ of α'))
    assert (spec.title, spec.tokens, spec.size) == ('A "name" \\ of α', 24, "64x64")
    assert (spec.distilled, spec.sampler, spec.examples) == ("lcm", "lcm", ("a red apple",))


def test_a_checkpoint_takes_the_rest_from_another_model(
    whole: Path, models: Path, checkpoint: Path
) -> None:
    other = import_model(whole, models, ImportOptions(id="other"))
    spec = import_model(checkpoint, models, ImportOptions(vae="other", text="other", head_dim=24))
    assert spec.id == "net"
    assert dict(spec.places) == {
        name: (other.folder / name).resolve() for name in ("vae", "text_encoder", "tokenizer")
    }
    assert sorted(p.name for p in spec.folder.iterdir()) == [
        "model.toml",
        NULL_CAPTION_FILE,
        "scheduler",
        "transformer",
    ]
    state = torch.load(checkpoint, weights_only=True)["state_dict_ema"]
    made = loads(spec)
    assert torch.equal(made["proj_out.weight"], state["final_layer.linear.weight"])
    config = json.loads((spec.folder / "transformer" / "config.json").read_text())
    assert config["interpolation_scale"] == 2


def test_parts_from_folders(whole: Path, models: Path, checkpoint: Path, tmp_path: Path) -> None:
    """As the authors ship them: T5 and its tokenizer in one folder, the VAE alone."""
    t5 = shutil.copytree(whole / "text_encoder", tmp_path / "t5")
    shutil.copyfile(whole / "tokenizer" / "tokenizer.json", t5 / "tokenizer.json")
    wanted = ImportOptions(vae=str(whole / "vae"), text=str(t5), head_dim=24, precision="bf16")
    spec = import_model(checkpoint, models, wanted)
    assert spec.places["tokenizer"] == spec.places["text_encoder"] == t5.resolve()
    assert loads(spec)
    weights = load_file(spec.folder / "transformer" / WEIGHTS)
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["transformer", "safetensors", "original safetensors"])
def test_a_transformer_alone(kind: str, whole: Path, models: Path, tmp_path: Path) -> None:
    if kind == "transformer":
        source = whole / "transformer"
    elif kind == "safetensors":
        source = whole / "transformer" / WEIGHTS
    else:
        source = tmp_path / "net.safetensors"
        save_file(original.state(width=48, layers=2, captions=32), source)
    wanted = ImportOptions(vae=str(whole), text=str(whole), head_dim=24)
    spec = import_model(source, models, wanted)
    assert loads(spec)
    if kind == "transformer":
        assert spec.id == "PixArt-tiny"


def test_folders_can_stay_in_place(whole: Path, models: Path) -> None:
    spec = import_model(whole, models, ImportOptions(in_place=True))
    assert [p.name for p in spec.folder.iterdir()] == ["model.toml"]
    assert {p.parent for p in spec.places.values()} == {whole.resolve()}
    assert loads(spec)
    shutil.rmtree(spec.folder)
    spec = import_model(
        whole / "transformer", models, ImportOptions(vae=str(whole), text=str(whole))
    )
    assert (spec.folder / "transformer").is_dir()
    with pytest.raises(RequestError, match="keeps precision"):
        import_model(whole, models, ImportOptions(id="x", in_place=True, precision="bf16"))
    with pytest.raises(RequestError, match="has to be converted"):
        source = whole / "transformer" / WEIGHTS
        wanted = ImportOptions(id="x", vae=str(whole), text=str(whole), in_place=True)
        import_model(source, models, wanted)


def test_lcm_is_recognised_by_its_scheduler(whole: Path, models: Path, tmp_path: Path) -> None:
    source = shutil.copytree(whole, tmp_path / "source")
    index = INDEX | {"scheduler": ["diffusers", "LCMScheduler"]}
    (source / "model_index.json").write_text(json.dumps(index))
    spec = import_model(source, models, ImportOptions())
    assert (spec.distilled, spec.sampler, spec.steps, spec.guidance) == ("lcm", "lcm", 4, 0)
    assert not spec.learned_variance


def xl(sample: int, scale: float, *, micro: bool = False, tokens: int | None = 120) -> Design:
    sizes = Sizes(
        width=1152,
        layers=28,
        patch=2,
        in_channels=4,
        out_channels=8,
        caption_channels=4096,
        micro_conditions=micro,
    )
    return Design(
        sizes=sizes,
        head_dim=72,
        sample_size=sample,
        interpolation_scale=scale,
        tokens=tokens,
    )


@pytest.mark.parametrize(
    ("design", "wanted", "row"),
    [
        (xl(32, 0.5), {}, (120, "256-square", "256x256", 512, "dpm-solver++", None, None, True)),
        (xl(64, 1), {}, (120, "512-square", "512x512", 1024, "dpm-solver++", None, None, True)),
        (
            xl(128, 2, micro=True),
            {},
            (120, "1024", "1024x1024", 2048, "dpm-solver++", None, None, True),
        ),
        (
            xl(128, 2, micro=True),
            {"distilled": "lcm"},
            (120, "1024", "1024x1024", 2048, "lcm", 4, 0, False),
        ),
        (xl(64, 1), {"distilled": "dmd"}, (120, "512-square", "512x512", 1024, "dmd", 1, 0, False)),
        (
            xl(128, 2, tokens=None),
            {},
            (300, "1024", "1024x1024", 2048, "dpm-solver++", None, None, True),
        ),
        (
            xl(64, 1, tokens=300),
            {},
            (300, "512", "512x512", 1024, "dpm-solver++", None, None, True),
        ),
        (
            xl(256, 4, tokens=300),
            {},
            (300, "2048", "2048x2048", 4096, "dpm-solver++", None, None, True),
        ),
        (
            xl(16, 1),
            {"tokens": 24, "learned_variance": False},
            (24, "128", "128x128", 256, "dpm-solver++", None, None, False),
        ),
    ],
)
def test_defaults_of_the_families(
    design: Design, wanted: dict[str, Any], row: tuple[Any, ...], tmp_path: Path
) -> None:
    values = rows.values_of(design, tmp_path / "net.pth", ImportOptions(**wanted), {})
    spec = rows.checked(values | {"places": {}}, "net", tmp_path)
    assert row == (
        *(spec.tokens, spec.bins, spec.size, spec.max_side),
        *(spec.sampler, spec.steps, spec.guidance, spec.learned_variance),
    )
    assert original_layout.LATENT_PIXELS * design.sample_size == spec.default_size.width
    assert spec.cleaning == ("lower" if design.is_sigma else "authors")


def edit(name: str, **change: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | change
        (folder / name).write_text(json.dumps(values))

    return apply


def gone(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return apply


def spread(name: str, content: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_text(content, "utf-8")

    return apply


VAE, TEXT = "vae/config.json", "text_encoder/config.json"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    # W5: classes and code by name
    "pipeline of another kind": (
        edit("model_index.json", _class_name="os.system"),
        "This is a “os.system”",
    ),
    "other transformer": (edit("model_index.json", transformer=["os", "system"]), "“os.system”"),
    "class of the folder": (edit("model_index.json", vae=["vae", "AutoencoderKL"]), "not loaded"),
    "more parts": (edit("model_index.json", safety=["transformers", "CLIP"]), "safety"),
    "part of one word": (edit("model_index.json", vae=["AutoencoderKL"]), "not loaded"),
    "part of a list": (edit("model_index.json", transformer=["diffusers", ["x"]]), "not loaded"),
    "library of a list": (edit("model_index.json", vae=[["x"], "AutoencoderKL"]), "not loaded"),
    "pipeline of a list": (edit("model_index.json", _class_name=["x"]), "This is a"),
    "index is no table": (spread("model_index.json", "[]"), "not a configuration"),
    "code from elsewhere": (edit(TEXT, auto_map={"AutoModel": "evil--repo.Model"}), "auto_map"),
    "quantised": (edit(TEXT, quantization_config={"quant_method": "gptq"}), "quantization"),
    "other text encoder": (edit(TEXT, architectures=["CLIPTextModel"]), "CLIPTextModel"),
    "other VAE": (edit(VAE, _class_name="AutoencoderTiny"), "AutoencoderTiny"),
    # Parts that do not fit
    "texts of another width": (edit(TEXT, d_model=64), "reads texts of 32 channels"),
    "latents of another kind": (edit(VAE, latent_channels=16), "this VAE has 16"),
    "coarser VAE": (
        edit(
            VAE,
            block_out_channels=[8, 8, 8],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
        ),
        "pixels into one latent",
    ),
    "schedule of another kind": (
        edit("scheduler/scheduler_config.json", prediction_type="v_prediction"),
        "epsilon",
    ),
    # What is asked for and would not be done
    "latents around another mean": (edit(VAE, latents_mean=[0.1, 0, 0, 0]), "latents_mean"),
    "latents of another spread": (edit(VAE, latents_std=[1, 1, 2, 1]), "latents_std"),
    "shifted latents": (edit(VAE, shift_factor=0.1159), "shift_factor"),
    "betas of its own": (
        edit("scheduler/scheduler_config.json", trained_betas=[0.1, 0.2]),
        "trained_betas",
    ),
    "rescaled betas": (
        edit("scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        "rescale_betas_zero_snr",
    ),
    # A scale that a class would replace by its own
    "no scale": (edit("transformer/config.json", interpolation_scale=None), "leaves out"),
    "scale of zero": (edit("transformer/config.json", interpolation_scale=0), "0 is not an inter"),
    # Parts that are not there or not whole
    "no VAE": (gone("vae"), "has no vae. Name one with --vae"),
    "no T5": (gone("text_encoder"), "has no text encoder. Name one with --text"),
    "no tokenizer": (gone("tokenizer/tokenizer.json"), "tokenizer of this model cannot be read"),
    "T5 as pickle": (gone("text_encoder/model.safetensors"), "model.safetensors is missing"),
    "half a VAE": (cut(f"vae/{WEIGHTS}"), "cut off"),
    "half a T5": (cut("text_encoder/model.safetensors"), "cut off"),
    "half a transformer": (cut(f"transformer/{WEIGHTS}"), "cut off"),
    "VAE of no channels": (spread(VAE, "[]"), "not a configuration"),
    "row that is none": (spread("model.toml", "= ="), "cannot be read"),
    "row with more": (spread("model.toml", 'code = "x"'), "code: Extra inputs"),
    "row of steps that do not work": (spread("model.toml", "steps = 1"), "2 to 200 steps"),
    "row of unknown sizes": (spread("model.toml", 'bins = "129"'), "unknown table"),
    "row of odd sizes": (spread("model.toml", 'size = "65x65"'), "multiple of 16"),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_paint_is_refused(
    fault: str, in_place: bool, whole: Path, models: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(whole, tmp_path / "source")
    change, words = FAULTS[fault]
    change(source)
    with pytest.raises(StudioError, match=words) as caught:
        import_model(source, models, ImportOptions(in_place=in_place))
    assert "\n" not in str(caught.value)
    assert list(models.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"id": "nano"}, "called “nano” already"),
        ({"id": "NANO"}, "called “NANO” already"),
        ({"id": "../x"}, "not possible as a model's id"),
        ({"id": ".x"}, "not possible"),
        ({"id": "con"}, "not possible"),
        ({"id": "a" * 81}, "not possible"),
        ({"vae": "nanno"}, "Did you mean “nano”"),
        ({"vae": "/nowhere/vae"}, "no folder"),
        ({"text": "nano"}, "reads texts of 32 channels, and this text encoder gives 256"),
        ({"tokens": 10_000}, "tokens: Input should be less"),
        ({"title": "x" * 200}, "title: String should have"),
        ({"interpolation_scale": -1.0}, "not an interpolation scale"),
        ({"interpolation_scale": 0.0}, "not an interpolation scale"),
        ({"image_size": -5}, "-5 is not the side of a picture"),
        ({"image_size": 0}, "0 is not the side of a picture"),
        ({"image_size": 100}, "100 is not the side of a picture"),
        ({"image_size": 8192}, "8192 is not the side of a picture"),
        ({"image_size": 512}, "trained for 128 pixels, so 512 is not possible"),
        ({"head_dim": 0}, "cannot have 0 channels"),
        ({"weights": "ema"}, "no averaged weights"),
    ],
)
def test_wishes_that_cannot_be_met(
    wanted: dict[str, Any], words: str, whole: Path, models: Path
) -> None:
    with pytest.raises(StudioError, match=words):
        import_model(whole, models, ImportOptions(**wanted))
    assert list(models.iterdir()) == []


def test_the_vae_of_another_family_is_refused(whole: Path, models: Path, tmp_path: Path) -> None:
    """Both families have four latent channels; only the scaling factor tells the VAEs apart."""
    from app.models.importing import _check_fit

    parts = {}
    for name, scaling in (("alpha", 0.18215), ("sigma", 0.13025)):
        folder = shutil.copytree(whole, tmp_path / name)
        edit(VAE, scaling_factor=scaling)(folder)
        edit(TEXT, d_model=4096)(folder)
        parts[name] = {
            key: ImportedPart(place=folder / key, own=True)
            for key in ("vae", "text_encoder", "tokenizer")
        }
    alpha, sigma = xl(64, 1), xl(128, 2, tokens=None)
    _check_fit(alpha, parts["alpha"])
    _check_fit(sigma, parts["sigma"])
    with pytest.raises(ModelError, match="PixArt-α 512 paints with the VAE of Stable Diffusion 1"):
        _check_fit(alpha, parts["sigma"])
    with pytest.raises(ModelError, match="PixArt-Σ 1024-MS paints with the VAE of SDXL"):
        _check_fit(sigma, parts["alpha"])


def test_an_id_means_the_model_wherever_the_studio_was_started(
    whole: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_model(whole, models, ImportOptions(id="other"))
    (tmp_path / "start" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "start")
    transformer = whole / "transformer"
    spec = import_model(transformer, models, ImportOptions(id="mine", vae="other", text="other"))
    assert spec.part("vae") == models.resolve() / "other" / "vae"
    with pytest.raises(RequestError, match="holds no vae"):
        import_model(transformer, models, ImportOptions(id="not", vae="./other", text="other"))


def test_an_id_is_given_once(whole: Path, models: Path) -> None:
    import_model(whole, models, ImportOptions(id="mine"))
    before = (models / "mine" / "model.toml").read_bytes()
    with pytest.raises(RequestError, match="--id"):
        import_model(whole, models, ImportOptions(id="mine"))
    assert (models / "mine" / "model.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ('vae = "/nowhere/vae"', "vae of model “mine” should lie in /nowhere/vae, which is no"),
        ('vae = "vae"', "not a full path"),
        ('control = "/tmp"', "“control”, which is no part"),
        ("vae = 3", "places"),
    ],
)
def test_wrong_places_are_one_problem(places: str, words: str, whole: Path, models: Path) -> None:
    spec = import_model(whole, models, ImportOptions(id="mine"))
    with open(spec.folder / "model.toml", "a", encoding="utf-8") as stream:
        stream.write(f"\n[places]\n{places}\n")
    catalog = Catalog(user_models=models)
    assert {model.id for model in catalog} == {"nano"}
    assert len(catalog.problems) == 1
    assert words in catalog.problems[0]
    with pytest.raises(ModelError):
        catalog.find("mine")


def test_a_model_in_the_making_is_not_listed(whole: Path, models: Path) -> None:
    spec = import_model(whole, models, ImportOptions(id="mine"))
    shutil.copytree(spec.folder, models / ".other.1234.part")
    catalog = Catalog(user_models=models)
    assert {model.id for model in catalog} == {"nano", "mine"}
    assert catalog.problems == []


def test_settings_that_change_nothing_are_taken(whole: Path, models: Path, tmp_path: Path) -> None:
    """As the released configurations have them, or as other programs write them out."""
    source = shutil.copytree(whole, tmp_path / "source")
    edit(VAE, latents_mean=None, latents_std=None, shift_factor=None)(source)
    betas = {"trained_betas": None, "rescale_betas_zero_snr": False}
    edit("scheduler/scheduler_config.json", **betas)(source)
    assert import_model(source, models, ImportOptions(id="null"))
    edit(VAE, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, shift_factor=0)(source)
    assert import_model(source, models, ImportOptions(id="neutral"))


def test_a_released_vae_is_not_refused() -> None:
    """Its configuration in the repository that Σ takes its VAE from, and in that of α."""
    released = {
        "_class_name": "AutoencoderKL",
        "latent_channels": 4,
        "latents_mean": None,
        "latents_std": None,
        "scaling_factor": 0.13025,
        "shift_factor": None,
    }
    import_parts.check({"vae": ImportedPart(place=Path("vae"), config=released)})
    old = {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 0.18215}
    import_parts.check({"vae": ImportedPart(place=Path("vae"), config=old)})


@pytest.mark.parametrize("kind", ["loop", "loop inside", "long", "zero"])
def test_a_path_that_leads_nowhere_is_one_sentence(
    kind: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    path = {"loop": loop, "loop inside": loop / "model.pth", "long": tmp_path / ("x" * 300)}
    named = str(path.get(kind, tmp_path / "a\0b"))
    workspace = ["--workspace", str(models.parent)]
    assert main.main(["models", "import", named, *workspace]) == 2
    told = capsys.readouterr().err
    assert "There is no file or folder" in told
    assert len(told.strip().splitlines()) == 1
