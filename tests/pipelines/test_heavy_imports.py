"""A process that paints loads what it needs, and no more; and has everything all the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipelines.errors import OutOfMemoryError
from pipelines.heavy_imports import importing_diffusers, uncollected
from pipelines.memory import address_space
from tests import warm

pytestmark = pytest.mark.slow

SCRIPT = """
import gc, sys
from pipelines.heavy_imports import importing_diffusers
with importing_diffusers():
    import pipelines.engine
loaded = [m for m in ("peft", "bitsandbytes", "torch._inductor.compile_fx") if m in sys.modules]
assert not loaded, loaded
assert gc.isenabled() and gc.get_freeze_count() > 100_000
# Whoever needs them finds them.
import bitsandbytes, peft
"""


def test_an_engine_costs_nothing_that_it_does_not_use() -> None:
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    # Nothing is said at the end either: libraries take for leaks what is frozen.
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


@pytest.mark.parametrize("text", ["int8", "nf4"])
def test_a_quantised_t5_works_in_such_a_process(text: str, tmp_path: Path) -> None:
    painting = warm.Started(_paint, text, str(tmp_path))
    told = painting.stdout.read()
    assert (painting.wait(), told) == (0, "('bitsandbytes', 1)\n"), painting.stderr


def _paint(text: str, folder: str) -> None:
    """Runs in a fork of a process that began with `importing_diffusers`."""
    assert "bitsandbytes" not in sys.modules
    from pipelines import engine as engines
    from pipelines.catalog import Catalog
    from pipelines.request import complete

    plan = engines.planning.plan

    def chosen(*given: Any) -> Any:
        changes: Any = {"text": text, "text_precision": "bfloat16", "keeps_text": False}
        return replace(plan(*given), **changes)

    catalog = Catalog()
    engine = engines.Engine(catalog, inputs=Path(folder))
    wanted = complete({"prompt": "a red apple", "size": "128x128", "steps": 2}, catalog)
    with mock.patch.object(engines.planning, "plan", chosen):
        pictures = list(engine.generate(wanted, lambda progress: None, lambda: False))
    print(("bitsandbytes" if "bitsandbytes" in sys.modules else "", len(pictures)), flush=True)


def test_where_there_is_no_room_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_space, "limit", lambda: 1_000_000_000)
    with pytest.raises(OutOfMemoryError), importing_diffusers():
        raise AssertionError("it was entered")


def test_the_collector_is_as_it_was_after_a_failure() -> None:
    import gc

    with pytest.raises(ValueError, match="broken"), uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
        raise ValueError("broken")
    assert gc.isenabled()
