"""The studio started in the environments that people have: proxies, hosts, odd standard streams.

Every test starts the real launcher in a process of its own, with a workspace of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import ports

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = str(ROOT / "launch.py")
UBUNTU = "localhost,127.0.0.0/8,::1"
SECONDS = 90.0
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.name != "posix", reason="signals and devices of POSIX"),
]


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy that answers everything with one status, or never; it notes what it was asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, status: int | None) -> None:
        asked = self.asked = []
        over = self.over = threading.Event()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                asked.append(self.request.recv(4096))
                if status is None:
                    over.wait(SECONDS)
                    return
                self.request.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


@contextmanager
def proxy(status: int | None) -> Iterator[Proxy]:
    server = Proxy(status)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def variables(workspace: Path, **more: str) -> dict[str, str]:
    """The environment of this test without anything that names a proxy."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return kept | {"PIXART_STUDIO_WORKSPACE": str(workspace)} | more


@contextmanager
def studio(
    workspace: Path, *arguments: str, python: tuple[str, ...] = (), host: str = "127.0.0.1", **more
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A studio that has said its address: (process, the line that it said, port)."""
    port = ports.free()
    process = subprocess.Popen(
        [sys.executable, *python, LAUNCH, "--no-browser", "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables(workspace, **more),
    )
    dog = threading.Timer(SECONDS, process.kill)
    dog.start()
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, process.communicate()[1]
        yield process, said, port
    finally:
        dog.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in err


def shows_the_page(address: str) -> None:
    with httpx.Client(trust_env=False, timeout=30) as client:
        assert "PixArt Studio" in client.get(address).text


def run(workspace: Path, *arguments: str, python: tuple[str, ...] = (), **more: object):
    """A command to its end; `more` goes to subprocess, `variables` into the environment."""
    given = dict(more.pop("variables", {}))
    return subprocess.run(
        [sys.executable, *python, LAUNCH, *arguments],
        env=variables(workspace, **given),
        text=True,
        timeout=SECONDS,
        check=False,
        **({"capture_output": True} | more),
    )


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that the user can mend."""
    assert done.returncode == 2, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


PROXIES = [
    ("http_proxy", "http://{}", 403),
    ("https_proxy", "http://{}", 502),
    ("ALL_PROXY", "http://{}", 502),
    ("all_proxy", "socks5://{}", None),
    ("all_proxy", "socks://{}/", None),
    ("http_proxy", "http://{}", None),
    ("HTTP_PROXY", "{}", 403),
]


@pytest.mark.parametrize(
    ("name", "form", "status"), PROXIES, ids=[f"{n} {f} {s}" for n, f, s in PROXIES]
)
def test_the_page_starts_behind_any_proxy_and_asks_none(
    tmp_path: Path, name: str, form: str, status: int | None
) -> None:
    with proxy(status) as server:
        given = {name: form.format(server.place)}
        began = time.monotonic()
        with studio(tmp_path, **given) as (_, said, port):
            assert said == f"PixArt Studio is at http://127.0.0.1:{port}  (Ctrl+C ends it)\n"
            assert time.monotonic() - began < SECONDS
            shows_the_page(f"http://127.0.0.1:{port}/")
        assert server.asked == []


@pytest.mark.parametrize("no_proxy", [UBUNTU, "localhost,[::1]", "[::1]:7860,.example", "*"])
def test_the_page_starts_with_any_list_of_exceptions(tmp_path: Path, no_proxy: str) -> None:
    with (
        proxy(502) as server,
        studio(
            tmp_path,
            http_proxy=f"http://{server.place}",
            no_proxy=no_proxy,
            NO_PROXY=no_proxy,
            SSL_CERT_FILE=str(tmp_path / "gone.pem"),
            SSL_CERT_DIR=str(tmp_path / "gone"),
            SSLKEYLOGFILE=str(tmp_path / "gone" / "keys"),
        ) as (_, _, port),
    ):
        shows_the_page(f"http://127.0.0.1:{port}/")
        assert server.asked == []


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "::", "[::]"])
def test_hosts_of_ipv6_with_and_without_brackets(tmp_path: Path, host: str) -> None:
    token = () if "1" in host else ("--share-token", "0123456789abcdef-token")
    with studio(tmp_path, "--host", host, *token) as (_, said, port):
        assert f" http://[::1]:{port} " in said
        query = "?token=0123456789abcdef-token" if token else ""
        with httpx.Client(trust_env=False, timeout=30, follow_redirects=True) as client:
            assert "PixArt Studio" in client.get(f"http://[::1]:{port}/{query}").text


def test_no_variable_of_gradio_changes_anything(tmp_path: Path) -> None:
    """Every one that its source names, with the value that would hurt most."""
    given = {
        "GRADIO_DEBUG": "1",
        "GRADIO_SERVER_PORT": "1",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_NUM_PORTS": "0",
        "GRADIO_ROOT_PATH": "/elsewhere",
        "GRADIO_SHARE": "True",
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_BLOCKED_PATHS": "/",
        "GRADIO_MCP_SERVER": "True",
        "GRADIO_SSR_MODE": "True",
        "GRADIO_NODE_PATH": "/bin/false",
        "GRADIO_NODE_SERVER_PORT": "x",
        "GRADIO_NUM_WORKERS": "4",
        "GRADIO_STATIC_WORKER_PORTS": "9",
        "GRADIO_TEMP_DIR": "/proc/nowhere",
        "GRADIO_ANALYTICS_ENABLED": "True",
        "GRADIO_RUN_HISTORY": "True",
        "GRADIO_HOT_RELOAD": "1",
        "GRADIO_WATCH_DIRS": "/",
        "GRADIO_VIBE_MODE": "1",
        "GRADIO_LOCAL_DEV_MODE": "1",
        "GRADIO_IS_E2E_TEST": "1",
        "GRADIO_PROFILING": "1",
        "GRADIO_CACHE_EXAMPLES": "true",
        "GRADIO_DEFAULT_CONCURRENCY_LIMIT": "x",
        "GRADIO_HEARTBEAT_INTERVAL": "0",
        "GRADIO_SERVER_MODE_ENABLED": "1",
        "GRADIO_AUTO_LOGOUT": "1",
        "GRADIO_HISTORY_BUCKET": "me/bucket",
    }
    with studio(tmp_path, **given) as (process, said, port):
        assert f"http://127.0.0.1:{port} " in said
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            config = client.get("/config").json()
            assert not config["root"].endswith("/elsewhere")
            assert client.get("/gradio_api/file=/etc/passwd").status_code == 403
            assert client.get("/gradio_api/mcp/schema").status_code == 404
            assert client.get("/vibe-code/").status_code in (403, 404)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        assert time.monotonic() - asked < 30
