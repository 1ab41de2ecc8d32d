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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_manager import drafts
from tests import ports, warm

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
        asked: list[bytes] = []
        self.asked = asked
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
    workspace: Path,
    *arguments: str,
    python: tuple[str, ...] = (),
    given: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A studio that has said its address: (process, the line that it said, port)."""
    port = ports.free()
    process = subprocess.Popen(
        [sys.executable, *python, LAUNCH, "--no-browser", "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables(workspace, **(given or {})),
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
    with httpx.Client(trust_env=False, timeout=30, follow_redirects=True) as client:
        assert "PixArt Studio" in client.get(address).text


def run(
    workspace: Path,
    *arguments: str,
    python: tuple[str, ...] = (),
    given: Mapping[str, str] | None = None,
    **more: Any,
) -> subprocess.CompletedProcess[str]:
    """A command to its end; `more` goes to subprocess, `given` into the environment."""
    return subprocess.run(
        [sys.executable, *python, LAUNCH, *arguments],
        env=variables(workspace, **(given or {})),
        text=True,
        timeout=SECONDS,
        check=False,
        **({"capture_output": True} | more),
    )


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that the user can repair."""
    assert done.returncode == 2, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


HERE = "127.0.0.1"
# Proxies by the form of their address, what they answer (never, where there is no status), and what
# the studio listens on. Two variables stand together where both would be looked at.
STARTS: list[tuple[dict[str, str], int | None, str]] = [
    ({"http_proxy": "http://{}", "https_proxy": "http://{}"}, 403, HERE),
    ({"http_proxy": "http://{}", "https_proxy": "http://{}"}, None, "::1"),
    ({"HTTP_PROXY": "{}", "all_proxy": "socks://{}/"}, None, "[::1]"),
    ({"ALL_PROXY": "http://{}"}, 502, "::"),
    ({"all_proxy": "socks5://{}"}, None, "[::]"),
]


@pytest.mark.parametrize(
    ("proxies", "status", "host"), STARTS, ids=[f"{' '.join(p)} {s} {h}" for p, s, h in STARTS]
)
def test_the_page_starts_behind_any_proxy_on_any_address_and_asks_none(
    tmp_path: Path, proxies: dict[str, str], status: int | None, host: str
) -> None:
    if not _has_ipv6():
        host = HERE
    arguments = [] if host == HERE else ["--host", host]
    everywhere = "1" not in host
    if everywhere:
        arguments += ["--share-token", "0123456789abcdef-token"]
    with proxy(status) as server:
        given = {name: form.format(server.place) for name, form in proxies.items()}
        began = time.monotonic()
        with studio(tmp_path, *arguments, given=given) as (_, said, port):
            assert time.monotonic() - began < SECONDS
            address = f"http://{HERE if host == HERE else '[::1]'}:{port}"
            if everywhere:
                assert f" {address} " in said
                # Every address means those of IPv4 as well.
                for name in (address, f"http://{HERE}:{port}"):
                    shows_the_page(f"{name}/?token=0123456789abcdef-token")
            else:
                assert said == f"PixArt Studio is at {address}  (Ctrl+C ends it)\n"
                shows_the_page(f"{address}/")
        assert server.asked == []


