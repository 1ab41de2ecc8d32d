"""What the Jobs panel answers to each event. Thin: the queue has the rules.

Who may administer the studio sees the jobs of everybody, a visitor their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.jobs.job import JobState
from app.ui.changes import Part, Sent, answer, ticking
from app.ui.create.watch import BrowserSession
from app.ui.guards import access
from app.ui.jobs import view
from pipelines.errors import StudioError

if TYPE_CHECKING:
    from app.studio import Studio

BUSY_SECONDS = 0.5
IDLE_SECONDS = 2.0
_FOR_ALL = "The queue is paused and given priorities"
_ADMINISTERED = ("pause", "resume", "priority", "move")
_FOR_A_JOB = ("stop", "retry", "duplicate", "move", "priority")
_MAX_WORD = 64


@dataclass(frozen=True, kw_only=True)
class JobsPanel:
    """The components of the panel."""

    chip: gr.HTML
    panel: gr.HTML
    timer: gr.Timer


@dataclass
class PanelState:
    """The panel of one browser tab: whether it is open, and what it was told."""

    is_open: bool = False
    notice: str = ""
    sent: Sent = field(default_factory=Sent)


class JobsHandlers:
    """The handlers of the panel."""

    def __init__(self, studio: Studio, parts: JobsPanel) -> None:
        self._studio = studio
        self._parts = parts

    def begin_jobs(
        self, state: PanelState, browser: BrowserSession, owner: Any, request: gr.Request
    ) -> Any:
        """The page was loaded, with the panel closed."""
        browser.identify(owner)
        state.is_open = False
        state.sent.forget()
        return answer(self._news(state, browser, request))

    def tick_jobs(
        self, state: PanelState, browser: BrowserSession, owner: Any, request: gr.Request
    ) -> Any:
        """The timer asked what is new."""
        browser.identify(owner)
        return answer(self._news(state, browser, request))

    def act_jobs(
        self,
        state: PanelState,
        browser: BrowserSession,
        owner: Any,
        request: gr.Request,
        event: gr.EventData,
    ) -> Any:
        """The panel was opened or closed, or a button in it was pressed."""
        browser.identify(owner)
        data = event._data if isinstance(event._data, dict) else {}
        do, name, value = (str(data.get(key) or "")[:_MAX_WORD] for key in ("do", "name", "value"))
        state.notice = ""
        if do in ("open", "close"):
            state.is_open = do == "open"
        else:
            try:
                state.notice = self._do(browser, request, do, name, value)
            except StudioError as error:
                state.notice = str(error)
        return answer(self._news(state, browser, request))

    def _do(
        self, browser: BrowserSession, request: gr.Request, do: str, name: str, value: str
    ) -> str:
        """Does what was pressed; what there is to say of it. Raises StudioError."""
        only = self._only(browser, request)
        if do in _ADMINISTERED and only is not None:
            return access.refusal(_FOR_ALL, request)
        match do:
            case "pause":
                self._studio.pause_jobs()
                return "The queue is paused: what runs goes on, nothing else begins."
            case "resume":
                self._studio.resume_jobs()
                return "The queue goes on."
            case _ if do in _FOR_A_JOB:
                return self._studio.obey(do, name, only, value)
        return ""

    def _only(self, browser: BrowserSession, request: gr.Request) -> str | None:
        return None if access.may_administer(request) else browser.owner

    def _news(
        self, state: PanelState, browser: BrowserSession, request: gr.Request
    ) -> dict[Any, Any]:
        only = self._only(browser, request)
        jobs, paused = self._studio.jobs(only), self._studio.paused
        shown = view.Panel(jobs=jobs, paused=paused, all_jobs=only is None, notice=state.notice)
        moves = state.is_open and any(job.state is JobState.RUNNING for job in jobs)
        return state.sent.news(
            {
                "chip": Part(place=self._parts.chip, value=view.chip(jobs, paused=paused)),
                "panel": Part(
                    place=self._parts.panel, value=view.panel(shown) if state.is_open else ""
                ),
                "timer": ticking(self._parts.timer, BUSY_SECONDS if moves else IDLE_SECONDS),
            }
        )
