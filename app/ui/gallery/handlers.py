"""What the Gallery tab answers to each event. Thin: the index and the exports have the rules.

A person at this machine sees every picture. A visitor sees what was painted for them: pictures of
others are nobody's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.gallery.index import IndexedPicture, SearchResult
from app.jobs.exports import ExportOrder
from app.ui.changes import Part, answer, ticking
from app.ui.create import fields
from app.ui.create.handlers import CreateHandlers, Session
from app.ui.create.watch import BrowserSession
from app.ui.gallery import cards, detail
from app.ui.gallery.browse import Browse, Press, Question, read_press
from app.ui.gallery.cards import MAX_SELECTED, MAX_SHOWN, PAGE, Shown
from app.ui.guards import access, clients
from pipelines.errors import RecipeError, StudioError

if TYPE_CHECKING:
    from app.studio import Studio

BUSY_SECONDS = 0.5
IDLE_SECONDS = 2.5
# Looking for new pictures must not keep the page waiting: what is left is read at the next look.
_FIRST_LOOK, _LOOK = 1.0, 0.3
_ADMINISTERED = "Pictures are starred and deleted"
_TRAINED = "Models are trained"
_OWNERS = ("star", "unstar", "train", "ask-delete", "delete")
_GONE = "That picture was deleted meanwhile."


@dataclass(frozen=True, kw_only=True)
class GalleryTab:
    """The components of the tab."""

    query: gr.Textbox
    bar: gr.HTML
    work: gr.HTML
    note: gr.HTML
    grid: gr.HTML
    look: gr.HTML
    timer: gr.Timer


class GalleryHandlers:
    """The handlers of the tab."""

    def __init__(
        self, studio: Studio, tab: GalleryTab, session: Session, create: CreateHandlers
    ) -> None:
        self._studio = studio
        self._tab = tab
        self._session = session
        self._create = create

    def open_gallery(
        self, browse: Browse, browser: BrowserSession, owner: Any, query: Any, request: gr.Request
    ) -> Any:
        """The tab was opened: everything anew, and news from now on."""
        browser.identify(owner)
        with browse.lock:
            browse.sent.forget()
            browse.newest = ()
            browse.ask(query)
            return answer(self._news(browse, browser, request, _FIRST_LOOK))

    def tick_gallery(
        self, browse: Browse, browser: BrowserSession, owner: Any, request: gr.Request
    ) -> Any:
        """The timer asked what is new."""
        browser.identify(owner)
        with browse.lock:
            return answer(self._news(browse, browser, request, _LOOK))

    def leave_gallery(self) -> Any:
        """Another tab was opened."""
        return gr.Timer(active=False)

    def search(
        self, browse: Browse, browser: BrowserSession, owner: Any, query: Any, request: gr.Request
    ) -> Any:
        """Something was typed into the search box."""
        browser.identify(owner)
        with browse.lock:
            browse.ask(query)
            return answer(self._news(browse, browser, request, 0))

    def act_gallery(
        self,
        browse: Browse,
        browser: BrowserSession,
        owner: Any,
        request: gr.Request,
        event: gr.EventData,
    ) -> Any:
        """A picture or a button was pressed."""
        browser.identify(owner)
        press = read_press(event._data)
        with browse.lock:
            asked = browse.question
            # More pictures come by themselves: what was asked about many stays.
            if asked is None or asked.beside or press.do not in ("more", "fresh"):
                browse.question = None
            if press.do not in ("more", "fresh"):
                browse.notice = ""
            updates: dict[Any, Any] = {}
            try:
                updates = self._do(browse, browser, request, press, asked)
            except StudioError as error:
                browse.notice = str(error)
            seconds = _LOOK if press.do == "missing" else 0
            return answer(updates | self._news(browse, browser, request, seconds))

    def _do(
        self,
        browse: Browse,
        browser: BrowserSession,
        request: gr.Request,
        press: Press,
        asked: Question | None,
    ) -> dict[Any, Any]:
        """Does what was pressed; what changes outside of the tab. Raises StudioError."""
        only = self._only(browser, request)
        if press.do in _OWNERS and only is not None:
            what = _TRAINED if press.do == "train" else _ADMINISTERED
            raise RecipeError(access.refusal(what, request))
        match press.do:
            case "use" | "start" | "create":
                entry = self._entry(only, press.name) if press.name else None
                return self._leave(press.do, entry)
            case "export":
                self._export(browse, browser, request, press)
            case "stop-export":
                self._studio.exports.stop(browser.owner)
            case "close-export":
                self._studio.exports.dismiss(browser.owner)
            case "select-found":
                found, _ = self._listed(browse, only, MAX_SELECTED)
                browse.order(select=[entry.name for entry in found.entries])
            case "star" | "unstar":
                there = self._there(browse, only, press)
                self._studio.star_pictures(there, on=press.do == "star")
            case "train":
                return self._train(browser, self._there(browse, only, press))
            case "ask-delete":
                browse.question = self._question(browse, only, press)
            case "delete" if asked is not None:
                self._delete(browse, only, press, asked)
            case _:
                self._turn(browse, press)
        return {}

    def _turn(self, browse: Browse, press: Press) -> None:
        """Looks at something else."""
        match press.do:
            case "more":
                browse.shown = min(browse.shown + PAGE, MAX_SHOWN)
            case "fresh":
                browse.newest = ()
            case "open":
                browse.pick(press.name, press.at)
            case "close":
                browse.pick("", press.at)
            case "again":
                # An older answer came last: the page shows what it said.
                browse.sent.forget("look")

    def _question(self, browse: Browse, only: str | None, press: Press) -> Question | None:
        """Asks about those that are still there. Raises RecipeError where none is."""
        if not press.names:
            # Two answers that overtook each other may have left another one on the page.
            browse.picked = press.name
        names = self._there(browse, only, press)
        return Question(names=names, beside=not press.names) if names else None

    def _there(self, browse: Browse, only: str | None, press: Press) -> tuple[str, ...]:
        """The pictures that are meant, without those that somebody else has deleted; the browser
        forgets these. Raises RecipeError where none is left."""
        wanted = dict.fromkeys(press.names or filter(None, [press.name]))
        there = {entry.name for entry in self._studio.named_pictures(list(wanted), only)}
        if len(there) < len(wanted):
            browse.order(gone=[name for name in wanted if name not in there])
        if wanted and not there:
            raise RecipeError(_GONE)
        return tuple(name for name in wanted if name in there)

    def _delete(self, browse: Browse, only: str | None, press: Press, asked: Question) -> None:
        """Deletes what was asked about and is still selected. Raises StudioError."""
        kept = asked.names if asked.beside else press.names
        wanted = [name for name in asked.names if name in set(kept)]
        before, _ = self._listed(browse, only, browse.shown)
        try:
            count = self._studio.delete_pictures(wanted)
            one = "1 picture is deleted."
            browse.notice = one if count == 1 else f"{count:,} pictures are deleted."
        finally:
            left = {entry.name for entry in self._studio.named_pictures(wanted, only)}
            gone = [name for name in wanted if name not in left]
            browse.order(gone=gone)
            browse.picked = browse.after(gone, before.entries)

    def _train(self, browser: BrowserSession, names: tuple[str, ...]) -> dict[Any, Any]:
        """Goes to Train, with these pictures as photos. Raises StudioError."""
        entries = self._studio.named_pictures(names, None)
        browser.preparation = self._studio.train_on(entries)
        return {self._session.rail: gr.Tabs(selected="train")}

    def _leave(self, do: str, entry: IndexedPicture | None) -> dict[Any, Any]:
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
        self, browse: Browse, browser: BrowserSession, request: gr.Request, press: Press
    ) -> None:
        """Exports the selected pictures, else all that the search finds. Raises StudioError."""
        order = ExportOrder(
            format=press.format,
            names=press.names or None,
            query=browse.query,
            # Those that came since are not on the page yet.
            newest=() if press.names else browse.newest,
            strip=press.strip,
            everybodys=access.may_administer(request),
        )
        client, trusted = clients.sender(request).client, order.everybodys
        self._studio.exports.start(order, browser.owner, client=client, trusted=trusted)

    def _entry(self, only: str | None, name: str) -> IndexedPicture:
        """The picture called `name`, if it may be seen. Raises RecipeError."""
        for entry in self._studio.named_pictures([name], only):
            return entry
        raise RecipeError("There is no such picture.")

    def _only(self, browser: BrowserSession, request: gr.Request) -> str | None:
        return None if access.may_administer(request) else browser.owner

    def _listed(self, browse: Browse, only: str | None, limit: int) -> tuple[SearchResult, int]:
        def ask(limit: int, offset: int) -> SearchResult:
            return self._studio.pictures(browse.query, only, limit=limit, offset=offset)

        return browse.listed(ask, limit)

    def _shown(self, browse: Browse, only: str | None, seconds: float) -> Shown:
        found, held, problem = SearchResult(entries=(), total=0), 0, ""
        try:
            if seconds:
                browse.reading = not self._studio.index.sync(seconds)
            found, held = self._listed(browse, only, browse.shown)
        except StudioError as error:
            problem = str(error)
        if not held:
            browse.see(found.entries)
        return Shown(
            found=found,
            held=held,
            query=browse.query.strip(),
            problem=problem,
            reading=browse.reading,
            own_only=only is not None,
        )

    def _picked(self, browse: Browse, only: str | None) -> IndexedPicture | None:
        """The picture that is looked at; one that is not there any more is closed, and said."""
        if not browse.picked:
            return None
        try:
            for entry in self._studio.named_pictures([browse.picked], only):
                return entry
            browse.notice = _GONE
        except StudioError as error:
            browse.notice = str(error)
        browse.picked = ""
        return None

    def _news(
        self, browse: Browse, browser: BrowserSession, request: gr.Request, seconds: float
    ) -> dict[Any, Any]:
        only = self._only(browser, request)
        admin = only is None
        shown, picked = self._shown(browse, only, seconds), self._picked(browse, only)
        asked = browse.question
        if asked is not None and asked.beside and asked.names != (browse.picked,):
            asked = browse.question = None
        beside = asked is not None and asked.beside
        many = len(asked.names) if asked is not None and not beside else 0
        look = detail.nothing(browse.at) if shown.found.entries else ""
        if picked is not None:
            look = detail.detail(
                picked, self._studio.catalog, admin=admin, asks=beside, at=browse.at
            )
        unlisted = self._studio.index.problem() if admin else ""
        job = self._studio.exports.job(browser.owner)
        busy = browse.reading or (job is not None and job.active)
        tab = self._tab
        return browse.sent.news(
            {
                "grid": Part(place=tab.grid, value=cards.grid(shown)),
                "bar": Part(
                    place=tab.bar, value=cards.bar(shown, many, browse.orders, admin=admin)
                ),
                "work": Part(place=tab.work, value=cards.exported(job)),
                "note": Part(place=tab.note, value=cards.notice(browse.notice or unlisted)),
                "look": Part(place=tab.look, value=look),
                "timer": ticking(tab.timer, BUSY_SECONDS if busy else IDLE_SECONDS),
            }
        )


def places(tab: GalleryTab) -> list[Any]:
    """What the news of the tab may change."""
    return [tab.bar, tab.work, tab.note, tab.grid, tab.look, tab.timer]
