"""The recipe of a picture as rows that a person reads, in the Gallery tab and in exported pages."""

from __future__ import annotations

from pipelines.denoising import samplers
from pipelines.request import FIELDS, GenerationRequest


def of(request: GenerationRequest) -> list[tuple[str, str]]:
    """Label and value of each field that says something, but for prompt and negative prompt."""
    sampler = samplers.SAMPLERS.get(request.sampler)
    # What reads better here than in the infotext.
    own = {
        "sampler": sampler.label if sampler else request.sampler,
        "size": f"{request.width} × {request.height}",
    }
    if not request.guided:
        own["guidance"] = "off"
    values = (
        (row.spec.label, own.get(name) or row.text(request))
        for name, row in FIELDS.items()
        if row.spec.infotext
    )
    return [(label, value) for label, value in values if value]
