"""The Models tab as HTML: pure functions of what the studio says.

One card a model, whose buttons name what they do in `data-do`. What is asked, and how a download
goes, stands in the card itself, so that nothing has to be looked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.hardware import Hardware
from app.markup import render
from app.models.download_jobs import FileState, ModelJob
from app.models.samples import SampleStrip
from app.models.store import ModelRow
from app.ui.routes import SAMPLES
from pipelines.models.downloads import MARGIN
from pipelines.models.local_weights import FoundFile
from pipelines.progress import duration, plain_size

_TAGS = {
    "shipped": "Ships with the studio",
    "own": "Yours",
    "downloaded": "Downloaded",
    "broken": "Cannot be used",
    "known": "",
}
_KINDS = {
    "original": "Published in the original format, and converted after the download.",
    "controlnet": "A ControlNet, in the original format. It is kept; Create cannot use one yet.",
    "lora": "A LoRA: once it is here, Create offers it for the model that it was made for.",
}
_MARKUP = "ui/models/cards.html"
ADMINISTERED = "Models are downloaded, imported and removed"


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """What the cards are drawn from.

    `usable` are the ids that can be chosen in Create and `chosen` the one that is; `removing` is
    the id of the model whose removal is asked about, `question` says what would be deleted. `needs`
    are the memory that models which may be downloaded would take, `samples` pictures that a model
    painted, both by its id. `admin` is False for visitors, who see no button that changes
    anything but `read_only`, the reason, and the address of the `entrance` where there is one.
    """

    rows: Sequence[ModelRow]
    job: ModelJob | None
    usable: frozenset[str]
    chosen: str
    admin: bool
    folder: str
    free: int
    removing: str = ""
    question: str = ""
    needs: Mapping[str, str] = field(default_factory=dict)
    notice: str = ""
    samples: Mapping[str, SampleStrip] = field(default_factory=dict)
    problems: Sequence[str] = ()
    read_only: str = ""
    entrance: str = ""


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What happens with a model now, or what can be done with it.

    `asked` is what a download would do, `progress` how far one is, `buttons` are (what they do,
    words, look).
    """

    said: str = ""
    tone: str = ""
    asked: Sequence[tuple[str, str]] = ()
    progress: Mapping[str, str | None] | None = None
    files: Sequence[Mapping[str, str]] = ()
    buttons: Sequence[tuple[str, str, str]] = ()


def shelf(view: Shelf) -> str:
    """Both lists: what is here, and what can be downloaded."""
    here = [row for row in view.rows if row.state != "known"]
    others = [row for row in view.rows if row.state == "known"]
    return render(
        _MARKUP,
        "shelf",
        view=view,
        here=[_card(row, view) for row in here],
        others=[_card(row, view) for row in others],
        shared=_shared(others),
    )


def _shared(rows: Sequence[ModelRow]) -> str:
    """What several models read and none has brought yet: said once."""
    missing = {
        part.source.label: part.source
        for row in rows
        for part in row.parts
        if part.folder is None and part.shared_with and part.source.size > 10_000_000
    }
    if not missing:
        return "Sizes are what is still to be fetched."
    names = [
        f"the {label} ({plain_size(source.size, exact=source.exact)})"
        for label, source in sorted(missing.items(), key=lambda item: -item[1].size)
    ]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return (
        f"Models share parts, which are downloaded once: {listed}."
        " Each size counts what is still to be fetched."
    )


def _card(row: ModelRow, view: Shelf) -> dict[str, Any]:
    job = view.job if view.job is not None and view.job.model == row.id else None
    if job is not None and job.phase == "asked" and not view.admin:
        job = None
    tag = "In use" if row.id == view.chosen else _TAGS[row.state]
    if job is not None and job.phase in ("downloading", "stopping"):
        tag = "Downloading"
    elif row.state == "known" and row.arrived:
        tag = "Begun"
    return {
        "row": row,
        "state": "chosen" if row.id == view.chosen else row.state,
        "tag": tag,
        "kind": _KINDS.get(row.kind, ""),
        "samples": _samples(row, view),
        "facts": _facts(row, job, view),
        "work": _work(row, job, view),
    }


def _samples(row: ModelRow, view: Shelf) -> list[dict[str, str]]:
    """Pieces of one strip, each with its prompt."""
    found = view.samples.get(row.id)
    if found is None:
        return []
    many = len(found.prompts)
    return [
        {
            "prompt": prompt,
            "address": f"{SAMPLES}/{row.id}?v={found.version}",
            "at": f"{100 * place / max(1, many - 1):.4f}",
            "size": str(100 * many),
        }
        for place, prompt in enumerate(found.prompts)
    ]


def _facts(row: ModelRow, job: ModelJob | None, view: Shelf) -> list[tuple[str, str]]:
    if job is not None and job.phase == "asked":
        # The question says it all.
        return []
    facts = [("Licence", row.licence)]
    if row.state == "known":
        if job is None:
            facts.insert(0, ("To fetch", plain_size(row.left, exact=row.exact)))
        here = [part.source.label for part in row.parts if part.folder is not None]
        if here:
            facts.append(("Here already", ", ".join(here)))
        if needs := view.needs.get(row.id):
            facts.append(("Memory", needs))
    else:
        # A folder is weighed to the byte; what parts of other programs weigh is not known.
        exact = row.exact or row.state in ("shipped", "own")
        facts.insert(0, ("Size", plain_size(row.size, exact=exact)))
        shared = sorted(part.source.label for part in row.parts if part.shared_with)
        if shared:
            facts.append(("Shared", ", ".join(shared)))
    return facts


