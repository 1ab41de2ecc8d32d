"""The whole studio as a person has it: one command, a real browser, the model that ships."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.gallery import metadata
from tests.interrupted import is_unheard

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="finds the worker through /proc"),
]
RESULT = ".canvas[data-state=result]"


class Running:
    """A studio in a process of its own."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), "--workspace", str(workspace)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "CI": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        self.address = found[0]

    def workers(self) -> list[int]:
        """The process ids of the painting process."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"spawn_main" in command:
                    found.append(int(pid))
        return found

    def loads(self, name: str) -> bool:
        """True where the page's process has mapped a library called `name`."""
        return name in Path(f"/proc/{self.process.pid}/maps").read_text()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    studio = Running(tmp_path_factory.mktemp("journey") / "workspace")
    yield studio
    studio.process.send_signal(signal.SIGINT)
    out, _ = studio.process.communicate(timeout=30)
    assert studio.process.returncode == 0
    assert "Traceback" not in out


@pytest.fixture
def page(browser: Any, running: Running) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(running.address)
    page.wait_for_function("window.studioReady === true")
    yield page
    context.close()
    assert faults == []


def generate(page: Any, prompt: str, **numbers: int) -> None:
    page.fill("#prompt textarea", prompt)
    for name, value in numbers.items():
        page.fill(f"#{name} input[type=number]", str(value))
        page.press(f"#{name} input[type=number]", "Tab")
    page.get_by_role("button", name="Generate").click()


def shown(page: Any) -> np.ndarray:
    """The pixels that the page shows, fetched as the browser fetches them."""
    source = page.eval_on_selector(f"{RESULT} .picture img", "image => image.src")
    answer = page.request.get(source)
    assert answer.status == 200
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"), dtype=float)


@pytest.mark.parametrize(("colour", "channel"), [("blue", 2), ("red", 0)])
def test_a_prompt_is_painted_in_the_colour_it_names(
    page: Any, running: Running, colour: str, channel: int
) -> None:
    generate(page, f"a castle on a {colour} background", steps=20)
    page.wait_for_selector(RESULT)
    pixels = shown(page)
    border = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3)]).mean(axis=0)
    assert border[channel] > np.delete(border, channel).max() + 30, border
    roughness = np.abs(np.diff(pixels, axis=1)).mean()
    assert roughness < 15, "noise has about 85"
    newest = max((running.workspace / "outputs").rglob("*.png"), key=lambda f: f.stat().st_mtime)
    assert metadata.read(newest).request.prompt == f"a castle on a {colour} background"


def test_torch_lives_in_the_worker_only(page: Any, running: Running) -> None:
    page.wait_for_selector("[data-phase=ready]")
    assert not running.loads("libtorch")
    (worker,) = running.workers()
    assert "libtorch" in Path(f"/proc/{worker}/maps").read_text()


def test_a_killed_painter_is_replaced_and_its_job_goes_on(page: Any, running: Running) -> None:
    page.wait_for_selector("[data-phase=ready]")
    # As many as there can be: a preview that lasts for less than the page's own rhythm is missed.
    generate(page, "a red apple on a light blue background", steps=200)
    page.wait_for_selector("img.preview")
    (worker,) = running.workers()
    os.kill(worker, signal.SIGKILL)
    page.locator("#status [role=status]").filter(has_text="Done in").wait_for()
    assert shown(page).shape == (128, 128, 3)
    assert running.workers() != [worker]


def test_a_second_studio_takes_the_next_port_and_a_taken_one_is_said(
    running: Running, tmp_path: Path
) -> None:
    other = Running(tmp_path / "other")
    try:
        assert other.address != running.address
    finally:
        other.process.send_signal(signal.SIGTERM)
        out, _ = other.process.communicate(timeout=30)
    assert other.process.returncode == 0
    assert "Traceback" not in out
    port = running.address.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--port", port],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert port in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("after", [0.05, 0.7, 2.0])
def test_ctrl_c_while_starting_is_no_traceback(after: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "--workspace", str(tmp_path / "w")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CI": "1"},
        # A shell starts its background jobs deaf to Ctrl+C, and the deafness is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    if not is_unheard(process.returncode, err):
        assert process.returncode in (0, 130)
        assert "Traceback" not in err, err
