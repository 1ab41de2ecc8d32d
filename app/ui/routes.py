"""The pictures of the studio over HTTP: original bytes, original names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from app import samples
from app.ui.shell import NO_SNIFF
from pipelines.errors import StudioError

if TYPE_CHECKING:
    from app.studio import Studio

PICTURES = "studio/pictures"
STARTS = "studio/starts"
SAMPLES = "studio/samples"


def _file(path: Path, *, download: bool) -> Response:
    # A picture never changes under its name.
    headers = {"Cache-Control": "private, max-age=31536000, immutable", **NO_SNIFF}
    return FileResponse(
        path,
        media_type="image/png",
        headers=headers,
        filename=path.name,
        content_disposition_type="attachment" if download else "inline",
    )


def routes(studio: Studio) -> list[Route]:
    """The routes of painted pictures, of pictures to start from, and of samples."""

    async def picture(request: Request) -> Response:
        name = f"{request.path_params['day']}/{request.path_params['name']}"
        try:
            path = await run_in_threadpool(studio.picture, name)
        except StudioError as error:
            return PlainTextResponse(str(error), 404)
        return _file(path, download="download" in request.query_params)

    async def start(request: Request) -> Response:
        try:
            found = await run_in_threadpool(studio.find_start, request.path_params["name"])
        except StudioError as error:
            return PlainTextResponse(str(error), 404)
        return _file(found.path, download=False)

    async def sample(request: Request) -> Response:
        name = request.path_params["model"]
        model = next((spec for spec in studio.catalog if spec.id == name), None)
        found = await run_in_threadpool(samples.read, model) if model is not None else None
        if found is None:
            return PlainTextResponse("There are no such pictures.", 404)
        return _file(found.file, download=False)

    async def alive(request: Request) -> Response:
        return PlainTextResponse("yes", headers={"Cache-Control": "no-store"})

    return [
        Route("/studio/alive", alive),
        Route(f"/{PICTURES}/{{day}}/{{name}}", picture),
        Route(f"/{STARTS}/{{name}}", start),
        Route(f"/{SAMPLES}/{{model}}", sample),
    ]