@contextmanager
def exceptions(no_proxy: str, folder: Path) -> Iterator[dict[str, str]]:
    """A proxy for everything but `no_proxy`, and certificates that are gone; nobody asks it."""
    with proxy(502) as server:
        yield {
            "http_proxy": f"http://{server.place}",
            "no_proxy": no_proxy,
            "NO_PROXY": no_proxy,
            "SSL_CERT_FILE": str(folder / "gone.pem"),
            "SSL_CERT_DIR": str(folder / "gone"),
            "SSLKEYLOGFILE": str(folder / "gone" / "keys"),
        }
        assert server.asked == []


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
    with studio(tmp_path, given=given) as (process, said, port):
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


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one picture, of a prompt that is not Latin."""
    workspace = tmp_path_factory.mktemp("painted") / "ws"
    done = warm.launch(
        *("generate", "красное яблоко", "--steps", "2", "--seed", "1"), env=variables(workspace)
    )
    assert done.returncode == 0, done.stderr
    return workspace


@pytest.mark.parametrize(
    ("python", "given", "no_proxy"),
    [
        (("-P",), {}, UBUNTU),
        (("-I",), {}, "localhost,[::1]"),
        ((), {"PYTHONSAFEPATH": "1"}, "[::1]:7860,.example"),
    ],
)
def test_python_that_looks_nowhere_for_modules_and_any_list_of_exceptions(
    painted: Path, tmp_path: Path, python: tuple[str, ...], given: dict[str, str], no_proxy: str
) -> None:
    done = run(painted, "gallery", "list", python=python, given=given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "красное яблоко" in done.stdout
    with (
        exceptions(no_proxy, tmp_path) as more,
        studio(tmp_path, python=python, given={**given, **more}) as (_, _, port),
    ):
        shows_the_page(f"http://127.0.0.1:{port}/")


def test_a_working_directory_that_was_deleted_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    gone = tmp_path / "gone"
    script = f"cd {gone} && rmdir {gone} && exec {sys.executable} {LAUNCH}"
    for verb in ("", " gallery list", " --version"):
        done = subprocess.run(
            ["sh", "-c", script + verb], capture_output=True, text=True, timeout=60, check=False
        )
        assert "not there any more: change to another folder" in sentence(done)
        (tmp_path / "gone").mkdir()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux")
@pytest.mark.parametrize(
    "verb", ["--version", "gallery list", "gallery list --json", "models list"]
)
def test_standard_output_on_a_full_disk_is_one_sentence(painted: Path, verb: str) -> None:
    with open("/dev/full", "w") as full:
        done = run(
            painted, *verb.split(), capture_output=False, stdout=full, stderr=subprocess.PIPE
        )
    told = [line for line in done.stderr.splitlines() if not line.endswith("1 picture.")]
    assert done.returncode == 2
    assert told == [
        "The standard output cannot be written (No space left on device). Free some space on its"
        " disk, or send it somewhere else."
    ]


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_a_page_whose_address_nobody_could_hear_ends_with_one_sentence(
    tmp_path: Path, kind: str
) -> None:
    if kind == "full" and not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux")
    port = ports.free()
    if kind == "full":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    try:
        done = run(
            tmp_path,
            *("--no-browser", "--port", str(port)),
            capture_output=False,
            stdout=target,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(target)
    assert "standard output" in sentence(done)


def test_a_reader_that_goes_away_is_no_fault(painted: Path) -> None:
    reader, target = os.pipe()
    os.close(reader)
    try:
        done = run(
            painted,
            *("gallery", "list", "--json"),
            capture_output=False,
            stdout=target,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(target)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("python", [(), ("-I",)])
def test_a_locale_of_ascii_alone_finds_other_letters(
    painted: Path, tmp_path: Path, python: tuple[str, ...]
) -> None:
    given = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = run(painted, "gallery", "search", "яблоко", python=python, given=given)
    assert done.returncode == 0, done.stderr
    assert "красное яблоко" in done.stdout
    none = run(painted, "gallery", "search", "груша", python=python, given=given)
    assert none.stdout == ""
    out = tmp_path / "снимки.zip"
    done = run(painted, "gallery", "export", "--out", str(out), python=python, given=given)
    assert done.returncode == 0, done.stderr
    assert out.is_file()


def _mounts() -> bool:
    try:
        command = ["unshare", "-rm", "true"]
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not _mounts(), reason="nobody may mount here")
def test_a_gallery_on_a_read_only_disk_is_listed_exported_and_looked_at(
    painted: Path, tmp_path: Path
) -> None:
    before = sorted(painted.rglob("*"))
    mount = f"mount --bind {painted} {painted} && mount -o remount,ro,bind {painted} && "

    def there(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", f"{mount}{sys.executable} {LAUNCH} {command}"],
            env=variables(painted),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    for command in ("gallery list", "gallery search яблоко", "gallery list --json"):
        done = there(command)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
    assert there("gallery rebuild").stdout == "1 picture in the index.\n"
    done = there(f"gallery export --out {tmp_path / 'taken.zip'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "taken.zip").is_file()
    assert "Read-only file system" in sentence(there("generate x"))
    assert "Read-only file system" in sentence(there(f"gallery export --out {painted}/x.zip"))
    port = ports.free()
    options = f"--no-browser --port {port}"
    page = subprocess.Popen(
        [*("unshare", "-rm", "sh", "-c"), mount + f"exec {sys.executable} {LAUNCH} {options}"],
        env=variables(painted),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert page.stdout is not None
    assert "PixArt Studio is at" in page.stdout.readline()
    shows_the_page(f"http://127.0.0.1:{port}/")
    page.send_signal(signal.SIGTERM)
    _, err = page.communicate(timeout=60)
    assert (page.returncode, "Traceback" in err) == (0, False), err
    assert sorted(painted.rglob("*")) == before


@pytest.mark.parametrize("verb", ["gallery list", "models list", "generate x", "", "doctor"])
def test_a_workspace_of_links_in_circles_is_one_sentence(tmp_path: Path, verb: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for workspace in (tmp_path / "circle", tmp_path / "circle" / "below"):
        assert "leads in circles" in sentence(run(workspace, *verb.split()))


@pytest.mark.parametrize("verb", ["gallery list", "generate x", ""])
def test_pictures_behind_links_in_circles_are_one_sentence(tmp_path: Path, verb: str) -> None:
    (tmp_path / "outputs").symlink_to("outputs")
    assert str(tmp_path / "outputs") in sentence(run(tmp_path, *verb.split()))


def test_the_page_starts_and_stops_where_only_pictures_can_be_written(tmp_path: Path) -> None:
    for name in ("cache", "models", "loras", "inputs", "logs", "runs"):
        (tmp_path / name).symlink_to(name)
    with exceptions("*", tmp_path) as given, studio(tmp_path, given=given) as (_, _, port):
        address = f"http://127.0.0.1:{port}/"
        shows_the_page(address)
        with httpx.Client(trust_env=False, timeout=30) as client:
            page = client.get(address).text
        # Why holds paths, and stands in the Models tab, for whoever administers.
        assert "Not every model can be used; the Models tab says why." in page
        assert f"{tmp_path}/models" not in page


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
@pytest.mark.parametrize(
    ("verb", "megabytes"),
    [
        *(("generate x", 400), ("", 400), ("gallery list", 90)),
        *(("generate x", 2500), ("--version", 120)),
    ],
)
def test_too_little_address_space_is_one_sentence(painted: Path, verb: str, megabytes: int) -> None:
    command = f"ulimit -v {megabytes * 1000}; exec {sys.executable} {LAUNCH} {verb}"
    done = subprocess.run(
        ["sh", "-c", command],
        env=variables(painted),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert "address space" in sentence(done)


def test_with_little_address_space_pictures_are_listed_and_the_page_says_why_it_does_not_paint(
    painted: Path,
) -> None:
    cores = os.cpu_count() or 1
    command = f"ulimit -v {400_000 + 50_000 * cores}; exec {sys.executable} {LAUNCH} gallery list"
    done = subprocess.run(
        ["sh", "-c", command], env=variables(painted), capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1), done.stderr


def test_drafts_of_a_killed_process_go_at_the_next_start(painted: Path, tmp_path: Path) -> None:
    """In every folder of the workspace; what a process that lives is writing stays."""
    workspace = tmp_path / "ws"
    places = ["outputs", "outputs/2026-01-01", "models", "loras", "inputs", "cache/archives"]
    places += ["cache/thumbs/2026-01-01", "runs/a/checkpoints"]
    script = "import os, sys; from pathlib import Path; from lora_manager import drafts\n"
    script += "for place in sys.argv[1:]:\n"
    script += "    Path(place).mkdir(parents=True); drafts.beside(Path(place) / 'x').touch()\n"
    script += "os.kill(os.getpid(), 9)"
    folders = [str(workspace / place) for place in places]
    subprocess.run(
        [
            sys.executable,
            "-c",
            script.replace("mkdir(parents=True)", "mkdir(parents=True, exist_ok=True)"),
            *folders,
        ],
        cwd=ROOT,
        check=False,
    )
    assert len(list(workspace.rglob(".x.*.part"))) == len(places)
    mine = drafts.beside(workspace / "models" / "y")
    mine.mkdir()
    with studio(workspace):
        end = time.monotonic() + 30
        while list(workspace.rglob(".x.*.part")):
            assert time.monotonic() < end, "they stay"
            time.sleep(0.1)
    assert mine.is_dir()
