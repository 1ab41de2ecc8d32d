"""Where a request comes from, as the network and the platform tell it: never the client's word."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from app import hosting
from app.ui.guards import access

UNKNOWN = "unknown"
GRACE_SECONDS = 300.0
"""For how long a visitor may be away before their job is stopped: a reload, a tunnel on the way,
a telephone that is locked for a moment."""


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Who queues a job: the address, and for how many seconds nobody may ask for it.

    A person at the computer may come back whenever they like: `grace` is None.
    """

    client: str = ""
    grace: float | None = None


def network(client: str) -> str:
    """The address, or of IPv6 the network that one customer has."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def of_scope(scope: Mapping[str, Any]) -> str:
    """The network that a request comes from.

    uvicorn has put in what a proxy on this machine says (FORWARDED_ALLOW_IPS: or another one). On
    a Space every connection is the platform's own; what it writes stands at the end of the list,
    behind whatever the client itself has sent.
    """
    client = str((scope.get("client") or (UNKNOWN,))[0]) or UNKNOWN
    if hosting.on_space() and not _is_public(client):
        told = ",".join(Headers(raw=list(scope.get("headers", ()))).getlist("x-forwarded-for"))
        passed = [one.strip() for one in told.split(",")]
        client = next((one for one in reversed(passed) if _is_public(one)), client)
    return network(client)


def sender(request: Any) -> Sender:
    """Who sent a gradio request."""
    scope = getattr(getattr(request, "request", None), "scope", None)
    if not isinstance(scope, Mapping):
        return Sender(client=UNKNOWN, grace=GRACE_SECONDS)
    grace = None if access.may_administer(request) else GRACE_SECONDS
    return Sender(client=of_scope(scope), grace=grace)


def _is_public(client: str) -> bool:
    try:
        return ipaddress.ip_address(client.partition("%")[0]).is_global
    except ValueError:
        return False
