"""Our loop against diffusers' PixArtAlphaPipeline and against the published equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SASolverScheduler
from PIL import Image
from torch import Tensor

from pipelines.benchmarks.benchmark import stock_pipeline as stock
from pipelines.catalog import Catalog
from pipelines.denoising.denoise import denoise, make_schedule, start_latents
from pipelines.engine import Engine
from pipelines.request import GenerationRequest, complete
from pipelines.text.encoder import batch
from tests.tiny import NANO

PROMPT = "a red apple on a light blue background"
NEGATIVE = "a cat face"


def final_latents(
    engine: Engine, request: GenerationRequest, features: list[Tensor] | None = None
) -> Tensor:
    """The latents that the engine's own loop ends with, before the VAE."""
    loaded = engine.load(request.model, lambda progress: None)
    schedule = make_schedule(request, loaded.betas, learned_variance=loaded.model.learned_variance)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    start = start_latents(
        schedule, (1, 4, request.height // 8, request.width // 8), generator, None
    )
    with torch.inference_mode():
        if features is None:
            texts = [request.negative, request.prompt] if request.guided else [request.prompt]
            features = [loaded.text.features(text) for text in texts]
        height, width = start.shape[2:]
        predict = loaded.transformer.predictor(
            features, (height, width), variance=schedule.wants_variance
        )
        steps = list(
            denoise(predict, schedule, start, guidance=request.guidance, generator=generator)
        )
    assert [step.done for step in steps] == list(range(1, request.steps + 1))
    return steps[-1].latents


@pytest.mark.parametrize("model", ["tiny", "tiny-1024"])
@pytest.mark.parametrize("sampler", ["dpm-solver++", "sa-solver"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.5])
@pytest.mark.parametrize("size", ["64x64", "96x64"])
def test_final_latents_equal_the_stock_pipeline(
    engine: Engine,
    catalog: Catalog,
    models: Path,
    *,
    model: str,
    sampler: str,
    guidance: float,
    size: str,
) -> None:
    request = complete(
        {
            "prompt": PROMPT,
            "negative": NEGATIVE,
            "model": model,
            "sampler": sampler,
            "guidance": guidance,
            "steps": 8,
            "seed": 7,
            "size": size,
            # As diffusers: test_sa_solver.py holds the authors' way.
            "tau_at_start": True,
        },
        catalog,
    )
    pipe = stock(models / model)
    if sampler == "sa-solver":
        pipe.scheduler = SASolverScheduler(predictor_order=2, corrector_order=2)
    expected = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=8,
        guidance_scale=guidance,
        width=request.width,
        height=request.height,
        generator=torch.Generator("cpu").manual_seed(7),
        use_resolution_binning=False,
        clean_caption=False,
        output_type="latent",
    ).images
    # As inside the pipeline: with gradients, attention runs on another kernel.
    with torch.no_grad():
        prompt, mask, negative, negative_mask = pipe.encode_prompt(
            PROMPT, request.guided, negative_prompt=NEGATIVE, device="cpu"
        )
    given = [prompt[0, : int(mask.sum())]]
    if request.guided:
        given = [negative[0, : int(negative_mask.sum())], *given]
    same_inputs = final_latents(engine, request, given)
    assert same_inputs.abs().max() > 0.1
    # The same sums in another order: what float32 rounds differently, guidance multiplies
    # in each step; random nets of other seeds reach one part in 100,000.
    assert (same_inputs - expected).abs().max() <= 3e-5 * max(10.0, float(expected.abs().max()))
    # Our own text features have no padding: equal but for rounding, which the first steps (noise
    # 157 times larger than the picture) magnify.
    ours = final_latents(engine, request)
    assert (ours - expected).abs().max() <= 3e-5 * max(1.0, float(expected.abs().max()))


