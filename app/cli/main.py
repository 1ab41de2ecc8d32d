"""The command line: its verbs, what is said of a failure, and the exit code.

Exit codes: 0 all is well; 2 with one sentence on stderr for what the user can repair; 130 after
Ctrl+C; 1 for a fault of ours.
"""

from __future__ import annotations

import errno
import os
import traceback
from typing import Annotated

import typer
from typer.exceptions import TyperException

from app import hosting, tokens
from app.cli import convert
from app.cli.bench import bench
from app.cli.doctor import doctor
from app.cli.gallery import app as gallery_app
from app.cli.generate import PaintingStopped, generate
from app.cli.jobs import app as jobs
from app.cli.loras import app as loras
from app.cli.models import app as models
from app.cli.options import AdminTokenOption, PublicUrlOption, ShareTokenOption, WorkspaceOption
from app.cli.train import app as train
from app.settings import DEBUG_VARIABLE, VERSION, Settings, make_folder, workspace_path
from pipelines import streams
from pipelines.errors import RequestError, StudioError, printable
from pipelines.memory import address_space
from pipelines.streams import say

_INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="PixArt Studio: paint pictures from text. Without a verb it opens in the browser.",
    epilog="The launcher itself adds: “launch.py test” runs the test suite; "
    "--torch auto|cpu|cuda|rocm chooses the build of torch that it installs.",
)

app.add_typer(train, name="train")
app.add_typer(models, name="models")
app.add_typer(gallery_app, name="gallery")
app.add_typer(loras, name="loras")
app.add_typer(jobs, name="jobs")
app.command()(bench)
app.command()(doctor)
app.command()(convert.convert)
app.command()(generate)


def main(argv: list[str]) -> int:
    """Runs one command. Returns the exit code; never raises."""
    streams.prepare()
    with streams.escaped_output():
        code = _run(argv)
    return streams.settled(code)


def _run(argv: list[str]) -> int:
    try:
        code = app(args=argv, prog_name="launch.py", standalone_mode=False)
        if code == _INTERRUPTED:
            return say("Stopped.", _INTERRUPTED)
        return code if isinstance(code, int) else 0
    except StudioError as error:
        return say(str(error), 2)
    except TyperException as error:
        return say(_usage(error, argv), 2)
    except PaintingStopped:
        return say("Stopped; the finished pictures are kept.", _INTERRUPTED)
    except KeyboardInterrupt:
        return say("Stopped.", _INTERRUPTED)
    except SystemExit as end:
        # So the library of the command line ends where a pipe has no reader.
        return streams.UNPRINTED if streams.unprinted() else int(end.code or 0)
    # The outermost seam of the command line.
    except Exception as error:
        if isinstance(error, OSError) and streams.unprinted() is not None:
            return streams.UNPRINTED
        if lost := _lost_in_links(error):
            return say(lost, 2)
        if shortage := address_space.out_of_memory(error):
            return say(str(shortage), 2)
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        return say(
            f"This is a fault of the studio: {printable(repr(error), 300)}. "
            f"Set {DEBUG_VARIABLE}=1 to see where.",
            1,
        )


def _lost_in_links(error: Exception) -> str:
    """What to say where links lead in circles; "" where that is not what happened."""
    looped = isinstance(error, OSError) and error.errno == errno.ELOOP
    if looped or (isinstance(error, RuntimeError) and str(error).startswith("Symlink loop")):
        return f"A link leads in circles ({printable(error, 200)}). Repair or remove it."
    return ""


def _usage(error: TyperException, argv: list[str]) -> str:
    sentence = " ".join(error.format_message().split()).rstrip(".")
    verb = next((f"{a} " for a in argv if a in _verbs()), "")
    dash = " Put -- before a text that begins with a dash." if "No such option" in sentence else ""
    return f"{sentence}. See “launch.py {verb}--help”.{dash}"


def _verbs() -> list[str]:
    groups = {
        "train": train,
        "models": models,
        "gallery": gallery_app,
        "loras": loras,
        "jobs": jobs,
    }
    commands = [c for group in (app, *groups.values()) for c in group.registered_commands]
    own = [command.callback.__name__ for command in commands if command.callback]
    return [*own, *groups]


@app.callback(invoke_without_command=True)
def studio(
    context: typer.Context,
    workspace: WorkspaceOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: 127.0.0.1, on a Space all.")
    ] = None,
    port: Annotated[
        str | None, typer.Option(help="Port; default: the first free one from 7860.")
    ] = None,
    share_token: ShareTokenOption = None,
    admin_token: AdminTokenOption = None,
    public_url: PublicUrlOption = None,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
    version: Annotated[bool, typer.Option("--version", help="Say the version.")] = False,
) -> None:
    """Opens the studio in the browser."""
    # Whatever is started from here on has no need of the secrets.
    tokens.forget()
    if version:
        print(f"PixArt Studio {VERSION}")
        return
    if context.invoked_subcommand is not None:
        context.obj = workspace
        return
    chosen = tokens.choose(share_token, admin_token)
    settings = Settings(workspace=workspace_path(workspace))
    make_folder(settings.outputs)
    number = _port(port)
    address_space.check(address_space.PAGE)
    # Here and not above: the other verbs must not wait for the page's libraries.
    from app.studio import Studio
    from app.ui.build import asking_nobody_else, prepare, serve

    # The package of ZeroGPU imports gradio, which reads these settings once.
    prepare(settings)
    with asking_nobody_else():
        made = Studio.of(settings)
    serve(
        made,
        host=host or hosting.default_host(),
        port=number,
        tokens=chosen,
        public_url=public_url,
        open_browser=browser,
    )


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:
        raise RequestError("port", f"“{printable(text)}” is not a port; give 1 to 65535.")
    return int(text)
