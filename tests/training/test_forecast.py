"""What a training is forecast to need, against what lives at once, and the table that tells it."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor
from torch.nn import functional

from pipelines.catalog import Catalog
from pipelines.memory.planning import CONTEXT, GIB
from pipelines.sizes import Size
from tests import pretend_gpu, tiny
from tests.pipelines.memory.test_memory_measured import Tracker
from tests.pretend_gpu import GPU
from tests.training import small
from training import forecast, nets, predictions, stages
from training.adapter_config import LoraConfig
from training.config import RunConfig
from training.loop import devices
from training.methods import adapted
from training.methods.text_to_image import CaptionLoss
from training.recipes import resolve

ROOT = Path(__file__).resolve().parents[2]
CAPTION = 32
SHAPE = {"heads": 4, "head_dim": 32, "layers": 4}
SIDE = 256


def values(method: str, **more: Any) -> dict[str, Any]:
    stage = small.stage(
        "one",
        method,
        batch=1,
        steps=2,
        base={"model": "tiny"},
        data={"source": "pictures", "side": SIDE, "held_out": 0.0},
        ema={"decay": 0.0},
        objective={"variational": 0.0},
        validation={"every": 0},
        **more,
    )
    return {"title": "One", "stage": [stage]}


def config_of(method: str, **more: Any) -> RunConfig:
    return resolve(values(method, **more), name="one").stages[0]


def small_net() -> PixArtTransformer2DModel:
    net: PixArtTransformer2DModel = nets.pixart(
        SHAPE, channels=4, sample_size=SIDE // 8, caption_channels=CAPTION
    )
    return net


# --- counted: a training that walks ---------------------------------------------------------------

WHOLE = {"subject": {"word": "sks", "kind": "disc", "prior": "none"}}
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("lora", {"lora": {"rank": 4}}),
    "DoRA": ("lora", {"lora": {"rank": 4, "dora": True}}),
    "whole net": ("dreambooth-net", WHOLE),
    "whole net and its prior": ("dreambooth-net", {"subject": {"word": "sks", "kind": "disc"}}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    folder = tiny.build(home / "models" / "tiny")
    torch.manual_seed(0)
    net = small_net()
    for weight in net.parameters():
        # A new net begins with zeros here and there, which a DoRA cannot turn.
        torch.nn.init.normal_(weight, std=0.05)
    net.save_pretrained(folder / "transformer")
    small.pictures(home / "data" / "pictures", count=2, size=(SIDE, SIDE))
    return home


@pytest.mark.parametrize(
    ("kind", "precision", "again", "short"),
    [
        ("LoRA", "bf16", False, 0),
        ("LoRA", "bf16", False, predictions.SHORT),
        ("LoRA", "bf16", True, 0),
        ("LoRA", "fp32", False, 0),
        ("DoRA", "bf16", False, 0),
        ("DoRA", "bf16", True, 0),
        ("DoRA", "fp32", False, 0),
        ("whole net", "bf16", False, 0),
        ("whole net", "bf16", True, 0),
        ("whole net", "fp32", False, 0),
        ("whole net and its prior", "bf16", False, 0),
    ],
)
def test_a_training_takes_what_was_forecast(
    kind: str,
    precision: str,
    again: bool,
    short: int,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the first step to the last weight that moves, by every storage that lives."""
    for place in (devices, predictions):
        monkeypatch.setattr(place, "SHORT", short)
    method, own = TRAININGS[kind]
    given = {**own, "precision": precision, "gradient_checkpointing": again}
    recipe = resolve(values(method, **given), name="one")
    counted: list[int] = []
    train = stages.train

    def walked(run: Any, task: Any, *rest: Any, **named: Any) -> Any:
        gc.collect()
        there = [*task.net.parameters(), *task.net.buffers()]
        held = sum(tensor.nbytes for tensor in there)
        with Tracker() as tracker:
            # A view of a weight is no storage of its own.
            tracker._seen.update(tensor.untyped_storage()._cdata for tensor in there)
            end = train(run, task, *rest, **named)
        counted.append(held + tracker.peak)
        return end

    monkeypatch.setattr(stages, "train", walked)
    stages.walk(
        recipe,
        root=tmp_path,
        data=home / "data",
        report=lambda config: lambda progress: None,
        should_stop=lambda: False,
        catalog=Catalog(user_models=home / "models"),
    )
    size = Size(SIDE, SIDE)
    told = forecast.predicted(small_net(), recipe.stages[0], size, gpu=False, texts=16)
    assert counted == [pytest.approx(told["peak"], rel=0.15)]


# --- a GPU that is not there ----------------------------------------------------------------------


