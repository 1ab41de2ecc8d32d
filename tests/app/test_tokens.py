"""The two secrets of a studio that others reach."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app import tokens
from app.setup.installer import _settings
from app.tokens import AccessTokens
from app.ui import serving
from pipelines.errors import RequestError

LONG = "0123456789abcdef"
OTHER = "fedcba9876543210"


@pytest.fixture(autouse=True)
def _no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)


def test_without_a_share_token_there_are_none() -> None:
    assert tokens.choose(None, None) == AccessTokens()
    assert serving.invitations("http://127.0.0.1:7860", AccessTokens()) == []


def test_a_shared_studio_gets_an_admin_token() -> None:
    one, other = (tokens.choose(LONG, None) for _ in range(2))
    assert one.share == LONG
    assert one.admin is not None
    assert len(one.admin) >= tokens.LEAST
    assert one.admin != other.admin
    (visitors, admin) = serving.invitations("https://studio.example", one)
    assert LONG not in visitors
    assert admin.endswith(f"https://studio.example/?token={one.admin}")


def test_auto_makes_one_and_says_it() -> None:
    made = tokens.choose("auto", "auto")
    assert made.share != made.admin
    said = serving.invitations("http://127.0.0.1:7860", made)
    for token in (made.share, made.admin):
        assert token is not None
        assert any(f"/?token={token}" in line for line in said)


def test_what_the_owner_chose_is_not_said() -> None:
    said = "".join(serving.invitations("http://a", tokens.choose(LONG, OTHER)))
    assert LONG not in said
    assert OTHER not in said
    assert "/studio/enter" in said


def test_nobody_administers_a_space_by_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert tokens.choose(LONG, None).admin is None


@pytest.mark.parametrize(
    "token", ["", "a", "x" * 15, " " * 20, f" {LONG}", f"{LONG}\n", f"\x1b{LONG}"]
)
def test_a_bad_token_is_refused(token: str) -> None:
    for share, admin in ((token, None), (LONG, token)):
        with pytest.raises(RequestError, match="token") as refused:
            tokens.choose(share, admin)
        assert token == "" or len(token) < 3 or token not in str(refused.value)
        assert str(refused.value).isprintable()


def test_both_must_differ() -> None:
    with pytest.raises(RequestError, match="the same"):
        tokens.choose(LONG, LONG)


def test_children_inherit_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tokens.SHARE_VARIABLE, LONG)
    monkeypatch.setenv(tokens.ADMIN_VARIABLE, OTHER)
    argv = ["launch.py", "--share-token", LONG, f"--admin-token={OTHER}", "--port", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    assert not {LONG, OTHER} & set(_settings().values()), "pip, before the command line is read"
    tokens.forget()
    assert argv[-2:] == ["--port", "1"]
    told = subprocess.run(
        [sys.executable, "-c", "import os; print(dict(os.environ))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for secret in (LONG, OTHER):
        assert secret not in told
        assert secret not in "".join(argv)
        assert secret not in os.environ.values()
