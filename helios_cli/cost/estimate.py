"""The estimate of a film, before it is rendered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from helios_cli.cost.arithmetic import (
    arithmetic_of,
    attention_shapes,
    convolution_shapes,
    fast_sums,
    measured_attention,
    measured_convolutions,
    product_shapes,
    taken_for,
)
from helios_cli.cost.gpus import other_device, require_quant
from helios_cli.cost.ladder import Taken, quant_of, taken_of
from helios_cli.cost.memory import MemoryBudget, MemoryPlan
from helios_cli.cost.model import Model
from helios_cli.cost.placing import (
    ChunkSpeed,
    budget_notices,
    budget_of,
    choose,
    memory_plans,
    notices_of,
    speed_of,
)
from helios_cli.cost.planner import PlannedFilm, Planner
from helios_cli.cost.speeds import Duration, after_seconds, duration_of
from helios_cli.cost.team import Team
from helios_cli.cost.work import Work
from helios_cli.cost.workload import Workload
from helios_cli.device import Device, find_device, find_vae_device, is_second, pick_dtype
from helios_cli.errors import InputError, MachineError
from helios_cli.film.cache import Cache
from helios_cli.film.jobs import Job
from helios_cli.measured import SUMS
from helios_cli.recipe.film import Film
from helios_cli.recipe.fingerprint import chunk_fingerprints, film_fingerprint
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan
from helios_cli.recipe.sound import Sound
from helios_cli.weights.checkpoint import weights_identity
from helios_cli.weights.fp8 import dtype_with

if TYPE_CHECKING:
    from helios_cli.film.after import After
    from helios_cli.film.sound import Track
    from helios_cli.weights.preview import PreviewFile

T = TypeVar("T")

CEILING_BITS = {"h264": 2.2, "hevc": 1.7, "av1": 1.9}
"""Bits a pixel at CRF 17, preset medium, of a picture with visible grain (noise of 8 levels over ffmpeg's test source,
640x384), as measured. A film without grain takes a fifth of it or less."""

CEILING_CRF = 17
CRF_STEP = 6
"""CRF by which the bits double, about."""

LOSSLESS_BITS = {"mkv": 27, "png": 24.5}
"""Bits a pixel at most: white noise takes more than its 24 bits."""


@dataclass(frozen=True)
class Estimate:
    """One film before it is rendered, as if no part of it existed yet.

    Attributes:
        team: The ranks that make a model call together.
        lanes: Films that render together; memory and the seconds of a chunk are those of all of them.
        memory: A plan for each mode of `--offload`; `mode` is the one that is chosen.
        fingerprints: By chunk; None where weights or device are not here.
        kept: Indices of the chunks that a render takes from earlier films.
        vae_device: The device of the VAE and the text encoder, if it is another one.
        track: The sound under the film.
        preview: The decoder in the VAE's place, if there is one; with `final` the VAE decodes the film afterwards.
        after: The stage after the render, if there is one.
        after_seconds: Its time, 0 without one; None if no earlier film here had the same stage.
        taken: What became of the choices that --speed names.
    """

    film: Film
    plan: Plan
    model: Model
    work: Work
    device: Device
    device_origin: str
    dtype: str
    dtype_origin: str
    team: Team
    lanes: int
    memory: tuple[MemoryPlan, ...]
    mode: MemoryPlan
    budget: MemoryBudget
    speed: ChunkSpeed
    film_bytes: int
    duration: Duration
    price: float | None
    fingerprints: tuple[str, ...] | None
    kept: frozenset[int]
    notices: tuple[str, ...]
    vae_device: Device | None = None
    track: Track | None = None
    preview: PreviewFile | None = None
    final: bool = False
    after: After | None = None
    taken: tuple[Taken, ...] = ()
    after_seconds: float | None = 0.0

    @cached_property
    def fingerprint(self) -> str | None:
        """The fingerprint of the film, which a preview is not if the final one takes its place."""
        preview = self.preview.digest if self.preview and not self.final else ""
        return None if self.fingerprints is None else film_fingerprint(self.plan, self.fingerprints, preview)

    @property
    def calls_saved(self) -> int:
        """Model calls that the kept chunks spare."""
        return sum(self.work.chunk_calls(self.plan.chunks[index]) for index in self.kept)

    @property
    def seconds(self) -> float | None:
        """Seconds of the film in the chosen mode, transfers of weights included: its share of what the lanes take, and
        what comes after it as far as that is known."""
        duration, a_chunk = self.duration, self.speed.seconds(self.mode, self.budget)
        if a_chunk is None or duration.text is None or duration.conditioning is None or duration.final is None:
            return None
        chunks = a_chunk / self.lanes * len(self.plan.chunks)
        behind = self.after_seconds or 0.0
        first = max(duration.text + duration.conditioning + chunks, duration.encode) + behind
        return first + max(duration.final, duration.encode) + behind if self.final else first

    @property
    def money(self) -> float | None:
        seconds = self.seconds
        return None if self.price is None or seconds is None else self.price * seconds / 3600


def estimate_jobs(
    jobs: list[Job], options: RenderOptions, *, on: str | None = None, price: float | None = None
) -> list[Estimate]:
    """Estimate the films that `options` ask for; `on` and `price` as in `estimate_films`."""
    options = replace(options, output=jobs[0].output)  # the model stays as asked: its origin is shown
    return estimate_films([job.film for job in jobs], options, on=on, price=price)


def estimate_films(
    films: list[Film], options: RenderOptions, *, on: str | None = None, price: float | None = None
) -> list[Estimate]:
    """Estimate films as `helios render` would render them. Errors are those that a render would end with.

    `on` names a GPU that is not here, in place of `options.device`; `price` is that of a GPU-hour.
    """
    if price is not None and not 0 <= price < 1e6:
        raise InputError(f"--price {price}: must be 0 or more, for one GPU-hour")
    device = find_device(options.device) if on is None else other_device(on)
    vae_device = find_vae_device(options.vae_device, options.device, device) if on is None else second_of(on, options)
    quant = quant_of(options, device)
    require_quant(quant, device)
    dtype, _ = pick_dtype(dtype_with(quant, options.dtype), device)
    planner = Planner(options, device, dtype, quant, vae_device)
    planned = [planner.plan(film, options) for film in films]
    preview = _preview_of(options)
    estimates = []
    for group in groups_of(planned, options.lanes, lambda film: film.asked):
        for film in group:
            threads = {"parameters": film.model.parameters["transformer"], "ranks": options.gpus_per_film}
            used, second = device.with_model(**threads), vae_device and vae_device.with_model(**threads)
            how = used, dtype, film.quant, len(group), second, preview, film.prompts
            load = Workload.of(film.plan, film.model, options, *how)
            estimates.append(_estimate(film, load, options, on, price))
    return estimates


# What few films have; its modules are imported for them alone.


def _preview_of(options: RenderOptions) -> PreviewFile | None:
    if options.preview_decoder is None:
        return None
    from helios_cli.weights.preview import PreviewFile

    return PreviewFile.open(options.preview_decoder)


def _after_of(options: RenderOptions, plan: Plan, kind: str) -> After | None:
    if not options.changes_frames:
        return None
    from helios_cli.film.after import After

    return After.of(options, plan.size, plan.fps, kind)


def _track_of(sound: Sound | None) -> Track | None:
    if sound is None:
        return None
    from helios_cli.film.sound import track_of

    return track_of(sound)


def groups_of(films: Iterable[T], lanes: int, model_of: Callable[[T], object]) -> Iterator[list[T]]:
    """Yield the films that render together: at most `lanes` that follow each other and have one model (`model_of`)."""
    for _, same in itertools.groupby(films, key=model_of):
        while group := list(itertools.islice(same, lanes)):
            yield group


def second_of(on: str, options: RenderOptions) -> Device | None:
    """Return a second GPU like `on` for the VAE, if `options` name one. Raises InputError for another device."""
    gpu = other_device(on)
    if options.vae_device is None or not is_second(options.vae_device, "cuda", gpu):
        return None
    if options.vae_device.startswith("cuda"):
        return gpu
    raise InputError(
        f"--vae-device {options.vae_device}: with --on, only a second GPU of that kind can be planned for",
        hint="write --vae-device cuda:1",
    )


def _fingerprints(load: Workload, options: RenderOptions) -> tuple[str, ...]:
    """Return the fingerprints of the film's chunks, by what is known of the device without measuring it."""
    plan, model, team = load.plan, load.model, load.teams
    checkpoint = model.checkpoint
    assert checkpoint is not None, "only weights that are here have fingerprints"
    shapes = tuple(attention_shapes(model.dit, plan.size, model.stages, load.dtype, team.size, load.quant))
    taken = measured_attention(load.device.name, shapes) | taken_for(shapes, options.attention_taken)
    sums: frozenset[int] = frozenset()
    if load.quant != "none" and load.device.kind == "cuda":
        products = product_shapes(model.dit, checkpoint.native_size, model.stages)
        sums = fast_sums(SUMS.on(load.device.name).known, products)
    convolutions = convolution_shapes(model.vae, plan.size, load.vae_dtype)
    arithmetic = arithmetic_of(
        load.device,
        load.dtype,
        taken,
        quant=load.quant,
        attention=options.attention,
        fast_sums=sums,
        vae_device=load.vae_device,
        team=team.size,
        decoders=team.decoders(plan.size, is_apart=load.vae_device is not None),
        piece_elements=load.piece_elements,
        convolutions=measured_convolutions(load.decoder.name, convolutions),
        latents=load.latent_dtype,
    )
    weights = weights_identity(checkpoint)
    return tuple(chunk_fingerprints(plan, weights, arithmetic, reanchor=options.reanchor))


