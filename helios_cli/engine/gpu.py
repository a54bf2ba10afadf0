"""What a GPU gains from: model calls replayed as graphs, decoding beside the transformer, pinned copies out.

On other devices each of these is a plain call in its place: nothing changes, neither bits nor the order of events.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Protocol, TypeVar

import torch
from torch import Tensor

import helios_kernels
from helios_cli import __version__, machine
from helios_cli.architecture import DiTConfig
from helios_cli.errors import MachineError
from helios_cli.model.attention import Choice, attention, auto_rule
from helios_cli.model.backends import Memory, first_line
from helios_cli.model.dit import Call, HeliosDiT, Modulation, TextContext
from helios_cli.model.fp8 import Fp8, product
from helios_cli.units import GRAPHS, LATENTS_PER_CHUNK, PROMPT_KEYS
from helios_cli.versions import version_of
from helios_cli.weights.fp8 import FP8_CAPABILITY
from helios_kernels import trial, tuning
from helios_kernels.dispatch import INTERPRETER

T = TypeVar("T")


def require_quant(quant: str, device: torch.device) -> None:
    """MachineError if products in fp8 are asked for and `device` has none."""
    hint = "leave out --quant, or take --device cpu to see what it does to the pictures"
    if quant == "none" or device.type == "cpu":
        return
    if device.type != "cuda" or torch.version.hip:
        raise MachineError(f"--quant {quant} needs an NVIDIA GPU or a CPU, not {device}", hint=hint)
    name = torch.cuda.get_device_name(device)
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise MachineError(f"--quant {quant}: {name} has no fp8 products (Ada, Hopper and newer have)", hint=hint)
    if fault := fp8_fault(device):  # libraries lag behind chips
        said = f"PyTorch {torch.__version__} has no fp8 products with scales by row for {name}: {fault}"
        raise MachineError(f"--quant {quant}: {said}", hint=hint)


def fp8_fault(device: torch.device) -> str | None:
    """What is wrong with a product in fp8 on `device`, of ordinary size: libraries have no kernels for tiny ones."""
    rows, outer, inner = 64, 256, 256
    values = torch.ones(outer, inner, device=device).to(torch.float8_e4m3fn)
    scales, bias = torch.ones(outer, device=device), torch.zeros(outer, device=device, dtype=torch.bfloat16)
    try:
        found = product(Fp8(values[:rows], scales[:rows, None]), values, scales, bias)
        return None if (found == inner).all() else f"ones times ones are {found.float().mean():.4g}, not {inner}"
    except (RuntimeError, ValueError) as error:
        return first_line(error)


def recall_kernels() -> None:
    """Have kernels go by what was found of them on this machine: launch configurations, and whether they were right."""
    tuning.use(machine.home() / machine.TUNED)
    trial.use(machine.home() / machine.TRIED)


class FirstUse:
    """Whether kernels of this machine, device and version have yet to be compiled, by a mark in HELIOS_HOME.

    Triton keeps what it has compiled in a cache of its own; the mark only spares the user a wait without a word.
    """

    def __init__(self, *what: str) -> None:
        digest = hashlib.sha256("/".join(what).encode()).hexdigest()[:16]
        self._mark = machine.home() / "compiled" / digest

    @classmethod
    def of(cls, width: int, dtype: torch.dtype) -> FirstUse | None:
        """For a transformer of this width; None where kernels do not run on a GPU."""
        found = helios_kernels.backend()
        if found.chip in (None, INTERPRETER):
            return None
        versions = f"torch {torch.__version__}", f"triton {version_of('triton')}", f"helios {__version__}"
        return cls(found.device, *versions, str(width), str(dtype))

    @property
    def notice(self) -> str | None:
        """What to tell the user before the first chunk."""
        if self._mark.exists():
            return None
        return "the first film on this GPU compiles its kernels: about a minute, once"

    def done(self) -> None:
        """A chunk was denoised: all is compiled."""
        with contextlib.suppress(OSError):  # a home that cannot be written: it is said again
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()


# Graphs


class Recorder(Protocol):
    """`CudaRecorder`."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]: ...

    def forget(self) -> None: ...


class CudaRecorder:
    """Records work as CUDA graphs over one pool of memory, so no two of them may run at a time."""

    def __init__(self) -> None:
        self.pool: tuple[int, int] | None = None

    def forget(self) -> None:
        """All graphs are gone. A pool that no graph holds must not be recorded into again: the next gets a new one."""
        self.pool = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """(what replays it, where each replay leaves its result). RuntimeError for work that cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        # The outer context is what a recording that fails to begin or to end leaves the caller's stream to. Other
        # threads decode and read weights meanwhile, and may allocate.
        recording = torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local")
        with torch.cuda.stream(torch.cuda.current_stream()), recording:
            result = work()
        return graph.replay, result


class CallGraphs:
    """Model calls, each shape of them recorded the second time it comes and replayed from then on.

    The first call of a shape is the warm-up: it compiles and times what is to be compiled and timed. A replay reads
    copies of the call's inputs, which are written only where an input is another tensor than the last time: prompts
    and history change from chunk to chunk. Weights have to stay where they are; that they were moved is seen, and all
    is recorded anew.

    `problem` is why nothing more is recorded, or None.
    """

    def __init__(self, record: Recorder) -> None:
        self.record = record
        self.problem: str | None = None
        self.problem_told = False
        self.replayed = 0
        self._graphs: OrderedDict[tuple, tuple[Callable[[], None], Tensor] | None] = OrderedDict()
        self._inputs: dict[tuple, Tensor] = {}
        self._sources: dict[tuple, Tensor] = {}
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
            if self._graphs[key] is None:
                try:
                    self._graphs[key] = self.record(lambda: dit(*_call(fixed)))
                except RuntimeError as error:  # which holds all that was computed until it is left
                    self.problem = f"model calls are not replayed as graphs: {str(error).strip().splitlines()[0]}"
                if self.problem:
                    self.forget()
                    return dit(*call)
                self._drop_old()
            replay, result = self._graphs[key]
            replay()
            self.replayed += 1
            return result.clone()

    def _fixed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs where graphs look for them; graphs of several shapes share those that are of one shape."""
        fixed = {}
        for name, tensor in tensors.items():
            place = (name, tuple(tensor.shape), tensor.dtype)
            if place not in self._inputs:
                self._inputs[place] = torch.empty_like(tensor)
            if self._sources.get(place) is not tensor:
                self._inputs[place].copy_(tensor)
                self._sources[place] = tensor
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
        """Gives back what is recorded, which holds memory and the places of the weights."""
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


