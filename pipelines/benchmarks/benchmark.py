"""Our painting against diffusers' PixArtAlphaPipeline: the same weights, one process, in turns.

A ratio above 1 says how many times faster ours is. Both are warmed up, then run by turns in
changing order; the ratio is that of the medians, and a measurement whose quartiles lie too far
apart is called noisy and gives none. Random weights of the real width serve as well as trained
ones: dense products take the same time.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from pipelines.benchmarks import exactness
from pipelines.catalog import Catalog
from pipelines.denoising.latents import PIXELS_PER_LATENT
from pipelines.denoising.residual import Compiler
from pipelines.denoising.samplers import DEFAULT_SAMPLER
from pipelines.denoising.sampling import Sampling
from pipelines.denoising.transformer import Transformer
from pipelines.engine import Engine
from pipelines.memory import probe
from pipelines.memory.planning import Machine
from pipelines.models import loader
from pipelines.request import GenerationRequest, complete

MAX_SPREAD = 0.10
_PROMPT_TOKENS = 24
_LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A transformer of the real width, and what it paints: steps to latents."""

    name: str
    side: int
    precision: str
    steps: int = 4
    guidance: float = 4.5
    layers: int = 4
    heads: int = 16
    each: int = 72
    caption: int = 4096


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measurement; `ratio` is None where it was too noisy, `seconds` are medians."""

    name: str
    compared: str
    ratio: float | None
    seconds: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often, and by which clock. CPU time in one thread is for machines that others use too."""

    rounds: int = 7
    cpu_time: bool = False

    def seconds(self, work: Callable[[], object]) -> float:
        """The time that `work` takes."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock = time.process_time if self.cpu_time else time.perf_counter
        started = clock()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return clock() - started


def cases(device: str, *, bf16: bool) -> list[Case]:
    """What is measured on this machine: four blocks of the real width, on GPUs all 28.

    GPUs that do not multiply bf16 themselves are measured in fp16, in which they paint.
    """
    gpu = device == "cuda"
    layers = 28 if gpu else 4
    rough = [
        Case(
            name=f"{side} px, {'bf16' if bf16 else 'fp16'}",
            side=side,
            precision="bfloat16" if bf16 else "float16",
            layers=layers,
            steps=steps,
        )
        for side, steps in (((256, 4), (512, 4), (1024, 4)) if gpu else ((256, 4), (512, 2)))
    ]
    exact = Case(name="256 px, fp32", side=256, precision="float32", layers=layers)
    return [*(rough if bf16 or gpu else []), exact]


def run(machine: Machine, clock: Timing) -> Iterator[Result]:
    """Every measurement of this machine, one after another."""
    if clock.cpu_time:
        torch.set_num_threads(1)
    with torch.inference_mode():
        yield embedded(clock)
        device = torch.device(machine.device)
        bf16 = machine.bf16 if machine.device == "cuda" else probe.has_bf16("cpu")
        for case in cases(machine.device, bf16=bf16):
            yield transformer(case, device, clock)
            if machine.compiles:
                yield transformer(case, device, clock, compiler="inductor")


def transformer(
    case: Case, device: torch.device, clock: Timing, *, compiler: Compiler | None = None
) -> Result:
    """From noise to latents: the transformer and the sampler, without text and VAE.

    `compiler`: ours with small kernels joined.
    """
    net = random_net(case, device)
    generator = torch.Generator().manual_seed(1)
    dtype = net.dtype
    prompt, negative = (
        torch.randn(n, case.caption, generator=generator).to(device, dtype)
        for n in (_PROMPT_TOKENS, 1)
    )
    pipe = PixArtAlphaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=net,
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    padded = {**exactness.padded("", prompt), **exactness.padded("negative_", negative)}
    fast = Transformer(net, compiler=compiler)
    request = _request(case)

    def stock() -> Tensor:
        result: Tensor = pipe(
            prompt=None,
            negative_prompt=None,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            width=case.side,
            height=case.side,
            generator=torch.Generator().manual_seed(request.seed),
            use_resolution_binning=False,
            output_type="latent",
            **padded,
        ).images
        return result

    def ours() -> Tensor:
        texts = [negative, prompt]
        return Sampling(fast, texts, request, _LINEAR, learned_variance=True).latents()

    facts = exactness.told(fast, [negative, prompt], case.side // PIXELS_PER_LATENT)
    first = ours()
    name = f"transformer, {case.name}{', kernels joined' if compiler else ''}"
    result = compare(name, ours, stock, clock)
    repeated = torch.equal(first, ours())
    shape = f"{case.layers} blocks of {case.heads * case.each}, guidance {case.guidance}"
    told = {**result.facts, **facts, "net": shape, "second run equals first": repeated}
    return replace(result, facts=told)


def _request(case: Case) -> GenerationRequest:
    return GenerationRequest(
        prompt="bench",
        model="bench",
        sampler=DEFAULT_SAMPLER,
        steps=case.steps,
        guidance=case.guidance,
        width=case.side,
        height=case.side,
        seed=3,
    )


def random_net(case: Case, device: torch.device) -> PixArtTransformer2DModel:
    """Random weights with outputs of about 1; the same for the same case."""
    with torch.device("meta"):
        net = PixArtTransformer2DModel(
            num_attention_heads=case.heads,
            attention_head_dim=case.each,
            in_channels=4,
            out_channels=8,
            num_layers=case.layers,
            cross_attention_dim=case.heads * case.each,
            sample_size=case.side // PIXELS_PER_LATENT,
            patch_size=2,
            caption_channels=case.caption,
            interpolation_scale=1.0,
            use_additional_conditions=False,
        )
    real = net.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for weight in real.parameters():
        scale = 0.05 if weight.ndim == 1 else weight[0].numel() ** -0.5
        nn.init.normal_(weight, std=scale, generator=generator)
    # to_empty leaves tables empty that are not weights.
    fresh = type(real.pos_embed)(
        height=case.side // PIXELS_PER_LATENT,
        width=case.side // PIXELS_PER_LATENT,
        patch_size=2,
        in_channels=4,
        embed_dim=case.heads * case.each,
        interpolation_scale=1.0,
    )
    real.pos_embed.pos_embed = fresh.pos_embed.to(device)
    with loader.quiet():
        return real.to(getattr(torch, case.precision)).eval().requires_grad_(False)


def embedded(clock: Timing) -> Result:
    """The model that ships, prompt to picture, 20 guided steps, a new prompt every time."""
    catalog = Catalog()
    model = next(spec for spec in catalog if spec.embedded)
    engine = Engine(
        catalog, inputs=Path(os.devnull), machine=Machine(device="cpu", name="CPU", bf16=False)
    )
    pipe = stock_pipeline(model.part("transformer").parent)
    count = iter(range(10**9))

    def request(number: int) -> GenerationRequest:
        values = {"prompt": f"a red apple, number {number}", "seed": number, "steps": 20}
        return complete({**values, "model": model.id}, catalog)

    def ours() -> object:
        wanted = request(next(count))
        return list(engine.generate(wanted, lambda progress: None, lambda: False))

    def stock() -> object:
        wanted = request(next(count))
        return stock_picture(pipe, wanted, model.tokens)

    result = compare(f"{model.title}, prompt to picture", ours, stock, clock)
    again = request(10**6)
    list(engine.generate(again, lambda progress: None, lambda: False))
    calls = _text_calls(engine, again)
    return replace(result, facts={**result.facts, "text encoder runs for a known prompt": calls})


def _text_calls(engine: Engine, request: GenerationRequest) -> int:
    """How often T5 runs while `request` is painted."""
    calls: list[int] = []

    def count(module: nn.Module, *_: object) -> None:
        if isinstance(module, T5EncoderModel):
            calls.append(1)

    handle = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        list(engine.generate(request, lambda progress: None, lambda: False))
    finally:
        handle.remove()
    return len(calls)


def stock_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> PixArtAlphaPipeline:
    """diffusers' pipeline over a model folder, as its documentation builds it."""
    with loader.quiet():
        pipe = PixArtAlphaPipeline(
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
            text_encoder=T5EncoderModel.from_pretrained(
                folder / "text_encoder", dtype=dtype
            ).eval(),
            vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
            transformer=PixArtTransformer2DModel.from_pretrained(
                folder / "transformer", torch_dtype=dtype
            ),
            scheduler=DPMSolverMultistepScheduler(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_picture(pipe: PixArtAlphaPipeline, request: GenerationRequest, tokens: int) -> object:
    """What `pipe` paints for `request`, of texts of `tokens` tokens."""
    return pipe(
        request.prompt,
        negative_prompt=request.negative,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width,
        height=request.height,
        generator=torch.Generator().manual_seed(request.seed),
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=tokens,
    ).images


def compare(
    name: str, ours: Callable[[], object], stock: Callable[[], object], clock: Timing
) -> Result:
    """Both by turns, each first as often as second."""
    for _ in range(_WARM_UP):
        ours()
        stock()
    mine: list[float] = []
    theirs: list[float] = []
    for turn in range(clock.rounds):
        pair = [(mine, ours), (theirs, stock)]
        for kept, work in pair if turn % 2 else pair[::-1]:
            kept.append(clock.seconds(work))
    spread = max(_spread(mine), _spread(theirs))
    ratio = statistics.median(theirs) / statistics.median(mine)
    return Result(
        name=name,
        compared="diffusers PixArtAlphaPipeline",
        ratio=round(ratio, 3) if spread <= MAX_SPREAD else None,
        seconds={"ours": statistics.median(mine), "stock": statistics.median(theirs)},
        spread=round(spread, 3),
        facts={"rounds": clock.rounds, "threads": torch.get_num_threads()},
    )


def _spread(values: Sequence[float]) -> float:
    """The distance of the quartiles as a share of the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle
