"""Weights, gradients and optimizer states spread over the processes (FSDP2), for nets that are
too large for one GPU.

Checkpoints and results are whole: they do not depend on how many processes wrote them.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def sharded(net: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """A copy of `net` of which every process holds its share; blocks are gathered one by one.

    Source: https://docs.pytorch.org/docs/2.13/distributed.fsdp.fully_shard.html
    """
    # Each unit moves to the device by itself: the whole net may not fit there.
    spread = copy.deepcopy(net)
    mesh = init_device_mesh(device.type, (processes,))
    for block in units(spread):
        fully_shard(block, mesh=mesh)
    # Never kept after a forward pass: averaged weights take turns with the raw ones.
    fully_shard(spread, mesh=mesh, reshard_after_forward=True)
    return spread


def units(net: nn.Module) -> list[nn.Module]:
    """The members of lists of layers that share no parameter with another one."""
    lists = [m for m in net.modules() if isinstance(m, nn.ModuleList)]
    found = [block for layers in lists for block in layers]
    # A list within a block is gathered with it.
    inner = {id(m) for block in found for m in block.modules() if m is not block}
    outer = [block for block in found if id(block) not in inner]
    owners = Counter(id(p) for block in outer for p in block.parameters())
    if any(count > 1 for count in owners.values()):
        return []
    return [block for block in outer if any(True for _ in block.parameters())]


def is_spread(tensor: Tensor) -> bool:
    """True where every process holds only its share."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in main memory where it was spread: then every process has to ask."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """`tensor`, known whole to every process, spread as `target` is."""
    if not isinstance(target, DTensor) or tensor.shape != target.shape:
        return tensor
    moved = tensor.to(target.device)
    return distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def hand_over(weights: Iterable[Tensor], targets: Sequence[nn.Parameter], *, keep: bool) -> None:
    """Copies spread weights into the plain `targets` in the processes that `keep` them."""
    for source, target in zip(weights, targets, strict=True):
        gathered = whole(source)
        if keep:
            target.copy_(gathered)