# Attention


def attention_memory(device: torch.device) -> Memory | None:
    """What `auto` knows of attention on a GPU; None for another device, where it measures nothing."""
    if device.type != "cuda":
        return None
    return Memory(machine.home() / machine.ATTENTION, machine.attention_key(torch.cuda.get_device_name(device)))


def attention_facts(device: torch.device) -> dict:
    """What --attention auto takes on `device`, why, and what was measured there."""
    rule = auto_rule(device)
    memory = attention_memory(device)
    known = memory.known if memory else {}
    return {
        "auto": rule.name,
        "reason": rule.reason,
        "measured": {shape: asdict(measured) for shape, measured in sorted(known.items())},
        "pytorch": list(machine.attention_backends(device)),
    }


@torch.no_grad()
def measure_attention(
    choice: Choice, config: DiTConfig, grids: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> None:
    """Let `choice`, which is `auto`, time what it has not yet of a film whose stages have these grids of patches,
    coarsest first.

    So what it takes is known before the film begins, and the film's fingerprints can say it
    (`cost.arithmetic.attention_shapes`).
    """
    with torch.device("meta"):
        dit = HeliosDiT(config)
    shape = config.num_attention_heads, config.attention_head_dim
    for grid in grids:
        rows, noisy = len(dit.rope(grids[-1], grid)), LATENTS_PER_CHUNK * grid[0] * grid[1]
        q, k, v = torch.randn(1, rows, 3, *shape, device=device, dtype=dtype).unbind(2)  # slices of one product
        x = q.contiguous()
        if not helios_kernels.runs(x, "qk_norm_rope"):
            q, k, v = x, x, x
        attention(q, x if config.is_amplify_history else k, v, None, choice)  # amplified keys are a tensor of their own
        attention(x[:, -noisy:], x, x, None, choice)  # the last block, whose queries are a product of their own
        queries = x if not config.guidance_cross_attn else x[:, -noisy:]
        for keys in PROMPT_KEYS:
            prompt = torch.randn(1, keys, *shape, device=device, dtype=dtype)
            attention(queries, prompt, prompt, torch.zeros(keys, device=device), choice)
        attention(queries, prompt, prompt, None, choice)  # a prompt that fills all 512


# Beside the transformer


@functools.cache
def _stream_for(use: str, device: torch.device) -> torch.cuda.Stream:
    """One a use for all films: PyTorch hands out 32 in turn, and one of them is what graphs are recorded on."""
    return torch.cuda.Stream(device)


class Beside:
    """Work that goes on while the caller does, one piece after the other: in a thread, on a GPU with its own stream.

    Without `overlaps` it is done at once, by the caller.
    """

    def __init__(self, device: torch.device, *, overlaps: bool) -> None:
        self.overlaps = overlaps
        self._stream = _stream_for("beside", device) if overlaps and device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="beside") if overlaps else None

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Begin `work`, after what the caller has given the GPU so far. Where its result is taken, what it raised is
        raised, and the GPU is done with it."""
        if self._thread is None:
            done: Future[T] = Future()
            done.set_result(work())
            return done
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return self._thread.submit(self._run, work)

    def hand_over(self, *tensors: Tensor) -> None:
        """Tensors of a result are the caller's from here on: until its stream is done with them, their memory is not
        used again by the stream that made them."""
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(torch.cuda.current_stream(self._stream.device))

    def close(self) -> None:
        """Waits for what was begun, whose results nobody takes."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _run(self, work: Callable[[], T]) -> T:
        # Both contexts are a thread's own.
        stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), stream:
            result = work()
        if self._stream is not None:
            self._stream.synchronize()
        return result


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`. A GPU is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(*tensors: Tensor) -> tuple[tuple[Tensor, ...], torch.cuda.Event | None]:
    """The tensors, all of one device, on the host, and what to wait for before they are read: from a GPU they come
    behind what its current stream was given, and nobody waits for that here. None where they are there."""
    if not tensors[0].is_cuda:
        return tuple(tensor.cpu() for tensor in tensors), None
    copies = tuple(_pinned_like(tensor).copy_(tensor, non_blocking=True) for tensor in tensors)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensors[0].device))
    return copies, copied


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def on_host(pieces: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of one tensor or more on the host, in order. From a GPU each is copied, by a stream of its own, while the
    next one is being computed."""
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
        if waiting:
            waiting[1].synchronize()
            yield waiting[0]
        # The piece is held as well: once it is free, the stream that made it may write over it.
        waiting = copies, copied, piece
    if waiting:
        waiting[1].synchronize()
        yield waiting[0]
