"""Downloads obey the proxies that people have, and say in one sentence which they cannot use."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipelines.errors import DownloadError
from pipelines.models import proxies
from pipelines.models.hub import Hub, PassingError, Patience

HUB = httpx.URL("https://huggingface.co/x")
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *(name.upper() for name in NAMES), *CERTIFICATES, "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


class Refusing(socketserver.ThreadingTCPServer):
    """Answers 403 to whatever comes, and keeps its first line."""

    daemon_threads = True

    def __init__(self) -> None:
        asked: list[bytes] = []
        self.asked = asked

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                asked.append(self.request.recv(4096).split(b"\r\n")[0])
                self.request.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    server = Refusing()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "value", "asked"),
    [
        ("https_proxy", "http://proxy:3128", "http://proxy:3128"),
        ("https_proxy", "proxy:3128", "http://proxy:3128"),
        ("all_proxy", "http://me:secret@proxy:3128/", "http://me:secret@proxy:3128/"),
        ("http_proxy", "http://proxy:3128", None),
        ("https_proxy", "", None),
    ],
)
def test_the_proxy_of_the_scheme_is_taken(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, asked: str | None
) -> None:
    monkeypatch.setenv(name, value)
    assert proxies.proxy_for(HUB) == asked


@pytest.mark.parametrize(
    ("no_proxy", "host", "excepted"),
    [
        ("localhost,127.0.0.0/8,::1", "127.3.2.1", True),
        ("localhost,127.0.0.0/8,::1", "[::1]", True),
        ("localhost,[::1]", "[::1]", True),
        ("localhost,127.0.0.0/8,::1", "localhost", True),
        ("localhost,127.0.0.0/8,::1", "huggingface.co", False),
        ("10.0.0.0/8", "10.20.30.40", True),
        ("10.0.0.0/8", "11.20.30.40", False),
        ("fd00::/8", "[fd00::1]", True),
        ("huggingface.co", "huggingface.co", True),
        (".huggingface.co", "cdn.huggingface.co", True),
        ("*.huggingface.co", "cdn.huggingface.co", True),
        ("huggingface.co", "nothuggingface.co", False),
        ("huggingface.co:443", "huggingface.co", True),
        ("huggingface.co:80", "huggingface.co", False),
        ("*", "huggingface.co", True),
        (" , ,", "huggingface.co", False),
        ("[", "huggingface.co", False),
        ("300.1.2.3/99", "huggingface.co", False),
    ],
)
def test_exceptions(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, host: str, excepted: bool
) -> None:
    monkeypatch.setenv("all_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", no_proxy)
    found = proxies.proxy_for(httpx.URL(f"https://{host}/x"))
    assert (found is None) == excepted


@pytest.mark.parametrize("kind", ["socks5", "socks5h", "socks"])
def test_socks_is_taken_or_says_what_to_install(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{kind}://127.0.0.1:1080/")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"one more package\. Install it with: .* socksio"):
        proxies.proxy_for(HUB)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found = proxies.proxy_for(HUB)
    assert found == f"{'socks5' if kind == 'socks' else kind}://127.0.0.1:1080/"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("socks4://127.0.0.1:1080", "of a kind that is not known"),
        ("ftp://me:secret@proxy", "of a kind that is not known"),
        ("http://", "not the address of a proxy"),
        ("http://[::1", "not the address of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setenv("all_proxy", value)
    with pytest.raises(DownloadError, match=words) as told:
        proxies.proxy_for(HUB)
    assert "secret" not in str(told.value)


def test_a_proxy_that_refuses_is_said(monkeypatch: pytest.MonkeyPatch, refusing: Refusing) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{refusing.server_address[1]}")
    hub = Hub(endpoint="https://hub.example", token="", patience=Patience(connect=5, stall=5))
    with pytest.raises(PassingError) as told:
        hub.listing("a/b", "main")
    hub.close()
    assert "The proxy refuses" in str(told.value.error)
    assert refusing.asked[0].startswith(b"CONNECT hub.example:443")


def test_a_file_of_certificates_that_is_gone_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    hub = Hub(endpoint="https://hub.example", token="")
    with pytest.raises(DownloadError, match=r"SSL_CERT_FILE names .*gone\.pem, which cannot be"):
        hub.listing("a/b", "main")
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "gone" / "keys"))
    assert proxies.certificates() is not None
