"""The hub over HTTP: what a repository holds at a commit, and the bytes of its files.

Speaks the two plain addresses that the hub's own tools speak (`/api/models/.../revision/...` and
`/.../resolve/...`), obeys HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE as they do, and maps every
fault to one sentence. Why not `huggingface_hub`: docs/decisions/0008-own-downloads.md.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from pipelines.errors import DownloadError, printable
from pipelines.models import proxies
from pipelines.models.hub_store import StoredFile, is_safe

DEFAULT_ENDPOINT = "https://huggingface.co"
_MAX_LISTING = 8_000_000
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait. `stall` is without a byte; `tries` count failures without progress."""

    connect: float = 10.0
    stall: float = 30.0
    tries: int = 6
    pause: float = 1.0
    longest_pause: float = 30.0


class PassingError(Exception):
    """A fault that may be gone at the next try. `error` is what to say if it is not."""

    def __init__(self, error: DownloadError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


class Hub:
    """One hub. Threads may share it."""

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._url = _endpoint(endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)
        self._token = token if token is not None else _token()
        self.patience = patience or Patience()
        # One for each proxy, and one for none; made when it is first needed.
        self._clients: dict[str | None, httpx.Client] = {}
        self._making = threading.Lock()

    @property
    def host(self) -> str:
        """The name of the hub, for sentences."""
        return self._url.host

    def close(self) -> None:
        """Ends all connections."""
        for client in self._clients.values():
            client.close()

    def listing(self, repo: str, revision: str) -> tuple[str, Mapping[str, StoredFile]]:
        """(commit, files by path) of a repository. Raises DownloadError, PassingError."""
        url = self._url.join(f"{self._url.path.rstrip('/')}/api/models/{repo}/revision/{revision}")
        with self._get(url.copy_set_param("blobs", "true"), repo, revision) as response:
            body = b""
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_LISTING:
                    raise self._garbage(repo)
        try:
            table = json.loads(body)
            commit, rows = table["sha"], table["siblings"]
            if not (isinstance(commit, str) and len(commit) == 40 and int(commit, 16) >= 0):
                raise ValueError("no commit")
            entries = {e.path: e for row in rows if (e := _entry(row)) is not None}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._garbage(repo) from None
        if len(revision) == 40 and commit != revision:
            raise DownloadError(
                f"{self.host} answered with another version of {repo} than the pinned one.",
                "Check HF_ENDPOINT.",
            )
        return commit.lower(), entries

    @contextmanager
    def open(
        self, repo: str, commit: str, entry: StoredFile, *, start: int = 0
    ) -> Iterator[httpx.Response]:
        """The bytes of a file from `start` on, as the server wants to send them (200, 206 or 416).

        Raises DownloadError, PassingError.
        """
        path = quote(entry.path)
        url = self._url.join(f"{self._url.path.rstrip('/')}/{repo}/resolve/{commit}/{path}")
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and entry.etag and not entry.etag.startswith("W/"):
            headers["If-Range"] = entry.etag
        with self._get(url, repo, commit, headers) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise self._garbage(repo)
            yield response

    # --- one request --------------------------------------------------------------------------

    @contextmanager
    def _get(
        self, url: httpx.URL, repo: str, revision: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        if os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in _TRUE:
            raise DownloadError(
                "Downloads are switched off: HF_HUB_OFFLINE is set.", "Unset it to download."
            )
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                connection = self._connection(url)
                request = connection.build_request(
                    "GET", url, headers={**(headers or {}), **self._own_headers(url)}
                )
                response = connection.send(request, stream=True)
                try:
                    if response.status_code in _REDIRECTS:
                        url = self._next(url, response)
                        continue
                    self._check(response, repo, revision)
                    yield response
                    return
                finally:
                    response.close()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise self._mapped(error) from None
        raise DownloadError(f"{self.host} sends in circles.", "Check HF_ENDPOINT.")

    def _connection(self, url: httpx.URL) -> httpx.Client:
        """The client for `url`, by the proxy that it takes. Raises DownloadError."""
        proxy = proxies.proxy_for(url)
        with self._making:
            if proxy not in self._clients:
                wait = httpx.Timeout(self.patience.stall, connect=self.patience.connect)
                self._clients[proxy] = httpx.Client(
                    timeout=wait,
                    follow_redirects=False,
                    headers={"Accept-Encoding": "identity", "User-Agent": "pixart-studio"},
                    trust_env=False,
                    proxy=proxy,
                    verify=proxies.certificates(),
                )
            return self._clients[proxy]

    def _own_headers(self, url: httpx.URL) -> dict[str, str]:
        """The token goes to the hub alone, and never over an open line."""
        same = (url.scheme, url.host, url.port) == (
            self._url.scheme,
            self._url.host,
            self._url.port,
        )
        if not self._token or not same or (url.scheme != "https" and not _is_private(url.host)):
            return {}
        return {"Authorization": f"Bearer {self._token}"}

    def _next(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        target = url.join(response.headers.get("location", ""))
        odd = target.scheme not in ("http", "https") or bool(target.userinfo) or not target.host
        opened = url.scheme == "https" and target.scheme == "http"
        inward = _is_private(target.host) and not _is_private(self._url.host)
        if odd or opened or inward:
            raise DownloadError(
                f"{self.host} sends to an address that is not followed "
                f"({printable(target.scheme, 20)}, {printable(target.host, 60) or 'no host'}).",
                "Check HF_ENDPOINT.",
            )
        return target

    # --- faults -------------------------------------------------------------------------------

    def _check(self, response: httpx.Response, repo: str, revision: str) -> None:
        """Raises for every answer that holds no bytes of a file."""
        code, kind = response.status_code, response.headers.get("x-error-code", "")
        if code in (200, 206, 416):
            return
        if code in (401, 403, 404) and response.url.host != self._url.host:
            # The storage behind the hub: its addresses are signed and expire.
            raise PassingError(
                DownloadError(f"The storage of {self.host} refuses.", "Try again later.")
            )
        page = f"{self._url}{'' if str(self._url).endswith('/') else '/'}{repo}"
        if kind == "GatedRepo" or (code == 403 and not kind):
            way = "set HF_TOKEN to your token" if not self._token else "then try again"
            raise DownloadError(
                f"{repo} is only for people who agreed to its terms.",
                f"Agree to them at {page}, {way}.",
            )
        if code == 401 or kind == "RepoNotFound":
            raise DownloadError(
                f"{repo} is not on {self.host}, or is private.",
                "If it is private, set HF_TOKEN to a token that may read it.",
            )
        if code == 404:
            what = {
                "RevisionNotFound": f"The version {revision[:10]} of {repo}",
                "EntryNotFound": f"A file of {repo}",
            }.get(kind, repo)
            raise DownloadError(f"{what} is not on {self.host}.", "Check HF_ENDPOINT.")
        if code == 407:
            raise DownloadError("The proxy wants a name and a password.", "Check HTTPS_PROXY.")
        if code == 429 or code >= 500:
            error = DownloadError(
                f"{self.host} is overloaded or broken (status {code}).",
                "Try again later; what has arrived is kept.",
            )
            raise PassingError(error, _seconds(response.headers.get("retry-after")))
        raise DownloadError(
            f"{self.host} refuses with status {code} for {repo}.", "Check HF_ENDPOINT."
        )

    def _garbage(self, repo: str) -> DownloadError:
        return DownloadError(
            f"What came for {repo} is not from a hub: a proxy or a login page may be in between.",
            f"Open {self._url} in a browser, or check HF_ENDPOINT.",
        )

    def _mapped(self, error: Exception) -> PassingError:
        kept = "Check the connection; what has arrived is kept."
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, socket.gaierror):
                return PassingError(
                    DownloadError(
                        f"The address {self.host} is not known: there seems to be no network.", kept
                    )
                )
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx.TimeoutException):
            return PassingError(DownloadError(f"{self.host} does not answer.", kept))
        if isinstance(error, httpx.ProxyError):
            return PassingError(DownloadError("The proxy refuses.", "Check HTTPS_PROXY."))
        if isinstance(error, httpx.ConnectError):
            return PassingError(
                DownloadError(f"{self.host} cannot be reached ({printable(error, 80)}).", kept)
            )
        return PassingError(
            DownloadError(f"The connection to {self.host} was cut ({printable(error, 80)}).", kept)
        )


def _endpoint(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    plain = bool(url.host) and all(c.isalnum() or c in ".-_:" for c in url.host)
    if url.scheme not in ("http", "https") or not plain or url.userinfo or url.query:
        raise DownloadError(
            f"HF_ENDPOINT is “{printable(text, 80)}”, which is not the address of a hub.",
            f"Unset it, or write one like {DEFAULT_ENDPOINT}.",
        )
    return url


def _token() -> str:
    """$HF_TOKEN, else the one that the hub's own tools have kept."""
    given = os.environ.get("HF_TOKEN")
    if given is None:
        home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
        file = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token")
        with suppress(OSError, UnicodeDecodeError):
            given = file.read_text("utf-8")[:500]
    text = (given or "").strip()
    # A header must be one line of plain characters.
    return text if text.isascii() and text.isprintable() else ""


def _is_private(host: str) -> bool:
    """An address that only this machine or this network can mean."""
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        # 2130706433, 0x7f.1 and 0 are ways to write an address, never the name of a server.
        return host.rsplit(".", 1)[-1][:1].isdigit()
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


def _entry(row: Mapping[str, Any]) -> StoredFile | None:
    """One file of a listing; None for a name that is not taken. Raises for what is none."""
    path = row["rfilename"]
    if not isinstance(path, str) or not is_safe(path):
        return None
    large = row.get("lfs") or {}
    sha256, blob = large.get("sha256"), row.get("blobId")
    if not (sha256 or blob):
        return None
    return StoredFile(path=path, size=row["size"], sha256=sha256, blob=None if sha256 else blob)


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 6 else None
