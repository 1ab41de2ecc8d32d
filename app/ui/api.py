"""The public endpoints, for programs: `generate`, and `stop_all`."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import TYPE_CHECKING, Any

import gradio as gr

from app import hosting
from app.jobs.job import Job, JobState
from app.ui.guards import clients
from app.ui.listener import ClientListener
from app.ui.routes import PICTURES
from pipelines.errors import StudioError

if TYPE_CHECKING:
    from app.studio import Studio

_POLL_SECONDS = 0.1


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
        return _told(await self._paint(values, request), _base(request))

    async def stop_all(self, request: gr.Request = None) -> int:  # type: ignore[assignment]
        """Stops every job of this session (`session_hash`), waiting or painted just now.

        Returns:
            How many there were.
        """
        return self._studio.stop_all(_owner(request))

    async def _paint(self, values: dict[str, Any], request: gr.Request | None) -> Job:
        owner, client = _owner(request), clients.sender(request).client
        listener = ClientListener()
        try:
            asked = self._studio.request(values)
            job = self._studio.submit(asked, owner, client=client, passing=True)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from None
        try:
            while (now := self._studio.job(job.id, owner)) is not None and now.active:
                if listener.has_gone():
                    break
                # Asking again and again, so that no thread is held.
                await asyncio.sleep(_POLL_SECONDS)
            return now or job
        finally:
            # Nothing where it has ended; else whoever asked has gone, and nobody can fetch it.
            self._studio.stop(job.id, owner)


def publish(studio: Studio) -> None:
    """Adds the endpoints to the Blocks that is open now."""
    api = Api(studio)
    gr.api(
        api.generate,
        api_name="generate",
        api_visibility="public",
        # Each waits for a job without a thread, and jobs have their own limit (`app.jobs.turns`).
        concurrency_limit=None,
    )
    gr.api(api.stop_all, api_name="stop_all", api_visibility="public")


def _owner(request: gr.Request | None) -> str:
    """The session that calls: what it queues it may stop, and nobody else knows its name."""
    session = getattr(request, "session_hash", None)
    name = str(session) if session else secrets.token_hex(16)
    return "api-" + hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:32]


def _base(request: gr.Request | None) -> str:
    """The address of the page as the caller knows it, with a slash at its end."""
    inner = request.request if request is not None else None
    if inner is None:
        return "/"
    # A Space is behind a proxy that speaks https to the world and http to us.
    secure = hosting.on_space() and "https" in inner.headers.get("x-forwarded-proto", "")
    return str(inner.base_url.replace(scheme="https") if secure else inner.base_url)


def _told(job: Job, base: str) -> list[dict[str, Any]]:
    if job.state is not JobState.DONE:
        sentence = job.error or "The job was stopped before its pictures were finished."
        raise gr.Error(str(sentence), print_exception=False)
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
