"""The one public endpoint: `generate`, for programs."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import gradio as gr

from app import hosting
from app.jobs import Job, JobState
from app.ui.routes import PICTURES
from pipelines.errors import StudioError

if TYPE_CHECKING:
    from app.studio import Studio

_POLL_SECONDS = 0.1
_AT_ONCE = 16


class Api:
    """The endpoints of one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    async def generate(
        self,
        prompt: str,
        negative: str = "",
        model: str = "",
        sampler: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        size: str = "",
        seed: str = "",
        count: int = 1,
        style: str = "None",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> list[dict[str, Any]]:
        """Paints pictures and waits for them.

        Args:
            prompt: What the picture should show.
            negative: What should stay out of it.
            model: The name of a model; empty for the default.
            sampler: The name of a sampler; empty for the model's own.
            steps: How many steps; null for the sampler's own.
            guidance: How closely to follow the prompt; null for the sampler's own.
            size: Width x height in pixels, e.g. 128x128; empty for the model's own.
            seed: The seed of the first picture; empty for a new one.
            count: How many pictures, 1 to 64.
            style: The name of a style.

        Returns:
            One object per picture: url, seed, width, height, seconds and the rest of its recipe.
        """
        values = {
            "prompt": prompt,
            "negative": negative,
            "model": model or None,
            "sampler": sampler or None,
            "steps": steps,
            "guidance": guidance,
            "size": size or None,
            "seed": "" if seed is None else seed,
            "count": count,
            "style": style or None,
        }
        return _told(await self._paint(values), _base(request))

    async def _paint(self, values: dict[str, Any]) -> Job:
        owner = "api-" + secrets.token_hex(16)
        try:
            job = self._studio.submit(self._studio.request(values), owner)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from None
        try:
            return await _ended(self._studio, job)
        except asyncio.CancelledError:
            # Whoever asked has gone.
            self._studio.stop(job.id, owner)
            raise


def publish(studio: Studio) -> None:
    """Adds the endpoint to the Blocks that is open now."""
    gr.api(
        Api(studio).generate,
        api_name="generate",
        api_visibility="public",
        concurrency_limit=_AT_ONCE,
    )


def _base(request: gr.Request | None) -> str:
    """The address of the page as the caller knows it, with a slash at its end."""
    inner = request.request if request is not None else None
    if inner is None:
        return "/"
    # A Space is behind a proxy that speaks https to the world and http to us.
    secure = hosting.on_space() and "https" in inner.headers.get("x-forwarded-proto", "")
    return str(inner.base_url.replace(scheme="https") if secure else inner.base_url)


async def _ended(studio: Studio, job: Job) -> Job:
    """The job when it has ended; asks again and again, so that no thread is held."""
    while True:
        now = studio.job(job.id, job.owner)
        if now is None or not now.active:
            return now or job
        await asyncio.sleep(_POLL_SECONDS)


def _told(job: Job, base: str) -> list[dict[str, Any]]:
    if job.state is not JobState.DONE:
        sentence = job.error or "The job was stopped before its pictures were finished."
        raise gr.Error(sentence, print_exception=False)
    return [
        {
            "url": f"{base}{PICTURES}/{file.name}",
            "seconds": round(file.seconds, 3),
            **file.request.model_dump(exclude={"count"}),
            # As text: a seed may be too large for the numbers of other languages.
            "seed": str(file.request.seed),
        }
        for file in job.pictures
    ]
