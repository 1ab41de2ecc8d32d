"""Which proxy a download takes, as the environment or the system says.

What curl, browsers and desktops understand is understood here: networks and bracketed addresses in
no_proxy, `socks://`, which GNOME writes, and addresses without a scheme. httpx fails over each.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import ssl
from urllib.request import getproxies

import httpx

from pipelines.errors import DownloadError, printable

_SCHEMES = {"http": "http", "https": "https", "socks5": "socks5", "socks5h": "socks5h"}
# GNOME and others mean version 5 by it.
_SCHEMES["socks"] = "socks5"


def proxy_for(url: httpx.URL) -> str | None:
    """The proxy to ask for `url`, None for none. Raises DownloadError for one that cannot be."""
    listed = getproxies()
    text = (listed.get(url.scheme) or listed.get("all") or "").strip()
    if not text or _is_excepted(url, listed.get("no", "")):
        return None
    scheme, _, rest = text.rpartition("://")
    known = _SCHEMES.get(scheme.lower() or "http")
    shown = printable(rest.rpartition("@")[2], 80)
    if known is None:
        raise DownloadError(
            f"The proxy {printable(scheme, 20)}://{shown} is of a kind that is not known here.",
            "Give an http or socks5 proxy in HTTPS_PROXY or ALL_PROXY, or unset it.",
        )
    if known.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise DownloadError(
            f"Downloads through the SOCKS proxy {shown} need one more package.",
            "Install it with: .venv/bin/python -m pip install socksio; or unset ALL_PROXY.",
        )
    try:
        made = f"{known}://{rest}"
        if not httpx.URL(made).host:
            raise httpx.InvalidURL("no host")
    except httpx.InvalidURL:
        raise DownloadError(
            f"“{shown}” is not the address of a proxy.", "Check HTTPS_PROXY and ALL_PROXY."
        ) from None
    return made


def _is_excepted(url: httpx.URL, no_proxy: str) -> bool:
    """Whether `no_proxy` names the host of `url`: by name, ending, address or network."""
    host = url.host.strip("[]").lower().rstrip(".")
    for entry in no_proxy.lower().split(","):
        name, port = _split(entry.strip())
        if port and port != str(url.port or {"http": 80, "https": 443}.get(url.scheme)):
            continue
        if name == "*":
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            plain = name.lstrip("*").lstrip(".")
            if plain and (host == plain or host.endswith(f".{plain}")):
                return True
    return False


def _split(entry: str) -> tuple[str, str]:
    """(host, port) of an entry of no_proxy; IPv6 may stand in brackets or without."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, rest.removeprefix(":")
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""


def certificates() -> ssl.SSLContext:
    """The authorities to trust, those of $SSL_CERT_FILE or $SSL_CERT_DIR if set.

    Raises DownloadError where they cannot be read.
    """
    # It is a file that keys are written to, for whoever watches the line; it may be gone.
    kept = os.environ.get("SSLKEYLOGFILE")
    try:
        if kept and not os.access(os.path.dirname(kept) or ".", os.W_OK):
            del os.environ["SSLKEYLOGFILE"]
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        place = printable(os.environ.get(name, ""), 200)
        why = printable(error.strerror or error, 80)
        raise DownloadError(
            f"{name} names {place}, which cannot be used ({why}).",
            "Unset it, or let it name a file of certificates.",
        ) from None
