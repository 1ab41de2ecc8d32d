"""The two secrets of a studio that others reach: one opens the page, one administers the studio."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass

from app import hosting
from pipelines.errors import RequestError

SHARE_VARIABLE = "PIXART_STUDIO_SHARE_TOKEN"
ADMIN_VARIABLE = "PIXART_STUDIO_ADMIN_TOKEN"
AUTO = "auto"
LEAST = 16
_OPTIONS = ("--share-token", "--admin-token")
_HIDDEN = "(hidden)"


@dataclass(frozen=True, kw_only=True)
class AccessTokens:
    """What a visitor shows, and what an administrator shows; None where it is not asked for."""

    share: str | None = None
    admin: str | None = None
    made: frozenset[str] = frozenset()
    """Which of them the studio made, and therefore has to say."""


def choose(share: str | None, admin: str | None) -> AccessTokens:
    """Checks what was given, makes what is wanted. Raises RequestError.

    Whoever shares the studio gets an admin token even without asking: behind a proxy or a tunnel
    a visitor's address looks like this machine's own. A Space has none; nobody administers it so.
    """
    made = {name for name, given in (("share", share), ("admin", admin)) if given == AUTO}
    if share is not None and admin is None and not hosting.on_space():
        made.add("admin")
    tokens = AccessTokens(
        share=_made() if "share" in made else share,
        admin=_made() if "admin" in made else admin,
        made=frozenset(made),
    )
    _check("share", SHARE_VARIABLE, tokens.share)
    _check("admin", ADMIN_VARIABLE, tokens.admin)
    if tokens.share is not None and tokens.share == tokens.admin:
        raise RequestError(
            "admin_token",
            "The share token and the admin token are the same.",
            "Visitors know the first one: choose another second one, or none.",
        )
    return tokens


def forget() -> None:
    """Takes the secrets out of what child processes inherit: environment and command line."""
    for variable in (SHARE_VARIABLE, ADMIN_VARIABLE):
        os.environ.pop(variable, None)
    hide = False
    for index, word in enumerate(sys.argv):
        option, equals, _ = word.partition("=")
        if hide:
            sys.argv[index] = _HIDDEN
        elif option in _OPTIONS and equals:
            sys.argv[index] = f"{option}={_HIDDEN}"
        hide = not hide and word in _OPTIONS


def _made() -> str:
    return secrets.token_urlsafe(24)


def _check(name: str, variable: str, token: str | None) -> None:
    if token is None:
        return
    way_out = f"Choose a longer one, or give “{AUTO}” and the studio makes one."
    if len(token) < LEAST:
        raise RequestError(
            f"{name}_token",
            f"The {name} token has {len(token)} characters; it needs {LEAST} (--{name}-token,"
            f" {variable}).",
            way_out,
        )
    if not token.isprintable() or token != token.strip():
        raise RequestError(
            f"{name}_token",
            f"The {name} token begins or ends with a space, or holds a control character.",
            way_out,
        )
