"""The pictures of the studio over HTTP: original bytes, original names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from app.models import samples
from app.ui.shell import NO_SNIFF
from pipelines.errors import RecipeError, StudioError

if TYPE_CHECKING:
    from app.studio import Studio

PICTURES = "studio/pictures"
STARTS = "studio/starts"
SAMPLES = "studio/samples"
THUMBS = "studio/thumbs"
EXPORTS = "studio/exports"
LORAS = "studio/loras"
# A picture never changes under its name.
_FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable", **NO_SNIFF}


def _file(path: Path, *, download: bool) -> Response:
    return FileResponse(
        path,
        media_type="image/png",
        headers=_FOR_EVER,
        filename=path.name,
        content_disposition_type="attachment" if download else "inline",
    )


def _export(path: Path) -> Response:
    # Always an attachment: a page that was exported is not to run under our address.
    return FileResponse(
        path,
        media_type="application/octet-stream",
        headers={"Cache-Control": "no-store", **NO_SNIFF},
        filename=path.name,
        content_disposition_type="attachment",
    )


def _or_404(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """`answer`, in a thread, with what is not there as a sentence."""

    def endpoint(request: Request) -> Response:
        try:
            return answer(request)
        except StudioError as error:
            return PlainTextResponse(str(error), 404)

    return endpoint


def _name(request: Request) -> str:
    return f"{request.path_params['day']}/{request.path_params['name']}"


def routes(studio: Studio) -> list[Route]:
    """The routes of painted pictures and their thumbnails, of pictures to start from, of samples,
    and of what was exported."""

    def picture(request: Request) -> Response:
        return _file(studio.picture(_name(request)), download="download" in request.query_params)

    def thumb(request: Request) -> Response:
        small = studio.thumb(_name(request))
        return Response(small, media_type="image/webp", headers=_FOR_EVER)

    def export(request: Request) -> Response:
        return _export(studio.exports.file(request.path_params["token"]))

    def lora(request: Request) -> Response:
        return _export(studio.lora_exports.file(request.path_params["token"]))

    def start(request: Request) -> Response:
        return _file(studio.find_start(request.path_params["name"]).path, download=False)

    def sample(request: Request) -> Response:
        name = request.path_params["model"]
        model = next((spec for spec in studio.catalog if spec.id == name), None)
        found = samples.read(model) if model is not None else None
        if found is None:
            raise RecipeError("There are no such pictures.")
        return _file(found.file, download=False)

    async def alive(request: Request) -> Response:
        return PlainTextResponse("yes", headers={"Cache-Control": "no-store"})

    return [
        Route("/studio/alive", alive),
        Route(f"/{PICTURES}/{{day}}/{{name}}", _or_404(picture)),
        Route(f"/{THUMBS}/{{day}}/{{name}}", _or_404(thumb)),
        Route(f"/{EXPORTS}/{{token}}", _or_404(export)),
        Route(f"/{LORAS}/{{token}}", _or_404(lora)),
        Route(f"/{STARTS}/{{name}}", _or_404(start)),
        Route(f"/{SAMPLES}/{{model}}", _or_404(sample)),
    ]
