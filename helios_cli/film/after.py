"""The stage after a render: frames -> the program of `--through` -> the graph of `--filter` -> the encoder.

It is done once the film is whole, all chunks in one pass, so that programs and filters keep their state over chunks.
The growing film and the pieces in caches are lossless and as the model made them: another program or graph costs no
model call. The film's length in seconds does not change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, TypeVar

from helios_cli.errors import InputError
from helios_cli.film import ffmpeg
from helios_cli.film.clashes import check_after
from helios_cli.film.compression import Encoding, piece_arguments
from helios_cli.film.filters import MAX_RATE, FrameFormat, check_graph, require_even, try_graph
from helios_cli.film.reading import MAX_PIXELS, MAX_SIDE
from helios_cli.film.through import Frames, Program, frames_at
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Chunk, Plan, PlannedShot
from helios_cli.visible import has_unseen

T = TypeVar("T", Chunk, PlannedShot)

MAX_COMMAND = 4000
"""Characters of a command."""

GUESSES = ((640, 384), (1920, 1088), (128, 64))
"""Sizes to try a graph at before the film's is known."""


@dataclass(frozen=True)
class After:
    """A program and a graph for the frames of a film, at least one of them.

    Attributes:
        rendered: the frames that the model makes.
        through: the command, or None.
        between: the frames that the program gives, else as `rendered`.
        graph: as `filters.check_graph` returns it, or None.
        made: the frames of the finished film.
    """

    rendered: FrameFormat
    through: str | None
    between: FrameFormat
    graph: str | None
    made: FrameFormat

    @classmethod
    def of(cls, options: RenderOptions, size: tuple[int, int], fps: float, kind: str) -> After | None:
        """Return what `options` ask for after a film of that size, rate and `Target.kind`, tried on a few frames; None
        for nothing. InputError for what cannot be done.
        """
        check_after(options, kind)
        if not options.changes_frames:
            return None
        _check_values(options)
        rendered = FrameFormat(size, ffmpeg.frame_rate(fps))
        between = FrameFormat(
            options.through_size or size,
            rendered.rate if options.through_fps is None else ffmpeg.frame_rate(options.through_fps),
        )
        graph = None if options.filter is None else check_graph(options.filter)
        made = between if graph is None else try_graph(graph, between)
        if kind == "mp4":
            require_even(made, "--through-size" if graph is None else "--filter")
        return cls(rendered, options.through, between, graph, made)

    def __str__(self) -> str:
        names = ("a program", self.through), ("filters", self.graph)
        return ", then ".join(name for name, what in names if what is not None)

    @property
    def key(self) -> str:
        """A digest of the program and the graph, by which their speed is remembered."""
        return hashlib.sha256(json.dumps([self.through, self.graph]).encode()).hexdigest()[:16]

    def num_frames(self, rendered: int) -> int:
        """Return how many frames the finished film has, of so many that are rendered."""
        return frames_at(self.made.rate, Frames(self.rendered, rendered))

    def retimed(self, plan: Plan) -> Plan:
        """Return `plan` as that of the finished film, for lists of its shots and chunks at its rate."""
        ratio = self.made.rate / self.rendered.rate

        def moved(part: T) -> T:
            start, end = (round(frame * ratio) for frame in (part.start_frame, part.start_frame + part.num_frames))
            return replace(part, start_frame=start, num_frames=end - start)

        shots, chunks = tuple(map(moved, plan.shots)), tuple(map(moved, plan.chunks))
        num_frames, fps = self.num_frames(plan.num_frames), float(self.made.rate)
        return replace(plan, shots=shots, chunks=chunks, num_frames=num_frames, fps=fps, size=self.made.size)

    def run(self, film: Path, rendered: int, encoding: Encoding | None, made: IO[bytes]) -> Iterator[int]:
        """Write the frames of the growing film at `film` into the open file `made`, encoded; yield how many are done.

        Raises HeliosError if the program or ffmpeg fails.
        """
        source, stdin = _decoded(film, self.rendered), DEVNULL
        if self.through is not None:
            source = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "x".join(map(str, self.between.size))]
            source, stdin = [*source, "-framerate", f"{self.between.rate}", "-i", "pipe:0"], PIPE
        output = self._written(encoding, self.num_frames(rendered), made)
        doing, files = f"finishing {film}", (made.fileno(),)
        with ffmpeg.Process([*source, *output], doing=doing, stdin=stdin, pass_fds=files) as encoder:
            if self.through is None:
                yield from encoder.watch()
            else:
                yield from self._sent_through(self.through, film, rendered, encoder)

    def _sent_through(self, command: str, film: Path, rendered: int, encoder: ffmpeg.Process) -> Iterator[int]:
        given = Frames(self.rendered, rendered)
        wanted = Frames(self.between, frames_at(self.between.rate, given))
        has_all = False

        def take(frame: memoryview) -> None:
            nonlocal has_all
            try:
                if not has_all:
                    encoder.write(frame)
            except BrokenPipeError as error:  # with a lower rate, the encoder may need none of the last frames
                if status := encoder.wait():
                    raise encoder.failure(status) from error
                has_all = True

        def read_into(pipe: int) -> ffmpeg.Process:
            raw = [*ffmpeg.every_frame(), "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
            return ffmpeg.Process([*_decoded(film, self.rendered), *raw], doing=f"reading {film}", stdout=pipe)

        with Program(command, given, wanted, read_into) as program:
            for count in program.frames(take):
                yield int(count * self.made.rate / self.between.rate)
        encoder.close_input()
        yield from encoder.watch()

    def _written(self, encoding: Encoding | None, wanted: int, made: IO[bytes]) -> list[str]:
        """Return the output options: the graph, then exactly `wanted` frames of a constant rate and size."""
        rate, (width, height) = self.made.rate, self.made.size
        steps = ["format=bgr0"]
        if self.graph is not None:
            # The last frame comes again for a second, so that none is missing; before `fps`, since that leaves out the
            # last frame behind filters with several inputs in ffmpeg 7.
            steps += [self.graph, f"tpad=stop_mode=clone:stop={ceil(rate)}", f"fps={rate}:start_time=0"]
            steps += [f"scale={width}:{height}"]
        pieces = piece_arguments(encoding, rate, before=",".join(steps))
        return ["-frames:v", f"{wanted}", *ffmpeg.every_frame(), *pieces, f"pipe:{made.fileno()}"]


def _check_values(options: RenderOptions) -> None:
    """Raise InputError for values that are wrong whatever the film's size is."""
    if options.through is not None and not options.through.strip():
        raise InputError("--through: the command is empty", hint="is a shell variable empty?")
    if options.through is not None and (len(options.through) > MAX_COMMAND or has_unseen(options.through)):
        what = f"the command has more than {MAX_COMMAND:,} characters, or invisible ones"
        raise InputError(f"--through: {what}", hint="put it into a script")
    if options.through_fps is not None and not 1 <= options.through_fps <= MAX_RATE:
        raise InputError(f"--through-fps {options.through_fps:g}: must be 1 to {MAX_RATE}")
    if options.through_size is not None:
        width, height = options.through_size
        if not 1 <= min(width, height) <= max(width, height) <= MAX_SIDE or width * height > MAX_PIXELS:
            limits = f"{MAX_PIXELS // 10**6} megapixels, {MAX_SIDE} pixels a side"
            raise InputError(f"--through-size {width}x{height}: films have at most {limits}")


def try_after(options: RenderOptions, size: tuple[int, int] | None, fps: float, kind: str) -> After | None:
    """Check and try what comes after a film before its model is known, at its size, or at some if it is None: then the
    model decides. Returns it, or None for nothing. InputError for what fails at all of them."""
    *others, last = GUESSES if size is None else (size,)
    for guess in others:
        with suppress(InputError):
            return After.of(options, guess, fps, kind)
    return After.of(options, last, fps, kind)


def _decoded(film: Path, rendered: FrameFormat) -> list[str]:
    """Return input options that read the growing film frame by frame, at its exact rate."""
    return ["-r", f"{rendered.rate}", "-i", ffmpeg.file_argument(film), "-map", "0:v"]
