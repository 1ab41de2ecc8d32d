"""The studio behind nginx and Caddy, with the configurations of docs/hosting.md, over https."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.tokens import AccessTokens
from tests import ports
from tests.app.ui.fake_studio import FakeStudio, served
from tests.browser.conftest import _missing
from tests.browser.test_foreign_pages import listen

pytestmark = [pytest.mark.timeout(180)]
HOSTING = Path(__file__).resolve().parents[2] / "docs" / "hosting.md"
NAME = "studio.example.org"
TOKENS = AccessTokens(share="a-token-of-visitors", admin="a-token-of-the-owner")


@dataclass(frozen=True, kw_only=True)
class Proxied:
    """A studio behind a proxy."""

    studio: FakeStudio
    url: str
    port: int

    def http(self, **headers: str) -> httpx.Client:
        """A program that reaches the proxy by the public name."""
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"Host": f"{NAME}:{self.port}", **headers},
            verify=unchecked,
            timeout=30,
            trust_env=False,
        )


def example(language: str) -> str:
    """The configuration that docs/hosting.md shows."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", HOSTING.read_text("utf-8"), re.DOTALL)
    return found


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that nobody vouches for, and its key."""
    files = folder / "studio.pem", folder / "studio.key"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1".split()
    command += ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"]
    command += ["-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


def filled(language: str, values: dict[str, str]) -> str:
    """The example with the names and ports of a test in the place of its own."""
    text = example(language)
    for old, new in values.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, studio: int) -> list[str]:
    """Writes the example for these ports; the command that serves it."""
    pem, key = certificate(folder)
    values = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/studio.pem": str(pem),
        "/etc/ssl/studio.key": str(key),
        "127.0.0.1:7860": f"127.0.0.1:{studio}",
    }
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    # Its workers would be somebody else, who may not write into the folder of the test.
    user = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} worker_processes 1; pid {folder}/nginx.pid;\nevents {{}}\n"
        f"http {{ access_log off;\n{temporary}{filled('nginx', values)}}}\n"
    )
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def caddy(folder: Path, port: int, studio: int) -> list[str]:
    """Writes the example for these ports; the command that serves it."""
    pem, key = certificate(folder)
    values = {
        f"{NAME} {{": f"{NAME}:{port} {{\n    bind 127.0.0.1\n    tls {pem} {key}",
        "127.0.0.1:7860": f"127.0.0.1:{studio}",
    }
    options = "{\n    admin off\n    auto_https disable_redirects\n}\n"
    (folder / "Caddyfile").write_text(options + filled("caddy", values))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.fixture(scope="module", params=[nginx, caddy], ids=lambda one: one.__name__)
def proxied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("proxied")
    program = request.param.__name__
    if shutil.which(program) is None:
        _missing(f"no {program} on this machine")
    studio, port = FakeStudio(folder / "workspace", steps=8), ports.free()
    url = f"https://{NAME}:{port}"
    with served(studio, tokens=TOKENS, public_url=url) as address:
        command = request.param(folder, port, int(address.rpartition(":")[2]))
        log = (folder / "proxy.log").open("wb")
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            made = Proxied(studio=studio, url=url, port=port)
            _wait(process, made, folder)
            yield made
        finally:
            process.terminate()
            process.wait(20)
            log.close()


def _wait(process: subprocess.Popen[bytes], made: Proxied, folder: Path) -> None:
    for _ in range(200):
        assert process.poll() is None, (folder / "proxy.log").read_text()
        try:
            with made.http() as http:
                assert http.get("/studio/alive").status_code == 401
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError((folder / "proxy.log").read_text())


def open_models(page: Any) -> str:
    page.get_by_role("tab", name="Models").click()
    page.wait_for_selector(".model-card")
    return page.inner_text("#shelf")


def test_a_visitor_paints_and_the_owner_administers(
    proxied: Proxied, browser: Any, tmp_path: Path
) -> None:
    page = browser.new_context(ignore_https_errors=True).new_page()
    page.set_default_timeout(30_000)
    said: list[str] = []
    page.goto(f"{proxied.url}/?token={TOKENS.share}")
    assert page.url == f"{proxied.url}/"
    listen(page, said)
    page.reload()
    page.wait_for_function("window.studioReady === true")
    file = tmp_path / "dog.png"
    Image.effect_noise((1200, 900), 90).convert("RGB").save(file)
    assert file.stat().st_size > 1_000_000, "what nginx refuses unless it is told otherwise"
    page.set_input_files("#start-card input[type=file]", file)
    page.wait_for_selector(".start-chip img")
    page.fill("#prompt textarea", "a red apple")
    with proxied.studio.runner.held():
        page.get_by_role("button", name="Generate").click()
        page.wait_for_selector("img.preview")
    page.wait_for_selector(".canvas[data-state=result]")
    assert page.evaluate("document.querySelector('.picture img').decode().then(() => true)")

    assert "by whoever has the admin token" in open_models(page)
    assert page.locator("[data-do=ask]").count() == 0
    page.get_by_role("link", name="Give it").click()
    page.fill("#token", TOKENS.admin)
    # The page that asks for the token allows no script, not even that of a test.
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_function("window.studioReady === true")
    open_models(page)
    page.wait_for_selector("[data-do=ask]")
    page.click("[data-do=examine]")
    page.wait_for_selector(".report")
    assert said == []
    cookies = {one["name"]: one for one in page.context.cookies()}
    assert all(one["secure"] and one["httpOnly"] for one in cookies.values())
    assert cookies["pixart-studio-admin"]["sameSite"] == "Strict"
    page.context.close()


def test_foreign_pages_and_names_are_refused(proxied: Proxied) -> None:
    bearer = f"Bearer {TOKENS.share}"
    own = f"https://{NAME}:{proxied.port}"
    for headers, status in (
        ({}, 200),
        ({"Origin": own}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": own.replace("https", "http")}, 403),
        ({"Origin": f"http://127.0.0.1:{proxied.port}"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"X-Forwarded-Host": "evil.example"}, 200),
    ):
        with proxied.http(Authorization=bearer, **headers) as http:
            answer = http.get("/config")
            assert answer.status_code == status, headers
            assert status == 403 or "evil.example" not in answer.text


def test_one_who_guesses_keeps_nobody_else_waiting(proxied: Proxied) -> None:
    """The proxies say who asks, and nobody can say it for them."""
    with proxied.http() as http:
        said = [{"X-Forwarded-For": f"198.51.100.{n}"} for n in range(9)]
        statuses = [http.get("/?token=a-guess", headers=one).status_code for one in said]
    assert statuses.count(429) >= 3, statuses
    assert set(statuses[:5]) == {401}


def test_progress_arrives_as_it_happens(proxied: Proxied) -> None:
    """Events are not held back until the work is done; past the guesses of the test before."""
    with proxied.http(Authorization=f"Bearer {TOKENS.share}") as http:
        while (page := http.get("/config")).status_code == 429:
            time.sleep(int(page.headers["retry-after"]))
        listed = {d["api_name"]: d["id"] for d in page.json()["dependencies"]}
        data = ["a cat", "", "", "", None, None, "", "5", 2, "None"]
        sent = {"data": data, "fn_index": listed["generate"], "session_hash": "proxied"}
        address = "/gradio_api/queue/data?session_hash=proxied"
        with ExitStack() as held:
            held.enter_context(proxied.studio.runner.held())
            assert http.post("/gradio_api/queue/join", json=sent).status_code == 200
            with http.stream("GET", address) as events:
                lines = filter(None, events.iter_lines())
                # The work cannot be done before this one is here.
                assert "process_completed" not in next(lines)
                held.close()
                assert any("process_completed" in line for line in lines)
