"""Optimizers from libraries, and the learning rate as a pure function of the update."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipelines.errors import RequestError
from training.config import OptimizerConfig, ScheduleConfig


def build(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> list[torch.optim.Optimizer]:
    """One optimizer, or two for "muon": Muon (arXiv 2502.16982) takes the matrices of the blocks,
    AdamW the rest. Raises RequestError where a library is missing."""
    parameters = [(name, p) for name, p in named if p.requires_grad]
    betas = (config.beta1, config.beta2)
    decay = config.weight_decay
    if config.name == "muon":
        matrices = [p for name, p in parameters if _is_hidden_matrix(name, p)]
        rest = [p for name, p in parameters if not _is_hidden_matrix(name, p)]
        if not matrices:
            return [_adamw(rest, config)]
        # Scaled to the size of AdamW's updates, so that one learning rate serves both.
        muon = torch.optim.Muon(
            matrices, lr=config.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        return [muon, _adamw(rest, config)]
    weights = [p for _, p in parameters]
    if config.name == "prodigy":
        prodigy = _library("prodigyopt", "Prodigy")
        return [prodigy(weights, lr=config.lr, betas=betas, eps=config.eps, weight_decay=decay)]
    if config.name == "adamw8bit":
        adamw8bit = _library("bitsandbytes.optim", "AdamW8bit")
        return [adamw8bit(weights, lr=config.lr, betas=betas, eps=config.eps, weight_decay=decay)]
    return [_adamw(weights, config)]


def _adamw(weights: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        weights,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        foreach=True,
    )


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Muon is made for matrices between hidden layers: not for tables, inputs and outputs."""
    path = f".{name}"
    is_block = ".transformer_blocks." in path or ".block." in path
    is_table = "embedding" in name or "scale_shift_table" in name or "relative_attention" in name
    return parameter.ndim == 2 and is_block and not is_table


def _library(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        package = module.partition(".")[0]
        raise RequestError(
            "optimizer.name",
            f"This optimizer needs the package {package}, which is not installed.",
            f"Install it with: pip install {package}; or choose adamw.",
        ) from None


def share_of_lr(schedule: ScheduleConfig, done: int, total: int) -> float:
    """The factor on the learning rate of update `done` (from 0) of `total`."""
    if done < schedule.warmup:
        return (done + 1) / (schedule.warmup + 1)
    if schedule.kind == "constant":
        return 1.0
    progress = min(1.0, (done - schedule.warmup) / max(1, total - schedule.warmup))
    falling = (
        (1 - progress) if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    )
    return schedule.floor + (1 - schedule.floor) * falling


def set_lr(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Gives every parameter group the learning rate `lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
