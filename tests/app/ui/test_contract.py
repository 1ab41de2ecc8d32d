"""The page from the outside: its endpoints, its routes, its limits over HTTP."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from app.tokens import AccessTokens
from app.ui import serving
from app.ui.build import build, launch_arguments, prepare, serve
from app.ui.create import fields
from lora_manager import drafts
from pipelines.catalog import ROOT
from pipelines.errors import StudioError
from pipelines.request import FIELDS
from tests.app.ui.fake_studio import FakeStudio, served

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> FakeStudio:
    return FakeStudio(tmp_path_factory.mktemp("contract"), steps=3, pace=0.01)


@pytest.fixture(scope="module")
def http(studio: FakeStudio) -> Iterator[httpx.Client]:
    with served(studio) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


def call(http: httpx.Client, name: str, data: list[Any]) -> tuple[str, Any]:
    """Posts to an endpoint as a foreign program would; (event, data)."""
    posted = http.post(f"/gradio_api/call/{name}", json={"data": data})
    assert posted.status_code == 200, posted.text
    body = http.get(f"/gradio_api/call/{name}/{posted.json()['event_id']}").text
    event, _, rest = body.strip().split("\n\n")[-1].partition("\n")
    return event.removeprefix("event: "), json.loads(rest.removeprefix("data: "))


GENERATE = ["a cat", "", "", "", None, None, "", "", 1, "None"]


def arguments(**changes: Any) -> list[Any]:
    names = "prompt negative model sampler steps guidance size seed count style".split()
    return list((dict(zip(names, GENERATE, strict=True)) | changes).values())


def test_two_endpoints_are_public(http: httpx.Client) -> None:
    info = http.get("/gradio_api/info").json()
    assert set(info["named_endpoints"]) == {"/generate", "/stop_all"}
    assert info["unnamed_endpoints"] == {}


def test_generate_paints(http: httpx.Client, studio: FakeStudio) -> None:
    event, data = call(http, "generate", arguments(count=2, seed="18446744073709551614"))
    assert event == "complete"
    assert [p["seed"] for p in data[0]] == ["18446744073709551614", "18446744073709551615"]
    picture = http.get(data[0][0]["url"])
    assert picture.content.startswith(PNG)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": "x" * 20_000}, "the limit is 10,000"),
        ({"steps": 201}, "takes 2 to 200 steps"),
        ({"steps": 0}, "The steps must be"),
        ({"steps": 2.5}, "The steps must be"),
        ({"guidance": 99}, "The guidance must be"),
        ({"guidance": -1}, "The guidance must be"),
        ({"size": "1x1"}, "outside 64"),
        ({"size": "9" * 50}, "is not a size"),
        ({"seed": "-1"}, "The seed must be"),
        ({"seed": "18446744073709551616"}, "The seed must be"),
        ({"count": 65}, "The number of pictures must be"),
        ({"model": "nan"}, "Did you mean “nano”?"),
        ({"sampler": "eular"}, "Did you mean “euler”?"),
        ({"style": "<b>"}, "There is no style"),
        ({"prompt": {"a": 1}}, "The prompt is empty"),
        ({"count": "many"}, "The number of pictures must be"),
    ],
)
def test_generate_answers_bad_values_in_a_sentence(
    http: httpx.Client, changes: dict[str, Any], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    event, data = call(http, "generate", arguments(**changes))
    assert event == "error"
    assert sentence in json.dumps(data, ensure_ascii=False)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("given", [[], ["a cat"], ["a cat", "", "", ""]])
def test_too_few_values_are_refused_in_a_sentence(
    http: httpx.Client, given: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    event, data = call(http, "generate", given)
    assert event == "error"
    said = json.dumps(data)
    assert f"This call takes {len(FIELDS) + 1} values and got {len(given)};" in said
    assert "\\n" not in said
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "changes", [{"steps": 10**9}, {"seed": "x"}, {"count": -3}, {"size": {}}, {"prompt": None}]
)
def test_the_form_posted_by_a_program_is_checked_too(
    http: httpx.Client,
    studio: FakeStudio,
    changes: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    form = fields.first(studio) | {"prompt": "x", "new_seed": False} | changes
    event, data = call(http, "paint", [None, "program-0123456789", *form.values()])
    assert event == "complete"
    assert 'data-tone=\\"bad\\"' in json.dumps(data)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_queue_cannot_be_passed_by(http: httpx.Client) -> None:
    assert http.post("/gradio_api/run/generate", json={"data": GENERATE}).status_code == 404


def test_pictures_come_with_their_own_bytes(http: httpx.Client, studio: FakeStudio) -> None:
    _, data = call(http, "generate", arguments())
    answer = http.get(data[0][0]["url"] + "?download=1")
    name = data[0][0]["url"].rpartition("/")[2]
    file = next(studio.settings.outputs.rglob(name))
    assert answer.content == file.read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "private" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "path",
    [
        "/studio/pictures/..%2f..%2fetc/passwd",
        "/studio/pictures/2026-01-01/%2e%2e%2fx.png",
        "/studio/pictures/2026-01-01/000000-1-abcdef.png",
        "/studio/starts/..%2f..%2fetc%2fpasswd",
        "/studio/starts/0123456789abcdef.png",
        "/studio/samples/nobody",
        "/studio/samples/..%2fnano",
        "/studio/static/..%2fpyproject.toml",
        "/studio/static/secret",
        "/studio/static/js/0123456789ab/..%2f..%2fcss%2fbase.css",
        "/studio/static/js/0123456789ab/gallery",
    ],
)
def test_other_files_are_not_served(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 404


def test_what_a_link_leads_to_is_not_served(http: httpx.Client, studio: FakeStudio) -> None:
    day = studio.settings.outputs / "2025-01-01"
    day.mkdir(parents=True, exist_ok=True)
    secret = studio.settings.workspace / "secret.txt"
    secret.write_bytes(PNG + b"secret")
    (day / "000000-1-000000.png").symlink_to(secret)
    (day.parent / "2025-01-02").symlink_to(day)
    for path in ("2025-01-01", "2025-01-02"):
        for kind in ("pictures", "thumbs"):
            found = http.get(f"/studio/{kind}/{path}/000000-1-000000.png")
            assert found.status_code == 404
            assert b"secret" not in found.content


def test_samples_are_served(http: httpx.Client) -> None:
    answer = http.get("/studio/samples/nano?v=1")
    assert answer.status_code == 200
    assert answer.content.startswith(PNG)


def test_own_files_are_cached_for_ever(http: httpx.Client) -> None:
    page = http.get("/").text
    start = page.index("studio/static/studio.css?v=")
    answer = http.get("/" + page[start:].split('"')[0])
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/css")


def test_scripts_are_modules_whose_version_is_in_their_address(http: httpx.Client) -> None:
    page = http.get("/").text
    (address,) = re.findall(r'<script type="module" src="(studio/static/js/[^"]+)"', page)
    answer = http.get(f"/{address}")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in answer.headers["cache-control"]
    # What a module imports lies beside it, so it is of the same version.
    for name in re.findall(r'import "\./([^"]+)"', answer.text):
        part = http.get(f"/{address.rpartition('/')[0]}/{name}")
        assert part.status_code == 200
        assert "immutable" in part.headers["cache-control"]
    other = http.get("/studio/static/js/0123456789ab/studio.js")
    assert other.content == answer.content
    assert other.headers["cache-control"] == "no-cache"


def test_no_script_of_a_component_is_longer_than_a_call(studio: FakeStudio) -> None:
    loads = [
        part["props"]["js_on_load"]
        for part in build(studio).get_config_file()["components"]
        if part["props"].get("js_on_load")
    ]
    assert len(loads) > 15
    assert all(re.fullmatch(r'// [^\n]*\nimport\(new URL\("[^"]+",[^\n]+;', js) for js in loads)


def test_the_theme_is_chosen_before_the_first_paint(http: httpx.Client) -> None:
    page = http.get("/").text
    assert page.index("pixart-studio-theme") < page.index("</head>")


def test_only_this_machine_may_be_asked_for(http: httpx.Client) -> None:
    port = http.base_url.port
    assert http.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert http.get("/", headers={"Host": f"localhost:{port}"}).status_code == 200


def test_ids_are_unique_and_events_private(studio: FakeStudio) -> None:
    demo = build(studio)
    ids = [c["props"].get("elem_id") for c in demo.get_config_file()["components"]]
    named = [i for i in ids if i]
    assert len(named) == len(set(named))
    public = {f.api_name for f in demo.fns.values() if f.api_visibility == "public"}
    assert public == {"generate", "stop_all"}
    assert all(f.api_visibility in ("public", "private") for f in demo.fns.values())


def test_launch_arguments(studio: FakeStudio) -> None:
    arguments = launch_arguments(studio)
    assert arguments["allowed_paths"] == []
    assert arguments["run_history"] is False
    assert arguments["share"] is False
    assert arguments["footer_links"] == []
    assert arguments["enable_monitoring"] is False
    assert arguments["max_file_size"] == "32mb"
    assert build(studio).api_open is False


def test_two_pages_share_nothing(tmp_path: Path) -> None:
    studios = [FakeStudio(tmp_path / name) for name in ("a", "b")]
    first, second = (build(s) for s in studios)
    assert first is not second
    for studio in studios:
        studio.close()


def test_uploads_land_in_a_private_folder(studio: FakeStudio) -> None:
    prepare(studio.settings)
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert folder.parent == studio.settings.cache / "gradio"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_studio_that_starts_keeps_the_uploads_of_one_that_runs(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path)
    started = "from app.ui.build import prepare; from app.settings import Settings; import os, sys"
    started += f"; prepare(Settings(workspace=__import__('pathlib').Path({str(tmp_path)!r})))"
    started += "; print(os.environ['GRADIO_TEMP_DIR'], flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", started],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    assert theirs.parent == settings.cache / "gradio"
    (theirs / "0123abcd").mkdir()
    (theirs / "0123abcd" / "picture.png").write_bytes(b"x")
    drafts.sweep_folders(theirs.parent)
    assert (theirs / "0123abcd" / "picture.png").is_file()
    other.kill()
    other.communicate()
    drafts.sweep_folders(theirs.parent)
    assert not theirs.exists()


def test_variables_of_gradio_are_not_obeyed(
    studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GRADIO_VIBE_MODE", "GRADIO_DEBUG", "GRADIO_ROOT_PATH", "GRADIO_OF_TOMORROW"):
        monkeypatch.setenv(name, "1")
    prepare(studio.settings)
    kept = {name for name in os.environ if name.startswith("GRADIO_")}
    assert kept == {
        "GRADIO_TEMP_DIR",
        "GRADIO_ANALYTICS_ENABLED",
        "GRADIO_ANALYTICS_CACHE_FREQUENCY",
        "GRADIO_ANALYTICS_MAX_EVENTS",
    }


def test_a_token_guards_every_route(tmp_path: Path) -> None:
    studio = FakeStudio(tmp_path)
    with (
        served(studio, tokens=AccessTokens(share="open sesame 12345")) as address,
        httpx.Client(base_url=address) as web,
    ):
        for path in ("/", "/config", "/gradio_api/info", "/studio/static/studio.css", "/theme.css"):
            assert web.get(path).status_code == 401, path
        assert web.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
        assert web.get("/?token=open%20sesame%2012345").status_code == 303
        assert web.get("/").status_code == 200
        assert web.get("/studio/static/studio.css").status_code == 200


def test_a_port_that_is_taken_is_named(studio: FakeStudio, http: httpx.Client) -> None:
    port = http.base_url.port
    assert port is not None
    with pytest.raises(StudioError, match=f"Port {port} is taken"):
        serving.free_port("127.0.0.1", port, 7860)
    assert serving.free_port("127.0.0.1", None, port) > port


@pytest.mark.parametrize("host", ["::", "::1", "0.0.0.0", "127.0.0.1"])
def test_a_port_that_127_0_0_1_has_taken_is_named(host: str) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StudioError, match=f"Port {port} is taken"):
            serving.free_port(host, port, 7860)


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("LocalHost", "localhost"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::0", "::"),
        ("0", "0.0.0.0"),
        ("127.1", "127.0.0.1"),
        ("FE80::00AB", "fe80::ab"),
        ("studio.lan", "studio.lan"),
        ("", ""),
        ("x\x1b[31m", "x\x1b[31m"),
        ("ü" * 100, "ü" * 100),
        ("x\0y", "x\0y"),
    ],
)
def test_a_host_is_what_browsers_make_of_it(host: str, meant: str) -> None:
    assert serving.canonical(host) == meant


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(StudioError, match="1 to 65535"):
        serving.free_port("127.0.0.1", port, 7860)


def test_an_open_host_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    studio = FakeStudio(tmp_path)
    with pytest.raises(StudioError, match="--share-token"):
        serve(studio, host="0.0.0.0", port=None, tokens=AccessTokens(), open_browser=False)
    studio.close()


@pytest.mark.parametrize("variable", ["SSH_CONNECTION", "CI", "SPACE_ID"])
def test_no_browser_where_nobody_would_see_it(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv(variable, "1")
    assert not serving.has_desktop()
