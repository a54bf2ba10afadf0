"""Plans films without torch: the model that each takes, its chunks, and the tokens of its prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from helios_cli.cost.auto import auto_model
from helios_cli.cost.model import Model, find_model
from helios_cli.cost.work import PromptTokens, count_tokens
from helios_cli.device import Device
from helios_cli.errors import InputError
from helios_cli.recipe.film import Film
from helios_cli.recipe.lora import Lora, choose_loras
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film, too_long
from helios_cli.recipe.settings import DEFAULT_MODEL, choose_model, resolve_settings
from helios_cli.recipe.sound import Sound, choose_sound
from helios_cli.weights import hub
from helios_cli.weights.fp8 import Quant
from helios_cli.weights.source import shadow_of
from helios_cli.weights.vocabulary import introduction


class PlannedFilm(NamedTuple):
    """A film with its model, before memory and time are known.

    Attributes:
        asked: The name of the model as it was given, which may be auto, and the LoRA files.
        quant: How the model's weights are rounded as they are read.
        notices: About the model, the prompts and the plan.
    """

    film: Film
    asked: tuple[str, tuple[Lora, ...]]
    model: Model
    quant: Quant
    plan: Plan
    prompts: PromptTokens
    sound: Sound | None
    notices: tuple[str, ...]


class Planner:
    """Plans films for one kind of machine. A model is looked up once, however many films use it.

    `options` are those of the command: they name the revision of models, and what `auto` chooses by. With `downloads`,
    a model or LoRA file that is not here is downloaded, which `progress` shows; otherwise a published model is planned
    with its published shape.
    """

    def __init__(
        self,
        options: RenderOptions,
        device: Device,
        dtype: str,
        quant: Quant,
        vae_device: Device | None,
        *,
        downloads: bool = False,
        progress: hub.Progress | None = None,
    ) -> None:
        self._options, self._device, self._dtype, self._quant = options, device, dtype, quant
        self._vae_device = vae_device
        self._downloads, self._progress = downloads, progress
        self._models: dict[object, tuple[Model, list[str]]] = {}

    def plan(self, film: Film, options: RenderOptions) -> PlannedFilm:
        """Plan a film with its own `options`: model, LoRA files, sound and length. Raises HeliosError for what stands
        against it."""
        name, origin = choose_model(film.recipe, options)
        loras, lora_origin = choose_loras(film, options)
        sound, sound_origins = choose_sound(film, options)
        model, notices = self._model(name, loras)
        quant = "none" if options.quant is None and model.low_bit else self._quant  # its weights are rounded already
        if model.checkpoint is not None:
            model.checkpoint.require_rounded_once(name, quant)
        plan = plan_film(film, resolve_settings(film.recipe, options, model.defaults), strict=options.strict)
        plan = replace(plan, origins={"model": origin, "lora": lora_origin, **sound_origins, **plan.origins})
        prompts = count_tokens(model, plan.texts)
        notices = [*notices, *_too_long(plan, prompts, strict=options.strict)]
        if model.checkpoint is not None and (line := introduction(model.checkpoint, model.name, plan.texts)):
            notices.append(line)
        return PlannedFilm(film, (name, loras), model, quant, plan, prompts, sound, (*notices, *plan.notices))

    def _model(self, name: str, loras: tuple[Lora, ...]) -> tuple[Model, list[str]]:
        """Return a model with its LoRA files, and notices about it; it is downloaded first if need be."""
        if (name, loras) not in self._models:
            for lora in loras if self._downloads else ():
                hub.lora_file(lora.path, progress=self._progress)
            model, notices = self._find_here(name, loras)
            if model.checkpoint is None and self._downloads:
                hub.resolve(model.name, self._options.revision, progress=self._progress)
                model, notices = self._find_here(name, loras)
            self._models[name, loras] = model, notices
        return self._models[name, loras]

    def _find_here(self, name: str, loras: tuple[Lora, ...]) -> tuple[Model, list[str]]:
        """Return a model with its LoRA files, and notices about it, without downloading anything."""
        notices: list[str] = []
        if name == DEFAULT_MODEL:
            options = replace(self._options, lora=loras)
            name, line = auto_model(self._device, self._dtype, options, self._vae_device)
            notices.append(line)
        if shadow := shadow_of(name):
            notices.append(shadow)
        model = find_model(name, self._options.revision)
        if model.checkpoint is None:
            notices.append(f"{name} is not downloaded: planned with its published shape, without fingerprints")
            if loras:
                notices.append("whether the LoRA files fit it is not known before that")
        elif loras:
            from helios_cli.weights.adapters import fold

            files = [(hub.found_lora(lora.path), lora.weight) for lora in loras]
            checkpoint, lines = fold(model.checkpoint, files)
            model, notices = replace(model, checkpoint=checkpoint), [*notices, *lines]
        return model, notices


def _too_long(plan: Plan, prompts: PromptTokens, *, strict: bool) -> list[str]:
    """Report what the model does not see of prompts that are too long; raise InputError for it if `strict`."""
    notices = [f"{plan.title}, {too_long(plan, text, lost)}" for text, lost in prompts.lost.items()]
    if notices and strict:
        raise InputError(notices[0], hint="shorten it, or leave out --strict")
    return notices
