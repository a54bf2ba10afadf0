"""Lays out the shots of a film in frames; shots without a length share the rest."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from helios_cli.recipe.files import file_fault, picture_problems
from helios_cli.recipe.film import Film
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.settings import Settings
from helios_cli.recipe.values import LENGTH_KEYS, MAX_SECONDS
from helios_cli.units import FRAMES_PER_CHUNK, counted


class Timeline(NamedTuple):
    """`lengths`: frames of each shot, which may reach beyond the film's end; `num_frames`: of the film."""

    lengths: tuple[int, ...]
    num_frames: int
    notices: tuple[str, ...] = ()

    @property
    def starts(self) -> list[int]:
        """The first frame of each shot; at or beyond `num_frames` for a shot that is left out."""
        return list(accumulate(self.lengths, initial=0))[:-1]


def lay_out(
    film: Film, fps: float, num_frames: int | None, options: RenderOptions | Settings, *, by_flag: bool
) -> Timeline:
    """Return the frames of the film's shots. RecipeError for lengths that contradict each other, and for pictures.

    `num_frames` is the film's length if one was given, `by_flag` on the command line; `options` may replace the first
    shot's picture or clip. A recipe that contradicts itself is an error; a flag is an order: the film stops, or its
    last shot goes on, until the flag's length.
    """
    problems = Problems(film.source)
    given = _fixed_lengths(film, fps, problems)
    num_open, fixed = given.count(None), sum(length or 0 for length in given)
    each, odd = FRAMES_PER_CHUNK, 0
    has_room = num_frames is None or num_frames - fixed >= num_open
    if num_open and num_frames is not None and has_room:
        each, odd = divmod(num_frames - fixed, num_open)
    lengths = []
    for length in given:  # the earlier shots take the odd frames
        lengths.append(each + (odd > 0) if length is None else length)
        odd -= length is None
    total, notices = sum(lengths), []
    num_frames = total if num_frames is None else num_frames
    if num_open and not has_room and not by_flag:
        message = f"the shots with a length take {_both(fixed, fps)} of the film's {_both(num_frames, fps)}, "
        message += f"which leaves nothing for the {counted(num_open, 'shot')} without one"
        advice = "make the film longer, or shorten a shot"
        place = film.where("shot", given.index(None)) | {"key": "seconds"}
        problems.add(message, **place, suggestion=advice)
    elif abs(total - num_frames) <= 1:  # a length in seconds and a sum of lengths may round apart
        lengths[-1] = max(1, lengths[-1] + num_frames - total)
    elif total > num_frames and by_flag:
        notices.append(_cut_short(lengths, num_frames, fps))
    elif total > num_frames:
        message = f"the film has {_both(num_frames, fps)}, but its shots take {_both(total, fps)}"
        key = next(key for key in LENGTH_KEYS if getattr(film.recipe, key) is not None)
        advice = f"write `seconds = {_plain(total / fps)}` for the film, or shorten a shot"
        problems.add(message, **film.where(key), suggestion=advice)
    else:
        lengths[-1] += num_frames - total
        notices.append(
            f"the shots take {_both(total, fps)} of {_both(num_frames, fps)}: the last one continues to the end"
        )
    if num_frames > MAX_SECONDS * fps:
        problems.add(f"the film takes {_both(num_frames, fps)}; the limit is 24 hours", suggestion="split the film")
    problems.all += picture_problems(film, options, file_fault)
    problems.stop()
    return Timeline(tuple(lengths), num_frames, tuple(notices))


def _fixed_lengths(film: Film, fps: float, problems: Problems) -> list[int | None]:
    """Return the frames of the shots that have a length. Ends are rounded, not lengths, so that errors do not add up.

    A cut is placed at its own rounded time; the shots after it are counted from there, so that the rounding before a
    cut moves nothing behind it.
    """
    shots = film.recipe.shots
    lengths: list[int | None] = []
    seconds, frames = 0.0, 0  # of the film so far, without its open shots
    segment_seconds, segment_frames = 0.0, 0  # since the last cut, and up to it
    for index, shot in enumerate(shots):
        if shot.transition == "cut":
            segment_seconds, segment_frames = 0.0, frames
        if shot.seconds is None:
            lengths.append(None)
            continue
        if shot.seconds * fps < 0.5:
            message = f"{shot.seconds:g} s is less than a frame at {fps:g} fps"
            advice = "make it longer, or remove the shot"
            problems.add(message, **film.where("shot", index, "seconds"), suggestion=advice)
        seconds += shot.seconds
        segment_seconds += shot.seconds
        ends_segment = index + 1 == len(shots) or shots[index + 1].transition == "cut"
        end = round(seconds * fps) if ends_segment else segment_frames + round(segment_seconds * fps)
        length = max(1, end - frames)
        lengths.append(length)
        frames += length
    return lengths


def _cut_short(lengths: list[int], num_frames: int, fps: float) -> str:
    shown = sum(end - length < num_frames for length, end in zip(lengths, accumulate(lengths), strict=True))
    notice = f"the film stops after {_both(num_frames, fps)} of {_both(sum(lengths), fps)}, in shot {shown}"
    lost = len(lengths) - shown
    return f"{notice}; {counted(lost, 'shot')} after it {'is' if lost == 1 else 'are'} left out" if lost else notice


def _both(frames: int, fps: float) -> str:
    return f"{counted(frames, 'frame')} ({_plain(frames / fps)} s)"


def _plain(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
