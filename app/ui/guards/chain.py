"""Every guard between the network and gradio, in order. The only place where they are mounted.

They lie around gradio's whole application: what is given to it as middleware lies inside of its
own, which answers preflight requests itself and adds headers to whatever leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gradio.routes import App, ORJSONResponse
from starlette.types import ASGIApp

from app.tokens import AccessTokens
from app.ui.guards import uploads as uploading
from app.ui.guards.bodies import Bodies
from app.ui.guards.gate import TokenGate
from app.ui.guards.headers import SafeHeaders
from app.ui.guards.origins import Names, Origins
from app.ui.guards.refusals import Refusals
from app.ui.guards.uploads import Uploads

Guard = Callable[[ASGIApp], ASGIApp]


def guards(*, names: Names, tokens: AccessTokens, uploads: Uploads | None = None) -> list[Guard]:
    """From the network inwards."""
    refusals = Refusals()
    return [
        partial(SafeHeaders, refusals=refusals),
        partial(Origins, names=names, refusals=refusals),
        partial(TokenGate, tokens=tokens, refusals=refusals),
        partial(Bodies, uploads=uploads or Uploads(), refusals=refusals),
    ]


class GuardedApp(App):
    """gradio's application inside the guards; there is no way in that does not pass them."""

    def __init__(self, around: list[Guard], **arguments: Any) -> None:
        self._around = around
        super().__init__(default_response_class=ORJSONResponse, **arguments)

    @property
    def uploaded_file_dir(self) -> str:
        """Where gradio keeps files: those of an upload in a folder of its own."""
        return uploading.folder(self._uploaded)

    @uploaded_file_dir.setter
    def uploaded_file_dir(self, folder: str) -> None:
        self._uploaded = folder

    def build_middleware_stack(self) -> ASGIApp:
        """The stack of gradio and starlette, with every guard around it."""
        stack = super().build_middleware_stack()
        for guard in reversed(self._around):
            stack = guard(stack)
        return stack
