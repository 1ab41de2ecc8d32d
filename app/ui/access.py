"""Who may reach the page: the machine itself, or whoever holds the share token."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import hosting
from pipelines.errors import RequestError

COOKIE = "pixart-studio-access"
# What proxies and tunnels add: the person is elsewhere, though the proxy may be here.
_FORWARDED = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "cf-connecting-ip",
)
_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>PixArt Studio</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{margin:0;min-height:100vh;display:grid;place-items:center;background:#0b0b0f;
color:#ececf1;font:16px/1.5 system-ui,sans-serif}form{display:grid;gap:12px;width:min(320px,90vw)}
input,button{font:inherit;padding:10px 12px;border-radius:10px;border:1px solid #3a3a46;
background:#15151c;color:inherit}button{background:#7c4dff;border-color:#7c4dff;color:#fff}</style>
<form method="get"><h1 style="font-size:20px;margin:0">PixArt Studio</h1>
<label for="token">This studio asks for its share token.</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus>
<!--said--><button>Open the studio</button></form></html>"""


def is_loopback(host: str) -> bool:
    """True where only this machine can reach `host`."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def may_administer(client: str | None, headers: Mapping[str, str]) -> bool:
    """True for a person at this machine: only there may models be downloaded and removed.

    A share token lets people paint; whoever comes with it from elsewhere, or through a proxy or
    tunnel that says so, is a visitor, and so is everybody on a Space.
    """
    if hosting.on_space() or client is None:
        return False
    if any(name in headers for name in _FORWARDED):
        return False
    return is_loopback(client.removeprefix("::ffff:"))


def check(host: str, share_token: str | None) -> None:
    """Raises RequestError where the page would be open to others without a token."""
    if is_loopback(host) or share_token or hosting.on_space():
        return
    raise RequestError(
        "host",
        f"With --host {host} everybody on the network could use this studio, so give a"
        " --share-token as well (or set PIXART_STUDIO_SHARE_TOKEN).",
    )


def is_address(host: str) -> bool:
    """True for a bare IP address, in brackets where it is one of IPv6."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _is_own_start(scope: Scope) -> bool:
    """True for the call by which gradio, from this machine, starts its own queue."""
    client = scope.get("client") or ("",)
    path = str(scope.get("path", "")).rstrip("/")
    return path == "/gradio_api/startup-events" and is_loopback(client[0])


class TokenGate:
    """ASGI middleware: every route answers only to a browser that showed the token once.

    The cookie holds a digest with a key of this process, so it is worth nothing elsewhere and
    nothing after a restart.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()
        key = secrets.token_bytes(32)
        self._pass = hmac.new(key, self._token, hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, asks for the token, or answers 401."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if _is_own_start(scope):
            await self._app(scope, receive, send)
            return
        if self._has_cookie(headers) or self._has_header(headers):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._answer(scope, headers)(scope, receive, send)

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    def _has_header(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        # Headers are decoded as Latin-1; the token was given as UTF-8.
        token = given.strip().encode("latin-1")
        return kind.lower() == "bearer" and hmac.compare_digest(token, self._token)

    def _has_cookie(self, headers: Headers) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(
            cookie.value.encode("utf-8", "surrogateescape"), self._pass.encode()
        )

    def _answer(self, scope: Scope, headers: Headers) -> Response:
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and self._same(given):
            rest = urlencode([(k, v) for k, v in query if k != "token"])
            # A path of its own, never what the client sent as a host: no open redirect.
            path = "/" + str(scope.get("path", "/")).lstrip("/")
            response: Response = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
            secure = headers.get("x-forwarded-proto", scope.get("scheme", "http")) == "https"
            response.set_cookie(COOKIE, self._pass, httponly=True, samesite="lax", secure=secure)
            return response
        if "text/html" in headers.get("accept", "") and scope.get("method") == "GET":
            wrong = '<p role="alert">That is not the token.</p>' if given is not None else ""
            return HTMLResponse(_FORM.replace("<!--said-->", wrong), 401)
        return PlainTextResponse("This studio asks for its share token.", 401)
