"""One film's plan with all that it will cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from helios_cli.cost.arithmetic import arithmetic_of, attention_shapes, measured_attention
from helios_cli.cost.auto import auto_model
from helios_cli.cost.disk import film_bytes, film_kind
from helios_cli.cost.duration import Duration, duration_of
from helios_cli.cost.gpus import other_device, require_quant
from helios_cli.cost.memory import Budget, MemoryMode, Subject
from helios_cli.cost.model import Model, find_model, is_auto
from helios_cli.cost.modes import memory_modes
from helios_cli.cost.placing import budget_notices, budget_of, cache_warning, choose, reason
from helios_cli.cost.tokens import PromptTokens, count_tokens
from helios_cli.cost.transfer import Speed, speed_of
from helios_cli.cost.work import Work, texts_of, work_of
from helios_cli.device import Device, find_device, pick_dtype
from helios_cli.errors import InputError, MachineError
from helios_cli.film.cache import Cache
from helios_cli.film.jobs import Job
from helios_cli.recipe.film import Film
from helios_cli.recipe.fingerprint import chunk_fingerprints, film_fingerprint
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film, too_long
from helios_cli.recipe.settings import choose_model, resolve
from helios_cli.weights import hub
from helios_cli.weights.fp8 import dtype_with
from helios_cli.weights.identity import weights_identity
from helios_cli.weights.vocabulary import introduction

T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """Everything about one film before it is rendered, as if nothing of it were there yet.

    It renders beside others in so many `lanes` in all: memory and a chunk's seconds are those of all of them.
    `fingerprints` are None where weights or device are not here. `kept` has the indices of the chunks that a render
    takes from earlier films.
    """

    film: Film
    plan: Plan
    model: Model
    device: Device
    device_origin: str
    dtype: str
    dtype_origin: str
    prompts: PromptTokens
    work: Work
    lanes: int
    memory: tuple[MemoryMode, ...]
    mode: MemoryMode
    budget: Budget
    speed: Speed
    film_bytes: int
    duration: Duration
    price: float | None
    fingerprints: tuple[str, ...] | None
    kept: frozenset[int]
    notices: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str | None:
        """The film's."""
        return None if self.fingerprints is None else film_fingerprint(self.plan, self.fingerprints)

    @property
    def calls_saved(self) -> int:
        """Model calls that the kept chunks stand for."""
        return sum(self.work.chunk_calls(self.plan.chunks[index]) for index in self.kept)

    @property
    def seconds(self) -> float | None:
        """Of the whole film in the mode that is taken, its weights included, and its share of what lanes take; None if
        not known."""
        duration, a_chunk = self.duration, self.speed.seconds(self.mode, self.budget)
        if a_chunk is None or duration.total is None:
            return None
        chunks = a_chunk / self.lanes * len(self.plan.chunks)
        return max(duration.text + duration.conditioning + chunks, duration.encode)

    @property
    def money(self) -> float | None:
        seconds = self.seconds
        return None if self.price is None or seconds is None else self.price * seconds / 3600


def estimate_jobs(
    jobs: list[Job], options: RenderOptions, *, on: str | None = None, price: float | None = None
) -> list[Estimate]:
    """Estimate the films that `options` ask for; `on` and `price` as in `estimate_films`."""
    options = replace(options, output=jobs[0].options.output)  # the model stays as asked: its origin is shown
    return estimate_films([job.film for job in jobs], options, on=on, price=price)


def estimate_films(
    films: list[Film], options: RenderOptions, *, on: str | None = None, price: float | None = None
) -> list[Estimate]:
    """Estimate films as `helios render` would render them. Errors are those that a render would end with.

    `on` names a GPU that is not here, in place of `options.device`; `price` is that of a GPU-hour.
    """
    device = find_device(options.device) if on is None else other_device(on)
    require_quant(options.quant, device)
    dtype, _ = pick_dtype(dtype_with(options.quant, options.dtype), device)
    models: dict[str, tuple[Model, list[str]]] = {}
    found = []
    for group in groups_of(films, options.lanes, lambda film: choose_model(film.recipe, options)[0]):
        for film in group:
            name, origin = choose_model(film.recipe, options)
            if name not in models:  # a model is found once, whatever its films
                models[name] = _find(name, options, device, dtype)
            model, notices = models[name]
            settings = resolve(film.recipe, options, model.defaults)
            plan = plan_film(film, settings, strict=options.strict)
            plan = replace(plan, origins={"model": origin, **plan.origins})
            found.append(_estimate(film, plan, model, device, dtype, options, on, price, notices, len(group)))
    return found


