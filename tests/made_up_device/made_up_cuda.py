"""The parts of `torch.cuda` and of PyTorch's functions that take a device, for the made-up one.

Streams, events and seeds do nothing, as the host computes everything at once; memory and waiting are `WATCH`'s.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import interpreter
import torch
from made_up_tensor import DEVICE, WATCH, MadeUpTensor, unwrap, wrap
from torch import Tensor
from torch.utils._device import _device_constructors

MEMORY_BYTES = 2 << 30  # little, so that nobody asks for sizes that take the host minutes
PROPERTIES = SimpleNamespace(
    name="Made-up device",
    total_memory=MEMORY_BYTES,
    multi_processor_count=2,
    major=9,
    minor=0,
    gcnArchName="",
)
FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "as_tensor", "arange", "linspace", "eye")
RANDOM = ("rand", "randn", "randint", "randperm")
LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")


class Event:
    """A point in time: what was asked for before it is done."""

    def __init__(self, **_: Any) -> None:
        self._seconds = 0.0

    def record(self, *_: Any) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        WATCH.wait("Event.synchronize")

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end._seconds - self._seconds)


def install() -> None:
    """Make the device known to PyTorch and to Triton's interpreter, for as long as the process runs."""
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: DEVICE.index
    cuda.get_device_name = lambda *_: PROPERTIES.name
    cuda.get_device_properties = lambda *_: PROPERTIES
    cuda.get_device_capability = lambda *_: (PROPERTIES.major, PROPERTIES.minor)
    cuda.is_bf16_supported = lambda *_, **__: True
    cuda.device = cuda.device_of = cuda.stream = lambda *_: nullcontext()
    cuda.Event = Event
    cuda.synchronize = lambda *_: WATCH.wait("synchronize")
    cuda.empty_cache = lambda: None
    cuda.mem_get_info = lambda *_: (MEMORY_BYTES - WATCH.held, MEMORY_BYTES)
    cuda.memory_allocated = cuda.memory_reserved = lambda *_: WATCH.held
    cuda.max_memory_allocated = lambda *_: WATCH.peak
    cuda.reset_peak_memory_stats = lambda *_: setattr(WATCH, "peak", WATCH.held)
    cuda.set_sync_debug_mode = lambda mode: setattr(WATCH, "on_wait", mode)
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_: None
    cuda.manual_seed = cuda.manual_seed_all = lambda *_: None
    torch._C._cuda_getCurrentRawStream = lambda *_: 0  # which bitsandbytes looks up as it is imported
    torch.accelerator.current_accelerator = lambda **_: torch.device("cuda")
    torch.accelerator.current_stream = lambda *_: SimpleNamespace(is_capturing=lambda: False)
    cuda.is_current_stream_capturing = lambda: False
    torch.inference_mode = lambda *_: torch.no_grad()  # tensors like these have versions, which it does without
    torch.compile = lambda function=None, **_: function if function is not None else lambda f: f
    torch.profiler.profile = LaunchProfile
    torch.Generator = Generator
    _device_constructors()  # looked up now, before they are wrapped: what `with torch.device(...)` acts on
    for name in FACTORIES + RANDOM:
        setattr(torch, name, on_device(getattr(torch, name)))
    for name in LIKE:
        setattr(torch, name, like(getattr(torch, name)))
    torch._C._group_tensors_by_device_and_dtype = by_device(torch._C._group_tensors_by_device_and_dtype)
    Tensor.to = moving(Tensor.to)
    Tensor.cpu = lambda self, **_: moved(self, torch.device("cpu"), False)
    Tensor.cuda = lambda self, *_, non_blocking=False, **__: moved(self, DEVICE, non_blocking)
    Tensor.pin_memory = lambda self, *_: self
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that a moved module's tied weights stay tied
    run_kernels_of_triton()
    first_operation_without_dtensor()


def prepare_fgrpo() -> None:
    """Have tensors of the host take the PyTorch path, as beside a real device, and benchmarks small sizes."""
    from fgrpo_kernels import direct, dispatch
    from fgrpo_kernels.bench import limits, shapes
    from fgrpo_kernels.bench.ops import device_codec

    dispatch.DEVICES.discard("cpu")
    direct.PLAIN.add(MadeUpTensor)

    device_codec.CHECKED = 1 << 10
    limits.COPIED["gpu"], limits.SIDE["gpu"] = 1 << 16, 64
    shapes.MODELS["qwen3-8b"] = shapes.Head(32, 600)


