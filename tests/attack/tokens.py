"""Somebody who has no token, or only that of visitors."""

from __future__ import annotations

import time

import httpx

from tests.attack.attack import Attack, NotTried, Target, must


def _shared(target: Target) -> str:
    if not target.share_token:
        raise NotTried("it has no share token")
    return target.share_token


def _nothing_without(target: Target) -> str:
    _shared(target)
    paths = ("/", "/config", "/gradio_api/info", "/studio/alive", "/studio/static/js/-/studio.js")
    with target.client() as http:
        for path in paths:
            must(http.get(path).status_code == 401, f"{path} answers")
        for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/generate"):
            must(http.post(path, json={}).status_code == 401, f"{path} answers")
    return f"{len(paths) + 3} routes"


def _visitors_administer_nothing(target: Target) -> str:
    with target.client(Authorization=f"Bearer {_shared(target)}") as http:
        told = _examine(http)
        must("Check this computer" not in told, "a visitor is shown what administers")
        must("whoever has the admin token" in told, "a visitor is not told why")
    if not target.admin_token:
        return "1 call"
    with target.client(Authorization=f"Bearer {target.admin_token}") as http:
        must("Check this computer" in _examine(http), "the admin token does not administer")
    return "1 call refused, the same with the admin token allowed"


def _examine(http: httpx.Client) -> str:
    """What the Models tab answers to the button that examines the computer."""
    config = http.get("/config").json()
    found = next(one for one in config["dependencies"] if one["api_name"] == "act_models")
    body = {
        "data": [None] * len(found["inputs"]),
        "event_data": {"do": "examine", "name": ""},
        "fn_index": found["id"],
        "session_hash": "attack",
    }
    return http.post("/gradio_api/run/predict", json=body).text


def _guesses_wait(target: Target) -> str:
    _shared(target)
    tries, began = 200, time.monotonic()
    with target.client() as http:
        # An address of its own, so that the other rows need not wait.
        sent = {"X-Forwarded-For": "198.51.100.99"}
        statuses = [
            http.get("/", params={"token": f"guess {n}"}, headers=sent).status_code
            for n in range(tries)
        ]
        must(set(statuses) <= {401, 429}, f"answers {set(statuses)}")
        compared = statuses.count(401)
        must(compared <= 9, f"{compared} guesses were compared")
        other = http.get(
            "/", params={"token": "another"}, headers={"X-Forwarded-For": "203.0.113.9"}
        )
        must(other.status_code == 401, "another address waits as well")
    return f"{compared} of {tries} compared in {time.monotonic() - began:.1f} s"


ATTACKS = [
    Attack(topic="tokens", promise="without a token nothing answers", run=_nothing_without),
    Attack(
        topic="tokens",
        promise="whoever has the share token administers nothing, from this machine either",
        run=_visitors_administer_nothing,
    ),
    Attack(
        topic="tokens",
        promise="whoever guesses tokens waits, and nobody else does",
        run=_guesses_wait,
    ),
]