def groups_of(films: Iterable[T], lanes: int, model_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Films that follow each other and have one model, so many at a time: those that render together."""
    for _, same in itertools.groupby(films, key=model_of):
        while group := list(itertools.islice(same, lanes)):
            yield group


def _find(name: str, options: RenderOptions, device: Device, dtype: str) -> tuple[Model, list[str]]:
    notices = []
    if is_auto(name):
        name, line = auto_model(device, dtype, options, quant=options.quant)
        notices.append(line)
    if line := hub.shadow_of(name):
        notices.append(line)
    model = find_model(name, options.revision)
    if model.checkpoint is None:
        notices.append(f"{name} is not downloaded: planned with its published shape, without fingerprints")
    return model, notices


def _estimate(
    film: Film,
    plan: Plan,
    model: Model,
    device: Device,
    dtype: str,
    options: RenderOptions,
    on: str | None,
    price: float | None,
    notices: list[str],
    lanes: int,
) -> Estimate:
    device = device.with_model(model.parameters["transformer"])
    texts = texts_of(plan)
    prompts = count_tokens(model, texts)
    if model.checkpoint is not None and (line := introduction(model.checkpoint, model.name, texts)):
        notices = [*notices, line]
    work = work_of(plan, model, prompts, dtype)
    fingerprints = None
    if model.checkpoint is not None and on is None:
        shapes = tuple(attention_shapes(model.dit, plan.size, model.stages, dtype))
        taken = measured_attention(device.name, shapes) | {
            shape: name for shape, name in options.attention_taken.items() if shape in shapes
        }
        arithmetic = arithmetic_of(device, dtype, taken, quant=options.quant, attention=options.attention)
        weights = weights_identity(model.checkpoint)
        fingerprints = tuple(chunk_fingerprints(plan, weights, arithmetic, reanchor=options.reanchor))
    subject = Subject(plan, model, work, prompts, device, dtype, options.quant, lanes)
    budget = budget_of(options, device, here=on is None)
    speed = speed_of(subject)
    modes = memory_modes(subject, budget, speed)
    mode, said = _placed(modes, options, budget, subject, speed)
    return Estimate(
        film=film,
        plan=plan,
        model=model,
        device=device,
        device_origin="flag" if on is not None or options.device != "auto" else "default",
        dtype=dtype,
        dtype_origin="default" if options.dtype == "auto" else "flag",
        prompts=prompts,
        work=work,
        lanes=lanes,
        memory=modes,
        mode=mode,
        budget=budget,
        speed=speed,
        film_bytes=film_bytes(plan, film_kind(options.output), options.codec, options.crf),
        duration=duration_of(plan, work, device, dtype, model.parameters["transformer"], options.quant),
        price=price,
        fingerprints=fingerprints,
        kept=_kept(fingerprints or ()) if options.cache else frozenset(),
        notices=(*notices, *plan.notices, *said, *_too_long(plan, prompts, strict=options.strict)),
    )


def _kept(fingerprints: tuple[str, ...]) -> frozenset[int]:
    """The indices of chunks that the cache holds."""
    cache = Cache()
    return frozenset(index for index, fingerprint in enumerate(fingerprints) if cache.has(fingerprint))


def _placed(
    modes: tuple[MemoryMode, ...], options: RenderOptions, budget: Budget, subject: Subject, speed: Speed
) -> tuple[MemoryMode, list[str]]:
    """The mode that a render takes, or the smallest where none fits, and what is to be said of it."""
    said = budget_notices(options, budget)
    try:
        mode = choose(modes, options, budget, subject.device, speed)
    except MachineError as error:
        return min(modes, key=lambda mode: mode.device_bytes), [*said, f"a render would end with: {error.message}"]
    if mode.name != "none" or not options.memory_is_default:
        said.append(reason(mode, modes, options, budget, subject))
    if warning := cache_warning(mode, budget, speed):
        said.append(warning)
    return mode, said


def _too_long(plan: Plan, prompts: PromptTokens, *, strict: bool) -> list[str]:
    """What the model does not see of prompts that are too long; an InputError if that is `strict`."""
    found = [f"{plan.title}, {too_long(plan, text, lost)}" for text, lost in prompts.lost.items()]
    if found and strict:
        raise InputError(found[0], hint="shorten it, or leave out --strict")
    return found
