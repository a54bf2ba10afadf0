"""Which placement of a model a render takes, decided before any weight is read: of those that fit, the fastest.

Its speed is that of computing and of the transfers, from the disk, out of the page cache, and over the bus to a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from helios_cli import machine
from helios_cli.cost.gpus import LINKS, known_gpu
from helios_cli.cost.memory import RUNTIME_BYTES, MemoryBudget, MemoryPlan, plan_memory
from helios_cli.cost.speeds import duration_of, read_bandwidths
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.errors import InputError, MachineError
from helios_cli.recipe.options import RenderOptions
from helios_cli.units import format_bytes, format_seconds
from helios_cli.weights.placement import Placement

Plans = tuple[MemoryPlan, ...]
"""A plan for each mode of `--offload`."""

STATED = {"disk": 1e9, "cache": 4e9, "upload": 20e9}
"""Bytes a second where nothing was measured: an NVMe disk, one core, PCIe 4.0 with 16 lanes."""

WORTH_A_NOTICE = 0.05
"""Share of the computing that may be waited for, or of the files that may be spared, without a notice."""

_HINT = "leave --offload out; `helios plan` shows what each mode takes"


# How fast


class Bandwidths(NamedTuple):
    """Bytes a second. `upload` is from pinned memory to the device; None on a CPU, which computes where it reads."""

    disk: float
    cache: float
    upload: float | None
    basis: str


def bandwidths_of(kind: str, device: str) -> Bandwidths:
    """Return what `helios bench offload` measured on a device of this kind and name, or what is stated."""
    known, gpu = read_bandwidths().get(device, {}), known_gpu(device)
    usual = {**STATED, "upload": LINKS[gpu[1].link]} if gpu else STATED
    values = {key: known.get(key, stated) for key, stated in usual.items()}
    measured = [key for key in values if key in known and (key != "upload" or kind == "cuda")]
    basis = f"measured here: {', '.join(measured)}" if measured else "stated; `helios bench offload` measures"
    return Bandwidths(values["disk"], values["cache"], values["upload"] if kind == "cuda" else None, basis)


def transfer_seconds(plan: MemoryPlan, room: int | None, bandwidths: Bandwidths) -> float:
    """Return the least seconds that moving a chunk's weights takes with `room` bytes of page cache for the files."""
    if plan.moved_bytes == 0:
        return 0.0
    cached = 1.0 if room is None else min(1.0, room / max(1, plan.pass_bytes))
    reading = plan.read_bytes * (cached / bandwidths.cache + (1 - cached) / bandwidths.disk)
    return max(reading, plan.moved_bytes / bandwidths.upload if bandwidths.upload else 0.0)


class ChunkSpeed(NamedTuple):
    """Bandwidths, and the seconds that a chunk of each lane is denoised and decoded for, None if not known."""

    bandwidths: Bandwidths
    denoise: float | None
    decode: float | None

    def computing(self, plan: MemoryPlan) -> float | None:
        """Return the seconds that a chunk is computed for, at the same time where the plan says so."""
        if self.denoise is None or self.decode is None:
            return None
        return self._together(plan, self.denoise, self.decode)

    def _together(self, plan: MemoryPlan, denoise: float, decode: float) -> float:
        """Return the seconds of a chunk's two parts: on two devices the longer one; on a CPU that decodes several
        chunks at a time a share of both, but all of the transformer's."""
        if plan.is_apart and plan.chunks_beside:
            return max(denoise, decode)
        return max(denoise, (denoise + decode) / max(1, plan.chunks_beside))

    def transfer(self, plan: MemoryPlan, budget: MemoryBudget) -> float:
        """Return the seconds that moving a chunk's weights takes."""
        return transfer_seconds(plan, _cache_room(plan, budget), self.bandwidths)

    def seconds(self, plan: MemoryPlan, budget: MemoryBudget) -> float | None:
        """Return the seconds of a chunk; None if the computing speed is not known."""
        return None if self.computing(plan) is None else self.least_seconds(plan, budget)

    def least_seconds(self, plan: MemoryPlan, budget: MemoryBudget) -> float:
        """Return the seconds of a chunk, or of its transfers alone where the computing speed is not known.

        Streamed weights come while the transformer computes, and while a chunk is decoded if that overlaps. Parts that
        take turns are waited for, except for what is read ahead.
        """
        denoise, decode = self.denoise or 0.0, self.decode or 0.0
        transfer = self.transfer(plan, budget)
        a_byte = transfer / plan.moved_bytes if plan.moved_bytes else 0.0
        waited = a_byte * plan.waited_bytes
        streamed = transfer - waited
        transformer, vae = (a_byte * ahead for ahead in plan.ahead_bytes)
        waited -= min(transformer, decode) + min(vae, denoise)
        if plan.chunks_beside:
            return waited + max(streamed, self._together(plan, denoise, decode))
        return waited + max(streamed, denoise) + decode


