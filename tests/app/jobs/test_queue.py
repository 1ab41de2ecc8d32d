"""The queue: order, stopping, owners, faults."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.gallery.pictures import Gallery, PictureFile
from app.jobs import entry
from app.jobs.entry import Entry
from app.jobs.job import Job, JobState
from app.jobs.joblist import MAX_KEPT
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.jobs.turns import MAX_WAITING, MAX_WAITING_EACH
from app.painting.runner import Keep
from pipelines.catalog import Catalog
from pipelines.errors import BusyError, RequestError, SaveError
from pipelines.progress import Progress, Report, ShouldStop, Stage
from pipelines.request import GenerationRequest, complete

CATALOG = Catalog()


def request(prompt: str = "x", count: int = 1) -> GenerationRequest:
    return complete({"prompt": prompt, "seed": 1, "count": count}, CATALOG)


class StepRunner:
    """Finishes one picture each time the test lets it; fails where the prompt says so."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.order: list[str] = []

    def paint(
        self,
        request: GenerationRequest,
        *,
        report: Report,
        keep: Keep,
        should_stop: ShouldStop,
        upcoming: Sequence[GenerationRequest] = (),
    ) -> None:
        self.order.append(request.prompt)
        for index in range(request.count):
            report(Progress(stage=Stage.DENOISING, done=index, total=request.count))
            while not self.go.acquire(timeout=0.01):
                if should_stop():
                    return
            if request.prompt == "fail":
                raise SaveError("No space left.")
            if request.prompt == "bug":
                raise ZeroDivisionError("ours")
            single = request.single(index)
            keep(PictureFile(path=Path("d") / f"{index}.png", request=single, seconds=0.1))


@pytest.fixture
def runner() -> StepRunner:
    return StepRunner()


@pytest.fixture
def jobs(runner: StepRunner) -> Iterator[JobQueue]:
    queue = JobQueue(runner)
    yield queue
    queue.close()


