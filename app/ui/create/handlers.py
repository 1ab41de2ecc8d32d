"""What the Create tab answers to each event. Thin: the rules are in `fields`, `watch`, `canvas`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.gallery import recipe_loras
from app.gallery.pictures import PictureFile
from app.ui import choices
from app.ui.changes import Part, answer, enabled, ticking
from app.ui.create import canvas, fields, watch
from app.ui.create.fields import FIELDS, Form
from app.ui.create.watch import BrowserSession
from app.ui.guards import clients
from app.ui.guards.clients import Sender
from pipelines.errors import RecipeError, StudioError
from pipelines.memory import model_numbers
from pipelines.request import is_visible

if TYPE_CHECKING:
    from app.studio import Studio

MORE_COUNT = 4
FORECAST = ("model", "sampler", "guidance", "size", "approximate")
"""The fields that decide about the memory."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What every tab of the page shares: who looks, and what the browser keeps."""

    rail: gr.Tabs
    browser: gr.State
    owner: gr.BrowserState
    kept: gr.BrowserState
    engine: gr.HTML
    model: gr.HTML
    timer: gr.Timer


@dataclass(frozen=True, kw_only=True)
class CreateTab:
    """The components of the tab; `form` holds one per entry of FIELDS, in that order."""

    form: dict[str, Any]
    count: gr.HTML
    forecast: gr.HTML
    examples: gr.HTML
    upload: gr.UploadButton
    generate: gr.Button
    stop: gr.Button
    canvas: gr.HTML
    status: gr.HTML
    result: gr.HTML


def filled(tab: CreateTab, session: Session) -> list[Any]:
    """What follows the values of the form."""
    return [*tab.form.values(), tab.examples, tab.count, tab.forecast, session.model]


