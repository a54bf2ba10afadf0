"""Which frames each shot has: lengths that were asked for, and what is left for the others."""

from __future__ import annotations

from dataclasses import dataclass

from helios_cli.recipe.film import Film
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.values import LENGTH_KEYS, MAX_SECONDS
from helios_cli.units import FRAMES_PER_CHUNK, counted


@dataclass(frozen=True)
class Timeline:
    """`lengths`: frames of each shot, which may reach beyond the film's end; `num_frames`: of the film."""

    lengths: tuple[int, ...]
    num_frames: int
    notices: tuple[str, ...] = ()

    @property
    def starts(self) -> list[int]:
        """First frame of each shot; at or beyond `num_frames` for a shot that fell away."""
        starts, start = [], 0
        for length in self.lengths:
            starts.append(start)
            start += length
        return starts


def lay_out(film: Film, fps: float, num_frames: int | None, *, by_flag: bool, problems: Problems) -> Timeline | None:
    """The frames of the film's shots, or None with the reasons in `problems`.

    `num_frames` is the film's length if one was asked for, `by_flag` on the command line. A recipe that contradicts
    itself is an error; a flag is an order, and the film stops, or its last shot goes on, as the flag says.
    """
    lengths = _fixed_lengths(film, fps, problems)
    fixed = sum(length for length in lengths if length is not None)
    open_shots = [index for index, length in enumerate(lengths) if length is None]
    notices: list[str] = []
    if open_shots and by_flag and num_frames - fixed < len(open_shots):  # nothing to share: as without a length
        lengths = [FRAMES_PER_CHUNK if length is None else length for length in lengths]
        fixed, open_shots = sum(lengths), []
    if num_frames is None:
        num_frames = fixed + len(open_shots) * FRAMES_PER_CHUNK
        lengths = [FRAMES_PER_CHUNK if length is None else length for length in lengths]
    elif open_shots:
        _share(lengths, open_shots, num_frames - fixed, film, fps, num_frames, problems)
    elif abs(fixed - num_frames) <= 1:  # a length in seconds and a sum of lengths may round apart
        lengths[-1] = max(1, lengths[-1] + num_frames - fixed)
    elif fixed > num_frames and not by_flag:
        message = f"the film has {_both(num_frames, fps)}, but its shots take {_both(fixed, fps)}"
        suggestion = f"write `seconds = {_plain(fixed / fps)}` for the film, or shorten a shot"
        key = next(key for key in LENGTH_KEYS if getattr(film.recipe, key) is not None)
        problems.add(message, line=film.line(key), key=key, suggestion=suggestion)
    elif fixed > num_frames:
        notices.append(_cut_short(lengths, num_frames, fps))
    else:
        lengths[-1] += num_frames - fixed
        notices.append(
            f"the shots take {_both(fixed, fps)} of {_both(num_frames, fps)}: the last one goes on to the end"
        )
    if num_frames > MAX_SECONDS * fps:
        problems.add(f"the film takes {_both(num_frames, fps)}, the most is 24 hours", suggestion="split the film")
    if problems.all:
        return None
    return Timeline(tuple(length or 0 for length in lengths), num_frames, tuple(notices))


def _fixed_lengths(film: Film, fps: float, problems: Problems) -> list[int | None]:
    """Frames of the shots that have a length. Ends are rounded, not lengths, so that errors do not add up.

    A cut stands at its own time rounded; the shots after it are counted from there, so that what is rounded before a
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
            message = f"{shot.seconds:g} s is less than a frame at {fps:g} frames a second"
            suggestion = "make it longer, or remove the shot"
            line = film.line("shot", index, "seconds")
            problems.add(message, line=line, shot=index + 1, key="seconds", suggestion=suggestion)
        seconds += shot.seconds
        segment_seconds += shot.seconds
        ends_segment = index + 1 == len(shots) or shots[index + 1].transition == "cut"
        end = round(seconds * fps) if ends_segment else segment_frames + round(segment_seconds * fps)
        lengths.append(max(1, end - frames))
        frames += lengths[-1]
    return lengths


def _share(
    lengths: list[int | None],
    open_shots: list[int],
    left: int,
    film: Film,
    fps: float,
    num_frames: int,
    problems: Problems,
) -> None:
    """Give the shots without a length what is left, in equal parts; the earlier ones take the odd frames."""
    if left < len(open_shots):
        taken = f"the shots with a length take {_both(num_frames - left, fps)} of the film's {_both(num_frames, fps)}"
        count = len(open_shots)
        message = f"{taken}, which leaves nothing for the {counted(count, 'shot')} without one"
        problems.add(
            message,
            line=film.line("shot", open_shots[0]),
            shot=open_shots[0] + 1,
            key="seconds",
            suggestion="make the film longer, or shorten a shot",
        )
        return
    each, odd = divmod(left, len(open_shots))
    for position, index in enumerate(open_shots):
        lengths[index] = each + (position < odd)


def _cut_short(lengths: list[int], num_frames: int, fps: float) -> str:
    reached = end = 0
    for length in lengths:
        if end >= num_frames:
            break
        reached, end = reached + 1, end + length
    notice = f"the film stops after {_both(num_frames, fps)} of {_both(sum(lengths), fps)}, in shot {reached}"
    lost = len(lengths) - reached
    return f"{notice}; {counted(lost, 'shot')} after it {'falls' if lost == 1 else 'fall'} away" if lost else notice


def _both(frames: int, fps: float) -> str:
    return f"{counted(frames, 'frame')} ({_plain(frames / fps)} s)"


def _plain(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
