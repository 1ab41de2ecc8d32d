"""Where a training runs: one processor, one GPU, or several processes of a launcher."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from pipelines.errors import RequestError
from pipelines.memory.probe import has_bf16
from training.config import RunConfig
from training.predictions import SHORT


def make_accelerator(config: RunConfig) -> Accelerator:
    """The device side of a run: one process, or one of several under `accelerate launch`.

    Raises RequestError.
    """
    check_precision(config)
    precision = "no" if config.precision == "fp32" else config.precision
    # Stages of other precision follow each other in one process; the processes stay connected.
    AcceleratorState._reset_state()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(
        mixed_precision=precision,
        # Without this, processes on processors do not find each other.
        cpu=several and not torch.cuda.is_available(),
        gradient_accumulation_steps=config.accumulate,
        # The first process may compute features for days while the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))],
    )


def check_precision(config: RunConfig) -> None:
    """Raises RequestError for a precision that this machine does not compute in."""
    has_gpu = torch.cuda.is_available()
    if config.precision == "fp16" and not has_gpu:
        raise RequestError(
            "precision", "fp16 needs an NVIDIA GPU.", "Choose bf16 or fp32 on this machine."
        )
    # Accelerate would take emulation for support, which is right and slow.
    if config.precision != "bf16" or not has_gpu:
        return
    if has_bf16("cuda"):
        return
    no_fp16 = config.optimizer.name == "muon" or config.shard
    raise RequestError(
        "precision",
        "This GPU does not compute in bf16.",
        "Choose fp32: fp16 goes neither with muon nor with shard."
        if no_fp16
        else "Choose fp16, or fp32 where fp16 does not learn.",
    )


def computes_in(config: RunConfig) -> torch.dtype:
    """The precision of the products, and of a frozen net that has to answer in it."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)


@contextmanager
def lent(net: nn.Module, device: torch.device) -> Iterator[None]:
    """A frozen `net` on `device` for a while; between its uses the training needs that memory."""
    try:
        # Within, because half of it may be there when the memory ends.
        net.to(device)
        yield
    finally:
        net.to("cpu")


@contextmanager
def attention(latents: Tensor, patch: int) -> Iterator[None]:
    """Within it, `latents` (B, C, h, w) are attended to by the kernel that suits their device.

    The fused kernel for processors is made for long sequences and slow backwards: on short ones it
    takes as long as half of the matrix products of the whole net. Plain products are faster there,
    if bfloat16 stays bfloat16 (docs/benchmarks.md); torch widens it unless told otherwise.
    """
    if latents.device.type != "cpu" or latents[0, 0].numel() > SHORT * patch**2:
        yield
        return
    with _plain_products():
        yield


_PLAIN = ContextVar("plain products", default=False)


@contextmanager
def _plain_products() -> Iterator[None]:
    # For all devices, whatever the name says.
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    chosen = _PLAIN.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _PLAIN.reset(chosen)
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def checkpointed(block: Callable[..., Any], *inputs: Any) -> Any:
    """`block(*inputs)`, computed again on the way back instead of being kept.

    By the same kernel of attention as on the way forward, where it is called outside of
    `attention`: another one keeps other tensors, which torch refuses.
    """
    plain = _PLAIN.get()

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _plain_products() if plain else nullcontext()

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
