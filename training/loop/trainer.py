"""The only training loop.

One update is: `accumulate` micro-batches forward and backward, one clip, one step of the
optimizers, one step of the average. Whatever is random is keyed by its place (`draws`), the order
of the pictures by the seed (`order`), the learning rate by the update: a checkpoint holds weights,
optimizer states and counters, and a resumed run goes on to the bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from PIL import Image
from torch import Tensor

from pipelines import files
from pipelines.errors import OutOfMemoryError, TrainingError
from pipelines.memory import planning
from pipelines.memory.measured import measured
from pipelines.pictures import png
from pipelines.progress import Progress, Report, ShouldStop, Stage, duration
from training import forecast
from training.loop import checkpoint, optim
from training.loop.batches import batches
from training.loop.checkpoint import Checkpoint
from training.loop.draws import key
from training.loop.pace import Pace
from training.loop.run_state import RunEnd, RunState
from training.loop.task import Batch, Task
from training.loop.tensors import not_finite, numbers_of, settle
from training.loop.train_state import begin
from training.loop.validation import held_out_losses
from training.run import Run, sentence

BAD_IN_A_ROW = 3
Tell = Callable[[str], None]


def train(
    run: Run,
    task: Task,
    accelerator: Accelerator,
    *,
    report: Report,
    should_stop: ShouldStop,
    tell: Tell = lambda _: None,
) -> RunEnd:
    """Trains until the last update, a stop, or the end of patience; then publishes the result.

    Raises StudioError. After a stop or a fault the same call goes on from the last checkpoint.
    """
    try:
        return Trainer(run, task, accelerator, report, tell).train(should_stop)
    except Exception as error:
        if not planning.is_out_of_memory(error):
            raise
    raise OutOfMemoryError(
        "There is not enough memory for one training step.",
        "Make batch smaller and accumulate larger, or set gradient_checkpointing = true.",
    )


class Trainer:
    """A training while it lives in this process."""

    def __init__(
        self, run: Run, task: Task, accelerator: Accelerator, report: Report, tell: Tell
    ) -> None:
        config = run.config
        self._tell = tell
        self._run, self._task, self._config = run, task, config
        self._accelerator, self._report = accelerator, report
        self._state = RunState(world=accelerator.num_processes)
        self._saved = -1
        self._pace = Pace(
            total=config.steps,
            pictures_per_update=config.pictures_per_update * accelerator.num_processes,
        )
        set_seed(config.seed)
        if accelerator.is_main_process:
            run.event("start", world=accelerator.num_processes, **task.facts)
        self._learning = begin(task, accelerator, config)
        self._net = self._learning.net

    # --- the walk -----------------------------------------------------------------------------

    def train(self, should_stop: ShouldStop) -> RunEnd:
        """See `train`."""
        if self._is_main:
            checkpoint.remove_drafts(self._run.checkpoints)
        self._accelerator.wait_for_everyone()
        resumed = self._resume()
        self._dry_step()
        self._after_update(again=resumed)
        reason = "finished"
        while self._state.step < self._config.steps:
            reason = self._walk(should_stop)
            if reason != "again":
                break
        self._save()
        if reason == "stopped":
            self._event("stop", step=self._state.step)
        else:
            self._publish(reason)
        return RunEnd(reason=reason, step=self._state.step)

    def _walk(self, should_stop: ShouldStop) -> str:
        """Updates until the end, a stop or a rollback ("again")."""
        waiting = self._batches()
        self._pace.begin(self._state.step)
        while self._state.step < self._config.steps:
            if self._is_out_of_patience():
                return "patience"
            if self._someone(should_stop() or self._run.asked_to_stop()):
                return "stopped"
            if not self._update(waiting):
                self._roll_back()
                return "again"
            self._after_update()
        return "finished"

    def _update(self, waiting: Iterator[Batch]) -> bool:
        """One update; False where too many in a row were not finite."""
        state, config = self._state, self._config
        share = optim.share_of_lr(config.schedule, state.step, config.steps)
        lr = config.optimizer.lr * share * state.lr_scale
        optim.set_lr(self._learning.optimizers, lr)
        seen: list[tuple[dict[str, Tensor], list[str]]] = []
        for micro in range(config.accumulate):
            batch = next(waiting)
            with self._accelerator.accumulate(self._net):
                losses = self._forward(batch, self._place(micro))
                self._accelerator.backward(losses["loss"].mean())
            seen.append(({name: values.detach() for name, values in losses.items()}, batch["ids"]))
        norm = self._accelerator.clip_grad_norm_(self._learning.weights, config.optimizer.clip)
        sums, norm = numbers_of([losses for losses, _ in seen], norm)
        finite = math.isfinite(norm) or self._is_scaled_too_far(sums["loss"])
        finite = not self._someone(not finite)
        if finite:
            self._learning.step()
        elif self._accelerator.scaler is not None:
            self._accelerator.scaler.update()
        self._learning.forget_gradients()
        state.step += 1
        suspects = [] if finite else not_finite(seen)
        self._note(finite, sums, norm, lr, suspects)
        return state.bad < BAD_IN_A_ROW

    def _is_scaled_too_far(self, loss: float) -> bool:
        """fp16 tries scales that are too large; the scaler then skips the step by itself.

        What is not finite at a scale below 1 is so without it: no smaller one would help.
        """
        scaler = self._accelerator.scaler
        return scaler is not None and math.isfinite(loss) and scaler.get_scale() >= 1

    def _place(self, micro: int) -> int:
        rank = self._accelerator.process_index
        return key(self._config.seed, "step", self._state.step, micro, rank)

    def _forward(self, batch: Batch, seed: int, timestep: int | None = None) -> dict[str, Tensor]:
        # Dropout inside the nets reads the global generator.
        torch.manual_seed(seed)
        moved = {
            name: value.to(self._accelerator.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if name != "ids"
        }
        with self._accelerator.autocast():
            result: dict[str, Tensor] = self._net(moved, seed, timestep)
        return result

    def _note(
        self, finite: bool, sums: dict[str, float], norm: float, lr: float, suspects: list[str]
    ) -> None:
        state = self._state
        if finite:
            state.bad = 0
            self._pace.add(sums)
        else:
            state.bad += 1
            state.bad_total += 1
            named = sorted(set(gather_object(suspects)))
            self._event("skipped", step=state.step, samples=named[:50], in_a_row=state.bad)
        if state.step % self._config.log_every == 0 or state.step == self._config.steps:
            values = {name: round(value, 6) for name, value in sums.items() if math.isfinite(value)}
            told = {"lr": lr, "norm": round(norm, 5) if math.isfinite(norm) else None}
            self._event("step", step=state.step, **self._pace.told(state.step), **told, **values)
        self._progress(Stage.TRAINING)

    @property
    def _is_main(self) -> bool:
        return bool(self._accelerator.is_main_process)

    def _progress(self, stage: Stage) -> None:
        if self._is_main:
            self._report(self._pace.progress(stage, self._state.step))

    def _event(self, kind: str, **values: Any) -> None:
        if self._is_main:
            self._run.event(kind, **values)
            if told := sentence(kind, values):
                self._tell(told)

    def _someone(self, flag: bool) -> bool:
        """True on every process where it is true on one."""
        if self._accelerator.num_processes == 1:
            return flag
        value = torch.tensor([float(flag)], device=self._accelerator.device)
        return bool(self._accelerator.reduce(value, "sum").item() > 0)

    def _batches(self, workers: int | None = None) -> Iterator[Batch]:
        return batches(
            self._task,
            self._config,
            first=self._state.step,
            rank=self._accelerator.process_index,
            world=self._accelerator.num_processes,
            device=self._accelerator.device,
            workers=workers,
        )

    def _dry_step(self) -> None:
        """One measured step whose gradients are thrown away: the forecast of the memory."""
        batch = next(self._batches(workers=0), None)
        if batch is None:
            return
        settle(self._net)
        with measured(self._accelerator.device) as peak:
            with self._accelerator.no_sync(self._net):
                loss = self._forward(batch, self._place(0))["loss"].mean()
                self._accelerator.backward(loss)
            self._learning.forget_gradients()
        needed = forecast.of_states(self._net, self._learning.weights, self._config)
        values = forecast.told(needed, peak.bytes, self._accelerator.device, self._config)
        self._event("memory", **values)
        left = (self._config.steps - self._state.step) * self._config.accumulate * peak.seconds
        if self._is_main:
            note = f"{forecast.sentence(values)}; about {duration(left)} at the pace of one step"
            self._report(Progress(stage=Stage.PREPARING, note=note))

    # --- checkpoints --------------------------------------------------------------------------

    def _save(self) -> None:
        """Writes a checkpoint of this update, unless there is one."""
        # From memory and not from the disk, where another process may have just written it.
        if self._saved == self._state.step:
            return
        self._saved = self._state.step
        parts, numbers = self._learning.packed()
        state = {"trainer": asdict(self._state), "learning": numbers}
        if self._is_main:
            checkpoint.save(self._run.checkpoints, self._state.step, parts, state)
            best = self._state.best_step if self._state.best_step >= 0 else None
            checkpoint.rotate(self._run.checkpoints, self._config.checkpoints.keep, best)
            self._run.event("checkpoint", step=self._state.step)
        self._accelerator.wait_for_everyone()

    def _resume(self) -> bool:
        """Goes back to the newest whole checkpoint, if there is one. Raises TrainingError."""
        found, told = checkpoint.newest(self._run.checkpoints)
        for fault in told:
            self._event("damaged", sentence=fault)
        # Nobody writes before everybody has looked.
        self._accelerator.wait_for_everyone()
        if found is not None:
            self._load(found)
            self._event("resume", step=found.step)
        elif told:
            raise TrainingError(
                f"No checkpoint in {self._run.checkpoints} is whole ({told[0]})",
                "Take that folder away to begin anew.",
            )
        return found is not None

    def _load(self, saved: Checkpoint) -> None:
        self._learning.restore(saved)
        self._saved = saved.step
        known = RunState.__dataclass_fields__
        before = saved.state["trainer"]
        self._state = RunState(**{name: value for name, value in before.items() if name in known})
        if "validated" not in before and not self._is_saved_first(saved.step):
            # Earlier versions did not write it: a checkpoint of a stop came behind the validation.
            self._state.validated = saved.step
        if self._state.world != self._accelerator.num_processes:
            self._event("world", before=self._state.world, now=self._accelerator.num_processes)
            self._state.world = self._accelerator.num_processes

    def _roll_back(self) -> None:
        """Back to the last good checkpoint with half the learning rate; once."""
        if self._state.rollbacks:
            raise TrainingError(
                f"The loss was not finite {BAD_IN_A_ROW} times in a row, again after going back to"
                " a checkpoint.",
                f"{self._run.folder / 'events.jsonl'} names the samples; set a smaller"
                " optimizer.lr or take the samples out.",
            )
        found, _ = checkpoint.newest(self._run.checkpoints)
        if found is None:
            raise TrainingError("The loss is not finite, and there is no checkpoint to go back to.")
        self._load(found)
        self._state.rollbacks = 1
        self._state.bad = 0
        self._state.lr_scale *= 0.5
        # The checkpoint of this step knows nothing of the rollback yet.
        self._saved = -1
        self._event("rollback", step=found.step, lr_scale=self._state.lr_scale)
        self._after_update(again=True)

    def _after_update(self, *, again: bool = False) -> None:
        """What is due behind this update.

        `again` after a checkpoint was loaded, for what it does not hold: it was written before its
        own validation, which comes to the same numbers whenever it is done, as its noise is keyed.
        """
        step, config = self._state.step, self._config
        ends = step in (0, config.steps)
        # First, so that nothing that takes long can lose it.
        if self._is_saved_first(step) and not again:
            self._save()
        every = config.validation.every
        if self._state.validated < step and (not step or (every and (ends or not step % every))):
            self._validate()
        if self._task.preview is not None and (every := config.preview.every):
            painted = again and self._run.preview(step).exists()
            if (ends or not step % every) and not self._someone(painted):
                self._preview()

    def _is_saved_first(self, step: int) -> bool:
        every = self._config.checkpoints.every
        return step == 0 or (every > 0 and step % every == 0)

    def _validate(self) -> None:
        """The loss on held-out pictures with fixed noise at fixed timesteps, averaged weights."""
        if not self._task.held_out_batches:
            return
        self._progress(Stage.VALIDATING)
        with self._learning.averaged():
            per_timestep = held_out_losses(
                self._task, self._config, self._accelerator, self._forward
            )
        value = sum(per_timestep) / len(per_timestep)
        state = self._state
        if value < state.best:
            state.best, state.best_step, state.waited = value, state.step, 0
        else:
            state.waited += 1
        state.validated = state.step
        shown = [round(v, 6) if math.isfinite(v) else None for v in per_timestep]
        loss = round(value, 6) if math.isfinite(value) else None
        self._event("validation", step=state.step, loss=loss, by_timestep=shown)

    def _is_out_of_patience(self) -> bool:
        patience = self._config.validation.patience
        return patience is not None and self._state.waited >= patience

    def _preview(self) -> None:
        self._progress(Stage.PREVIEWING)
        paint = self._task.preview
        if paint is None:
            return
        with self._learning.finished(here=self._is_main):
            sheet = self._painted(paint) if self._is_main else None
        if sheet is None:
            return
        files.write(self._run.preview(self._state.step), png(sheet))
        self._run.event("preview", step=self._state.step)

    def _painted(self, paint: Callable[[], Image.Image]) -> Image.Image | None:
        """A sample sheet; None, and a sentence, where there is too little memory for it."""
        try:
            return paint()
        except (MemoryError, RuntimeError) as error:
            if not planning.is_out_of_memory(error):
                raise
        self._event("unpainted", step=self._state.step)
        return None

    def _publish(self, reason: str) -> None:
        if self._state.bad_total >= self._state.step > 0:
            raise TrainingError(
                "No update was finite, so nothing was learned.",
                f"{self._run.folder / 'events.jsonl'} names the samples; look at their features.",
            )
        self._progress(Stage.SAVING)
        with self._learning.finished(here=self._is_main):
            if self._is_main:
                told = self._task.published(self._run.result)
                facts = {"step": self._state.step, "reason": reason, **told}
                data = (json.dumps(facts, indent=1) + "\n").encode()
                files.write(self._run.result / "training.json", data)
                self._run.event("end", **facts)
        self._accelerator.wait_for_everyone()