def _estimate(
    planned: PlannedFilm, load: Workload, options: RenderOptions, on: str | None, price: float | None
) -> Estimate:
    plan, model, team = planned.plan, planned.model, load.teams
    kind = film_kind(options.output)
    after = _after_of(options, plan, kind)
    notices = planned.notices
    if load.preview:
        notices = (*notices, *load.preview.doubts(model.vae, model.name))
    if team.notice:
        notices = (*notices, team.notice)
    is_here = model.checkpoint is not None and on is None
    fingerprints = _fingerprints(load, options) if is_here else None
    budget, speed = budget_of(options, load.device, load.vae_device, here=on is None), speed_of(load)
    plans = memory_plans(load, budget, speed)
    mode, placing = _placed(plans, options, budget, load, speed)
    return Estimate(
        film=planned.film,
        plan=plan,
        model=model,
        work=load.work,
        device=load.device,
        device_origin="flag" if on is not None or options.device != "auto" else "default",
        dtype=load.dtype,
        dtype_origin="default" if options.dtype == "auto" else "flag",
        team=team,
        lanes=load.lanes,
        memory=plans,
        mode=mode,
        budget=budget,
        speed=speed,
        film_bytes=film_bytes(plan, kind, options.codec, options.crf, after),
        duration=duration_of(load),
        price=price,
        fingerprints=fingerprints,
        kept=_kept(fingerprints or ()) if options.cache else frozenset(),
        notices=(*notices, *placing),
        vae_device=load.vae_device,
        track=_track_of(planned.sound),
        preview=load.preview,
        final=load.final,
        after=after,
        taken=taken_of(options, load),
        after_seconds=0.0 if after is None else after_seconds(after, plan.num_frames),
    )


