"""A pretended GPU for tests: CPU tensors that report the device cuda:0 to the code under test.

Inside `pretended_gpu()` a tensor that is created on, or moved to, `cuda` is a `GpuTensor`: its
operations run on the CPU, under autograd and autocast. The rig raises where devices are mixed, as
CUDA does, and counts host synchronisations, copies between host and device, and kernel launches by
the line of `engine/` that caused them. With a memory limit, allocations beyond it raise
`torch.OutOfMemoryError`.

An attention kernel of the CPU counts as one launch, like the fused kernel of a GPU. What differs
from a GPU: the C++ part of torch sees CPU tensors, so the autocast lists are those of the CPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_any, tree_flatten, tree_map, tree_map_only

from tests.support.paths import REPO

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")

_ENGINE = str(REPO / "engine") + "/"

# Ops that wait for the device: their result's shape or value is needed on the host.
_SYNCHRONISING = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "bool",
    aten.bincount.default: "bincount",
    aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique",
}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
_NOT_DETERMINISTIC = {aten.cumsum.default, aten.cumsum_.default, aten.cumsum.out}
"""Of floating point: CUDA has no deterministic kernel."""
_COPIES = {aten.copy_.default, aten._foreach_copy_.default}


@dataclass
class Counts:
    """What the code under test did on the pretended GPU, by place (file:line in engine/)."""

    synchronisations: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number by (place, operation): the host waits until the device has finished."""
    pageable: Counter[str] = field(default_factory=Counter)
    """Copies from the host out of memory that is not pinned; each also waits."""
    launches: Counter[str] = field(default_factory=Counter)
    """Operations on GPU tensors that launch a kernel; views do not."""
    cache_emptied: list[int] = field(default_factory=list)
    """Bytes that were allocated at each call of `torch.cuda.empty_cache`."""

    def clear(self) -> None:
        """Start counting again."""
        self.synchronisations.clear()
        self.pageable.clear()
        self.launches.clear()
        self.cache_emptied.clear()

    def summary(self) -> str:
        """The totals, and the places that synchronise, one line each."""
        lines = [
            f"{self.launches.total()} launches, {self.synchronisations.total()} host "
            f"synchronisations, {self.pageable.total()} pageable copies"
        ]
        for (place, name), count in self.synchronisations.most_common():
            lines.append(f"  {count} x {name} at {place}")
        for place, count in self.pageable.most_common():
            lines.append(f"  {count} x pageable copy at {place}")
        return "\n".join(lines)


class _Memory:
    """Bytes of the storages that GPU tensors hold, and their limit."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.allocated = 0
        self.peak = 0
        self._users: dict[int, tuple[int, int]] = {}

    def hold(self, inner: Tensor) -> _Held:
        """Count the storage of a tensor for as long as the result lives."""
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        users, _ = self._users.get(key, (0, 0))
        if users == 0:
            if self.limit is not None and self.allocated + size > self.limit:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size} bytes on the pretended GPU"
                )
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        self._users[key] = (users + 1, size)
        return _Held(self, key)

    def release(self, key: int) -> None:
        users, size = self._users[key]
        if users > 1:
            self._users[key] = (users - 1, size)
        else:
            del self._users[key]
            self.allocated -= size


class _Held:
    """A GpuTensor's share of a storage."""

    def __init__(self, memory: _Memory, key: int) -> None:
        self._memory = memory
        self._key = key

    def __del__(self) -> None:
        self._memory.release(self._key)


class Rig:
    """The pretended GPU while it is active."""

    def __init__(self, total_bytes: int) -> None:
        self.counts = Counts()
        self.memory = _Memory()
        self.total_bytes = total_bytes

    def limit_memory(self, total: int) -> None:
        """From now on allocations beyond `total` bytes fail."""
        self.total_bytes = self.memory.limit = total

    def free_bytes(self) -> int:
        return max(0, self.total_bytes - self.memory.allocated)

    def to_gpu(self, tensor: Tensor) -> GpuTensor:
        """A copy of a CPU tensor on the pretended GPU."""
        self.counts.launches[_place()] += 1
        if tensor.numel() and not getattr(tensor, "_pinned", False):
            self.counts.pageable[_place()] += 1
        return GpuTensor(tensor.detach().clone())

    def synchronised(self, name: str) -> None:
        self.counts.synchronisations[_place(), name] += 1


_active: list[Rig] = []


