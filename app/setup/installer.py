"""Runs the steps of the set-up: one calm status line, a log of all output, failures as a sentence.

Standard library only: this runs before anything is installed. Everything said here goes to stderr,
so that stdout carries nothing but what a verb prints.
"""

import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TextIO

from pipelines.streams import bare, escape

LOG_NAME = "install.log"
LOCK_NAME = "studio.lock"
# A failure is judged by this much of the output: trouble that pip got over lies further back.
TAIL_LINES = 40
# Inherited settings that would send the packages elsewhere, or hide what pip does.
UNWANTED_SETTINGS = (
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_DRY_RUN",
    "PIP_REPORT",
    "PIP_QUIET",
    # Secrets of the page, which no package has to know.
    "PIXART_STUDIO_SHARE_TOKEN",
    "PIXART_STUDIO_ADMIN_TOKEN",
)
# Set against pip's own files of settings. Hashes are demanded where they are locked, nowhere else.
SETTINGS = {
    "PIP_USER": "0",
    "PIP_NO_COLOR": "1",
    "PIP_REQUIRE_HASHES": "0",
    "PIP_NO_DEPS": "0",
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
}
NETWORK_SIGNS = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ConnectionResetError"
    r"|ProxyError|Max retries exceeded|Connection (refused|aborted|broken)|Network is unreachable"
    r"|Temporary failure in name resolution|Remote end closed|timed out|Failed to connect",
    re.IGNORECASE,
)
TRUST_SIGNS = re.compile(r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification")
NO_BUILD = re.compile(r"No matching distribution found for (\S+)")
# How pip names a file whose hash is not in the lock: the line with the package, then what it got.
OTHER_FILE = re.compile(
    r"THESE PACKAGES DO NOT MATCH THE HASHES.*?^ +([\w.-]+==\S+)", re.DOTALL | re.MULTILINE
)
# One line of pip's for each further hash that would have been right; there may be hundreds.
OTHER_HASH = re.compile(r" +or [0-9a-f]{64}$")


class SetupError(Exception):
    """The set-up cannot go on; the message is one plain sentence with a way out.

    It may name what comes from outside (folders, what pip and the index say): escaped here, for
    whoever prints it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(escape(sentence))


@dataclass(frozen=True, kw_only=True)
class SetupStep:
    """One command of the set-up and the name under which the user sees it."""

    name: str
    command: tuple[str, ...]


class StatusLine:
    """Says what is being done and for how long: one line in place, or plain lines in a log.

    Without a terminal a line comes every `every` seconds at most, so that there is neither a long
    silence nor a flood.
    """

    def __init__(
        self, stream: TextIO, *, every: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # It moves the cursor itself, and escapes what it shows.
        self._stream = bare(stream)
        self._every = every
        self._clock = clock
        self._started = clock()
        self._last_said = float("-inf")
        self._stage = ""
        self._on_screen = 0
        self._terminal = stream.isatty()

    def elapsed(self) -> str:
        """The time since the first word, as minutes and seconds: 1:07."""
        seconds = int(self._clock() - self._started)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def show(self, stage: str, doing: str) -> None:
        """Name the stage and what goes on in it; safe to call as often as one likes."""
        text = escape(f"{self.elapsed()}  {stage}" + (f": {doing}" if doing else ""))
        now = self._clock()
        if self._terminal:
            room = shutil.get_terminal_size().columns - 1
            text = text[:room]
            # Padding with blanks instead of an escape code: old Windows consoles show the code.
            self._stream.write("\r" + text + " " * (self._on_screen - len(text)))
            self._on_screen = len(text)
        elif stage != self._stage or now - self._last_said >= self._every:
            self._stream.write(text + "\n")
            self._last_said = now
        self._stage = stage
        self._stream.flush()

    def say(self, sentence: str) -> None:
        """Print a sentence that stays."""
        self.clear()
        self._stream.write(escape(sentence) + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Take the changing line off the terminal."""
        if self._on_screen:
            self._stream.write("\r" + " " * self._on_screen + "\r")
            self._stream.flush()
            self._on_screen = 0


def describe(line: str, doing: str) -> str:
    """Turn a line of pip's output into a few words; returns `doing` where it tells nothing new."""
    line = line.strip()
    if match := re.match(r"Progress (\d+) of (\d+)$", line):
        done, whole = int(match[1]), int(match[2])
        base = re.sub(r", \d+ %$", "", doing)
        return f"{base}, {100 * done // whole} %" if whole else base
    if match := re.match(r"Collecting ([\w.\[\]-]+)", line):
        return f"looking for {match[1]}"
    if match := re.match(
        r"(Downloading|Using cached|Processing) (\S+)(?: (\(\d[\d.]* \w+\)))?", line
    ):
        name = "-".join(match[2].rsplit("/", 1)[-1].split("-")[:2])
        verb = {"Downloading": "downloading", "Using cached": "taking from the cache"}.get(
            match[1], "reading"
        )
        return f"{verb} {name} {match[3]}" if match[3] else f"{verb} {name}"
    if match := re.match(r"Installing collected packages: (.*)", line):
        count = match[1].count(",") + 1
        return f"unpacking {count} packages" if count > 1 else f"unpacking {match[1]}"
    if re.match(r"WARNING: Retrying", line):
        return "the network does not answer, trying again"
    return doing


def explain_failure(name: str, output: str, log: Path) -> str:
    """Say in one sentence why a step failed, judged by the last lines of its output."""
    full = f"the full output is in {log}"
    if "No space left on device" in output or "Errno 28" in output:
        return (
            f"The disk became full during set-up ({name}): free some space, also where temporary "
            f"files go (the variable TMPDIR), and start again; {full}."
        )
    if match := OTHER_FILE.search(output):
        return (
            f"The package registry sent a file for {match[1]} that is not the one PixArt Studio is "
            f"locked to (its SHA-256 differs), so pip installed nothing of this step ({name}): for "
            f"a damaged download run '{sys.executable} -m pip cache purge' and start again; if it "
            f"comes again do not use that mirror or proxy, which changes files; {full}."
        )
    if TRUST_SIGNS.search(output):
        return (
            f"The package registry's certificate is not trusted here ({name}): behind a company "
            f"proxy point the variable PIP_CERT at its certificate and start again; {full}."
        )
    if NETWORK_SIGNS.search(output):
        return (
            f"The package registry cannot be reached ({name}): the first start needs the internet, "
            f"so check the connection or the proxy settings and start again; {full}."
        )
    if match := NO_BUILD.search(output):
        version = ".".join(str(part) for part in sys.version_info[:2])
        # With no version at all it may also be that pip was told not to try twice.
        other = ", or it cannot be reached" if "(from versions: none)" in output else ""
        return (
            f"The package registry has no {match[1]} for Python {version} on this system{other} "
            f"({name}): try another Python from 3.11 on, or another index if you set one; {full}."
        )
    if "Permission denied" in output or "Errno 13" in output or "WinError 5" in output:
        return (
            f"A file could not be written during set-up ({name}): close other programs that use "
            f"the studio's .venv folder, check that the folder is yours, and start again; {full}."
        )
    errors = [line for line in output.splitlines() if line.startswith(("ERROR:", "error:"))]
    reason = errors[-1].split(":", 1)[1].strip().rstrip(".") if errors else "pip gave no reason"
    return (
        f"Set-up failed ({name}): {reason}; start again, and if that does not help delete the "
        f".venv folder first; {full}."
    )


def install_options(pip_version: str) -> tuple[str, ...]:
    """The options of `pip install` that make it tell its progress line by line, where it can."""
    release = tuple(int(part) for part in re.findall(r"\d+", pip_version)[:2])
    # Before 24.1 pip draws its progress for terminals only, and there the status line is drawn.
    bar = "raw" if release >= (24, 1) else "off"
    return ("--no-input", "--disable-pip-version-check", "--progress-bar", bar)


def run_steps(
    steps: Sequence[SetupStep], *, folder: Path, line: StatusLine, keep_open: Sequence[int] = ()
) -> None:
    """Run the commands one after another in `folder`, which also gets the log.

    `keep_open` are the descriptors that the commands inherit. Raises SetupError when one
    fails.
    """
    log = folder / LOG_NAME
    with log.open("a", encoding="utf-8") as record:
        for number, step in enumerate(steps, start=1):
            stage = f"step {number} of {len(steps)}, {step.name}" if len(steps) > 1 else step.name
            record.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(step.command)}\n")
            code, tail = _run(
                step.command,
                folder=folder,
                record=record,
                keep_open=keep_open,
                told=partial(line.show, stage),
            )
            if code:
                line.clear()
                raise SetupError(explain_failure(step.name, tail, log))


