"""Tensors of a device that is not there: to Python they are on "cuda:0", and their numbers lie in CPU memory.

What a device refuses (operands from elsewhere), what it makes the host wait for and what memory it holds are as on a
real one. PyTorch's C++ takes them for CPU tensors, so autograd runs as ever.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)

# What hands Python a number, or a shape that depends on data: the host waits until the device has got there.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by a mask they begin with `nonzero`


class Watch:
    """What happens on the device.

    Attributes:
        waits: how often the host has waited for it, by operation.
        launches: of Triton's kernels, by name.
        on_wait: "default", "warn" or "error", as `torch.cuda.set_sync_debug_mode` takes it.
        held, peak: bytes that its tensors hold now, and held at most.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.on_wait = "default"
        self.held = self.peak = 0
        self._holders: Counter[int] = Counter()

    def wait(self, operation: str) -> None:
        self.waits[operation] += 1
        if self.on_wait == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {operation}")
        if self.on_wait == "warn":
            warnings.warn(f"called a synchronizing CUDA operation: {operation}", stacklevel=2)

    def hold(self, address: int, size: int) -> None:
        self._holders[address] += 1
        if self._holders[address] == 1:
            self.held += size
            self.peak = max(self.peak, self.held)

    def release(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if self._holders[address] == 0:
            del self._holders[address]
            self.held -= size


WATCH = Watch()


class Hold:
    """A tensor's claim on its memory, for as long as the tensor is there."""

    def __init__(self, on_host: Tensor) -> None:
        storage = on_host.untyped_storage()
        self._memory = storage.data_ptr(), storage.nbytes()
        WATCH.hold(*self._memory)

    def __del__(self) -> None:
        WATCH.release(*self._memory)


class MadeUpTensor(Tensor):
    """A tensor of the made-up device around one on the host."""

    on_host: Tensor
    _hold: Hold
    is_cuda, is_cpu = True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_host: Tensor) -> MadeUpTensor:
        tensor: MadeUpTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            on_host.size(),
            strides=on_host.stride(),
            storage_offset=on_host.storage_offset(),
            dtype=on_host.dtype,
        )
        tensor.on_host = on_host
        tensor._hold = Hold(on_host)
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    def get_device(self) -> int:
        return DEVICE.index

    def data_ptr(self) -> int:
        return self.on_host.data_ptr()

    def untyped_storage(self) -> Any:
        return self.on_host.untyped_storage()

    def tolist(self) -> Any:
        WATCH.wait("tolist")
        return self.on_host.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"MadeUpTensor({self.on_host!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                memo[id(self)] = torch.nn.Parameter(memo[id(self)], self.requires_grad)
        return memo[id(self)]  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace == "fgrpo":
            return torch._library.custom_ops.OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        if name != "copy_":
            refuse_other_devices(func, args, kwargs)
        elif not all(isinstance(x, MadeUpTensor) for x in args[:2]) and not (*args, False)[2]:
            WATCH.wait("copy_")
        if name in WAITS or (name in INDEXING and any(is_mask(x) for x in args[1])):
            WATCH.wait(name)
        if func.overloadpacket is torch.ops.aten.repeat_interleave and kwargs.get("output_size") is None:
            WATCH.wait(name)
        device = kwargs.get("device")
        if device is not None:
            kwargs = kwargs | {"device": "cpu"}
        play = mixed_product if name in ("mm", "addmm") and "dtype" in func._overloadname else func
        result = play(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        if device is not None and torch.device(device).type == "cpu" and func._schema.name.startswith("aten::new_"):
            return result
        if func._schema.is_mutable:
            own = {id(unwrap(x)): x for x in tree_leaves((args, kwargs)) if isinstance(x, MadeUpTensor)}
            return tree_map(lambda x: own.get(id(x), x), result)
        return tree_map(wrap, result)


def mixed_product(*args: Any, out: Tensor | None = None, beta: float = 1, alpha: float = 1) -> Tensor:
    """A product of 16-bit matrices into float32, or one added to a matrix, which the CPU does not have."""
    *added, a, b, dtype = args
    product = alpha * (a.to(dtype) @ b.to(dtype))
    if added:
        product += beta * added[0].to(dtype)
    return product if out is None else out.copy_(product)


def wrap(x: Any) -> Any:
    """The same on the made-up device."""
    return MadeUpTensor(x) if isinstance(x, Tensor) and not isinstance(x, MadeUpTensor) else x


def unwrap(x: Any) -> Any:
    """The same on the host, without a copy."""
    return x.on_host if isinstance(x, MadeUpTensor) else x


def is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)


def refuse_other_devices(func: Any, args: Any, kwargs: Any) -> None:
    """A number in CPU memory may stand beside a device's tensors, and an index, which has to be brought over.

    In a backward pass PyTorch's C++ makes zeros of its own, on the host as it believes.
    """
    if torch._C._current_graph_task_id() != -1:
        return
    for x in tree_leaves((args, kwargs)):
        if isinstance(x, Tensor) and not isinstance(x, MadeUpTensor) and x.ndim > 0:
            if func.overloadpacket.__name__ not in INDEXING:
                raise RuntimeError(
                    f"{func}: expected all tensors to be on the same device, but found at least two devices, cuda:0 "
                    "and cpu"
                )
            WATCH.wait(f"{func}, index on the host")