class _Kept(torch.autograd.Function):
    """Fused attention as a GPU has it: what it keeps for the way back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        with torch.no_grad():
            out = _attention(query, key, value, attn_mask=mask)
        ctx.save_for_backward(query, key, value, out, out[..., 0].float())
        return out


_attention = functional.scaled_dot_product_attention


@pytest.mark.parametrize("has_lora", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_what_a_gpu_keeps_for_the_way_back(
    half: bool, has_lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast chooses by device. The pretended GPU goes no way back: torch asks its driver."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **_: Any) -> Any:
        given = [query, key, value, attn_mask]
        # Autocast would do it in front of the kernel.
        return _Kept.apply(*(g.bfloat16() if half and g is not None else g for g in given))

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    config = config_of("lora" if has_lora else "dreambooth-net", **({} if has_lora else WHOLE))
    config = config.model_copy(update={"precision": "bf16" if half else "fp32"})
    net = small_net()
    if has_lora:
        net.requires_grad_(False).to(devices.computes_in(config))
        adapted.with_lora(net, LoraConfig(rank=1))
    loss = CaptionLoss(net.train(), torch.randn(1, CAPTION), config)
    learns = sum(weight.nbytes for weight in net.parameters() if weight.requires_grad)
    latents = torch.randn(1, 4, SIDE // 8, SIDE // 8)
    batch = {"latents": latents, "embeds": torch.randn(1, 4, CAPTION), "mask": torch.ones(1, 4)}
    with pretend_gpu.pretend(monkeypatch) as gpu:
        loss.to(GPU)
        there: dict[str, Any] = {name: value.to(GPU) for name, value in batch.items()}
        there |= {"resolution": None, "aspect_ratio": None}
        gc.collect()
        before = gpu.held
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            kept = loss(there, 1, None)["loss"].mean()
        found = gpu.held - before
    assert kept.requires_grad
    factors = predictions._FACTORS[True, half, has_lora]
    unit = (SIDE // 16) ** 2 * SHAPE["heads"] * SHAPE["head_dim"]
    wanted = (SHAPE["layers"] * factors.block + factors.rest) * unit + (learns // 2 if half else 0)
    assert found == pytest.approx(wanted, rel=0.05)


# --- the table ------------------------------------------------------------------------------------


def xl(side: int) -> PixArtTransformer2DModel:
    """PixArt-XL/2 for pictures of `side` pixels, without numbers."""
    with torch.device("meta"):
        return PixArtTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            num_layers=28,
            sample_size=side // 8,
            caption_channels=4096,
            use_additional_conditions=side == 1024,
        )


ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA, rank 16": ("lora", {"lora": {"rank": 16}}),
    "whole net, 8-bit AdamW": (
        "dreambooth-net",
        {"optimizer": {"name": "adamw8bit"}, "subject": {"word": "sks", "kind": "dog"}},
    ),
    "whole net, AdamW": ("dreambooth-net", {"subject": {"word": "sks", "kind": "dog"}}),
}


def smallest(peak: float) -> str:
    """The smallest GPU that holds it beside CUDA itself and 5 % for the desktop."""
    fits = [gib for gib in (8, 12, 16, 24) if peak + CONTEXT <= 0.95 * gib * GIB]
    return f"{fits[0]} GB" if fits else "more"


def test_the_documented_table_is_what_is_forecast() -> None:
    text = (ROOT / "docs" / "memory.md").read_text("utf-8")
    pattern = r"^\| ([^|]+) \| (yes|no) \| (\d) \| ([\d.]+): ([^|]+) \| ([\d.]+): ([^|]+) \|$"
    rows = re.findall(pattern, text, re.MULTILINE)
    assert [row[0] for row in rows] == [name for name in ROWS for _ in range(4)]
    for name, again, batch, *told in rows:
        method, own = ROWS[name]
        given = {"gradient_checkpointing": again == "yes", "precision": "bf16", **own}
        config = config_of(method, **given).model_copy(update={"batch": int(batch)})
        found = []
        for side in (512, 1024):
            size = Size(side, side)
            peak = forecast.predicted(xl(side), config, size, gpu=True)["peak"]
            found += [f"{peak / GIB:.1f}", smallest(peak)]
        assert told == found, (name, again, batch)


@pytest.mark.parametrize("targets", ["attention", "attention+feed-forward"])
def test_a_model_of_the_catalog_is_known_by_its_files(tmp_path: Path, targets: str) -> None:
    tiny.build(tmp_path / "tiny")
    model = Catalog(user_models=tmp_path).find("tiny")
    net = PixArtTransformer2DModel.from_pretrained(model.part("transformer"))
    values = {
        "title": "x",
        "method": "dreambooth",
        "steps": 1,
        "data": {"source": "."},
        "base": {"model": "tiny"},
        "subject": {"word": "sks", "kind": "disc"},
        "lora": {"rank": 4, "targets": targets},
    }
    config = resolve(values, name="x").stages[0]
    shape = predictions.shape_of(model, config.lora)
    size = Size(64, 64)
    told = predictions.predicted(shape, config, size, gpu=False)
    assert told == forecast.predicted(net, config, size, gpu=False)
