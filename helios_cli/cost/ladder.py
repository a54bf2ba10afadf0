"""The choices that `--speed` comes to on a device and for a model, and what each is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from helios_cli.cost.gpus import require_quant
from helios_cli.cost.speeds import duration_of
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.errors import MachineError
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.speed import LEVERS, chosen
from helios_cli.weights.fp8 import Quant


def quant_of(options: RenderOptions, device: Device) -> Quant:
    """Return --quant as it was given, else as --speed has it where the device is known to multiply so."""
    if options.quant is not None:
        return options.quant
    quant: Quant = chosen(options.speed, "quant") or "none"
    if quant == "none" or device.kind != "cuda" or options.dtype not in ("auto", "bfloat16"):
        return "none"
    try:
        require_quant(quant, device)
    except MachineError:
        return "none"
    return quant


class Taken(NamedTuple):
    """A choice of the ladder in one film.

    Attributes:
        key: field of `RenderOptions`.
        value: what the film has, whether --speed, its own flag or neither chose it.
        is_taken: whether that value is another than that of the rung `exact`.
        origin: "flag", or "speed".
        times: how many times as fast a chunk is computed as without it, by the plan's rates; None if they are not
            known, and where the film is without it.
        loss: the PSNR of latents that was measured (`recipe.speed`).
    """

    key: str
    value: Any
    is_taken: bool
    origin: str
    times: float | None
    loss: str


def taken_of(options: RenderOptions, load: Workload) -> tuple[Taken, ...]:
    """Return what became of each choice that --speed names."""
    found = []
    for lever in LEVERS:
        if chosen(options.speed, lever.key) is None:
            continue
        value = load.quant if lever.key == "quant" else getattr(load.plan, lever.key)
        without = _without(load, lever.key)
        origin = "speed" if getattr(options, lever.key) is None else "flag"
        times = _times(load, without) if value != lever.exact else None
        found.append(Taken(lever.key, value, value != lever.exact, origin, times, lever.loss))
    return tuple(found)


def _without(load: Workload, key: str) -> Workload:
    """Return the film without a choice; its prompts are counted already."""
    load = replace(load, prompts=load.work.prompts)
    if key == "quant":
        return replace(load, quant="none")
    plan = replace(load.plan, reuse_history=False) if key == "reuse_history" else replace(load.plan, reuse_steps=1)
    return replace(load, plan=plan)


def _times(load: Workload, other: Workload) -> float | None:
    """Return how many times as long the `other` film is denoised and decoded."""
    ours, theirs = _seconds(load), _seconds(other)
    return None if ours is None or theirs is None else theirs / ours


def _seconds(load: Workload) -> float | None:
    duration = duration_of(load)
    return None if duration.denoise is None or duration.decode is None else duration.denoise + duration.decode
