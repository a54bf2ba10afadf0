"""Which model `auto` stands for on a machine."""

from __future__ import annotations

from dataclasses import replace

from helios_cli.cost.ladder import quant_of
from helios_cli.cost.model import Model, find_model
from helios_cli.cost.placing import (
    bandwidths_of,
    budget_of,
    choose,
    memory_plans,
    mode_report,
    plan_placement,
    speed_of,
)
from helios_cli.cost.work import PromptTokens
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.errors import CheckpointError, InputError, MachineError
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK
from helios_cli.weights import hub
from helios_cli.weights.fp8 import Quant
from helios_cli.weights.names import EMBEDDED, KNOWN
from helios_cli.weights.source import source_of

BEST = "distilled"
"""The published model that `auto` takes where it can."""

USUAL_TOKENS = 100
"""Tokens of a prompt that is not written yet."""


def auto_model(device: Device, dtype: str, options: RenderOptions, vae_device: Device | None = None) -> tuple[str, str]:
    """Return the model, and a line that says which, why, and how to get the other one. On a CPU the best one is
    taken only if it fits as a whole, unless `options` name a mode: streamed, it renders there too, in hours."""
    try:
        folder = hub.find(source_of(BEST))
    except InputError as error:  # the cache cannot be used; the packaged model needs none
        return EMBEDDED, f"model: {EMBEDDED}, as {error.message}"
    if folder is None:
        return EMBEDDED, f"model: {EMBEDDED}, as {BEST} is not downloaded; get it with `helios models pull {BEST}`"
    if device.kind == "cpu" and options.offload == "auto":
        options = replace(options, offload="none")
    try:
        load = usual_film(
            find_model(BEST), device, dtype, quant=quant_of(options, device), vae_device=vae_device, vram=options.vram
        )
        plan_placement(load, options, budget_of(options, device, vae_device))
    except (MachineError, CheckpointError) as error:
        return EMBEDDED, f"model: {EMBEDDED}, as {error.message}; `-m {BEST}` uses it anyway"
    return BEST, f"model: {BEST}, from the local cache; `-m {EMBEDDED}` uses the small one in the package"


def survey(device: Device, dtype: str) -> dict:
    """Return what each mode of each published model takes here, at its own size and steps, as plain values.

    budget      {device_bytes, host_bytes}
    bandwidths  {disk, cache, upload, basis}
    models      name -> {runs: the mode it would render in, or null; modes [as `helios plan` has them]}
    """
    options = RenderOptions()
    budget, models = budget_of(options, device), {}
    for name in KNOWN:
        model = find_model(name)
        load = usual_film(model, device, dtype, vram=options.vram)
        speed = speed_of(load)
        plans = memory_plans(load, budget, speed)
        try:
            chosen = choose(plans, options, budget, device, speed)
        except MachineError:
            chosen = None
        layers = model.dit.num_layers
        modes = [mode_report(plan, layers, budget, speed, chosen=plan is chosen) for plan in plans]
        models[name] = {"runs": chosen and chosen.name, "modes": modes}
    bandwidths = bandwidths_of(device.kind, device.name)
    return {"budget": budget._asdict(), "bandwidths": bandwidths._asdict(), "models": models}


def usual_film(
    model: Model,
    device: Device,
    dtype: str,
    *,
    quant: Quant = "none",
    vae_device: Device | None = None,
    vram: int | None = None,
) -> Workload:
    """Return two chunks at the model's own size, steps and guidance, with prompts of a usual length."""
    prompts = (("a prompt", 1.0),)
    chunks = tuple(
        Chunk(index, 0, index * FRAMES_PER_CHUNK, FRAMES_PER_CHUNK, prompts, index == 0, 0 if index == 0 else None)
        for index in range(2)
    )
    preset = model.preset
    plan = Plan("", chunks, 2 * FRAMES_PER_CHUNK, DEFAULT_FPS, model.native_size, "", preset.steps, preset.guidance)
    tokens = PromptTokens(dict.fromkeys(["a prompt", ""], USUAL_TOKENS), counted=False, lost={})
    return Workload(plan, model, device, dtype, quant, prompts=tokens, vae_device=vae_device, vram=vram)
