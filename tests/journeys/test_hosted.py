"""The studio as a Hugging Face Space starts it: strangers come, and nobody sits at the machine.

The real studio in a process of its own with a Space's environment, on its processor and on
ZeroGPU (a fake of the platform's package, the real forks). How long the start took is printed.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from app.gallery import metadata
from tests import ports

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "fake_spaces"
HOST = "me-studio.hf.space"
HEADERS = {"Host": HOST, "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
VISITOR = "token-of-a-visitor"
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="a Space is Linux"),
]
# Python imports it first in the studio and in its painting process: it writes down who is called.
WATCH = """
import ipaddress, os, socket

def told(name, address):
    host = str(address[0]) if isinstance(address, tuple) else str(address or "")
    try:
        here = ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        here = host in ("", "localhost") or host.startswith("/") or host == socket.gethostname()
    if not here:
        with open(os.environ["CALLS_LOG"], "a") as log:
            log.write(f"{name} {host}\\n")

connect, look_up = socket.socket.connect, socket.getaddrinfo

def guarded_connect(self, address):
    told("connect", address)
    return connect(self, address)

def guarded_look_up(host, *arguments, **more):
    told("look up", (host,))
    return look_up(host, *arguments, **more)

socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_look_up
"""


@dataclass(frozen=True, kw_only=True)
class Space:
    """A running Space: its process, its client, its folders."""

    kind: str
    process: subprocess.Popen[str]
    http: httpx.Client
    port: int
    workspace: Path
    folder: Path

    def call(self, name: str, data: list[Any]) -> tuple[str, Any]:
        """Posts to an endpoint as a stranger's program would; (event, data)."""
        posted = self.http.post(f"/gradio_api/call/{name}", json={"data": data})
        assert posted.status_code == 200, posted.text
        body = self.http.get(f"/gradio_api/call/{name}/{posted.json()['event_id']}").text
        event, _, rest = body.strip().split("\n\n")[-1].partition("\n")
        return event.removeprefix("event: "), json.loads(rest.removeprefix("data: "))


@pytest.fixture(scope="module", params=["processor", "ZeroGPU"])
def space(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Space]:
    folder = tmp_path_factory.mktemp("space")
    (folder / "sitecustomize.py").write_text(WATCH, "utf-8")
    (folder / "calls.log").touch()
    port, workspace = ports.free(), folder / "workspace"
    zero = request.param == "ZeroGPU"
    variables = {
        "SYSTEM": "spaces",
        "SPACE_ID": "me/studio",
        "SPACE_HOST": HOST,
        "SPACE_AUTHOR_NAME": "me",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": "1",
        "GRADIO_ALLOWED_PATHS": "/",
        "PIXART_STUDIO_WORKSPACE": str(workspace),
        "PYTHONPATH": os.pathsep.join([str(folder), *([str(FAKE)] if zero else [])]),
        "CALLS_LOG": str(folder / "calls.log"),
        **(
            {"SPACES_ZERO_GPU": "true", "FAKE_SPACES_LOG": str(folder / "zero.log")} if zero else {}
        ),
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ | variables,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, timeout=120) as http:
        while True:
            try:
                page = http.get("/")
                break
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() - began < 120, "the page does not come"
                time.sleep(0.02)
        print(f"\na Space on its {request.param}: the page in {time.monotonic() - began:.1f} s")
        assert page.status_code == 200
        assert "PixArt Studio" in page.text
        yield Space(
            kind=request.param,
            process=process,
            http=http,
            port=port,
            workspace=workspace,
            folder=folder,
        )
    process.send_signal(signal.SIGTERM)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "Traceback" not in out, out
    assert "RELOAD" not in out


GENERATE = {
    "prompt": "a red apple on a light blue background",
    "negative": "",
    "model": "",
    "sampler": "",
    "steps": 4,
    "guidance": None,
    "size": "",
    "seed": "11",
    "count": 1,
    "style": "None",
}


def test_a_stranger_paints_through_the_api(space: Space) -> None:
    space.http.headers["X-IP-Token"] = VISITOR
    event, data = space.call("generate", list(GENERATE.values()))
    assert event == "complete", data
    (picture,) = data[0]
    # The address is the one that the world knows, not the one behind the proxy.
    address = f"https://{HOST}/"
    assert picture["url"].startswith(f"{address}studio/pictures/")
    answer = space.http.get("/" + picture["url"].removeprefix(address))
    assert Image.open(io.BytesIO(answer.content)).size == (128, 128)
    (file,) = (space.workspace / "outputs").rglob("*.png")
    assert answer.content == file.read_bytes()
    assert metadata.read(file).request.prompt == GENERATE["prompt"]
    if space.kind == "ZeroGPU":
        rows = [json.loads(row) for row in (space.folder / "zero.log").read_text().splitlines()]
        first, lent = rows[0], rows[-1]
        assert first["torch"] is False
        assert Path(first["temp"]).parent == space.workspace / "cache" / "gradio"
        assert lent["visitor"] == VISITOR
        assert lent["fork"] != space.process.pid


