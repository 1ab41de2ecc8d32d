"""The rules of the design, held: layers, light imports, sizes, seams, documented names."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RANKS = {"lora_manager": 0, "pipelines": 1, "training": 2, "app": 3, "app.ui": 4, "launch": 5}
PACKAGES = ("lora_manager", "pipelines", "training", "app")
HEAVY = ("torch", "diffusers", "transformers", "peft", "gradio")
# Loaded by the first prompt that is cleaned with them.
LATE = ("bs4", "ftfy")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_POSITIONAL = 6
# Functions over a limit, each with the reason.
LONG_FUNCTIONS = {
    "app/cli/convert.py:import_": "its parameters are the options of the command, one line each",
}
MANY_POSITIONAL = {
    "app/cli/convert.py:convert": "typer makes each parameter an option",
    "app/cli/convert.py:import_": "typer makes each parameter an option",
    "app/cli/main.py:studio": "typer makes each parameter an option",
    "app/cli/loras.py:import_": "typer makes each parameter an option",
    "app/cli/lora_work.py:export": "typer makes each parameter an option",
    "app/cli/lora_work.py:merge": "typer makes each parameter an option",
    "app/cli/lora_work.py:bake": "typer makes each parameter an option",
    "app/cli/gallery.py:export": "typer makes each parameter an option",
    "app/cli/models.py:download": "typer makes each parameter an option",
    "app/cli/train.py:text_to_image": "typer makes each parameter an option",
    "app/cli/train.py:lora": "typer makes each parameter an option",
    "app/cli/train.py:dreambooth": "typer makes each parameter an option",
    "app/cli/train_measures.py:evaluate_subjects": "typer makes each parameter an option",
    "app/cli/train_measures.py:evaluate_style": "typer makes each parameter an option",
    "app/cli/train_data.py:evaluate": "typer makes each parameter an option",
    "app/cli/train_data.py:scenes": "typer makes each parameter an option",
}
# The outermost seams, where any fault must become a sentence.
BROAD_EXCEPT = {
    "pipelines/processes/inside.py": "a fault of ours is a sentence, and no silent end of a child",
    "app/jobs/lanes.py": "a fault of ours ends the job and not the queue",
    "app/jobs/joblist.py": "a list that cannot be written ends no thread that runs jobs",
    "app/jobs/queue.py": "an order that fails keeps no other from being heard",
    "app/painting/process.py": "a fault of ours ends the job and not the worker",
    "app/painting/zero.py": "the platform raises anything, and a fault of ours ends the job alone",
    "pipelines/cancellation.py": "whatever ends the thread is raised again by the one that waits",
    "pipelines/denoising/residual.py": "compilers and fresh kernels fail in ways of their own",
    "pipelines/models/loader.py": "libraries raise nearly anything for a damaged file",
    "pipelines/engine.py": "lack of memory comes as several types, told apart by their words",
    "pipelines/picture_job.py": "lack of memory comes as several types, told apart by their words",
    "app/ui/guards/headers.py": "a fault of gradio or ours is a line in the log and an answer",
    "app/ui/page.py": "gradio raises nearly anything for a value that somebody forged",
    "app/cli/main.py": "a fault of ours becomes one sentence",
    "pipelines/models/weights.py": "torch raises nearly anything for a damaged checkpoint",
    "training/loop/trainer.py": "lack of memory comes as several types, told apart by their words",
    "pipelines/text/text_loader.py": "a damaged copy of quantised weights is made again",
    "training/methods/text_encoder.py": "the tokenizers library raises bare Exception",
    "pipelines/text/tokens.py": "the tokenizers library raises bare Exception",
}


def sources() -> list[Path]:
    files = [ROOT / "launch.py"]
    for package in PACKAGES:
        files += sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 20
    return files


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank_of(module: str) -> int | None:
    best = [p for p in RANKS if module == p or module.startswith(p + ".")]
    return RANKS[max(best, key=len)] if best else None


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {name_of(f): ast.parse(f.read_text("utf-8")) for f in sources()}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_modules_import_only_their_own_rank_or_lower() -> None:
    wrong = []
    for module, tree in modules().items():
        mine = rank_of(module)
        assert mine is not None
        for target in imports(tree):
            theirs = rank_of(target)
            if theirs is not None and theirs > mine:
                wrong.append(f"{module} -> {target}")
    # The command line hands over to the page: the one upward step, taken inside a function.
    assert [w for w in wrong if not w.startswith("app.cli.main -> app.ui.build")] == []


def test_no_import_cycles() -> None:
    trees = modules()
    graph = {
        module: {t for t in imports(tree) if t in trees and t != module}
        for module, tree in trees.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for target in graph[module]:
            visit(target, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_gradio_only_in_the_page() -> None:
    for module, tree in modules().items():
        if any(t.split(".")[0] == "gradio" for t in imports(tree)):
            assert module.startswith("app.ui."), module


def at_import(tree: ast.AST) -> Iterator[str]:
    """What is imported when the module itself is: not in functions, not for the types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        else:
            yield from at_import(node)


