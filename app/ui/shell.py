"""The first bytes of the page and the files that belong to it: style, scripts, font, logo.

Gradio adds a head of its own only after its scripts have run. Until then a browser would show the
wrong theme and the wrong font, so ours goes into the HTML itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.markup import render
from app.ui.guards.headers import NONCE, page_policy

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"
STATIC = "studio/static"
SCRIPTS = f"{STATIC}/js"
_SERVED = {
    "studio.css": ("css/studio.css", "text/css; charset=utf-8"),
    "inter.woff2": ("fonts/inter.woff2", "font/woff2"),
    "logo.svg": ("logo.svg", "image/svg+xml"),
}
_SHEETS = ("base", "controls", "create", "canvas", "models", "gallery", "train", "jobs")
_FIRST_SCRIPTS = ("", "choices", "create", "jobs", "page")
"""The folders of what runs before another tab is opened."""
_EVENT = re.compile(rb'\btrigger\("([a-z]+)"')
_INLINE_SCRIPT = re.compile(rb"<script((?: (?!src)[a-z-]+(?:=\"[^\"]*\")?)*)>")
NO_SNIFF = {"X-Content-Type-Options": "nosniff"}


@cache
def asset(name: str) -> bytes:
    """A file under assets/; the style sheet is the sum of its parts."""
    if name == "css/studio.css":
        return b"\n".join((ASSETS / f"css/{part}.css").read_bytes() for part in _SHEETS)
    return (ASSETS / name).read_bytes()


@cache
def scripts() -> dict[str, bytes]:
    """The modules under assets/js, by the names with which they import each other."""
    root = ASSETS / "js"
    files = sorted(root.rglob("*.js"))
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


@cache
def _scripts_version() -> str:
    digest = hashlib.sha256()
    for name, text in scripts().items():
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:12]


def script(name: str) -> str:
    """The address of a module. The version of them all is a folder of it, so that what a module
    imports beside itself is of the same version and may be cached for ever, too."""
    if name not in scripts():
        raise FileNotFoundError(f"assets/js/{name}")
    return f"{SCRIPTS}/{_scripts_version()}/{name}"


def on_load(name: str) -> str:
    """What gradio runs for a component: hands it to the default function of a module.

    The events of the component are those that are named in this text, so the module's are.
    An address is relative to the page; in `import` it would be to the script of gradio.
    """
    events = sorted(set(_EVENT.findall(scripts()[name])))
    return (
        f"// {' '.join(json.dumps(event.decode()) for event in events)}\n"
        f"import(new URL({json.dumps(script(name))}, document.baseURI))"
        ".then((part) => part.default({ element, props, trigger, watch }));"
    )


def logo() -> str:
    """The logo as SVG markup."""
    return asset("logo.svg").decode("utf-8")


def address(name: str) -> str:
    """The address of a served file, with a version so that it may be cached for ever."""
    version = hashlib.sha256(asset(_SERVED[name][0])).hexdigest()[:12]
    return f"{STATIC}/{name}?v={version}"


async def _static(request: Request) -> Response:
    found = _SERVED.get(request.path_params["name"])
    if found is None:
        return Response(status_code=404)
    file, kind = found
    return _answer(asset(file), kind, known="v" in request.query_params)


async def _script(request: Request) -> Response:
    found = scripts().get(request.path_params["name"])
    if found is None:
        return Response(status_code=404)
    # A page that was loaded before the studio was updated gets what there is, for now.
    known = request.path_params["version"] == _scripts_version()
    return _answer(found, "text/javascript; charset=utf-8", known=known)


def _answer(content: bytes, kind: str, *, known: bool) -> Response:
    """A file; for ever where its address has its version."""
    cached = "public, max-age=31536000, immutable" if known else "no-cache"
    return Response(content, media_type=kind, headers={"Cache-Control": cached, **NO_SNIFF})


def routes() -> list[Route]:
    """The routes of the page's own files."""
    return [
        Route(f"/{SCRIPTS}/{{version}}/{{name:path}}", _script),
        Route(f"/{STATIC}/{{name}}", _static),
    ]


def head() -> bytes:
    """What goes in front of </head>: the theme first, so that nothing flashes."""
    # What the first tab needs is fetched together; the others bring their own when they open.
    needed = [name for name in scripts() if name.rpartition("/")[0] in _FIRST_SCRIPTS]
    return render(
        "ui/shell.html",
        "head",
        font=address("inter.woff2"),
        style=address("studio.css"),
        icon=address("logo.svg"),
        script=script("studio.js"),
        modules=[script(name) for name in needed],
    ).encode()


class Shell:
    """ASGI middleware: puts `head()` into the HTML of the page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rewrites the answer to GET /; everything else passes."""
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def collect(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            nonce = scope[NONCE]
            page = body.replace(b"</head>", head() + b"</head>", 1)
            # gradio's inline scripts and ours; those with a source need no leave but 'self'.
            page = _INLINE_SCRIPT.sub(rf'<script nonce="{nonce}"\1>'.encode(), page)
            if start is not None:
                headers = MutableHeaders(raw=list(start["headers"]))
                headers["content-length"] = str(len(page))
                headers["content-security-policy"] = page_policy(nonce)
                await send({**start, "headers": headers.raw})
            await send({"type": "http.response.body", "body": page})

        await self._app(scope, receive, collect)
