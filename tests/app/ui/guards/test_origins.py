"""Whose page may ask: every route of the page, against foreign names and foreign pages."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, MutableMapping
from io import StringIO
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.ui import serving
from app.ui.build import build, launch_arguments
from app.ui.guards.origins import Names, Origins, authority, public_url
from app.ui.guards.refusals import LINES_A_MINUTE, Refusals, Sparing
from pipelines.errors import StudioError
from tests import ports
from tests.app.ui.fake_studio import FakeStudio

Asked = tuple[str, str, dict[str, str]]
"""Method, path and headers of a request."""
PORT = 7860
OWN = f"127.0.0.1:{PORT}"
FOREIGN_HOSTS = (
    "evil.example",
    f"evil.example:{PORT}",
    f"[::ffff:127.0.0.1]:{PORT}",
    f"[::ffff:7f00:1]:{PORT}",
    f"[0:0:0:0:0:0:0:1]:{PORT}",
    f"[::]:{PORT}",
    f"[::1%lo]:{PORT}",
    f"2130706433:{PORT}",
    f"0x7f000001:{PORT}",
    f"0x7f.1:{PORT}",
    f"127.1:{PORT}",
    f"0177.0.0.1:{PORT}",
    f"127.0.0.1.:{PORT}",
    f"localhost.:{PORT}",
    f"127.0.0.2:{PORT}",
    f"0.0.0.0:{PORT}",
    f"localhost.evil.example:{PORT}",
    f"127.0.0.1.nip.io:{PORT}",
    f"evil@127.0.0.1:{PORT}",
    f"127.0.0.1:{PORT}@evil.example",
    f"127.0.0.1:{PORT} ",
    f"127.0.0.1:{PORT}0",
    f"127.0.0.1:0{PORT}0",
    f"127.0.0.1:{PORT + 1}",
    "127.0.0.1:80",
    "127.0.0.1",
    "127.0.0.1:",
    "localhost",
    "::1",
    f"::1:{PORT}",
    "",
)
FOREIGN_ORIGINS = (
    "http://evil.example",
    f"http://evil.example:{PORT}",
    "null",
    "NULL",
    "",
    " ",
    "*",
    OWN,
    f"//{OWN}",
    f"http://{OWN}/",
    f"http://{OWN}#",
    f"http://{OWN}.evil.example",
    f"http://{OWN}@evil.example",
    f"http://evil.example@{OWN}",
    f"https://{OWN}",
    f"ftp://{OWN}",
    f"file://{OWN}",
    "file://",
    f"http://{OWN} http://evil.example",
    f"http://localhost:{PORT}",
    f"http://[::1]:{PORT}",
    f"http://127.0.0.1:{PORT + 1}",
    "http://127.0.0.1",
    f"http://127.0.0.1.:{PORT}",
    f"http://127.1:{PORT}",
    "chrome-extension://abcdef",
    "http://[",
)
FOREIGN_SITES = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "CROSS-SITE"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "nonsense"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
)
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
# What answers without end, or says what we did not ask: only refusals of them are looked at.
FILLED = {"path": "x", "url_path": "x", "path_or_url": "x", "day": "2026-01-01"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starlette]:
    """gradio's whole application as it is served."""
    studio = FakeStudio(tmp_path_factory.mktemp("origins"))
    demo = build(studio)
    demo.launch(prevent_thread_lock=True, **launch_arguments(studio, port=ports.free()))
    yield demo.app
    demo.close(verbose=False)
    studio.close()


@pytest.fixture(scope="module")
def client(page: Starlette) -> TestClient:
    return TestClient(page, base_url=f"http://{OWN}", follow_redirects=False)


def leaves(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, with something in the place of each parameter."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", None
        )
        if inner:
            yield from leaves(inner)
        path, methods = getattr(route, "path", ""), getattr(route, "methods", None)
        if path and methods:
            for method in methods:
                yield method, "".join(_filled(path))


def _filled(path: str) -> Iterator[str]:
    for part in path.replace("{", "\0{").replace("}", "}\0").split("\0"):
        yield FILLED.get(part.strip("{}").partition(":")[0], "x") if part[:1] == "{" else part


