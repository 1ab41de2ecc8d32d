"""What the Models tab answers to each event. Thin: the rules are in `model_jobs`, `model_cards`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.ui import access, fields, model_cards
from app.ui.answers import Create, Session, told
from app.ui.choices import MAX_PROBLEMS
from pipelines.errors import StudioError
from pipelines.memory import Wish
from pipelines.progress import plain_size

if TYPE_CHECKING:
    from app.studio import Studio

BUSY_SECONDS = 0.5
IDLE_SECONDS = 3.0
_REFUSED = "Models are downloaded and removed on the computer that the studio runs on."


@dataclass(frozen=True, kw_only=True)
class ModelsTab:
    """The components of the tab."""

    hardware: gr.HTML
    shelf: gr.HTML
    timer: gr.Timer


@dataclass
class Visit:
    """One browser tab at the shelf: what it is asked, and what it was told."""

    removing: str = ""
    notice: str = ""
    sent: dict[str, Any] = field(default_factory=dict)


class Models:
    """The handlers of the tab. Only people at this machine change anything: `access`."""

    def __init__(self, studio: Studio, tab: ModelsTab, session: Session, create: Create) -> None:
        self._studio = studio
        self._tab = tab
        self._session = session
        self._create = create

    def open_models(self, visit: Visit, model: Any, request: gr.Request) -> Any:
        """The tab was opened: everything anew, and news from now on."""
        visit.sent.clear()
        visit.notice = visit.removing = ""
        self._studio.catalog.reload()
        self._studio.models.rows(fresh=True)
        return told(self._news(visit, model, request))

    def tick_models(self, visit: Visit, model: Any, request: gr.Request) -> Any:
        """The timer asked what is new."""
        return told(self._news(visit, model, request))

    def leave_models(self) -> Any:
        """Another tab was opened."""
        return gr.Timer(active=False)

    def act_models(
        self, visit: Visit, request: gr.Request, event: gr.EventData, *raw: Any
    ) -> dict[Any, Any]:
        """A button of a card was pressed."""
        data = event._data if isinstance(event._data, dict) else {}
        name = str(data.get("name"))
        values = fields.form(raw)
        if data.get("do") == "use":
            chosen = self._create.choose(values, name)
            return told({self._session.rail: gr.Tabs(selected="create"), **chosen})
        visit.notice = visit.removing = ""
        if not _may(request):
            visit.notice = _REFUSED
        else:
            try:
                self._do(visit, str(data.get("do")), name)
            except StudioError as error:
                visit.notice = str(error)
        return told(self._news(visit, values["model"], request))

    def _do(self, visit: Visit, wanted: str, name: str) -> None:
        jobs = self._studio.models
        match wanted:
            case "ask":
                jobs.ask(name)
            case "mend":
                jobs.ask(name, check=True)
            case "download":
                jobs.download(name)
            case "stop":
                jobs.stop()
            case "dismiss":
                jobs.dismiss()
            case "ask-remove":
                jobs.store.removable(name)
                visit.removing = name
            case "remove":
                freed = jobs.remove(name)
                visit.notice = f"“{name}” is removed; {plain_size(freed)} are free again."

    def _news(self, visit: Visit, model: Any, request: gr.Request) -> dict[Any, Any]:
        job = self._studio.models.job
        wait = BUSY_SECONDS if job is not None and job.active else IDLE_SECONDS
        parts = {
            "shelf": (self._tab.shelf, self._shelf(visit, str(model), admin=_may(request))),
            "hardware": (self._tab.hardware, self._hardware(str(model))),
            "wait": (self._tab.timer, wait),
        }
        fresh: dict[Any, Any] = {}
        for name, (place, value) in parts.items():
            if visit.sent.get(name) != hash(value):
                visit.sent[name] = hash(value)
                fresh[place] = gr.Timer(wait, active=True) if name == "wait" else value
        return fresh

    def _shelf(self, visit: Visit, model: str, *, admin: bool) -> str:
        jobs, catalog = self._studio.models, self._studio.catalog
        usable = frozenset(spec.id for spec in catalog)
        goes = ""
        if visit.removing:
            try:
                parts = jobs.store.removable(visit.removing)
            except StudioError:
                visit.removing = ""
            else:
                names = [f"{p.label} ({plain_size(p.size, exact=p.exact)})" for p in parts]
                goes = "its " + ", ".join(names) if names else "only its entry in the list"
        return model_cards.shelf(
            model_cards.Shelf(
                rows=jobs.rows(),
                job=jobs.job,
                usable=usable,
                chosen=model if model in usable else "",
                admin=admin,
                folder=str(jobs.store.root),
                free=jobs.free(),
                removing=visit.removing,
                goes=goes,
                notice=visit.notice,
                problems=catalog.problems[:MAX_PROBLEMS],
            )
        )

    def _hardware(self, model_id: str) -> str:
        try:
            model = self._studio.model(model_id)
        except StudioError:
            model = self._studio.catalog.default
        size = model.default_size
        plan = self._studio.forecast(model.id, Wish(width=size.width, height=size.height))
        return model_cards.hardware(self._studio.hardware(), model.title, str(size), plan)


def _may(request: gr.Request | None) -> bool:
    client = getattr(request, "client", None)
    if request is None or client is None:
        return False
    return access.may_administer(client.host, request.headers)


def places(tab: ModelsTab) -> list[Any]:
    """What the news of the tab may change."""
    return [tab.shelf, tab.hardware, tab.timer]
