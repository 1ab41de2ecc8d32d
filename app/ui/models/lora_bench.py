"""Selected LoRAs on the Models tab: merged, made smaller, compared, baked into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.markup import render
from app.models.lora_orders import LoraOrder, LoraOutcome
from app.models.lora_work import lost_in_words
from app.models.lora_work_jobs import LoraWorkJob, LoraWorkJobs
from app.ui.models.import_form import sentence
from app.ui.models.lora_cards import ASKED
from lora_manager import card
from lora_manager.card import LoraCard, LoraUse
from lora_manager.library import LoraLibrary
from pipelines import lora_fit
from pipelines.catalog import Catalog, ModelSpec
from pipelines.errors import RequestError, StudioError, model_errors, printable

PICK, BENCH = "pick", "bench-"
"""What is pressed on the card of a LoRA, and what begins the names of what is pressed here."""
_FORMS = ("merge", "resize", "bake")
_LABELS = {"merge": "Merge", "resize": "Make it smaller", "bake": "Bake"}
_FIELDS = ("name", "rank", "model", "title")
_WEIGHT = "weight:"
_MAX_TYPED = 200
_MAX_LAYERS = 400


@dataclass
class LoraBench:
    """What one browser tab does with LoRAs.

    `picked`: the names of those that are selected; `verb`: what is to be done with them, one of the
    forms, or "" for nothing yet; `typed`: the fields as they were sent last. `unusual`: the weights
    that the person was told of, to be pressed again for; `said`: why nothing was begun.
    """

    picked: tuple[str, ...] = ()
    verb: str = ""
    typed: Mapping[str, str] = field(default_factory=dict)
    unusual: str = ""
    said: str = ""

    def press(self, wanted: str, name: str, typed: Any, work: LoraWorkJobs) -> None:
        """A button was pressed; `typed` is whatever a browser sent. Raises StudioError."""
        self.said = ""
        self.typed = _typed(typed, self.typed)
        if wanted == PICK:
            self._pick(name.removeprefix(ASKED))
            return
        match wanted.removeprefix(BENCH):
            case verb if verb in _FORMS:
                self.verb, self.unusual = verb, ""
            case "back":
                self.verb = ""
            case "clear":
                self.picked, self.verb, self.typed = (), "", {}
            case "compare" | "losses" as verb:
                work.start(LoraOrder(verb=verb, uses=tuple(LoraUse(name=n) for n in self.picked)))
            case "go":
                self._go(work)
            case "stop":
                work.stop()
            case "close":
                work.dismiss()

    def keep(self, library: LoraLibrary) -> None:
        """Lets go of what is not there any more."""
        here = {one.name for one in library.cards()}
        self.picked = tuple(name for name in self.picked if name in here)
        if not self.picked or (self.verb == "resize" and len(self.picked) > 1):
            self.verb = ""

    def _pick(self, name: str) -> None:
        with model_errors():
            card.check_name(name)
        if name in self.picked:
            self.picked = tuple(one for one in self.picked if one != name)
        elif len(self.picked) < card.MAX_USES:
            self.picked = (*self.picked, name)
        else:
            raise RequestError("loras", f"At most {card.MAX_USES} LoRAs can be used together.")

    def _go(self, work: LoraWorkJobs) -> None:
        order = self._order()
        # Beyond the usual weights it is asked once more, whichever of the two is made.
        unusual = card.unusual(order.uses) if order.verb != "resize" else ""
        told, self.unusual = self.unusual, unusual
        if unusual and unusual != told:
            again = f"Press {_LABELS[self.verb]} again to do it all the same."
            raise RequestError("loras", unusual, again)
        work.start(order)
        self.picked, self.verb, self.typed, self.unusual = (), "", {}, ""

    def _order(self) -> LoraOrder:
        typed = {name: self.typed.get(name, "").strip() for name in _FIELDS}
        if self.verb not in _FORMS:
            raise RequestError("loras", "Nothing was chosen to be done.")
        name = typed["name"]
        if not name:
            raise RequestError("name", "It has no name yet.", "Give it one.")
        weighted = self.verb != "resize"
        texts = [f"{one}:{self.weight(one)}" if weighted else one for one in self.picked]
        with model_errors():
            uses = card.parse(", ".join(texts))
        rank = _rank(typed["rank"]) if self.verb != "bake" else None
        if self.verb == "resize" and rank is None:
            raise RequestError("rank", "It has no rank yet.", "Give one, or look what is lost.")
        more = {"model": typed["model"], "title": typed["title"]} if self.verb == "bake" else {}
        return LoraOrder(verb=self.verb, uses=uses, name=name, rank=rank, **more)

    def weight(self, name: str) -> str:
        """The weight of a LoRA as it stands in its field."""
        # A comma would begin another LoRA.
        typed = self.typed.get(_WEIGHT + name, "1").strip().replace(",", ".")
        return typed or "1"


def _typed(values: Any, before: Mapping[str, str]) -> dict[str, str]:
    """What was sent of the fields over what was sent before; any program may send anything."""
    given = values if isinstance(values, dict) else {}
    known = (*_FIELDS, *(key for key in before if key.startswith(_WEIGHT)))
    found = dict(before)
    for key, value in list(given.items())[: 2 * card.MAX_USES + len(known)]:
        named = isinstance(key, str) and (key in known or key.startswith(_WEIGHT))
        if named and len(key) <= _MAX_TYPED and isinstance(value, str):
            found[key] = value[:_MAX_TYPED]
    return dict(list(found.items())[-4 * card.MAX_USES :])


def _rank(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise RequestError(
            "rank", f"“{printable(text, 20)}” is no rank.", "Give a whole number, as 8."
        )
    return int(text)


def bench(state: LoraBench, catalog: Catalog, job: LoraWorkJob | None) -> str:
    """The selection with what can be made of it, and the last piece of work; "" for neither."""
    cards = {one.name: one for one in catalog.loras.cards()}
    picked = [cards[name] for name in state.picked if name in cards]
    if not picked and job is None and not state.said:
        return ""
    return render(
        "ui/models/lora_bench.html",
        "bench",
        rows=[_row(one, state) for one in picked],
        verb=state.verb,
        label=_LABELS.get(state.verb, ""),
        typed={name: state.typed.get(name, "") for name in _FIELDS},
        said=state.said,
        work=_work(job, catalog) if job is not None else None,
        active=job is not None and job.active,
        exact=sum(one.rank for one in picked),
        rank=max((one.rank for one in picked), default=0),
        models=_models(picked, catalog) if state.verb == "bake" else (),
    )


def _row(one: LoraCard, state: LoraBench) -> dict[str, str]:
    return {
        "name": one.name,
        "asked": ASKED + one.name,
        "field": _WEIGHT + one.name,
        "weight": state.weight(one.name),
        "rank": f"rank {one.rank}",
    }


def _models(picked: Sequence[LoraCard], catalog: Catalog) -> list[tuple[str, str]]:
    """The models that the LoRAs fit, as far as their files tell."""
    return [(spec.id, spec.title) for spec in catalog if _fits(picked, spec, catalog)]


def _fits(picked: Sequence[LoraCard], model: ModelSpec, catalog: Catalog) -> bool:
    try:
        for one in picked:
            lora_fit.check(one, model, catalog)
    except StudioError:
        return False
    return True


def _work(job: LoraWorkJob, catalog: Catalog) -> dict[str, Any]:
    """The last piece of work, as it goes or as it went."""
    shown: dict[str, Any] = {"title": job.order.said, "tone": "", "use": "", "stopping": False}
    shown |= {"bar": None, "facts": (), "losses": (), "layers": (), "names": ()}
    if job.active:
        progress, part = job.progress, job.progress.fraction if job.progress else None
        words = progress.sentence() if progress is not None else "Waiting, or reading the files…"
        width = f"{100 * part:.0f}" if part is not None else None
        return shown | {
            "said": "Stopping…" if job.stopping else words,
            "bar": {"value": width, "width": width or "0"},
            "stopping": job.stopping,
        }
    if job.error is not None:
        return shown | {"said": sentence(job.error), "tone": "bad"}
    made = job.outcome or LoraOutcome()
    if made.comparison is not None:
        return shown | _compared(job.order, made.comparison)
    if job.order.verb == "losses":
        rows = [(str(rank), percent(lost)) for rank, lost in made.losses]
        said = "Of all its changes, so much is lost:" if rows else "It is of rank 1 already."
        return shown | {"said": said, "losses": rows}
    if job.order.verb == "bake":
        known = next((spec.title for spec in catalog if spec.id == made.name), made.name)
        here = any(spec.id == made.name for spec in catalog)
        use = made.name if here else ""
        return shown | {"said": f"“{known}” is here.", "tone": "good", "use": use}
    said = f"“{made.name}” is here, with the rank {made.rank}; {lost_in_words(made.error)}."
    return shown | {"said": said, "tone": "good"}


def _compared(order: LoraOrder, found: Mapping[str, Any]) -> dict[str, Any]:
    names, total = [use.name for use in order.uses], found["total"]
    alone = [
        (name, f"{len(paths)}: {_some(paths)}")
        for name, paths in zip(names, found["only"], strict=True)
        if paths
    ]
    facts = [(f"Changed by {name} alone", said) for name, said in alone]
    if misfits := found["misfits"]:
        facts.append(("Of other sizes in each", f"{len(misfits)}: {_some(misfits)}"))
    if not found["layers"]:
        return {"said": "They have no layer in common that could be compared.", "facts": facts}
    said = (
        f"In the {len(found['layers'])} layers that both change they are"
        f" {percent(total['difference'])} apart; cosine {total['cosine']:.3f}."
    )
    rows = [
        (
            layer["path"],
            *(f"{norm:.3g}" for norm in layer["norms"]),
            percent(layer["difference"]),
            f"{layer['cosine']:.3f}",
        )
        for layer in found["layers"][:_MAX_LAYERS]
    ]
    return {"said": said, "facts": facts, "names": names, "layers": rows}


def percent(share: float) -> str:
    """A share as people say it: "12 %", "0.35 %"."""
    return f"{100 * share:.3g} %"


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more