def speed_of(load: Workload) -> ChunkSpeed:
    """Return the speed of a film's average chunk, as measured on this machine or stated."""
    duration, share = duration_of(load), load.lanes / len(load.plan.chunks)
    denoise, decode = (part and part * share for part in (duration.denoise, duration.decode))
    return ChunkSpeed(bandwidths_of(load.device.kind, load.device.name), denoise, decode)


def _cache_room(plan: MemoryPlan, budget: MemoryBudget) -> int | None:
    """Return the bytes of host memory that are left for the page cache."""
    return None if budget.host_bytes is None else max(0, budget.host_bytes - plan.host_bytes)


# Which placements there are


def memory_plans(load: Workload, budget: MemoryBudget, speed: ChunkSpeed | None = None) -> Plans:
    """Return a plan for each mode, as fast as it fits `budget`: none, model and, where blocks can stream, stream.

    On two devices nothing takes turns, so there is no plan for model."""
    plans = [_none(load, budget)]
    if load.vae_device is None:
        plans.append(plan_memory(load, budget, Placement("model", prompt_matrices=load.device.kind == "mps")))
    if load.can_stream:
        plans.append(_best_stream(load, budget, speed or speed_of(load)))
    return tuple(plans)


def fastest(plans: Iterable[MemoryPlan], budget: MemoryBudget, speed: ChunkSpeed) -> MemoryPlan:
    """Return the plan with the least seconds a chunk; of equal ones, the one that moves least."""
    return min(plans, key=lambda plan: (speed.least_seconds(plan, budget), plan.waited_bytes, plan.moved_bytes))


def _none(load: Workload, budget: MemoryBudget) -> MemoryPlan:
    """Plan mode none, with all that makes it faster, as far as that fits. What only prompts need is given up first,
    then graphs, then decoding while the next chunk is denoised."""
    ways = [Placement("none", text_beside=False, graphs=not load.plan.reuse_history)]
    if load.device.kind != "mps":  # nothing streams there
        ways.append(replace(ways[-1], prompt_matrices=False))
    if load.device.kind == "cuda":
        ways.append(replace(ways[-1], graphs=False))
    if load.chunks_beside(ways[-1]) and load.vae_device is None:
        ways.append(replace(ways[-1], decode_beside=False))
    plans = (plan_memory(load, budget, way) for way in ways)
    plan = next(plans)
    while plan.fits is False and (less := next(plans, None)):
        plan = less
    return plan


def _best_stream(load: Workload, budget: MemoryBudget, speed: ChunkSpeed) -> MemoryPlan:
    """Plan mode stream with as many blocks on the device as fit; the VAE works at the same time, or in turns."""
    ways = [Placement("stream")]
    if load.vae_device is None:
        ways.append(Placement("stream", turns=True))
    if load.chunks_beside(ways[0]) and load.vae_device is None:
        ways.insert(1, Placement("stream", decode_beside=False))
    plans = [_most_blocks(load, budget, placement) for placement in ways]
    fitting = [plan for plan in plans if plan.fits]
    best = fastest(fitting, budget, speed) if fitting else min(plans, key=lambda plan: plan.device_bytes)
    room = _cache_room(best, budget)
    if room is None:
        return best
    return best._replace(placement=replace(best.placement, cached_bytes=None if best.pass_bytes <= room else room))


def _most_blocks(load: Workload, budget: MemoryBudget, placement: Placement) -> MemoryPlan:
    """Keep as many blocks on the device as fit; none if not even that fits."""
    for resident in range(load.model.dit.num_layers, 0, -1):
        plan = plan_memory(load, budget, replace(placement, resident=resident))
        if plan.fits:
            return plan
    return plan_memory(load, budget, replace(placement, resident=0))


# Which one