class CreateHandlers:
    """The handlers of the tab."""

    def __init__(self, studio: Studio, tab: CreateTab, session: Session) -> None:
        self._studio = studio
        self._tab = tab
        self._session = session

    # what the page is told

    def news(self, browser: BrowserSession, *, everything: bool = False) -> dict[Any, Any]:
        """Updates for whatever the studio has new for this browser."""
        view, tab, session = watch.look(self._studio, browser), self._tab, self._session
        if everything:
            browser.sent.forget()
        return browser.sent.news(
            {
                "canvas": Part(place=tab.canvas, value=view.canvas),
                "status": Part(place=tab.status, value=view.status),
                "result": Part(place=tab.result, value=view.result),
                "engine": Part(place=session.engine, value=view.engine),
                "generate": enabled(tab.generate, not view.busy),
                "stop": enabled(tab.stop, view.busy),
                "timer": ticking(
                    session.timer, watch.BUSY_SECONDS if view.busy else watch.IDLE_SECONDS
                ),
            }
        )

    def fill(self, values: Form) -> dict[Any, Any]:
        """Updates that put `values` into the whole form."""
        tab = self._tab
        updates: dict[Any, Any] = {
            tab.form[name]: gr.update(value=values[name], **arguments)
            for name, arguments in self._arguments(values).items()
        }
        model = self._studio.model(values["model"])
        updates[tab.examples] = canvas.examples(model.examples)
        updates[self._session.model] = canvas.model_chip(model.title)
        updates[tab.count] = self._count(values)
        updates[tab.forecast] = self._forecast(values)
        return updates

    def _arguments(self, values: Form) -> dict[str, dict[str, Any]]:
        """For each field of the form: what its widget shows and allows, beside its value."""
        model = self._studio.model(values["model"])
        arguments: dict[str, dict[str, Any]] = {name: {} for name in FIELDS}
        arguments |= fields.limits(values)
        note = fields.sampler_note(values, self._studio)
        arguments["sampler"] = {"markup": choices.sampler_select(note)}
        shapes = choices.shapes(model.shapes, values["size"], model.max_side)
        arguments["size"] = {"markup": shapes}
        shown = True if fields.knows_sizes(values, self._studio) else "hidden"
        arguments["original_size"] = {"visible": shown}
        rows = choices.lora_rows(
            self._studio.catalog.loras, values["loras"], model_numbers.width(model)
        )
        arguments["loras"] = {"markup": rows}
        arguments["model"] = {"markup": choices.model_select(self._studio.catalog, model)}
        return arguments

    # events

    def open(self, browser: BrowserSession, owner: Any, kept: Any) -> Any:
        """The page was loaded: the form of last time, and whatever the owner's job shows."""
        # Somebody may have put a model into the folder since.
        self._studio.catalog.reload()
        updates = self.fill(fields.restored(kept, self._studio))
        updates[self._session.owner] = browser.identify(owner)
        updates |= self.news(browser, everything=True)
        browser.sent.is_new("models", self._models())
        return answer(updates)

    def tick(self, browser: BrowserSession, owner: Any, *raw: Any) -> Any:
        """The timer asked what is new: for the browser, and for the form as it stands."""
        browser.identify(owner)
        late = self._late(browser, fields.form(raw)) if raw else {}
        return answer(late | self.news(browser))

    def _late(self, browser: BrowserSession, values: Form) -> dict[Any, Any]:
        """What changed for the form without anybody touching it: models came or went."""
        updates: dict[Any, Any] = {}
        models, catalog = self._models(), self._studio.catalog
        here = next((spec for spec in catalog if spec.id == values["model"]), None)
        others = browser.sent.is_new("models", models)
        if here is None:
            updates = self.choose(values, catalog.default.id)
        elif others:
            dressed = self._arguments(values)
            for name in ("model", "loras"):
                updates[self._tab.form[name]] = gr.update(**dressed[name])
        needs = self._forecast(values)
        if browser.sent.is_new("forecast", needs):
            updates.setdefault(self._tab.forecast, needs)
        return updates

    def _models(self) -> int:
        """Changes with the models that can be chosen and what is said of them."""
        catalog = self._studio.catalog
        rows = [(spec.id, spec.title, spec.summary, spec.licence) for spec in catalog]
        return hash((*rows, *catalog.problems, *catalog.loras.cards()))

    def paint(self, browser: BrowserSession, owner: Any, request: gr.Request, *raw: Any) -> Any:
        """Generate was pressed."""
        browser.identify(owner)
        updates: dict[Any, Any] = {}
        try:
            asked = self._studio.request(fields.request_values(fields.form(raw)))
        except StudioError as error:
            browser.complain(error)
        else:
            sender = clients.sender(request)
            if browser.is_sure(asked) and watch.submit(self._studio, browser, asked, sender):
                updates[self._tab.form["seed"]] = str(asked.seed)
        return answer(updates | self.news(browser))

    def stop(self, browser: BrowserSession, owner: Any) -> Any:
        """Stop was pressed."""
        browser.identify(owner)
        watch.stop(self._studio, browser)
        return answer(self.news(browser))

    def act(
        self,
        browser: BrowserSession,
        owner: Any,
        new_seed: Any,
        request: gr.Request,
        event: gr.EventData,
    ) -> Any:
        """A picture, or a button under the canvas, was pressed."""
        browser.identify(owner)
        data = event._data if isinstance(event._data, dict) else {}
        job = self._studio.latest(browser.owner)
        name = str(data.get("name"))
        file = next((f for f in job.pictures if f.name == name), None) if job else None
        updates: dict[Any, Any] = {}
        sender = clients.sender(request)
        if file is None:
            return answer(self.news(browser))
        browser.deleting = ""
        try:
            match data.get("do"):
                case "ask-delete":
                    browser.deleting = file.name
                case "delete":
                    self._studio.delete_picture(file.name, browser.owner)
                    browser.notice = None
                case "pick":
                    browser.picked = file.name
                case "again":
                    updates = self._repeat(browser, fields.from_request(file.request), sender)
                    self._say_other_loras(browser, file, painted=bool(updates))
                case "more":
                    asked = fields.from_request(file.request) | {
                        "new_seed": True,
                        "count": MORE_COUNT,
                    }
                    updates = self._repeat(browser, asked, sender)
                    self._say_other_loras(browser, file, painted=bool(updates))
                case "start":
                    kept = self._studio.keep_start(file.path)
                    updates = {self._tab.form["init"]: kept.name}
                    browser.notice = None
        except StudioError as error:
            browser.complain(error)
        return answer(updates | self.news(browser))

    def _repeat(self, browser: BrowserSession, values: Form, sender: Sender) -> dict[Any, Any]:
        """Paints `values` and, if that can be done, puts them into the form."""
        request = self._studio.request(fields.request_values(values))
        if not watch.submit(self._studio, browser, request, sender):
            return {}
        return self.fill(values | {"seed": str(request.seed)})

    def _say_other_loras(
        self, browser: BrowserSession, file: PictureFile, *, painted: bool
    ) -> None:
        """Where `file` is painted again with LoRAs that are others now, the page says so."""
        changed = recipe_loras.changed(file, self._studio.catalog.loras)
        if painted and (said := " ".join(one.sentence for one in changed)):
            browser.notice = canvas.Notice(text=said, field="loras")

    def retune(self, *raw: Any) -> Any:
        """Another sampler was chosen: its own steps, guidance and limits."""
        return self._changed(fields.form(raw), fields.tuned)

    def relora(self, *raw: Any) -> Any:
        """LoRAs were chosen: one that distills the model brings its sampler along."""
        values = fields.form(raw)
        wanted = fields.distilled(values, self._studio)
        if wanted is None or values["sampler"] == wanted:
            return self._changed(values, lambda values, studio: {})
        chosen = {"sampler": wanted}
        return self._changed(
            values | chosen, lambda values, studio: chosen | fields.tuned(values, studio)
        )

    def remodel(self, *raw: Any) -> Any:
        """Another model was chosen: its shapes, examples and defaults."""
        return self._changed(fields.form(raw), fields.for_model)

    def _changed(self, values: Form, ask: Callable[[Form, Studio], Form]) -> Any:
        try:
            new = ask(values, self._studio)
            values |= new
            filled = self.fill(values)
        except StudioError:
            # A name that is in no list can only come from outside the page.
            return gr.skip()
        # What people typed stays untouched, or a letter typed meanwhile would be lost.
        keep = {self._tab.form[n] for n in FIELDS if n not in new}
        dressed = self._arguments(values)
        for name in FIELDS:
            component = self._tab.form[name]
            if component in keep:
                filled.pop(component)
                if dressed[name]:
                    filled[component] = gr.update(**dressed[name])
        return filled

    def choose(self, values: Form, model_id: str, **more: Any) -> dict[Any, Any]:
        """Updates that make `model_id` the chosen model, with `more` values of the form; {} for one
        that cannot be chosen."""

        def ask(values: Form, studio: Studio) -> Form:
            wanted = {"model": model_id, **more}
            return wanted | fields.for_model(values | wanted, studio)

        answer = self._changed(values, ask)
        return answer if isinstance(answer, dict) and "__type__" not in answer else {}

    def reguide(self, sampler: Any, guidance: Any) -> Any:
        """Guidance was moved: the negative prompt may do nothing now."""
        return gr.update(**fields.limits({"sampler": sampler, "guidance": guidance})["negative"])

    def reforecast(self, *raw: Any) -> str:
        """What decides about the memory has changed."""
        return self._forecast(dict(zip(FORECAST, raw, strict=True)))

    def _forecast(self, values: Form) -> str:
        try:
            asked = fields.memory_request(values)
            return canvas.forecast(self._studio.forecast(str(values["model"]), asked))
        except StudioError:
            return canvas.forecast("")

    def recount(self, prompt: Any, style: Any, model: Any, cleaned: Any) -> str:
        """The prompt, its style, its model or its cleaning changed."""
        return self._count(
            {"prompt": prompt, "style": style, "model": model, "clean_caption": cleaned}
        )

    def _count(self, values: Form) -> str:
        text = values["prompt"] if isinstance(values["prompt"], str) else ""
        try:
            tokens = self._studio.count(
                str(values["model"]),
                text,
                str(values["style"]),
                cleaned=values["clean_caption"] is True,
            )
            unseen = self._studio.unseen(str(values["model"]), text)
        except StudioError as error:
            return canvas.sentence(str(error))
        return canvas.token_count(tokens, empty=not is_visible(text), unseen=unseen)

    def keep_upload(self, browser: BrowserSession, file: Any) -> Any:
        """A picture was uploaded to start from."""
        # Emptied, so that the same file can be uploaded again.
        updates: dict[Any, Any] = {self._tab.upload: gr.update(value=None)}
        try:
            if not isinstance(file, str):
                raise RecipeError("There was no picture in the upload.")
            updates[self._tab.form["init"]] = self._studio.keep_start(Path(file)).name
            browser.notice = None
        except StudioError as error:
            browser.notice = canvas.Notice(text=str(error), field="start-card")
        return answer(updates | self.news(browser))

    def start_from(self, name: str) -> dict[Any, Any]:
        """Updates that make the kept picture `name` the one to start from."""
        return {self._tab.form["init"]: name}

    def example(self, model: Any, event: gr.EventData) -> Any:
        """An example prompt was pressed."""
        data = event._data if isinstance(event._data, dict) else {}
        try:
            return self._studio.model(str(model)).examples[int(data.get("index", -1))]
        except (StudioError, IndexError, TypeError, ValueError):
            return gr.skip()
