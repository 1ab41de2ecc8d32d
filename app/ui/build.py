"""The page from the outside: build it, or serve it until somebody ends it.

gradio is imported only inside functions, after the environment that it reads is set.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
import webbrowser
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from app import hosting, scratch
from app.janitor import Janitor
from app.jobs.turns import MAX_WAITING
from app.settings import DEFAULT_PORT, Settings
from app.tokens import AccessTokens
from app.ui import serving
from app.ui.guards import access
from app.ui.serving import asking_nobody_else as asking_nobody_else
from pipelines.errors import SaveError
from pipelines.heavy_imports import uncollected

if TYPE_CHECKING:
    import gradio as gr

    from app.studio import Studio
    from app.ui.guards.uploads import Uploads

MAX_UPLOAD = "32mb"
SESSIONS = 50
"""Whose state gradio keeps, 0.2 MB each; of a tab that was forgotten the next question makes a new
one, and a tab asks every 1.5 s."""
AT_ONCE = MAX_WAITING + 32
"""Events that go on at once: as many calls of the API as jobs can wait, and what is answered
meanwhile. A thread is only made for what needs one."""
ENGINE_DELAY = 1.5
"""Seconds between the page and the start of the painting process."""


def prepare(settings: Settings) -> None:
    """Sets what gradio reads from the environment. Raises SaveError where uploads have no place.

    It reads some fifty variables, and some change what the page is: GRADIO_DEBUG never comes back
    from starting it, GRADIO_ROOT_PATH moves it, GRADIO_VIBE_MODE lets visitors edit its code. What
    a Space needs of them (an address, a port) the studio knows by itself.
    """
    for name in [name for name in os.environ if name.upper().startswith("GRADIO_")]:
        del os.environ[name]
    # Uploads, whatever was used is kept elsewhere. A studio beside this one has its own.
    os.environ["GRADIO_TEMP_DIR"] = str(scratch.folder(settings.uploads))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Analytics of the queue build a table per event, and keep them; nobody reads them here.
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"
    serving.without_stub_files()


def build(studio: Studio) -> gr.Blocks:
    """The page of `studio`, not served yet."""
    prepare(studio.settings)
    with warnings.catch_warnings(), asking_nobody_else():
        warnings.simplefilter("ignore", DeprecationWarning)
        from app.ui import page

        with serving.without_servers():
            return page.assemble(studio)


def launch_arguments(
    studio: Studio,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    tokens: AccessTokens | None = None,
    public_url: str | None = None,
    uploads: Uploads | None = None,
) -> dict[str, Any]:
    """Every argument of `Blocks.launch`, but for what only a test or `serve` needs."""
    prepare(studio.settings)
    from starlette.middleware import Middleware

    from app.ui import routes, shell, theme
    from app.ui.guards import chain, origins
    from app.ui.guards.origins import Names

    names = Names.of(host, origins.public_url(public_url) if public_url else None)
    around = chain.guards(names=names, tokens=tokens or AccessTokens(), uploads=uploads)
    return {
        "theme": theme.theme(),
        "server_name": serving.bracketed(host),
        "server_port": port,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": MAX_UPLOAD,
        "max_threads": AT_ONCE,
        "state_session_capacity": SESSIONS,
        # What goes wrong in a Space is told to its owner, in the log.
        "show_error": not hosting.on_space(),
        "ssr_mode": False,
        "share": False,
        "pwa": False,
        "quiet": True,
        "allowed_paths": [],
        # Not `app_kwargs`: what gradio makes of them lies inside of its own middleware.
        "_app": chain.GuardedApp(
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
    tokens: AccessTokens,
    public_url: str | None = None,
    open_browser: bool,
) -> None:
    """Serves the page until Ctrl+C or SIGTERM. Raises StudioError where it cannot be served."""
    host = serving.canonical(host)
    access.check(host, tokens.share)
    stopped = threading.Event()
    engine: threading.Timer | None = None
    janitor: Janitor | None = None
    # Until the page is up, SIGTERM ends the start as Ctrl+C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        chosen = serving.free_port(host, port, DEFAULT_PORT)
        demo, uploads = _launch(studio, host, chosen, tokens, public_url)
        # Before the address is said: who reads it may already end us.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        # The browser that now loads the page needs the processor more than the engine does.
        engine = threading.Timer(ENGINE_DELAY, studio.start)
        engine.daemon = True
        engine.start()
        janitor = Janitor(
            studio.settings,
            studio.index,
            uploads=scratch.folder(studio.settings.uploads),
            starts=studio.starts,
            then=partial(_forget_uploads, demo, uploads),
        )
        janitor.start()
        address = serving.address(host, chosen)
        shown = public_url.strip().rstrip("/") if public_url else address
        _say_where(shown, serving.invitations(shown, tokens))
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
        if janitor is not None:
            janitor.close()
        studio.close()


def _launch(
    studio: Studio, host: str, port: int, tokens: AccessTokens, public_url: str | None
) -> tuple[gr.Blocks, Uploads]:
    """The page, built and served behind every guard."""
    prepare(studio.settings)
    # Whatever imports gradio first lies within.
    with asking_nobody_else(), uncollected(), serving.one_loop():
        from app.ui.guards import connections
        from app.ui.guards.uploads import Uploads

        demo, uploads = build(studio), Uploads()
        serving.plain_log()
        logging.getLogger("httpx").setLevel(logging.WARNING)
        arguments = launch_arguments(
            studio, host=host, port=port, tokens=tokens, public_url=public_url, uploads=uploads
        )
        with serving.without_code_server(), connections.watched():
            demo.launch(prevent_thread_lock=True, **arguments)
    return demo, uploads


def _say_where(address: str, invitations: Sequence[str]) -> None:
    """The address, and who needs which secret. Raises SaveError where nobody would ever hear it."""
    try:
        print(
            f"PixArt Studio is at {address}  (Ctrl+C ends it)", *invitations, sep="\n", flush=True
        )
    except BrokenPipeError:
        raise SaveError(
            "The studio cannot say its address: nobody reads its standard output.",
            "Start it without a pipe, or with > /dev/null and a --port that you know.",
        ) from None


def _forget_uploads(demo: gr.Blocks, uploads: Uploads) -> None:
    """What gradio and we remember of files that the janitor has deleted."""
    uploads.forget_missing()
    for name in [name for name in set(demo.upload_file_set) if not os.path.exists(name)]:
        demo.upload_file_set.discard(name)
