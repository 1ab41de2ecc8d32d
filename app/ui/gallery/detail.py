"""The picture of the Gallery tab that is looked at: its recipe and what can be done with it."""

from __future__ import annotations

from app.gallery import recipe_loras, recipe_rows
from app.gallery.index import IndexedPicture
from app.markup import render
from app.ui.gallery.cards import size_text, title_of
from app.ui.routes import PICTURES
from pipelines.catalog import Catalog
from pipelines.errors import StudioError

_MARKUP = "ui/gallery/detail.html"


def nothing(at: int) -> str:
    """What stands there while no picture is chosen; `at` as in `detail`."""
    return render(_MARKUP, "nothing", at=at)


def detail(
    entry: IndexedPicture, catalog: Catalog, *, admin: bool, asks: bool = False, at: int = 0
) -> str:
    """The picture with its recipe; `asks` before it is deleted. `at` numbers the press that is
    answered, so that the page sees when an older answer comes last."""
    missing = ""
    if entry.request is not None:
        try:
            catalog.find(entry.request.model)
        except StudioError as error:
            missing = str(error)
    notes = [missing] if missing else []
    if entry.record is not None:
        notes += [one.sentence for one in recipe_loras.changed(entry.record, catalog.loras)]
    return render(
        _MARKUP,
        "detail",
        name=entry.name,
        at=at,
        address=f"{PICTURES}/{entry.name}",
        title=title_of(entry),
        problem=entry.problem,
        request=entry.request,
        file=entry.path.name,
        notes=notes,
        buttons=_buttons(entry, admin=admin, lost=bool(missing)),
        facts=_facts(entry),
        asks=asks,
    )


def _buttons(entry: IndexedPicture, *, admin: bool, lost: bool) -> list[tuple[str, str, str]]:
    """What can be done: (what, words, look); `lost` where the model of the picture is gone."""
    wanted = [("start", "Use as start", "")]
    if entry.request is not None:
        wanted.insert(0, ("use", "Use its prompt" if lost else "Use these settings", "lead"))
    if admin:
        wanted.append(
            ("unstar", "Take the star off", "") if entry.starred else ("star", "Star", "")
        )
        wanted.append(("ask-delete", "Delete…", ""))
    return wanted


def _facts(entry: IndexedPicture) -> list[tuple[str, str]]:
    recipe = recipe_rows.of(entry.request) if entry.request is not None else []
    file = f"{entry.path.name}, {size_text(entry.size)}"
    return [("Painted", entry.created), *recipe, ("File", file)]