def _kept(fingerprints: tuple[str, ...]) -> frozenset[int]:
    """Return the indices of chunks that the cache holds."""
    cache = Cache()
    return frozenset(index for index, fingerprint in enumerate(fingerprints) if cache.has(fingerprint))


def _placed(
    plans: tuple[MemoryPlan, ...], options: RenderOptions, budget: MemoryBudget, load: Workload, speed: ChunkSpeed
) -> tuple[MemoryPlan, list[str]]:
    """Return the plan that a render takes, or the smallest where none fits, and notices about it."""
    notices = budget_notices(options, budget)
    try:
        chosen = choose(plans, options, budget, load.device, speed)
    except MachineError as error:
        smallest = min(plans, key=lambda plan: plan.device_bytes)
        return smallest, [*notices, f"a render would end with: {error.message}"]
    return chosen, [*notices, *notices_of(chosen, plans, options, budget, load)]


def film_kind(output: str | None) -> str:
    """Return "mp4", "mkv" or "png" for an output's name; "mp4" without one."""
    suffix = Path(output).suffix.lower() if output and not output.endswith("/") else ""
    return "mp4" if output is None else {".mp4": "mp4", ".mkv": "mkv"}.get(suffix, "png")


def film_bytes(plan: Plan, kind: str, codec: str, crf: int, after: After | None = None) -> int:
    """Return a ceiling for the bytes of the finished film; most films stay far below it.

    `after` is what comes after the render."""
    bits = CEILING_BITS[codec] * 2 ** ((CEILING_CRF - crf) / CRF_STEP) if kind == "mp4" else LOSSLESS_BITS[kind]
    size, num_frames = (after.made.size, after.num_frames(plan.num_frames)) if after else (plan.size, plan.num_frames)
    return int(bits * prod(size) * num_frames / 8)


def growing_bytes(plan: Plan, after: After | None) -> int:
    """Return a ceiling for the bytes of the lossless film that grows, if something comes after the render; else 0."""
    return film_bytes(plan, "mkv", "", 0) if after else 0
