"""The container image and the Space, as far as they can be held without building them.

The files that the Dockerfile copies are copied here as well, and the studio is started from them
with the image's command; the health check is the image's own.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from app.settings import DEFAULT_PORT, WORKSPACE_VARIABLE
from tests import ports

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "space"
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """The lines of the Dockerfile as (word, rest)."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, rest in found]


def final() -> list[Instruction]:
    """The instructions of the last stage."""
    rows = instructions()
    last = max(index for index, (word, _) in enumerate(rows) if word == "FROM")
    return rows[last:]


def one(word: str) -> str:
    """What the last stage says with a word that it says once."""
    (rest,) = [rest for name, rest in final() if name == word]
    return rest


def copied() -> list[tuple[str, str]]:
    """(source, target) of everything that the last stage copies from the checkout."""
    pairs = []
    for word, rest in final():
        if word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            pairs += [(source, target) for source in sources]
    return pairs


def tracked() -> list[str]:
    """What belongs to the project: the checkout without what git ignores."""
    out = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in out.stdout.splitlines() if (ROOT / name).is_file()]


def in_context(name: str) -> bool:
    """Whether .dockerignore lets a file through; the last pattern that matches decides."""
    inside = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        parts = Path(name).parts
        if pattern.startswith("**/"):
            matches = any(fnmatch(part, pattern[3:]) for part in parts)
        else:
            matches = fnmatch(parts[0], pattern)
        if matches:
            inside = line.startswith("!")
    return inside


def test_bases_are_pinned() -> None:
    rows = instructions()
    versions = {rest.split("=")[0]: rest.split("=")[1] for word, rest in rows if word == "ARG"}
    stages = [rest.split()[2] for word, rest in rows if word == "FROM" and " AS " in rest]
    bases = [rest.split()[0] for word, rest in rows if word == "FROM"]
    foreign = [base for base in bases if base not in stages]
    assert len(foreign) == 1
    assert foreign[0].startswith("nvidia/cuda:${CUDA}-base-ubuntu")
    assert re.fullmatch(r"\d+\.\d+\.\d+", versions["CUDA"])
    assert "latest" not in (ROOT / "Dockerfile").read_text("utf-8")


LOCKED = ["pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:"]


def installs(index: str) -> list[list[str]]:
    """The calls of pip that the Dockerfile makes, each RUN executed with an echo for a pip."""
    calls = []
    for word, rest in instructions():
        if word == "RUN" and "pip install" in rest:
            _, script = rest.split(" ", 1)
            assert rest.startswith("--mount=type=cache,target=/root/.cache/pip ")
            script = script.replace("python3 -m venv /opt/studio", "true")
            script = script.replace("/opt/studio/bin/pip", "echo pip")
            script = script.replace("/tmp/", f"{ROOT}/")
            out = subprocess.run(
                ["sh", "-ec", script],
                env={"PATH": os.environ["PATH"], "TORCH_INDEX": index},
                capture_output=True,
                text=True,
                check=True,
            )
            calls += [line.split() for line in out.stdout.splitlines()]
    return calls


