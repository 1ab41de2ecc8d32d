"""The options that many verbs of the command line have."""

from __future__ import annotations

from typing import Annotated

import typer

from app import tokens

UNLISTED = 2
"""Exit code of a list that shows what can be read, and has said on stderr what cannot."""
WorkspaceOption = Annotated[
    str | None, typer.Option(help="Folder for everything that the studio writes.", metavar="DIR")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One object per line on stdout.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
ShareTokenOption = Annotated[
    str | None,
    typer.Option(
        envvar=tokens.SHARE_VARIABLE,
        help="Secret that visitors must give; needed for other hosts; “auto” makes one.",
    ),
]
AdminTokenOption = Annotated[
    str | None,
    typer.Option(
        envvar=tokens.ADMIN_VARIABLE,
        help="Second secret, for models, deletion and imports; default: made and said.",
    ),
]
PublicUrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="PIXART_STUDIO_PUBLIC_URL",
        help="Address that a proxy or tunnel gives the page, as https://studio.example.org.",
    ),
]
