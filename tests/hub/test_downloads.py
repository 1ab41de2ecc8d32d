"""Downloads against a hub that cuts, corrupts, slows, lies and refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipelines.catalog import Catalog
from pipelines.errors import BusyError, DownloadError, ModelError
from pipelines.models import hub_rows
from pipelines.models.hub import Hub
from pipelines.request import complete
from tests.fake_hub import FakeHub, safetensors
from tests.hub.conftest import ALPHA, BIG, COMMIT, WANTED, Shelf, parts
from tests.lora_manager import made
from tests.small_loras import NANO

ROOT = Path(__file__).resolve().parents[2]
SMALL = "PixArt-alpha/PixArt-XL-2-512x512"
SMALL_COMMIT = hub_rows.known()["alpha-512"].parts[0].revision


def sentence(caught: pytest.ExceptionInfo[Any]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    assert caught.value.way_out
    return text


# --- what is fetched --------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched_and_checked(hub: FakeHub, shelf: Shelf) -> None:
    plan = shelf.store.plan("alpha-1024")
    assert plan is not None
    assert {item.entry.path for item in plan.items} == WANTED
    assert plan.left == plan.total == sum(len(parts()[name]) for name in WANTED)
    assert not [asked for asked in hub.asked if not asked.path.startswith("list")]
    assert shelf.store.download(plan, report=shelf.readings.append)
    files = shelf.files()
    assert set(files) == {*WANTED, "download.json"}
    assert all(files[name] == parts()[name] for name in WANTED)
    last = shelf.readings[-1]
    assert last.total == plan.total
    model = Catalog(user_models=shelf.settings.models).find("alpha-1024")
    assert model.part("text_encoder") == shelf.folder() / "text_encoder"
    assert model.tokens == 120
    assert len(model.shapes) == 33


def test_a_second_model_shares_the_parts_and_a_third_needs_no_network(
    hub: FakeHub, shelf: Shelf
) -> None:
    shelf.get()
    hub.put(SMALL, SMALL_COMMIT, parts(seed=1))
    plan = shelf.store.plan("alpha-512")
    assert plan is not None
    assert plan.left == len(parts()[BIG]) + len(parts()["transformer/config.json"])
    shelf.get("alpha-512")
    assert set(shelf.files(SMALL, SMALL_COMMIT)) == {
        *("transformer/config.json", BIG, "download.json")
    }
    asked = len(hub.asked)
    shelf.get("alpha-512")
    assert len(hub.asked) == asked


def test_a_revision_without_a_pin_is_kept_from_the_first_time_on(
    hub: FakeHub, shelf: Shelf
) -> None:
    shelf.get()
    repo = "PixArt-alpha/PixArt-XL-2-256x256"
    hub.put(repo, "a" * 40, parts(seed=2))
    hub.fail(BIG, cut=1000)
    hub.fail(BIG, status=503, times=9)
    with pytest.raises(DownloadError):
        shelf.get("alpha-256")
    hub.faults.clear()
    # Somebody pushes to "main" meanwhile: the second half must not come from there.
    hub.repos[repo].commit = "b" * 40
    with pytest.raises(DownloadError, match="is not on"):
        shelf.get("alpha-256")
    hub.repos[repo].commit = "a" * 40
    assert shelf.get("alpha-256")
    assert shelf.folder(repo, "a" * 40).is_dir()


def test_a_downloaded_lora_is_used_where_it_lies(
    hub: FakeHub, shelf: Shelf, tmp_path: Path
) -> None:
    made.f3(made.reference(wide=NANO), tmp_path)
    files = ("adapter_config.json", "adapter_model.safetensors")
    repo = "PixArt-alpha/PixArt-LCM-LoRA-XL-2-1024-MS"
    hub.put(repo, "d" * 40, {name: (tmp_path / name).read_bytes() for name in files})
    assert shelf.get("lcm-lora-1024")
    catalog = Catalog(user_models=shelf.settings.models, loras=shelf.settings.loras)
    card = catalog.loras.find("lcm-lora-1024")
    assert card.file.is_relative_to(shelf.root)
    request = complete({"prompt": "x", "loras": "lcm-lora-1024"}, catalog)
    assert (request.sampler, request.steps, request.guidance) == ("lcm", 4, 0)


def test_exact_bytes_are_said_before_and_progress_while(hub: FakeHub, shelf: Shelf) -> None:
    plan = shelf.store.plan("alpha-1024")
    assert plan is not None
    told, began = threading.Event(), time.monotonic()

    def report(reading: Any) -> None:
        shelf.readings.append(reading)
        if reading.file == BIG and reading.speed:
            told.set()

    with ExitStack() as held:
        held.enter_context(hub.held(BIG, behind=200_000))

        def go_on_then() -> None:
            told.wait(120)
            held.close()

        go_on = threading.Thread(target=go_on_then)
        go_on.start()
        assert shelf.store.download(plan, report=report)
        go_on.join()
    moving = [r for r in shelf.readings if r.file == BIG and r.speed]
    assert moving
    assert all(r.file_total == len(parts()[BIG]) for r in moving)
    assert [r.done for r in shelf.readings] == sorted(r.done for r in shelf.readings)
    # About half of it had come, so that as much time is left, or twenty seconds on a quick machine.
    longest = max(20.0, 2 * (time.monotonic() - began))
    assert any(r.seconds_left and r.seconds_left < longest for r in moving)


def test_controlnets_and_adapters_are_fetched_but_do_not_paint(hub: FakeHub, shelf: Shelf) -> None:
    repo = "PixArt-alpha/PixArt-ControlNet"
    hub.put(repo, "c" * 40, {"PixArt-XL-2-1024-ControlNet.pth": b"PK" * 5000})
    assert shelf.get("controlnet-hed-1024")
    catalog = Catalog(user_models=shelf.settings.models)
    assert [model.id for model in catalog] == ["nano"]
    assert catalog.problems == []
    with pytest.raises(ModelError, match="ControlNet"):
        catalog.find("controlnet-hed-1024")
    lora = "PixArt-alpha/PixArt-LCM-LoRA-XL-2-1024-MS"
    hub.put(lora, "d" * 40, {"adapter_config.json": b"{}", "adapter_model.bin": b"x" * 2000})
    assert shelf.get("lcm-lora-1024")
    catalog.reload()
    # This one is damaged, which is told where LoRAs are told of, and nowhere else.
    assert catalog.problems == []
    assert "lcm-lora-1024" in catalog.loras.problems()[0]
    rows = {row.id: row.state for row in shelf.store.rows()}
    assert rows["lcm-lora-1024"] == rows["controlnet-hed-1024"] == "downloaded"


# --- interruptions ----------------------------------------------------------------------------


def test_a_cut_line_is_taken_up_again_where_it_broke(hub: FakeHub, shelf: Shelf) -> None:
    hub.fail(BIG, cut=100_000)
    hub.fail(BIG, cut=150_000)
    hub.fail(BIG, status=503)
    assert shelf.get()
    starts = [asked.range for asked in hub.requests(BIG)]
    assert starts == [None, "bytes=100000-", "bytes=250000-", "bytes=250000-"]
    assert hub.requests(BIG)[1].if_range
    assert shelf.files()[BIG] == parts()[BIG]


def test_a_storage_of_several_servers_goes_on(hub: FakeHub, shelf: Shelf) -> None:
    hub.fail(BIG, cut=100_000, etag='"another-server"')
    assert shelf.get()
    asked = hub.requests(BIG)
    assert [a.range for a in asked] == [None, "bytes=100000-", "bytes=100000-"]
    assert asked[1].if_range == '"another-server"'
    assert asked[2].if_range is None
    assert shelf.files()[BIG] == parts()[BIG]


def test_a_server_without_ranges_starts_over(hub: FakeHub, shelf: Shelf) -> None:
    hub.fail(BIG, cut=100_000)
    hub.fail(BIG, full=True)
    assert shelf.get()
    assert shelf.files()[BIG] == parts()[BIG]


def test_a_file_that_changed_meanwhile_is_not_mixed(hub: FakeHub, shelf: Shelf) -> None:
    other = safetensors(len(parts()[BIG]), seed=9)[: len(parts()[BIG])]
    hub.fail(BIG, cut=100_000)
    hub.fail(BIG, status=503, times=9)
    with pytest.raises(DownloadError):
        shelf.get()
    hub.faults.clear()
    # The hash decides, not the length: what was begun is thrown away.
    part = shelf.folder() / f"{BIG}.part"
    part.write_bytes(other[: part.stat().st_size])
    assert shelf.get()
    assert shelf.files()[BIG] == parts()[BIG]


@pytest.mark.parametrize("extra", [0, 1, 5000])
def test_a_part_that_is_too_long_or_just_whole_is_handled(
    hub: FakeHub, shelf: Shelf, extra: int
) -> None:
    part = shelf.folder() / f"{BIG}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(parts()[BIG] + b"x" * extra)
    assert shelf.get()
    assert shelf.files()[BIG] == parts()[BIG]
    assert len(hub.requests(BIG)) == (1 if extra else 0)


def test_a_range_that_is_refused_starts_over(hub: FakeHub, shelf: Shelf) -> None:
    hub.fail(BIG, cut=100_000)
    hub.fail(BIG, status=416)
    assert shelf.get()
    assert shelf.files()[BIG] == parts()[BIG]


def test_a_silent_server_is_given_up_and_asked_again(hub: FakeHub, shelf: Shelf) -> None:
    hub.fail(BIG, hang=60.0)
    assert shelf.get()
    assert len(hub.requests(BIG)) == 2


def test_a_stop_is_obeyed_within_a_second_and_can_be_gone_on_from(
    hub: FakeHub, shelf: Shelf
) -> None:
    plan = shelf.store.plan("alpha-1024")
    assert plan is not None
    stop = threading.Event()

    def report(reading: Any) -> None:
        if reading.file == BIG and reading.file_done > 10_000:
            stop.set()

    # The time from the request on, not from the start.
    asked: list[float] = []

    def should_stop() -> bool:
        if stop.is_set() and not asked:
            asked.append(time.monotonic())
        return stop.is_set()

    with hub.held(BIG, behind=20_000):
        assert shelf.store.download(plan, report=report, should_stop=should_stop) is False
    # A second is the promise; a busy machine gets ten more, and who does not stop never ends.
    assert time.monotonic() - asked[0] < 11
    kept = (shelf.folder() / f"{BIG}.part").stat().st_size
    assert 0 < kept < len(parts()[BIG])
    with pytest.raises(ModelError, match="download"):
        Catalog(user_models=shelf.settings.models).find("alpha-1024")
    again = shelf.store.plan("alpha-1024")
    assert again is not None
    assert again.left == len(parts()[BIG]) - kept
    assert shelf.get()
    assert hub.requests(BIG)[-1].range == f"bytes={kept}-"


@pytest.mark.parametrize("where", ["list", "file"])
def test_a_stop_is_obeyed_while_the_network_is_silent(
    hub: FakeHub, tmp_path: Path, where: str
) -> None:
    shelf = Shelf(tmp_path / "workspace")
    shelf.store._hub = Hub  # thirty seconds of patience
    hub.fail(f"list {ALPHA}" if where == "list" else BIG, hang=90.0)
    began = time.monotonic()

    def stop() -> bool:
        return time.monotonic() - began > 0.3

    plan = shelf.store.plan("alpha-1024", should_stop=stop if where == "list" else lambda: False)
    if where == "file":
        assert plan is not None
        began = time.monotonic()
        assert shelf.store.download(plan, should_stop=stop) is False
    else:
        assert plan is None
    # The hub would say nothing for longer than the thirty seconds for which it is waited.
    assert time.monotonic() - began < 25


_CHILD = """
import sys
from pathlib import Path
from app.cli.main import main
sys.exit(main(["models", "download", "alpha-1024", "--yes", "--json"]))
"""


def child(workspace: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        cwd=ROOT,
        env={**os.environ, "PIXART_STUDIO_WORKSPACE": str(workspace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(file: Path, size: int) -> None:
    end = time.monotonic() + 120
    while not file.exists() or file.stat().st_size < size:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_what_the_next_one_goes_on_from(
    hub: FakeHub, tmp_path: Path, how: signal.Signals
) -> None:
    shelf = Shelf(tmp_path / "workspace")
    part = shelf.folder() / f"{BIG}.part"
    with hub.held(BIG, behind=44_000):
        process = child(tmp_path / "workspace")
        wait_for(part, 40_000)
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "goes on from there" in errors
    kept = part.stat().st_size
    assert shelf.get()
    assert hub.requests(BIG)[-1].range == f"bytes={kept}-"
    assert shelf.files()[BIG] == parts()[BIG]


def test_two_at_once_are_one_sentence(hub: FakeHub, shelf: Shelf) -> None:
    first, second = shelf.store.plan("alpha-1024"), shelf.store.plan("alpha-1024")
    assert first is not None
    assert second is not None
    stop = threading.Event()
    thread = threading.Thread(
        target=shelf.store.download, args=(first,), kwargs={"should_stop": stop.is_set}
    )
    with hub.held(BIG, behind=8000):
        thread.start()
        wait_for(shelf.folder() / f"{BIG}.part", 4000)
        with pytest.raises(BusyError) as caught:
            shelf.store.download(second)
        assert ALPHA in sentence(caught)
        stop.set()
        thread.join()
    assert shelf.store.download(second)


# --- damage -----------------------------------------------------------------------------------


def test_a_damaged_file_is_fetched_again_once(hub: FakeHub, shelf: Shelf) -> None:
    for path in (BIG, "vae/config.json"):
        hub.fail(path, corrupt=True)
    assert shelf.get()
    assert {n: d for n, d in shelf.files().items() if n in WANTED} == {
        name: parts()[name] for name in WANTED
    }


def test_a_file_damaged_twice_is_one_sentence_and_nothing_is_installed(
    hub: FakeHub, shelf: Shelf
) -> None:
    hub.fail(BIG, corrupt=True, times=2)
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert "damaged twice" in sentence(caught)
    assert not (shelf.folder() / BIG).exists()
    assert shelf.get()


def test_a_repair_fetches_only_the_bad_file(hub: FakeHub, shelf: Shelf) -> None:
    shelf.get()
    bad = shelf.folder() / "text_encoder" / "model-00002-of-00002.safetensors"
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    hub.asked.clear()
    assert shelf.get(check=True)
    assert {asked.path for asked in hub.asked} == {
        f"{how}text_encoder/{bad.name}" for how in ("", "resolve ")
    }
    assert shelf.files()[f"text_encoder/{bad.name}"] == parts()[f"text_encoder/{bad.name}"]


@pytest.mark.parametrize("fault", ["gone", "short", "no record", "broken record"])
def test_what_was_lost_on_disk_is_noticed_and_mended(
    hub: FakeHub, shelf: Shelf, fault: str
) -> None:
    shelf.get()
    file = shelf.folder() / BIG
    record = shelf.folder() / "download.json"
    if fault == "gone":
        file.unlink()
    elif fault == "short":
        file.write_bytes(file.read_bytes()[:-10])
    elif fault == "no record":
        record.unlink()
    else:
        record.write_text('{"repo": 5', "utf-8")
    catalog = Catalog(user_models=shelf.settings.models)
    if fault in ("gone", "short"):
        with pytest.raises(ModelError, match="models download alpha-1024"):
            catalog.find("alpha-1024")
    hub.asked.clear()
    assert shelf.get()
    big = [asked for asked in hub.asked if asked.path == BIG]
    # A lost record costs a look at the files, not a download.
    assert len(big) == (1 if fault in ("gone", "short") else 0)
    catalog.reload()
    assert catalog.find("alpha-1024")


def test_a_record_edited_by_hand_cannot_name_files_elsewhere(
    hub: FakeHub, shelf: Shelf, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", "utf-8")
    shelf.get()
    file = shelf.folder() / "download.json"
    record = json.loads(file.read_text("utf-8"))
    evil = "../../../../../victim"
    record["chosen"]["transformer"] = [evil]
    record["entries"][evil] = {**record["entries"][BIG], "path": evil}
    file.write_text(json.dumps(record), "utf-8")
    shelf.store.remove("alpha-1024")
    assert victim.read_text("utf-8") == "mine"


# --- refusals and lies ------------------------------------------------------------------------


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "gated": ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "agreed to its terms"),
    "private": ({"status": 401}, "is not on 127.0.0.1, or is private"),
    "missing": ({"status": 404}, "is not on"),
    "no revision": (
        {"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}},
        "version b89adadecc",
    ),
    "broken": ({"status": 500, "times": 9}, "overloaded or broken"),
    "busy": ({"status": 429, "headers": {"Retry-After": "0"}, "times": 9}, "overloaded"),
    "proxy": ({"status": 407}, "proxy"),
    "odd": ({"status": 418}, "status 418"),
    "login page": ({"body": b"<html>Please log in</html>"}, "login page"),
    "a list": ({"body": b"[1, 2]"}, "login page"),
    "deep": ({"body": b"[" * 100_000}, "login page"),
    "huge": ({"body": b" " * 9_000_000}, "login page"),
    "circles": ({"status": 302, "headers": {"Location": "/api/models/x/y"}, "times": 9}, "is not"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence(hub: FakeHub, shelf: Shelf, case: str) -> None:
    how, words = REFUSALS[case]
    hub.fail(f"list {ALPHA}", **how)
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert words in sentence(caught)
    hub.faults.clear()
    assert shelf.get()


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "longer": ({"length": 500_000, "times": 9}, "sends another size"),
    "more than the range": (
        {"headers": {}, "content_range": "bytes 100000-9/10", "times": 9},
        "sends another size",
    ),
    "web page": (
        {"body": b"<html>log in</html>", "headers": {"Content-Type": "text/html"}, "times": 9},
        "web page",
    ),
    "packed": ({"headers": {"Content-Encoding": "gzip"}, "times": 9}, "login page"),
    "storage refuses": ({"status": 403, "times": 9}, "storage"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lie_is_one_sentence(hub: FakeHub, shelf: Shelf, case: str) -> None:
    how, words = LIES[case]
    if case == "more than the range":
        hub.fail(BIG, cut=100_000)
    hub.fail(BIG, **how)
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert words in sentence(caught)
    assert not (shelf.folder() / BIG).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.update(size=-1), "login page"),
        (lambda row: row.update(size=2**50), "login page"),
        (lambda row: row.update(size="many"), "login page"),
        (lambda row: row.update(size=True), "login page"),
        (lambda row: row.update(lfs={"sha256": "../x"}), "login page"),
        (lambda row: row.update(rfilename="transformer/../../x"), "does not hold"),
        (lambda row: row.update(rfilename="transformer\\x"), "does not hold"),
        (lambda row: row.update(blobId=None, lfs=None), "does not hold"),
        (lambda row: row.update(size=1000), "sends another size"),
    ],
)
def test_a_listing_that_lies_is_one_sentence(
    hub: FakeHub, shelf: Shelf, change: Any, words: str
) -> None:
    def edit(table: dict[str, Any]) -> None:
        for row in table["siblings"]:
            if row["rfilename"] == BIG:
                change(row)

    hub.listed[ALPHA] = edit
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert words in sentence(caught)


def test_a_config_of_gigabytes_is_not_fetched(hub: FakeHub, shelf: Shelf) -> None:
    hub.put(ALPHA, COMMIT, {"transformer/config.json": b" " * 200_000})
    with pytest.raises(DownloadError, match="too large"):
        shelf.get()


def test_only_pickles_or_a_missing_shard_is_one_sentence(hub: FakeHub, shelf: Shelf) -> None:
    del hub.repos[ALPHA].files["text_encoder/model-00002-of-00002.safetensors"]
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert "not as safetensors" in sentence(caught)


def test_another_commit_than_the_pinned_one_is_refused(hub: FakeHub, shelf: Shelf) -> None:
    hub.listed[ALPHA] = lambda table: table.update(sha="e" * 40)
    with pytest.raises(DownloadError, match="another version"):
        shelf.get()


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "gopher://localhost/x", "http://me:secret@localhost/x"]
)
def test_a_redirect_elsewhere_is_not_followed(hub: FakeHub, shelf: Shelf, target: str) -> None:
    hub.fail(BIG, status=302, headers={"Location": target}, times=9)
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert "secret" not in sentence(caught)
    assert "not followed" in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        *("http://169.254.169.254/x", "https://127.0.0.1/x", "https://[::ffff:127.0.0.1]/x"),
        *("https://2130706433/x", "https://0/x", "https://localhost/x", "https://10.0.0.1/x"),
        "http://cdn.example.org/x",
    ],
)
def test_a_public_hub_cannot_send_into_this_network(target: str) -> None:
    import httpx

    hub = Hub(endpoint="https://huggingface.co")
    with pytest.raises(DownloadError, match="not followed"):
        hub._next(
            httpx.URL("https://huggingface.co/x"), httpx.Response(302, headers={"Location": target})
        )


def test_the_token_goes_to_the_hub_alone(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[ALPHA].gated = True
    with pytest.raises(DownloadError, match="set HF_TOKEN"):
        Shelf(tmp_path / "one").get()
    Shelf(tmp_path / "two", token="hf_secret").get()
    assert {a.token for a in hub.asked if a.host == "localhost"} == {None}
    assert "Bearer hf_secret" in {a.token for a in hub.asked if a.host == "127.0.0.1"}


# --- no network, no disk ----------------------------------------------------------------------


def test_no_network_is_one_sentence(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert "cannot be reached" in sentence(caught)

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert "no network" in sentence(caught)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        shelf.get()


@pytest.mark.parametrize(
    "text", ["ftp://x", "huggingface.co", "http://", "http://a:b@c", "http://["]
)
def test_a_wrong_endpoint_is_one_sentence(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", text)
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        shelf.get()


def test_a_full_disk_is_said_before(
    hub: FakeHub, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert "1.0 MB left" in sentence(caught)
    assert not hub.requests(BIG)


_LIMITED = """
import resource, sys
from app.cli.main import main
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.exit(main(["models", "download", "alpha-1024", "--yes"]))
"""


def test_a_disk_that_fills_up_is_one_sentence_and_can_be_gone_on_from(
    hub: FakeHub, shelf: Shelf
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED],
        cwd=ROOT,
        env={**os.environ, "PIXART_STUDIO_WORKSPACE": str(shelf.settings.workspace)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    assert "no space left" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (shelf.folder() / f"{BIG}.part").stat().st_size == 200_000
    assert shelf.get()
    assert hub.requests(BIG)[-1].range == "bytes=200000-"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(hub: FakeHub, shelf: Shelf) -> None:
    shelf.settings.workspace.mkdir()
    shelf.settings.workspace.chmod(0o500)
    with pytest.raises(DownloadError) as caught:
        shelf.get()
    assert "cannot be" in sentence(caught)


def test_a_file_in_place_of_the_folder_is_one_sentence(hub: FakeHub, shelf: Shelf) -> None:
    shelf.settings.models.mkdir(parents=True)
    shelf.root.write_text("a file", "utf-8")
    with pytest.raises(ModelError) as caught:
        shelf.get()
    assert "it is a file, not a folder" in sentence(caught)


# --- giving back ------------------------------------------------------------------------------


def test_removing_keeps_what_another_model_reads(hub: FakeHub, shelf: Shelf) -> None:
    hub.put(SMALL, SMALL_COMMIT, parts(seed=1))
    shelf.get()
    shelf.get("alpha-512")
    freed = shelf.store.remove("alpha-1024")
    assert freed == len(parts()[BIG]) + len(parts()["transformer/config.json"])
    catalog = Catalog(user_models=shelf.settings.models)
    assert [model.id for model in catalog] == ["nano", "alpha-512"]
    shelf.store.remove("alpha-512")
    assert not list(shelf.root.glob("PixArt-alpha--*"))
    with pytest.raises(ModelError, match="nothing to remove"):
        shelf.store.remove("alpha-512")
    with pytest.raises(ModelError, match="not one of the released"):
        shelf.store.remove("nano")
