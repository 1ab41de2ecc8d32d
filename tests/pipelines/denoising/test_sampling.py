"""The one way to sample: what may happen between steps, and that all who call it paint the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.catalog import Catalog
from pipelines.denoising.denoise import DenoisingStep, Schedule
from pipelines.denoising.samplers import DEFAULT_SAMPLER, SAMPLERS
from pipelines.denoising.sampling import Sampling
from pipelines.denoising.transformer import Transformer
from pipelines.engine import Engine
from pipelines.request import GenerationRequest, complete
from pipelines.sizes import Size
from tests.pipelines.denoising.test_transformer import make, texts
from training.sampling import SamplingOptions, paint

BETAS = {
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def request(sampler: str = DEFAULT_SAMPLER, **more: object) -> GenerationRequest:
    row = SAMPLERS[sampler]
    values: dict[str, object] = {
        "prompt": "x",
        "model": "x",
        "sampler": sampler,
        "steps": 1 if row.timesteps else max(4, row.min_steps),
        "guidance": 4.5 if row.guided else 1.0,
        "width": 64,
        "height": 64,
        "seed": 3,
    }
    return GenerationRequest.model_validate(values | more)


def sampling(asked: GenerationRequest, **options: object) -> Sampling:
    given = texts(1, 6) if asked.guided else texts(6)
    clean = torch.ones(1, 4, 8, 8) if asked.init else None
    row = SAMPLERS[asked.sampler]
    return Sampling(
        Transformer(make()),
        given,
        asked,
        BETAS,
        learned_variance=row.learned_variance,
        clean=clean,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_hook_that_changes_nothing_changes_no_bit(sampler: str) -> None:
    plain = sampling(request(sampler)).latents()
    seen: list[tuple[int, bool]] = []

    def look(schedule: Schedule, step: DenoisingStep) -> None:
        seen.append((step.done, step.upcoming is None))

    watched = sampling(request(sampler), between=look)
    assert torch.equal(watched.latents(), plain)
    assert seen[-1] == (watched.steps, True)
    assert not any(last for _, last in seen[:-1])
    again = sampling(request(sampler), between=lambda schedule, step: step.latents)
    assert torch.equal(again.latents(), plain)


@pytest.mark.parametrize(
    ("sampler", "from_picture"),
    [(name, False) for name in sorted(SAMPLERS)]
    + [(name, True) for name, row in sorted(SAMPLERS.items()) if row.from_picture],
)
def test_a_hook_can_hold_a_part_of_the_picture(sampler: str, from_picture: bool) -> None:
    """As inpainting does: the known half is noised like the rest, and is itself at the end."""
    asked = request(
        sampler, **({"init": "0" * 16 + ".png", "strength": 0.8} if from_picture else {})
    )
    known = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    held = torch.zeros(1, 1, 8, 8)
    held[..., :4] = 1
    spreads: list[float] = []

    def blend(schedule: Schedule, step: DenoisingStep) -> Tensor:
        before = schedule.noised(known, noise, step.upcoming)
        spreads.append((before - known).std().item())
        return held * before + (1 - held) * step.latents

    plain = sampling(asked).latents()
    result = sampling(asked, between=blend).latents()
    torch.testing.assert_close(result[..., :4], known[..., :4], rtol=0, atol=0)
    assert not torch.equal(result[..., 4:], plain[..., 4:]) or len(spreads) == 1
    # Less noise with every step; Heun looks twice at the same.
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(spreads))
    assert spreads[-1] == 0


def test_steps_yield_what_the_hook_made_of_them() -> None:
    zeros = torch.zeros(1, 4, 8, 8)
    steps = list(sampling(request(), between=lambda schedule, step: zeros).walk())
    assert all(step.latents is zeros for step in steps)


def test_a_preview_of_a_training_is_the_picture_that_the_engine_paints(
    engine: Engine, catalog: Catalog
) -> None:
    asked = complete(
        {
            "prompt": "a red disc",
            "negative": "",
            "model": "tiny",
            "sampler": DEFAULT_SAMPLER,
            "steps": 4,
            "guidance": 3.0,
            "width": 64,
            "height": 64,
            "seed": 5,
        },
        catalog,
    )
    (painted,) = engine.generate(asked, lambda progress: None, lambda: False)
    loaded = engine.load("tiny", lambda progress: None)
    null, features = (loaded.text.features(text) for text in ("", "a red disc"))
    (previewed,) = paint(
        loaded.transformer.net,
        loaded.vae,
        [features],
        null,
        SamplingOptions(seed=5, steps=4, guidance=3.0, size=Size(64, 64)),
        loaded.betas,
    )
    assert np.array_equal(np.asarray(previewed), np.asarray(painted.image))
