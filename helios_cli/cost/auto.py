"""Which model `auto` stands for on a machine."""

from __future__ import annotations

from dataclasses import asdict

from helios_cli.cost.memory import Subject
from helios_cli.cost.model import Model, find_model
from helios_cli.cost.modes import memory_modes
from helios_cli.cost.placing import budget_of, choose, plan_placement
from helios_cli.cost.tokens import PromptTokens
from helios_cli.cost.transfer import bandwidths_of, mode_report, speed_of
from helios_cli.cost.work import work_of
from helios_cli.device import Device
from helios_cli.errors import CheckpointError, InputError, MachineError
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK
from helios_cli.weights import hub
from helios_cli.weights.fp8 import Quant
from helios_cli.weights.names import EMBEDDED, KNOWN
from helios_cli.weights.placement import Wish

BEST = "distilled"
"""The published model that `auto` takes where it can."""

USUAL_TOKENS = 100
"""Of a prompt that nobody has written yet."""


def auto_model(device: Device, dtype: str, wish: Wish, *, quant: Quant = "none") -> tuple[str, str]:
    """The model, and a line that says which, why, and how to get the other.

    On a CPU the best one is taken only if it fits as a whole, unless `wish` asks for something: streamed, it renders
    there too, but for hours.
    """
    try:
        found = hub.find(hub.source_of(BEST))
    except InputError as error:  # the cache cannot be used; the packaged model needs none
        return EMBEDDED, f"model: {EMBEDDED}, as {error.message}"
    if found is None:
        return EMBEDDED, f"model: {EMBEDDED}, as {BEST} is not downloaded; get it with `helios models pull {BEST}`"
    if device.kind == "cpu" and wish.offload == "auto":
        wish = Wish("none", wish.vram, wish.ram)
    try:
        plan_placement(usual_film(find_model(BEST), device, dtype, quant=quant), wish, budget_of(wish, device))
    except (MachineError, CheckpointError) as error:
        return EMBEDDED, f"model: {EMBEDDED}, as {error.message}; `-m {BEST}` insists"
    return BEST, f"model: {BEST}, from the local cache; `-m {EMBEDDED}` takes the small one in the package"


def survey(device: Device, dtype: str, wish: Wish) -> dict:
    """What each mode of each published model takes here, at its own size and steps, as plain values.

    budget      {device_bytes, host_bytes}
    bandwidths  {disk, cache, upload, basis}
    models      name -> {runs: the mode it would render in, or null; modes [as `helios plan` has them]}
    """
    budget, bandwidths = budget_of(wish, device), bandwidths_of(device.kind, device.name)
    found = {}
    for name in KNOWN:
        model = find_model(name)
        subject = usual_film(model, device, dtype)
        speed = speed_of(subject)
        modes = memory_modes(subject, budget, speed)
        try:
            chosen = choose(modes, wish, budget, device, speed)
        except MachineError:
            chosen = None
        layers = model.dit.num_layers
        found[name] = {
            "runs": chosen and chosen.name,
            "modes": [mode_report(mode, layers, budget, speed, chosen=mode is chosen) for mode in modes],
        }
    return {"budget": asdict(budget), "bandwidths": asdict(bandwidths), "models": found}


def usual_film(model: Model, device: Device, dtype: str, *, quant: Quant = "none") -> Subject:
    """Two chunks at the model's own size, steps and guidance, with prompts of a usual length."""
    prompts = (("a prompt", 1.0),)
    chunks = tuple(
        Chunk(index, 0, index * FRAMES_PER_CHUNK, FRAMES_PER_CHUNK, prompts, index == 0, 0 if index == 0 else None)
        for index in range(2)
    )
    preset = model.preset
    plan = Plan("", chunks, 2 * FRAMES_PER_CHUNK, DEFAULT_FPS, model.native_size, "", preset.steps, preset.guidance)
    tokens = PromptTokens(dict.fromkeys(["a prompt", ""], USUAL_TOKENS), counted=False, lost={})
    return Subject(plan, model, work_of(plan, model, tokens, dtype), tokens, device, dtype, quant)
