"""What the Models tab answers to each event. Thin: the rules are in `model_jobs`, `model_cards`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.models import own_models, samples
from app.models.import_jobs import ImportJob
from app.ui.changes import Part, Sent, answer, ticking
from app.ui.choices import MAX_PROBLEMS
from app.ui.create import fields
from app.ui.create.handlers import CreateHandlers, Session
from app.ui.guards import access
from app.ui.models import cards, import_form, lora_bench, lora_cards
from app.ui.models import maintenance as care
from app.ui.models.lora_bench import BENCH, PICK, LoraBench
from app.ui.models.lora_cards import ASKED, EXPORT
from pipelines.errors import StudioError
from pipelines.memory.planning import MemoryRequest
from pipelines.progress import plain_size

if TYPE_CHECKING:
    from app.doctor import Finding
    from app.studio import Studio

BUSY_SECONDS = 0.5
IDLE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class ModelsTab:
    """The components of the tab."""

    hardware: gr.HTML
    care: gr.HTML
    import_box: gr.Column
    form: dict[str, Any]
    start: gr.Button
    imported: gr.HTML
    shelf: gr.HTML
    loras: gr.HTML
    bench: gr.HTML
    timer: gr.Timer


@dataclass
class Visit:
    """One browser tab at the shelf: what it is asked, and what it was told."""

    removing: str = ""
    exporting: str = ""
    notice: str = ""
    care_notice: str = ""
    report: tuple[Finding, ...] = ()
    import_error: StudioError | None = None
    emptied: str = ""
    bench: LoraBench = field(default_factory=LoraBench)
    sent: Sent = field(default_factory=Sent)


class ModelsHandlers:
    """The handlers of the tab. Only people at this machine change anything: `access`."""

    def __init__(
        self, studio: Studio, tab: ModelsTab, session: Session, create: CreateHandlers
    ) -> None:
        self._studio = studio
        self._tab = tab
        self._session = session
        self._create = create

    def open_models(self, visit: Visit, model: Any, request: gr.Request) -> Any:
        """The tab was opened: everything anew, and news from now on."""
        visit.sent.forget()
        visit.notice = visit.removing = visit.exporting = visit.care_notice = ""
        visit.report, visit.import_error, visit.bench = (), None, LoraBench()
        self._studio.catalog.reload()
        self._studio.models.rows(fresh=True)
        return answer(self._news(visit, model, request))

    def tick_models(self, visit: Visit, model: Any, request: gr.Request) -> Any:
        """The timer asked what is new."""
        return answer(self._news(visit, model, request))

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
            return answer({self._session.rail: gr.Tabs(selected="create"), **chosen})
        visit.notice = visit.removing = visit.exporting = visit.care_notice = ""
        if not access.may_administer(request):
            visit.notice = access.refusal(cards.ADMINISTERED, request)
        else:
            try:
                wanted = str(data.get("do"))
                if wanted == PICK or wanted.startswith(BENCH):
                    self._work(visit.bench, wanted, name, data.get("typed"))
                else:
                    self._do(visit, wanted, name)
            except StudioError as error:
                visit.notice = str(error)
        return answer(self._news(visit, values["model"], request))

    def _work(self, bench: LoraBench, wanted: str, name: str, typed: Any) -> None:
        """Something was pressed about the selected LoRAs: what is wrong with it is said there."""
        try:
            bench.press(wanted, name, typed, self._studio.lora_work)
        except StudioError as error:
            bench.said = import_form.sentence(error)

    def start_import(
        self, visit: Visit, model: Any, request: gr.Request, *raw: Any
    ) -> dict[Any, Any]:
        """Import was pressed."""
        visit.notice = visit.removing = visit.care_notice = ""
        visit.import_error = None
        if not access.may_administer(request):
            visit.notice = access.refusal(cards.ADMINISTERED, request)
        else:
            try:
                values = dict(zip(self._tab.form, raw, strict=True))
                self._studio.imports.start(*import_form.wanted(values))
            except StudioError as error:
                visit.import_error = error
        return answer(self._news(visit, model, request))

    def _do(self, visit: Visit, wanted: str, name: str) -> None:
        jobs = self._studio.models
        match wanted:
            case "ask":
                jobs.ask(name)
            case "repair":
                jobs.ask(name, check=True)
            case "download":
                jobs.download(name)
            case "stop":
                jobs.stop()
            case "dismiss":
                jobs.dismiss()
            case "ask-remove":
                if not name.startswith(ASKED):
                    self._question(name)
                visit.removing = name
            case "remove":
                lora = name.removeprefix(ASKED)
                remove = self._studio.remove_model if lora == name else self._studio.remove_lora
                freed = remove(lora)
                visit.notice = f"“{lora}” is removed; {plain_size(freed)} are free again."
            case "ask-export":
                visit.exporting = name
            case "close-export":
                self._studio.lora_exports.dismiss()
            case _ if wanted.startswith(EXPORT):
                lora = name.removeprefix(ASKED)
                self._studio.lora_exports.start(lora, wanted.removeprefix(EXPORT))
            case "stop-import":
                self._studio.imports.stop()
            case "dismiss-import":
                visit.import_error = None
                self._studio.imports.dismiss()
            case "examine":
                visit.report = self._studio.examine()
            case "close-report":
                visit.report = ()
            case "clear-prompts":
                freed = self._studio.clear_prompts()
                visit.care_notice = f"Encoded prompts are deleted; {plain_size(freed)} are free."

    def _news(self, visit: Visit, model: Any, request: gr.Request) -> dict[Any, Any]:
        job, importing = self._studio.models.job, self._studio.imports.job
        running = (job, importing, self._studio.lora_exports.job, self._studio.lora_work.job)
        busy = any(work is not None and work.active for work in running)
        admin, tab = access.may_administer(request), self._tab
        visit.bench.keep(self._studio.catalog.loras)
        fresh = visit.sent.news(
            {
                "shelf": Part(place=tab.shelf, value=self._shelf(visit, str(model), request)),
                "loras": Part(place=tab.loras, value=self._loras(visit, admin=admin)),
                "bench": Part(place=tab.bench, value=self._bench(visit) if admin else ""),
                "hardware": Part(place=tab.hardware, value=self._hardware(str(model))),
                "care": Part(place=tab.care, value=self._care(visit) if admin else ""),
                "imported": Part(place=tab.imported, value=self._imported(visit) if admin else ""),
                "parts": Part(
                    place=tab.form["parts"],
                    value=import_form.parts_select(self._studio.catalog),
                    update=lambda markup: gr.update(markup=markup),
                ),
                "import": Part(
                    place=tab.import_box,
                    value=admin,
                    update=lambda shown: gr.update(visible=shown or "hidden"),
                ),
                "timer": ticking(tab.timer, BUSY_SECONDS if busy else IDLE_SECONDS),
            }
        )
        return fresh | self._emptied(visit)

    def _emptied(self, visit: Visit) -> dict[Any, Any]:
        """The form for the next model, once this one is here."""
        job = self._studio.imports.job
        ended = job.model if job is not None else ""
        if visit.emptied == ended:
            return {}
        visit.emptied = ended
        return {self._tab.form[name]: "" for name in ("path", "title", "id") if ended}

    def _care(self, visit: Visit) -> str:
        return care.care(self._studio.prompt_bytes(), visit.report, visit.care_notice)

    def _imported(self, visit: Visit) -> str:
        job = self._studio.imports.job
        if visit.import_error is not None:
            # Nothing was begun: the sentence is for whoever pressed.
            job = ImportJob(source="The model", phase="failed", error=visit.import_error)
        found = [spec for spec in self._studio.catalog if job is not None and spec.id == job.model]
        title = found[0].title if found else job.model if job is not None else ""
        return import_form.job(job, title, usable=bool(found))

    def _question(self, model_id: str) -> str:
        """The question before a model is removed. Raises StudioError."""
        models = self._studio.settings.models
        if own_models.is_own(models, model_id):
            own = own_models.find(models, model_id)
            if own.is_link:
                return f"Delete the link {own.folder}? What it leads to stays."
            inside = f"all that is in it ({plain_size(own.size)})"
            return f"Delete the folder {own.folder} with {inside}? There is no way back."
        parts = self._studio.models.store.removable(model_id)
        names = [f"{part.label} ({plain_size(part.size, exact=part.exact)})" for part in parts]
        what = "its " + ", ".join(names) if names else "only its entry in the list"
        return f"Delete {what}? What other models read, your own too, stays."

    def _shelf(self, visit: Visit, model: str, request: gr.Request) -> str:
        admin = access.may_administer(request)
        jobs, catalog = self._studio.models, self._studio.catalog
        usable = frozenset(spec.id for spec in catalog)
        question = ""
        if visit.removing and not visit.removing.startswith(ASKED):
            try:
                question = self._question(visit.removing)
            except StudioError:
                visit.removing = ""
        shown = cards.shelf(
            cards.Shelf(
                rows=jobs.rows(),
                job=jobs.job,
                usable=usable,
                chosen=model if model in usable else "",
                admin=admin,
                read_only=access.refusal(cards.ADMINISTERED, request),
                entrance=access.ENTER if access.has_entrance(request) else "",
                folder=str(jobs.store.root),
                free=jobs.free(),
                removing=visit.removing,
                question=question,
                needs=self._studio.needs(),
                notice=visit.notice,
                samples={spec.id: found for spec in catalog if (found := samples.read(spec))},
                # They hold paths, which are nobody's business but the owner's.
                problems=catalog.problems[:MAX_PROBLEMS] if admin else (),
            )
        )
        files = jobs.store.found.files[:MAX_PROBLEMS]
        return shown + cards.elsewhere(files) if admin else shown

    def _loras(self, visit: Visit, *, admin: bool) -> str:
        asked = lora_cards.Asked(
            removing=visit.removing,
            exporting=visit.exporting,
            job=self._studio.lora_exports.job,
            picked=visit.bench.picked,
        )
        return lora_cards.shelf(self._studio.catalog.loras, asked, admin=admin)

    def _bench(self, visit: Visit) -> str:
        return lora_bench.bench(visit.bench, self._studio.catalog, self._studio.lora_work.job)

    def _hardware(self, model_id: str) -> str:
        try:
            model = self._studio.model(model_id)
        except StudioError:
            model = self._studio.catalog.default
        size = model.default_size
        plan = self._studio.forecast(model.id, MemoryRequest(width=size.width, height=size.height))
        return cards.hardware(self._studio.hardware(), model.title, str(size), plan)


def places(tab: ModelsTab) -> list[Any]:
    """What the news of the tab may change."""
    boxes = [tab.shelf, tab.loras, tab.bench, tab.hardware, tab.care, tab.import_box]
    return [*boxes, tab.imported, tab.timer, *tab.form.values()]
