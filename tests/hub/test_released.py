"""Released models of each kind, the whole way: published, downloaded, painted as by diffusers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, LCMScheduler, PixArtSigmaPipeline
from PIL import Image

from app.cli.main import main
from pipelines.benchmarks.benchmark import stock_pipeline as stock
from pipelines.catalog import Catalog
from pipelines.text.tokens import tokenize
from tests import tiny
from tests.fake_hub import FakeHub
from tests.hub import published
from tests.hub.conftest import ALPHA, COMMIT

pytestmark = pytest.mark.usefixtures("workspace")

PROMPT = "a red apple on a light blue background"
# Between the 120 tokens of α and the 300 of Σ.
LONG = ", ".join(f"{count} red apples" for count in range(1, 33))
_LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
Capture = pytest.CaptureFixture[str]


def painted(capsys: Capture, prompt: str, *options: str) -> tuple[dict[str, Any], np.ndarray]:
    """What `generate` tells of a picture, and its pixels."""
    capsys.readouterr()
    code = main(["generate", prompt, "--size", "64x64", "--seed", "5", "--json", *options])
    out, err = capsys.readouterr()
    assert code == 0, err
    told = json.loads(out)
    with Image.open(told["path"]) as picture:
        return told, np.asarray(picture.convert("RGB"), dtype=np.int16)


def expected(pipe: Any, prompt: str, **options: Any) -> np.ndarray:
    """The same picture by diffusers."""
    values = {
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "use_resolution_binning": False,
        "clean_caption": False,
        "generator": torch.Generator("cpu").manual_seed(5),
    }
    with torch.inference_mode():
        (image,) = pipe(prompt, **values, **options).images
    return np.asarray(image, dtype=np.int16)


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert theirs.std() > 5
    assert np.abs(ours - theirs).max() <= 2


def test_a_published_model_is_downloaded_and_paints(
    hub: FakeHub, workspace: Path, tmp_path: Path, capsys: Capture
) -> None:
    files = published.old_pipeline(tmp_path / "tiny-original")
    assert len([name for name in files if name.startswith("text_encoder/model-")]) > 1
    hub.repos.clear()
    hub.put(ALPHA, COMMIT, files)
    shutil.copytree(tmp_path / "tiny-original", workspace / "models" / "tiny")
    assert main(["generate", PROMPT, "--model", "alpha-1024"]) == 2
    assert "launch.py models download alpha-1024" in capsys.readouterr().err
    assert main(["models", "download", "alpha-1024", "--yes"]) == 0
    first, one = painted(capsys, PROMPT, "--steps", "2", "--model", "alpha-1024")
    second, other = painted(capsys, PROMPT, "--steps", "2", "--model", "tiny")
    assert os.path.samefile(Path(first["path"]).parent, Path(second["path"]).parent)
    assert np.array_equal(one, other)


def test_sigma_paints_what_the_stock_pipeline_paints(
    hub: FakeHub, workspace: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Another VAE scale, 300 tokens, and no sizes told though it is as large as the 1024 model."""
    folder = tiny.build(tmp_path / "sigma", sigma=True, seed=4)
    published.put(hub, "sigma-1024", folder)
    assert main(["models", "download", "sigma-1024", "--yes"]) == 0
    spec = Catalog(user_models=workspace / "models").find("sigma-1024")
    read = tokenize(LONG, spec)
    assert 120 < read.used <= read.limit == 300
    assert not read.cut
    told, ours = painted(capsys, LONG, "--model", "sigma-1024", "--steps", "6")
    assert (told["sampler"], told["guidance"]) == ("dpm-solver++", 4.5)
    pipe = PixArtSigmaPipeline(**stock(folder).components)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.config.use_additional_conditions is False
    assert pipe.transformer.config.sample_size == 128
    options = {"num_inference_steps": 6, "guidance_scale": 4.5}
    assert_same(ours, expected(pipe, LONG, **options))
    # Each of the three makes a difference that the comparison would see.
    pipe.vae.register_to_config(scaling_factor=0.18215)
    assert np.abs(ours - expected(pipe, LONG, **options)).max() > 2
    pipe.vae.register_to_config(scaling_factor=0.13025)
    assert np.abs(ours - expected(pipe, LONG, **options, max_sequence_length=120)).max() > 2


def test_the_consistency_model_paints_in_four_steps_without_guidance(
    hub: FakeHub, tmp_path: Path, capsys: Capture
) -> None:
    folder = tiny.build(tmp_path / "lcm", micro_conditions=True, seed=5)
    published.put(hub, "lcm-1024", folder)
    assert main(["models", "download", "lcm-1024", "--yes"]) == 0
    told, ours = painted(capsys, PROMPT, "--model", "lcm-1024")
    assert (told["sampler"], told["steps"], told["guidance"]) == ("lcm", 4, 0)
    pipe = stock(folder)
    pipe.scheduler = LCMScheduler(**_LINEAR, original_inference_steps=50)
    assert_same(ours, expected(pipe, PROMPT, num_inference_steps=4, guidance_scale=0.0))


def test_the_one_step_model_paints_in_one_step(
    hub: FakeHub, tmp_path: Path, capsys: Capture
) -> None:
    folder = tiny.build(tmp_path / "dmd", seed=6)
    published.put(hub, "dmd-512", folder)
    assert main(["models", "download", "dmd-512", "--yes"]) == 0
    told, ours = painted(capsys, PROMPT, "--model", "dmd-512")
    assert (told["sampler"], told["steps"], told["guidance"]) == ("dmd", 1, 0)
    pipe = stock(folder)
    pipe.scheduler = DDPMScheduler(**_LINEAR, clip_sample=False)
    options = {"timesteps": [400], "num_inference_steps": 1, "guidance_scale": 1.0}
    assert_same(ours, expected(pipe, PROMPT, **options))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("lcm-1024", ["--guidance", "4.5"], "without guidance"),
        ("dmd-512", ["--steps", "4"], "takes exactly 1 step"),
    ],
)
def test_what_a_distilled_model_cannot_is_one_sentence(
    hub: FakeHub, tmp_path: Path, capsys: Capture, model: str, options: list[str], words: str
) -> None:
    published.put(hub, model, tiny.build(tmp_path / "net", micro_conditions=model == "lcm-1024"))
    assert main(["models", "download", model, "--yes"]) == 0
    capsys.readouterr()
    assert main(["generate", PROMPT, "--model", model, *options]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert len(shown.strip().splitlines()) == 1
