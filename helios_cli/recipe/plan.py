"""A plan: the film resolved into chunks. Pure numbers and strings; torch is not imported here.

The grid of 33 frames begins anew at each cut, so that the segment between two cuts depends on nothing else. Within a
segment a prompt can change only from one chunk to the next: a chunk belongs to the shot that its middle falls into.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.problems import Problem, RecipeError
from helios_cli.recipe.prompts import clean_prompt, with_style
from helios_cli.recipe.settings import Settings, check_flags, film_fps, length_in_frames
from helios_cli.recipe.values import DEFAULT_BLEND_SECONDS
from helios_cli.units import FRAMES_PER_CHUNK, MAX_TEXT_TOKENS, chunks_for, counted
from helios_cli.visible import printable

if TYPE_CHECKING:
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.timeline import Timeline


@dataclass(frozen=True)
class Chunk:
    """One turn of the autoregression, 33 frames of which the first `num_frames` are kept.

    Attributes:
        index: place in the film, from 0.
        shot: index of the shot that is in force at the chunk's first frame.
        start_frame: index in the film of the chunk's first frame.
        num_frames: frames kept, 1 to 33; less than 33 only before a cut and at the end of the film.
        prompts: `(prompt, weight)` pairs whose embeddings are mixed; weights sum to 1. One pair outside blends.
        fresh: history and anchor start empty here and the generator is seeded with `seed` (first chunk, and cuts).
        seed: seed of the generator if `fresh`, else None.
        image: picture that a fresh chunk starts from, or None.
        video: clip that a fresh chunk continues, or None.
    """

    index: int
    shot: int
    start_frame: int
    num_frames: int
    prompts: tuple[tuple[str, float], ...]
    fresh: bool
    seed: int | None
    image: Path | None = None
    video: Path | None = None


@dataclass(frozen=True)
class PlannedShot:
    """A shot in the film: its prompt as the model reads it, and its requested frames; `blend_frames` may be 0."""

    index: int
    prompt: str
    start_frame: int
    num_frames: int
    transition: str
    blend_frames: float


@dataclass(frozen=True)
class Rounding:
    """A shot whose prompt starts with the chunk at `actual_frame` instead of at `asked_frame`."""

    shot: int
    asked_frame: int
    actual_frame: int


@dataclass(frozen=True)
class Plan:
    """A whole film, ready for the engine. `size` is (width, height) in pixels; `title` names the film to a person.
    With `reuse_history` the finer stages of a chunk take keys and values of the history from the coarsest one. Of
    `reuse_steps` steps one makes model calls (`has_calls`).

    The rest is for people: the shots, the rounding to the grid, decisions made for the user, and the origin of each
    setting: a flag, the recipe, the model or a default.
    """

    title: str
    chunks: tuple[Chunk, ...]
    num_frames: int
    fps: float
    size: tuple[int, int]
    negative: str
    steps: tuple[int, ...]
    guidance: float
    shots: tuple[PlannedShot, ...] = ()
    roundings: tuple[Rounding, ...] = ()
    notices: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    reuse_history: bool = False
    reuse_steps: int = 1

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts that are encoded, each once, in the order of the film; the negative one last."""
        texts = [text for chunk in self.chunks for text, _ in chunk.prompts]
        return tuple(dict.fromkeys([*texts, self.negative] if self.guidance > 1 else texts))


def has_calls(step: int, steps: int, every: int) -> bool:
    """Return whether a step of a stage of `steps` makes model calls, where one in `every` does: the first two, from
    which flows are extrapolated, and the last. `step` counts from the first one that is not zero-init."""
    return step < 2 or (steps - 1 - step) % every == 0


@dataclass(frozen=True)
class Segment:
    """A part of a film that depends on nothing else, from its start or a cut to the next cut.

    Attributes:
        index: place among the film's segments, from 0.
        first_chunk: index in the film of the segment's first chunk.
        plan: the segment as a film of its own: its chunks and frames are counted from 0, their latents are those of
            the whole film. Shots keep their numbers in the film, by which messages name them.
    """

    index: int
    first_chunk: int
    plan: Plan


def segments(plan: Plan) -> tuple[Segment, ...]:
    """Return the segments of `plan`, in the order of the film. Each can be rendered without the others.

    Roundings and notices stay with the whole film. Pass a plan to another process as
    `TypeAdapter(Plan).dump_python(plan, mode="json")` of pydantic, in JSON of the standard library, which unlike
    pydantic's own also writes file names that are not UTF-8.
    """
    starts = [shot.start_frame for shot in plan.shots]
    firsts = [chunk.index for chunk in plan.chunks if chunk.fresh]
    found: list[Segment] = []
    for first, after in pairwise([*firsts, len(plan.chunks)]):
        begin = plan.chunks[first].start_frame
        # The last segment may end in a shot that begins, by its own frame, after the film's end.
        end = plan.chunks[after].start_frame if after < len(plan.chunks) else math.inf
        shots = plan.shots[bisect_left(starts, begin) : bisect_left(starts, end)]
        chunks = [
            replace(chunk, index=index, start_frame=chunk.start_frame - begin)
            for index, chunk in enumerate(plan.chunks[first:after])
        ]
        alone = replace(
            plan,
            chunks=tuple(chunks),
            num_frames=sum(chunk.num_frames for chunk in chunks),
            shots=tuple(replace(shot, start_frame=shot.start_frame - begin) for shot in shots),
            roundings=(),
            notices=(),
        )
        found.append(Segment(len(found), first, alone))
    return tuple(found)


