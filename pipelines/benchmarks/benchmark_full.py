"""The whole way at the real size: prompt to picture, and the memory it takes, on a GPU.

Random weights in the shapes of PixArt-XL/2, T5-XXL and the Stable Diffusion VAE are written to a
model folder (12 GB) and opened by the engine like any other model, so that reading, planning,
encoding, painting and decoding are all measured, without a download.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, LCMScheduler, PixArtAlphaPipeline
from transformers import T5Config, T5EncoderModel

from pipelines.benchmarks import benchmark
from pipelines.benchmarks.benchmark import Case, Result, Timing, compare, random_net, stock_pipeline
from pipelines.catalog import ROOT, ROW_FILE, Catalog
from pipelines.engine import Engine
from pipelines.errors import RequestError
from pipelines.memory.forecast import words
from pipelines.memory.planning import GIB, Machine
from pipelines.models import loader
from pipelines.picture_record import Picture
from pipelines.request import GenerationRequest, complete

MODEL = "full-size"
# T5 (9.5 GB), transformer and VAE twice, and the activations; what is written is each of them once.
_CARD_BYTES, _DISK_BYTES = 30_000_000_000, 12_000_000_000
_TOKENIZER = ROOT / "assets" / "models" / "nano" / "tokenizer"
# (memory of the GPU in GB, free main memory in GB): the rows of docs/memory.md that differ. With
# little main memory T5 cannot be streamed and is quantised.
_CARDS = ((16, 64), (8, 64), (8, 8), (4, 64), (3, 64))
# What a desktop and CUDA leave of a GPU.
_FREE_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The sizes of the three nets, and of the pictures in pixels."""

    side: int = 1024
    layers: int = 28
    heads: int = 16
    each: int = 72
    text_width: int = 4096
    text_inner: int = 10_240
    text_layers: int = 24
    text_heads: int = 64
    vocabulary: int = 32_128
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_groups: int = 32


REAL = Shapes()


