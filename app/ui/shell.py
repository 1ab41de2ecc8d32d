"""The first bytes of the page and the files that belong to it: style, scripts, font, logo.

Gradio adds a head of its own only after its scripts have run. Until then a browser would show the
wrong theme and the wrong font, so ours goes into the HTML itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from html import escape
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ui.guards.headers import NONCE, page_policy

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"
STATIC = "studio/static"
_SERVED = {
    "studio.css": ("css/studio.css", "text/css; charset=utf-8"),
    "studio.js": ("js/studio.js", "text/javascript; charset=utf-8"),
    "jobs.js": ("js/jobs.js", "text/javascript; charset=utf-8"),
    "inter.woff2": ("fonts/inter.woff2", "font/woff2"),
    "logo.svg": ("logo.svg", "image/svg+xml"),
}
_SHEETS = ("base", "controls", "create", "canvas", "models", "gallery", "jobs")
_INLINE_SCRIPT = re.compile(rb"<script((?: (?!src)[a-z-]+(?:=\"[^\"]*\")?)*)>")
NO_SNIFF = {"X-Content-Type-Options": "nosniff"}


@cache
def asset(name: str) -> bytes:
    """A file under assets/; the style sheet is the sum of its parts."""
    if name == "css/studio.css":
        return b"\n".join((ASSETS / f"css/{part}.css").read_bytes() for part in _SHEETS)
    return (ASSETS / name).read_bytes()


def script(name: str) -> str:
    """The text of assets/js/`name`."""
    return asset(f"js/{name}").decode("utf-8")


def call(module: str, function: str) -> str:
    """The script of an element that is left to `function` of the served ES module `module`.

    It gets the element, a function that sends data to the studio, and gradio's `watch`.
    """
    where = json.dumps(address(module))
    return (
        f"import(new URL({where}, document.baseURI))"
        # gradio looks for the names of events in the text of scripts.
        f'.then((module) => module.{function}(element, (data) => trigger("act", data), watch));'
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
    known = "v" in request.query_params
    cached = "public, max-age=31536000, immutable" if known else "no-cache"
    return Response(asset(file), media_type=kind, headers={"Cache-Control": cached, **NO_SNIFF})


def routes() -> list[Route]:
    """The routes of the page's own files."""
    return [Route(f"/{STATIC}/{{name}}", _static)]


def head() -> bytes:
    """What goes in front of </head>: the theme first, so that nothing flashes."""
    theme = (
        'try{document.documentElement.dataset.theme=localStorage.getItem("pixart-studio-theme")'
        '==="light"?"light":"dark"}catch{document.documentElement.dataset.theme="dark"}'
    )
    font = escape(address("inter.woff2"))
    face = (
        "@font-face{font-family:InterVariable;font-weight:100 900;font-display:swap;"
        f"src:url({json.dumps(address('inter.woff2'))}) format('woff2')}}"
    )
    return (
        f"<script>{theme}</script><style>{face}</style>"
        f'<link rel="preload" as="font" type="font/woff2" href="{font}" crossorigin>'
        f'<link rel="stylesheet" href="{escape(address("studio.css"))}">'
        f'<link rel="icon" type="image/svg+xml" href="{escape(address("logo.svg"))}">'
        f'<meta name="color-scheme" content="dark light">'
        f'<script defer src="{escape(address("studio.js"))}"></script>'
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
