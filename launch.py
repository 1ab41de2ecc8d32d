"""Starts PixArt Studio; on a fresh machine it first makes the environment that the studio runs in.

    python3 launch.py            the studio in the browser
    python3 launch.py VERB ...   any other verb; VERB --help explains it
    python3 launch.py test ...   the test suite; what follows goes to pytest

`--torch auto|cpu|cuda|rocm`, anywhere on the line, picks the build of torch for the environment.

This file keeps to the syntax of Python 3.6, so that an old Python can say which one is needed
where it would otherwise show a SyntaxError. It does nothing heavy, and nothing when it is imported,
because every worker process that is started by "spawn" imports it once more.
"""

import os
import sys
from collections.abc import Callable

NEEDED = (3, 11)
NEWEST_LOOKED_FOR = 15


def starts(name: str) -> bool:
    """Say whether a Python of this name is on the PATH and really starts.

    Version managers leave commands on the PATH that only print that no such version is chosen.
    """
    import shutil
    import subprocess

    path = shutil.which(name)
    if path is None:
        return False
    try:
        quiet = subprocess.DEVNULL
        return subprocess.call([path, "-c", ""], stdout=quiet, stderr=quiet, timeout=10) == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def refusal(version: "tuple[int, ...]", starts: "Callable[[str], bool]" = starts) -> "str | None":
    """Say why a Python of this version cannot run the studio and what to do; None where it can.

    A newer Python that is already on the machine (`starts(name)`) is the shortest way out.
    """
    if version[:2] >= NEEDED:
        return None
    have = ".".join(str(part) for part in version[:3])
    told = f"PixArt Studio needs Python {NEEDED[0]}.{NEEDED[1]} or newer; this is {have}."
    for minor in range(NEWEST_LOOKED_FOR, NEEDED[1] - 1, -1):
        name = f"python3.{minor}"
        if starts(name):
            return f"{told} This machine has a newer one, so start it with: {name} launch.py"
    return f"{told} Get one from https://www.python.org/downloads/ and start the studio with it."


def lost_folder() -> "str | None":
    """Say what to do where the folder that we were started in was deleted; None where it is there.

    Python itself then fails wherever a path is made whole.
    """
    try:
        os.getcwd()
    except OSError:
        return (
            "The folder in which PixArt Studio was started is not there any more: change to "
            "another folder and start it again."
        )
    return None


def little_space() -> "str | None":
    """Say that `ulimit -v` leaves too little to start at all; None where it does not.

    The libraries of numbers keep some for each processor, and end the process where they cannot.
    """
    try:
        import resource
    except ImportError:
        return None
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = 150000000 + 40000000 * (os.cpu_count() or 1)
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return None
    return (
        f"The system allows this process {allowed / 1e6:.0f} MB of address space, and PixArt "
        f"Studio needs {needed / 1e6:.0f} MB to start: raise that limit (ulimit -v unlimited)."
    )


def speak_utf8() -> None:
    """Begin anew in Python's UTF-8 mode where the locale knows nothing but ASCII.

    Otherwise neither prompts nor names of files could hold other letters. Python does so by itself,
    unless PYTHONUTF8=0 keeps it from that.
    """
    if sys.getfilesystemencoding() != "ascii" or sys.flags.utf8_mode:
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def run(argv: "list[str]") -> int:
    """Make the environment right, then hand the command line to the studio or to pytest."""
    root = os.path.dirname(os.path.abspath(__file__))
    # Python does not look for modules beside the script with -P, -I or PYTHONSAFEPATH.
    if root not in sys.path:
        sys.path.insert(0, root)
    from app.setup import environment

    try:
        rest = environment.prepare(root, argv)
        if rest[:1] == ["test"]:
            environment.run_tests(root, rest[1:])
    except environment.SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped during set-up; the next start goes on from there.", file=sys.stderr)
        return 130

    try:
        from app.cli.main import main as studio
    except (ImportError, MemoryError) as error:
        # Of all that is missing only room can be missing now.
        if not isinstance(error, MemoryError) and "map segment" not in str(error):
            raise
        print("There is too little memory or address space to start (ulimit -v).", file=sys.stderr)
        return 2
    return studio(rest)


def main(argv: "list[str]") -> int:
    """Run one command line; returns its exit code: 0 well, 2 the user can repair it, 130 Ctrl+C."""
    # Both are missing where a program without a terminal starts us.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    try:
        told = refusal(sys.version_info[:3])
        told = told or lost_folder() or little_space()
        if told:
            print(told, file=sys.stderr)
            return 2
        speak_utf8()
        return run(argv)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    # Otherwise nothing of ours may have been loaded, nor be there to be loaded.
    if "torch" in sys.modules:
        from pipelines.processes.leaving import leave

        leave(ended)
    sys.exit(ended)
