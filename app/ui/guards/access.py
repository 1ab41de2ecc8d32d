"""Who may reach the page, and who may administer the studio."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from app import hosting
from pipelines.errors import RequestError

ADMIN = "pixart.admin"
ENTRANCE = "pixart.entrance"
ENTER = "studio/enter"
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


def is_loopback(host: str) -> bool:
    """True where only this machine can reach `host`."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_everywhere(host: str) -> bool:
    """True where `host` stands for every address of this machine."""
    return host.strip("[]") in ("0.0.0.0", "::")


def is_address(host: str) -> bool:
    """True for a bare IP address, in brackets where it is one of IPv6."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def is_at_the_computer(client: str | None, headers: Mapping[str, str]) -> bool:
    """True for a person at this machine, as far as an address and a proxy that says so can tell.

    It counts only where the studio has no token: a tunnel or a proxy may say nothing, and then
    everybody seems to sit here. On a Space nobody does.
    """
    if hosting.on_space() or client is None:
        return False
    if any(name in headers for name in _FORWARDED):
        return False
    return is_loopback(client.removeprefix("::ffff:"))


def may_administer(request: Any) -> bool:
    """True where a gradio request comes from whom the gate (`gate.py`) let in to administer:
    models, deleting and starring in the gallery, imports, the doctor."""
    return _scope(request).get(ADMIN) is True


def refusal(what: str, request: Any) -> str:
    """Why a visitor may not do `what`, e.g. "Models are removed", and where else it is done."""
    if has_entrance(request):
        return f"{what} by whoever has the admin token."
    return f"{what} on the computer that the studio runs on."


def has_entrance(request: Any) -> bool:
    """True where an admin token exists, and the page should say where it is given."""
    return _scope(request).get(ENTRANCE) is True


def _scope(request: Any) -> Mapping[str, Any]:
    scope = getattr(getattr(request, "request", None), "scope", None)
    return scope if isinstance(scope, Mapping) else {}


def check(host: str, share_token: str | None) -> None:
    """Raises RequestError where the page would be open to others without a token."""
    if is_loopback(host) or share_token or hosting.on_space():
        return
    raise RequestError(
        "host",
        f"With --host {host} everybody on the network could use this studio, so give a"
        " --share-token as well (or set PIXART_STUDIO_SHARE_TOKEN); “auto” makes one.",
    )


def is_own_start(scope: Scope) -> bool:
    """True for the call by which gradio, from this machine, starts its own queue."""
    client = scope.get("client") or ("",)
    path = str(scope.get("path", "")).rstrip("/")
    return path == "/gradio_api/startup-events" and is_loopback(client[0])