def plan_film(film: Film, settings: Settings, *, strict: bool = False) -> Plan:
    """Return the plan of `film`. RecipeError lists all its problems; under `strict` also what was only adjusted."""
    from helios_cli.recipe.timeline import lay_out

    by_flag = settings.origins["num_frames"] == "flag"
    timeline = lay_out(film, settings.fps, settings.num_frames, settings, by_flag=by_flag)
    num_frames = timeline.num_frames
    shots = _planned_shots(film, settings.fps, timeline)
    chunks, roundings = _chunks(film, settings, shots, num_frames)
    adjusted, notices = _shortened(film, settings.fps, shots, num_frames)
    adjusted += _unused(film, shots, chunks, num_frames)
    if strict and adjusted:
        raise RecipeError(adjusted)
    # The last chunk may belong to a shot that begins, by its own frame, after the film's end.
    last = max(chunk.shot for chunk in chunks)
    return Plan(
        title=clean_prompt(film.recipe.title or "") or film.name,
        chunks=chunks,
        num_frames=num_frames,
        fps=settings.fps,
        size=settings.size,
        negative=clean_prompt(settings.negative),
        steps=settings.steps,
        guidance=settings.guidance,
        shots=tuple(shot for shot in shots if shot.start_frame < num_frames or shot.index <= last),
        roundings=roundings,
        notices=(*film.notices, *timeline.notices, *notices, *(str(problem) for problem in adjusted)),
        origins=settings.origins,
        reuse_history=settings.reuse_history,
        reuse_steps=settings.reuse_steps,
    )


def longer(plan: Plan) -> Plan:
    """Return a plan of whole chunks with one more chunk of the last shot, after its blend."""
    last, shot = plan.chunks[-1], replace(plan.shots[-1], num_frames=plan.shots[-1].num_frames + FRAMES_PER_CHUNK)
    chunk = Chunk(len(plan.chunks), last.shot, plan.num_frames, FRAMES_PER_CHUNK, ((shot.prompt, 1.0),), False, None)
    chunks, shots = (*plan.chunks, chunk), (*plan.shots[:-1], shot)
    return replace(plan, chunks=chunks, shots=shots, num_frames=plan.num_frames + FRAMES_PER_CHUNK)


def too_long(plan: Plan, text: str, lost: str) -> str:
    """Return the notice for a prompt of `plan` that is too long. Of `lost`, its end that the model does not see, 200
    characters are quoted, since it may be pages."""
    shot = next((shot.index for shot in plan.shots if shot.prompt == text), None)
    which = "the negative prompt" if text == plan.negative else "a prompt"
    which = which if shot is None else f"shot {shot + 1}: the prompt"
    return f"{which} is longer than {MAX_TEXT_TOKENS} tokens; the model does not see its end: {printable(lost, 200)!r}"


def check_film(film: Film, options: RenderOptions | None = None) -> Timeline:
    """Check options, pictures, and that the shots fit the film; return the timeline. InputError if they are wrong."""
    from helios_cli.recipe.timeline import lay_out

    options = options or RenderOptions()
    check_flags(options)
    fps = film_fps(options, film.recipe)
    by_flag = length_in_frames(options, fps) is not None
    num_frames = length_in_frames(options if by_flag else film.recipe, fps)
    return lay_out(film, fps, num_frames, options, by_flag=by_flag)


def _planned_shots(film: Film, fps: float, timeline: Timeline) -> tuple[PlannedShot, ...]:
    """Return all shots, also those beyond the film's end: a chunk's prompt must not depend on where the film ends."""
    shots: list[PlannedShot] = []
    for shot, start, length in zip(film.recipe.shots, timeline.starts, timeline.lengths, strict=True):
        transition = shot.transition if shots else "cut"
        # A blend ends with its shot: the next one must not begin inside it. A written length is taken unrounded, since
        # its rounding may depend on shots before a cut.
        most = length if shot.seconds is None else shot.seconds * fps
        blend = min(shot.blend_seconds * fps, float(most)) if transition == "blend" else 0.0
        num_shown = max(0, min(length, timeline.num_frames - start))
        prompt = with_style(shot.prompt, film.recipe.style or "")
        shots.append(PlannedShot(len(shots), prompt, start, num_shown, transition, blend))
    return tuple(shots)