def every_route(page: Starlette) -> list[tuple[str, str]]:
    found = sorted(set(leaves(page.routes)))
    paths = {path for _, path in found}
    # gradio's routes, ours, the page: the enumeration must not miss a kind of route.
    assert {
        "/",
        "/config",
        "/gradio_api/queue/join",
        "/gradio_api/queue/data",
        "/gradio_api/upload",
        "/gradio_api/call/x",
        "/gradio_api/file=x",
        "/studio/alive",
        "/studio/pictures/2026-01-01/x",
    } <= paths, sorted(paths)
    assert len(found) > 80
    return [*found, ("OPTIONS", "/gradio_api/queue/join"), ("TRACE", "/"), ("GET", "/nowhere")]


def answers(page: Starlette, asked: list[Asked]) -> list[tuple[int, list[str]]]:
    """For each request, as a server hands it over: the status, and the names of the headers."""
    import anyio

    found: list[tuple[int, list[str]]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            names = [name.decode() for name, _ in message["headers"]]
            found.append((message["status"], names))

    async def ask() -> None:
        for method, path, sent in asked:
            headers = {"host": OWN} | {name.lower(): value for name, value in sent.items()}
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": method,
                "scheme": "http",
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "root_path": "",
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
                "server": ("127.0.0.1", PORT),
                "client": ("127.0.0.1", 1),
            }
            await page(scope, receive, send)

    anyio.run(ask)
    assert len(found) == len(asked)
    return found


def test_a_foreign_name_reaches_no_route(page: Starlette) -> None:
    asked = [
        (method, path, {"Host": host})
        for (method, path), host in itertools.product(every_route(page), FOREIGN_HOSTS)
    ]
    for sent, (status, _) in zip(asked, answers(page, asked), strict=True):
        assert status == 403, sent


def test_a_foreign_page_reaches_no_route(page: Starlette) -> None:
    hostile = [{"Origin": one} for one in FOREIGN_ORIGINS] + list(FOREIGN_SITES)
    asked = [
        (method, path, sent)
        for (method, path), sent in itertools.product(every_route(page), hostile)
    ]
    for sent, (status, names) in zip(asked, answers(page, asked), strict=True):
        assert status == 403, sent
        assert not [name for name in names if name.startswith("access-control")]


def test_a_request_of_our_own_passes_the_same_way(page: Starlette) -> None:
    """What the two tests above send is refused for the one header that they change."""
    own = [("GET", "/", {}), ("GET", "/", {"Origin": f"http://{OWN}"})]
    assert [status for status, _ in answers(page, own)] == [200, 200]


def test_a_link_of_another_site_opens_the_page_and_nothing_else(
    page: Starlette, client: TestClient
) -> None:
    for method, path in every_route(page):
        answer = client.request(method, path, headers=LINK)
        wanted = 200 if (method, path) == ("GET", "/") else 403
        assert answer.status_code == wanted, (method, path)
    assert client.get("/", headers=LINK | {"Origin": "null"}).status_code == 403
    assert client.get("/?__theme=light", headers=LINK).status_code == 200


def test_a_request_without_a_name_is_foreign() -> None:
    names = Names.of("127.0.0.1")
    assert _asked(names, []) == 403
    assert _asked(names, [(b"host", OWN.encode()), (b"host", OWN.encode())]) == 403
    wide = OWN.replace("1", "\uff11")
    assert _asked(names, [(b"host", wide.encode())]) == 403
    assert _asked(names, [(b"host", f"127.0.0.1:0{PORT}".encode())]) == 403
    assert _asked(names, [(b"host", OWN.encode())]) == 200
    twice = [(b"origin", f"http://{OWN}".encode())] * 2
    assert _asked(names, [(b"host", OWN.encode()), *twice]) == 403


def _asked(names: Names, headers: list[tuple[bytes, bytes]], port: int = PORT) -> int:
    """The status of a GET with exactly these headers."""
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/x",
        "headers": headers,
        "server": ("127.0.0.1", port),
        "client": ("127.0.0.1", 1),
    }
    return _answer(names, scope)[0]


def _answer(names: Names, scope: dict[str, Any]) -> tuple[int, dict[str, str]]:
    """The status, and the headers that came through."""
    import anyio

    seen: dict[str, str] = {}
    statuses: list[int] = []

    async def inner(scope, receive, send) -> None:
        seen.update(Request(scope).headers)
        await JSONResponse({})(scope, receive, send)

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    anyio.run(Origins(inner, names=names, refusals=Refusals()), scope, receive, send)
    return statuses[0], seen