def build(models: Path, shapes: Shapes, device: torch.device) -> Path:
    """Writes the model into the folder `models`; returns its own folder."""
    folder = models / MODEL
    case = Case(
        name=MODEL,
        side=shapes.side,
        precision="bfloat16",
        layers=shapes.layers,
        heads=shapes.heads,
        each=shapes.each,
        caption=shapes.text_width,
    )
    random_net(case, device).save_pretrained(folder / "transformer")
    torch.manual_seed(0)
    # Weights that are saved are no inference tensors.
    with torch.inference_mode(False), torch.device(device), loader.quiet():
        vae = AutoencoderKL(
            block_out_channels=shapes.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * len(shapes.vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(shapes.vae_channels),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=shapes.vae_groups,
        )
        vae.to(torch.bfloat16).save_pretrained(folder / "vae")
        config = T5Config(
            vocab_size=shapes.vocabulary,
            d_model=shapes.text_width,
            d_kv=shapes.text_width // shapes.text_heads,
            d_ff=shapes.text_inner,
            num_layers=shapes.text_layers,
            num_heads=shapes.text_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
        with _made_as(torch.bfloat16):
            text_encoder = T5EncoderModel(config)
        text_encoder.save_pretrained(folder / "text_encoder")
    shutil.copytree(_TOKENIZER, folder / "tokenizer")
    DPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    (folder / ROW_FILE).write_text(
        'title = "Random weights"\nsummary = "For measuring."\nlicence = "none"\ntokens = 120\n'
        f'bins = "128"\nsize = "{shapes.side}x{shapes.side}"\n'
        f"max_side = {max(shapes.side, 128)}\nlearned_variance = true\n",
        "utf-8",
    )
    return folder


@contextmanager
def _made_as(dtype: torch.dtype) -> Iterator[None]:
    """New weights have `dtype` from the start: T5-XXL in float32 is 19 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(machine: Machine, clock: Timing, models: Path, shapes: Shapes = REAL) -> Iterator[Result]:
    """Speed against stock diffusers, then the peaks of the plans; `models` is an empty folder.

    Raises RequestError where the machine has no GPU, or no room, for the real size.
    """
    if shapes is REAL:
        _refuse_small(machine, models)
    device = torch.device(machine.device)
    with torch.inference_mode():
        folder = build(models, shapes, device)
        catalog = Catalog(user_models=models)
        wanted = _requests(catalog)
        yield from _speeds(folder, catalog, wanted, device, clock)
        for gpu, ram in _CARDS:
            yield _peak(catalog, wanted["guided"], _limited(machine, gpu, ram))


def _refuse_small(machine: Machine, models: Path) -> None:
    way_out = "Take --suite quick."
    if machine.device != "cuda":
        raise RequestError(
            "suite",
            "The full suite paints at the real size, which needs an NVIDIA GPU.",
            way_out,
        )
    if machine.vram_free < _CARD_BYTES:
        raise RequestError(
            "suite",
            f"The full suite holds the studio and stock diffusers together: {_CARD_BYTES / 1e9:.0f}"
            f" GB of a GPU, and {machine.vram_free / 1e9:.1f} GB are free.",
            way_out,
        )
    free = shutil.disk_usage(models).free
    if free < _DISK_BYTES:
        raise RequestError(
            "suite",
            f"The full suite writes {_DISK_BYTES / 1e9:.0f} GB into {models.parent}, and"
            f" {free / 1e9:.1f} GB are free.",
            "Free some space, or name another folder by TMPDIR.",
        )


def _requests(catalog: Catalog) -> dict[str, Callable[[int], GenerationRequest]]:
    """Requests by number, each with a prompt that is new."""

    def of(sampler: str, steps: int, guidance: float) -> Callable[[int], GenerationRequest]:
        def request(number: int) -> GenerationRequest:
            return complete(
                {
                    "prompt": f"a red apple on a light blue background, number {number}",
                    "model": MODEL,
                    "sampler": sampler,
                    "steps": steps,
                    "guidance": guidance,
                    "seed": number,
                },
                catalog,
            )

        return request

    return {"fast": of("lcm", 4, 0.0), "guided": of("dpm-solver++", 20, 4.5)}


def _speeds(
    folder: Path,
    catalog: Catalog,
    wanted: dict[str, Callable[[int], GenerationRequest]],
    device: torch.device,
    clock: Timing,
) -> Iterator[Result]:
    pipe = stock_pipeline(folder, dtype=torch.bfloat16).to(device)
    engine = Engine(catalog, inputs=Path(os.devnull))
    count = iter(range(10**9))
    for name, scheduler in (("fast", LCMScheduler()), ("guided", DPMSolverMultistepScheduler())):
        pipe.scheduler = scheduler
        yield _speed(engine, pipe, wanted[name], count, clock)


def _speed(
    engine: Engine,
    pipe: PixArtAlphaPipeline,
    request: Callable[[int], GenerationRequest],
    count: Iterator[int],
    clock: Timing,
) -> Result:
    """Ours against stock, each with prompts that are new; and ours with a known one."""
    first = request(0)

    def ours() -> object:
        return _paint(engine, request(next(count)))

    def stock() -> object:
        return benchmark.stock_picture(pipe, request(next(count)), tokens=120)

    def known() -> object:
        return _paint(engine, first)

    name = f"prompt to picture, {first.width} px, {first.sampler}, {first.steps} steps"
    result = compare(name, ours, stock, clock)
    known()
    return replace(result, facts={**result.facts, "seconds, known prompt": clock.seconds(known)})


def _paint(engine: Engine, request: GenerationRequest) -> Picture:
    (picture,) = engine.generate(request, lambda progress: None, lambda: False)
    return picture


def _limited(machine: Machine, gpu: int, ram: int) -> Machine:
    """`machine` as if it had so many GB, of which a desktop takes its part."""
    vram, free = int(gpu * 10**9), int(_FREE_SHARE * gpu * 10**9)
    return replace(
        machine,
        vram_total=vram,
        vram_free=free,
        ram_total=ram * 10**9,
        ram_free=ram * 10**9,
    )


def _peak(
    catalog: Catalog, request: Callable[[int], GenerationRequest], machine: Machine
) -> Result:
    """What a picture takes on such a GPU, against its forecast."""
    engine = Engine(catalog, inputs=Path(os.devnull), machine=machine)
    wanted = request(7).model_copy(update={"steps": 2, "approximate": True})
    picture = _paint(engine, wanted)
    plan = engine.plan_of(wanted)
    engine.unload()
    return Result(
        name=f"memory, {machine.vram_total / 1e9:.0f} GB GPU, {machine.ram_free / 1e9:.0f} GB RAM",
        compared="forecast against measured peak",
        ratio=round(picture.forecast / picture.peak, 3) if picture.peak else None,
        facts={
            "measured, GiB": picture.peak / GIB,
            "forecast, GiB": picture.forecast / GIB,
            "how": words(plan) or "everything resident",
        },
    )
