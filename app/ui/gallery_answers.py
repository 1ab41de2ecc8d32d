"""What the Gallery tab answers to each event. Thin: the index and the exports have the rules.

A person at this machine sees every picture. A visitor sees what was painted for them: pictures of
others are nobody's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.gallery_index import Entry, Found
from app.ui import access, fields, gallery_cards
from app.ui.answers import Create, Session, told
from app.ui.gallery_cards import PAGE, Shown
from app.ui.watch import Seat
from pipelines.errors import RecipeError, StudioError

if TYPE_CHECKING:
    from app.studio import Studio

BUSY_SECONDS = 0.5
IDLE_SECONDS = 2.5
# Looking for new pictures must not keep the page waiting: what is left is read at the next look.
_FIRST_LOOK, _LOOK = 1.0, 0.3
_MAX_SHOWN = 1200
_REFUSED = "Pictures are starred and deleted on the computer that the studio runs on."


@dataclass(frozen=True, kw_only=True)
class GalleryTab:
    """The components of the tab."""

    query: gr.Textbox
    bar: gr.HTML
    work: gr.HTML
    grid: gr.HTML
    look: gr.HTML
    timer: gr.Timer


@dataclass
class Browse:
    """One browser tab in the gallery: what it looks at, is asked, and was told."""

    shown: int = PAGE
    query: str = ""
    picked: str = ""
    deleting: tuple[str, ...] = ()
    notice: str = ""
    reading: bool = False
    sent: dict[str, Any] = field(default_factory=dict)


class Gallery:
    """The handlers of the tab."""

    def __init__(self, studio: Studio, tab: GalleryTab, session: Session, create: Create) -> None:
        self._studio = studio
        self._tab = tab
        self._session = session
        self._create = create

    def open_gallery(
        self, browse: Browse, seat: Seat, owner: Any, query: Any, request: gr.Request
    ) -> Any:
        """The tab was opened: everything anew, and news from now on."""
        seat.sit(owner)
        browse.sent.clear()
        browse.notice, browse.deleting = "", ()
        self._ask(browse, query)
        return told(self._news(browse, seat, request, _FIRST_LOOK))

    def tick_gallery(self, browse: Browse, seat: Seat, owner: Any, request: gr.Request) -> Any:
        """The timer asked what is new."""
        seat.sit(owner)
        return told(self._news(browse, seat, request, _LOOK))

    def leave_gallery(self) -> Any:
        """Another tab was opened."""
        return gr.Timer(active=False)

    def search(
        self, browse: Browse, seat: Seat, owner: Any, query: Any, request: gr.Request
    ) -> Any:
        """Something was typed into the search box."""
        seat.sit(owner)
        browse.notice, browse.deleting = "", ()
        self._ask(browse, query)
        return told(self._news(browse, seat, request, 0))

    def act_gallery(
        self,
        browse: Browse,
        seat: Seat,
        owner: Any,
        request: gr.Request,
        event: gr.EventData,
    ) -> Any:
        """A picture or a button was pressed."""
        seat.sit(owner)
        data = event._data if isinstance(event._data, dict) else {}
        do, name = str(data.get("do")), str(data.get("name") or "")
        listed = data.get("names")
        names = tuple(str(one) for one in listed) if isinstance(listed, list) else ()
        if do not in ("more", "open", "close"):
            browse.notice = ""
        updates: dict[Any, Any] = {}
        try:
            if do in ("star", "unstar", "ask-delete", "delete") and not _may(request):
                raise RecipeError(_REFUSED)
            match do:
                case "use" | "start" | "create":
                    updates = self._leave(do, self._entry(seat, request, name) if name else None)
                case "export":
                    self._export(browse, seat, request, names, data)
                case "clear":
                    self._ask(browse, "")
                    updates = {self._tab.query: ""}
                case _:
                    self._do(browse, do, name, names)
                    self._exports(seat, do)
        except StudioError as error:
            browse.notice = str(error)
        return told(updates | self._news(browse, seat, request, 0))

    def _do(self, browse: Browse, do: str, name: str, names: tuple[str, ...]) -> None:
        match do:
            case "more":
                browse.shown = min(browse.shown + PAGE, _MAX_SHOWN)
            case "open":
                browse.picked = name
            case "close":
                browse.picked = ""
            case "star" | "unstar":
                self._studio.star_picture(name, on=do == "star")
            case "ask-delete":
                browse.deleting = names or ((name,) if name else ())
            case "keep":
                browse.deleting = ()
            case "delete":
                wanted, browse.deleting = browse.deleting, ()
                gone = self._studio.delete_pictures(wanted)
                browse.notice = "1 picture is deleted." if gone == 1 else f"{gone} are deleted."

    def _exports(self, seat: Seat, do: str) -> None:
        if do == "stop-export":
            self._studio.exports.stop(seat.owner)
        elif do == "close-export":
            self._studio.exports.dismiss(seat.owner)

    def _leave(self, do: str, entry: Entry | None) -> dict[Any, Any]:
        """Goes to Create, with what the picture was painted from. Raises StudioError."""
        updates: dict[Any, Any] = {self._session.rail: gr.Tabs(selected="create")}
        if entry is None or do == "create":
            return updates
        if do == "start":
            kept = self._studio.keep_start(entry.path)
            return updates | self._create.start_from(kept.name)
        if entry.request is None:
            raise RecipeError(entry.problem)
        return updates | self._create.fill(fields.repeated(entry.request, self._studio))

    def _export(
        self,
        browse: Browse,
        seat: Seat,
        request: gr.Request,
        names: tuple[str, ...],
        data: dict[str, Any],
    ) -> None:
        """Exports the selected pictures, else all that the search finds. Raises StudioError."""
        only, query = self._only(seat, request), browse.query
        strip = data.get("strip") is True

        def choose() -> Sequence[Entry]:
            if names:
                return self._studio.named_pictures(names, only)
            return self._studio.pictures(query, only).entries

        self._studio.exports.start(choose, str(data.get("format")), seat.owner, strip=strip)

    def _entry(self, seat: Seat, request: gr.Request, name: str) -> Entry:
        """The picture called `name`, if it may be seen. Raises RecipeError."""
        only = self._only(seat, request)
        for entry in self._studio.named_pictures([name], only):
            return entry
        raise RecipeError("There is no such picture.")

    def _only(self, seat: Seat, request: gr.Request) -> str | None:
        return None if _may(request) else seat.owner

    def _ask(self, browse: Browse, query: Any) -> None:
        wanted = query if isinstance(query, str) else ""
        if wanted != browse.query:
            browse.query, browse.shown = wanted, PAGE

    def _news(
        self, browse: Browse, seat: Seat, request: gr.Request, seconds: float
    ) -> dict[Any, Any]:
        admin, only = _may(request), self._only(seat, request)
        found, picked = Found(entries=(), total=0), None
        try:
            if seconds:
                browse.reading = not self._studio.index.sync(seconds)
            found = self._studio.pictures(browse.query, only, limit=browse.shown)
            if browse.picked:
                picked = next(iter(self._studio.named_pictures([browse.picked], only)), None)
        except StudioError as error:
            browse.notice = str(error)
        if picked is None:
            browse.picked = ""
        job = self._studio.exports.job(seat.owner)
        shown = Shown(
            found=found,
            query=browse.query.strip(),
            reading=browse.reading,
            own_only=only is not None,
        )
        # Asked where it was pressed: on a phone the picture lies over the bar.
        asks = bool(browse.picked) and browse.deleting == (browse.picked,)
        busy = browse.reading or (job is not None and job.active)
        parts: dict[str, tuple[Any, Any]] = {
            "grid": (self._tab.grid, gallery_cards.grid(shown)),
            "bar": (
                self._tab.bar,
                gallery_cards.bar(
                    shown, () if asks else browse.deleting, browse.notice, admin=admin
                ),
            ),
            "work": (self._tab.work, gallery_cards.exported(job)),
            "look": (
                self._tab.look,
                gallery_cards.detail(
                    picked, self._studio.catalog, browse.notice, admin=admin, asks=asks
                ),
            ),
            "wait": (self._tab.timer, BUSY_SECONDS if busy else IDLE_SECONDS),
        }
        fresh: dict[Any, Any] = {}
        for name, (place, value) in parts.items():
            if browse.sent.get(name) != hash(value):
                browse.sent[name] = hash(value)
                fresh[place] = gr.Timer(value, active=True) if name == "wait" else value
        return fresh


def _may(request: gr.Request | None) -> bool:
    client = getattr(request, "client", None)
    if request is None or client is None:
        return False
    return access.may_administer(client.host, request.headers)


def places(tab: GalleryTab) -> list[Any]:
    """What the news of the tab may change."""
    return [tab.query, tab.bar, tab.work, tab.grid, tab.look, tab.timer]
