"""A plan: the film resolved into chunks. Pure numbers and strings; torch is not imported here.

The grid of 33 frames begins anew at each cut, so that what stands between two cuts depends on nothing else. Within such
a segment a prompt can change only from one chunk to the next: a chunk belongs to the shot that its middle falls into.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.recipe.problems import Problem, Problems, RecipeError
from helios_cli.recipe.prompts import clean_prompt, with_style
from helios_cli.recipe.values import DEFAULT_BLEND_SECONDS
from helios_cli.units import FRAMES_PER_CHUNK, MAX_TEXT_TOKENS, chunks_for, counted
from helios_cli.visible import printable

if TYPE_CHECKING:
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.options import RenderOptions
    from helios_cli.recipe.settings import Settings
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
    """A shot in the film: its prompt as the model reads it, and its frames as asked for; `blend_frames` may be 0."""

    index: int
    prompt: str
    start_frame: int
    num_frames: int
    transition: str
    blend_frames: float


@dataclass(frozen=True)
class Rounding:
    """A shot that was asked to begin at one frame, and whose prompt comes in with the chunk at another."""

    shot: int
    asked_frame: int
    actual_frame: int


@dataclass(frozen=True)
class Plan:
    """A whole film, ready for the engine. `size` is (width, height) in pixels; `title` names the film to a person.

    The rest is for people: the shots, where grid and wish differ, what was decided for the user, and for each setting
    whether a flag, the recipe, the model or a default gave it.
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


def plan_film(film: Film, settings: Settings, *, strict: bool = False) -> Plan:
    """The plan of `film`. RecipeError holds all that stands against it; under `strict` also what was only adjusted."""
    by_flag = settings.origins["num_frames"] == "flag"
    start = {"image": settings.image, "video": settings.video}
    timeline = _checked_timeline(film, settings.fps, settings.num_frames, start, by_flag=by_flag)
    num_frames = timeline.num_frames
    shots = _planned_shots(film, settings.fps, timeline)
    chunks, roundings = _chunks(film, settings, shots, num_frames)
    adjusted, notices = _shortened(film, settings.fps, shots, num_frames)
    adjusted += _unseen(film, shots, chunks, num_frames)
    if strict and adjusted:
        raise RecipeError(adjusted)
    # The chunk at the film's end may be in the hands of a shot that begins, by its own frame, after it.
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
    )


def longer(plan: Plan) -> Plan:
    """The plan of the same film, of whole chunks, whose last shot goes on for one chunk more once its blend is over."""
    last, shot = plan.chunks[-1], replace(plan.shots[-1], num_frames=plan.shots[-1].num_frames + FRAMES_PER_CHUNK)
    chunk = Chunk(len(plan.chunks), last.shot, plan.num_frames, FRAMES_PER_CHUNK, ((shot.prompt, 1.0),), False, None)
    chunks, shots = (*plan.chunks, chunk), (*plan.shots[:-1], shot)
    return replace(plan, chunks=chunks, shots=shots, num_frames=plan.num_frames + FRAMES_PER_CHUNK)


def too_long(plan: Plan, text: str, lost: str) -> str:
    """What is to be said of a prompt of `plan` that is too long, `lost` being the end of it that the model does not
    see: 200 characters of that, since it may be pages."""
    shot = next((shot.index for shot in plan.shots if shot.prompt == text), None)
    which = "the negative prompt" if text == plan.negative else "a prompt"
    which = which if shot is None else f"shot {shot + 1}: the prompt"
    return f"{which} is longer than {MAX_TEXT_TOKENS} tokens; this end of it is not seen: {printable(lost, 200)!r}"


def check_film(film: Film, options: RenderOptions | None = None) -> Timeline:
    """Check what needs no model: options, pictures, and that the shots fit the film. InputError, or the timeline."""
    from helios_cli.recipe.options import RenderOptions
    from helios_cli.recipe.settings import asked_fps, asked_frames, check_flags

    options = options or RenderOptions()
    check_flags(options)
    fps = asked_fps(options, film.recipe)
    by_flag = asked_frames(options, fps) is not None
    num_frames = asked_frames(options if by_flag else film.recipe, fps)
    return _checked_timeline(film, fps, num_frames, {"image": options.image, "video": options.video}, by_flag=by_flag)


def _checked_timeline(
    film: Film, fps: float, num_frames: int | None, start: Mapping[str, Path | None], *, by_flag: bool
) -> Timeline:
    """`start` is what the flags put in the place of the first shot's picture or clip."""
    from helios_cli.recipe.files import file_fault, picture_problems
    from helios_cli.recipe.timeline import lay_out

    problems = Problems(film.source)
    timeline = lay_out(film, fps, num_frames, by_flag=by_flag, problems=problems)
    problems.all += picture_problems(film, start, file_fault)
    problems.stop()
    return timeline


