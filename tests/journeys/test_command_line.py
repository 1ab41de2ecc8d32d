"""What a person types, from end to end, in processes of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.gallery import metadata
from app.gallery.pictures import Gallery, PictureFile
from pipelines.picture_record import Picture
from pipelines.request import GenerationRequest
from tests import tiny
from tests.interrupted import is_unheard
from tests.warm import launch

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, str(ROOT / "launch.py")]
pytestmark = pytest.mark.usefixtures("workspace")


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that the user can repair."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=float)


def test_a_prompt_becomes_pictures_and_each_paints_itself_again(workspace: Path) -> None:
    prompt = "a red apple on a light blue background"
    done = launch("generate", prompt, "--seed", "3", "--count", "2", "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["seed"] for row in rows] == [3, 4]
    figures = {"path", "seconds", "peak", "forecast"}
    assert set(rows[0]) == set(GenerationRequest.model_fields) - {"count"} | figures
    assert rows[0]["forecast"] > 0
    for row in rows:
        path = Path(row["path"])
        assert path.is_relative_to(workspace / "outputs")
        corner = pixels(path)[:10].mean(axis=(0, 1))
        assert corner[2] > corner[0] + 30
        assert metadata.read(path).request.prompt == prompt
    again = launch("generate", "--like", rows[1]["path"], "--out", "again", cwd=workspace)
    assert again.returncode == 0, again.stderr
    copy = Path(again.stdout.strip())
    assert copy.parent == workspace / "again"
    assert np.array_equal(pixels(copy), pixels(rows[1]["path"]))
    assert again.stderr == ""
    assert "never seen" not in done.stderr
    odd = launch("generate", "a fisherman", "--steps", "2")
    assert odd.returncode == 0
    assert "This model has never seen: fisherman." in odd.stderr
    other = launch("generate", "--like", rows[1]["path"], "--sampler", "lcm", "--json")
    row = json.loads(other.stdout)
    assert (row["seed"], row["steps"], row["guidance"]) == (4, 4, 0)
    assert "made for models distilled to it" in other.stderr


@pytest.mark.skipif(os.name != "posix", reason="a terminal is pretended with a pty")
def test_a_terminal_is_told_the_memory_before_and_after() -> None:
    import pty

    terminal, other_end = pty.openpty()
    done = launch("generate", "a red apple", "--steps", "2", terminal=os.ttyname(other_end))
    os.close(other_end)
    said = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert Path(done.stdout.strip()).is_file()
    assert re.search(r"“nano” needs [\d.]+ GB, [\d.]+ GB are free\.\r\n", said)
    assert re.search(r"[\d.]+ s, [\d.]+ GB at most\.\r\n", said)


def test_a_start_picture_is_kept_with_the_recipe(workspace: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (250, 220, 40)).save(tmp_path / "start.png")
    done = launch(
        *("generate", "a red apple on a yellow background", "--init", str(tmp_path / "start.png")),
        *("--strength", "0.5", "--seed", "1"),
    )
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    (tmp_path / "start.png").unlink()
    again = launch("generate", "--like", path)
    assert again.returncode == 0, again.stderr
    assert np.array_equal(pixels(again.stdout.strip()), pixels(path))


BAD = [
    (["generate", ""], "empty"),
    (["generate", " \n\t"], "empty"),
    (["generate"], "Say what to paint"),
    (["generate", "x" * 100_000], "100,000 characters"),
    (["generate", "x", "--size", "0"], "not a size"),
    (["generate", "x", "--size", "99999x64"], "99999"),
    (["generate", "x", "--size", "100x128"], "nearest are 96 and 112"),
    (["generate", "x", "--steps", "0"], "steps"),
    (["generate", "x", "--steps", "1000000"], "steps"),
    (["generate", "x", "--steps", "2.5"], "2.5"),
    (["generate", "x", "--steps", "1"], "2 to 200 steps"),
    (["generate", "x", "--guidance", "nan"], "nan"),
    (["generate", "x", "--guidance", "-1"], "-1"),
    (["generate", "x", "--guidance", "1e9"], "guidance"),
    (["generate", "x", "--seed", "-1"], "-1"),
    (["generate", "x", "--seed", str(2**64)], "seed"),
    (["generate", "x", "--seed", "abc"], "abc"),
    (["generate", "x", "--count", "0"], "number of pictures"),
    (["generate", "x", "--count", "1000000"], "number of pictures"),
    (["generate", "x", "--model", "nanno"], "Did you mean “nano”"),
    (["generate", "x", "--sampler", "dpm"], "Did you mean “dpm-solver++”"),
    (["generate", "x", "--style", "cinematik"], "Did you mean “Cinematic”"),
    (["generate", "x", "--out", __file__], "is a file"),
    (["generate", "x", "--init", "/nowhere.png"], "no picture"),
    (["generate", "x", "--init", __file__], "not a picture"),
    (["generate", "--like", __file__], "not a PNG"),
    (["generate", "x", "--wrong"], "--wrong"),
    (["generate", "x", "y"], "y"),
    (["generate", "-1 apple"], "Put -- before"),
    (["generate", "x", "--out", "~nobody-here/x"], "home folder"),
    (["generat", "x"], "generat"),
    (["--port", "abc"], "not a port"),
    (["--port", "70000"], "not a port"),
    (["--host", "0.0.0.0"], "--share-token"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), BAD, ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else ""
)
def test_bad_input_is_one_sentence_and_exit_2(arguments: list[str], words: str) -> None:
    assert words in sentence(launch(*arguments))


def test_a_prompt_of_control_characters() -> None:
    assert "empty" in sentence(launch("generate", "\x01\x02\x1b"))


def test_a_broken_model_is_one_sentence_and_paints_nothing(workspace: Path) -> None:
    folder = tiny.build(workspace / "models" / "broken")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = launch("generate", "a red apple", "--model", "broken")
    assert "damaged" in sentence(done)
    assert not list((workspace / "outputs").rglob("*.png"))


def fill_after_the_first() -> None:
    """A file size limit of the process is the nearest thing to a full disk that needs no root."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    real = Gallery.add

    def add(self: Gallery, picture: Picture) -> PictureFile:
        file = real(self, picture)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        return file

    Gallery.add = add  # type: ignore[method-assign]


