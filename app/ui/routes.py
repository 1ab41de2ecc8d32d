"""The pictures of the studio over HTTP: original bytes, original names."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from app import scratch
from app.models import samples
from app.settings import make_folder
from app.ui.guards import access
from app.ui.shell import NO_SNIFF
from pipelines.errors import RecipeError, StudioError, printable

if TYPE_CHECKING:
    from app.studio import Studio

PICTURES = "studio/pictures"
STARTS = "studio/starts"
SAMPLES = "studio/samples"
THUMBS = "studio/thumbs"
EXPORTS = "studio/exports"
LORAS = "studio/loras"
PREPARED = "studio/trainings"
RUNS = "studio/runs"
# A picture never changes under its name.
_NOW = {"Cache-Control": "private, no-cache", **NO_SNIFF}
_FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable", **NO_SNIFF}


_MOST_NAME = 300


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


def _owners(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """`answer` for whoever may administer the studio; for others there is nothing."""

    def endpoint(request: Request) -> Response:
        if request.scope.get(access.ADMIN) is not True:
            return PlainTextResponse("There is nothing here.", 404)
        return answer(request)

    return _or_404(endpoint)


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

    def photo(request: Request) -> Response:
        prepared, file = request.path_params["id"], request.path_params["file"]
        small = studio.trainings.preparations.picture(prepared, file)
        return Response(small, media_type="image/webp", headers=_FOR_EVER)

    def sheet(request: Request) -> Response:
        path = request.path_params
        file = studio.trainings.runs.sheet(path["run"], path["stage"], path["step"])
        return FileResponse(file, media_type="image/png", headers=_NOW)

    async def bring(request: Request) -> Response:
        return await _brought(studio, request)

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
        Route(f"/{PREPARED}/{{id}}", bring, methods=["POST"]),
        Route(f"/{PREPARED}/{{id}}/{{file}}", _owners(photo)),
        Route(f"/{RUNS}/{{run}}/{{stage}}/{{step:int}}", _owners(sheet)),
    ]


async def _brought(studio: Studio, request: Request) -> Response:
    """Takes a photo, or a .zip of photos, for a training that is being prepared.

    How large it may be, and how slow, `guards.bodies` says.
    """
    if request.scope.get(access.ADMIN) is not True:
        return PlainTextResponse(access.refusal("Photos are uploaded", request), 403)
    title = request.query_params.get("name", "photo")[:_MOST_NAME]
    folder = scratch.folder(make_folder(studio.settings.uploads))
    file = folder / secrets.token_hex(8)
    try:
        with open(file, "wb") as stream:
            async for piece in request.stream():
                await asyncio.to_thread(stream.write, piece)
        prepared, name = studio.trainings.preparations, request.path_params["id"]
        await asyncio.to_thread(prepared.add, name, title, file)
    except ClientDisconnect:
        return PlainTextResponse("It did not come to its end.", 400)
    except StudioError as error:
        return PlainTextResponse(str(error), 415)
    except OSError as error:
        said = printable(error.strerror or error, 120)
        return PlainTextResponse(f"“{printable(title)}” cannot be kept ({said}).", 507)
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
    return PlainTextResponse("", 204)