class LaunchProfile:
    """In place of `torch.profiler.profile`: the launches of Triton's kernels within."""

    def __init__(self, **_: Any) -> None:
        self._before = self._after = WATCH.launches.copy()

    def __enter__(self) -> LaunchProfile:
        self._before = WATCH.launches.copy()
        return self

    def __exit__(self, *_: object) -> None:
        self._after = WATCH.launches.copy()

    def key_averages(self) -> list[SimpleNamespace]:
        cuda = torch.autograd.DeviceType.CUDA
        launched = self._after - self._before
        return [
            SimpleNamespace(key=name, name=name, count=count, device_type=cuda, self_device_time_total=0.0)
            for name, count in launched.items()
        ]

    def events(self) -> list[SimpleNamespace]:
        return [event for event in self.key_averages() for _ in range(event.count)]


def run_kernels_of_triton() -> None:
    """Have the interpreter take the device's tensors, and count."""
    interpreter.adapt()
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    @functools.wraps(launch)
    def on_host(self: Any, *args: Any, **kwargs: Any) -> None:
        for x in args:
            if isinstance(x, Tensor) and not isinstance(x, MadeUpTensor):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        WATCH.launches[self.fn.__name__] += 1
        launch(self, *map(unwrap, args), **{name: unwrap(x) for name, x in kwargs.items()})

    GridExecutor.__call__ = on_host


def first_operation_without_dtensor() -> None:
    """PyTorch looks up DTensor when it first meets a tensor like these, an import of seconds, and then knows it."""
    name = "torch.distributed.tensor"
    if name not in sys.modules:
        stand_in: Any = ModuleType(name)
        stand_in.DTensor = type("DTensor", (), {})
        sys.modules[name] = stand_in
        torch.add(wrap(torch.zeros(1)), 1)
        del sys.modules[name]


def by_device(group: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's groups of tensors by device and dtype, which its C++ makes."""

    @functools.wraps(group)
    def grouped(tensors: Any, with_indices: bool = False) -> Any:
        there = isinstance(tensors[0][0], MadeUpTensor)
        found = group(tensors, with_indices)
        return {(DEVICE if there else device, dtype): part for (device, dtype), part in found.items()}

    return grouped


def is_made_up(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def on_device(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that makes tensors, there if it is asked to."""

    @functools.wraps(factory)
    def make(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        if not is_made_up(device):
            return factory(*args, **kwargs) if device is None else factory(*args, device=device, **kwargs)
        made = factory(*map(unwrap, args), **kwargs)
        if factory.__name__ in ("tensor", "as_tensor") and made.numel():  # made on the host, and brought over
            WATCH.wait(factory.__name__)
        return wrap(made)  # type: ignore[no-any-return]

    return make


def like(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for one that takes after a tensor."""

    @functools.wraps(factory)
    def make(tensor: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is not None and not is_made_up(device):
            return factory(unwrap(tensor), *args, device=device, **kwargs)
        made = factory(unwrap(tensor), *args, **kwargs)
        return wrap(made) if device is not None or isinstance(tensor, MadeUpTensor) else made  # type: ignore[no-any-return]

    return make


def moving(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Tensor.to`, there and back."""

    @functools.wraps(to)
    def move(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = ("device", "dtype", "non_blocking", "copy")
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        elif args and isinstance(args[0], torch.dtype):
            args = (None, *args)
        given = dict(zip(names, args, strict=False)) | kwargs
        device = given.pop("device", None)
        if device is not None and torch.device(device).type in ("cuda", "cpu"):
            there = moved(self, torch.device(device), given.get("non_blocking", False))
            given["copy"] = given.get("copy", False) and there is self
            self = there
        elif device is not None:
            given["device"] = device
        given = {name: x for name, x in given.items() if x not in (None, False)}
        return to(self, **given) if given.keys() - {"non_blocking"} else self

    return move


class Crossing(torch.autograd.Function):
    """A copy to the other side, and of its gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.came_from_device = isinstance(x, MadeUpTensor)
        return x.on_host.clone() if ctx.came_from_device else wrap(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return wrap(gradient) if ctx.came_from_device else unwrap(gradient)  # type: ignore[no-any-return]


def moved(x: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
    if isinstance(x, MadeUpTensor) == (device.type == "cuda"):
        return x
    if not non_blocking:
        WATCH.wait("copy to the host" if device.type == "cpu" else "copy to the device")
    return Crossing.apply(x)  # type: ignore[no-any-return]


class Generator(torch.Generator):
    """Random numbers are drawn on the host."""

    def __new__(cls, device: Any = None) -> Generator:
        return super().__new__(cls)
