"""Visits and calls without end: what the page process keeps of them.

python -m tests.attack.soak [VISITS] [CALLS]: starts a studio and prints what it takes on the way.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.attack.attack import Attack, NotTried, Target, must
from tests.attack.started import started

WARM_UP, VISITS, CALLS = 150, 2000, 2000
GROWTH = 0.05
# The short form sees a leak of 75 kB in each visit and call: behind every other attack, the process
# held 191.8 MB after 75 of both, and 192.0 MB after 150.
SHORT_WARM_UP, SHORT, SHORT_GROWTH = 75, 75, 0.03
_CALL = ["a cat", "", "nobody", "", None, None, "", "", 1, "None"]
_PAGE = ("/config", "/theme.css", "/gradio_api/info", "/studio/alive")


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def visit(http: httpx.Client, session: str) -> None:
    """What a browser does with a page: opens it, has it filled, looks once, and goes."""
    must(http.get("/").status_code == 200, "the page did not open")
    config = http.get("/config").json()
    for path in _PAGE[1:]:
        http.get(path)
    for name in ("open", "tick"):
        found = next(one for one in config["dependencies"] if one["api_name"] == name)
        data: list[Any] = [None] * len(found["inputs"])
        data[1] = f"{session:a>20}"
        _event(http, {"data": data, "fn_index": found["id"], "session_hash": session})


def _event(http: httpx.Client, body: dict[str, Any]) -> None:
    http.post("/gradio_api/queue/join", json=body).raise_for_status()
    query = {"session_hash": body["session_hash"]}
    with http.stream("GET", "/gradio_api/queue/data", params=query) as answer:
        lines = [line for line in answer.iter_lines() if "process_completed" in line]
    must(len(lines) == 1, f"{len(lines)} answers to an event")


def call(http: httpx.Client) -> None:
    """What a program does: asks, and listens until it is told."""
    event = http.post("/gradio_api/call/generate", json={"data": _CALL}).json()["event_id"]
    told = http.get(f"/gradio_api/call/generate/{event}").text
    # A model that is not there: the call goes all the way, and nothing is painted.
    must("event: error" in told and "nobody" in told, told[-200:])


def grown(target: Target, visits: int, calls: int) -> Iterator[tuple[str, int]]:
    """Does so many of both, in turns; what the process held before and in between."""
    if target.pid is None:
        raise NotTried("its process is not known")
    headers = {"Authorization": f"Bearer {target.share_token}"} if target.share_token else {}
    warm_up, parts = (SHORT_WARM_UP, 1) if target.short else (WARM_UP, 10)
    with target.client(**headers) as http:
        for number in range(warm_up):
            visit(http, f"warm{number}")
            call(http)
        yield f"after {warm_up} of both", resident(target.pid)
        for part in range(parts):
            for number in range(visits // parts):
                visit(http, f"visit{part}x{number}")
            for _ in range(calls // parts):
                call(http)
            done = (visits // parts * (part + 1), calls // parts * (part + 1))
            yield "{} visits and {} calls more".format(*done), resident(target.pid)


def _flat(target: Target) -> str:
    if target.short and not target.share_token:
        raise NotTried("in the short form the studio that visitors share stands for both")
    visits, calls = (SHORT, SHORT) if target.short else (VISITS, CALLS)
    held = [held for _, held in grown(target, visits, calls)]
    growth = held[-1] / held[0] - 1
    figures = f"{held[0] / 1e6:.0f} MB, then {held[-1] / 1e6:.0f} MB ({growth:+.1%})"
    must(growth < (SHORT_GROWTH if target.short else GROWTH), figures)
    return f"{visits} visits and {calls} calls: {figures}"


ATTACKS = [
    Attack(
        topic="soak",
        promise="visits and calls without end leave less than 5 % more memory in use",
        run=_flat,
    ),
]


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    visits, calls = [*map(int, argv), VISITS, CALLS][:2]
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as target:
        held = []
        for said, now in grown(target, visits, calls):
            held.append(now)
            print(f"{now / 1e6:6.1f} MB {now / held[0] - 1:+6.1%}  {said}", flush=True)
    return int(held[-1] / held[0] - 1 >= GROWTH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
