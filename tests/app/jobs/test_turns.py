"""Who comes next: addresses take turns, and the owners at each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from app.jobs.job import Job, JobState
from app.jobs.queue import JobQueue
from app.jobs.turns import MAX_REMEMBERED, MAX_WAITING, MAX_WAITING_CLIENT, Claim, Turns, check_room
from pipelines.errors import BusyError
from tests.app.jobs.test_queue import Clock, StepRunner, ended, request


def order(turns: Turns, *claims: Claim) -> list[str]:
    return [f"{one.client}{one.owner}" for one in turns.order(claims, lambda one: one)]


def claims(client: str, owners: str) -> list[Claim]:
    return [Claim(owner=owner, client=client) for owner in owners]


def test_one_owner_waits_in_the_order_of_asking() -> None:
    jobs = [(number, Claim(owner="a")) for number in range(9)]
    assert [n for n, _ in Turns().order(jobs, lambda one: one[1])] == list(range(9))


def test_addresses_take_turns_whatever_names_are_given_there() -> None:
    many = claims("1", "abcdefgh")
    assert order(Turns(), *many, *claims("2", "x"), *claims("3", "yy"))[:4] == [
        "1a",
        "2x",
        "3y",
        "1b",
    ]


def test_owners_at_one_address_take_turns() -> None:
    assert order(Turns(), *claims("", "aaaab")) == ["a", "b", "a", "a", "a"]


def test_who_had_a_turn_comes_after_who_had_none() -> None:
    turns = Turns()
    turns.had(Claim(owner="a", client="1"))
    assert order(turns, *claims("1", "ab"), *claims("2", "c")) == ["2c", "1b", "1a"]
    turns.had(Claim(owner="c", client="2"))
    assert order(turns, *claims("1", "a"), *claims("2", "c")) == ["1a", "2c"]


def test_the_order_that_is_told_is_the_order_that_comes() -> None:
    turns, waiting = Turns(), [*claims("1", "aab"), *claims("2", "cdc"), *claims("3", "e")]
    told = turns.order(list(enumerate(waiting)), lambda one: one[1])
    come, left = [], list(enumerate(waiting))
    while left:
        first = turns.order(left, lambda one: one[1])[0]
        turns.had(first[1])
        come.append(first)
        left.remove(first)
    assert come == told


def test_what_is_remembered_has_an_end() -> None:
    turns = Turns()
    for number in range(2 * MAX_REMEMBERED):
        turns.had(Claim(owner=str(number), client=str(number)))
    assert len(turns._had) <= MAX_REMEMBERED


def test_one_address_cannot_fill_the_queue_under_any_names() -> None:
    mine = [Claim(owner=f"name {n}", client="1") for n in range(MAX_WAITING_CLIENT)]
    with pytest.raises(BusyError, match="of yours are waiting already"):
        check_room(mine, Claim(owner="another name", client="1"))
    check_room(mine, Claim(owner="somebody", client="2"))
    check_room(mine[1:], Claim(owner="another name", client="1"))
    full = [Claim(owner=str(n), client=str(n)) for n in range(MAX_WAITING)]
    with pytest.raises(BusyError, match=f"{MAX_WAITING} jobs are waiting already"):
        check_room(full, Claim(owner="somebody", client="x"))


@pytest.fixture
def runner() -> StepRunner:
    return StepRunner()


@pytest.fixture
def jobs(runner: StepRunner) -> Iterator[JobQueue]:
    queue = JobQueue(runner)
    yield queue
    queue.close()


def running(jobs: JobQueue, job: Job) -> None:
    while (now := jobs.get(job.id, job.owner)) is not None and now.state is JobState.WAITING:
        time.sleep(0.005)


def test_a_visitor_with_many_jobs_does_not_keep_others_waiting(
    jobs: JobQueue, runner: StepRunner
) -> None:
    first = jobs.submit(request("first"), "greedy 0", client="1")
    running(jobs, first)
    made = [first]
    with pytest.raises(BusyError):
        for number in range(1, 66):
            name = f"greedy {number}"
            made.append(jobs.submit(request(name), name, client="1"))
    assert len(made) == 1 + MAX_WAITING_CLIENT
    second = jobs.submit(request("second"), "somebody", client="2")
    snapshot = jobs.get(second.id, "somebody")
    assert snapshot is not None
    assert snapshot.ahead == 1
    last = jobs.get(made[-1].id, made[-1].owner)
    assert last is not None
    assert last.ahead == 1 + MAX_WAITING_CLIENT
    runner.go.release(2)
    ended(jobs, second)
    assert runner.order[:2] == ["first", "second"]


def test_stop_all_stops_all_of_mine_and_nothing_else(jobs: JobQueue, runner: StepRunner) -> None:
    mine = [jobs.submit(request("mine"), "me") for _ in range(4)]
    running(jobs, mine[0])
    other = jobs.submit(request("other"), "you")
    assert jobs.stop_all("me") == 4
    assert [ended(jobs, job).state for job in mine] == [JobState.STOPPED] * 4
    runner.go.release()
    assert ended(jobs, other).state is JobState.DONE
    assert runner.order == ["mine", "other"]
    assert jobs.stop_all("me") == 0
    assert jobs.stop_all("nobody") == 0


def test_a_job_that_nobody_asks_for_is_stopped(
    jobs: JobQueue, runner: StepRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    gone = jobs.submit(request("gone", count=30), "gone", client="1", grace=300)
    waits = jobs.submit(request("gone too"), "gone", client="1", grace=300)
    runner.go.release(3)
    while len((jobs.get(gone.id, "gone") or gone).pictures) < 3:
        time.sleep(0.005)
    next_one = jobs.submit(request("next"), "next", client="2", grace=300)
    clock.ahead = 299
    time.sleep(0.05)
    assert jobs._entries[gone.id].job.active
    jobs.get(next_one.id, "next")
    clock.ahead = 301
    while jobs._entries[gone.id].job.active:
        time.sleep(0.005)
    runner.go.release()
    assert ended(jobs, next_one).state is JobState.DONE
    assert runner.order == ["gone", "next"]
    assert len(jobs._entries[gone.id].job.pictures) == 3
    # Its owner comes back: what was painted is there.
    latest = jobs.latest("gone")
    assert latest is not None
    assert not latest.active
    assert jobs._entries[waits.id].job.state is JobState.STOPPED


@pytest.mark.parametrize("how", ["latest", "jobs"])
def test_whoever_asks_keeps_their_job(
    jobs: JobQueue, runner: StepRunner, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    clock = Clock(monkeypatch)
    job = jobs.submit(request("mine", count=3), "me", client="1", grace=300)
    for _ in range(5):
        clock.ahead += 250
        assert getattr(jobs, how)("me")
        time.sleep(0.02)
    runner.go.release(3)
    assert ended(jobs, job).state is JobState.DONE


def test_a_person_at_the_computer_may_be_away_for_ever(
    jobs: JobQueue, runner: StepRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    job = jobs.submit(request("mine", count=3), "me", client="127.0.0.1")
    clock.ahead = 10**6
    time.sleep(0.05)
    runner.go.release(3)
    assert ended(jobs, job).state is JobState.DONE


def test_jobs_that_nobody_wants_leave_room(jobs: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(BusyError):
        for number in range(99):
            jobs.submit(request(), f"gone {number}", client=str(number), grace=300)
    clock.ahead = 301
    jobs.submit(request(), "somebody", client="x", grace=300)