class Clock:
    """A clock that stands still until the test moves it, for the queue alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        began = time.monotonic()
        told = {"monotonic": lambda: began + self.ahead, "time": time.time}
        monkeypatch.setattr(entry, "time", type("time", (), told))


def ended(jobs: JobQueue, job: Job) -> Job:
    done = jobs.wait(job.id, job.owner, 60)
    assert done is not None
    assert not done.active
    return done


def test_jobs_run_in_order_one_at_a_time(jobs: JobQueue, runner: StepRunner) -> None:
    made = [jobs.submit(request(name), "me") for name in ("a", "b", "c")]
    snapshot = jobs.get(made[2].id, "me")
    assert snapshot is not None
    assert (snapshot.state, snapshot.ahead) == (JobState.WAITING, 2)
    for _ in made:
        runner.go.release()
    assert [ended(jobs, job).state for job in made] == [JobState.DONE] * 3
    assert runner.order == ["a", "b", "c"]
    assert [len(ended(jobs, job).pictures) for job in made] == [1, 1, 1]


def test_stop_keeps_finished_pictures(jobs: JobQueue, runner: StepRunner) -> None:
    job = jobs.submit(request(count=4), "me")
    runner.go.release()
    while len((jobs.get(job.id, "me") or job).pictures) < 1:
        threading.Event().wait(0.01)
    jobs.stop(job.id, "me")
    done = ended(jobs, job)
    assert (done.state, len(done.pictures)) == (JobState.STOPPED, 1)


def test_a_waiting_job_stops_at_once_and_never_runs(jobs: JobQueue, runner: StepRunner) -> None:
    first, second = jobs.submit(request("a"), "me"), jobs.submit(request("b"), "me")
    jobs.stop(second.id, "me")
    assert ended(jobs, second).state is JobState.STOPPED
    runner.go.release()
    ended(jobs, first)
    assert runner.order == ["a"]


def test_failures_are_sentences_and_the_queue_goes_on(jobs: JobQueue, runner: StepRunner) -> None:
    made = [jobs.submit(request(name), "me") for name in ("fail", "bug", "good")]
    for _ in made:
        runner.go.release()
    done = [ended(jobs, job) for job in made]
    assert [job.state for job in done] == [JobState.FAILED, JobState.FAILED, JobState.DONE]
    assert str(done[0].error) == "No space left."
    assert isinstance(done[0].error, SaveError)
    assert done[1].error is not None
    assert "fault of the studio" in str(done[1].error)


def test_another_owner_sees_and_stops_nothing(jobs: JobQueue, runner: StepRunner) -> None:
    job = jobs.submit(request(), "me")
    assert jobs.get(job.id, "you") is None
    assert jobs.latest("you") is None
    assert jobs.wait(job.id, "you", 0.01) is None
    jobs.stop(job.id, "you")
    runner.go.release()
    assert ended(jobs, job).state is JobState.DONE
    jobs.stop(job.id, "me")
    jobs.stop("no such job", "me")


def test_latest_prefers_what_runs(jobs: JobQueue, runner: StepRunner) -> None:
    first = jobs.submit(request("a"), "me")
    runner.go.release()
    ended(jobs, first)
    second = jobs.submit(request("b"), "me")
    latest = jobs.latest("me")
    assert latest is not None
    assert latest.id == second.id
    runner.go.release()
    ended(jobs, second)
    latest = jobs.latest("me")
    assert latest is not None
    assert (latest.id, latest.state) == (second.id, JobState.DONE)


def test_too_many_jobs_are_refused(jobs: JobQueue) -> None:
    first = jobs.submit(request(), "me")
    with pytest.raises(BusyError, match="waiting already"):
        for number in range(MAX_WAITING + 2):
            jobs.submit(request(), f"person {number}")
    assert jobs.get(first.id, "me")


def test_one_person_cannot_fill_the_queue(jobs: JobQueue) -> None:
    jobs.submit(request(), "me")
    made = 0
    with pytest.raises(BusyError, match="waiting already"):
        for _ in range(MAX_WAITING_EACH + 3):
            jobs.submit(request(), "me")
            made += 1
    assert made >= MAX_WAITING_EACH - 1
    assert jobs.submit(request(), "you")


def test_old_jobs_are_forgotten(jobs: JobQueue, runner: StepRunner) -> None:
    first = jobs.submit(request(), "me")
    runner.go.release()
    ended(jobs, first)
    for _ in range(MAX_KEPT + 5):
        job = jobs.submit(request(), "me")
        runner.go.release()
        ended(jobs, job)
    assert jobs.get(first.id, "me") is None


def test_the_preview_stays_until_the_next_picture() -> None:
    """Decoding and saving have no preview of their own; the page must not go blank."""
    seen: list[bytes | None] = []

    class Painter:
        def paint(
            self,
            request: GenerationRequest,
            *,
            report: Report,
            keep: Keep,
            should_stop: ShouldStop,
            upcoming: Sequence[GenerationRequest] = (),
        ) -> None:
            for progress in (
                Progress(stage=Stage.DENOISING, done=1, total=1, picture=1, preview=b"one"),
                Progress(stage=Stage.DECODING, picture=1),
                Progress(stage=Stage.SAVING, picture=1),
                Progress(stage=Stage.DENOISING, done=0, total=1, picture=2),
            ):
                report(progress)
                latest = queue.latest("me")
                assert latest is not None
                assert latest.progress is not None
                seen.append(latest.progress.preview)

    queue = JobQueue(Painter())
    ended(queue, queue.submit(request(), "me"))
    queue.close()
    assert seen == [b"one", b"one", b"one", None]


def test_a_deleted_picture_leaves_its_job(runner: StepRunner, tmp_path: Path) -> None:
    """As if it had never been asked for; the last one takes the job with it."""
    store = JobStore(tmp_path / "jobs.db")
    jobs = JobQueue(runner, store, Gallery(tmp_path))
    for _ in range(3):
        runner.go.release()
    job = ended(jobs, jobs.submit(request("cats", count=3), "me"))
    jobs.drop("2026-01-01/101530-1-a1b2c3.png")
    assert len(ended(jobs, job).pictures) == 3
    jobs.drop(job.pictures[1].name)
    left = ended(jobs, job)
    assert left.pictures == (job.pictures[0], job.pictures[2])
    assert left.request.count == 2
    for picture in left.pictures:
        jobs.drop(picture.name)
    assert jobs.get(job.id, "me") is None
    assert jobs.latest("me") is None
    assert store.load() == [], "what was seen last is forgotten too"
    jobs.close()


def test_a_job_that_runs_is_not_lost_with_its_pictures(jobs: JobQueue, runner: StepRunner) -> None:
    job = jobs.submit(request("cats", count=3), "me")
    runner.go.release()
    while not (now := jobs.get(job.id, "me")) or not now.pictures:
        time.sleep(0.01)
    jobs.drop(now.pictures[0].name)
    left = jobs.get(job.id, "me")
    assert left is not None
    assert (left.state, left.pictures) == (JobState.RUNNING, ())
    runner.go.release(2)
    done = ended(jobs, job)
    assert (done.state, len(done.pictures)) == (JobState.DONE, 2)


def test_a_picture_that_was_deleted_before_it_was_told_does_not_come_back(
    jobs: JobQueue, runner: StepRunner
) -> None:
    job = jobs.submit(request("cats", count=2), "me")
    jobs.drop("d/0.png")
    runner.go.release(2)
    done = ended(jobs, job)
    assert done.state is JobState.DONE
    assert [picture.name for picture in done.pictures] == ["d/1.png"]
    assert jobs.pictures("me") == {"d/1.png"}


def test_pictures_are_remembered_longer_than_their_jobs(jobs: JobQueue, runner: StepRunner) -> None:
    runner.go.release(MAX_KEPT + 10)
    ended(jobs, jobs.submit(request("mine"), "me"))
    for i in range(MAX_KEPT + 2):
        ended(jobs, jobs.submit(request("x"), f"other {i}"))
    assert jobs.latest("me") is None, "its job is forgotten"
    assert jobs.pictures("me") == {"d/0.png"}
    assert jobs.pictures("nobody") == set()
    assert jobs.paints(["d/0.png"]) is False


def test_a_snapshot_tells_what_a_list_of_jobs_shows(jobs: JobQueue, runner: StepRunner) -> None:
    made = [jobs.submit(request(f"a {name}\ncat"), "me") for name in ("red", "blue", "green")]
    while not (now := jobs.get(made[0].id, "me")) or now.progress is None:
        time.sleep(0.01)
    running, second, third = jobs.jobs("me")
    assert (running.title, running.kind, running.state) == ("a red cat", "paint", "running")
    assert (running.place, second.place, third.place) == (None, 1, 2)
    assert (running.ahead, second.ahead, third.ahead) == (0, 1, 2)
    assert running.started is not None
    assert running.fraction == 0.0
    assert [job.fraction for job in (second, third)] == [None, None]
    flags = [(job.may_stop, job.may_retry, job.may_move) for job in (running, second)]
    assert flags == [(True, False, False), (True, False, True)]
    jobs.stop(third.id, "me")
    stopped = jobs.jobs("me")[-1]
    assert (stopped.may_stop, stopped.may_retry, stopped.may_move) == (False, True, False)
    runner.go.release(2)
    assert not ended(jobs, second).may_retry, "it is done"


def test_what_one_visitor_asks_changes_nothing_for_others(jobs: JobQueue) -> None:
    mine = [jobs.submit(request(), "me") for _ in range(3)]
    theirs = jobs.submit(request(), "you")
    assert {job.owner for job in jobs.jobs("me")} == {"me"}
    assert {job.owner for job in jobs.jobs(None)} == {"me", "you"}
    for verb in ("stop", "move", "retry", "duplicate"):
        with pytest.raises(RequestError, match="There is no job"):
            jobs.obey(verb, theirs.id, "first", owner="me")
    for verb in ("pause", "resume", "priority"):
        with pytest.raises(RequestError, match="whole queue"):
            jobs.obey(verb, mine[-1].id, "high", owner="me")
    assert not jobs.paused


def test_what_was_retried_meanwhile_is_not_forgotten(jobs: JobQueue, runner: StepRunner) -> None:
    jobs.pause(True)
    job = jobs.submit(request(), "me")
    jobs.stop(job.id, "me")
    forget = jobs._list.forget

    def late(entry: Entry) -> None:
        jobs.obey("retry", job.id, owner="me")
        forget(entry)

    jobs._list.forget = late  # type: ignore[method-assign]
    jobs.forget(job.id, "me")
    jobs.pause(False)
    runner.go.release()
    assert ended(jobs, job).state is JobState.DONE


def test_what_is_asked_anew_runs_for_whoever_asks(jobs: JobQueue, runner: StepRunner) -> None:
    visitor = contextvars.ContextVar("visitor", default="nobody")
    seen: list[str] = []
    paint = runner.paint

    def painting(*arguments: Any, **how: Any) -> None:
        seen.append(visitor.get())
        paint(*arguments, **how)

    runner.paint = painting  # type: ignore[method-assign]

    def ask(name: str, what: Callable[[], Any]) -> Any:
        def do() -> Any:
            visitor.set(name)
            return what()

        return contextvars.copy_context().run(do)

    job = ask("first", lambda: jobs.submit(request("fail"), "me"))
    for name, verb in (("second", "retry"), ("third", "duplicate")):
        runner.go.release()
        ended(jobs, job)
        ask(name, partial(jobs.obey, verb, job.id, owner="me"))
    runner.go.release()
    while len(seen) < 3:
        time.sleep(0.01)
    assert seen == ["first", "second", "third"]


@pytest.mark.parametrize("verb", ["retry", "duplicate"])
def test_what_the_computer_asks_anew_waits_for_nobody_to_look(
    jobs: JobQueue, runner: StepRunner, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    runs = jobs.submit(request("a"), "me")
    left = jobs.submit(request("b"), "visitor", grace=300, passing=True)
    jobs.stop(left.id, "visitor")
    jobs.obey(verb, left.id)
    clock.ahead = 301
    runner.go.release(2)
    ended(jobs, runs)
    end = time.monotonic() + 60
    while runner.order != ["a", "b"]:
        assert time.monotonic() < end, jobs.jobs()
        time.sleep(0.01)
    assert {e.passing for e in jobs._entries.values() if e.job.owner == "visitor"} == {True}


@pytest.mark.parametrize("verb", ["retry", "duplicate"])
def test_what_a_visitor_asks_anew_is_stopped_when_they_leave(
    jobs: JobQueue, runner: StepRunner, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    jobs.submit(request("a"), "me")
    while not runner.order:
        time.sleep(0.01)
    left = jobs.submit(request("b"), "visitor", grace=300)
    jobs.stop(left.id, "visitor")
    jobs.obey(verb, left.id, owner="visitor")
    clock.ahead = 299
    assert [job.state for job in jobs.jobs()].count(JobState.WAITING) == 1
    clock.ahead = 301
    assert JobState.WAITING not in [job.state for job in jobs.jobs()]


def test_what_has_ended_or_runs_has_no_priority(jobs: JobQueue, runner: StepRunner) -> None:
    job = jobs.submit(request(), "me")
    while not runner.order:
        time.sleep(0.01)
    with pytest.raises(RequestError, match="runs: “priority” is not for it"):
        jobs.obey("priority", job.id, "high")
    runner.go.release()
    ended(jobs, job)
    with pytest.raises(RequestError, match="has ended"):
        jobs.obey("priority", job.id, "high")
    assert ended(jobs, job).priority == 0


def test_copies_of_a_visitor_count_as_their_jobs(jobs: JobQueue) -> None:
    first = jobs.submit(request(), "me")
    with pytest.raises(BusyError, match="waiting already"):
        for _ in range(MAX_WAITING_EACH + 3):
            jobs.obey("duplicate", first.id, owner="me")
    # Whoever sits at the computer may fill the queue for a night.
    assert "is queued once more" in jobs.obey("duplicate", first.id)
