"""The models that can be had, are had, and are given up: what the command line and the page ask.

No torch and no gradio; the parts that speak HTTP are loaded when something is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.models import linked_parts, own_models
from app.settings import Settings
from lora_manager import folders
from pipelines.catalog import Catalog, ModelSpec
from pipelines.errors import ModelError, UnknownNameError
from pipelines.models import hub_rows, hub_store, single_files
from pipelines.models import local_weights as found
from pipelines.models.hub_rows import HubSource, Known
from pipelines.models.hub_store import HubFolder
from pipelines.progress import ShouldStop

if TYPE_CHECKING:
    from pipelines.models.downloads import DownloadPlan, PlannedFile
    from pipelines.models.hub import Hub
    from pipelines.models.transfer import Reading


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """One part of a released model. `folder` is where it lies, `inside` whether that is ours."""

    source: HubSource
    folder: Path | None
    inside: bool
    shared_with: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A model of the list. `state`: shipped, own, downloaded, broken, or known (not here yet).

    `left` is what a download would fetch, in bytes; `exact` whether that is known to the byte.
    `arrived` are the bytes on disk of what only this model has: more than 0 with the state known
    means that a download of it was begun.
    """

    id: str
    title: str
    licence: str
    state: str
    kind: str
    size: int
    left: int
    exact: bool
    problem: str = ""
    parts: tuple[ModelPart, ...] = ()
    summary: str = ""
    arrived: int = 0

    def as_json(self) -> dict[str, Any]:
        """The row for programs."""
        return {
            "id": self.id,
            "title": self.title,
            "licence": self.licence,
            "state": self.state,
            "kind": self.kind,
            "bytes": self.size,
            "bytes_left": self.left,
            "exact": self.exact,
            "problem": self.problem,
            "parts": [
                {
                    "part": part.source.part,
                    "repo": part.source.repo,
                    "revision": part.source.revision,
                    "bytes": part.source.size,
                    "folder": str(part.folder) if part.folder else None,
                    "shared_with": list(part.shared_with),
                }
                for part in self.parts
            ],
        }