def budget_of(
    options: RenderOptions, device: Device, vae_device: Device | None = None, *, here: bool = True
) -> MemoryBudget:
    """Return what may be taken of `device`, of the VAE's if it has its own, and of the host, at most what is free.
    --vram holds for each GPU. The host's memory is not known unless it is `here`. Raises InputError for --vram on a
    CPU."""
    if device.kind == "cpu" and options.vram is not None:
        raise InputError(
            "--vram limits the memory of a GPU, but this renders on the CPU",
            hint="use --ram, or choose a GPU with --device",
        )
    host = machine.host_memory().available_bytes if here else None
    second = None
    if vae_device is not None and vae_device.kind != "cpu":
        second = _least(vae_device.free_bytes, options.vram)
    return MemoryBudget(_least(device.free_bytes, options.vram), _least(host, options.ram), second)


def _least(*amounts: int | None) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)


def budget_notices(options: RenderOptions, budget: MemoryBudget) -> list[str]:
    """Report flags that ask for more than is free."""
    flags = (
        ("--vram", options.vram, budget.device_bytes, ""),
        ("--vram", options.vram, budget.vae_device_bytes, " on the VAE's device"),
        ("--ram", options.ram, budget.host_bytes, ""),
    )
    return [
        f"{flag} {format_bytes(value)}: only {format_bytes(given)} is free{where}, so that is the budget"
        for flag, value, given, where in flags
        if value is not None and given is not None and given < value
    ]


def plan_placement(load: Workload, options: RenderOptions, budget: MemoryBudget) -> tuple[MemoryPlan, Plans]:
    """Return the plan to render with, and all plans. Raises MachineError if none fits."""
    speed = speed_of(load)
    plans = memory_plans(load, budget, speed)
    return choose(plans, options, budget, load.device, speed), plans


def choose(plans: Plans, options: RenderOptions, budget: MemoryBudget, device: Device, speed: ChunkSpeed) -> MemoryPlan:
    """Return the fastest plan that fits and that the user allows. Raises MachineError if there is none."""
    allowed = [plan for plan in plans if options.offload in ("auto", plan.name)]
    if not allowed and plans[0].is_apart and options.offload == "model":
        raise MachineError("--offload model: with --vae-device the parts of the model do not take turns", hint=_HINT)
    if not allowed:
        raise MachineError(f"--offload {options.offload} does not work on {device.kind} with these weights", hint=_HINT)
    fitting = [plan for plan in allowed if plan.fits is not False]
    if not fitting:
        raise _too_little(min(allowed, key=lambda plan: (plan.device_bytes, plan.host_bytes)), plans, budget, device)
    return fastest(fitting, budget, speed)


def _too_little(smallest: MemoryPlan, plans: Plans, budget: MemoryBudget, device: Device) -> MachineError:
    """Name what is missing, and what would help."""
    needs = [(smallest.host_bytes, budget.host_bytes, "host memory")]
    if device.kind != "cpu":
        needs.insert(0, (smallest.device_bytes, budget.device_bytes, "the device's memory"))
    if smallest.vae_device_bytes is not None:
        needs.insert(1, (smallest.vae_device_bytes, budget.vae_device_bytes, "the VAE device's memory"))
    missing = [
        f"{format_bytes(need)} of {memory}, of which {format_bytes(given)} may be used"
        for need, given, memory in needs
        if given is not None and need > given
    ]
    widest = max(smallest.phases, key=lambda phase: phase.total)
    better = [plan.name for plan in plans if plan.fits and plan.name != smallest.name]
    hint = f"use --offload {better[0]}" if better else "use a smaller --size; `helios plan` shows what each phase takes"
    return MachineError(
        f"--offload {smallest.name} takes {' and '.join(missing)}; its largest phase is {widest.phase}", hint=hint
    )


def choose_deeper(load: Workload, current: MemoryPlan, budget: MemoryBudget) -> MemoryPlan | None:
    """Return a plan to go on with after memory ran out: one that takes a tenth less of what the model takes, or the
    smallest; None if that is no smaller."""
    spared = max(phase.total for phase in current.phases if not phase.on_vae_device) // 10
    if load.device.kind == "cpu":
        budget = budget._replace(host_bytes=current.host_bytes - spared)
    else:
        budget = budget._replace(device_bytes=current.device_bytes - spared)
    speed = speed_of(load)
    plans = memory_plans(load, budget, speed)
    if fitting := [plan for plan in plans if plan.fits]:
        return fastest(fitting, budget, speed)
    smallest = min(plans, key=lambda plan: plan.device_bytes)
    return smallest if smallest.device_bytes < current.device_bytes else None


