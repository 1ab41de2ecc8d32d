"""The steps of the set-up: what is shown, what is logged, how failures read, who may work."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.setup import installer
from app.setup.installer import SetupError, SetupStep, StatusLine

pytestmark = pytest.mark.slow


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def python(name: str, code: str) -> SetupStep:
    return SetupStep(name=name, command=(sys.executable, "-c", code))


def test_without_a_terminal_a_line_comes_every_few_seconds():
    stream, clock = io.StringIO(), Clock()
    line = StatusLine(stream, every=5, clock=clock)
    for _ in range(130):
        line.show("packages", f"at {clock.now:g}")
        clock.now += 0.5
    line.show("test tools", "")
    shown = stream.getvalue().splitlines()
    assert shown[0] == "0:00  packages: at 100"
    assert shown[1] == "0:05  packages: at 105"
    assert shown[-1] == "1:05  test tools"
    assert len(shown) == 14


def test_on_a_terminal_one_line_is_rewritten_and_taken_away(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream, clock = Terminal(), Clock()
    line = StatusLine(stream, clock=clock)
    line.show("packages", "downloading something with a long name")
    line.show("packages", "")
    line.say("Done.")
    first, second, blank, last = stream.getvalue().split("\r")[1:]
    assert first == "0:00  packages: downloading s"
    assert second == "0:00  packages".ljust(29)
    assert blank.strip() == ""
    assert last == "Done.\n"


@pytest.mark.parametrize(
    ("text", "doing"),
    [
        ("Collecting torch==2.15.0 (from -r r.txt (line 1))", "looking for torch"),
        ("  Downloading torch-2.15-x.whl.metadata (31 kB)", "downloading torch-2.15 (31 kB)"),
        ("  Downloading http://a/b/numpy-2.4.6-x.whl (17 MB)", "downloading numpy-2.4.6 (17 MB)"),
        ("  Using cached gradio-6.31-py3.whl (9 MB)", "taking from the cache gradio-6.31 (9 MB)"),
        ("Processing ./tiny-1.0-py3.whl (from -r r.txt (line 1))", "reading tiny-1.0"),
        ("Installing collected packages: a", "unpacking a"),
        ("Progress 25 of 50", "before, 50 %"),
        ("Progress 25 of 0", "before"),
        ("Installing collected packages: a, b, c", "unpacking 3 packages"),
        # Said early in the long unpacking, and last for minutes: the packages are what takes time.
        ("    Found existing installation: torch 2.14.0", "before"),
        ("WARNING: Retrying (Retry(total=4))", "the network does not answer, trying again"),
        ("Requirement already satisfied: pip in x", "before"),
        ("", "before"),
    ],
)  # fmt: skip
def test_output_of_pip_in_few_words(text, doing):
    assert installer.describe(text + "\n", "before") == doing


def test_percentage_replaces_the_one_before():
    doing = installer.describe("Downloading a-1-x.whl (9 MB)", "")
    for done in (10, 20):
        doing = installer.describe(f"Progress {done} of 100", doing)
    assert doing == "downloading a-1 (9 MB), 20 %"


@pytest.mark.parametrize(
    ("output", "part"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
         "The disk became full"),
        ("WARNING: Retrying after connection broken by 'SSLError(SSLCertVerificationError(1, "
         "'[SSL: CERTIFICATE_VERIFY_FAILED]'", "certificate is not trusted"),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "cannot be reached"),
        ("ERROR: Could not find a version that satisfies torch==9 (from versions: 1.0)\n"
         "ERROR: No matching distribution found for torch==9", "has no torch==9 for Python 3."),
        ("ERROR: Could not find a version that satisfies torch==9 (from versions: none)\n"
         "ERROR: No matching distribution found for torch==9", "or it cannot be reached"),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: 'x'",
         "A file could not be written"),
        ("ERROR: ResolutionImpossible: for help visit x", "failed (step): ResolutionImpossible"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have\n"
         "    torch==9 from http://x/torch-9.whl (from -r r.lock (line 3)):\n"
         "        Expected sha256 aa\n             Got        bb\n",
         "sent a file for torch==9 that"),
        ("Killed", "Set-up failed (step): pip gave no reason"),
    ],
)  # fmt: skip
def test_failure_is_one_sentence_with_a_way_out(output, part):
    sentence = installer.explain_failure("step", output, Path("install.log"))
    assert part in sentence
    assert "\n" not in sentence
    assert "the full output is in install.log" in sentence


@pytest.mark.parametrize(("version", "bar"), [("23.2.1", "off"), ("24.0", "off"), ("24.1", "raw")])
def test_progress_is_asked_of_the_pip_that_can_tell_it(version, bar):
    assert installer.install_options(version)[-1] == bar


def test_steps_run_in_order_and_are_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_REQUIRE_HASHES", "1")
    stream = io.StringIO()
    installer.run_steps(
        [
            python(
                "one",
                "import os; print(os.getcwd(), os.environ.get('PIP_TARGET'), "
                "os.environ['PIP_REQUIRE_HASHES'])",
            ),
            python("two", "import sys; print('Progress 1 of 2'); print('oh', file=sys.stderr)"),
        ],
        folder=tmp_path,
        line=StatusLine(stream),
    )
    log = (tmp_path / "install.log").read_text()
    assert f"{tmp_path} None 0\n" in log
    assert "oh\n" in log
    assert "\nProgress" not in log
    assert "step 1 of 2, one" in stream.getvalue()
    assert "step 2 of 2, two" in stream.getvalue()


def test_clock_goes_on_while_a_step_is_silent(tmp_path):
    stream = io.StringIO()
    installer.run_steps(
        [python("sleep", "import time; time.sleep(1.3)")],
        folder=tmp_path,
        line=StatusLine(stream, every=0.4),
    )
    assert len(stream.getvalue().splitlines()) >= 3


def test_hundreds_of_right_hashes_do_not_hide_which_package_is_wrong(tmp_path):
    code = "print('ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.')\n"
    code += "print('    a-b==1.0 from http://x/a_b-1.0.whl:')\n"
    code += "for n in range(300): print(f'             or {n:064x}')\n"
    code += "print('             Got        ' + 64 * 'f'); raise SystemExit(1)"
    with pytest.raises(SetupError, match=r"a file for a-b==1\.0 that is not .*\(packages\)"):
        installer.run_steps(
            [python("packages", code)], folder=tmp_path, line=StatusLine(io.StringIO())
        )
    assert f"or {299:064x}" in (tmp_path / "install.log").read_text(), "the log has all of it"


def test_failed_step_ends_the_rest(tmp_path):
    steps = [
        python("bad", "print('ERROR: no good reason'); raise SystemExit(3)"),
        python("never", "open('never', 'w')"),
    ]
    with pytest.raises(SetupError, match=r"\(bad\): no good reason"):
        installer.run_steps(steps, folder=tmp_path, line=StatusLine(io.StringIO()))
    assert not (tmp_path / "never").exists()


def test_interrupted_step_is_ended_too(tmp_path, monkeypatch):
    line = StatusLine(io.StringIO())
    shown = []

    def interrupt(stage: str, doing: str) -> None:
        shown.append(doing)
        if doing == "looking for x":
            raise KeyboardInterrupt

    monkeypatch.setattr(line, "show", interrupt)
    code = (
        "import pathlib, time; print('Collecting x', flush=True);"
        "time.sleep(2); pathlib.Path('after').touch()"
    )
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def remember(*arguments, **keywords):
        started.append(popen(*arguments, **keywords))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt):
        installer.run_steps([python("long", code)], folder=tmp_path, line=line)
    assert started[0].poll() is not None
    assert not (tmp_path / "after").exists()


def test_lock_is_for_one_at_a_time(tmp_path):
    stream = io.StringIO()
    inside = threading.Event()

    def second() -> None:
        with installer.setup_lock(tmp_path, StatusLine(stream)):
            inside.set()

    thread = threading.Thread(target=second)
    with installer.setup_lock(tmp_path, StatusLine(io.StringIO())):
        thread.start()
        assert not inside.wait(0.5)
    assert inside.wait(5)
    thread.join()
    assert stream.getvalue().count("waiting for it to finish") == 1


def test_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from app.setup import installer;"
        "line = installer.StatusLine(sys.stderr)\n"
        "with installer.setup_lock(Path(sys.argv[1]), line):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    root = Path(installer.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    stream = io.StringIO()
    with installer.setup_lock(tmp_path, StatusLine(stream)):
        assert stream.getvalue() == ""


def test_control_characters_of_others_reach_no_terminal() -> None:
    hostile = "\x1b]0;owned\x07\x9b2J\u202e\r"
    written = "\\x1b]0;owned\\x07\\x9b2J\\u202e\\x0d"
    assert str(SetupError(f"{hostile} cannot be read.")) == f"{written} cannot be read."
    for stream in (Terminal(), io.StringIO()):
        line = StatusLine(stream)
        line.show("packages", f"reading {hostile}")
        line.say(f"No {hostile}.")
        said = stream.getvalue()
        assert said.count(written) == 2
        assert {one for one in said if not one.isprintable()} <= {"\r", "\n"}
    why = installer.explain_failure("packages", f"ERROR: no {hostile} there", Path("log"))
    assert written.removesuffix("\\x0d") in str(SetupError(why))