def _chunks(
    film: Film, settings: Settings, shots: tuple[PlannedShot, ...], num_frames: int
) -> tuple[tuple[Chunk, ...], tuple[Rounding, ...]]:
    chunks: list[Chunk] = []
    roundings: list[Rounding] = []
    for first, after in _shot_ranges(shots, num_frames):
        begin = shots[first].start_frame
        end = min(shots[after].start_frame, num_frames) if after < len(shots) else num_frames
        current = first
        for number in range(chunks_for(end - begin)):
            start = begin + number * FRAMES_PER_CHUNK
            middle = start + FRAMES_PER_CHUNK / 2
            before = current
            while current + 1 < after and shots[current + 1].start_frame < middle:
                current += 1
            if current != before and start != shots[current].start_frame:
                roundings.append(Rounding(current, shots[current].start_frame, start))
            begins = _beginning(film, settings, first) if number == 0 else {"fresh": False, "seed": None}
            num_kept = min(FRAMES_PER_CHUNK, end - start)
            prompts = _prompts(shots, first, current, middle)
            chunks.append(Chunk(len(chunks), current, start, num_kept, prompts, **begins))
    return tuple(chunks), tuple(roundings)


def _shot_ranges(shots: tuple[PlannedShot, ...], num_frames: int) -> list[tuple[int, int]]:
    """Return the range of shots of each segment: the first one, and the first one after it."""
    cuts = [shot.index for shot in shots if shot.transition == "cut"]
    return [(a, b) for a, b in pairwise([*cuts, len(shots)]) if shots[a].start_frame < num_frames]


def _prompts(shots: tuple[PlannedShot, ...], first: int, current: int, middle: float) -> tuple[tuple[str, float], ...]:
    """Return the prompts of a chunk with this middle: its shot's, and during a blend the one before."""
    shot = shots[current]
    weight = (middle - shot.start_frame) / shot.blend_frames if shot.blend_frames else 1.0
    before = shots[current - 1].prompt if current > first else shot.prompt
    if weight >= 1 or before == shot.prompt:
        return ((shot.prompt, 1.0),)
    return ((before, 1.0 - weight), (shot.prompt, weight))


def _beginning(film: Film, settings: Settings, index: int) -> dict:
    """Return how the first chunk of a segment begins: its seed, and the picture or clip it starts from."""
    shot = film.recipe.shots[index]
    image = film.picture(shot.image) if shot.image else None
    video = film.picture(shot.video) if shot.video else None
    if index == 0 and (settings.image or settings.video):
        image, video = settings.image, settings.video
    seed = settings.seed if shot.seed is None else shot.seed
    return {"fresh": True, "seed": seed, "image": image, "video": video}


def _shortened(
    film: Film, fps: float, shots: tuple[PlannedShot, ...], num_frames: int
) -> tuple[list[Problem], list[str]]:
    """Return problems with written blends that are longer than their shot, and a notice about default ones."""
    recipe = film.recipe.shots
    blends = [shot for shot in shots if shot.start_frame < num_frames and shot.blend_frames]
    short = [shot.index for shot in blends if shot.blend_frames < recipe[shot.index].blend_seconds * fps]
    written = [index for index in short if "blend_seconds" in recipe[index].model_fields_set]
    problems: list[Problem] = []
    notices: list[str] = []
    if written:
        first = shots[written[0]]
        seconds = f"{first.blend_frames / fps:.4g} s, not {recipe[first.index].blend_seconds:g} s"
        message = f"the blend takes {seconds}: no longer than its shot" + _also(written)
        advice = "shorten it, lengthen the shot, or write the transition switch"
        place = film.where("shot", first.index, "blend_seconds")
        problems.append(Problem(film.source, message, **place, suggestion=advice))
    if len(short) > len(written):
        count = counted(len(short) - len(written), "shot")
        notices.append(f"{count} shorter than a blend of {DEFAULT_BLEND_SECONDS:g} s: the blend takes the whole shot")
    return problems, notices


def _unused(film: Film, shots: tuple[PlannedShot, ...], chunks: tuple[Chunk, ...], num_frames: int) -> list[Problem]:
    """Return problems with shots between the middles of two chunks, whose prompt no chunk has."""
    used = {chunk.shot for chunk in chunks} | {chunk.shot - 1 for chunk in chunks if len(chunk.prompts) > 1}
    lost = [shot.index for shot in shots if shot.start_frame < num_frames and shot.index not in used]
    if not lost:
        return []
    frames = counted(shots[lost[0]].num_frames, "frame")
    message = f"no chunk has its middle in these {frames}, so the prompt is never used" + _also(lost)
    advice = f"give it at least {FRAMES_PER_CHUNK} frames, or let it begin with a cut"
    return [Problem(film.source, message, **film.where("shot", lost[0]), suggestion=advice)]


def _also(indices: list[int]) -> str:
    listed = ", ".join(str(index + 1) for index in indices[1:6]) + (", ..." if len(indices) > 6 else "")
    return f" (also shot {listed})" if listed else ""
