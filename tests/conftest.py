"""What every test shares: no network, no home, no leftover workspace, two threads at most."""

from __future__ import annotations

import gc
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import quick, warm

# Time is no result of a test: a busy machine must not fail one. And what decides whether a change
# may land tries the same cases each time; new ones are looked for with --hypothesis-profile=search.
_CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("studio", _CALM, derandomize=True)
settings.register_profile("search", _CALM)
settings.load_profile("studio")

# Before torch or a hub library is imported anywhere, also in child processes.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    # As the studio sets it: the suite runs beside a browser.
    OMP_WAIT_POLICY="PASSIVE",
)
# Several processes of tests with several threads each wait for one another at every small product.
_TOGETHER = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1
os.environ.setdefault("OMP_NUM_THREADS", "1" if _TOGETHER else "2")
os.environ.pop("PIXART_STUDIO_WORKSPACE", None)

# A job that a shell starts in the background is deaf to Ctrl+C, and so is whatever it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_connect = socket.socket.connect


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="only what loads no model and no browser and starts no process",
    )


def _is_handed_tests(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole quick part uses every core, unless somebody says otherwise."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    # Without the plugin, and in the processes that it hands tests to, it is not for us to say.
    undecided = getattr(config.option, "numprocesses", 1) is None and not _is_handed_tests(config)
    if config.getoption("quick") and whole and undecided and not config.option.usepdb:
        config.option.numprocesses = min(os.cpu_count() or 1, 8)
        config.option.dist = "loadfile"


def pytest_configure(config: pytest.Config) -> None:
    # With -n the process that hands the tests out starts others, and runs none.
    hands_out = getattr(config.option, "numprocesses", None) and not _is_handed_tests(config)
    if config.getoption("quick") and not hands_out:
        quick.refuse_what_is_slow()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("quick") and quick.is_never_quick(collection_path) else None


def _is_here(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guarded(self: socket.socket, address: Any) -> None:
    if not _is_here(address):
        raise OSError(f"tests have no network: {address!r}")
    _connect(self, address)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


@pytest.fixture(scope="module", autouse=True)
def _little_to_look_through() -> None:
    """What lives when a file of tests begins stays, and no collection looks through it any more.

    The studio collects each time that it gives memory back. After a thousand tests of the page that
    would take a second, and no test has anything to do with what was there before its file.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    # Otherwise a library tells at the end of what it takes for leaks.
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    socket.socket.connect = _guarded  # type: ignore[method-assign, assignment]
    yield
    socket.socket.connect = _connect  # type: ignore[method-assign]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that everything in this test writes to."""
    folder = tmp_path / "workspace"
    monkeypatch.setenv("PIXART_STUDIO_WORKSPACE", str(folder))
    return folder


@pytest.fixture
def warm_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes of the studio are forks of one that has torch loaded.

    In everything else they are as those that it starts itself, whose imports take eight seconds.
    """
    from pipelines.processes import child

    given = SimpleNamespace(get_context=lambda _: warm.Children)
    monkeypatch.setattr(child, "multiprocessing", given)
