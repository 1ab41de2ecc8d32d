"""The door: which secret a request shows, and where people type it in."""

from __future__ import annotations

import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.markup import render
from app.tokens import AccessTokens
from app.ui.guards import access, bodies, clients
from app.ui.guards.guesses import Guesses
from app.ui.guards.headers import form_policy
from app.ui.guards.refusals import Refusals

Role = Literal["visitor", "admin"]
COOKIES: dict[Role, str] = {"visitor": "pixart-studio-access", "admin": "pixart-studio-admin"}
_MAX_BODY = 4096
_ASKS = {
    "visitor": "This studio asks for its share token.",
    "admin": "To administer this studio, give its admin token.",
}


class TokenGate:
    """ASGI middleware: notes who may administer, and where there is a share token opens only to
    whoever showed a secret once.

    The cookies hold digests with a key of this process, so they are worth nothing elsewhere and
    nothing after a restart.
    """

    def __init__(self, app: ASGIApp, *, tokens: AccessTokens, refusals: Refusals) -> None:
        self._app = app
        self._key = secrets.token_bytes(32)
        self._shared = tokens.share is not None
        self._locked = tokens.admin is not None
        given: dict[Role, str | None] = {"admin": tokens.admin, "visitor": tokens.share}
        self._digests = {role: self._digest(t.encode()) for role, t in given.items() if t}
        self._passes = {role: self._digest(role.encode() + d) for role, d in self._digests.items()}
        self._guesses = Guesses()
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, asks for a secret, or answers 401 or 429."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        role = self._shown(headers)
        answer: Response | None = None
        if scope["type"] == "http" and self._digests:
            role, answer = await self._spoken(scope, receive, headers, role)
        if answer is None and self._shared and role is None and not access.is_own_start(scope):
            answer = self._ask(scope, headers)
        if answer is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await answer(scope, receive, send)
            return
        client = (scope.get("client") or (None,))[0]
        by_address = not self._digests and access.is_at_the_computer(client, headers)
        scope[access.ADMIN] = by_address or (self._locked and role == "admin")
        scope[access.ENTRANCE] = self._locked
        await self._app(scope, receive, send)

    async def _spoken(
        self, scope: Scope, receive: Receive, headers: Headers, role: Role | None
    ) -> tuple[Role | None, Response | None]:
        """What a request says beside its cookies: who it is then, and what to answer at once."""
        path, method = scope["path"], scope["method"]
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and role != "admin":
            # Headers are decoded as Latin-1; the token was given as UTF-8.
            found, answer = self._guess(bearer.strip().encode("latin-1"), scope)
            return found or role, answer if role is None else None
        if path == f"/{access.ENTER}":
            if method != "POST":
                return role, self._form("admin" if role or not self._shared else "visitor", 200)
            try:
                body = await bodies.read(scope, receive, most=_MAX_BODY)
            except bodies.Refused as refused:
                self._refusals.note(refused.sentence, scope)
                return role, refused.answer()
            given = dict(parse_qsl(body.decode("latin-1"))).get("token", "")
            return role, self._enter(given, scope, headers, [])
        if path == "/" and method == "GET":
            raw = scope.get("query_string", b"").decode("latin-1")
            query = parse_qsl(raw, keep_blank_values=True)
            given_in_link = dict(query).get("token")
            if given_in_link is not None:
                rest = [(k, v) for k, v in query if k != "token"]
                return role, self._enter(given_in_link, scope, headers, rest)
        return role, None

    def _digest(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, "sha256")

    def _shown(self, headers: Headers) -> Role | None:
        """Who the cookies say it is."""
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return None
        for role, expected in self._passes.items():
            cookie = jar.get(COOKIES[role])
            value = cookie.value.encode("utf-8", "surrogateescape") if cookie else b""
            if hmac.compare_digest(value, expected.hex().encode()):
                return role
        return None

    def _guess(self, given: bytes, scope: Scope) -> tuple[Role | None, Response | None]:
        """Whose secret `given` is; with what to answer where it is nobody's."""
        client = clients.of_scope(scope)
        if wait := self._guesses.wait(client):
            self._refusals.note("too many wrong tokens", scope)
            said = f"Too many wrong tokens came from your address; try again in {wait} s."
            return None, PlainTextResponse(said, 429, {"Retry-After": str(wait)})
        digest, found = self._digest(given), None
        for role, expected in self._digests.items():
            if hmac.compare_digest(digest, expected):
                found = found or role
        if found is not None:
            return found, None
        self._guesses.wrong(client)
        self._refusals.note("a wrong token", scope)
        return None, PlainTextResponse("That is not a token of this studio.", 401)

    def _enter(
        self, given: str, scope: Scope, headers: Headers, rest: list[tuple[str, str]]
    ) -> Response:
        """Opens the page to whoever gave a secret, or asks again."""
        role, refused = self._guess(given.encode("utf-8", "surrogateescape"), scope)
        if role is None:
            again = refused is not None and refused.status_code == 401
            return self._form("visitor", 401, wrong=True) if again or refused is None else refused
        # A path of our own, never what the client sent: no open redirect.
        response = RedirectResponse(f"/?{urlencode(rest)}" if rest else "/", 303)
        secure = headers.get("x-forwarded-proto", scope.get("scheme", "http")) == "https"
        for name in ("visitor", "admin") if role == "admin" else ("visitor",):
            if name in self._passes:
                response.set_cookie(
                    COOKIES[name],
                    self._passes[name].hex(),
                    httponly=True,
                    # A link of another site opens the page; it does not come as administrator.
                    samesite="strict" if name == "admin" else "lax",
                    secure=secure,
                )
        return response

    def _ask(self, scope: Scope, headers: Headers) -> Response:
        if "text/html" in headers.get("accept", "") and scope.get("method") == "GET":
            return self._form("visitor", 401)
        return PlainTextResponse(_ASKS["visitor"], 401)

    def _form(self, asked: Role, status: int, *, wrong: bool = False) -> Response:
        asks = _ASKS[asked if self._shared else "admin"]
        html = render(
            "ui/guards/gate.html", "form", action=f"/{access.ENTER}", asks=asks, wrong=wrong
        )
        policy = {"Content-Security-Policy": form_policy(), "Cache-Control": "no-store"}
        return HTMLResponse(html, status, policy)
