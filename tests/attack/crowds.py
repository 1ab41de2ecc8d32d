"""One visitor who is many: connections on which nothing happens, jobs that nobody waits for."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx

from tests.attack.attack import Attack, NotTried, Target, must

_CONNECTIONS = 40
_MANY, _FEW, _LONG = 30, 1, 100


def shown(target: Target) -> dict[str, str]:
    """The headers of a visitor who has the share token, where there is one."""
    return {"Authorization": f"Bearer {target.share_token}"} if target.share_token else {}


@contextmanager
def _crowd(target: Target, said: bytes) -> Iterator[None]:
    """So many connections that begin with `said` and then do nothing."""
    place = urlsplit(target.address)
    with ExitStack() as stack:
        for _ in range(_CONNECTIONS):
            made = socket.create_connection((place.hostname, place.port), timeout=20)
            stack.enter_context(made)
            made.sendall(said)
        yield


def _idle(target: Target) -> str:
    host = urlsplit(target.address).netloc.encode()
    half = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nX-Slow: "
    body = (
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: "
        + host
        + b"\r\nContent-Length: 99\r\n\r\n{"
    )
    longest = 0.0
    for said in (b"", half, body):
        with _crowd(target, said):
            for _ in range(3):
                began = time.monotonic()
                with target.client(**shown(target)) as http:
                    must(http.get("/").status_code == 200, "the page does not answer")
                longest = max(longest, time.monotonic() - began)
    return f"3 times {_CONNECTIONS} connections, the page after {longest:.1f} s at most"


def _wish(count: int, steps: int = 2) -> list[object]:
    return ["a red apple", "", "", "", steps, None, "64x64", "", count, "None"]


def _post(http: httpx.Client, count: int, *, steps: int = 2) -> str:
    body = {"data": _wish(count, steps)}
    return str(http.post("/gradio_api/call/generate", json=body).json()["event_id"])


def _painted(target: Target) -> int:
    return sum(1 for _ in (target.workspace / "outputs").rglob("*.png")) if target.workspace else 0


def _gone(target: Target) -> str:
    """A client that is killed while its pictures are painted, and the one that waits behind it."""
    with target.client(**shown(target)) as http:
        http.timeout = httpx.Timeout(120)
        first = http.get(f"/gradio_api/call/generate/{_post(http, 1)}").text
        must("event: complete" in first, first[-200:])
        # So long that no machine has painted them before it is noticed.
        before, killed = _painted(target), _post(http, _MANY, steps=_LONG)
        with http.stream("GET", f"/gradio_api/call/generate/{killed}"):
            end = time.monotonic() + 90
            while target.workspace and _painted(target) - before < 3:
                must(time.monotonic() < end, "nothing is painted")
                time.sleep(0.05)
        began = time.monotonic()
        told = http.get(f"/gradio_api/call/generate/{_post(http, _FEW)}").text
        must("event: complete" in told, told[-200:])
        waited, painted = time.monotonic() - began, _painted(target) - before - _FEW
    must(painted < _MANY, f"{painted} pictures were painted for nobody")
    return f"{painted} of {_MANY} painted, the next visitor waited {waited:.1f} s"


def _many_names(target: Target) -> str:
    """65 jobs under 65 names: the sessions are the client's own words."""
    if not target.share_token:
        raise NotTried("whoever reaches it is the person at the computer, who may queue 1,000 jobs")
    with target.client(**shown(target)) as http:
        config = http.get("/config").json()
        found = next(one for one in config["dependencies"] if one["api_name"] == "paint")
        values = {one["id"]: one.get("props", {}).get("value") for one in config["components"]}
        form = [values.get(name) for name in found["inputs"]]
        refused = 0
        for number in range(65):
            data = [None, f"name-of-nobody-{number:04d}", "a red apple", *form[3:]]
            body = {"data": data, "session_hash": f"nobody{number}"}
            event = http.post("/gradio_api/call/paint", json=body).json()["event_id"]
            told = http.get(f"/gradio_api/call/paint/{event}").text
            must("event: complete" in told, told[-200:])
            refused += "waiting already" in told
        for number in range(65):
            data = [None, f"name-of-nobody-{number:04d}"]
            body = {"data": data, "session_hash": f"nobody{number}"}
            http.post("/gradio_api/call/stop", json=body)
    must(refused >= 65 - 30, f"only {refused} of 65 were refused")
    return f"{refused} of 65 refused, room for {64 - (65 - refused)} others"


def _calls(target: Target) -> str:
    """More calls of the API at once than gradio's queue has room for."""
    calls, other = 120, {"X-Forwarded-For": "203.0.113.77"}
    sent = {**shown(target), "X-Forwarded-For": "198.51.100.77"}
    with target.client(**sent) as http, target.client(**{**shown(target), **other}) as visitor:
        for _ in range(calls):
            body = {"data": _wish(_MANY), "session_hash": "many-calls"}
            answer = http.post("/gradio_api/call/generate", json=body)
            must(answer.status_code in (200, 503), f"{answer.status_code}: {answer.text[:100]}")
        began, visitor.timeout = time.monotonic(), httpx.Timeout(120)
        told = visitor.get(f"/gradio_api/call/generate/{_post(visitor, _FEW)}").text
        waited = time.monotonic() - began
        event = http.post(
            "/gradio_api/call/stop_all", json={"data": [], "session_hash": "many-calls"}
        ).json()["event_id"]
        http.get(f"/gradio_api/call/stop_all/{event}")
    must("event: complete" in told, told[-200:])
    return f"{calls} calls at once; another visitor had a picture after {waited:.1f} s"


ATTACKS = [
    Attack(
        topic="crowds",
        promise="connections on which nothing happens do not keep the page from others",
        run=_idle,
    ),
    Attack(
        topic="crowds",
        promise="the job of a client that has gone is not painted to its end",
        run=_gone,
    ),
    Attack(
        topic="crowds",
        promise="calls of one visitor do not keep those of others from being heard",
        run=_calls,
    ),
    Attack(
        topic="crowds",
        promise="one visitor with 65 names leaves room for others",
        run=_many_names,
    ),
]
