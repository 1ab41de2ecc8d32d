"""The one table of samplers: which scheduler class, which arguments, which defaults and limits.

Sources of the constructor facts: DPM-Solver++ (arXiv 2211.01095) as PixArt-α ran it, SA-Solver
(arXiv 2309.05019), IDDPM (arXiv 2102.09672), LCM (arXiv 2310.04378), DMD (arXiv 2311.18828).
Betas are never a class default: they come from the model (`loader`), because the defaults of some
classes belong to another family of models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import RequestError, UnknownNameError

GUIDANCE_OFF = 1.0
"""Classifier-free guidance at or below this scale is not computed at all."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One row of the table.

    `scheduler` is the name of a class in `diffusers`, `arguments` what its constructor gets.
    `steps` and `guidance` are the defaults; `min_steps` the fewest that the method is defined for.
    `timesteps` fixes the whole schedule (one-step models). `guided` is False where the weights
    were distilled with guidance inside, so that guiding again would spoil the picture.
    `distilled` names the distillation that a model must have had for this row to make sense.
    `infotext` is the name by which other programs know the sampler.
    """

    id: str
    label: str
    scheduler: str
    arguments: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    guidance: float = 4.5
    min_steps: int = 2
    max_steps: int = 200
    guided: bool = True
    timesteps: tuple[int, ...] | None = None
    learned_variance: bool = False
    distilled: str | None = None
    orders: bool = False
    from_picture: bool = True
    more: bool = False
    infotext: str
    hint: str = ""


_ROWS = (
    Sampler(
        id="dpm-solver++",
        infotext="DPM++ 2M",
        label="DPM-Solver++",
        scheduler="DPMSolverMultistepScheduler",
        arguments={
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "final_sigmas_type": "zero",
            "lower_order_final": True,
            "timestep_spacing": "linspace",
        },
        hint="Fast and accurate: the right choice nearly always.",
    ),
    Sampler(
        id="dpm-solver++-original",
        infotext="DPM++ 2M",
        label="DPM-Solver++ (original PixArt)",
        scheduler="DPMSolverMultistepScheduler",
        arguments={
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            # The original stops at the smallest trained noise level instead of at zero and falls
            # back to first order in the last step only below ten steps (`scheduler_arguments`).
            "final_sigmas_type": "sigma_min",
            "timestep_spacing": "linspace",
        },
        hint="As the authors' own code runs it: harder contrast at few steps.",
    ),
    Sampler(
        id="sa-solver",
        infotext="SA Solver",
        label="SA-Solver",
        scheduler="SASolverScheduler",
        arguments={
            "algorithm_type": "data_prediction",
            "lower_order_final": True,
            "timestep_spacing": "linspace",
        },
        steps=25,
        guidance=3.0,
        orders=True,
        hint="Stochastic; more detail from 25 steps on. Eta 0 makes it deterministic.",
    ),
    Sampler(
        id="iddpm",
        infotext="DDPM",
        label="IDDPM",
        scheduler="DDPMScheduler",
        arguments={"clip_sample": False, "timestep_spacing": "linspace"},
        steps=100,
        max_steps=1000,
        learned_variance=True,
        hint="The sampler of the training objective: slow; learned variance if the model has it.",
    ),
    Sampler(
        id="lcm",
        infotext="LCM",
        label="LCM",
        scheduler="LCMScheduler",
        arguments={"original_inference_steps": 50, "timestep_scaling": 10.0},
        steps=4,
        guidance=0.0,
        min_steps=1,
        max_steps=50,
        guided=False,
        distilled="lcm",
        hint="Four steps, for models distilled to it.",
    ),
    Sampler(
        id="dmd",
        infotext="DMD",
        label="DMD (one step)",
        scheduler="DDPMScheduler",
        arguments={"clip_sample": False},
        steps=1,
        guidance=0.0,
        min_steps=1,
        max_steps=1,
        guided=False,
        timesteps=(400,),
        distilled="dmd",
        from_picture=False,
        hint="A single step, for models distilled to it.",
    ),
    Sampler(
        id="unipc",
        infotext="UniPC",
        label="UniPC",
        scheduler="UniPCMultistepScheduler",
        arguments={"solver_order": 2, "timestep_spacing": "linspace"},
        more=True,
        hint="Close to DPM-Solver++; good at 10 to 15 steps.",
    ),
    Sampler(
        id="deis",
        infotext="DEIS",
        label="DEIS",
        scheduler="DEISMultistepScheduler",
        arguments={"solver_order": 2, "timestep_spacing": "linspace"},
        more=True,
        hint="Exponential integrator; soft and smooth.",
    ),
    Sampler(
        id="euler",
        infotext="Euler",
        label="Euler",
        scheduler="EulerDiscreteScheduler",
        arguments={"timestep_spacing": "linspace"},
        steps=25,
        more=True,
        hint="The plain first-order method.",
    ),
    Sampler(
        id="euler-ancestral",
        infotext="Euler a",
        label="Euler ancestral",
        scheduler="EulerAncestralDiscreteScheduler",
        arguments={"timestep_spacing": "linspace"},
        steps=25,
        more=True,
        hint="Adds fresh noise each step: livelier and never settles.",
    ),
    Sampler(
        id="heun",
        infotext="Heun",
        label="Heun",
        scheduler="HeunDiscreteScheduler",
        arguments={"timestep_spacing": "linspace"},
        steps=15,
        more=True,
        hint="Second order: two passes through the model per step.",
    ),
    Sampler(
        id="ddim",
        infotext="DDIM",
        label="DDIM",
        scheduler="DDIMScheduler",
        arguments={
            "clip_sample": False,
            "set_alpha_to_one": False,
            "timestep_spacing": "leading",
            "steps_offset": 1,
        },
        steps=50,
        more=True,
        hint="The classic; needs many steps.",
    ),
)

SAMPLERS: dict[str, Sampler] = {row.id: row for row in _ROWS}
DEFAULT_SAMPLER = "dpm-solver++"
MAX_ORDER = 4


def find(sampler_id: str) -> Sampler:
    """The row called `sampler_id`. Raises UnknownNameError."""
    row = SAMPLERS.get(sampler_id)
    if row is None:
        raise UnknownNameError("sampler", "sampler", sampler_id, SAMPLERS)
    return row


def check(row: Sampler, *, steps: int, guidance: float) -> None:
    """Raises RequestError where `row` cannot be run with these numbers."""
    if row.min_steps == row.max_steps and steps != row.min_steps:
        raise RequestError("steps", f"{row.label} takes exactly {row.min_steps} step, not {steps}.")
    if not row.min_steps <= steps <= row.max_steps:
        raise RequestError(
            "steps", f"{row.label} takes {row.min_steps} to {row.max_steps} steps, not {steps}."
        )
    if not row.guided and guidance > GUIDANCE_OFF:
        raise RequestError(
            "guidance",
            f"{row.label} paints without guidance, so {guidance:g} is not possible.",
            "Use 0, or another sampler.",
        )


def scheduler_arguments(
    row: Sampler,
    *,
    steps: int,
    predictor_order: int = 2,
    corrector_order: int = 2,
    learned_variance: bool = False,
) -> dict[str, Any]:
    """The constructor arguments of `row` for one job; betas are added by the loader."""
    arguments = dict(row.arguments)
    if row.id == "dpm-solver++-original":
        arguments["lower_order_final"] = steps < 10
    if row.orders:
        arguments |= {"predictor_order": predictor_order, "corrector_order": corrector_order}
    if row.learned_variance:
        # Weights without a trained variance half are sampled with the fixed posterior variance.
        arguments["variance_type"] = "learned_range" if learned_variance else "fixed_small"
    return arguments
