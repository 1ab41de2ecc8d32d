"""Who may reach the page, and who administers it: the two tokens at the gate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.tokens import AccessTokens
from app.ui.guards import access, bodies, guesses
from app.ui.guards.gate import TokenGate
from app.ui.guards.guesses import FREE, LONGEST, Guesses
from app.ui.guards.refusals import Refusals
from pipelines.errors import StudioError

SHARE = "correct horse ünïcode"
ADMIN = "battery staple ünïcode"
LONG = "0123456789abcdef"
BOTH = AccessTokens(share=SHARE, admin=ADMIN)
MakeClient = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def _no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)


def client_of(tokens: AccessTokens = BOTH, address: str = "192.0.2.7", **more: str) -> TestClient:
    """A browser at `address`, in front of a page that says what it may do."""

    async def page(request: Request) -> JSONResponse:
        scope = request.scope
        return JSONResponse({"admin": scope[access.ADMIN], "entrance": scope[access.ENTRANCE]})

    app = Starlette(routes=[Route("/{path:path}", page, methods=["GET", "POST"])])
    gate = TokenGate(app, tokens=tokens, refusals=Refusals())
    return TestClient(gate, follow_redirects=False, client=(address, 1), headers=more)


def is_admin(client: TestClient, **headers: str) -> bool:
    answer = client.get("/", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["admin"]


@pytest.mark.parametrize("path", ["/", "/studio/pictures/2026-01-02/x.png", "/gradio_api/info"])
def test_without_a_token_nothing_answers(path: str) -> None:
    client = client_of(address="127.0.0.1")
    assert client.get(path).status_code == 401
    assert client.post(path).status_code == 401


def test_the_share_token_opens_the_page_once_and_for_all() -> None:
    client = client_of()
    answer = client.get("/", params={"token": SHARE, "__theme": "light"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?__theme=light"
    (cookie,) = answer.headers.get_list("set-cookie")
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "horse" not in cookie
    assert is_admin(client) is False


def test_the_admin_token_opens_it_and_administers() -> None:
    client = client_of()
    answer = client.get("/", params={"token": ADMIN})
    assert answer.status_code == 303
    visitor, admin = answer.headers.get_list("set-cookie")
    assert "SameSite=lax" in visitor
    assert "HttpOnly" in admin
    assert "SameSite=strict" in admin
    assert "staple" not in admin
    assert is_admin(client) is True


def test_a_visitor_becomes_an_administrator_by_the_link() -> None:
    client = client_of()
    client.get("/", params={"token": SHARE})
    assert is_admin(client) is False
    assert client.get("/", params={"token": ADMIN}).status_code == 303
    assert is_admin(client) is True


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "192.0.2.7"])
@pytest.mark.parametrize("tokens", [BOTH, AccessTokens(share=SHARE)])
def test_no_address_administers_a_studio_that_is_shared(address: str, tokens: AccessTokens) -> None:
    client = client_of(tokens, address)
    client.get("/", params={"token": SHARE})
    assert is_admin(client) is False


def test_without_tokens_the_person_at_the_computer_administers() -> None:
    assert is_admin(client_of(AccessTokens(), "127.0.0.1")) is True
    assert is_admin(client_of(AccessTokens(), "192.0.2.7")) is False
    assert is_admin(client_of(AccessTokens(), "127.0.0.1"), **{"X-Forwarded-For": "x"}) is False
    # A token that nobody asked for opens nothing, and is no guess.
    assert client_of(AccessTokens(), "127.0.0.1").get("/?token=x").json()["entrance"] is False


def test_an_admin_token_alone_leaves_the_page_open() -> None:
    client = client_of(AccessTokens(admin=ADMIN), "127.0.0.1")
    assert is_admin(client) is False
    assert client.get("/").json()["entrance"] is True
    client.get("/", params={"token": ADMIN})
    assert is_admin(client) is True


def test_nobody_administers_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert is_admin(client_of(AccessTokens(), "127.0.0.1")) is False


@pytest.mark.parametrize(("token", "admin"), [(SHARE, False), (ADMIN, True)])
def test_a_program_sends_it_as_a_header(token: str, admin: bool) -> None:
    sent = {b"Authorization": f"Bearer {token}".encode()}
    answer = client_of().get("/", headers=sent)
    assert answer.json()["admin"] is admin


@pytest.mark.parametrize("token", ["", "wrong", SHARE.upper(), f"{SHARE} ", "é", "\udce9"])
def test_a_wrong_token_is_refused(token: str) -> None:
    raw = token.encode("utf-8", "surrogateescape").hex()
    query = "".join(f"%{raw[i : i + 2]}" for i in range(0, len(raw), 2))
    client = client_of()
    assert client.get(f"/?token={query}").status_code == 401
    assert not client.cookies


def test_the_form_takes_either_token() -> None:
    for token, admin in ((SHARE, False), (ADMIN, True)):
        client = client_of()
        assert 'name="token"' in client.get(f"/{access.ENTER}").text
        assert client.post(f"/{access.ENTER}", data={"token": "wrong"}).status_code == 401
        answer = client.post(f"/{access.ENTER}", data={"token": token})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert is_admin(client) is admin


@pytest.mark.parametrize("body", [b"", b"token", b"token=" + b"x" * 4000, b"\xff\xfe%zz=&&&"])
def test_a_strange_form_is_a_wrong_token(body: bytes) -> None:
    assert client_of().post(f"/{access.ENTER}", content=body).status_code == 401


def test_a_form_that_is_too_large_is_refused() -> None:
    answer = client_of().post(f"/{access.ENTER}", content=b"token=" + b"x" * 100_000)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("piece", [b"x", b""])
def test_a_form_that_comes_too_slowly_is_refused(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.3)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05 if piece else 60)
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    gate = TokenGate(Starlette(), tokens=BOTH, refusals=Refusals())
    scope = {"type": "http", "method": "POST", "path": f"/{access.ENTER}", "headers": []}
    asyncio.run(asyncio.wait_for(gate(scope, receive, send), 20))
    assert sent[0]["status"] == 408
    # It is no guess.
    assert not gate._guesses._guessers


def test_a_browser_is_asked_for_the_token() -> None:
    answer = client_of().get("/config", headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert 'name="token"' in answer.text
    assert "form-action 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["pixart-studio-access", "pixart-studio-admin"])
@pytest.mark.parametrize("value", ["", "x", '"', "é", "a; b", "0" * 64])
def test_a_strange_cookie_is_refused(name: str, value: str) -> None:
    answer = client_of().get("/", headers={b"Cookie": f"{name}={value}".encode()})
    assert answer.status_code == 401


def test_the_cookie_of_a_visitor_is_none_of_an_administrator() -> None:
    client = client_of()
    client.get("/", params={"token": SHARE})
    value = client.cookies["pixart-studio-access"]
    forged = {"Cookie": f"pixart-studio-admin={value}"}
    assert client_of().get("/", headers=forged).status_code == 401
    assert is_admin(client, Cookie=f"pixart-studio-access={value}; " + forged["Cookie"]) is False


def test_the_redirect_stays_here() -> None:
    answer = client_of().get("//evil.example/", params={"token": SHARE})
    assert "evil" not in answer.headers.get("location", "")


def test_cookies_are_secure_behind_https() -> None:
    answer = client_of().get("/", params={"token": ADMIN}, headers={"X-Forwarded-Proto": "https"})
    assert all("Secure" in cookie for cookie in answer.headers.get_list("set-cookie"))


def test_who_guesses_waits_and_nobody_else_does() -> None:
    gate = client_of().app
    guesser, other = (
        TestClient(gate, follow_redirects=False, client=(address, 1))
        for address in ("192.0.2.7", "192.0.2.8")
    )
    inside = TestClient(gate, follow_redirects=False, client=("192.0.2.7", 1))
    inside.get("/", params={"token": SHARE})
    statuses = [guesser.get("/", params={"token": f"guess {n}"}).status_code for n in range(30)]
    assert statuses == [401] * FREE + [429] * (30 - FREE)
    # What comes too early is not compared: it is no better if it is right.
    for sent in (
        {"params": {"token": SHARE}},
        {"headers": {b"Authorization": b"Bearer " + SHARE.encode()}},
    ):
        refused = guesser.get("/", **sent)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= LONGEST
    # Whoever is inside already is not asked, and others guess in peace.
    assert inside.get("/").status_code == 200
    assert other.get("/", params={"token": ADMIN}).status_code == 303


def test_the_wait_grows_and_ends() -> None:
    clock = [0.0]
    counted = Guesses(lambda: clock[0])
    waits = []
    for _ in range(FREE + 12):
        clock[0] += counted.wait("192.0.2.7")
        assert counted.wait("192.0.2.7") == 0
        counted.wrong("192.0.2.7")
        waits.append(counted.wait("192.0.2.7"))
    assert waits[: FREE - 1] == [0] * (FREE - 1)
    assert waits[FREE - 1 : FREE + 4] == [1, 2, 4, 8, 16]
    assert waits[-1] == LONGEST
    assert counted.wait("192.0.2.8") == 0
    clock[0] += guesses.FORGOTTEN_AFTER + LONGEST
    counted.wrong("192.0.2.7")
    assert counted.wait("192.0.2.7") == 0


def test_addresses_of_one_network_are_one_guesser_and_few_are_kept() -> None:
    gate = client_of().app

    def status(address: str) -> int:
        client = TestClient(gate, follow_redirects=False, client=(address, 1))
        return client.get("/", params={"token": "a guess"}).status_code

    assert [status(f"2001:db8::{n:x}") for n in range(FREE)] == [401] * FREE
    assert (status("2001:db8::ffff"), status("2001:db8:0:1::1")) == (429, 401)
    assert [status("::ffff:192.0.2.9") for _ in range(FREE)] == [401] * FREE
    assert status("192.0.2.9") == 429
    counted = Guesses(lambda: 0.0)
    for n in range(guesses.MOST * 2):
        counted.wrong(f"no address {n}")
    assert len(counted._guessers) == guesses.MOST


def test_visitors_of_a_space_guess_each_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/space")
    # Every connection is the platform's; what it writes stands last.
    client = client_of(AccessTokens(share=SHARE), "10.20.30.40")

    def status(told: str) -> int:
        sent = {"X-Forwarded-For": told}
        return client.get("/", params={"token": "a guess"}, headers=sent).status_code

    assert [status(f"192.0.2.{n}, 8.8.8.8") for n in range(FREE)] == [401] * FREE
    assert status("8.8.8.8") == 429
    assert status("8.8.8.8, 9.9.9.9") == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "studio.lan", "::"])
def test_the_network_needs_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudioError, match="--share-token"):
        access.check(host, None)
    access.check(host, "secret")
    monkeypatch.setenv("SPACE_ID", "me/space")
    access.check(host, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"])
def test_this_machine_needs_none(host: str) -> None:
    access.check(host, None)
