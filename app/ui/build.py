"""The page from the outside: build it, or serve it until somebody ends it.

gradio is imported only inside functions, after the environment that it reads is set.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import warnings
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import hosting
from app.settings import DEFAULT_PORT, Settings, make_folder
from app.tokens import Tokens
from app.ui import access, serving
from pipelines.errors import RequestError

if TYPE_CHECKING:
    import gradio as gr

    from app.studio import Studio

MAX_UPLOAD = "32mb"
ENGINE_DELAY = 1.5
"""Seconds between the page and the start of the painting process."""


def prepare(settings: Settings) -> None:
    """Sets what gradio reads from the environment. Raises RequestError for a setting we refuse."""
    if os.environ.get("GRADIO_VIBE_MODE"):
        raise RequestError(
            "environment",
            "GRADIO_VIBE_MODE lets visitors edit the code of the page, so the studio does not"
            " start with it.",
            "Unset it.",
        )
    folder = make_folder(settings.cache / "gradio")
    folder.chmod(0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Analytics of the queue build a table per event; nobody reads it here.
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000"
    for name in (
        "GRADIO_SERVER_PORT",
        "GRADIO_SERVER_NAME",
        "GRADIO_SHARE",
        "GRADIO_ALLOWED_PATHS",
    ):
        os.environ.pop(name, None)
    serving.without_stub_files()


def build(studio: Studio) -> gr.Blocks:
    """The page of `studio`, not served yet."""
    prepare(studio.settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from app.ui import page

    return page.assemble(studio)


def launch_arguments(
    studio: Studio,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    tokens: Tokens | None = None,
    public_url: str | None = None,
) -> dict[str, Any]:
    """Every argument of `Blocks.launch`, but for what only a test or `serve` needs."""
    prepare(studio.settings)
    from starlette.middleware import Middleware

    from app.ui import guards, origins, routes, shell, theme
    from app.ui.origins import Names

    names = Names.of(host, origins.public_url(public_url) if public_url else None)
    around = guards.guards(names=names, tokens=tokens or Tokens())
    return {
        "theme": theme.theme(),
        "server_name": host,
        "server_port": port,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": MAX_UPLOAD,
        # What goes wrong in a Space is told to its owner, in the log.
        "show_error": not hosting.on_space(),
        "ssr_mode": False,
        "share": False,
        "pwa": False,
        "quiet": True,
        "allowed_paths": [],
        # Not `app_kwargs`: what gradio makes of them lies inside of its own middleware.
        "_app": guards.GuardedApp(
            around,
            middleware=[Middleware(shell.Shell)],
            routes=[*routes.routes(studio), *shell.routes()],
        ),
    }


def serve(
    studio: Studio,
    *,
    host: str,
    port: int | None,
    tokens: Tokens,
    public_url: str | None = None,
    open_browser: bool,
) -> None:
    """Serves the page until Ctrl+C or SIGTERM. Raises StudioError where it cannot be served."""
    access.check(host, tokens.share)
    stopped = threading.Event()
    engine: threading.Timer | None = None
    # Until the page is up, SIGTERM ends the start as Ctrl+C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        chosen = serving.free_port(host, port, DEFAULT_PORT)
        _empty(studio.settings.cache / "gradio")
        with serving.uncollected():
            demo = build(studio)
            serving.plain_log()
            logging.getLogger("httpx").setLevel(logging.WARNING)
            arguments = launch_arguments(
                studio, host=host, port=chosen, tokens=tokens, public_url=public_url
            )
            with serving.without_code_server():
                demo.launch(prevent_thread_lock=True, **arguments)
        # Before the address is said: who reads it may already end us.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        # The browser that now loads the page needs the processor more than the engine does.
        engine = threading.Timer(ENGINE_DELAY, studio.start)
        engine.daemon = True
        engine.start()
        address = serving.address(host, chosen)
        shown = public_url.strip().rstrip("/") if public_url else address
        print(f"PixArt Studio is at {shown}  (Ctrl+C ends it)")
        for line in serving.invitations(shown, tokens):
            print(line)
        sys.stdout.flush()
        if open_browser and serving.has_desktop():
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        # Waiting in slices: on Windows a wait without end cannot be interrupted.
        while not stopped.wait(0.5):
            pass
        demo.close(verbose=False)
    except KeyboardInterrupt:
        pass
    finally:
        if engine is not None:
            engine.cancel()
        studio.close()


def _empty(folder: Path) -> None:
    """Uploads of the last run; whatever was used is kept elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)
