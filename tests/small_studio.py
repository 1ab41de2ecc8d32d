"""A small copy of the project to start for real: the true launcher, requirements of a few bytes.

Its command line prints what it was given. pip really runs, against a folder of wheels that are made
here, or against an index of them that is served on this machine.
"""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import launch

ROOT = Path(launch.__file__).parent
COMMAND_LINE = """
import json, sys

def main(argv):
    print(json.dumps({"argv": argv, "prefix": sys.prefix}))
    if argv == ["wait"]:
        import time
        time.sleep(60)
    return 7 if argv == ["seven"] else 0
"""
# Stands for pytest in the small copy: tells how it was called and ends as no other part does.
RUNNER = "import os, sys\nprint(sys.argv[1:], os.getcwd())\nsys.exit(5)\n"


def build_wheel(
    folder: Path,
    name: str,
    version: str,
    files: dict[str, str] | None = None,
    needs: Sequence[str] = (),
) -> Path:
    """Write a pure Python wheel that pip accepts; `needs` are its requirements."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = files or {f"{name}/__init__.py": f"version = {version!r}\n"}
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {other}\n" for other in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return path


@dataclass(frozen=True, kw_only=True)
class Studio:
    """A small copy of the project, and the variables with which it is started."""

    root: Path
    wheels: Path
    variables: dict[str, str]

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path:
        return next(self.venv.glob("[Ll]ib/**/site-packages"))

    @property
    def log(self) -> str:
        path = self.venv / "install.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def stamp(self) -> dict[str, str]:
        return json.loads((self.venv / "studio-stamp.json").read_text(encoding="utf-8"))

    def require(self, *pins: str, torch: Sequence[str] = (), wheels: Path | None = None) -> None:
        """Ask for other packages, and lock them; `torch` is what goes into the lock of torch."""
        write_pins(self.root, [*pins, *(pin for pin in torch if pin.startswith("torch=="))])
        self.lock(*pins)
        write_lock(self.root / "requirements-torch.lock", torch, wheels or self.wheels)

    def lock(self, *pins: str) -> None:
        """Lock these packages, whatever is asked for."""
        write_lock(self.root / "requirements.lock", pins, self.wheels)

    def begin(self, *argv: str, python: str | Path = sys.executable, **variables: str):
        """Start it in a process group of its own, as a terminal would."""
        return subprocess.Popen(
            [str(python), str(self.root / "launch.py"), *argv],
            env=self.variables | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, *argv: str, python: str | Path = sys.executable, **variables: str) -> "Ended":
        return ended(self.begin(*argv, python=python, **variables))


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def told(self) -> dict:
        """What the command line of the copy printed; nothing else may be on stdout."""
        return json.loads(self.out)


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return Ended(code=process.returncode, out=out, err=err)


def write_pins(root: Path, pins: Sequence[str]) -> None:
    (root / "requirements.txt").write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")


def write_lock(path: Path, pins: Sequence[str], wheels: Path) -> None:
    """Lock `name==version` to the wheel in that folder; without one, to a hash of zeros."""
    text = ""
    for pin in pins:
        found = list(wheels.rglob(f"{pin.replace('==', '-')}-*.whl"))
        known = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in found]
        text += " \\\n".join([pin, *(f"    --hash=sha256:{h}" for h in known or ["0" * 64])]) + "\n"
    path.write_text(text, encoding="utf-8")


def copy_project(root: Path, wheels: Path) -> Studio:
    (root / "app" / "cli").mkdir(parents=True)
    shutil.copy(ROOT / "launch.py", root)
    shutil.copytree(ROOT / "app" / "setup", root / "app" / "setup")
    # The only module outside that room which they need.
    (root / "pipelines").mkdir()
    shutil.copy(ROOT / "pipelines" / "streams.py", root / "pipelines")
    for package in ("app", "app/cli", "pipelines"):
        (root / package / "__init__.py").touch()
    (root / "app" / "cli" / "main.py").write_text(COMMAND_LINE, encoding="utf-8")
    (root / "requirements-dev.txt").write_text("pytest==0.1\n", encoding="utf-8")
    write_lock(root / "requirements-dev.lock", ["pytest==0.1"], wheels)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    studio = Studio(
        root=root,
        wheels=wheels,
        variables=inherited
        | {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
        },
    )
    studio.require("tinything==1.0")
    return studio


def clone(studio: Studio, root: Path) -> Studio:
    """Copy a studio with its environment; packages are linked, so write to them by `replace`."""

    def copy(source: str, target: str) -> None:
        link = "site-packages" in source and os.name != "nt"
        (os.link if link else shutil.copy2)(source, target)

    shutil.copytree(studio.root, root, symlinks=True, copy_function=copy)
    return Studio(root=root, wheels=studio.wheels, variables=studio.variables)


def replace(path: Path, text: str) -> None:
    """Put a new file in the place of one that other copies may share."""
    path.unlink()
    path.write_text(text, encoding="utf-8")


class Index(http.server.ThreadingHTTPServer):
    """A package index of a folder; `asked` tells of the first question, `open` lets answers out."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.asked = threading.Event()
        self.open = threading.Event()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(handler, *arguments) -> None:
                super().__init__(*arguments, directory=str(folder))

            def do_GET(handler) -> None:
                self.asked.set()
                self.open.wait(30)
                try:
                    super().do_GET()
                except (BrokenPipeError, ConnectionResetError):
                    handler.close_connection = True

            def log_message(handler, *_) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def serve(simple: Path, *wheels: Path) -> None:
    """Lay wheels out as a package index: a folder for each package."""
    for wheel in wheels:
        folder = simple / wheel.name.partition("-")[0].replace("_", "-")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel, folder)


def from_index(index: Index) -> dict[str, str]:
    """The variables that make pip ask that index and nothing else."""
    return {
        "PIP_NO_INDEX": "0",
        "PIP_FIND_LINKS": "",
        "PIP_INDEX_URL": f"{index.url}/simple",
        "no_proxy": "127.0.0.1",
    }
