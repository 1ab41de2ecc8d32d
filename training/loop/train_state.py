"""What learns: weights, their average, the optimizers; into checkpoints and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from pipelines.errors import TrainingError
from training.config import EmaConfig, RunConfig
from training.loop import optim, sharding
from training.loop.checkpoint import Checkpoint
from training.loop.task import Task, trained
from training.loop.tensors import copy, pack_states, swapped, unpack_states


@dataclass(frozen=True, kw_only=True)
class Learning:
    """The parameters that learn (`names` and `weights` in the same order) and all that moves them.

    `net` is what is called: the task's own net, or one that is spread over the processes.
    `plain` is the task's own net, which previews and results are made of. `scaler` is the gradient
    scaler of fp16, else None.
    """

    net: nn.Module
    plain: nn.Module
    names: Sequence[str]
    weights: Sequence[nn.Parameter]
    ema: EMAModel | None
    optimizers: Sequence[Any]
    scaler: Any

    def step(self) -> None:
        """One step of every optimizer and of the average."""
        for optimizer in self.optimizers:
            optimizer.step()
        if self.ema is not None:
            self.ema.step(self.weights)

    def forget_gradients(self) -> None:
        """Sets all gradients to nothing."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights in `net`, in evaluation mode, for a while."""
        return swapped(self.ema, self.weights, self.net)

    @contextmanager
    def finished(self, *, here: bool) -> Iterator[None]:
        """The averaged weights in `plain` for a while, in the processes that need them `here`."""
        with self.averaged(), torch.no_grad():
            targets = [weight for _, weight in trained(self.plain)]
            if targets[0] is self.weights[0]:
                yield
                return
            sharding.hand_over(self.weights, targets, keep=here)
            self.plain.eval()
            if here:
                self.plain.to(self.weights[0].device)
            try:
                yield
            finally:
                self.plain.to("cpu")

    def packed(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """(tensors by file, numbers) of a checkpoint.

        Raises TrainingError where a weight is not finite: such a checkpoint would be the last.
        """
        raw = [sharding.whole(p.detach()) for p in self.weights]
        if not all(bool(torch.isfinite(w).all()) for w in raw):
            raise TrainingError(
                "The weights are not finite any more.",
                "Set a smaller optimizer.lr and start again from the last checkpoint.",
            )
        parts: dict[str, Mapping[str, Tensor]] = {"model": dict(zip(self.names, raw, strict=True))}
        numbers: dict[str, Any] = {"names": list(self.names), "optimizers": []}
        if self.ema is not None:
            average = [sharding.whole(w) for w in self.ema.shadow_params]
            parts["ema"] = dict(zip(self.names, average, strict=True))
            numbers["ema_steps"] = int(self.ema.optimization_step)
        for index, optimizer in enumerate(self.optimizers):
            tensors, plain = pack_states(optimizer.state_dict())
            numbers["optimizers"].append(plain)
            if tensors:
                parts[f"optimizer-{index}"] = {k: sharding.whole(t) for k, t in tensors.items()}
        if self.scaler is not None:
            numbers["scaler"] = self.scaler.state_dict()
        return parts, numbers

    def restore(self, saved: Checkpoint) -> None:
        """The state of a checkpoint. Raises SaveError, TrainingError."""
        numbers = saved.state["learning"]
        if numbers["names"] != list(self.names):
            raise TrainingError(f"The checkpoint {saved.folder} belongs to another net.")
        copy(saved.tensors("model"), self.names, self.weights)
        if self.ema is not None and saved.has("ema"):
            copy(saved.tensors("ema"), self.names, self.ema.shadow_params)
            self.ema.optimization_step = numbers["ema_steps"]
        for index, plain in enumerate(numbers["optimizers"]):
            name = f"optimizer-{index}"
            tensors = saved.tensors(name) if saved.has(name) else {}
            optimizer = self.optimizers[index]
            moved = [p for group in optimizer.param_groups for p in group["params"]]
            optimizer.load_state_dict(unpack_states(tensors, plain, moved))
        if self.scaler is not None and numbers.get("scaler"):
            self.scaler.load_state_dict(numbers["scaler"])


def begin(task: Task, accelerator: Accelerator, config: RunConfig) -> Learning:
    """Everything that learns, on the device and wrapped for several processes."""
    several = accelerator.num_processes > 1
    if config.shard and several:
        # The task's own net waits in main memory for previews and the result.
        net = sharding.sharded(task.net, accelerator.device, accelerator.num_processes)
    else:
        net = task.net.to(accelerator.device)
    named = trained(net)
    weights = [weight for _, weight in named]
    optimizers = [accelerator.prepare_optimizer(o) for o in optim.build(named, config.optimizer)]
    return Learning(
        net=net if config.shard and several else accelerator.prepare_model(net),
        plain=task.net,
        names=[name for name, _ in named],
        weights=weights,
        ema=make_ema(weights, config.ema),
        optimizers=optimizers,
        scaler=accelerator.scaler,
    )


def make_ema(weights: Sequence[nn.Parameter], config: EmaConfig) -> EMAModel | None:
    """The average of `weights` with a warm-up, or None where the recipe wants none."""
    if not config.decay:
        return None
    return EMAModel(
        weights,
        decay=config.decay,
        use_ema_warmup=True,
        power=config.power,
        # PyTorch has not all of these operations for tensors that are spread.
        foreach=not any(sharding.is_spread(weight) for weight in weights),
    )
