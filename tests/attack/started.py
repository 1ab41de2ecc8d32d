"""A studio to attack: the real one, in a process and a workspace of its own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests import ports
from tests.attack.attack import Target

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120
SHARE = "a-share-token-of-the-attack"
ADMIN = "an-admin-token-of-the-attack"


FILES = 64
"""So few may a studio without a share token open, as where somebody has set `ulimit -n 64`."""


def _few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


@contextmanager
def started(folder: Path, *, short: bool = False, shared: bool = False) -> Iterator[Target]:
    """Starts a studio on loopback, `shared` with a share token; ends it afterwards."""
    port, log = ports.free(), folder / "studio.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIXART_STUDIO")}
    environment["PIXART_STUDIO_WORKSPACE"] = str(folder / "workspace")
    if shared:
        environment |= {"PIXART_STUDIO_SHARE_TOKEN": SHARE, "PIXART_STUDIO_ADMIN_TOKEN": ADMIN}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys, app.cli.main; sys.exit(app.cli.main.main(sys.argv[1:]))",
                *("--port", str(port), "--no-browser"),
            ],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=None if shared else _few_files,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(process, address, log)
        yield Target(
            address=address,
            short=short,
            share_token=SHARE if shared else "",
            admin_token=ADMIN if shared else "",
            log=log,
            workspace=folder / "workspace",
            pid=process.pid,
        )
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    began = time.monotonic()
    while time.monotonic() - began < START_SECONDS:
        if process.poll() is not None:
            break
        try:
            httpx.get(f"{address}/studio/alive", timeout=5, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"the studio did not start:\n{log.read_text('utf-8', 'replace')}")