def allocator_share(vram: int | None, total_bytes: int) -> float | None:
    """Return the share of a GPU's memory that its allocator may take so that `--vram` holds in any case."""
    if vram is None:
        return None
    return min(1.0, max(0.0, (vram - RUNTIME_BYTES["cuda"]) / total_bytes))


# What the user reads


def notices_of(
    plan: MemoryPlan, plans: Plans, options: RenderOptions, budget: MemoryBudget, load: Workload
) -> list[str]:
    """Report a placement that the user requested or that is not the usual one, and where the disk sets the speed."""
    placed = plan.name != "none" or not options.memory_is_default
    said = [reason(plan, plans, options, budget, load)] if placed else []
    warning = cache_warning(plan, budget, speed_of(load))
    return [*said, warning] if warning else said


def reason(plan: MemoryPlan, plans: Plans, options: RenderOptions, budget: MemoryBudget, load: Workload) -> str:
    """Say which placement is taken, and why."""
    layers, placement = load.model.dit.num_layers, plan.placement
    what = f"offload: {plan.name}"
    if plan.name == "stream":
        what += f", {placement.resident} of {layers} blocks stay"
        what += ", transformer and VAE take turns" if placement.turns else ""
    if plan.name == "none" and not placement.prompt_matrices:
        what += ", what only prompts need comes and goes"
    if not placement.graphs:
        what += ", without room for graphs"
    if not placement.decode_beside:
        what += ", nothing is computed while a chunk is decoded"
    if options.offload != "auto":
        return f"{what}, as requested"
    if plan.name == "none":
        return f"{what}, as everything fits"
    key, where = "host_bytes" if load.device.kind == "cpu" else "device_bytes", ""
    second = budget.vae_device_bytes
    if second is not None and (plans[0].vae_device_bytes or 0) > second:
        key, where = "vae_device_bytes", " of the VAE's device"
    full, given = format_bytes(getattr(plans[0], key)), getattr(budget, key)
    room = "the free memory is unknown" if given is None else f"{format_bytes(given)} may be used"
    return f"{what}; with nothing offloaded it takes {full}{where} and {room}"


def cache_warning(plan: MemoryPlan, budget: MemoryBudget, speed: ChunkSpeed) -> str | None:
    """Warn if the page cache cannot hold the weights that are read over and over, so that the disk is waited for."""
    room = _cache_room(plan, budget)
    if room is None or plan.pass_bytes <= room:
        return None
    computing = speed.computing(plan)
    waiting = speed.least_seconds(plan, budget) - (computing or 0.0)
    if computing is not None and waiting < WORTH_A_NOTICE * computing:
        return None
    sets, waits = ("sets", "about") if computing is not None else ("may set", "up to")
    warning = (
        f"the disk {sets} the speed: {format_bytes(room)} of memory is left to cache {format_bytes(plan.pass_bytes)} "
        f"of weights, so a chunk waits {waits} {format_seconds(waiting)} for the disk "
        f"({format_bytes(speed.bandwidths.disk)}/s, {speed.bandwidths.basis})"
    )
    if plan.read_bytes > plan.moved_bytes * (1 + WORTH_A_NOTICE):  # stored in more bytes than it computes in
        warning += "; `helios models convert` makes a copy that is half as large or less"
    return warning


def mode_report(plan: MemoryPlan, layers: int, budget: MemoryBudget, speed: ChunkSpeed, *, chosen: bool) -> dict:
    """Return a plan for a model of `layers` blocks as plain values; seconds are a chunk's."""
    sizes = ("device_bytes", "vae_device_bytes", "host_bytes", "moved_bytes", "read_bytes")
    return {
        "mode": plan.name,
        "chosen": chosen,
        "fits": plan.fits,
        "resident_blocks": plan.placement.resident if plan.name == "stream" else layers,
        "turns": plan.placement.takes_turns,
        **{key: getattr(plan, key) for key in sizes},
        "transfer_seconds": speed.transfer(plan, budget),
        "seconds": speed.seconds(plan, budget),
        "phases": [{**phase._asdict(), "total": phase.total} for phase in plan.phases],
    }
