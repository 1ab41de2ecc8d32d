"""The options that many verbs of the command line have."""

from __future__ import annotations

from typing import Annotated

import typer

WorkspaceOption = Annotated[
    str | None, typer.Option(help="Folder for everything that the studio writes.", metavar="DIR")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One object per line on stdout.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
