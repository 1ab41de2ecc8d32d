"""Whose page asks: the studio's own, a program, or a page of somebody else, which gets nothing.

A browser lets any page send requests to any address, this machine's too, and tells us which page it
was (`Origin`, `Sec-Fetch-Site`) and by which name it found us (`Host`). Pages cannot change these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app import hosting
from app.ui.guards import access
from app.ui.guards.refusals import Refusals
from pipelines.errors import RequestError, printable

_SPACES = ".hf.space"
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Host names and addresses as browsers write them; nothing else is worth a thought.
_AUTHORITY = re.compile(
    r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_-])?)(?::([1-9][0-9]{0,4}))?"
)
# What gradio would believe about its own address, whoever sends it.
_ADDRESS_HEADERS = (b"x-forwarded-host", b"x-gradio-server")


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A host and its port, as in `Host`; no port where none is written."""

    host: str
    port: int | None

    def is_at(self, port: int, scheme: str) -> bool:
        """True where it leads to `port`, for a page of `scheme`."""
        return (self.port or _DEFAULT_PORTS.get(scheme)) == port


def authority(text: str) -> Authority | None:
    """What `text` means as a `Host`, or None where it is none."""
    found = _AUTHORITY.fullmatch(text.lower()) if text.isascii() else None
    if found is None:
        return None
    port = int(found[2]) if found[2] else None
    return Authority(host=found[1], port=port) if port is None or 0 < port < 65536 else None


@dataclass(frozen=True, kw_only=True)
class Page:
    """Where a page comes from: what browsers call its origin."""

    scheme: str
    authority: Authority

    def __str__(self) -> str:
        port = "" if self.authority.port is None else f":{self.authority.port}"
        return f"{self.scheme}://{self.authority.host}{port}"


def page(origin: str) -> Page | None:
    """Reads an `Origin`; None for "null" and whatever else is none of http or https."""
    scheme, _, rest = origin.lower().partition("://")
    found = authority(rest)
    if scheme not in _DEFAULT_PORTS or found is None:
        return None
    return Page(scheme=scheme, authority=found)


def public_url(text: str) -> Page:
    """The address under which a reverse proxy or a tunnel shows the studio. Raises RequestError."""
    found = page(text.strip().removesuffix("/"))
    if found is None:
        raise RequestError(
            "public_url",
            f"“{printable(text)}” is not the address of a page.",
            "Give one as https://studio.example.org, without a path.",
        )
    if found.authority.port == _DEFAULT_PORTS[found.scheme]:
        # Browsers leave it out.
        found = replace(found, authority=replace(found.authority, port=None))
    return found


@dataclass(frozen=True, kw_only=True)
class Names:
    """The names under which the studio may be asked for."""

    hosts: frozenset[str]
    """Host names that are known with the studio's own port."""
    public: Page | None = None
    any_host: bool = False
    """Bound to every address, the machine has names that it cannot know; the token guards it."""
    space: tuple[str, ...] | None = None
    """On a Space: the names that it says; None elsewhere."""

    @classmethod
    def of(cls, host: str, public: Page | None = None) -> Names:
        """The names of a studio that listens on `host`."""
        if hosting.on_space():
            return cls(hosts=frozenset(_LOCAL), public=public, space=hosting.space_hosts())
        if access.is_everywhere(host):
            return cls(hosts=frozenset(_LOCAL), public=public, any_host=True)
        bare = host.strip("[]").lower()
        return cls(hosts=frozenset([*_LOCAL, f"[{bare}]" if ":" in bare else bare]), public=public)

    def knows(self, asked: Authority, port: int) -> bool:
        """True where `asked`, the Host of a request to our `port`, is a name of the studio."""
        if self.any_host or self.is_public(asked):
            return True
        if self.space is not None and self._is_space(asked.host):
            return True
        return asked.host in self.hosts and asked.is_at(port, "http")

    def is_public(self, asked: Authority) -> bool:
        """True where `asked` is the host of the public address, its default port written or not."""
        if self.public is None or asked.host != self.public.authority.host:
            return False
        default = _DEFAULT_PORTS[self.public.scheme]
        return (asked.port or default) == (self.public.authority.port or default)

    def _is_space(self, host: str) -> bool:
        # The platform's own proxies use names of theirs, and its health checks bare addresses.
        named = host == "localhost" or host in (self.space or ()) or host.endswith(_SPACES)
        return named or access.is_address(host)

    def is_own(self, origin: str, asked: Authority) -> bool:
        """True where `origin` is the page that was asked for as `asked`."""
        theirs = page(origin)
        if theirs is None or theirs == self.public:
            return theirs is not None
        if self.is_public(asked):
            return False
        # A Host without a port means the default one of the page's scheme.
        port = asked.port or _DEFAULT_PORTS[theirs.scheme]
        if theirs.authority.host == asked.host and theirs.authority.is_at(port, theirs.scheme):
            # Where no proxy can stand between, nobody speaks https at our port.
            return theirs.scheme == "http" or self.any_host or self.space is not None
        of_space = self.space is not None and theirs.authority.host in self.space
        return of_space and theirs.scheme == "https" and theirs.authority.port is None


class Origins:
    """ASGI middleware: 403 for foreign names and foreign pages, whatever they ask."""

    def __init__(self, app: ASGIApp, *, names: Names, refusals: Refusals) -> None:
        self._app = app
        self._names = names
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it before anything of it is read."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if reason := self._foreign(scope):
            await self._refusals.forbid(reason, scope, receive, send)
            return
        scope["headers"] = self._without_strange_addresses(scope)
        await self._app(scope, receive, send)

    def _foreign(self, scope: Scope) -> str:
        """Why the request is foreign; "" where it is not."""
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        asked = authority(hosts[0]) if len(hosts) == 1 else None
        port = (scope.get("server") or ("", 0))[1] or 0
        if asked is None or not self._names.knows(asked, port):
            return f"the studio is not called “{printable(', '.join(hosts), 80)}”"
        if any(not self._names.is_own(origin, asked) for origin in origins) or len(origins) > 1:
            return f"a page of “{printable(', '.join(origins), 80)}” asked"
        sites = headers.getlist("sec-fetch-site")
        if all(site in ("same-origin", "none") for site in sites):
            return ""
        # A link of another site may open the page; what is in it asks again, as the page itself.
        link = not origins and self._opens_page(scope, headers)
        return "" if link else f"a page of another site ({printable(', '.join(sites))}) asked"

    def _opens_page(self, scope: Scope, headers: Headers) -> bool:
        frames = () if self._names.space is None else ("iframe",)
        return (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and scope["path"] == "/"
            and headers.getlist("sec-fetch-mode") == ["navigate"]
            and headers.get("sec-fetch-dest", "document") in ("document", *frames)
        )

    def _without_strange_addresses(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The headers without what a proxy says of our address, unless it is known to be ours."""
        kept: list[tuple[bytes, bytes]] = []
        for name, value in scope["headers"]:
            if name.lower() in _ADDRESS_HEADERS and not self._is_ours(name, value):
                continue
            kept.append((name, value))
        return kept

    def _is_ours(self, name: bytes, value: bytes) -> bool:
        said = authority(value.decode("latin-1").strip())
        if said is None or name.lower() != b"x-forwarded-host":
            return False
        if self._names.is_public(said):
            return True
        space = self._names.space
        return space is not None and (said.host in space or said.host.endswith(_SPACES))
