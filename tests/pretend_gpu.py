"""A GPU that is not there: tensors that lie in main memory and say that they are on `cuda:0`.

As on a GPU, an operation refuses tensors of two devices, a tensor of the GPU is no array of
numpy's, and noise of the processor's generator is not drawn on it. What the processor would have to
wait for is counted. The numbers are the processor's.
"""

from __future__ import annotations

import functools
import linecache
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
_aten = torch.ops.aten
# The operations that may read tensors of both devices.
_BOTH = (
    _aten.copy_,
    _aten.index,
    _aten.index_put,
    _aten.index_put_,
    _aten._index_put_impl_,
    _aten._foreach_copy_,
)


# Attributes and methods that do not come by the operations.
_GET_DATA: Any = Tensor.data.__get__  # type: ignore[attr-defined]
_SET_DATA: Any = Tensor.data.__set__  # type: ignore[attr-defined]


_WHOLE = torch._C.DispatchKey.CompositeImplicitAutograd


class OnCard(Tensor):
    """A tensor of the GPU; `there` holds its numbers."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> OnCard:
        made: OnCard = Tensor._make_wrapper_subclass(
            cls,
            there.shape,
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            layout=there.layout,
            device=GPU,
            requires_grad=there.requires_grad,
        )
        made.there = there
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCard({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{function} of a tensor of the GPU outside of `pretend`")


class PretendedGpu(TorchDispatchMode):
    """While it is on, there is a GPU with `memory` bytes.

    `waits` names the lines that waited for it; `held` are the bytes of its tensors, and `peak`
    those at the highest since it was last set to 0.
    """

    def __init__(self, memory: float = inf) -> None:
        super().__init__()
        self.memory = memory
        self.waits: list[str] = []
        self.held = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = function.overloadpacket
        given = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [leaf for leaf in given if _is_ours(leaf)]
        wanted = kwargs.get("device")
        to_gpu = wanted is not None and torch.device(wanted).type == "cuda"
        named = any(isinstance(one, torch.device) and one.type == "cuda" for one in args)
        if not ours and not to_gpu and not named:
            return function(*args, **kwargs)
        if _comes_whole(function):
            # Under inference mode operations come whole: what they consist of is looked at.
            with self:
                return function._op_dk(_WHOLE, *args, **kwargs)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        generator = kwargs.get("generator")
        if to_gpu and generator is not None and not isinstance(generator, _Generator):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        strangers = [one for one in given if not _is_ours(one) and one.dim()]
        if ours and strangers and name not in _BOTH:
            raise RuntimeError(f"{function}: tensors on two devices, cuda:0 and cpu")
        leaves = bool(ours) and wanted is not None and not to_gpu
        arrives = not ours and to_gpu and bool(given)
        if name in (_aten._local_scalar_dense, _aten.nonzero) or leaves or arrives or strangers:
            self.waits.append(_line())
        originals = {id(_there(one)): one for one in ours}
        result = function(*_mapped(_there, args), **_mapped(_there, kwargs))
        if leaves:
            return result
        return _mapped(lambda one: self.wrapped(one, originals), result)

    def wrapped(self, one: Any, originals: dict[int, Any]) -> Any:
        """What an operation gave, as a tensor of the GPU; `originals` are those it was given."""
        if not isinstance(one, Tensor) or _is_ours(one):
            return one
        if id(one) in originals:
            return originals[id(one)]
        self._count(one)
        # What is no inference tensor must not look like one.
        if one.is_inference() == torch.is_inference_mode_enabled():
            return OnCard(one)
        with torch.inference_mode(one.is_inference()):
            return OnCard(one)

    def _count(self, there: Tensor) -> None:
        storage = there.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        if self.held + size > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self._storages.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.held -= size


class _Driver(TorchFunctionMode):
    """Answers where torch would ask the driver: which GPU, and which attention it has."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        # By far the most are given none.
        if any(isinstance(one, torch.device | str) for one in (*args, *kwargs.values())):
            args, kwargs = _mapped(_indexed, args), _mapped(_indexed, kwargs)
        if function == _GET_DATA and _is_ours(args[0]):
            return args[0].detach()
        if function == _SET_DATA:
            return _set_data(*args)
        if function == Tensor.tolist and _is_ours(args[0]):
            return args[0].cpu().tolist()
        if function is functional.scaled_dot_product_attention and _is_ours(args[0]):
            result = function(*_mapped(_there, args), **_mapped(_there, kwargs))
            return self._gpu.wrapped(result, {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU:
            return function(*args, **{**kwargs, "device": "cpu"}).to(GPU)
        return function(*args, **kwargs)


def _set_data(tensor: Tensor, data: Tensor) -> None:
    """A weight keeps its object where its numbers move."""
    there = vars(data).get("there")
    _SET_DATA(tensor, data)
    vars(tensor).pop("there", None)
    if there is not None:
        vars(tensor)["there"] = there


def _indexed(one: Any) -> Any:
    """Without an index it is the current GPU, which torch would ask for."""
    if isinstance(one, torch.device):
        return GPU if one.type == "cuda" else one
    return GPU if isinstance(one, str) and one == "cuda" else one


class _Generator(torch.Generator):
    """The GPU's generator; its numbers are not those of a real one."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != "cuda":
            return _TorchGenerator(device)
        # What it draws with here; its kind says that it is the GPU's.
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


_TorchGenerator = torch.Generator


class _Event:
    """A moment of the GPU, or a queue of its work; it is always over."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """Nothing runs behind."""

    synchronize = wait = wait_stream = wait_event = record


@contextmanager
def pretend(monkeypatch: pytest.MonkeyPatch, memory: float = inf) -> Iterator[PretendedGpu]:
    """There is a GPU inside."""
    gpu = PretendedGpu(memory)
    none: Callable[..., Any] = lambda *_, **__: None  # noqa: E731
    # transformers reads weights in threads of its own, where no mode is on.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    for name in ("_lazy_init", "empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, none)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: gpu.held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: gpu.peak)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda *_: setattr(gpu, "peak", gpu.held)
    )
    for name in ("Event", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, _Event)
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(Tensor, "pin_memory", lambda one: one)
    monkeypatch.setattr(Tensor, "record_stream", none)
    # torch's own for tensors that only pretend: without it, views would ask the driver.
    torch._C._ensureCUDADeviceGuardSet()
    with gpu, _Driver(gpu):
        yield gpu


def _is_ours(one: Any) -> bool:
    return isinstance(one, Tensor) and "there" in vars(one)


def _there(one: Any) -> Any:
    return vars(one)["there"] if _is_ours(one) else one


@functools.cache
def _comes_whole(function: Any) -> bool:
    has: Callable[[str, Any], bool] = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(function.name(), _WHOLE)


def _leaves(given: Any) -> Iterator[Any]:
    """What lies in the lists that operations take and give. torch's own walk, which knows many more
    kinds, took a quarter of the time of every test."""
    if isinstance(given, tuple | list):
        for one in given:
            yield from _leaves(one)
    elif isinstance(given, dict):
        for one in given.values():
            yield from _leaves(one)
    else:
        yield given


def _mapped(change: Callable[[Any], Any], given: Any) -> Any:
    """The same lists with each leaf changed."""
    kind = type(given)
    if kind is tuple or kind is list:
        return kind(_mapped(change, one) for one in given)
    if kind is dict:
        return {name: _mapped(change, one) for name, one in given.items()}
    if kind.__module__ == "torch.return_types":
        return kind(_mapped(change, one) for one in given)
    return change(given)


def _line() -> str:
    """The line of ours, or of a scheduler, that came here."""
    frame = sys._getframe(1)
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
        assert frame.f_back is not None
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file.rpartition('/')[2]}:{line} {linecache.getline(file, line).strip()}"
