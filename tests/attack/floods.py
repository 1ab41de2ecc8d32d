"""More than a request may bring: bodies, uploads, pictures of endless parts."""

from __future__ import annotations

import secrets
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from tests.attack.attack import Attack, Target, must
from tests.attack.crowds import shown

_BIG = 30_000_000
_FILES = 32
_BROKEN = 10
_ROUTES = ("queue/join", "call/generate", "call/v2/generate", "cancel", "reset", "component_server")


def _endless(size: int) -> Iterator[bytes]:
    yield b'{"data": ["'
    for _ in range(size // 100_000):
        yield b"x" * 100_000


def _bodies(target: Target) -> str:
    size = 5_000_000 if target.short else 400_000_000
    with target.client(**shown(target), Content_Type="application/json") as http:
        for route in _ROUTES:
            try:
                answer = http.post(f"/gradio_api/{route}", content=_endless(size))
            except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
                # It was closed while there was more to send.
                continue
            must(answer.status_code == 413, f"{route}: {answer.status_code}")
            must("\n" not in answer.text, "not one sentence")
    return f"{len(_ROUTES)} routes, {size // 1_000_000} MB each, without a length"


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    crc = zlib.crc32(kind + data)
    return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")


def _png(between: bytes, shade: int = 0) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes([shade]) * 8 for _ in range(8))))
    return b"\x89PNG\r\n\x1a\n" + header + between + pixels + _chunk(b"IEND")


def _lying(target: Target) -> int:
    folder = target.workspace / "cache" / "gradio" if target.workspace else None
    return sum(1 for file in folder.rglob("*") if file.is_file()) if folder else 0


def _uploads(target: Target) -> str:
    kinds = (b"GIF89a" + bytes(99), b"<html>", b"MZ" + bytes(99), b"PK\x03\x04", b"", bytes(99))
    with target.client(**shown(target)) as http:
        for data in kinds:
            answer = http.post("/gradio_api/upload", files={"files": ("a.png", data)})
            must(answer.status_code == 415, f"{data[:6]!r}: {answer.status_code}")
        large = http.post("/gradio_api/upload", files={"files": ("a.png", bytes(34_000_000))})
        must(large.status_code == 413, f"34 MB: {large.status_code}")
        for number in range(100):
            http.post("/gradio_api/upload", files={"files": ("a.png", _png(b"", number))})
    must(_lying(target) <= _FILES, f"{_lying(target)} uploads lie there")
    return f"{len(kinds) + 1} refused; of 100 pictures {_lying(target)} are kept"


def _broken_off(target: Target) -> str:
    """Uploads that end in the middle, and parts that nobody asked for."""
    place, before, sent = urlsplit(target.address), _lying(target), 0
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {place.netloc}\r\n"
    for name, value in shown(target).items():
        head += f"{name}: {value}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 30000000\r\n\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for _ in range(_BROKEN):
        with socket.create_connection((place.hostname, place.port), timeout=20) as sender:
            data = (head + part).encode() + _png(b"") + bytes(5_000_000)
            sender.sendall(data)
            sent += len(data)
    with target.client(**shown(target)) as http:
        for _ in range(_BROKEN):
            http.post("/gradio_api/upload", files={"other": ("a.png", _png(b""))})
    end = time.monotonic() + 20
    while _lying(target) > before:
        must(time.monotonic() < end, f"{_lying(target) - before} files are left")
        time.sleep(0.1)
    return f"{_BROKEN} that broke off ({sent / 1e6:.0f} MB) and {_BROKEN} of another name: 0 left"


def _pictures(target: Target) -> str:
    longest = 0.0
    with target.client(**shown(target)) as http:
        for part in (_chunk(b"teSt"), _chunk(b"tEXt", b"a\0"), _chunk(b"IDAT")):
            data = _png(part * (_BIG // len(part)))
            sent = http.post("/gradio_api/upload", files={"files": ("a.png", data)})
            must(sent.status_code == 200, f"the upload: {sent.status_code}")
            file = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
            began = time.monotonic()
            # A session is told only what is new to it.
            body = {"data": [None, file], "session_hash": secrets.token_hex(8)}
            event = http.post("/gradio_api/call/keep_upload", json=body).json()["event_id"]
            told = http.get(f"/gradio_api/call/keep_upload/{event}").text
            longest = max(longest, time.monotonic() - began)
            must("which no picture needs" in told, told[-300:])
    return f"3 pictures of 30 MB, refused after {longest:.2f} s at most"


ATTACKS = [
    Attack(topic="floods", promise="bodies of more than 1 MB are refused", run=_bodies),
    Attack(
        topic="floods",
        promise="uploads are pictures, and few of one address are kept",
        run=_uploads,
    ),
    Attack(
        topic="floods",
        promise="nothing is left of uploads that break off",
        run=_broken_off,
    ),
    Attack(topic="floods", promise="pictures of endless parts are refused", run=_pictures),
]
