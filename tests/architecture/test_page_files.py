"""The scripts and styles of the page: parsed, linted, short, and each of them used."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from app.ui import shell

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "assets" / "js").rglob("*.js"))
SHEETS = sorted((ROOT / "assets" / "css").glob("*.css"))
MAX_LINE = 120
MAX_IMPORTANT = 10


def linter() -> str:
    """The linter of the environment that runs the tests."""
    name = "oxlint.exe" if sys.platform == "win32" else "oxlint"
    program = Path(sysconfig.get_path("scripts")) / name
    assert program.is_file(), "oxlint is missing: install requirements-dev.lock"
    return str(program)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [linter(), "--config", str(ROOT / ".oxlintrc.json"), str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_linter_finds_nothing() -> None:
    out = lint(ROOT / "assets" / "js")
    assert out.returncode == 0, out.stdout + out.stderr
    assert f"on {len(SCRIPTS)} files" in out.stdout


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("export const a = () => {\n", "Expected"),
        ("const a = 1;\nexport default 2;\n", "no-unused-vars"),
        ('import { b } from "./b.js";\nexport default 2;\n', "no-unused-vars"),
        ('import { c } from "./b.js";\nexport default c;\n', "import(named)"),
        ("export default () => gallrey.open();\n", "no-undef"),
        ("export default (a) => a == 1;\n", "eqeqeq"),
    ],
)
def test_the_linter_would_find_it(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "a.js").write_text(text, "utf-8")
    (tmp_path / "b.js").write_text("export const b = 1;\n", "utf-8")
    out = lint(tmp_path)
    assert out.returncode == 1
    assert rule in out.stdout


def test_every_script_is_used() -> None:
    """By a component, by another script, or by the page itself."""
    code = "\n".join(f.read_text("utf-8") for f in (ROOT / "app" / "ui").rglob("*.py"))
    named = set(re.findall(r'"([a-z]+/[a-z]+\.js)"', code))
    for file in (ROOT / "app" / "ui").glob("*/tab.py"):
        tab, text = file.parent.name, file.read_text("utf-8")
        parts = {file.stem for file in (ROOT / "assets" / "js" / tab).glob("*.js")}
        named |= {f"{tab}/{part}.js" for part in parts if f'"{part}"' in text}
    used = named | {"studio.js"}
    for file in SCRIPTS:
        for other in re.findall(r'(?:from|import) "(\.[^"]+)"', file.read_text("utf-8")):
            used.add((file.parent / other).resolve().relative_to(ROOT / "assets/js").as_posix())
    assert used == set(shell.scripts())


def test_every_style_is_served() -> None:
    sheet = shell.asset("css/studio.css")
    for file in (ROOT / "assets" / "css").glob("*.css"):
        assert file.read_bytes() in sheet, file.name


def test_scripts_and_styles_are_written_to_be_read() -> None:
    for file in [*SCRIPTS, *SHEETS]:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            assert len(line) <= MAX_LINE, f"{file.name}:{number}"


def test_styles_win_by_weight() -> None:
    """What is forced can only be forced back; each such rule says against what it stands."""
    whole = "".join(sheet.read_text("utf-8") for sheet in SHEETS)
    text = re.sub(r"/\*.*?\*/", "", whole, flags=re.DOTALL)
    assert text.count("!important") <= MAX_IMPORTANT


def test_every_sheet_is_served() -> None:
    served = shell.asset("css/studio.css")
    for sheet in SHEETS:
        assert sheet.read_bytes() in served, sheet.name