def _planned_shots(film: Film, fps: float, timeline: Timeline) -> tuple[PlannedShot, ...]:
    """All shots of the recipe, those beyond the film's end too: a chunk's prompt must not depend on where it ends."""
    shots = []
    for shot, start, length in zip(film.recipe.shots, timeline.starts, timeline.lengths, strict=True):
        transition = shot.transition if shots else "cut"
        # A blend ends with its shot: the next one must not begin inside it. A written length is taken unrounded, since
        # how it is rounded may depend on shots before a cut.
        most = length if shot.seconds is None else shot.seconds * fps
        blend = min(shot.blend_seconds * fps, float(most)) if transition == "blend" else 0.0
        kept = max(0, min(length, timeline.num_frames - start))
        prompt = with_style(shot.prompt, film.recipe.style or "")
        shots.append(PlannedShot(len(shots), prompt, start, kept, transition, blend))
    return tuple(shots)


def _chunks(
    film: Film, settings: Settings, shots: tuple[PlannedShot, ...], num_frames: int
) -> tuple[tuple[Chunk, ...], tuple[Rounding, ...]]:
    chunks: list[Chunk] = []
    roundings: list[Rounding] = []
    for first, after in _segments(shots, num_frames):
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
            kept = min(FRAMES_PER_CHUNK, end - start)
            prompts = _prompts(shots, first, current, middle)
            chunks.append(Chunk(len(chunks), current, start, kept, prompts, **begins))
    return tuple(chunks), tuple(roundings)


def _segments(shots: tuple[PlannedShot, ...], num_frames: int) -> list[tuple[int, int]]:
    """For each stretch between two cuts its first shot, and the first one after it."""
    cuts = [shot.index for shot in shots if shot.transition == "cut"]
    return [(a, b) for a, b in pairwise([*cuts, len(shots)]) if shots[a].start_frame < num_frames]


def _prompts(shots: tuple[PlannedShot, ...], first: int, current: int, middle: float) -> tuple[tuple[str, float], ...]:
    """What a chunk with this middle is asked to show: its shot's prompt, while that blends in with the one before."""
    shot = shots[current]
    weight = (middle - shot.start_frame) / shot.blend_frames if shot.blend_frames else 1.0
    before = shots[current - 1].prompt if current > first else shot.prompt
    if weight >= 1 or before == shot.prompt:
        return ((shot.prompt, 1.0),)
    return ((before, 1.0 - weight), (shot.prompt, weight))


def _beginning(film: Film, settings: Settings, index: int) -> dict:
    """How the first chunk of a segment begins: its seed, and the picture or clip that it starts from."""
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
    """Blends that are longer than their shot: those that somebody wrote, and a notice about the default's."""
    recipe = film.recipe.shots
    seen = [shot for shot in shots if shot.start_frame < num_frames and shot.blend_frames]
    short = [shot.index for shot in seen if shot.blend_frames < recipe[shot.index].blend_seconds * fps]
    written = [index for index in short if "blend_seconds" in recipe[index].model_fields_set]
    problems, notices = [], []
    if written:
        first = shots[written[0]]
        seconds = f"{first.blend_frames / fps:.4g} s, not {recipe[first.index].blend_seconds:g} s"
        message = f"the blend takes {seconds}: no longer than its shot" + _others(written)
        suggestion = "shorten it, lengthen the shot, or write the transition switch"
        line = film.line("shot", first.index, "blend_seconds")
        problems.append(Problem(film.source, message, line, first.index + 1, "blend_seconds", suggestion))
    if len(short) > len(written):
        count = counted(len(short) - len(written), "shot")
        notices.append(f"{count} shorter than a blend of {DEFAULT_BLEND_SECONDS:g} s: the blend takes the whole shot")
    return problems, notices


def _unseen(film: Film, shots: tuple[PlannedShot, ...], chunks: tuple[Chunk, ...], num_frames: int) -> list[Problem]:
    """Shots that fall between the middles of two chunks, so that no chunk has their prompt."""
    seen = {chunk.shot for chunk in chunks} | {chunk.shot - 1 for chunk in chunks if len(chunk.prompts) > 1}
    lost = [shot.index for shot in shots if shot.start_frame < num_frames and shot.index not in seen]
    if not lost:
        return []
    frames = counted(shots[lost[0]].num_frames, "frame")
    message = f"no chunk has its middle in these {frames}, so the prompt is never used" + _others(lost)
    suggestion = f"give it at least {FRAMES_PER_CHUNK} frames, or let it begin with a cut"
    return [Problem(film.source, message, film.line("shot", lost[0]), lost[0] + 1, None, suggestion)]


def _others(indices: list[int]) -> str:
    if len(indices) == 1:
        return ""
    listed = ", ".join(str(index + 1) for index in indices[1:6]) + (", ..." if len(indices) > 6 else "")
    return f" (also shot {listed})"