def _work(row: ModelRow, job: ModelJob | None, view: Shelf) -> _Work:
    if view.removing == row.id and view.admin:
        buttons = (("remove", "Remove", "danger"), ("keep", "Keep it", ""))
        return _Work(said=view.question, buttons=buttons)
    if job is None:
        return _Work(buttons=_idle(row, view))
    if job.phase == "done":
        return _Work(said="It is here.", tone="good", buttons=_idle(row, view))
    if job.phase == "asked":
        return _question(row, job, view)
    if job.phase in ("stopped", "failed"):
        buttons = (_again(job), ("dismiss", "Not now", ""))
        return _Work(
            said=str(job.error or f"Stopped. {_amount(job)} are kept."),
            tone="bad" if job.error else "",
            files=_files(job.files),
            buttons=buttons if view.admin else (),
        )
    stop = (("stop", "Stop", "" if job.phase != "stopping" else "off"),)
    part = 100 * job.done / job.total if job.total else 0.0
    return _Work(
        said=_progress(job),
        progress={"value": f"{part:.0f}" if job.total else None, "width": f"{part:.1f}"},
        files=_files(job.files),
        buttons=stop if view.admin else (),
    )


def _again(job: ModelJob) -> tuple[str, str, str]:
    if not job.files:
        return ("ask", "Try again", "lead")
    return ("download", "Go on" if job.done else "Try again", "lead")


def _idle(row: ModelRow, view: Shelf) -> list[tuple[str, str, str]]:
    buttons: list[tuple[str, str, str]] = []
    busy = "off" if view.job is not None and view.job.active else ""
    if row.id in view.usable and row.id != view.chosen:
        buttons.append(("use", "Use in Create", "lead"))
    if view.admin and row.state == "known":
        buttons.append(("ask", "Go on…" if row.arrived else "Download…", busy))
    if view.admin and row.state == "broken":
        buttons.append(("repair", "Repair…", busy or "lead"))
    if view.admin and (row.state in ("downloaded", "broken", "own") or row.arrived):
        buttons.append(("ask-remove", "Remove…", busy))
    return buttons


def _question(row: ModelRow, job: ModelJob, view: Shelf) -> _Work:
    """What a download would do, before it does it."""
    enough = not view.free or view.free >= job.left + job.spare + MARGIN
    lines = [
        ("To fetch", f"{job.left:,} bytes ({plain_size(job.left)})"),
        ("Here already", plain_size(job.total - job.left) if job.total > job.left else "nothing"),
        ("Free on the disk", plain_size(view.free) if view.free else "not known"),
        ("Folder", view.folder),
        ("Licence", row.licence),
    ]
    if needs := view.needs.get(row.id):
        lines.append(("Memory", needs))
    if job.spare:
        lines.insert(1, ("Then", f"converted; {plain_size(job.spare)} more until that is done"))
    nothing = "Convert it, nothing to fetch" if job.spare else "Add it, nothing to fetch"
    label = f"Download {plain_size(job.left)}" if job.left else nothing
    return _Work(
        asked=lines,
        said="" if enough else "The disk has too little room for it.",
        tone="bad",
        buttons=(("download", label, "lead" if enough else "off"), ("dismiss", "Not now", "")),
    )


def _amount(job: ModelJob) -> str:
    return f"{plain_size(job.done)} of {plain_size(job.total)}"


def _progress(job: ModelJob) -> str:
    if job.phase == "stopping":
        words = "Stopping…"
    elif job.checking:
        words = f"Checking what is here, {_amount(job)}"
    elif job.phase == "asking":
        words = "Asking the hub what is needed…"
    elif job.phase == "waiting":
        words = "Waiting for its turn…"
    else:
        words = ("Converting to diffusers' layout, " if job.converting else "") + _amount(job)
        if job.speed:
            words += f", {plain_size(int(job.speed))}/s"
        if job.seconds_left is not None and job.seconds_left >= 1:
            words += f", about {duration(job.seconds_left)} left"
    return words


def _files(files: Sequence[FileState]) -> list[dict[str, str]]:
    """Every file that matters: those of a few kilobytes are one line together."""
    large = [file for file in files if file.size >= 100_000] or list(files)
    small = [file for file in files if file not in large]
    rows = [(file.path, file.done, file.size) for file in reversed(large)]
    if small:
        done, size = sum(f.done for f in small), sum(f.size for f in small)
        what = f"{len(small)} small files" if len(small) > 1 else small[0].path
        rows.append((what, done, size))
    return [
        {
            "name": name,
            "much": _much(done, size),
            "width": f"{100 * done / size if size else 100:.1f}",
        }
        for name, done, size in rows
    ]


def _much(done: int, size: int) -> str:
    if done >= size:
        return f"{plain_size(size)} ✓"
    return f"{plain_size(done)} of {plain_size(size)}" if done else plain_size(size)


def hardware(found: Hardware, title: str, size: str, plan: str) -> str:
    """What the computer has, and how the chosen model would run on it at its default size."""
    machine = found.machine
    cells = [("Device", machine.name if machine else "Not known yet")]
    if machine is not None and machine.vram_total:
        cells.append(("Graphics memory", _free(machine.vram_free, machine.vram_total)))
    cells.append(("Memory", _free(found.ram_free, found.ram_total)))
    cells.append(("Disk", f"{plain_size(found.disk_free)} free" if found.disk_free else "…"))
    words = f"{title} at {size.replace('x', ' × ')} px {plan}." if plan else ""
    return render(_MARKUP, "hardware", cells=cells, words=words)


def elsewhere(files: Sequence[FoundFile]) -> str:
    """Single files of other programs, with what can be done with them."""
    told = [(f"{one.what} ({plain_size(one.size)}) in {one.file}", one.way()) for one in files]
    return render(_MARKUP, "elsewhere", files=told)


def _free(free: int, total: int) -> str:
    if not total:
        return "Not known"
    return f"{plain_size(free)} of {plain_size(total)} free"