def test_a_full_disk_fails_the_job_and_keeps_earlier_pictures(workspace: Path) -> None:
    done = launch(
        "generate", "a red apple", "--count", "3", "--steps", "4", before=fill_after_the_first
    )
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    files = [f for f in (workspace / "outputs").rglob("*") if f.is_file()]
    assert [str(f) for f in files] == done.stdout.split()
    assert metadata.read(files[0])


@pytest.mark.parametrize("after", [0.1, 1.0, 4.0])
def test_ctrl_c_at_any_moment_is_one_line(after: float, workspace: Path) -> None:
    process = subprocess.Popen(
        [*LAUNCH, "generate", "a red apple", "--steps", "200", "--count", "64"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    if is_unheard(process.returncode, err):
        assert out == ""
        return
    assert process.returncode == 130, (process.returncode, err)
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert all(Path(line).is_file() for line in out.split())


def test_ctrl_c_while_painting_keeps_what_is_finished(workspace: Path) -> None:
    process = subprocess.Popen(
        [*LAUNCH, "generate", "a red apple", "--steps", "200", "--count", "64"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip() == "Stopped; the finished pictures are kept."
    paths = [first, *out.split()]
    assert len(paths) < 10
    for path in paths:
        assert metadata.read(Path(path))


def test_a_closed_pipe_is_no_fault() -> None:
    done = subprocess.run(
        f"{sys.executable} {ROOT / 'launch.py'} generate 'a red apple' --count 2 --steps 2 | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "fault" not in done.stderr


def test_help_and_version_load_nothing_heavy() -> None:
    for arguments in (["--help"], ["generate", "--help"], ["--version"]):
        script = (
            "import sys\n"
            "from app.cli.main import main\n"
            f"code = main({arguments!r})\n"
            "heavy = [h for h in ('torch', 'gradio', 'diffusers') if h in sys.modules]\n"
            "sys.exit(9 if heavy else code)"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
        assert done.returncode == 0