def _run(
    command: Sequence[str],
    *,
    folder: Path,
    record: TextIO,
    keep_open: Sequence[int],
    told: Callable[[str], None],
) -> tuple[int, str]:
    """Run one command to its end; returns its exit code and the last part of what it printed."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=_settings(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        pass_fds=tuple(keep_open),
    )
    assert process.stdout is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    tail: list[str] = []
    doing = ""
    try:
        while True:
            told(doing)
            try:
                text = lines.get(timeout=0.5)
            except queue.Empty:
                continue
            if text is None:
                return process.wait(), "".join(tail)
            doing = describe(text, doing)
            if not text.startswith("Progress "):
                record.write(text)
                if not OTHER_HASH.match(text):
                    tail = [*tail[-(TAIL_LINES - 1) :], text]
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _pump(output: IO[str], lines: "queue.SimpleQueue[str | None]") -> None:
    """Carry the output into the queue, so that the clock goes on while a command is silent."""
    with output:
        for text in output:
            lines.put(text)
    lines.put(None)


def _settings() -> dict[str, str]:
    """The variables for pip: the user's own (proxy, mirror, cache) less what would mislead it."""
    kept = {key: value for key, value in os.environ.items() if key not in UNWANTED_SETTINGS}
    return kept | SETTINGS


@contextmanager
def setup_lock(folder: Path, line: StatusLine) -> Iterator[tuple[int, ...]]:
    """Hold the right to change the environment in `folder`; waits for another start that holds it.

    The system takes the lock away from a process that dies, so none is ever left behind. Yields the
    descriptors for `run_steps(keep_open=...)`: a pip that inherits the lock keeps it, should this
    process be killed while pip still works. Windows has no such inheritance.
    """
    with (folder / LOCK_NAME).open("a+b") as handle:
        waiting = False
        while not _try_lock(handle):
            if not waiting:
                line.say(
                    "Another start of the studio is setting up .venv; waiting for it to finish."
                )
            waiting = True
            time.sleep(0.2)
        yield () if sys.platform == "win32" else (handle.fileno(),)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: IO[bytes]) -> bool:
        handle.seek(0)
        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(handle: IO[bytes]) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # Some network file systems have no locks; setting up without one beats not at all.
            return True
        return True
