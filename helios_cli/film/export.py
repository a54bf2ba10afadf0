"""A finished film for the cutting room: an OpenTimelineIO timeline or a CMX3600 edit list, an event for each shot."""

from __future__ import annotations

import json
import os
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from helios_cli.errors import InputError
from helios_cli.film.ffmpeg import frame_rate
from helios_cli.film.record import replace_text
from helios_cli.film.target import Target

if TYPE_CHECKING:
    from helios_cli.recipe.plan import Chunk, Plan, PlannedShot

FORMS = ("otio", "edl")
MAX_EVENTS = 999
"""A CMX3600 event number has three digits."""

COMMENT_WIDTH = 68
"""Characters of a comment's text: with `* COMMENT: ` before it a line has 80 at most."""


def parse_forms(text: str) -> tuple[str, ...]:
    """`otio,edl` as names of forms. InputError for any other."""
    forms = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for form in forms:
        if form not in FORMS:
            raise InputError(f"--export {text}: nothing is exported as {form!r}", hint="write otio, edl, or otio,edl")
    return forms


def export_path(target: Target, form: str) -> Path:
    """`boat.otio` beside `boat.mp4`, and beside the folder `boat`."""
    name = target.path.name if target.kind == "png" else target.path.stem
    return target.path.with_name(f"{name}.{form}")


def check_exports(target: Target, forms: tuple[str, ...], num_shots: int, *, force: bool) -> None:
    """Find before a render whether the film can be exported; InputError says why not."""
    if "edl" in forms and num_shots > MAX_EVENTS:
        raise InputError(
            f"an edit list has {MAX_EVENTS} events at most, the film {num_shots} shots", hint="write --export otio"
        )
    for path in (export_path(target, form) for form in forms):
        if os.path.lexists(path) and not force:
            raise InputError(f"{path} exists", hint="add --force to replace it, or choose another name with -o")


def export(target: Target, plan: Plan, forms: tuple[str, ...]) -> list[str]:
    """Write the forms beside the film; what the user should know about them. MachineError if one cannot be written."""
    notices = []
    for form in forms:
        write = otio if form == "otio" else edl
        replace_text(export_path(target, form), write(target, plan))
    if "edl" in forms and frame_rate(plan.fps).denominator != 1:
        base = round(plan.fps)
        notices.append(f"the edit list counts {base} frames a second, not {plan.fps:g}: its times are nominal")
    return notices


def _seen(plan: Plan) -> list[PlannedShot]:
    return [shot for shot in plan.shots if shot.num_frames > 0]


# OpenTimelineIO


def otio(target: Target, plan: Plan) -> str:
    """A timeline with one video track: a clip for each shot, and a marker on it for each chunk that begins within."""
    rate = frame_rate(plan.fps)
    media = _media(target, plan, rate)
    clips = [_clip(shot, plan, media, rate) for shot in _seen(plan)]
    track = {"OTIO_SCHEMA": "Track.1", **_item("V1"), "kind": "Video", "children": clips}
    stack = {"OTIO_SCHEMA": "Stack.1", **_item("tracks"), "children": [track]}
    timeline = {
        "OTIO_SCHEMA": "Timeline.1",
        "name": plan.title,
        "metadata": {"helios": {"size": list(plan.size), "steps": list(plan.steps), "guidance": plan.guidance}},
        "global_start_time": None,
        "tracks": stack,
    }
    return json.dumps(timeline, indent=2, ensure_ascii=False) + "\n"


def _item(
    name: str, metadata: dict | None = None, source_range: dict | None = None, markers: list | None = None
) -> dict:
    """What clips, tracks and stacks have in common."""
    return {
        "name": name,
        "metadata": {"helios": metadata} if metadata else {},
        "source_range": source_range,
        "effects": [],
        "markers": markers or [],
    }


def _clip(shot: PlannedShot, plan: Plan, media: dict, rate: Fraction) -> dict:
    chunks = [chunk for chunk in plan.chunks if chunk.start_frame < shot.start_frame + shot.num_frames]
    chunks = [chunk for chunk in chunks if chunk.start_frame + chunk.num_frames > shot.start_frame]
    begun = [chunk for chunk in plan.chunks if chunk.fresh and chunk.start_frame <= shot.start_frame]
    metadata = {"prompt": shot.prompt, "transition": shot.transition, "seed": begun[-1].seed}
    seams = [_marker(chunk, rate) for chunk in chunks if chunk.start_frame >= max(1, shot.start_frame)]
    span = _range(shot.start_frame, shot.num_frames, rate)
    return {
        "OTIO_SCHEMA": "Clip.1",
        **_item(f"shot {shot.index + 1}", metadata, span, seams),
        "media_reference": media,
    }


def _marker(chunk: Chunk, rate: Fraction) -> dict:
    return {
        "OTIO_SCHEMA": "Marker.2",
        "name": f"chunk {chunk.index + 1}",
        "color": "RED" if chunk.fresh else "GREEN",
        "marked_range": _range(chunk.start_frame, 1, rate),
        "metadata": {"helios": {"prompts": [[text, weight] for text, weight in chunk.prompts]}},
    }


def _media(target: Target, plan: Plan, rate: Fraction) -> dict:
    """The film, named relative to the timeline beside it."""
    name = quote(os.fsencode(target.path.name))
    available = {"name": target.path.name, "metadata": {}, "available_range": _range(0, plan.num_frames, rate)}
    if target.kind != "png":
        return {"OTIO_SCHEMA": "ExternalReference.1", **available, "target_url": name}
    return {
        "OTIO_SCHEMA": "ImageSequenceReference.1",
        **available,
        "target_url_base": f"{name}/",
        "name_prefix": "frame_",
        "name_suffix": ".png",
        "start_frame": 1,
        "frame_step": 1,
        "rate": float(rate),
        "frame_zero_padding": 6,
        "missing_frame_policy": "error",
    }


def _range(start: int, length: int, rate: Fraction) -> dict:
    return {"OTIO_SCHEMA": "TimeRange.1", "start_time": _time(start, rate), "duration": _time(length, rate)}


def _time(frames: int, rate: Fraction) -> dict:
    return {"OTIO_SCHEMA": "RationalTime.1", "value": float(frames), "rate": float(rate)}


# CMX3600


def edl(target: Target, plan: Plan) -> str:
    """An edit list of straight cuts, source and record times equal: both count from the film's first frame.

    Timecode counts whole frames; at a rate that is no whole number it runs at the nearest one, non-drop.
    """
    base = round(plan.fps)
    lines = [f"TITLE: {_line(plan.title)[:70]}", "FCM: NON-DROP FRAME", ""]
    for number, shot in enumerate(_seen(plan), 1):
        span = f"{timecode(shot.start_frame, base)} {timecode(shot.start_frame + shot.num_frames, base)}"
        lines.append(f"{number:03d}  AX       V     C        {span} {span}")
        lines.append(f"* FROM CLIP NAME: {_line(target.path.name)}")
        lines += [f"* COMMENT: {part}" for part in textwrap.wrap(_line(shot.prompt), COMMENT_WIDTH)]
        lines.append("")
    return "\n".join(lines)


def timecode(frame: int, base: int) -> str:
    """`HH:MM:SS:FF` of a frame at `base` frames a second, without dropped numbers."""
    seconds, frames = divmod(frame, base)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frames:02d}"


def _line(text: str) -> str:
    return " ".join(text.split())
