"""Which way of placing a model a render takes, decided before any weight is read."""

from __future__ import annotations

from dataclasses import replace

from helios_cli import machine
from helios_cli.cost.memory import RUNTIME_BYTES, Budget, MemoryMode, Subject
from helios_cli.cost.modes import fastest, memory_modes
from helios_cli.cost.transfer import Speed, speed_of
from helios_cli.device import Device
from helios_cli.errors import InputError, MachineError
from helios_cli.units import format_bytes, format_seconds
from helios_cli.weights.placement import Wish


def budget_of(wish: Wish, device: Device, *, here: bool = True) -> Budget:
    """What may be taken of `device` and its host, whose memory is not known unless it is `here`. InputError for a
    budget that means nothing there. More than is free is not to be had, whatever is wished."""
    if device.kind == "cpu" and wish.vram is not None:
        raise InputError("--vram is of a GPU, and this renders on the CPU", hint="give --ram, or a --device")
    host = machine.host_memory().available_bytes if here else None
    return Budget(_least(device.free_bytes, wish.vram), _least(host, wish.ram))


def _least(*amounts: int | None) -> int | None:
    """Of those that are known."""
    return min((amount for amount in amounts if amount is not None), default=None)


def budget_notices(wish: Wish, budget: Budget) -> list[str]:
    """What to say of wishes for more than there is."""
    return [
        f"{flag} {format_bytes(wished)}: only {format_bytes(given)} is free, which is what may be taken"
        for flag, wished, given in (("--vram", wish.vram, budget.device_bytes), ("--ram", wish.ram, budget.host_bytes))
        if wished is not None and given is not None and given < wished
    ]


def choose(modes: tuple[MemoryMode, ...], wish: Wish, budget: Budget, device: Device, speed: Speed) -> MemoryMode:
    """The mode that is asked for or, of those that fit, the fastest. MachineError if none fits."""
    asked = [mode for mode in modes if wish.offload in ("auto", mode.name)]
    if not asked:
        raise MachineError(f"--offload {wish.offload} does not go on {device.kind} with these weights", hint=_HINT)
    fitting = [mode for mode in asked if mode.fits is not False]
    if not fitting:
        raise _too_little(min(asked, key=lambda mode: (mode.device_bytes, mode.host_bytes)), modes, budget, device)
    return fastest(fitting, budget, speed)


WORTH_A_WORD = 0.05
"""Share of the computing that may be waited for, or of the files that may be spared, without a word."""

_HINT = "leave --offload out; `helios plan` shows what each mode takes"


def _too_little(smallest: MemoryMode, modes: tuple[MemoryMode, ...], budget: Budget, device: Device) -> MachineError:
    """Names what is missing, and what would help."""
    missing = []
    if device.kind != "cpu" and budget.device_bytes is not None and smallest.device_bytes > budget.device_bytes:
        needed, given = format_bytes(smallest.device_bytes), format_bytes(budget.device_bytes)
        missing.append(f"{needed} of the device's memory, of which it may take {given}")
    if budget.host_bytes is not None and smallest.host_bytes > budget.host_bytes:
        needed, given = format_bytes(smallest.host_bytes), format_bytes(budget.host_bytes)
        missing.append(f"{needed} of host memory, of which it may take {given}")
    widest = max(smallest.phases, key=lambda phase: phase.total)
    better = [mode.name for mode in modes if mode.fits and mode.name != smallest.name]
    hint = (
        f"take --offload {better[0]}" if better else "take a smaller --size; `helios plan` shows what each phase takes"
    )
    return MachineError(
        f"--offload {smallest.name} takes {' and '.join(missing)}; its widest phase is {widest.phase}", hint=hint
    )


def choose_deeper(subject: Subject, current: MemoryMode, budget: Budget) -> MemoryMode | None:
    """A mode to go on with after memory ran out in `current`: one that takes a tenth less of what the model takes, or
    else the smallest there is; None if that is no smaller."""
    spared = max(phase.total for phase in current.phases) // 10
    if subject.device.kind == "cpu":
        budget = replace(budget, host_bytes=current.host_bytes - spared)
    else:
        budget = replace(budget, device_bytes=current.device_bytes - spared)
    speed = speed_of(subject)
    modes = memory_modes(subject, budget, speed)
    fitting = [mode for mode in modes if mode.fits]
    if fitting:
        return fastest(fitting, budget, speed)
    smallest = min(modes, key=lambda mode: mode.device_bytes)
    return smallest if smallest.device_bytes < current.device_bytes else None


def reason(mode: MemoryMode, modes: tuple[MemoryMode, ...], wish: Wish, budget: Budget, subject: Subject) -> str:
    """A line that says which mode it is, and why."""
    layers, placement = subject.model.dit.num_layers, mode.placement
    what = f"offload: {mode.name}"
    if mode.name == "stream":
        what += f", {placement.resident} of {layers} blocks stay"
        what += ", transformer and VAE take turns" if placement.turns else ""
    if not placement.graphs:
        what += ", without room for graphs"
    if not placement.decode_beside:
        what += ", nothing is computed while a chunk is decoded"
    if wish.offload != "auto":
        return f"{what}, as asked for"
    if mode.name == "none":
        return f"{what}, as everything fits"
    where = "host" if subject.device.kind == "cpu" else "device"
    key = f"{where}_bytes"
    full = format_bytes(getattr(modes[0], key))
    given = getattr(budget, key)
    room = "what is free is not known" if given is None else f"{format_bytes(given)} may be taken"
    return f"{what}; with nothing offloaded it takes {full} and {room}"


def cache_warning(mode: MemoryMode, budget: Budget, speed: Speed) -> str | None:
    """What to say if the page cache cannot hold the weights that are read over and over, so that the disk is waited
    for."""
    if budget.host_bytes is None or mode.pass_bytes == 0:
        return None
    room = max(0, budget.host_bytes - mode.host_bytes)
    if mode.pass_bytes <= room:
        return None
    waiting = speed.least_seconds(mode, budget) - (speed.computing or 0.0)
    if speed.computing is not None and waiting < WORTH_A_WORD * speed.computing:
        return None
    sets, waits = ("sets", "about") if speed.computing is not None else ("may set", "up to")
    said = (
        f"the disk {sets} the speed: {format_bytes(room)} of memory are left to keep {format_bytes(mode.pass_bytes)} "
        f"of weights in, so a chunk waits {waits} {format_seconds(waiting)} for it "
        f"({format_bytes(speed.bandwidths.disk)}/s, {speed.bandwidths.basis})"
    )
    if mode.read_bytes > mode.moved_bytes * (1 + WORTH_A_WORD):  # stored in more bytes than it computes in
        said += "; `helios models convert` makes a copy that is half as large or less"
    return said


def plan_placement(subject: Subject, wish: Wish, budget: Budget) -> tuple[MemoryMode, tuple[MemoryMode, ...]]:
    """The mode to render with, and all of them. MachineError if none fits."""
    speed = speed_of(subject)
    modes = memory_modes(subject, budget, speed)
    return choose(modes, wish, budget, subject.device, speed), modes


def allocator_share(wish: Wish, total_bytes: int) -> float | None:
    """The share of a GPU's memory that its allocator may take so that `--vram` holds, come what may."""
    if wish.vram is None:
        return None
    return min(1.0, max(0.0, (wish.vram - RUNTIME_BYTES["cuda"]) / total_bytes))
