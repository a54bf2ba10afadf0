"""Measuring the peak memory of a step of distillation with each memory option, each in a process of its own.

The networks and clips are random: memory does not depend on their values.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SPECS
from helios_cli.child import ChildError, ChildStoppedError, ask, serve
from helios_cli.errors import MachineError
from helios_cli.model.dit import HeliosDiT
from helios_cli.train.data.cache import Batch
from helios_cli.train.discriminator import Heads
from helios_cli.train.networks import Networks, OneBackbone, ThreeNetworks
from helios_cli.train.optim import PlayerOptimizer
from helios_cli.train.phase import Share
from helios_cli.train.phases.distill import DistillPhase
from helios_cli.train.settings.student import DistillMemory, DistillSettings
from helios_cli.train.transformer import initialise
from helios_cli.units import HISTORY_LATENTS, LATENTS_PER_CHUNK, PIXELS_PER_CELL

OFF = {
    "cache_gradients": False,
    "separate_backward": False,
    "checkpoint_blocks": False,
    "adapters": 0,
    "rest_on_host": False,
}

WAYS: dict[str, dict[str, bool | int]] = {
    "nothing": {},
    "cached GAN gradient": {"cache_gradients": True},
    "separate backward": {"separate_backward": True},
    "block checkpointing": {"checkpoint_blocks": True},
    "one backbone, adapters": {"checkpoint_blocks": True, "adapters": 16},
    "idle networks on the host": {"cache_gradients": True, "rest_on_host": True},
    "all": {"cache_gradients": True, "separate_backward": True, "checkpoint_blocks": True, "adapters": 16},
}
"""The options that are on, by name. Adapters free their sums block by block only with checkpointing, and the critic can
rest only if the student's backward pass does not go through it."""

HEAD_SHARE = 0.15
"""Width of the heads as a share of the transformer's."""


@dataclass(frozen=True)
class Measurement:
    """One measurement to make: `way` of WAYS, a synthetic `size`, samples of a step, device and dtype."""

    way: str
    size: str
    batch: int
    device: str
    dtype: str


@dataclass(frozen=True)
class MemoryUse:
    """The memory and time of one way.

    Attributes:
        critic_bytes, student_bytes: peak memory of tensors in a turn of each player, with its optimizer.
        between_bytes: memory between turns.
        seconds: duration of both turns.
    """

    way: str
    critic_bytes: int
    student_bytes: int
    between_bytes: int
    seconds: float

    @property
    def peak_bytes(self) -> int:
        return max(self.critic_bytes, self.student_bytes)


def compare(size: str, batch: int, device: torch.device, dtype: str) -> Iterator[MemoryUse]:
    """Measure each of WAYS. On a CPU, networks are always on the host, so resting there is skipped."""
    for way in WAYS:
        if device.type == "cpu" and WAYS[way].get("rest_on_host"):
            continue
        yield measure_apart(Measurement(way, size, batch, str(device), dtype))


def measure_apart(job: Measurement) -> MemoryUse:
    """Call `measure` in a process of its own, where no other way has left anything."""
    try:
        (use,) = ask(__name__, asdict(job))
    except ChildError as error:
        if isinstance(error, ChildStoppedError) or "OutOfMemoryError" in error.message:
            raise MachineError(f"memory ran out with {job.way}", hint="use a smaller --size or --batch") from error
        raise
    return MemoryUse(**use)


def measure(job: Measurement) -> MemoryUse:
    """Run a step that creates the optimizers' state, one whose memory is measured, and one that is timed."""
    device = torch.device(job.device)
    phase = _phase(job, device)
    settings = phase.settings.optimizer
    optimizers = {name: PlayerOptimizer(player, settings, torch.float32) for name, player in phase.players.items()}

    def turn(name: str, step: int) -> None:
        phase.backward(name, Share(step=step, samples=range(job.batch), batch=job.batch, seed=0))
        optimizers[name].step(1.0)
        optimizers[name].clear()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for name in optimizers:
        turn(name, 0)
    peaks = {name: peak_of(partial(turn, name, 1), device) for name in optimizers}
    between = peak_of(lambda: None, device)
    began = time.perf_counter()
    for name in optimizers:
        turn(name, 2)
    return MemoryUse(job.way, peaks["critic"], peaks["student"], between, time.perf_counter() - began)


def peak_of(work: Callable[[], None], device: torch.device) -> int:
    """Return the peak memory of all tensors on `device` during `work`, including earlier ones."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    before = _host_bytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return before + max(accumulate(changes, initial=0))


def _host_bytes() -> int:
    """Return the bytes of all tensors on the host."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), Tensor) and one.device.type == "cpu"]
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class _RandomClips:
    """A replacement for a cache: clips of two chunks whose latents are noise."""

    def __init__(self, channels: int, size: tuple[int, int], text_dim: int) -> None:
        self.shape, self.text_dim = (channels, *size), text_dim
        self.lengths = [2] * 8

    def __len__(self) -> int:
        return len(self.lengths)

    def refresh(self) -> int:
        return 0

    def batch(self, picks: Sequence[tuple[int, int]]) -> Batch:
        channels, height, width = self.shape

        def noise(frames: int) -> Tensor:
            return torch.randn(len(picks), channels, frames, height, width)

        rows = torch.randn(len(picks), 24, self.text_dim)
        return Batch(noise(LATENTS_PER_CHUNK), noise(HISTORY_LATENTS), noise(1), rows, [""] * len(picks))

    def empty_rows(self) -> Tensor:
        return torch.zeros(24, self.text_dim)


def _phase(job: Measurement, device: torch.device) -> DistillPhase:
    spec = SPECS[job.size]
    config = DiTConfig.from_json(spec.transformer)
    width, height = spec.native_size
    blocks = tuple(sorted({config.num_layers * i // 4 for i in (1, 2, 3)} | {config.num_layers - 1}))
    settings = DistillSettings(
        phase="distill",
        start="-",
        out="-",
        steps=1,
        dtype=job.dtype,
        data={"clips": "-", "held_back": 0},
        matching={"real": "-"},
        gan={"start": 0, "blocks": blocks, "channels": max(16, int(config.width * HEAD_SHARE) // 16 * 16)},
        memory={**OFF, **WAYS[job.way]},
    )
    clips = _RandomClips(config.in_channels, (height // PIXELS_PER_CELL, width // PIXELS_PER_CELL), config.text_dim)
    heads = Heads(config.width, blocks, settings.gan.channels).to(device)
    networks = _networks(config, settings.memory, job.dtype, device)
    return DistillPhase(settings, networks, heads, clips, (width, height), device)


def _networks(config: DiTConfig, memory: DistillMemory, dtype: str, device: torch.device) -> Networks:
    def network() -> HeliosDiT:
        dit = HeliosDiT(config)
        initialise(dit, torch.Generator().manual_seed(0))
        dit.compute_dtype = getattr(torch, dtype)
        return dit.requires_grad_(False)

    checkpoint_blocks = memory.checkpoint_blocks
    if memory.adapters:
        return OneBackbone(network(), None, memory.adapters, device, checkpoint_blocks=checkpoint_blocks)
    roles = {role: network() for role in ("student", "real", "fake")}
    return ThreeNetworks(roles, device, checkpoint_blocks=checkpoint_blocks, rest_on_host=memory.rest_on_host)


if __name__ == "__main__":
    serve(lambda question: [asdict(measure(Measurement(**question)))])
