"""What a request may bring: sizes, times, kinds and numbers, counted as they come in."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.ui.guards import bodies, uploads
from app.ui.guards.bodies import MAX_BODY, Bodies
from app.ui.guards.refusals import Refusals
from app.ui.guards.uploads import MOST_AT_ONCE, MOST_FILES, Uploads
from pipelines.errors import RequestError
from tests.app.ui.fake_studio import FakeStudio, served

JSON = {"Content-Type": "application/json"}


def picture(kind: str = "PNG", shade: int = 0, side: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (side, side), (shade, 9, 9)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> FakeStudio:
    return FakeStudio(tmp_path_factory.mktemp("bodies"), steps=2, pace=0.01)


@pytest.fixture(scope="module")
def http(studio: FakeStudio) -> Iterator[httpx.Client]:
    with served(studio) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


def lying(studio: FakeStudio) -> list[Path]:
    return [Path(at, name) for at, _, names in os.walk(studio.settings.uploads) for name in names]


class Count:
    """What the middleware asks for, and what an application behind it gets."""

    def __init__(self, pieces: list[bytes], slow: float = 0) -> None:
        self.pieces, self.slow = pieces, slow
        self.taken = self.reached = 0
        self.body = b""
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(self.slow)
        if self.taken >= len(self.pieces):
            return {"type": "http.disconnect"}
        self.taken += 1
        more = self.taken < len(self.pieces)
        return {"type": "http.request", "body": self.pieces[self.taken - 1], "more_body": more}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        more = True
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[]"})

    def run(self, path: str = "/gradio_api/queue/join", **headers: str) -> int:
        raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
        guard = Bodies(self.app, uploads=Uploads(), refusals=Refusals())
        asyncio.run(guard(scope, self.receive, self.send))
        return int(self.sent[0]["status"])


def test_a_body_reaches_the_page_as_it_came() -> None:
    count = Count([b"a" * 500_000, b"", b"b" * 500_000])
    assert count.run() == 200
    assert (count.reached, len(count.body)) == (1, MAX_BODY)
    assert count.body.startswith(b"aaa")


@pytest.mark.parametrize("length", ["", "5", "-1", "x", "0" * 5000])
def test_bytes_are_counted_whatever_the_length_says(length: str) -> None:
    count = Count([b"x" * 100_000] * 4000)
    assert count.run(**({"content_length": length} if length else {})) == 413
    assert count.reached == 0
    # What is thrown away has an end, too.
    assert count.taken <= 12 + bodies.LINGER_BYTES // 100_000


def test_a_length_that_is_too_large_is_refused_unread() -> None:
    for length in ("1000001", "400000000", "9" * 4000):
        count = Count([b"x"] * 3)
        assert count.run(content_length=length) == 413
        assert (count.body, count.reached) == (b"", 0)
    assert b"1 MB" in count.sent[1]["body"]
    assert count.sent[1]["body"].count(b"\n") == 0


def test_a_body_that_drips_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.3)
    count = Count([b"x"] * 1000, slow=0.05)
    assert count.run() == 408
    assert count.reached == 0
    assert count.taken < 20


def test_an_upload_of_endless_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_UPLOAD", 100_000)
    count = Count([b"x" * 10_000] * 500)
    assert count.run(bodies.UPLOADS) == 413
    assert len(count.body) <= 100_000
    assert len(count.sent) == 3


def test_an_upload_that_stops_coming_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PIECE_SECONDS", 0.1)
    count = Count([b"x"] * 5, slow=5)
    assert count.run(bodies.UPLOADS + "/") == 408
    assert count.taken <= 1
    assert len(count.sent) == 2


@pytest.mark.parametrize(
    "path", ["queue/join", "call/generate", "cancel", "reset", "component_server", "none"]
)
def test_every_route_counts(http: httpx.Client, path: str) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"data": ["'
        for _ in range(40):
            yield b"x" * 100_000

    try:
        answer = http.post(f"/gradio_api/{path}", content=endless(), headers=JSON)
    except (httpx.WriteError, httpx.ReadError):
        # It was closed while there was more to send.
        return
    assert answer.status_code == 413
    assert "1 MB" in answer.text


def test_a_large_prompt_still_gets_its_own_sentence(http: httpx.Client) -> None:
    data = ["x" * 900_000, "", "", "", None, None, "", "", 1, "None"]
    posted = http.post("/gradio_api/call/generate", json={"data": data})
    event = posted.json()["event_id"]
    assert "the limit is 10,000" in http.get(f"/gradio_api/call/generate/{event}").text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_taken(http: httpx.Client, kind: str) -> None:
    answer = http.post("/gradio_api/upload", files={"files": ("a.png", picture(kind))})
    assert answer.status_code == 200
    assert Path(answer.json()[0]).read_bytes() == picture(kind)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", b"no picture"),
        ("a.png", b""),
        ("a.html", b"<html><script>alert(1)</script>"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("a.gif", b"GIF89a" + bytes(50)),
        ("a.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
        ("a.zip", b"PK\x03\x04" + bytes(50)),
        ("\x1b[31m\u202e.exe", b"MZ" + bytes(50)),
    ],
)
def test_what_is_no_picture_is_not_kept(
    http: httpx.Client, studio: FakeStudio, name: str, data: bytes
) -> None:
    before = lying(studio)
    sent = [("files", ("ok.png", picture(shade=200))), ("files", (name, data))]
    answer = http.post("/gradio_api/upload", files=sent)
    assert answer.status_code == 415
    assert "not a picture that can be read. Use a PNG, JPEG or WebP file." in answer.text
    assert answer.text.isprintable()
    assert lying(studio) == before


def test_too_many_at_once_are_not_kept(http: httpx.Client, studio: FakeStudio) -> None:
    before = lying(studio)
    sent = [("files", (f"{n}.png", picture(shade=n))) for n in range(MOST_AT_ONCE + 1)]
    answer = http.post("/gradio_api/upload", files=sent)
    assert answer.status_code == 415
    assert f"at most {MOST_AT_ONCE} together" in answer.text
    assert lying(studio) == before


def test_an_address_keeps_so_many_and_no_more(http: httpx.Client, studio: FakeStudio) -> None:
    last: list[str] = []
    for number in range(MOST_FILES + 10):
        sent = {"files": (f"{number}.png", picture(shade=number))}
        last = http.post("/gradio_api/upload", files=sent).json()
    assert len(lying(studio)) == MOST_FILES
    assert Path(last[0]).is_file()
    assert len(list(Path(os.environ["GRADIO_TEMP_DIR"]).glob("*/"))) == MOST_FILES


def test_an_address_keeps_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 1000)
    kept = Uploads()

    def take(name: str, size: int, client: str) -> Path:
        file = tmp_path / name / name
        file.parent.mkdir()
        file.write_bytes(picture("JPEG")[:16] + bytes(size - 16))
        kept.take([file], client)
        return file

    first, other = take("a", 600, "1"), take("b", 900, "2")
    second = take("c", 500, "1")
    assert (first.exists(), second.exists(), other.exists()) == (False, True, True)
    assert not first.parent.exists()
    # One that is larger than all together stays until the next one comes.
    large = take("d", 5000, "1")
    assert (second.exists(), large.exists()) == (False, True)
    large.unlink()
    kept.forget_missing()
    assert set(kept._kept) == {other}


def test_a_file_that_is_gone_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        Uploads().take([tmp_path / "gone.png"], "1")


@pytest.mark.parametrize("name", ["MAX_UPLOAD", "PIECE_SECONDS"])
def test_gradio_is_told_that_an_upload_ended(
    http: httpx.Client,
    studio: FakeStudio,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bodies, name, {"MAX_UPLOAD": 50_000, "PIECE_SECONDS": 0.3}[name])

    def sent() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(30):
            yield picture() + bytes(10_000)
            if name == "PIECE_SECONDS":
                time.sleep(1)

    status = {"MAX_UPLOAD": 413, "PIECE_SECONDS": 408}[name]
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        answer = http.post("/gradio_api/upload", content=sent(), headers=kind)
        assert answer.status_code == status
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        pass
    assert http.get("/studio/alive").status_code == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_half_an_upload_keeps_nothing_waiting(http: httpx.Client) -> None:
    host, port = http.base_url.host, http.base_url.port or 0
    with socket.create_connection((host, port), timeout=20) as half:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\n"
        half.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n")
        half.sendall(b"Content-Length: 1000\r\n\r\n--x\r\n")
        assert http.get("/studio/alive").status_code == 200


FIELD = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def part(data: bytes, name: bytes = b"files", file: bytes = b'; filename="a.png"') -> bytes:
    return FIELD % (name, file, data)


@pytest.mark.parametrize(
    "body",
    [
        part(picture() + bytes(50_000))[:30_000],
        part(picture(), name=b"other") + b"--x--\r\n",
        part(picture()) + part(b"text", file=b"") + b"--x--\r\n",
        part(picture()) + b"--x\r\nno header",
    ],
    ids=["broken off", "another name", "a field among them", "no form"],
)
def test_nothing_is_left_of_what_is_no_upload(
    http: httpx.Client, studio: FakeStudio, body: bytes
) -> None:
    before, host, port = lying(studio), http.base_url.host, http.base_url.port or 0
    with socket.create_connection((host, port), timeout=20) as sender:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\n"
        sender.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n")
        sender.sendall(b"Connection: close\r\nContent-Length: ")
        sender.sendall(b"%d\r\n\r\n" % (len(body) + 100) + body)
        end = time.monotonic() + 20
        # gradio has begun, and then nothing more comes.
        while len(lying(studio)) == len(before) and time.monotonic() < end:
            sender.settimeout(0.1)
            try:
                if not sender.recv(1000):
                    break
            except TimeoutError:
                pass
    while lying(studio) != before:
        assert time.monotonic() < end, lying(studio)
        time.sleep(0.02)
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert not [one for one in folder.glob("*/") if not any(one.iterdir())]


def test_parts_are_counted_although_they_come_in_pieces() -> None:
    body = part(b"x") * (bodies.MOST_PARTS + 1)
    for size in (1, 3, 1000):
        count = Count([body[n : n + size] for n in range(0, len(body), size)])
        assert count.run(bodies.UPLOADS, content_type=FORM["Content-Type"]) == 413
        assert b"parts" in count.sent[1]["body"]
    few = part(b"--" * 5000) * (bodies.MOST_PARTS - 1) + b"--x--\r\n"
    assert Count([few]).run(bodies.UPLOADS, content_type=FORM["Content-Type"]) == 200


def test_a_thousand_parts_open_no_thousand_files(http: httpx.Client, studio: FakeStudio) -> None:
    before = lying(studio)
    answer = http.post(
        "/gradio_api/upload", content=part(picture()) * 1000 + b"--x--\r\n", headers=FORM
    )
    assert answer.status_code == 413
    assert lying(studio) == before


def test_the_same_picture_of_two_visitors_is_two_files(http: httpx.Client) -> None:
    first, second = (
        Path(http.post("/gradio_api/upload", files={"files": ("a.png", picture())}).json()[0])
        for _ in range(2)
    )
    assert first != second
    refused = {"files": ("a.png", picture())}, {"files": ("b.png", b"none")}
    sent = [("files", one["files"]) for one in refused]
    assert http.post("/gradio_api/upload", files=sent).status_code == 415
    assert first.read_bytes() == second.read_bytes() == picture()


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/gradio_api/run/predict", bodies.CALLS_AT_ONCE),
        (bodies.UPLOADS, bodies.UPLOADS_AT_ONCE),
    ],
)
def test_who_asks_for_much_at_once_waits_alone(path: str, most: int) -> None:
    going: list[str] = []

    async def tried() -> None:
        end = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            going.append(scope["client"][0])
            await end.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"[]"})

        guard = Bodies(app, uploads=Uploads(), refusals=Refusals())

        async def ask(client: str) -> int:
            sent: list[Any] = []

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": path, "headers": []}
            await guard({**scope, "client": (client, 1)}, receive, send)
            return int(sent[0]["status"])

        many = [asyncio.create_task(ask("192.0.2.1")) for _ in range(most + 100)]
        other = asyncio.create_task(ask("192.0.2.2"))
        # Every one has gone as far as it comes by itself, however slow the machine is.
        for _ in range(50):
            await asyncio.sleep(0)
        assert going.count("192.0.2.1") == most
        assert going.count("192.0.2.2") == 1
        end.set()
        statuses = await asyncio.gather(*many)
        assert await other == 200
        assert (statuses.count(200), statuses.count(429)) == (most + 64, 36)

    asyncio.run(tried())


def test_who_sends_too_much_hears_it_each_time(http: httpx.Client) -> None:
    for _ in range(20):
        answer = http.post("/gradio_api/upload", files={"files": ("a.png", bytes(34_000_000))})
        assert answer.status_code == 413
        assert "33 MB" in answer.text or "32 MB" in answer.text


@pytest.mark.parametrize("slow", [0.05, 60])
def test_what_is_thrown_away_has_its_time(slow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.3)
    count, began = Count([b"x"] * 1000, slow=slow), time.monotonic()
    assert count.run(content_length="99999999") == 413
    assert time.monotonic() - began < 50
    assert (count.taken < 20, count.sent[-1]) == (True, {"type": "http.response.body"})