@pytest.mark.parametrize(
    ("host", "asked", "port", "origin", "status"),
    [
        ("127.0.0.1", OWN, PORT, "", 200),
        ("127.0.0.1", f"localhost:{PORT}", PORT, f"http://localhost:{PORT}", 200),
        ("127.0.0.1", f"LOCALHOST:{PORT}", PORT, f"http://localhost:{PORT}", 200),
        ("::1", f"[::1]:{PORT}", PORT, f"http://[::1]:{PORT}", 200),
        ("127.0.0.1", "localhost", 80, "http://localhost", 200),
        ("127.0.0.1", "localhost:80", 80, "http://localhost", 200),
        ("127.0.0.2", f"127.0.0.2:{PORT}", PORT, "", 200),
        ("studio.lan", f"studio.lan:{PORT}", PORT, f"http://studio.lan:{PORT}", 200),
        ("studio.lan", f"other.lan:{PORT}", PORT, "", 403),
        ("fd00::2", f"[fd00::2]:{PORT}", PORT, f"http://[fd00::2]:{PORT}", 200),
        ("0.0.0.0", f"studio.lan:{PORT}", PORT, f"http://studio.lan:{PORT}", 200),
        ("0.0.0.0", "studio.example", PORT, "https://studio.example", 200),
        ("0.0.0.0", "studio.example:8443", PORT, "https://studio.example:8443", 200),
        ("0.0.0.0", "studio.example", PORT, "https://evil.example", 403),
        ("0.0.0.0", "studio.example", PORT, "https://studio.example:8443", 403),
        ("0.0.0.0", "stu dio", PORT, "", 403),
        ("0.0.0.0", "studio.example:99999", PORT, "", 403),
    ],
)
def test_known_names(host: str, asked: str, port: int, origin: str, status: int) -> None:
    headers = [(b"host", asked.encode())]
    headers += [(b"origin", origin.encode())] if origin else []
    assert _asked(Names.of(host), headers, port) == status


@pytest.mark.parametrize(
    ("asked", "origin", "status"),
    [
        ("studio.example", "https://studio.example", 200),
        ("studio.example", "http://studio.example", 403),
        ("studio.example", "https://evil.example", 403),
        ("evil.example", "https://studio.example", 403),
        # A proxy that asks by the address which it was given.
        (OWN, "https://studio.example", 200),
        (OWN, f"http://{OWN}", 200),
    ],
)
def test_the_public_address_is_known(asked: str, origin: str, status: int) -> None:
    names = Names.of("127.0.0.1", public_url("https://studio.example/"))
    assert _asked(names, [(b"host", asked.encode()), (b"origin", origin.encode())]) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "studio.example",
        "ftp://studio.example",
        "https://",
        "https://a/b",
        "https://a:0",
        "http://a b",
    ],
)
def test_what_is_no_public_address_is_refused(text: str) -> None:
    with pytest.raises(StudioError, match="is not the address of a page"):
        public_url(text)


@pytest.mark.parametrize(
    ("asked", "origin", "status"),
    [
        ("me-space.hf.space", "https://me-space.hf.space", 200),
        ("10.1.2.3:7860", "", 200),
        ("me-space-replica.hf.space", "https://me-space.hf.space", 200),
        ("me-space.hf.space", "https://evil.hf.space", 403),
        ("me-space.hf.space", "https://huggingface.co", 403),
        ("me-space.hf.space", "null", 403),
        ("evil.example", "", 403),
    ],
)
def test_the_names_of_a_space(
    monkeypatch: pytest.MonkeyPatch, asked: str, origin: str, status: int
) -> None:
    monkeypatch.setenv("SPACE_ID", "me/space")
    monkeypatch.setenv("SPACE_HOST", "me-space.hf.space")
    headers = [(b"host", asked.encode())]
    headers += [(b"origin", origin.encode())] if origin else []
    assert _asked(Names.of("0.0.0.0"), headers) == status


def test_a_space_is_shown_in_the_frame_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/space")
    monkeypatch.setenv("SPACE_HOST", "me-space.hf.space")
    framed = LINK | {"Sec-Fetch-Dest": "iframe", "Host": "me-space.hf.space"}
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(k.lower().encode(), v.encode()) for k, v in framed.items()],
        "server": ("0.0.0.0", PORT),
    }
    assert _answer(Names.of("0.0.0.0"), dict(scope))[0] == 200
    assert _answer(Names.of("0.0.0.0"), dict(scope, path="/config"))[0] == 403