def test_it_listens_to_the_platform(space: Space) -> None:
    """And on no other port: on a Space, gradio would start a second server that takes new code."""
    listening = [
        connection.laddr
        for connection in psutil.Process(space.process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [(place.ip, place.port) for place in listening] == [("0.0.0.0", space.port)]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (HOST, 200),
        ("me-studio-replica.hf.space", 200),
        ("10.1.2.3:7860", 200),
        ("localhost", 200),
        ("evil.example", 403),
        ("me-studio.hf.space.evil.example", 403),
        ("evilhf.space", 403),
        ("10.1.2.3.evil.example", 403),
        ("", 403),
    ],
)
def test_only_names_of_the_space_are_answered(space: Space, host: str, status: int) -> None:
    for path in ("/", "/gradio_api/info", "/studio/alive"):
        assert space.http.get(path, headers={"Host": host}).status_code == status, path


@pytest.mark.parametrize(
    "path",
    [
        f"/gradio_api/file={ROOT / 'launch.py'}",
        f"/gradio_api/file={ROOT / 'assets' / 'models' / 'nano' / 'README.md'}",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=/proc/self/environ",
        "/gradio_api/file=launch.py",
        "/gradio_api/file=workspace/logs/worker.log",
        "/studio/pictures/..%2f..%2fcache/x.png",
        "/studio/pictures/2026-01-01/..%2f..%2f..%2flogs%2fworker.log",
        "/studio/starts/..%2f..%2flogs%2fworker.log",
        "/studio/static/..%2f..%2flaunch.py",
    ],
)
def test_private_files_are_not_reached(space: Space, path: str) -> None:
    assert space.http.get(path).status_code in (403, 404)


def test_the_workspace_is_not_served(space: Space) -> None:
    secret = space.workspace / "logs" / "secret.log"
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text("secret")
    assert space.http.get(f"/gradio_api/file={secret}").status_code == 403
    assert space.http.get("/gradio_api/file=../workspace/logs/secret.log").status_code in (403, 404)


def test_a_file_of_the_machine_is_no_upload(space: Space) -> None:
    sent = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    event, data = space.call("keep_upload", [None, sent])
    assert event == "error"
    assert "root:" not in json.dumps(data)
    assert not (space.workspace / "inputs").exists()


def test_the_queue_cannot_be_passed_by(space: Space) -> None:
    body = {"data": list(GENERATE.values())}
    assert space.http.post("/gradio_api/run/generate", json=body).status_code == 404


def test_large_uploads_are_refused(space: Space) -> None:
    sent = {"files": ("large.png", b"0" * 34_000_000)}
    assert space.http.post("/gradio_api/upload", files=sent).status_code == 413


@pytest.mark.parametrize("path", ["/monitoring", "/gradio_api/monitoring/summary", "/vibe-code"])
def test_nothing_tells_about_others(space: Space, path: str) -> None:
    answer = space.http.get(path)
    assert answer.status_code in (403, 404) or "not enabled" in answer.text, answer.text[:300]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"count": 5}, "On this Space a job has at most 4 pictures, not 5."),
        ({"steps": 101}, "On this Space a picture has at most 100 steps, not 101."),
        ({"size": "4096x4096"}, "outside"),
        ({"model": "../../etc"}, "There is no model"),
    ],
)
def test_a_job_takes_no_more_than_its_share(
    space: Space, changes: dict[str, Any], sentence: str
) -> None:
    event, data = space.call("generate", list((GENERATE | changes).values()))
    assert event == "error"
    assert sentence in json.dumps(data, ensure_ascii=False)


def test_visitors_neither_download_nor_remove_models(space: Space) -> None:
    """Also one whose connection seems to come from the machine itself: a proxy is there."""
    config = space.http.get("/config").json()
    (act,) = (row for row in config["dependencies"] if row["api_name"] == "act_models")
    for wanted in ("ask", "remove", "ask-remove"):
        body = {
            "fn_index": act["id"],
            "data": [None] * len(act["inputs"]),
            "event_data": {"do": wanted, "name": "alpha-1024"},
        }
        for number, headers in enumerate(({}, {"X-Forwarded-For": ""})):
            body["session_hash"] = f"stranger-{wanted}-{number}"
            answer = space.http.post("/gradio_api/run/predict", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            assert "on the computer that the studio runs on" in answer.text
    assert not (space.workspace / "models").exists()


def test_nobody_else_was_called(space: Space) -> None:
    """The last one: whatever the tests above made it do, it asked nobody on the network."""
    assert (space.folder / "calls.log").read_text() == ""