class GpuTensor(torch.Tensor):
    """A tensor that reports cuda:0; `inner` is the CPU tensor with its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> GpuTensor:
        assert type(inner) is Tensor or type(inner) is torch.nn.Parameter, type(inner)
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CPU,
            requires_grad=False,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner
        self._held = _active[-1].memory.hold(inner)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"GpuTensor({self.inner!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: None, size: Any, stride: Any) -> GpuTensor:
        return GpuTensor(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation of which at least one argument is a GpuTensor."""
    rig = _active[-1]
    if func in _NOT_DETERMINISTIC and torch.are_deterministic_algorithms_enabled():
        _refuse(func, args, kwargs)
    if func in _COPIES:
        _count_copies(rig, args)
    else:
        _check_devices(rig, func, args, kwargs)
    if func in _SYNCHRONISING and kwargs.get("output_size") is None:
        rig.synchronised(_SYNCHRONISING[func])
    elif func in _INDEXING and any(
        t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
    ):
        rig.synchronised("boolean index")
    if not func.is_view:
        rig.counts.launches[_place()] += 1
    inner_args, inner_kwargs = tree_map_only(GpuTensor, _inner, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if func is aten._local_scalar_dense.default:
        return out
    out = tree_map_only(Tensor, _wrapped, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _refuse(func: Any, args: Any, kwargs: Any) -> None:
    """Raise as CUDA does for an operation on floating point that has no deterministic kernel."""
    if args[0].is_floating_point() or kwargs.get("dtype") in (torch.float32, torch.float64):
        raise RuntimeError(
            f"{func} does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'"
        )


def _inner(tensor: GpuTensor) -> Tensor:
    return tensor.inner


def _wrapped(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, GpuTensor) else GpuTensor(tensor)


def _count_copies(rig: Rig, args: Any) -> None:
    into, source = args[0], args[1]
    pairs = zip(into, source, strict=True) if isinstance(into, list) else [(into, source)]
    for to, of in pairs:
        if isinstance(to, GpuTensor) and not isinstance(of, GpuTensor) and of.dim():
            rig.counts.pageable[_place()] += not getattr(of, "_pinned", False)
        elif isinstance(of, GpuTensor) and not isinstance(to, GpuTensor):
            rig.synchronised("copy to the host")


def _check_devices(rig: Rig, func: Any, args: Any, kwargs: Any) -> None:
    """Raise where a CPU tensor with dimensions is mixed with GPU tensors, as CUDA does."""
    for argument in tree_flatten((args, kwargs))[0]:
        if not isinstance(argument, Tensor) or isinstance(argument, GpuTensor):
            continue
        if func in _INDEXING and any(argument is index for index in args[1]):
            rig.counts.pageable[_place()] += 1  # CUDA copies indices that are on the host
        elif argument.dim():
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({func}, CPU tensor of shape {tuple(argument.shape)})"
            )


class _Functions(TorchFunctionMode):
    """Functions of torch that create tensors on a device, or move them between devices."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self._rig = rig

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        special = _SPECIAL.get(func)
        if special is not None:
            return special(self._rig, func, args, kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            return self._create(func, args, kwargs)
        if "device" in kwargs and tree_any(_is_gpu, args):
            # new_zeros, zeros_like, ... on the host, of a tensor on the GPU
            args = tree_map_only(GpuTensor, _inner, args)
        return func(*args, **kwargs)

    def _create(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        grad = kwargs.pop("requires_grad", False)
        inner = tree_map_only(GpuTensor, _inner, args)
        out = func(*inner, **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            wrapped = self._rig.to_gpu(out)
        else:
            self._rig.counts.launches[_place()] += 1
            wrapped = GpuTensor(out)
        return wrapped.requires_grad_(grad) if grad else wrapped


def _is_gpu(value: Any) -> bool:
    return isinstance(value, GpuTensor)


def _to(rig: Rig, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Tensor.to(device | dtype | tensor, ...)."""
    tensor, *rest = args
    target: torch.device | None = None
    kept: list[Any] = []
    for value in rest:
        if isinstance(value, (str, torch.device)):
            target = torch.device(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            target = torch.device("cuda", value)
        elif isinstance(value, Tensor):
            target, kept = value.device, [value.dtype]
        else:
            kept.append(value)
    if kwargs.get("device") is not None:
        target = torch.device(kwargs["device"])
    kwargs.pop("device", None)
    if target is None:
        return func(tensor, *kept, **kwargs)
    dtypes = [value for value in (*kept, kwargs.get("dtype")) if isinstance(value, torch.dtype)]
    return _moved(rig, tensor, target, *dtypes)


def _moved(rig: Rig, tensor: Tensor, target: torch.device, *dtypes: torch.dtype) -> Tensor:
    if dtypes and isinstance(tensor, GpuTensor):
        tensor = tensor.to(dtypes[0])
    if target.type == "cuda":
        if not isinstance(tensor, GpuTensor):
            assert not (tensor.requires_grad and torch.is_grad_enabled() and not tensor.is_leaf)
            tensor = rig.to_gpu(tensor)
    elif isinstance(tensor, GpuTensor):
        assert tensor.grad_fn is None or not torch.is_grad_enabled(), "copied with its gradient"
        rig.synchronised("copy to the host")
        tensor = tensor.inner.detach().clone()
    return tensor.to(dtypes[0]) if dtypes else tensor


def _tolist(rig: Rig, func: Any, args: Any, kwargs: Any) -> Any:
    if not isinstance(args[0], GpuTensor):
        return func(*args, **kwargs)
    rig.synchronised("tolist")
    return args[0].inner.tolist()


def _numpy(rig: Rig, func: Any, args: Any, kwargs: Any) -> Any:
    if isinstance(args[0], GpuTensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return func(*args, **kwargs)


def _pin(rig: Rig, func: Any, args: Any, kwargs: Any) -> Any:
    assert not isinstance(args[0], GpuTensor), "only tensors on the host can be pinned"
    pinned = args[0].clone()
    pinned._pinned = True
    return pinned


_SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.Tensor.to: _to,
    torch.Tensor.cpu: lambda rig, func, args, kwargs: _moved(rig, args[0], CPU),
    torch.Tensor.cuda: lambda rig, func, args, kwargs: _moved(rig, args[0], GPU),
    torch.Tensor.tolist: _tolist,
    torch.Tensor.numpy: _numpy,
    torch.Tensor.pin_memory: _pin,
    torch.Tensor.is_pinned: lambda rig, func, args, kwargs: getattr(args[0], "_pinned", False),
}


def _place() -> str:
    """The innermost line of engine/ on the stack, as file:line; "" outside of it."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_ENGINE):
            return f"{frame.f_code.co_filename[len(_ENGINE) :]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of autocast's state, for the device type that the C++ part of torch sees."""

    def call(device_type: str = "cuda", *rest: Any) -> Any:
        return function("cpu" if device_type == "cuda" else device_type, *rest)

    return call


@contextmanager
def _autocast_of_the_cpu() -> Iterator[None]:
    """torch.autocast("cuda") as autocast of the CPU."""
    autocast = torch.amp.autocast_mode.autocast
    initialise = autocast.__init__

    def on_cpu(self: Any, device_type: str, *rest: Any, **options: Any) -> None:
        initialise(self, "cpu" if device_type == "cuda" else device_type, *rest, **options)

    names = ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled")
    with mock.patch.object(autocast, "__init__", on_cpu):
        patches = [mock.patch.object(torch, n, _on_cpu(getattr(torch, n))) for n in names]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


@contextmanager
def pretended_gpu(total_bytes: int = 80 << 30, bf16: bool = True) -> Iterator[Rig]:
    """Pretend, inside the `with` block, that this machine has one GPU with so much memory.

    The limit holds for `torch.cuda.mem_get_info`; `Rig.limit_memory` makes allocations fail.
    """
    rig = Rig(total_bytes)
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: bf16,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: SimpleNamespace(
            name="Pretended GPU", total_memory=rig.total_bytes, uuid="0-0"
        ),
        "memory_reserved": lambda device=None: rig.memory.allocated,
        "mem_get_info": lambda device=None: (rig.free_bytes(), rig.total_bytes),
        "empty_cache": lambda: rig.counts.cache_emptied.append(rig.memory.allocated),
        "synchronize": lambda device=None: rig.synchronised("synchronize"),
        "max_memory_allocated": lambda device=None: rig.memory.peak,
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": lambda states: None,
    }
    swap = torch.__future__.get_swap_module_params_on_conversion()
    patches = [mock.patch.object(torch.cuda, name, value) for name, value in cuda.items()]
    _active.append(rig)
    try:
        for patch in patches:
            patch.start()
        torch.__future__.set_swap_module_params_on_conversion(True)
        with _autocast_of_the_cpu(), _Functions(rig):
            yield rig
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
        for patch in patches:
            patch.stop()
        _active.remove(rig)


def values(tree: Any) -> Any:
    """The same structure with plain CPU tensors, without counting a synchronisation."""
    return tree_map(lambda t: t.inner.clone() if isinstance(t, GpuTensor) else t, tree)
