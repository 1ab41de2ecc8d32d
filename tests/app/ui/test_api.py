"""Programs that call the API: what becomes of their jobs, and whose jobs are whose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from app.jobs.job import Job, JobState
from app.ui import listener
from app.ui.guards import clients
from app.ui.guards.clients import GRACE_SECONDS, Sender
from tests.app.ui.fake_studio import ELSEWHERE, HERE, FakeStudio, served

WAIT = 60


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> FakeStudio:
    return FakeStudio(tmp_path_factory.mktemp("api"), steps=2, pace=0.01)


@pytest.fixture(scope="module")
def http(studio: FakeStudio) -> Iterator[httpx.Client]:
    with served(studio) as address, httpx.Client(base_url=address, timeout=WAIT) as client:
        yield client


def arguments(count: int, prompt: str = "a cat") -> list[Any]:
    return [prompt, "", "", "", None, None, "96x160", "", count, "None"]


def post(http: httpx.Client, name: str, data: list[Any], session: str) -> str:
    body = {"data": data, "session_hash": session}
    answer = http.post(f"/gradio_api/call/{name}", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["event_id"])


def fetch(http: httpx.Client, name: str, event: str) -> str:
    return http.get(f"/gradio_api/call/{name}/{event}").text


def jobs(studio: FakeStudio, prompt: str) -> list[Job]:
    entries = list(studio._jobs._entries.values())
    return [entry.job for entry in entries if entry.job.request.prompt == prompt]


def until(holds: Any) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("way", ["call", "queue"])
def test_the_job_of_a_client_that_has_gone_is_not_painted_to_its_end(
    http: httpx.Client, studio: FakeStudio, way: str
) -> None:
    prompt, session = f"gone by {way}", f"session-{way}"
    # It waits in its fourth picture for ever, unless it is stopped.
    with studio.runner.held(picture=4):
        event = post(http, "generate", arguments(30, prompt), session)
        path = {
            "call": f"/gradio_api/call/generate/{event}",
            "queue": f"/gradio_api/queue/data?session_hash={session}",
        }[way]
        with httpx.Client(base_url=http.base_url, timeout=WAIT) as killed:
            with killed.stream("GET", path) as answer:
                assert answer.status_code == 200
                until(lambda: len(jobs(studio, prompt)[0].pictures) >= 3)
                waits = post(http, "generate", arguments(1, f"next to {way}"), f"next-{way}")
                assert jobs(studio, prompt)[0].state is JobState.RUNNING
        assert "event: complete" in fetch(http, "generate", waits)
    (job,) = jobs(studio, prompt)
    assert (job.state, len(job.pictures)) == (JobState.STOPPED, 3)


def test_a_client_that_never_listens_is_not_painted_for(
    http: httpx.Client, studio: FakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "DEAF_SECONDS", 0.5)
    with studio.runner.held():
        post(http, "generate", arguments(64, "for nobody"), "deaf")
        until(lambda: jobs(studio, "for nobody") and not jobs(studio, "for nobody")[0].active)
    (job,) = jobs(studio, "for nobody")
    assert job.state is JobState.STOPPED
    assert len(job.pictures) < 64


def test_a_client_that_listens_late_gets_its_pictures(
    http: httpx.Client, studio: FakeStudio
) -> None:
    event = post(http, "generate", arguments(2, "late"), "late")
    until(lambda: jobs(studio, "late") and not jobs(studio, "late")[0].active)
    assert "event: complete" in fetch(http, "generate", event)
    assert jobs(studio, "late")[0].state is JobState.DONE


def test_a_program_stops_all_of_its_own(http: httpx.Client, studio: FakeStudio) -> None:
    with studio.runner.held():
        for number in range(4):
            post(http, "generate", arguments(30, "mine"), f"mine {number % 2}")
        until(lambda: len(jobs(studio, "mine")) == 4)
        assert "data: [0]" in fetch(http, "stop_all", post(http, "stop_all", [], "a stranger"))
        assert sum(job.active for job in jobs(studio, "mine")) == 4
        post(http, "stop_all", [], "mine 0")
        until(lambda: sum(job.active for job in jobs(studio, "mine")) == 2)
        assert len({job.owner for job in jobs(studio, "mine") if job.active}) == 1
        post(http, "stop_all", [], "mine 1")
        until(lambda: not any(job.active for job in jobs(studio, "mine")))


def test_gradios_own_client_stops_all_of_its_own(http: httpx.Client, studio: FakeStudio) -> None:
    client = Client(str(http.base_url), verbose=False)
    with studio.runner.held():
        painting = client.submit(*arguments(30, "of a client"), api_name="/generate")
        until(lambda: jobs(studio, "of a client"))
        assert client.predict(api_name="/stop_all") == 1
        with pytest.raises(AppError, match="The job was stopped"):
            painting.result(timeout=WAIT)
    assert jobs(studio, "of a client")[0].state is JobState.STOPPED


def request(client: str | None, space: bool = False, **headers: str) -> Any:
    raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return {"client": (client, 1234) if client else None, "headers": raw}


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        (None, "unknown"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_the_networks_word(client: str | None, network: str) -> None:
    assert clients.of_scope(request(client, x_forwarded_for="8.8.8.8")) == network


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("8.8.8.8", "8.8.8.8"),
        ("1.1.1.1, 8.8.8.8", "8.8.8.8"),
        ("1.1.1.1, 8.8.8.8, 10.0.0.9", "8.8.8.8"),
        ("nonsense, 8.8.8.8 ,10.1.1.1,", "8.8.8.8"),
        ("nonsense", "10.2.3.4"),
        ("", "10.2.3.4"),
        ("2600:1f18::1", "2600:1f18::/64"),
    ],
)
def test_on_a_space_the_platform_says_who_it_is(
    forwarded: str, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPACE_ID", "me/studio")
    assert clients.of_scope(request("10.2.3.4", x_forwarded_for=forwarded)) == client
    # Whoever comes without the platform says nothing about addresses.
    assert clients.of_scope(request("9.9.9.9", x_forwarded_for=forwarded)) == "9.9.9.9"


def test_visitors_have_a_grace_and_the_person_at_the_computer_needs_none() -> None:
    assert clients.sender(HERE).grace is None
    assert clients.sender(ELSEWHERE).grace == GRACE_SECONDS
    assert clients.sender(None) == Sender(client="unknown", grace=GRACE_SECONDS)
