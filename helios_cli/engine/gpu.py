"""Speeds up a GPU: model calls replayed as CUDA graphs, decoding in parallel with the transformer, pinned copies.

On other devices each of these is a plain call: neither bits nor the order of events change.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

import helios_kernels
from helios_cli import __version__, machine
from helios_cli.errors import MachineError
from helios_cli.model.backends import first_line
from helios_cli.model.dit import Call, HeliosDiT, Modulation, TextContext
from helios_cli.model.fp8 import Fp8, product
from helios_cli.units import GRAPHS
from helios_cli.versions import version_of
from helios_cli.weights.fp8 import FP8_CAPABILITY
from helios_kernels import trial, tuning
from helios_kernels.dispatch import INTERPRETER

T = TypeVar("T")


def require_quant(quant: str, device: torch.device) -> None:
    """Raise MachineError if fp8 products are requested and `device` has none."""
    hint = "leave out --quant, or use --device cpu to see what it does to the pictures"
    if quant == "none" or device.type == "cpu":
        return
    if device.type != "cuda" or torch.version.hip:
        raise MachineError(f"--quant {quant} needs an NVIDIA GPU or a CPU, not {device}", hint=hint)
    name = torch.cuda.get_device_name(device)
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise MachineError(
            f"--quant {quant}: {name} cannot multiply in fp8 (Ada, Hopper and newer GPUs can)", hint=hint
        )
    if fault := fp8_fault(device):  # libraries lag behind chips
        problem = f"PyTorch {torch.__version__} has no fp8 products with scales by row for {name}: {fault}"
        raise MachineError(f"--quant {quant}: {problem}", hint=hint)


def fp8_fault(device: torch.device) -> str | None:
    """Return what is wrong with an fp8 product of ordinary size on `device`; libraries lack kernels for tiny ones."""
    rows, outer, inner = 64, 256, 256
    values = torch.ones(outer, inner, device=device).to(torch.float8_e4m3fn)
    scales, bias = torch.ones(outer, device=device), torch.zeros(outer, device=device, dtype=torch.bfloat16)
    try:
        found = product(Fp8(values[:rows], scales[:rows, None]), values, scales, bias)
        return None if (found == inner).all() else f"ones times ones give {found.float().mean():.4g}, not {inner}"
    except (RuntimeError, ValueError) as error:
        return first_line(error)


def recall_kernels() -> None:
    """Make kernels use what this machine has recorded of them: launch configurations, and whether they were right."""
    tuning.use(machine.home() / machine.TUNED)
    trial.use(machine.home() / machine.TRIED)


class FirstUse:
    """Records in HELIOS_HOME whether the kernels were compiled on this machine, device and version before.

    Triton has a cache of its own; the mark only decides whether the user is warned of the wait.
    """

    def __init__(self, *what: str) -> None:
        digest = hashlib.sha256("/".join(what).encode()).hexdigest()[:16]
        self._mark = machine.home() / "compiled" / digest

    @classmethod
    def of(cls, width: int, dtype: torch.dtype) -> FirstUse | None:
        """Return the mark for a transformer of this width, or None where kernels do not run on a GPU."""
        found = helios_kernels.backend()
        if found.chip in (None, INTERPRETER):
            return None
        versions = f"torch {torch.__version__}", f"triton {version_of('triton')}", f"helios {__version__}"
        return cls(found.device, *versions, str(width), str(dtype))

    @property
    def notice(self) -> str | None:
        """Return the notice to show before the first chunk."""
        if self._mark.exists():
            return None
        return "the first film on this GPU compiles its kernels: about a minute, once"

    def done(self) -> None:
        """Record that a chunk was denoised, so everything is compiled."""
        with contextlib.suppress(OSError):  # a home that cannot be written: the notice is shown again
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()


# Graphs


class CudaRecorder:
    """Records work as CUDA graphs that share one memory pool, so only one may run at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def forget(self) -> None:
        """Forget the pool after all graphs are gone: a pool without a graph must not be recorded into again."""
        self.pool = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record `work`; return the replay and the tensor of its result. RuntimeError if it cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        # The outer context restores the caller's stream if a recording fails to begin or to end. Other
        # threads decode and read weights at the same time, and may allocate.
        recording = torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local")
        with torch.cuda.stream(torch.cuda.current_stream()), recording:
            result = work()
        return graph.replay, result


