"""What the Train tab answers to each event. Thin: the rules are in `app.training`.

Only people who may administer the studio train, and see what was trained.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from app import hosting
from app.jobs.job import Job
from app.markup import render
from app.training import orders, outlook, subject_words
from app.training.preparation import RECIPES, Kind
from app.training.training_jobs import TrainingRun
from app.ui.changes import Part, Sent, answer, ticking
from app.ui.create import fields
from app.ui.create.handlers import CreateHandlers, Session
from app.ui.create.watch import BrowserSession
from app.ui.guards import access
from app.ui.train import filling, new_view, run_view, trying
from pipelines.errors import RequestError, StudioError

if TYPE_CHECKING:
    from app.studio import Studio

BUSY_SECONDS = 1.0
IDLE_SECONDS = 3.0
_ADMINISTERED = "Models are trained"
_NO_DEVICE = (
    "This Space lends its GPU for single pictures only, so nothing can be trained here. Run the"
    " studio on a computer of your own, or on a Space with a GPU of its own."
)
_NEW, _RUN = "new:", "run:"


@dataclass(frozen=True, kw_only=True)
class TrainTab:
    """The components of the tab."""

    runs: gr.HTML
    view: gr.HTML
    timer: gr.Timer


@dataclass
class TrainVisit:
    """One browser tab at the trainings: what it looks at, what it is asked, what it was told."""

    looking: str = ""
    asking: str = ""
    notice: str = ""
    error: str = ""
    kind_job: str = ""
    comparing: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    sent: Sent = field(default_factory=Sent)

    def __post_init__(self) -> None:
        # Presses do not wait for each other. No field: gradio sends fields to the browser.
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> TrainVisit:
        # gradio copies the first value for each browser tab; a lock cannot be copied.
        return TrainVisit()

    def look(self, at: str) -> None:
        """Looks at something else: what was said of the last is over."""
        self.looking = at
        self.asking = self.notice = self.error = self.checkpoint_note = self.kind_job = ""


class TrainHandlers:
    """The handlers of the tab."""

    def __init__(
        self, studio: Studio, tab: TrainTab, session: Session, create: CreateHandlers
    ) -> None:
        self._studio = studio
        self._tab = tab
        self._session = session
        self._create = create

    def open_train(
        self, visit: TrainVisit, browser: BrowserSession, owner: Any, request: gr.Request
    ) -> Any:
        """The tab was opened: everything anew, and news from now on."""
        browser.identify(owner)
        with visit.lock:
            visit.sent.forget()
            visit.look(visit.looking)
            if browser.preparation:
                visit.look(_NEW + browser.preparation)
                browser.preparation = ""
            if not visit.looking and access.may_administer(request):
                visit.looking = self._first()
            return answer(self._news(visit, browser, request))

    def tick_train(
        self, visit: TrainVisit, browser: BrowserSession, owner: Any, request: gr.Request
    ) -> Any:
        """The timer asked what is new."""
        browser.identify(owner)
        with visit.lock:
            return answer(self._news(visit, browser, request))

    def leave_train(self) -> Any:
        """Another tab was opened."""
        return gr.Timer(active=False)

    def act_train(
        self,
        visit: TrainVisit,
        browser: BrowserSession,
        owner: Any,
        request: gr.Request,
        event: gr.EventData,
        *raw: Any,
    ) -> Any:
        """A button was pressed, or a field was filled in."""
        browser.identify(owner)
        data = event._data if isinstance(event._data, dict) else {}
        do, name = str(data.get("do")), str(data.get("name"))
        with visit.lock:
            updates: dict[Any, Any] = {}
            # What the studio has said stays until somebody presses something else.
            if do not in ("set", "brought"):
                visit.error = visit.notice = ""
            if not access.may_administer(request):
                visit.error = access.refusal(_ADMINISTERED, request)
            else:
                try:
                    filled = filling.filled(data.get("fields"))
                    updates = self._do(visit, browser, (do, name), data, (filled, fields.form(raw)))
                except StudioError as error:
                    visit.error = str(error)
            return answer(updates | self._news(visit, browser, request))

    # --- verbs ----------------------------------------------------------------------------------

    def _do(
        self,
        visit: TrainVisit,
        browser: BrowserSession,
        wanted: tuple[str, str],
        data: Mapping[str, Any],
        values: tuple[dict[str, str], fields.Form],
    ) -> dict[Any, Any]:
        do, name = wanted
        filled, form = values
        match do:
            case "new":
                visit.look("")
            case "show":
                visit.look(name)
            case "begin":
                self._begin(visit, name)
            case _ if data.get("preparation") or visit.looking.startswith(_NEW):
                self._prepare(visit, browser, (do, name), data, filled)
            case "try" | "compare" | "try-checkpoint":
                return self._try(visit, browser, do, name, form)
            case _:
                self._run(visit, do, name, filled)
        return {}

    def _begin(self, visit: TrainVisit, kind: str) -> None:
        if kind not in RECIPES:
            raise RequestError("kind", "This is no kind of training.")
        wanted: Kind = kind  # type: ignore[assignment]
        trainings = self._studio.trainings.preparations
        # One that nothing was done to yet serves as well.
        for one in trainings.all():
            untouched = not one.runs and not one.photos and not one.settings and not one.subject
            if one.kind == kind and untouched and not one.data and not one.name:
                visit.look(_NEW + one.id)
                return
        catalog = self._studio.catalog
        made = trainings.new(wanted, catalog.default.id)
        recipe = orders.recipe_for(wanted, made.base, catalog)
        trainings.change(made.id, recipe=recipe, word=subject_words.suggested(catalog.default))
        visit.look(_NEW + made.id)

    def _prepare(
        self,
        visit: TrainVisit,
        browser: BrowserSession,
        wanted: tuple[str, str],
        data: Mapping[str, Any],
        filled: dict[str, str],
    ) -> None:
        """What is done to a preparation. Every press brings what was typed."""
        do, name = wanted
        # What was typed belongs to the form that it was typed into: the press that left that form
        # may have been faster.
        shown = visit.looking.removeprefix(_NEW)
        prepared, key = self._studio.trainings.preparations, str(data.get("preparation") or shown)
        before = prepared.get(key)
        made = filling.fill(prepared, key, filled)
        if made.base != before.base and made.kind != "scratch":
            suited = orders.recipe_for(made.kind, made.base, self._studio.catalog)
            made = prepared.change(key, recipe=suited)
        match do:
            case "closer" | "wider" | "focus":
                filling.crop(prepared, key, name, do, data)
            case "drop-photo":
                prepared.drop(key, name)
            case "brought":
                visit.error = str(data.get("value") or "")[: filling.MOST_TEXT] or visit.error
            case "paint-kind":
                values = {"prompt": f"a photo of {made.subject}", "model": made.base, "count": 3}
                request = self._studio.request(values)
                visit.kind_job = self._studio.submit(request, browser.owner).id
            case "train":
                _check_device()
                visit.look(_RUN + self._studio.trainings.start(made))
            case "discard":
                prepared.remove(key)
                visit.look("")

    def _run(self, visit: TrainVisit, do: str, name: str, filled: dict[str, str]) -> None:
        """What is done to a run."""
        trainings = self._studio.trainings
        visit.asking = ""
        if do in ("resume", "keep", "longer"):
            _check_device()
        match do:
            case "ask-remove" | "ask-longer":
                visit.asking = do.removeprefix("ask-")
            case "remove":
                trainings.remove(name)
                visit.look(self._first())
            case "pause":
                trainings.pause(name)
            case "resume":
                trainings.resume(name)
            case "keep":
                trainings.keep(name)
                visit.notice = "The training ends here; what it has learned is being published."
            case "longer":
                steps = filled.get("longer", "").replace(",", "").strip()
                if not steps.isdecimal() or len(steps) > 9:
                    raise RequestError("steps", "Give the number of updates in all.")
                trainings.longer(name, int(steps))
            case "publish-checkpoint":
                step = filled.get("checkpoint", "")
                trainings.checkpoint(name, int(step) if step.isdecimal() else -1)
            case "duplicate":
                visit.look(_NEW + trainings.duplicate(name).id)

    def _try(
        self, visit: TrainVisit, browser: BrowserSession, do: str, name: str, form: fields.Form
    ) -> dict[Any, Any]:
        """Puts a LoRA into Create, or paints it at several weights."""
        trial = trying.find(self._studio, name, of_checkpoint=do == "try-checkpoint")
        if do != "compare":
            chosen = {"prompt": trial.prompt, "loras": f"{trial.lora}:1"}
            updates = self._create.choose(form, trial.base, **chosen)
            return {self._session.rail: gr.Tabs(selected="create"), **updates}
        visit.comparing[name] = trying.compare(self._studio, trial, browser.owner)
        return {}

    # --- what the page is told ------------------------------------------------------------------

    def _first(self) -> str:
        """What is looked at first: what runs, else what came last, else nothing."""
        runs = self._studio.trainings.all()
        busy = [run for run in runs if run.job is not None and run.job.active]
        found = [*busy, *runs]
        return _RUN + found[0].facts.name if found else ""

    def _news(
        self, visit: TrainVisit, browser: BrowserSession, request: gr.Request
    ) -> dict[Any, Any]:
        tab = self._tab
        if not access.may_administer(request):
            said = render(
                "ui/train/train.html", "refused", sentence=access.refusal(_ADMINISTERED, request)
            )
            parts = {
                "runs": Part(place=tab.runs, value=""),
                "view": Part(place=tab.view, value=said),
            }
            parts["timer"] = ticking(tab.timer, IDLE_SECONDS * 10)
            return visit.sent.news(parts)
        runs = self._studio.trainings.all()
        busy = any(run.job is not None and run.job.active for run in runs)
        name = visit.looking.removeprefix(_RUN)
        painting = [self._studio.trainings.made_of(name), *self._painting(visit, browser)]
        busy = busy or any(job is not None and job.active for job in painting)
        return visit.sent.news(
            {
                "runs": Part(place=tab.runs, value=self._list(visit, runs)),
                "view": Part(place=tab.view, value=self._view(visit, browser, runs)),
                "timer": ticking(tab.timer, BUSY_SECONDS if busy else IDLE_SECONDS),
            }
        )

    def _list(self, visit: TrainVisit, runs: list[TrainingRun]) -> str:
        rows = [
            {
                "key": _NEW + one.id,
                "title": one.title,
                "told": f"Being prepared, {_photos(len(one.photos))}",
                "state": "new",
                "percent": None,
            }
            for one in self._studio.trainings.preparations.all()
            if not one.runs and (one.photos or one.subject or _NEW + one.id == visit.looking)
        ]
        rows += [run_view.row(run) for run in runs]
        return render("ui/train/train.html", "runs", rows=rows, chosen=visit.looking, admin=True)

    def _view(self, visit: TrainVisit, browser: BrowserSession, runs: list[TrainingRun]) -> str:
        kind, _, name = visit.looking.partition(":")
        if kind == "new":
            try:
                made = self._studio.trainings.preparations.get(name)
                shown = new_view.FormNotes(
                    error=visit.error,
                    notice=visit.notice,
                    forecast=outlook.sentence(
                        made, self._studio.catalog, self._studio.hardware(), runs
                    ),
                    kind_job=self._job(browser, visit.kind_job),
                )
                return new_view.page(made, self._studio.catalog, shown)
            except RequestError as error:
                visit.look("")
                visit.error = str(error)
        found = [run for run in runs if run.facts.name == name] if kind == "run" else []
        if found:
            comparing = [
                (weight, job)
                for weight, key in visit.comparing.get(name, [])
                if (job := self._job(browser, key)) is not None
            ]
            return run_view.page(
                found[0],
                run_view.RunNotes(
                    asking=visit.asking,
                    notice=visit.notice,
                    error=visit.error,
                    made=self._studio.trainings.made_of(name),
                    comparing=comparing,
                ),
            )
        return render("ui/train/train.html", "kinds", error=visit.error)

    def _painting(self, visit: TrainVisit, browser: BrowserSession) -> list[Job | None]:
        """The paintings that the tab waits for."""
        asked = visit.comparing.get(visit.looking.removeprefix(_RUN), [])
        return [self._job(browser, key) for key in (*(key for _, key in asked), visit.kind_job)]

    def _job(self, browser: BrowserSession, key: str) -> Job | None:
        return self._studio.job(key, browser.owner) if key else None


def _check_device() -> None:
    """Raises RequestError where nothing can be trained."""
    if hosting.zero_gpu() is not None:
        raise RequestError("training", _NO_DEVICE)


def _photos(count: int) -> str:
    return "1 photo" if count == 1 else f"{count} photos"


def places(tab: TrainTab) -> list[Any]:
    """What the news of the tab may change."""
    return [tab.runs, tab.view, tab.timer]
