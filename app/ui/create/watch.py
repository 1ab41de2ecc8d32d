"""What one browser tab shows, rendered from snapshots of the studio.

The page asks again and again and is told only what changed, so a reload, a second tab or a lost
connection needs nothing special: the next answer is complete in itself.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.gallery.pictures import PictureFile
from app.jobs.job import Job
from app.ui.changes import Sent
from app.ui.create import canvas
from app.ui.create.canvas import Notice
from app.ui.guards.clients import Sender
from lora_manager import card
from pipelines.errors import RequestError, StudioError

if TYPE_CHECKING:
    from app.studio import Studio
    from pipelines.request import GenerationRequest

BUSY_SECONDS = 0.25
IDLE_SECONDS = 1.5
MAX_OWNER = 64


def _is_plain(name: str) -> bool:
    return name.isascii() and name.isprintable()


@dataclass
class BrowserSession:
    """One browser tab. `sent` remembers what it was told, to tell it only what is new.

    `deleting` is the picture that the person was asked about, `unusual` what they were told of the
    weights of their LoRAs, `preparation` the training that another tab has begun to prepare.
    """

    owner: str = ""
    job: str = ""
    picked: str = ""
    deleting: str = ""
    unusual: str = ""
    preparation: str = ""
    notice: Notice | None = None
    sent: Sent = field(default_factory=Sent)

    def identify(self, owner: Any) -> str:
        """The owner's id: the browser's own, else a new one. Ours are hexadecimal; what no file
        and no database could hold is none."""
        if isinstance(owner, str) and 16 <= len(owner) <= MAX_OWNER and _is_plain(owner):
            self.owner = owner
        self.owner = self.owner or secrets.token_hex(16)
        return self.owner

    def is_sure(self, request: GenerationRequest) -> bool:
        """False where the LoRAs have weights that are asked about, for the first time; the notice
        says how to go on."""
        unusual, told = card.unusual(request.loras), self.unusual
        self.unusual = unusual
        if unusual and unusual != told:
            said = f"{unusual} Press Generate again to paint with them all the same."
            self.notice = Notice(text=said, field="loras")
            return False
        return True

    def complain(self, error: StudioError) -> None:
        """Shows the error until the next try."""
        where = error.field if isinstance(error, RequestError) else ""
        if where in ("width", "height"):
            where = "size"
        self.notice = Notice(text=str(error), field=where)


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything on the page that the studio decides."""

    canvas: str
    status: str
    result: str
    engine: str
    busy: bool


def look(studio: Studio, browser: BrowserSession) -> View:
    """What the browser should show now."""
    job = studio.latest(browser.owner)
    engine = studio.engine()
    if job is not None and job.id != browser.job:
        browser.job, browser.picked = job.id, ""
    picked = picked_file(job, browser.picked)
    busy = job is not None and job.active
    return View(
        canvas=canvas.canvas(job, picked.name if picked else ""),
        status=canvas.status(job, engine, browser.notice, studio.trainings.running),
        result=canvas.result(
            picked, busy=busy, asks=bool(picked and picked.name == browser.deleting)
        ),
        engine=canvas.engine_chip(engine),
        busy=busy,
    )


def picked_file(job: Job | None, name: str) -> PictureFile | None:
    """The picture of the job called `name`, else its first one."""
    if job is None or not job.pictures:
        return None
    return next((file for file in job.pictures if file.name == name), job.pictures[0])


def submit(
    studio: Studio, browser: BrowserSession, request: GenerationRequest, sender: Sender
) -> bool:
    """Queues the request for the browser; False, with a notice, where that is not possible."""
    last = studio.latest(browser.owner)
    if last is not None and last.active:
        browser.notice = Notice(text="A picture is being painted already. Stop it, or wait for it.")
        return False
    try:
        studio.submit(request, browser.owner, client=sender.client, grace=sender.grace)
    except StudioError as error:
        browser.complain(error)
        return False
    browser.notice = None
    return True


def stop(studio: Studio, browser: BrowserSession) -> None:
    """Asks every job of the browser's owner to stop, those of other tabs and programs too."""
    studio.stop_all(browser.owner)
    browser.notice = None
