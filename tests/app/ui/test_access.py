"""Who may reach the page."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.ui import access
from pipelines.errors import StudioError

TOKEN = "correct horse ünïcode"


@pytest.fixture
def client() -> TestClient:
    async def page(_request: object) -> PlainTextResponse:
        return PlainTextResponse("inside")

    app = Starlette(
        routes=[Route("/{path:path}", page)],
        middleware=[Middleware(access.TokenGate, token=TOKEN)],
    )
    return TestClient(app, follow_redirects=False)


@pytest.mark.parametrize("path", ["/", "/studio/pictures/2026-01-02/x.png", "/gradio_api/info"])
def test_without_the_token_nothing_answers(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 401
    assert client.post(path).status_code == 401


def test_the_token_opens_the_page_once_and_for_all(client: TestClient) -> None:
    answer = client.get("/", params={"token": TOKEN, "__theme": "light"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?__theme=light"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "horse" not in cookie
    assert client.get("/").text == "inside"


def test_a_program_may_send_it_as_a_header(client: TestClient) -> None:
    for token, status in (("wrong", 401), (TOKEN, 200)):
        sent = {b"Authorization": f"Bearer {token}".encode()}
        assert client.get("/", headers=sent).status_code == status


@pytest.mark.parametrize("token", ["", "wrong", TOKEN.upper(), "é", "\udce9"])
def test_a_wrong_token_is_refused(client: TestClient, token: str) -> None:
    raw = token.encode("utf-8", "surrogateescape").hex()
    query = "".join(f"%{raw[i : i + 2]}" for i in range(0, len(raw), 2))
    assert client.get(f"/?token={query}").status_code == 401


def test_a_browser_is_asked_for_the_token(client: TestClient) -> None:
    answer = client.get("/", headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert 'name="token"' in answer.text


@pytest.mark.parametrize(
    "cookie", ["x", "=", "a=b; ;;", 'pixart-studio-access="', "pixart-studio-access=é"]
)
def test_a_strange_cookie_is_refused(client: TestClient, cookie: str) -> None:
    answer = client.get("/", headers={b"Cookie": cookie.encode("utf-8")})
    assert answer.status_code == 401


def test_the_redirect_stays_here(client: TestClient) -> None:
    answer = client.get("//evil.example/", params={"token": TOKEN})
    assert not answer.headers["location"].startswith("//")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "studio.lan", "::"])
def test_the_network_needs_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    with pytest.raises(StudioError, match="--share-token"):
        access.check(host, None)
    access.check(host, "secret")
    monkeypatch.setenv("SPACE_ID", "me/space")
    access.check(host, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"])
def test_this_machine_needs_none(host: str) -> None:
    access.check(host, None)