def heavy_modules() -> set[str]:
    """The modules outside the page that load one of the heavy five, themselves or by another."""
    direct = {module: set(at_import(tree)) for module, tree in modules().items()}
    heavy = {m for m, found in direct.items() if {t.split(".")[0] for t in found} & set(HEAVY)}
    while more := {m for m, found in direct.items() if found & heavy} - heavy:
        heavy |= more
    return {module for module in heavy if not module.startswith("app.ui")}


def test_the_list_of_heavy_modules_is_true() -> None:
    """It stands in pyproject.toml, where it also says which modules mypy holds less strictly."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    tables = tomllib.loads(text)["tool"]["mypy"]["overrides"]
    listed = [table["module"] for table in tables if "pipelines.engine" in table["module"]]
    assert listed == [sorted(heavy_modules())]


def test_light_modules_load_nothing_heavy() -> None:
    heavy = heavy_modules()
    light = [m for m in modules() if not m.startswith("app.ui.") and m not in heavy]
    # Whatever else becomes heavy, these never may: the page and the command line begin with them.
    needed = {"launch", "pipelines.request", "app.studio", "app.painting.worker", "app.cli.main"}
    assert needed <= set(light)
    assert not [m for m in heavy if m.startswith("app.")]
    script = (
        "import importlib, json, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        f"print(json.dumps([h for h in {(*HEAVY, *LATE)!r} if h in sys.modules]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(out.stdout.splitlines()[-1]) == []


def test_no_type_name_has_two_homes() -> None:
    homes: dict[str, list[str]] = {}
    for module, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_the_page_never_imports_torch() -> None:
    script = (
        "import sys, app.ui.build, app.studio\n"
        "print([h for h in ('torch', 'diffusers', 'transformers', 'peft') if h in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.splitlines()[-1] == "[]"


def test_a_sampling_run_is_assembled_in_one_place() -> None:
    steps = {"make_schedule", "start_latents", "denoise"}
    users = {
        module
        for module, tree in modules().items()
        if any(
            target.rpartition(".")[2] in steps and target.startswith("pipelines.denoising.denoise.")
            for target in imports(tree)
        )
    }
    assert users == {"pipelines.denoising.sampling"}


def test_data_folders_hold_no_python() -> None:
    for folder in ("presets", "assets"):
        assert not list((ROOT / folder).rglob("*.py"))


def test_every_preset_has_exactly_one_reader() -> None:
    text = {f.relative_to(ROOT).as_posix(): f.read_text("utf-8") for f in sources()}
    for preset in (ROOT / "presets").iterdir():
        mark = f'"presets" / "{preset.name}"' if preset.is_dir() else f'"{preset.name}"'
        readers = [where for where, code in text.items() if mark in code]
        assert len(readers) == 1, (preset.name, readers)


def test_assets_stay_small() -> None:
    total = sum(f.stat().st_size for f in (ROOT / "assets").rglob("*") if f.is_file())
    assert total <= 80 * 2**20


def test_files_and_functions_stay_short() -> None:
    wrong = []
    for file in sources():
        where = file.relative_to(ROOT).as_posix()
        text = file.read_text("utf-8")
        if len(text.splitlines()) > MAX_FILE_LINES:
            wrong.append(f"{where} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            name = f"{where}:{node.name}"
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS:
                wrong.append(f"{name} has {length} lines")
            positional = [*node.args.posonlyargs, *node.args.args]
            count = len([a for a in positional if a.arg not in ("self", "cls")])
            if count > MAX_POSITIONAL and name not in MANY_POSITIONAL:
                wrong.append(f"{name} has {count} positional parameters")
    assert wrong == []


def test_no_globals_and_no_broad_excepts() -> None:
    for file in sources():
        where = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            assert not isinstance(node, ast.Global), where
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"bare except in {where}:{node.lineno}"
                names = [n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)]
                if {"Exception", "BaseException"} & set(names):
                    assert where in BROAD_EXCEPT, f"broad except in {where}:{node.lineno}"


def test_exceptions_to_the_rules_still_exist() -> None:
    for name in (*LONG_FUNCTIONS, *MANY_POSITIONAL):
        file, function = name.split(":")
        assert f"def {function}(" in (ROOT / file).read_text("utf-8")
    for where in BROAD_EXCEPT:
        assert "except Exception" in (ROOT / where).read_text("utf-8"), where


def documentation() -> str:
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return "\n".join(f.read_text("utf-8") for f in files)


def test_every_name_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    import app.cli.main
    from pipelines import errors
    from pipelines.catalog import Catalog
    from pipelines.denoising import samplers
    from pipelines.models import hub_rows
    from pipelines.text import styles

    text = documentation()
    wanted = {row.id for row in samplers.SAMPLERS.values()}
    wanted |= set(styles.all_styles()) | {model.id for model in Catalog()} | set(hub_rows.known())
    wanted |= {n for n, v in vars(errors).items() if isinstance(v, type) and n.endswith("Error")}
    help_text = ""
    from app.cli.gallery import app as gallery
    from app.cli.jobs import app as jobs
    from app.cli.loras import app as loras
    from app.cli.models import app as models
    from app.cli.train import app as train

    verbs = [[], ["generate"], ["bench"], ["convert"], ["doctor"]]
    for sub, verb_app in (
        ("train", train),
        ("models", models),
        ("gallery", gallery),
        ("loras", loras),
        ("jobs", jobs),
    ):
        commands = [(c.name, c.callback) for c in verb_app.registered_commands]
        names = [name or callback.__name__ for name, callback in commands if callback]
        verbs += [[sub], *([sub, name] for name in names)]
    for verb in verbs:
        assert app.cli.main.main([*verb, "-h"]) == 0
        help_text += capsys.readouterr().out
    wanted |= set(re.findall(r"(--[a-z-]+)", help_text)) - {"--help", "--no-browser"}
    wanted |= {c.callback.__name__ for c in app.cli.main.app.registered_commands if c.callback}
    wanted |= {word for verb in verbs for word in verb}
    wanted |= {"--torch", "SetupError", "test"}
    # Whole words in code marks, tables or command lines: "euler" inside "euler-ancestral" is not
    # enough.
    found = set(re.findall(r"[A-Za-z0-9+.-]*[A-Za-z0-9+]", text)) | {
        words.strip() for words in re.findall(r"[A-Za-z0-9 ]+", text)
    }
    missing = sorted(w for w in wanted if w not in found)
    assert missing == []


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_pinned(file: str) -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text("utf-8").splitlines()]
    for line in filter(None, lines):
        assert re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==[^=\s]+( ;.*)?", line) or line.startswith(
            "-r "
        ), line
