"""Ports, addresses, and whether there is a desktop to open a browser on."""

from __future__ import annotations

import asyncio
import errno
import importlib.abc
import importlib.machinery
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlencode

from app.tokens import AccessTokens
from app.ui.guards import access
from pipelines.errors import RequestError, printable

TRIES = 50
_STUBS = "gradio.component_meta"


def canonical(host: str) -> str:
    """`host` as browsers write it, without brackets: 0 is 0.0.0.0, 0:0::1 is ::1."""
    name = host.strip("[]").lower()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError, ValueError):
        return name
    return str(found[0][4][0])


def _is_free(host: str, port: int) -> bool:
    """True where the studio can listen at `port`; gradio wants that of 127.0.0.1 in any case."""
    names = [host.strip("[]"), "127.0.0.1"]
    if names[0] == "::":
        names.append("0.0.0.0")
    return all(_is_free_at(name, port) for name in dict.fromkeys(names))


def _is_free_at(host: str, port: int) -> bool:
    name = host
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if family == socket.AF_INET6:
            # As asyncio does it: what IPv4 has is asked for apart.
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((name, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise RequestError(
                "host", f"The studio cannot listen on {printable(host)} ({error.strerror})."
            ) from None
        except (TypeError, UnicodeError):
            raise RequestError(
                "host", f"“{printable(host)}” is no name and no address of this computer."
            ) from None
    return True


def free_port(host: str, port: int | None, first: int) -> int:
    """`port` if it is free, or the first free one from `first` on. Raises RequestError."""
    if port is not None:
        if not 1 <= port <= 65535:
            raise RequestError("port", f"{port} is not a port; ports are 1 to 65535.")
        if not _is_free(host, port):
            raise RequestError(
                "port", f"Port {port} is taken or not allowed; choose another with --port."
            )
        return port
    for candidate in range(first, first + TRIES + 1):
        if _is_free(host, candidate):
            return candidate
    raise RequestError(
        "port", f"The ports {first} to {first + TRIES} are all taken; choose one with --port."
    )


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds the page."""
    name = host.strip("[]")
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    return f"http://{bracketed(name)}:{port}"


def bracketed(host: str) -> str:
    """`host` as it stands in an address: IPv6 in brackets."""
    name = host.strip("[]")
    return f"[{name}]" if ":" in name else name


@contextmanager
def asking_nobody_else() -> Iterator[None]:
    """While gradio is imported, and starts, it sends requests to itself: never through a proxy.

    The libraries that it asks with also read the environment when they only make a client, and some
    values that curl and the desktop understand make them fail. Downloads read it for themselves.
    """
    kept = {name: value for name, value in os.environ.items() if _is_outward(name)}
    for name in kept:
        del os.environ[name]
    # Where the environment names none, the system's own settings would be asked.
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        os.environ.update(kept)


def _is_outward(name: str) -> bool:
    """Proxies, and files of certificates and keys, which may be gone."""
    small = name.lower()
    return small.endswith("_proxy") or small in ("ssl_cert_file", "ssl_cert_dir", "sslkeylogfile")


def invitations(address: str, tokens: AccessTokens) -> list[str]:
    """Who needs which secret; those that the studio made are said, as links."""
    lines = []
    if tokens.share is not None:
        link = f" with {_link(address, tokens.share)}" if "share" in tokens.made else ""
        lines.append(f"Visitors open it{link or ' with the share token'}")
    if tokens.admin is not None:
        made = _link(address, tokens.admin) if "admin" in tokens.made else ""
        way = f"with {made}" if made else f"at {address}/{access.ENTER}, with the admin token"
        lines.append(f"To administer it, open it {way}" if made else f"It is administered {way}")
    return lines


def _link(address: str, token: str) -> str:
    return f"{address}/?{urlencode({'token': token})}"


def has_desktop() -> bool:
    """True where a browser that is opened now would be seen by the person who started us."""
    hidden = (
        "SSH_CONNECTION",
        "SSH_TTY",
        "SSH_CLIENT",
        "CI",
        "SPACE_ID",
        "KUBERNETES_SERVICE_HOST",
    )
    if any(os.environ.get(name) for name in hidden):
        return False
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return False
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def one_loop() -> Iterator[None]:
    """Lends gradio one event loop while it is imported, built or launched.

    It makes a new one for each of its locks, with three open files, and closes none.
    """
    without_stub_files()
    import gradio.utils

    loop = asyncio.new_event_loop()
    lent = SimpleNamespace(**{**vars(asyncio), "new_event_loop": lambda: loop})
    kept = gradio.utils.asyncio
    gradio.utils.asyncio = lent  # type: ignore[assignment]
    try:
        yield
    finally:
        gradio.utils.asyncio = kept
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def without_servers() -> Iterator[None]:
    """Builds a page without the server that gradio makes for each step of that, three in all.

    `launch` makes the one that serves; the others take two thirds of the time, and are thrown away.
    """
    import gradio.blocks

    kept = gradio.blocks.App
    none = SimpleNamespace(create_app=lambda *_, **__: None)
    gradio.blocks.App = none  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        gradio.blocks.App = kept  # type: ignore[misc]


@contextmanager
def without_code_server() -> Iterator[None]:
    """Launches a page on a Space without the second server that gradio starts there.

    That one takes new code for the running program, on a port of its own and without a password.
    """
    # Here and not above: gradio reads its settings when it is imported.
    from gradio import http_server

    kept = http_server.get_space
    http_server.get_space = lambda: None
    try:
        yield
    finally:
        http_server.get_space = kept


def plain_log() -> None:
    """Lets the server write its log without colours, which escaped would be noise, and sparingly:
    clients decide how often it warns."""
    from uvicorn.config import LOGGING_CONFIG

    from app.ui.guards.refusals import Sparing

    server = logging.getLogger("uvicorn.error")
    if not any(isinstance(one, Sparing) for one in server.filters):
        server.addFilter(Sparing("lines of the server:"))
    LOGGING_CONFIG["formatters"]["default"]["use_colors"] = False


def without_stub_files() -> None:
    """Lets gradio be imported without writing .pyi files for editors beside its components.

    That takes half of the import time, and fails anyway where the packages are read-only.
    """
    if _STUBS not in sys.modules and not any(isinstance(f, _NoStubs) for f in sys.meta_path):
        sys.meta_path.insert(0, _NoStubs())


class _NoStubs(importlib.abc.MetaPathFinder):
    """Finds one module, and takes one function out of it after it was run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module as it is found otherwise, with its stub writer made idle."""
        if fullname != _STUBS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run: Any = spec.loader.exec_module

            def run_without(module: ModuleType) -> None:
                run(module)
                if hasattr(module, "create_or_modify_pyi"):
                    setattr(module, "create_or_modify_pyi", lambda *_: None)  # noqa: B010

            spec.loader.exec_module = run_without  # type: ignore[method-assign]
        return spec