def test_packages_are_those_of_the_locks_and_nothing_else() -> None:
    rest = [*LOCKED, "-r", f"{ROOT}/requirements.lock"]
    assert installs("") == [rest, [*LOCKED, "-r", f"{ROOT}/requirements-torch.lock"]]
    (torch,) = re.findall(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    from_index = ["--only-binary=:all:", "--index-url", "https://x/cu126", torch]
    assert installs("https://x/cu126") == [rest, ["pip", "install", *from_index]]
    files = {"requirements.txt", "requirements.lock", "requirements-torch.lock"}
    (into_build,) = [rest.split() for word, rest in instructions() if rest.endswith(" /tmp/")]
    assert set(into_build) == {*files, "/tmp/"}
    assert files <= {source for source, _ in copied()}, "launch.py reads them, too"


def test_the_image_has_every_package_of_the_studio() -> None:
    top = {Path(name).parts[0] for name in tracked() if name.endswith(".py") and "/" in name}
    packages = top - {"tests", "space"}
    assert {"app", "pipelines", "training"} <= packages
    sources = {source for source, _ in copied()}
    assert packages <= sources
    assert {"assets", "presets", "launch.py", "LICENSE"} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source


def test_the_context_is_small_and_private() -> None:
    inside = [name for name in tracked() if in_context(name)]
    tops = {Path(name).parts[0] for name in inside}
    assert tops == {source for source, _ in copied()}
    for name in (".git/config", ".venv/bin/python", "workspace/outputs/a.png", ".env", "runs/x"):
        assert not in_context(name)
    assert not in_context("app/__pycache__/cli.cpython-312.pyc")


def test_it_runs_as_nobody_special_and_keeps_what_it_makes() -> None:
    assert one("USER") not in ("root", "0")
    words = [word for word, _ in final()]
    assert words.index("USER") < words.index("VOLUME") < words.index("ENTRYPOINT")
    variables = dict(pair.split("=", 1) for pair in one("ENV").split())
    assert variables[WORKSPACE_VARIABLE] == one("VOLUME")
    assert any(word == "RUN" and f"-o {one('USER')}" in rest for word, rest in final())
    assert one("EXPOSE") == str(DEFAULT_PORT)


# --- started from what the image holds


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of the image."""
    folder = tmp_path_factory.mktemp("image")
    for name in filter(in_context, tracked()):
        for source, target in copied():
            if name == source or name.startswith(source + "/"):
                place = folder / (name if target == "./" else target + name.removeprefix(source))
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, place)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def surroundings(workspace: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPACE")}
    variables = {"PYTHONDONTWRITEBYTECODE": "1", WORKSPACE_VARIABLE: str(workspace)}
    return kept | variables | more


def test_a_verb_works_in_the_image(image: Path, tmp_path: Path) -> None:
    before = files(image)
    out = subprocess.run(
        [sys.executable, "launch.py", "generate", "a red apple", "--steps", "2", "--json"],
        cwd=image,
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert Path(json.loads(out.stdout)["path"]).is_relative_to(tmp_path)
    assert files(image) == before, "the image's own folder belongs to root"


def test_the_page_is_refused_to_everybody_without_a_token(image: Path, tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "launch.py", *json.loads(one("CMD"))],
        cwd=image,
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 2
    assert "PIXART_STUDIO_SHARE_TOKEN" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def health(port: int) -> int:
    """The exit code of the image's health check against a port of this machine."""
    command = json.loads(one("HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python"
    assert str(DEFAULT_PORT) in command[2]
    return subprocess.run(
        [sys.executable, *(part.replace(str(DEFAULT_PORT), str(port)) for part in command[1:])],
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode


def test_the_page_with_a_token_is_healthy_and_asks_for_it(image: Path, tmp_path: Path) -> None:
    port, before = ports.free(), files(image)
    command = [part.replace(str(DEFAULT_PORT), str(port)) for part in json.loads(one("CMD"))]
    assert health(port) != 0
    process = subprocess.Popen(
        [sys.executable, "launch.py", *command],
        cwd=image,
        env=surroundings(tmp_path, PIXART_STUDIO_SHARE_TOKEN="open sesame 12345"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f":{port}" in line, line
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as web:
            assert web.get("/").status_code == 401
            assert web.get("/", params={"token": "open sesame 12345"}).status_code == 303
            assert web.get("/").status_code == 200
        assert health(port) == 0
        # As `docker stop` does.
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "Traceback" not in out
    assert files(image) == before


@pytest.fixture
def answering() -> Iterator[tuple[http.server.ThreadingHTTPServer, list[int]]]:
    status = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, status
    server.shutdown()
    server.server_close()


def test_the_health_check_tells_well_from_ill(
    answering: tuple[http.server.ThreadingHTTPServer, list[int]],
) -> None:
    server, status = answering
    for code, healthy in ((200, True), (401, True), (500, False), (404, False)):
        status[0] = code
        assert (health(server.server_port) == 0) is healthy, code


# --- the Space


def front_matter() -> dict[str, str]:
    text = (SPACE / "README.md").read_text("utf-8")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert text.startswith("---\n")
    assert body.strip().startswith("# PixArt Studio")
    rows = (line.partition(":") for line in head.splitlines() if not line.startswith(" "))
    return {name: value.strip() for name, _, value in rows}


def test_the_space_is_what_is_pinned_here() -> None:
    row = front_matter()
    pins = (ROOT / "requirements.txt").read_text("utf-8")
    assert row["sdk"] == "gradio"
    assert f"gradio=={row['sdk_version']} " in pins
    assert (ROOT / row["app_file"]).is_file()
    # In quotes: without, YAML would read 3.10 as 3.1.
    assert re.fullmatch(r'"3\.(1[1-9])"', row["python_version"])
    assert len(row["short_description"]) <= 60
    assert row["license"] == "apache-2.0"


def test_packages_txt_holds_names_only() -> None:
    names = (SPACE / "packages.txt").read_text("utf-8").split("\n")
    assert names.pop() == ""
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name) for name in names)
    # The image installs what the Space does.
    installs = " ".join(rest for word, rest in instructions() if word == "RUN")
    assert all(f" {name} " in installs for name in names)


def test_the_readme_of_the_project_has_no_front_matter() -> None:
    assert (ROOT / "README.md").read_text("utf-8").startswith("# PixArt Studio\n")


def test_the_space_replaces_files_and_adds_no_code() -> None:
    assert {path.name for path in SPACE.iterdir()} == {"README.md", "packages.txt"}
