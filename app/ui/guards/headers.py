"""What every answer says to the browser: nothing is for other pages, nothing comes from there."""

from __future__ import annotations

import secrets

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import hosting
from app.ui.guards.refusals import Refusals

NONCE = "pixart.nonce"
# The frame in which Hugging Face shows a Space.
_PLATFORM = "https://huggingface.co"
# Whatever is no page loads nothing: pictures, files that somebody uploaded, JSON.
_FAULT = "The studio could not answer this request; its log says more."
_NO_PAGE = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _frame_ancestors() -> str:
    return "frame-ancestors " + (_PLATFORM if hosting.on_space() else "'none'")


def page_policy(nonce: str) -> str:
    """The Content-Security-Policy of the page: its own files, and scripts that carry `nonce`.

    gradio makes functions of strings (`js=` of events, js_on_load), and writes styles of its own.
    """
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' 'nonce-{nonce}' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "media-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            _frame_ancestors(),
        )
    )


def form_policy() -> str:
    """The policy of the page that asks for a token: a style, and a form that leads here."""
    rules = ("default-src 'none'", "style-src 'unsafe-inline'", "form-action 'self'")
    return "; ".join((*rules, "base-uri 'none'", _frame_ancestors()))


class SafeHeaders:
    """ASGI middleware, the outermost: no answer is for other pages, and none is a traceback."""

    def __init__(self, app: ASGIApp, *, refusals: Refusals) -> None:
        self._app = app
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on and dresses the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[NONCE] = secrets.token_urlsafe(16)

        started = False

        async def dressed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": list(message.get("headers", []))}
                _dress(MutableHeaders(raw=message["headers"]), scope)
            await send(message)

        try:
            await self._app(scope, receive, dressed)
        except Exception as error:
            self._refusals.fault(error, scope)
            if not started:
                await PlainTextResponse(_FAULT, 500)(scope, receive, dressed)


def _dress(headers: MutableHeaders, scope: Scope) -> None:
    # gradio answers every Origin with leave to read.
    for name in [name for name in headers if name.lower().startswith("access-control-")]:
        del headers[name]
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers.setdefault("Content-Security-Policy", f"{_NO_PAGE}; {_frame_ancestors()}")
