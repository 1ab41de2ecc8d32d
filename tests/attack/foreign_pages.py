"""A page of somebody else in the browser of the person at the computer."""

from __future__ import annotations

import itertools
from urllib.parse import urlsplit

from tests.attack.attack import Attack, Target, must

# What reads and what changes, of gradio and of ours.
_ROUTES = (
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/studio/alive"),
    ("GET", "/studio/pictures/2026-01-01/000000-1-abcdef.png"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/call/generate"),
    ("POST", "/gradio_api/upload"),
    ("OPTIONS", "/gradio_api/queue/join"),
)


def _hosts(port: int) -> list[str]:
    names = [
        "evil.example",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "127.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "localhost.",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "0.0.0.0",
        "[::]",
        "127.0.0.2",
    ]
    others = ["localhost", "127.0.0.1", "127.0.0.1:80", f"localhost:{port + 1}", ""]
    return [f"{name}:{port}" for name in names] + others


def _foreign_hosts(target: Target) -> str:
    port = urlsplit(target.address).port or 80
    tried = list(itertools.product(_hosts(port), _ROUTES))
    with target.client() as http:
        for host, (method, path) in tried:
            answer = http.request(method, path, headers={"Host": host})
            must(
                answer.status_code in (400, 403), f"{method} {path} as {host}: {answer.status_code}"
            )
    return f"{len(tried)} requests refused"


def _origins(port: int) -> list[dict[str, str]]:
    named = [
        "http://evil.example",
        "null",
        f"http://localhost:{port + 1}",
        f"http://127.0.0.1:{port + 1}",
        "http://127.0.0.1",
        f"http://[::1]:{port}",
        f"https://127.0.0.1:{port}",
        f"http://127.0.0.1:{port}@evil.example",
        f"http://127.0.0.1:{port}.evil.example",
        f"http://user@127.0.0.1:{port}",
        f"file://127.0.0.1:{port}",
        "",
    ]
    sites = [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "nonsense"},
    ]
    return [{"Origin": one} for one in named] + sites


def _foreign_origins(target: Target) -> str:
    port = urlsplit(target.address).port or 80
    tried = list(itertools.product(_origins(port), _ROUTES))
    with target.client() as http:
        for headers, (method, path) in tried:
            answer = http.request(method, path, headers=headers)
            what = f"{method} {path} with {headers}: {answer.status_code}"
            must(answer.status_code == 403, what)
            must(not any("access-control" in name for name in answer.headers), what)
    return f"{len(tried)} requests refused"


ATTACKS = [
    Attack(
        topic="foreign pages",
        promise="a name that is not the studio's own is refused on every route",
        run=_foreign_hosts,
    ),
    Attack(
        topic="foreign pages",
        promise="a page of another origin is refused on every route, and gets no CORS headers",
        run=_foreign_origins,
    ),
]
