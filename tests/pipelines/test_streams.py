"""Control characters of others are shown on a terminal and in a log, not obeyed."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import main
from app.cli.status import Status
from pipelines import streams

HOSTILE = "\x1b[2J\x07\r\b\x7f\x9b31m\u202e\u2028"


def test_every_control_character_is_written_out() -> None:
    everything = "".join(map(chr, range(0x3000)))
    shown = streams.escape(everything)
    assert {c for c in shown if not c.isprintable()} & set(map(chr, range(0xA0))) == {"\n", "\t"}
    assert "\u202e" not in shown
    assert "\u2028" not in shown
    assert streams.escape("ünï “a”\n\tß 猫 🐈") == "ünï “a”\n\tß 猫 🐈"
    assert streams.escape("\x1b\r\u202e") == "\\x1b\\x0d\\u202e"


def test_what_is_printed_logged_and_raised_is_escaped() -> None:
    stream = io.StringIO()
    safe = streams.escaping(stream)
    assert streams.escaping(safe) is safe
    print(HOSTILE, file=safe, flush=True)
    logging.StreamHandler(safe).handle(logging.LogRecord("x", 30, "x", 1, "%s", (HOSTILE,), None))
    safe.writelines([HOSTILE])
    assert stream.getvalue().count("\\x1b[2J") == 3
    assert not [c for c in stream.getvalue() if c != "\n" and not c.isprintable()]


class Terminal(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_the_status_line_moves_the_cursor_and_nothing_else_does() -> None:
    stream = Terminal()
    status = Status(streams.escaping(stream))
    status.text(f"model {HOSTILE}")
    status.say(f"done {HOSTILE}")
    written = stream.getvalue()
    assert written.startswith("\rmodel \\x1b[2J")
    assert set(written) & set("\x1b\x07\x9b\b\x7f\u202e") == set()


@pytest.mark.parametrize(
    "argv",
    [
        ["--port", HOSTILE],
        ["--host", HOSTILE, "--share-token", "0123456789abcdef"],
        ["--public-url", HOSTILE],
        [HOSTILE],
        ["generate", "x", "--model", HOSTILE],
        ["generate", "x", "--out", f"/proc/{HOSTILE}"],
        ["generate", "--like", HOSTILE],
        ["gallery", "list", "--workspace", f"/proc/{HOSTILE}"],
        ["gallery", "search", f"date:{HOSTILE}"],
        ["models", "download", HOSTILE],
        ["loras", "import", HOSTILE],
        ["convert", HOSTILE, HOSTILE],
        ["train", "text-to-image", HOSTILE],
    ],
)
def test_no_verb_says_it_raw(
    argv: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIXART_STUDIO_WORKSPACE", str(tmp_path))
    # A search that finds nothing is well.
    assert main.main(argv) == (0 if argv[:2] == ["gallery", "search"] else 2)
    said = "".join(capsys.readouterr())
    assert said
    assert not [c for c in said if c not in "\n\t" and not c.isprintable()], said


def test_the_log_of_the_painting_process_is_escaped(tmp_path: Path) -> None:
    script = (
        "import sys, logging\nfrom pathlib import Path\nfrom pipelines.processes import inside\n"
        "inside.log_to(Path(sys.argv[1]))\n"
        f"print({HOSTILE!r})\nlogging.warning({HOSTILE!r})\nraise ValueError({HOSTILE!r})\n"
    )
    file = tmp_path / "worker.log"
    subprocess.run(
        [sys.executable, "-c", script, str(file)], cwd=main.__file__.rpartition("/app/")[0]
    )
    written = file.read_text("utf-8")
    assert written.count("\\x1b[2J") >= 3
    assert not [c for c in written if c != "\n" and not c.isprintable()]
