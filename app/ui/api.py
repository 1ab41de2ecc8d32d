"""The public endpoints, for programs: `generate`, and `stop_all`."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterator
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder

from app import field_docs, hosting
from app.jobs.job import Job, JobState
from app.signatures import with_parameters
from app.ui.create import fields
from app.ui.guards import clients
from app.ui.listener import ClientListener
from app.ui.routes import PICTURES
from lora_manager import card
from pipelines.errors import RequestError, StudioError
from pipelines.request import FIELDS

if TYPE_CHECKING:
    from app.studio import Studio

EARLIER = 10
"""So many values `generate` took before it took every field."""
CONFIRM, _CONFIRM_AT = "confirm", 20
"""What paints with weights of LoRAs beyond -2 to 2, which the page asks about twice. It has a place
of its own, so that a field that comes later is behind it."""
_CONFIRMS = "paint also with weights of LoRAs beyond -2 to 2, where most pictures fall apart"
_POLL_SECONDS = 0.1
_UPLOAD = "Upload it first, e.g. with gradio_client's handle_file, or give the name of a kept one."


class Api:
    """The endpoints of one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    async def generate(
        self, values: dict[str, Any], request: gr.Request | None
    ) -> list[dict[str, Any]]:
        """Paints pictures and waits for them; `values` are those of the fields, by name."""
        try:
            start = await asyncio.to_thread(self._start, values["init"])
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from None
        sure = values.pop(CONFIRM) is True
        given = fields.request_values(values | {"init": start})
        return _told(await self._paint(given, request, sure=sure), _base(request))

    async def stop_all(self, request: gr.Request = None) -> int:  # type: ignore[assignment]
        """Stops every job of this session (`session_hash`), waiting or painted just now.

        Returns:
            How many there were.
        """
        return self._studio.stop_all(_owner(request))

    def _start(self, given: Any) -> str:
        """The name of the picture to start from, which is kept; "" for none. Raises StudioError."""
        if given is None or given == "":
            return ""
        if not isinstance(given, dict):
            return self._studio.find_start(str(given)).name
        path = given.get("path")
        # gradio looks at files where they say that they are files; others are none at all.
        if not isinstance(path, str) or not _is_upload(path):
            raise RequestError("init", "The picture to start from was not uploaded.", _UPLOAD)
        return self._studio.keep_start(Path(path)).name

    async def _paint(
        self, values: dict[str, Any], request: gr.Request | None, *, sure: bool
    ) -> Job:
        owner, client = _owner(request), clients.sender(request).client
        listener = ClientListener()
        try:
            asked = self._studio.request(values)
            if not sure and (unusual := card.unusual(asked.loras)):
                raise RequestError("loras", unusual, f"Call it with {CONFIRM}=true to do so.")
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


def _is_upload(path: str) -> bool:
    """Whether the file lies where uploads do."""
    folder = Path(get_upload_folder()).resolve()
    try:
        return Path(path).resolve().is_relative_to(folder)
    except (OSError, ValueError):
        return False


def names() -> list[str]:
    """The names of the values that `generate` takes, in their order."""
    found = list(FIELDS)
    found.insert(_CONFIRM_AT, CONFIRM)
    return found


def parameters() -> Iterator[Parameter]:
    """The parameters of `generate`, out of the table of fields, and the request of gradio."""
    for name in names():
        kind, default = (bool | None, False) if name == CONFIRM else _of_field(name)
        yield Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
    yield Parameter("request", Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=gr.Request)


def _of_field(name: str) -> tuple[Any, Any]:
    """The kind of values that a field takes here, and the default."""
    row = FIELDS[name]
    kind: Any = str
    default: Any = row.default if isinstance(row.default, str) else ""
    if row.spec.widget.kind in ("number", "switch"):
        varies = row.required or bool(row.spec.follows)
        kind, default = (row.type | None, None) if varies else (row.type, row.default)
    elif row.spec.widget.kind == "start":
        kind = str | dict[str, Any]
    return kind, Parameter.empty if name == "prompt" else default


def with_defaults(api_name: str, inputs: list[Any]) -> list[Any]:
    """`inputs` as the endpoint takes them: programs of earlier versions know fewer fields."""
    wanted = len(names())
    if api_name != "generate" or not EARLIER <= len(inputs) < wanted:
        return inputs
    # Null is the default of every field.
    return [*inputs, *[None] * (wanted - len(inputs))]


def publish(studio: Studio) -> None:
    """Adds the endpoints to the Blocks that is open now."""
    api = Api(studio)

    async def generate(*values: Any) -> list[dict[str, Any]]:
        *given, request = values
        return await api.generate(dict(zip(names(), given, strict=True)), request)

    generate.__doc__ = field_docs.endpoint(FIELDS, {CONFIRM: _CONFIRMS})
    gr.api(
        with_parameters(generate, parameters()),
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