class ModelStore:
    """The models of one workspace. Cheap to make; every call reads the disk anew."""

    def __init__(self, settings: Settings, *, hub: Callable[[], Hub] | None = None) -> None:
        self._settings = settings
        self._store = HubFolder(settings.models / hub_store.FOLDER)
        self._hub = hub or _hub
        self._found: found.LocalWeights | None = None

    @property
    def root(self) -> Path:
        """The folder of downloads."""
        return self._store.root

    @property
    def found(self) -> found.LocalWeights:
        """Weights of other programs, as the last plan has found them."""
        if self._found is None:
            self._found = found.look(self._settings.model_folders)
        return self._found

    def rows(self) -> tuple[ModelRow, ...]:
        """The models that can be chosen first, then the released ones that are not here."""
        catalog = Catalog(user_models=self._settings.models)
        rows = [self._chosen(spec) for spec in catalog if not spec.sources]
        taken = {row.id for row in rows}
        rows += [self._released(m) for m in hub_rows.known().values() if m.id not in taken]
        order = {"shipped": 0, "own": 1, "downloaded": 2, "broken": 3, "known": 4}
        return tuple(sorted(rows, key=lambda row: order[row.state]))

    def problems(self) -> list[str]:
        """One sentence for each model of the user's folder that cannot be used."""
        return Catalog(user_models=self._settings.models).problems

    def unlisted(self) -> tuple[str, ...]:
        """One sentence where nobody can say which models there are."""
        return Catalog(user_models=self._settings.models).unlisted

    def _check_listed(self) -> None:
        for sentence in self.unlisted():
            raise ModelError(sentence, folders.WAY_OUT)

    def known(self, model_id: str) -> Known:
        """A released model. Raises ModelError, UnknownNameError."""
        model = hub_rows.known().get(model_id)
        if model is not None:
            return model
        if any(spec.id == model_id for spec in Catalog(user_models=self._settings.models)):
            raise ModelError(f"“{model_id}” is not one of the released models; it is here already.")
        raise UnknownNameError("model", "released model", model_id, hub_rows.known())

    def plan(
        self,
        model_id: str,
        *,
        check: bool = False,
        own_copy: bool = False,
        report: Callable[[Reading], None] = lambda reading: None,
        should_stop: ShouldStop = lambda: False,
    ) -> DownloadPlan | None:
        """What a download of `model_id` would do, to the byte; None where it was stopped.

        `check` reads what is there already and plans damaged files again; `own_copy` leaves what
        other programs have out of account. Raises StudioError.
        """
        from pipelines.models import downloads

        self._check_listed()
        model = self.known(model_id)
        if not own_copy:
            # What lay elsewhere may be gone since, or have come.
            self._found = None
        places = {} if own_copy else self.found.places(model)
        hub = self._hub()
        try:
            plan = downloads.make_plan(
                model,
                self._store,
                hub,
                found=places,
                check=check,
                report=report,
                should_stop=should_stop,
            )
        finally:
            hub.close()
        if plan is None or own_copy:
            return plan
        items = (replace(i, there=i.entry.size) if self._twin(i) else i for i in plan.items)
        return replace(plan, items=tuple(items))

    def download(
        self,
        plan: DownloadPlan,
        *,
        report: Callable[[Reading], None] = lambda reading: None,
        should_stop: ShouldStop = lambda: False,
    ) -> bool:
        """Does what was planned, converting included. False where it was stopped.

        Raises StudioError.
        """
        from pipelines.models import downloads

        for item in plan.items:
            # Planned as there, and not there yet: `plan` has seen it elsewhere.
            if item.left == 0 and (twin := self._twin(item)):
                linked_parts.borrow(twin, self._place(item))
        # First of all, so that what cannot be linked to is said before anything is fetched; again
        # when the model is installed, because no model reads these folders until then.
        with self._store.settling():
            for place in plan.found.values():
                linked_parts.folder(self._store, place)
        hub = self._hub()
        try:
            return downloads.carry_out(
                plan,
                self._store,
                hub,
                settle=lambda place: linked_parts.folder(self._store, place),
                report=report,
                should_stop=should_stop,
            )
        finally:
            hub.close()

    def _twin(self, item: PlannedFile) -> Path | None:
        """A file of another program that looks like one to be fetched: by its name and size.

        Its hash is compared before it is used, and where it differs the file is fetched all the
        same.
        """
        if item.entry.path != item.source.file or self._place(item).exists():
            return None
        return self.found.copy_of(item.source, item.entry.size)

    def _place(self, item: PlannedFile) -> Path:
        return self._store.commit(item.source.repo, item.commit) / item.entry.path

    def remove(self, model_id: str) -> int:
        """Deletes what only `model_id` reads. Returns the bytes freed. Raises ModelError.

        Parts that were found elsewhere and the models that ship or were made here stay.
        """
        from pipelines.models import downloads

        own = self.removable(model_id)
        freed = 0
        with downloads.alone(self._store, {source.repo for source in own}):
            self._store.uninstall(model_id)
            for source in own:
                commit = self._store.pinned(source)
                if commit is not None:
                    record = self._store.record(source.repo, commit)
                    names = set(record.chosen.get(source.key[2], ()))
                    if source.file:
                        freed += hub_store.sweep(self._store, source, commit)
                    freed += hub_store.erase(self._store, source.repo, commit, names)
            linked_parts.sweep(self._store, self._settings.models)
        return freed

    def removable(self, model_id: str) -> tuple[HubSource, ...]:
        """The downloaded parts that no other model reads, downloaded or own. Raises ModelError."""
        self._check_listed()
        model = self.known(model_id)
        others = [row for row in self._store.installed() if row.id != model_id]
        needed = {part.key for row in others for part in hub_rows.known()[row.id].parts}
        there = [source for source in model.parts if self._is_begun(source)]
        installed = any(row.id == model_id for row in self._store.installed())
        free = (source for source in there if source.key not in needed)
        found = tuple(source for source in free if not self.readers(source))
        if not found and not installed:
            raise ModelError(
                f"“{model_id}” was not downloaded, so there is nothing to remove.",
                "See: launch.py models list",
            )
        return found

    def readers(self, source: HubSource) -> list[str]:
        """The user's own models that read a part which was downloaded."""
        commit = self._store.pinned(source)
        if commit is None:
            return []
        base = self._store.commit(source.repo, commit)
        place = self._store.converted(source, commit) if source.file else base / source.folder
        return own_models.readers(self._settings.models, place)

    def kept(self, model_id: str) -> dict[str, list[str]]:
        """The parts of a released model that own models read, and these. Raises ModelError."""
        readers = {part.label: self.readers(part) for part in self.known(model_id).parts}
        return {label: ids for label, ids in readers.items() if ids}

    def _is_begun(self, source: HubSource) -> bool:
        commit = self._store.pinned(source)
        if commit is None:
            return False
        record = self._store.record(source.repo, commit)
        return (source.file or source.folder) in record.chosen

    def _chosen(self, spec: ModelSpec) -> ModelRow:
        return ModelRow(
            id=spec.id,
            title=spec.title,
            licence=spec.licence,
            state="shipped" if spec.embedded else "own",
            kind="model",
            size=own_models.bytes_in(spec.folder),
            left=0,
            exact=True,
            summary=spec.summary,
        )

    def _released(self, model: Known) -> ModelRow:
        rows = {row.id: row for row in self._store.installed()}
        installed = rows.get(model.id)
        places: Mapping[str, Path] = self._store.places(installed) if installed else {}
        parts = tuple(self._part(model, source, places) for source in model.parts)
        problem = (self._store.lacks(installed) or "") if installed else ""
        state = "known" if installed is None else "broken" if problem else "downloaded"
        missing = [part.source for part in parts if part.folder is None]
        return ModelRow(
            id=model.id,
            title=model.title,
            licence=model.licence,
            state=state,
            kind=model.kind,
            size=model.size,
            left=0 if state == "downloaded" else sum(source.size for source in missing),
            exact=all(source.exact for source in missing),
            problem=problem,
            parts=parts,
            summary=model.summary,
            arrived=sum(self._arrived(s) for s in model.parts if not s.name),
        )

    def _arrived(self, source: HubSource) -> int:
        """The bytes of a part that lie in our folder, whole files or not."""
        commit = self._store.pinned(source)
        if commit is None:
            return 0
        chosen = self._store.record(source.repo, commit).chosen.get(source.key[2], ())
        base = self._store.commit(source.repo, commit)
        places = [base / f"{name}{end}" for name in chosen for end in ("", ".part")]
        return sum(file.stat().st_size for file in places if file.is_file())

    def _part(self, model: Known, source: HubSource, places: Mapping[str, Path]) -> ModelPart:
        folder = places.get(source.part)
        if folder is None:
            folder = self._store.place(source) or self.found.place(source)
        elif single_files.lost_link(folder, source.part):
            # `found` may still name the same file; the next plan looks anew.
            folder = self._store.place(source)
        others = tuple(name for name in hub_rows.shared_by(source) if name != model.id)
        return ModelPart(
            source=source,
            folder=folder if folder is not None and folder.exists() else None,
            inside=folder is not None and folder.is_relative_to(self._store.root),
            shared_with=others,
        )


def _hub() -> Hub:
    from pipelines.models.hub import Hub

    return Hub()
