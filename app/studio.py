"""Every verb that the page may call. No gradio, no torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import doctor, hardware, hosting, sweeping
from app.doctor import Finding
from app.gallery import metadata, thumbnails
from app.gallery.index import IndexedPicture, SearchResult
from app.hardware import Hardware
from app.jobs.job import PAINT, Job
from app.models import own_models
from app.painting.worker import EngineState
from app.parts import StudioParts, assemble
from app.settings import Settings
from app.training import orders
from pipelines import pictures
from pipelines.catalog import ModelSpec
from pipelines.errors import (
    BusyError,
    RecipeError,
    RequestError,
    StudioError,
    model_errors,
    printable,
)
from pipelines.memory.planning import MemoryRequest
from pipelines.models import hub_rows
from pipelines.request import GenerationRequest, complete
from pipelines.request_values import MAX_PROMPT
from pipelines.text import prompt_files, seen_words, styles, tokens
from pipelines.text.tokens import Tokens

log = logging.getLogger(__name__)
# Deleting a picture must not take long in a large gallery; a prompt that was used before all of
# these is encoded again when it is wanted.
_LOOKED_THROUGH = 2000


@dataclass(frozen=True, kw_only=True)
class Start:
    """A picture to start from: its name in a request, its file, its size in pixels."""

    name: str
    path: Path
    width: int
    height: int


class Studio:
    """The studio behind the page: models, jobs, files and the painting process."""

    def __init__(self, parts: StudioParts) -> None:
        self.settings = parts.settings
        self.catalog = parts.catalog
        self.gallery = parts.gallery
        self.index = parts.index
        self.forecasts = parts.forecasts
        self.store = parts.store
        self.models = parts.models
        self.imports = parts.imports
        self.exports = parts.exports
        self.lora_exports = parts.lora_exports
        self.trainings = parts.trainings
        self.lora_work = parts.lora_work
        self._worker = parts.worker
        self._jobs = parts.jobs

    @classmethod
    def of(cls, settings: Settings) -> Studio:
        """The studio of a workspace, with a painting process, or on ZeroGPU what stands for it."""
        return cls(assemble(settings))

    def start(self) -> None:
        """Starts the painting process and the jobs; drafts of dead processes go."""
        self._worker.start(preload=self.catalog.default.id)
        self._jobs.start()
        # Last: it may take long where there are many files.
        sweeping.sweep(self.settings)

    def close(self) -> None:
        """Stops what runs for the page, and ends the painting process."""
        self._jobs.close()
        self.exports.close()
        self.lora_exports.close()
        self._worker.close()

    def engine(self) -> EngineState:
        """What the painting process does: starting, ready, painting, lost, and on which device."""
        return self._worker.state

    def hardware(self) -> Hardware:
        """What this computer has, and what of it is free."""
        return hardware.look(self.engine().machine, self.settings.workspace)

    def examine(self) -> tuple[Finding, ...]:
        """What a helper would ask first: the findings of `launch.py doctor`, nobody named."""
        engine = self.engine()
        found = list(doctor.examine(self.settings, lambda: engine.machine))
        if engine.message:
            state: doctor.Verdict = "fault" if engine.phase == "lost" else "warning"
            said = doctor.redacted(engine.message)
            found.append(Finding(name="painting process", state=state, fact=said))
        if problem := self.store.problem:
            said = doctor.redacted(problem)
            found.append(Finding(name="jobs", state="warning", fact=said))
        return tuple(found)

    def prompt_bytes(self) -> int:
        """What encoded prompts occupy on the disk."""
        return prompt_files.size(self.settings.prompts)

    def clear_prompts(self) -> int:
        """Deletes the encoded prompts. Returns the bytes freed."""
        return prompt_files.clear(self.settings.prompts)

    def models_changed(self) -> None:
        """Models came or went: the list and the catalog are read again."""
        self.models.refresh()

    def remove_model(self, model_id: str) -> int:
        """Deletes a model, downloaded or one's own; the bytes freed. Raises StudioError."""
        if self._jobs.wants(model_id):
            raise BusyError(f"A picture is being painted with “{model_id}”.", "Stop it first.")
        if training := self.trainings.wants(model_id):
            raise BusyError(f"The training “{training}” learns on “{model_id}”.", "Stop it first.")
        if not own_models.is_own(self.settings.models, model_id):
            return self.models.remove(model_id)
        try:
            return own_models.remove(self.settings.models, model_id)
        finally:
            self.models_changed()

    def remove_lora(self, name: str) -> int:
        """Deletes a LoRA of the user; the bytes freed. Raises StudioError."""
        if self._jobs.wants_lora(name):
            raise BusyError(f"A picture is being painted with the LoRA “{name}”.", "Stop it first.")
        with model_errors():
            return self.catalog.loras.remove(name)

    def forecast(self, model_id: str, wish: MemoryRequest) -> str:
        """What painting `wish` would need; "" where unknown. Raises StudioError for the model."""
        return self.forecasts.of(self.engine().machine, self.model(model_id), wish)

    def needs(self) -> dict[str, str]:
        """What released models would need, before they are downloaded; "" where unknown."""
        machine, rows = self.engine().machine, hub_rows.known()
        return {key: self.forecasts.before_download(machine, row) for key, row in rows.items()}

    def model(self, model_id: str) -> ModelSpec:
        """The model called `model_id`. Raises UnknownNameError."""
        return self.catalog.find(model_id)

    def count(
        self, model_id: str, prompt: str, style: str = styles.NO_STYLE, *, cleaned: bool = False
    ) -> Tokens:
        """The prompt, inside its style, as the model reads it. Raises StudioError.

        `cleaned`: after the cleaning of the authors.
        """
        if len(prompt) > MAX_PROMPT:
            raise RequestError(
                "prompt",
                f"The prompt has {len(prompt):,} characters; the limit is {MAX_PROMPT:,}.",
            )
        text, _ = styles.find(style).apply(prompt, "")
        return tokens.tokenize(text, self.model(model_id), "authors" if cleaned else "lower")

    def unseen(self, model_id: str, prompt: str) -> tuple[str, ...]:
        """Words of `prompt` that the model has never seen, if it says. Raises StudioError."""
        return seen_words.unseen(prompt, self.model(model_id))

    def request(self, values: Mapping[str, Any]) -> GenerationRequest:
        """A checked request from the values of a form. Raises RequestError with the field."""
        return complete(values, self.catalog)

    def submit(
        self,
        request: GenerationRequest,
        owner: str,
        *,
        client: str = "",
        grace: float | None = None,
        passing: bool = False,
    ) -> Job:
        """Queues a request, as `JobQueue.submit` does.

        Raises BusyError; RequestError for more than a Space allows.
        """
        hosting.check(request)
        trusted = grace is None and not passing
        return self._jobs.submit(
            request, owner, client=client, grace=grace, passing=passing, trusted=trusted
        )

    def stop(self, job_id: str, owner: str) -> None:
        """Asks a job to stop at its next step."""
        self._jobs.stop(job_id, owner)

    def stop_all(self, owner: str) -> int:
        """Asks every job of the owner to stop; how many there were."""
        return self._jobs.stop_all(owner)

    def job(self, job_id: str, owner: str) -> Job | None:
        """A snapshot of the owner's job, or None."""
        return self._jobs.get(job_id, owner)

    def latest(self, owner: str) -> Job | None:
        """The owner's active job, else the last one, or None."""
        return self._jobs.latest(owner)

    def wait(self, job_id: str, owner: str, timeout: float) -> Job | None:
        """Blocks until the job has ended or `timeout` seconds are over."""
        return self._jobs.wait(job_id, owner, timeout)

    def jobs(self, owner: str | None) -> list[Job]:
        """Jobs of every kind: what runs, what waits in its order, what has ended, the last first.

        With an `owner` theirs alone; None is for people at the computer, who see all.
        """
        return self._jobs.jobs(owner)

    def obey(self, verb: str, job_id: str, owner: str | None, value: str | None = None) -> str:
        """Stops, retries, duplicates or moves a job, or changes its priority; says what was done.

        `verb`: stop, retry, duplicate, move (`value`: up, down, first, last) or priority (low,
        normal, high). With an `owner` only their jobs are found, and priorities are refused: None
        is for people at the computer. Raises RequestError, BusyError.
        """
        return self._jobs.obey(verb, job_id, value or "", owner)

    def starts(self) -> set[str]:
        """The names of the pictures to start from that jobs were asked for with."""
        asked = [job.request.init for job in self._jobs.jobs() if job.kind == PAINT]
        return {name for name in asked if name is not None}

    @property
    def paused(self) -> bool:
        """True while no waiting job begins."""
        return self._jobs.paused

    def pause_jobs(self) -> None:
        """Lets no waiting job begin; what runs goes on. For people at the computer."""
        self._jobs.pause(True)

    def resume_jobs(self) -> None:
        """Lets waiting jobs begin again."""
        self._jobs.pause(False)

    def keep_start(self, file: Path) -> Start:
        """Keeps a copy of a picture to start from. Raises RecipeError for what is no picture."""
        name = pictures.keep(file, self.settings.inputs)
        return self.find_start(name)

    def find_start(self, name: str) -> Start:
        """The kept picture called `name`. Raises RequestError."""
        path = pictures.find(name, self.settings.inputs)
        width, height = pictures.load(path).size
        return Start(name=name, path=path, width=width, height=height)

    def picture(self, name: str) -> Path:
        """The file of the picture "YYYY-MM-DD/....png". Raises RecipeError."""
        path = self.gallery.path(name)
        # What a link leads to is somewhere else, and nobody's picture.
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            raise RecipeError("There is no such picture.")
        return path

    def delete_picture(self, name: str, owner: str) -> None:
        """Deletes a picture of the owner's last job, and what only it needed.

        Raises RecipeError for any other picture, BusyError while the job runs, SaveError.
        """
        job = self.latest(owner)
        file = next((one for one in job.pictures if one.name == name), None) if job else None
        if job is None or file is None:
            raise RecipeError("There is no such picture.")
        if job.active:
            raise BusyError("The job of this picture is still running.", "Stop it, or wait for it.")
        self._delete(name)
        self._forget([name], [file.request])

    def pictures(
        self, query: str, owner: str | None, *, limit: int = 0, offset: int = 0
    ) -> SearchResult:
        """What `query` finds in the gallery; for an `owner` only what was painted for them since
        the studio was started. Raises RequestError, SaveError, BusyError."""
        only = None if owner is None else self._jobs.pictures(owner)
        return self.index.search(query, only=only, limit=limit, offset=offset)

    def named_pictures(self, names: Collection[str], owner: str | None) -> Sequence[IndexedPicture]:
        """Those pictures of the gallery that are called so; for an `owner` as in `pictures`."""
        allowed = names if owner is None else self._jobs.pictures(owner) & set(names)
        return self.index.search(only=allowed).entries

    def train_on(self, entries: Sequence[IndexedPicture]) -> str:
        """Begins to prepare a training on pictures of the gallery; the id of the preparation.
        Raises RequestError, SaveError."""
        prepared = self.trainings.preparations
        base = self.catalog.default.id
        made = prepared.new("subject", base)
        prepared.change(made.id, recipe=orders.recipe_for("subject", base, self.catalog))
        for entry in entries:
            made = prepared.add(made.id, entry.path.name, entry.path)
        return made.id

    def star_pictures(self, names: Collection[str], *, on: bool) -> None:
        """Stars pictures, or takes their stars away. Raises RecipeError, SaveError, BusyError."""
        for name in names:
            self.picture(name)
        self.index.star(*names, on=on)

    def delete_pictures(self, names: Collection[str]) -> int:
        """Deletes pictures of the gallery, and what only they needed; how many there were.

        Raises BusyError for those of a job that runs, RecipeError, SaveError.
        """
        if self._jobs.paints(names):
            raise BusyError("A job that runs has painted some of them.", "Stop it, or wait for it.")
        found = self.index.search(only=names).entries
        deleted = []
        try:
            for entry in found:
                self._delete(entry.name)
                deleted.append(entry)
        finally:
            requests = [entry.request for entry in deleted if entry.request is not None]
            self._forget([entry.name for entry in deleted], requests)
            self.index.sync()
        return len(deleted)

    def _delete(self, name: str) -> None:
        """Deletes a picture and what is kept beside it. Raises RecipeError, SaveError."""
        self.gallery.remove(name)
        self._jobs.drop(name)
        self.forget_thumbs([name])

    def _forget(self, names: Collection[str], requests: Iterable[GenerationRequest]) -> None:
        """What was kept of pictures that are gone."""
        # A list of stars that others use, or that cannot be written, is no reason to stop.
        with suppress(StudioError):
            self.index.star(*names, on=False)
        self._forget_prompts(requests)

    def forget_thumbs(self, names: Collection[str]) -> None:
        """Deletes the small versions of pictures that are gone."""
        thumbnails.forget(names, self.settings.thumbs)

    def thumb(self, name: str) -> bytes:
        """A small version of the picture, as WebP. Raises RecipeError."""
        return thumbnails.read(self.picture(name), name, self.settings.thumbs)

    def _forget_prompts(self, requests: Iterable[GenerationRequest]) -> None:
        try:
            self._forget_texts({text for one in requests for text in _read_texts(one)})
        except (StudioError, OSError) as error:
            # The pictures are gone; what stays is found by Clear, or is the least used one day.
            log.warning("features are not forgotten (%s)", printable(error, 80))

    def _forget_texts(self, texts: set[str]) -> None:
        """Deletes the encoded texts that no other picture was painted from, as far as is seen.

        The empty one, which nearly every picture needs, stays.
        """
        texts = texts - {""}
        for other in self.gallery.newest(_LOOKED_THROUGH):
            # Its style may be gone since.
            with suppress(StudioError):
                texts -= _read_texts(other)
            if not texts:
                return
        for model in self.catalog:
            with suppress(StudioError):
                for text in texts:
                    ids = tokens.tokenize(text, model, "lower").ids
                    prompt_files.forget(self.settings.prompts, ids)

    def recipe(self, file: Path) -> GenerationRequest:
        """The request inside a picture of this studio. Raises RecipeError."""
        return metadata.read(file).request


def _read_texts(request: GenerationRequest) -> set[str]:
    """What a model reads of it, as far as models agree on that. Raises UnknownNameError."""
    return {tokens.clean(text, request.cleaning) for text in request.texts}