class CallGraphs:
    """Records each shape of model call the second time it occurs, and replays it from then on.

    The first call of a shape is the warm-up, which compiles and times. A replay reads copies of the inputs, which are
    written only if an input is a different tensor than last time: prompts and history change from chunk to chunk.
    Weights must stay in place; if they move, this is noticed and everything is recorded again.

    `problem` is the reason why nothing more is recorded, or None.
    """

    def __init__(self, record: CudaRecorder) -> None:
        self.record = record
        self.problem: str | None = None
        self.problem_reported = False
        self.replayed = 0
        self._graphs: OrderedDict[tuple, tuple[Callable[[], None], Tensor] | None] = OrderedDict()
        self._inputs: dict[tuple, Tensor] = {}
        self._sources: dict[tuple, weakref.ref[Tensor]] = {}  # which the copies do not keep alive
        self._weights: tuple[int, ...] = ()

    def __call__(self, dit: HeliosDiT, call: Call) -> Tensor:
        if self.problem:
            return dit(*call)
        weights = dit.proj_out.weight.data_ptr(), next(dit.blocks[0].parameters()).data_ptr()
        if weights != self._weights:
            self.forget()
            self._weights = weights
        tensors = _tensors(call)
        key = tuple((name, tuple(x.shape), x.dtype) for name, x in tensors.items())
        if key not in self._graphs:
            self._graphs[key] = None
            return dit(*call)
        self._graphs.move_to_end(key)
        with torch.inference_mode():
            fixed = self._fixed(tensors)
            recorded = self._graphs[key]
            if recorded is None:
                try:
                    recorded = self._graphs[key] = self.record(lambda: dit(*_call(fixed)))
                except RuntimeError as error:  # it holds every tensor that was computed until this block ends
                    self.problem = f"model calls are not replayed as graphs: {str(error).strip().splitlines()[0]}"
                if recorded is None:
                    self.forget()
                    return dit(*call)
                self._drop_old()
            replay, result = recorded
            replay()
            self.replayed += 1
            return result.clone()

    def _fixed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs that graphs read; graphs of several shapes share inputs of the same shape."""
        fixed = {}
        for name, tensor in tensors.items():
            place = (name, tuple(tensor.shape), tensor.dtype)
            if place not in self._inputs:
                self._inputs[place] = torch.empty_like(tensor)
            source = self._sources.get(place)
            if source is None or source() is not tensor:
                self._inputs[place].copy_(tensor)
                self._sources[place] = weakref.ref(tensor)
            fixed[name] = self._inputs[place]
        return fixed

    def _drop_old(self) -> None:
        while len(self._graphs) > GRAPHS:
            self._graphs.popitem(last=False)
        used = {place for key in self._graphs for place in key}
        for place in self._inputs.keys() - used:
            del self._inputs[place]
            self._sources.pop(place, None)

    def forget(self) -> None:
        """Release all recordings, which hold memory and addresses of weights."""
        self._graphs.clear()
        self._inputs.clear()
        self._sources.clear()
        self.record.forget()


def _tensors(call: Call) -> dict[str, Tensor]:
    found = {
        "noisy": call.noisy_BCTHW,
        "history": call.history_BME,
        "blocks": call.mods.blocks,
        "out": call.mods.out,
        "rope": call.rope,
        "keys": call.text.keys,
        "values": call.text.values,
        "bias": call.text.bias,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _call(tensors: dict[str, Tensor]) -> Call:
    return Call(
        tensors["noisy"],
        tensors["history"],
        Modulation(tensors["blocks"], tensors["out"]),
        tensors["rope"],
        TextContext(tensors["keys"], tensors["values"], tensors.get("bias")),
    )


# In parallel with the transformer


@functools.cache
def _stream_for(use: str, device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a use, shared by all films: PyTorch has 32 in rotation, and graphs are recorded on one."""
    return torch.cuda.Stream(device)


class Background:
    """Runs work on `device` in parallel with the caller, in as many `threads` (on a GPU one, with its own stream), each
    of which begins with `prepare`. Work begins in the order in which it was started.

    Without threads the caller does the work at once.
    """

    def __init__(self, device: torch.device, *, threads: int, prepare: Callable[[], None] = lambda: None) -> None:
        self.threads = threads
        self._stream = _stream_for("background", device) if threads and device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(threads, "background", prepare) if threads else None

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Start `work` after everything the caller has queued on this GPU so far. Tensors of another device come by
        `sent_to`.

        `result()` re-raises its errors, and returns only when the GPU has finished."""
        if self._pool is None:
            done: Future[T] = Future()
            done.set_result(work())
            return done
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return self._pool.submit(self._run, work)

    def hand_over(self, *tensors: Tensor) -> None:
        """Give tensors of a result to the caller's stream, so that their memory is not reused while it reads them."""
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(torch.cuda.current_stream(self._stream.device))

    def close(self) -> None:
        """Wait for work that was started and whose results are not needed."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _run(self, work: Callable[[], T]) -> T:
        # Both contexts are local to a thread.
        stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), stream:
            result = work()
        if self._stream is not None:
            self._stream.synchronize()
        return result


def sent_to(device: torch.device, *tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Send tensors of one device to another; call the result where they are used, for work that is queued from then on.

    They go through pinned host memory, behind the work that makes them. A copy between two GPUs would be queued where
    it is called for, behind the model calls of the next chunk, and needs peer access, which some boards get wrong; the
    latents of a chunk are a few megabytes. Tensors that are on `device` already are handed on as they are.
    """
    if tensors[0].device == device:
        return lambda: tensors
    copies, copied = to_host(*tensors)

    def arrive() -> tuple[Tensor, ...]:
        if copied is not None:
            copied.synchronize()
        return tuple(to_device(copy, device) for copy in copies)

    return arrive


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to `device` without waiting for a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(*tensors: Tensor) -> tuple[tuple[Tensor, ...], torch.cuda.Event | None]:
    """Copy tensors of one device to the host; return the copies, and the event to wait for before reading them.

    Copies from a GPU follow the work queued on its current stream. The event is None if the copies are complete."""
    if not tensors[0].is_cuda:
        return tuple(tensor.cpu() for tensor in tensors), None
    copies = tuple(_pinned_like(tensor).copy_(tensor, non_blocking=True) for tensor in tensors)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensors[0].device))
    return copies, copied


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def on_host(pieces: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Yield pieces, each of one or more tensors, on the host. A GPU copies each while it computes the next one."""
    waiting: tuple[tuple[Tensor, ...], torch.cuda.Event, tuple[Tensor, ...]] | None = None
    for piece in pieces:
        if not piece[0].is_cuda:
            yield to_host(*piece)[0]
            continue
        device = piece[0].device
        copying = _stream_for("copies", device)
        copying.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(copying):
            copies, copied = to_host(*piece)
            assert copied is not None, "a copy from a GPU has an event"
        if waiting:
            waiting[1].synchronize()
            yield waiting[0]
        # Keep the piece too: once it is freed, the stream that made it may overwrite it.
        waiting = copies, copied, piece
    if waiting:
        waiting[1].synchronize()
        yield waiting[0]