@pytest.mark.parametrize(
    ("said", "kept"),
    [("studio.example", True), ("evil.example", False), ('a"</script><script>', False)],
)
def test_what_a_proxy_says_of_our_address_counts_only_if_we_know_it(said: str, kept: bool) -> None:
    names = Names.of("127.0.0.1", public_url("https://studio.example"))
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": Headers(
            {
                "host": OWN,
                "x-forwarded-host": said,
                "x-gradio-server": f"http://{said}",
                "x-other": "1",
            }
        ).raw,
        "server": ("127.0.0.1", PORT),
    }
    status, seen = _answer(names, scope)
    assert status == 200
    assert seen.get("x-forwarded-host") == (said if kept else None)
    assert "x-gradio-server" not in seen
    assert seen["x-other"] == "1"


def test_a_websocket_of_a_foreign_page_is_closed() -> None:
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("inside")
        await socket.close()

    inner = Starlette(routes=[WebSocketRoute("/ws", echo)])
    client = TestClient(
        Origins(inner, names=Names.of("127.0.0.1"), refusals=Refusals()), base_url=f"http://{OWN}"
    )
    for sent in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        with (
            pytest.raises(WebSocketDisconnect) as closed,
            client.websocket_connect(f"ws://{OWN}/ws", headers=sent),
        ):
            pass
        assert closed.value.code == 1008
    with client.websocket_connect(f"ws://{OWN}/ws", headers={"origin": f"http://{OWN}"}) as socket:
        assert socket.receive_text() == "inside"


def test_every_answer_is_dressed(client: TestClient) -> None:
    asked = [
        client.get("/"),
        client.get("/config"),
        client.get("/nowhere"),
        client.get("/studio/alive"),
        client.get("/", headers={"Host": "evil.example"}),
        client.post(
            "/gradio_api/upload",
            headers={"Origin": f"http://{OWN}"},
            files={"files": b"no png"},
        ),
    ]
    assert [answer.status_code for answer in asked] == [200, 200, 404, 200, 403, 415]
    for answer in asked:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src" in policy
        assert not [name for name in answer.headers if name.startswith("access-control")]
    policies = {answer.headers["content-security-policy"] for answer in (asked[0], client.get("/"))}
    assert len(policies) == 2, "a nonce is used once"
    for policy in policies:
        for rule in ("object-src 'none'", "base-uri 'self'", "form-action 'self'"):
            assert rule in policy
        assert "http" not in policy
        assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_refusals_are_lines_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    async def inner(scope, receive, send) -> None:
        raise AssertionError("nobody gets here")

    client = TestClient(
        Origins(inner, names=Names.of("127.0.0.1"), refusals=Refusals()), base_url=f"http://{OWN}"
    )
    client.get("/a%1b%5b31m%0d%0aadmin", headers={"Host": "evil\x1b[31m"})
    (line,) = caplog.messages
    assert line.startswith("refused GET /a")
    assert line.isprintable()
    for _ in range(LINES_A_MINUTE * 3):
        client.get("/", headers={"Host": "evil.example"})
    assert len(caplog.messages) <= 2 * LINES_A_MINUTE + 1


@pytest.mark.parametrize("given", ["https://studio.example:443", "https://studio.example"])
@pytest.mark.parametrize("asked", ["studio.example", "studio.example:443"])
def test_the_default_port_may_be_written_or_not(given: str, asked: str) -> None:
    names = Names.of("127.0.0.1", public_url(given))
    found = authority(asked)
    assert found is not None
    assert names.knows(found, 7860)
    assert names.is_own("https://studio.example", found)
    assert not names.is_own("http://studio.example", found)
    assert not names.is_own("https://studio.example:8443", found)
    other = authority("studio.example:80")
    assert other is not None
    assert not names.knows(other, 7860)


def test_what_the_server_logs_is_not_without_end() -> None:
    lines = Sparing("lines:")
    logger = logging.Logger("a server")
    stream = StringIO()
    logger.addHandler(logging.StreamHandler(stream))
    logger.addFilter(lines)
    for _ in range(LINES_A_MINUTE * 3):
        logger.warning("Invalid HTTP request received.")
    written = stream.getvalue().count("Invalid")
    assert LINES_A_MINUTE <= written <= 2 * LINES_A_MINUTE
    serving.plain_log()
    serving.plain_log()
    filters = logging.getLogger("uvicorn.error").filters
    assert [type(one) for one in filters].count(Sparing) == 1
