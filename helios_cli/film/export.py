"""Exports a finished film for editing, as OpenTimelineIO timeline or CMX3600 edit list with an event for each shot."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from helios_cli.errors import InputError
from helios_cli.film.ffmpeg import frame_rate
from helios_cli.film.sidecar import replace_text
from helios_cli.film.target import Target, film_exists

if TYPE_CHECKING:
    from helios_cli.recipe.plan import Plan, PlannedShot

MAX_EVENTS = 999
"""A CMX3600 event number has three digits."""

MAX_BASE = 100
"""Frames per second of an edit list, whose timecode has two digits for frames: the last one is 99."""

COMMENT_WIDTH = 68
"""Characters of a comment's text, so that a line with `* COMMENT: ` has 80 at most."""


def export_path(target: Target, form: str) -> Path:
    """Return `boat.otio` for `boat.mp4`, and for the folder `boat`."""
    return target.named(f".{form}")


def check_exports(target: Target, forms: tuple[str, ...], num_shots: int, fps: float, *, force: bool) -> None:
    """Check before a render that the film can be exported; `fps` is the finished film's. InputError if it cannot."""
    if "edl" in forms and num_shots > MAX_EVENTS:
        message = f"an edit list has at most {MAX_EVENTS} events, and the film has {num_shots} shots"
        raise InputError(message, hint="write --export otio")
    if "edl" in forms and round(fps) > MAX_BASE:
        message = f"an edit list has at most {MAX_BASE} frames per second, and {target.path} would have {fps:g}"
        raise InputError(message, hint="write --export otio, or choose a lower rate")
    for path in (export_path(target, form) for form in forms):
        if os.path.lexists(path) and not force:
            raise film_exists(path)


def export(target: Target, plan: Plan, forms: tuple[str, ...]) -> list[str]:
    """Write the forms next to the film. Returns notices for the user; MachineError if one cannot be written."""
    for form in forms:
        replace_text(export_path(target, form), (otio if form == "otio" else edl)(target, plan))
    if "edl" not in forms or frame_rate(plan.fps).denominator == 1:
        return []
    return [f"the edit list counts {round(plan.fps)} frames per second, not {plan.fps:g}: its times are nominal"]


def _visible_shots(plan: Plan) -> list[PlannedShot]:
    return [shot for shot in plan.shots if shot.num_frames > 0]


# OpenTimelineIO


def otio(target: Target, plan: Plan) -> str:
    """Return a timeline with one video track: a clip for each shot, with a marker for each chunk that begins in it."""
    media = _media(target, plan)
    clips = [_clip(shot, plan, media) for shot in _visible_shots(plan)]
    composable: dict = {"metadata": {}, "source_range": None, "effects": [], "markers": []}
    track = {"OTIO_SCHEMA": "Track.1", "name": "V1", **composable, "kind": "Video", "children": clips}
    timeline = {
        "OTIO_SCHEMA": "Timeline.1",
        "name": plan.title,
        "metadata": {"helios": {"size": list(plan.size), "steps": list(plan.steps), "guidance": plan.guidance}},
        "global_start_time": None,
        "tracks": {"OTIO_SCHEMA": "Stack.1", "name": "tracks", **composable, "children": [track]},
    }
    return json.dumps(timeline, indent=2, ensure_ascii=False) + "\n"


def _clip(shot: PlannedShot, plan: Plan, media: dict) -> dict:
    end = shot.start_frame + shot.num_frames
    seed = [chunk.seed for chunk in plan.chunks if chunk.fresh and chunk.start_frame <= shot.start_frame][-1]
    return {
        "OTIO_SCHEMA": "Clip.1",
        "name": f"shot {shot.index + 1}",
        "metadata": {"helios": {"prompt": shot.prompt, "transition": shot.transition, "seed": seed}},
        "source_range": _range(shot.start_frame, shot.num_frames, plan),
        "effects": [],
        "markers": [
            {
                "OTIO_SCHEMA": "Marker.2",
                "name": f"chunk {chunk.index + 1}",
                "color": "RED" if chunk.fresh else "GREEN",
                "marked_range": _range(chunk.start_frame, 1, plan),
                "metadata": {"helios": {"prompts": [[text, weight] for text, weight in chunk.prompts]}},
            }
            for chunk in plan.chunks
            if max(1, shot.start_frame) <= chunk.start_frame < end
        ],
        "media_reference": media,
    }


def _media(target: Target, plan: Plan) -> dict:
    """Return the film's reference, its name relative to the timeline."""
    name = quote(os.fsencode(target.path.name))
    available = {"name": target.path.name, "metadata": {}, "available_range": _range(0, plan.num_frames, plan)}
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
        "rate": float(frame_rate(plan.fps)),
        "frame_zero_padding": 6,
        "missing_frame_policy": "error",
    }


def _range(start: int, length: int, plan: Plan) -> dict:
    time = {"OTIO_SCHEMA": "RationalTime.1", "rate": float(frame_rate(plan.fps))}
    ends = {"start_time": {**time, "value": float(start)}, "duration": {**time, "value": float(length)}}
    return {"OTIO_SCHEMA": "TimeRange.1", **ends}


# CMX3600


def edl(target: Target, plan: Plan) -> str:
    """Return an edit list of straight cuts; source and record times are equal, from the film's first frame on.

    Timecode counts whole frames; for a fractional rate it runs at the nearest whole one, non-drop.
    """
    base = round(plan.fps)
    lines = [f"TITLE: {_line(plan.title)[:70]}", "FCM: NON-DROP FRAME", ""]
    for number, shot in enumerate(_visible_shots(plan), 1):
        span = f"{timecode(shot.start_frame, base)} {timecode(shot.start_frame + shot.num_frames, base)}"
        lines.append(f"{number:03d}  AX       V     C        {span} {span}")
        lines.append(f"* FROM CLIP NAME: {_line(target.path.name)}")
        lines += [f"* COMMENT: {part}" for part in textwrap.wrap(_line(shot.prompt), COMMENT_WIDTH)]
        lines.append("")
    return "\n".join(lines)


def timecode(frame: int, base: int) -> str:
    """Return a frame's time as `HH:MM:SS:FF` at `base` frames a second, without dropped numbers."""
    seconds, frames = divmod(frame, base)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frames:02d}"


def _line(text: str) -> str:
    return " ".join(text.split())