def test_size_conditions_reach_the_model(engine: Engine, catalog: Catalog) -> None:
    """The 1024 parity above would also hold if both ignored the size: it must matter."""
    net = engine.load("tiny-1024", lambda progress: None).transformer.net
    assert net.config.use_additional_conditions
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = [
        net(
            latents,
            encoder_hidden_states=torch.zeros(1, 1, 32),
            timestep=torch.tensor([500]),
            added_cond_kwargs={
                "resolution": torch.tensor([[side, side]]),
                "aspect_ratio": torch.tensor([[1.0]]),
            },
            return_dict=False,
        )[0]
        for side in (64.0, 1024.0)
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4


def learned_range_reference(
    net: Any, features: Any, request: GenerationRequest, guidance: float
) -> np.ndarray:
    """Ancestral sampling with learned variance, written from the equations of IDDPM.

    Improved DDPM (arXiv 2102.09672): respaced betas (section 4), log variance interpolated between
    the posterior's (lower bound) and beta's logarithm (equation 15). Float64 throughout.
    """
    betas = np.linspace(1e-4, 0.02, 1000)
    cumulative = np.cumprod(1 - betas)
    used = np.round(np.linspace(0, 999, request.steps)).astype(int)
    kept = cumulative[used]
    before = np.append(1.0, kept[:-1])
    respaced = 1 - kept / before
    posterior = respaced * (1 - before) / (1 - kept)
    # At the first step the posterior variance is 0; its neighbour's logarithm stands in.
    lower = np.log(np.append(posterior[1], posterior[1:]))
    generator = torch.Generator("cpu").manual_seed(request.seed)
    shape = (1, 4, request.height // 8, request.width // 8)
    x = torch.randn(shape, generator=generator).double().numpy()
    for i in reversed(range(request.steps)):
        pair = torch.from_numpy(np.concatenate([x, x])).float()
        with torch.inference_mode():
            output = (
                net(
                    pair,
                    encoder_hidden_states=features.embeds,
                    encoder_attention_mask=features.mask,
                    timestep=torch.full((2,), int(used[i])),
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                    return_dict=False,
                )[0]
                .double()
                .numpy()
            )
        eps = output[0:1, :4] + guidance * (output[1:2, :4] - output[0:1, :4])
        share = (output[1:2, 4:] + 1) / 2
        log_variance = share * np.log(respaced[i]) + (1 - share) * lower[i]
        clean = (x - np.sqrt(1 - kept[i]) * eps) / np.sqrt(kept[i])
        mean = (
            np.sqrt(before[i]) * respaced[i] / (1 - kept[i]) * clean
            + np.sqrt(1 - respaced[i]) * (1 - before[i]) / (1 - kept[i]) * x
        )
        x = mean
        if used[i] > 0:
            x = x + np.exp(log_variance / 2) * torch.randn(shape, generator=generator).numpy()
    return x


@pytest.mark.parametrize("steps", [5, 25])
def test_iddpm_equals_the_learned_range_posterior(
    engine: Engine, catalog: Catalog, steps: int
) -> None:
    request = complete(
        {"prompt": PROMPT, "model": "tiny", "sampler": "iddpm", "steps": steps, "seed": 5},
        catalog,
    )
    ours = final_latents(engine, request).numpy()
    loaded = engine.load("tiny", lambda progress: None)
    with torch.inference_mode():
        features = batch([loaded.text.features(text) for text in ("", PROMPT)])
    expected = learned_range_reference(loaded.transformer.net, features, request, request.guidance)
    assert np.abs(ours - expected).max() <= 1e-3 * np.abs(expected).max()


def test_iddpm_uses_the_variance_half(engine: Engine, catalog: Catalog) -> None:
    """The same start with the fixed posterior variance ends elsewhere."""
    values = {"prompt": PROMPT, "model": "tiny", "sampler": "iddpm", "steps": 10, "seed": 5}
    request = complete(values, catalog)
    loaded = engine.load("tiny", lambda progress: None)
    ends = []
    for learned in (True, False):
        schedule = make_schedule(request, loaded.betas, learned_variance=learned)
        generator = torch.Generator("cpu").manual_seed(5)
        start = start_latents(schedule, (1, 4, 8, 8), generator, None)
        with torch.inference_mode():
            features = [loaded.text.features(text) for text in ("", PROMPT)]
            predict = loaded.transformer.predictor(features, (8, 8), variance=learned)
            for step in denoise(
                predict, schedule, start, guidance=request.guidance, generator=generator
            ):
                last = step.latents
        ends.append(last)
    assert (ends[0] - ends[1]).abs().max() > 1e-3


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def test_pictures_of_a_batch_equal_single_ones_and_the_stock_pipeline(
    engine: Engine, catalog: Catalog
) -> None:
    values = {"prompt": PROMPT, "model": "nano", "seed": 40, "steps": 20}
    batch = list(
        engine.generate(complete({**values, "count": 2}, catalog), lambda p: None, lambda: False)
    )
    assert [picture.request.seed for picture in batch] == [40, 41]
    pipe = stock(NANO)
    for picture in batch:
        seed = picture.request.seed
        (single,) = engine.generate(
            complete({**values, "seed": seed}, catalog), lambda p: None, lambda: False
        )
        assert np.array_equal(pixels(single.image), pixels(picture.image))
        expected = pipe(
            PROMPT,
            negative_prompt="",
            num_inference_steps=20,
            guidance_scale=4.5,
            width=128,
            height=128,
            generator=torch.Generator("cpu").manual_seed(seed),
            use_resolution_binning=False,
            clean_caption=False,
        ).images[0]
        assert np.abs(pixels(picture.image) - pixels(expected)).max() <= 2


@pytest.mark.parametrize("cleaned", [True, False])
def test_a_picture_of_a_cleaned_prompt_is_that_of_the_stock_pipeline(
    engine: Engine, catalog: Catalog, cleaned: bool
) -> None:
    prompt, negative = "a (red) apple & a cat", "[blue] #3"
    values = {"prompt": prompt, "negative": negative, "model": "nano", "seed": 5, "steps": 6}
    request = complete(values | {"clean_caption": cleaned}, catalog)
    (picture,) = engine.generate(request, lambda p: None, lambda: False)
    expected = stock(NANO)(
        prompt,
        negative_prompt=negative,
        num_inference_steps=6,
        guidance_scale=4.5,
        width=128,
        height=128,
        generator=torch.Generator("cpu").manual_seed(5),
        use_resolution_binning=False,
        clean_caption=cleaned,
        max_sequence_length=24,
    ).images[0]
    assert np.abs(pixels(picture.image) - pixels(expected)).max() <= 2
    other = request.model_copy(update={"clean_caption": not cleaned})
    (raw,) = engine.generate(other, lambda p: None, lambda: False)
    assert np.abs(pixels(raw.image) - pixels(expected)).max() > 2
