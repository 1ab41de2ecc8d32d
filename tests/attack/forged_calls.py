"""Programs that call the page's functions with what the page would never send."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx

from tests.attack.attack import Attack, Target, must

_CONTROL = "\x1b]0;owned\x07\x1b[31mred\r\nadmin: yes\x9b2J\u202e"
_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e308,
    10**30,
    "",
    _CONTROL,
    [],
    [[]] * 50,
    {},
    {"path": "/etc/passwd"},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": _CONTROL, "meta": {"_type": "gradio.FileData"}},
    {"url": "http://127.0.0.1:1/x", "path": "x", "meta": {"_type": "gradio.FileData"}},
    {"value": {"__type__": "update"}},
)
_BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b'{"data": 1}',
    b'{"data": [], "fn_index": "x"}',
    b'{"data": [], "fn_index": 99999, "session_hash": "x"}',
    b'{"data": [], "fn_index": -1, "session_hash": "x"}',
    b'{"data": [], "fn_index": 0, "session_hash": ["x"]}',
    b'{"data": [], "fn_index": 0, "event_data": "x", "session_hash": "x", "trigger_id": -7}',
    b"\xff\xfe\x00",
    b"[" * 50_000,
)


def _client(target: Target) -> httpx.Client:
    headers = {}
    if target.admin_token or target.share_token:
        headers["Authorization"] = f"Bearer {target.admin_token or target.share_token}"
    return httpx.Client(base_url=target.address, headers=headers, timeout=60, trust_env=False)


def _values(target: Target) -> str:
    """Every function of the page, with values of every kind in every place."""
    before, rng = len(target.said()), random.Random(13)
    rounds, count = (1 if target.short else 8), 0
    with _client(target) as http:
        listed = http.get("/config").json()["dependencies"]
        for found in listed * rounds:
            many = len(found["inputs"])
            body = {
                "data": [rng.choice(_VALUES) for _ in range(many)],
                "event_data": rng.choice(({"do": _CONTROL, "name": _CONTROL}, _CONTROL, None, [1])),
                "fn_index": found["id"],
                "session_hash": rng.choice(("attack", _CONTROL)),
            }
            answer = http.post("/gradio_api/run/predict", content=json.dumps(body), headers=_JSON)
            must(answer.status_code < 600, "no answer")
            count += 1
    return f"{count} calls, {_quiet(target, before)}"


_JSON = {"Content-Type": "application/json"}


def _bodies(target: Target) -> str:
    """Every route that takes a body, with bodies that are none."""
    before, count = len(target.said()), 0
    paths = (
        *("queue/join", "run/predict", "run/generate", "api/predict", "call/generate", "reset"),
        *("call/v2/generate", "cancel", "stream/x", "stream/x/close", "upload"),
        *("process_recording", "call/nothing", "call/%1b%5b31m", "component_server"),
    )
    with _client(target) as http:
        for path in paths:
            for body in _BODIES:
                http.post(f"/gradio_api/{path}", content=body, headers=_JSON)
                count += 1
        for path in (
            "file=/etc/passwd",
            "file=%00",
            "file=%1b%5b31m",
            "proxy=http://x",
            "stream/a/b/c/d.ts",
        ):
            http.get(f"/gradio_api/{path}")
            count += 1
        http.get("/?deep_link=%1b%5b31m&__theme=%0d%0a")
        http.get("/studio/pictures/%1b%5b31m/%0d%0a.png")
    return f"{count} requests, {_quiet(target, before)}"


def _quiet(target: Target, before: int) -> str:
    """What the log got of it. Raises Broken where it is a traceback or holds control characters."""
    said = target.said()[before:]
    must("Traceback" not in said, said[-2000:])
    control = sorted({c for c in said if c not in "\n\t" and not c.isprintable()})
    must(not control, f"control characters {control!r}")
    return f"{len(said.splitlines())} lines in the log"


ATTACKS = [
    Attack(
        topic="forged calls",
        promise="forged values leave lines in the log, no traceback, no control character",
        run=_values,
    ),
    Attack(
        topic="forged calls",
        promise="bodies that are none leave lines in the log, no traceback",
        run=_bodies,
    ),
]
