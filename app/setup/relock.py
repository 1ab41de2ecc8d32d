"""Makes the lock files anew from the pins: `python -m app.setup.relock`, where uv is.

uv resolves for all systems and every Python from the oldest that the studio runs on. What was
locked keeps its version as long as the pins allow it; `--upgrade` takes the newest of everything.
Only the package index is needed, and nothing is installed.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.setup import locks, torch_build
from app.setup.environment import OLDEST_PYTHON
from app.setup.installer import SetupError
from app.setup.pins import PINS, TEST_PINS

ROOT = Path(__file__).resolve().parents[2]
HASHED_LINE = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
# pip comes with Python and does the installing; it cannot be replaced while it works on Windows.
LEFT_OUT = {"pip"}
HEADERS = {
    locks.PACKAGES: f"# Made by '{locks.REMAKE}' from {PINS}, without torch. Do not edit.",
    locks.TORCH: f"# Made by '{locks.REMAKE}': torch of the default registry and what only this "
    "build needs. Do not edit.",
    locks.TESTS: f"# Made by '{locks.REMAKE}' from {TEST_PINS}, less what is in {locks.PACKAGES}. "
    "Do not edit.",
}


def find_uv() -> list[str]:
    """The command that starts uv. Raises SetupError where there is none."""
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    if (path := shutil.which("uv")) is not None:
        return [path]
    raise SetupError(
        f"uv is not there: run '{sys.executable} -m pip install uv' and then this again."
    )


def resolve(uv: Sequence[str], root: Path, names: Sequence[str], *more: str, out: Path) -> str:
    """Let uv lock these files of pins into `out`, whose text it starts from. Raises SetupError."""
    command = [*uv, "pip", "compile", *names, *more, "--output-file", str(out)]
    command += ["--universal", "--python-version", "{}.{}".format(*OLDEST_PYTHON)]
    command += ["--generate-hashes", "--only-binary", ":all:"]
    # Neither settings nor addresses of this machine may get into the files.
    command += ["--no-config", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"uv found no set of packages:\n{done.stderr.strip()}")
    return out.read_text(encoding="utf-8")


def entries(text: str) -> Iterator[tuple[str, str]]:
    """The (name, lines) of each package of a lock. Raises SetupError for one without hashes."""
    for block in re.split(r"\n(?=\S)", text.strip()):
        if not block or block.startswith("#"):
            continue
        first, *hashes = block.splitlines()
        match = locks.ENTRY.match(first)
        if match is None or not hashes or not all(map(HASHED_LINE.fullmatch, hashes)):
            raise SetupError(f"uv wrote something that is no package with hashes: {block!r}")
        if match[1] not in LEFT_OUT:
            yield match[1], block + "\n"


def split(run: str, everything: str) -> dict[str, str]:
    """Divide what uv made of the pins, and of these with those of the tests, into our files."""
    parts: dict[str, list[str]] = {name: [] for name in HEADERS}
    needed = set()
    for name, block in entries(run):
        of_torch = torch_build.TORCH_AND_COMPANIONS.fullmatch(name)
        parts[locks.TORCH if of_torch else locks.PACKAGES].append(block)
        needed.add(block)
    parts[locks.TESTS] = [block for _, block in entries(everything) if block not in needed]
    return {name: f"{HEADERS[name]}\n{''.join(blocks)}" for name, blocks in parts.items()}


def relock(root: Path, *, upgrade: bool) -> list[str]:
    """Write the lock files in `root`; returns which of them changed. Raises SetupError."""
    uv = find_uv()
    old = {name: _text(root / name) for name in HEADERS}
    more = ["--upgrade"] if upgrade else []
    with tempfile.TemporaryDirectory() as folder:
        run, everything = Path(folder, "run.txt"), Path(folder, "all.txt")
        run.write_text(old[locks.PACKAGES] + old[locks.TORCH], encoding="utf-8")
        needed = resolve(uv, root, [PINS], *more, out=run)
        everything.write_text(needed + old[locks.TESTS], encoding="utf-8")
        # The tests must run on exactly what the studio runs on.
        held = ["--constraints", str(run), *more]
        new = split(needed, resolve(uv, root, [PINS, TEST_PINS], *held, out=everything))
    for name, text in new.items():
        (root / name).write_text(text, encoding="utf-8", newline="\n")
    return [name for name, text in new.items() if text != old[name]]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog=locks.REMAKE, description="Make the lock files anew.")
    parser.add_argument("--upgrade", action="store_true", help="the newest of everything unpinned")
    try:
        changed = relock(ROOT, upgrade=parser.parse_args(argv).upgrade)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    print("changed: " + ", ".join(changed) if changed else "The lock files are as they were.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
