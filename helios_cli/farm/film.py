"""One film of a farm: its segments, what is done of them, and the end in which their chunks are joined."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from helios_cli.cost.planner import PlannedFilm
from helios_cli.engine.after import completed
from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    Event,
    FilmDone,
    FilmStarted,
    Notice,
    PhaseStarted,
    StepDone,
)
from helios_cli.engine.finish import Finish
from helios_cli.engine.script import Planned
from helios_cli.errors import HeliosError
from helios_cli.farm.task import Task
from helios_cli.film.cache import Cache
from helios_cli.film.jobs import Job
from helios_cli.film.parts import DoneSegment, JoinedChunks, Parts, piece_keys, stored
from helios_cli.film.resume import Wanted, in_words
from helios_cli.film.sound import track_of
from helios_cli.film.target import Target, film_exists, is_taken
from helios_cli.film.writer import Safe, open_film
from helios_cli.recipe.fingerprint import Arithmetic, Fingerprints, Identity
from helios_cli.recipe.plan import Plan, Segment, segments

Kind = Mapping[str, Any]
"""Everything that decides a worker's pieces except plan and options: weights, arithmetic, versions (`farm.worker`)."""

NAMES_OF_KIND = {"weights": "the weights", "helios": "helios", "ffmpeg": "ffmpeg", "attention_taken": "attention"}


def differences(kind: Kind, other: Kind) -> str:
    """Return what differs between two kinds, in words."""
    first, second = ({**kind, **kind["arithmetic"]}, {**other, **other["arithmetic"]})
    keys = [key for key in {**first, **second} if key != "arithmetic" and first.get(key) != second.get(key)]
    return "; ".join(_difference(key, first.get(key), second.get(key)) for key in keys)


def _difference(key: str, one: object, other: object) -> str:
    name = NAMES_OF_KIND.get(key, key)
    return name if key in ("weights", "attention_taken", "kernels") else f"{name} {one or 'none'} and {other or 'none'}"


class Missing(Exception):
    """Chunks of a segment that was done are missing or damaged when the film is joined."""

    def __init__(self, segment: int) -> None:
        super().__init__(segment)
        self.segment = segment


class FarmFilm:
    """A film that workers render, segment by segment.

    Attributes:
        kind: what its chunks are computed by; None before the first segment is given out.
        done: the segments whose chunks are there.
        running: the name of the worker of each segment that is being rendered.
        attempts: how often each segment has failed.
    """

    def __init__(self, job: Job, planned: PlannedFilm) -> None:
        self.job, self.planned, self.plan, self.model = job, planned, planned.plan, planned.model
        self.target = Target.of(job.output)
        self.parts = Parts(self.target)
        self.track = track_of(planned.sound)
        self.segments = segments(planned.plan)
        self.kind: Kind | None = None
        self.device = ""
        self.done: dict[int, DoneSegment] = {}
        self.running: dict[int, str] = {}
        self.attempts: Counter[int] = Counter()
        self.has_ended = False
        self._started = 0.0  # when it began: a film that waits for a worker takes no time
        self._chunks: set[int] = set()  # chunks that are there, by their index in the film
        self._reused = 0  # frames
        self._phases: defaultdict[str, float] = defaultdict(float)
        self._peak_host, self._peak_device, self._peak_vae_device = 0, 0, 0

    @property
    def is_rendered(self) -> bool:
        """Return whether the chunks of all segments are there."""
        return len(self.done) == len(self.segments)

    @property
    def safe_chunks(self) -> int:
        """The number of chunks that the next run of the same command need not render."""
        return len(self._chunks)

    def is_ready(self, segment: Segment) -> bool:
        """Return whether the segment may be given to a worker."""
        return not self.has_ended and segment.index not in self.done and segment.index not in self.running

    def ready(self) -> Iterator[Segment]:
        """Yield the segments that may be given to a worker."""
        yield from filter(self.is_ready, self.segments)

    def accepts(self, kind: Kind) -> bool:
        """Return whether a worker of this kind may render segments of the film."""
        return self.kind is None or self.kind == kind or self.job.options.mixed

    def begin(self, kind: Kind, device: str) -> Iterator[Event]:
        """Begin with a worker of `kind`, or go on where an earlier run ended. `kind` is the film's kind then, unless
        that run had another one.

        The last event is FilmDone if the film was finished before. Raises HeliosError for what prevents that.
        """
        self._started = time.monotonic()
        self.parts.check()
        claims = self.parts.claims
        require = claims.require_shared if self.job.options.share else claims.require_alone
        for notice in require(self.job.output):
            yield Notice(notice)
        self.kind, self.device = kind, device
        if self.job.options.force:
            self.parts.clear()
        yield from self._finish.differences()
        if self._finish.is_finished():
            yield from self._complete()
            return
        if not self.job.options.force and is_taken(self.target):
            raise film_exists(self.job.output)
        yield from self._finish.prospects()
        self.kind = self.parts.begin(kind)
        if self._finish.is_finished():  # by another process, since we looked
            yield from self._complete()
            return
        yield self._film_started()
        for notice in self.planned.notices:
            yield Notice(notice)
        for segment in self.segments:
            yield from self.take_done(segment)

    def without_parts(self) -> Iterator[Event]:
        """Go on after another process has removed the parts: with FilmDone if the film is there, else anew."""
        if self._finish.is_finished():
            yield from self._complete()
        else:
            self.kind = None
            self.done.clear()
            self._chunks.clear()

    def leave(self) -> None:
        """Remove the folder of parts, if the film has begun and no chunk is in it, of an earlier run either."""
        if self.kind is not None and self.parts.is_empty:
            self.parts.remove()

    def _complete(self) -> Iterator[Event]:
        self.has_ended = True
        self.parts.remove()  # what this process has put there since, or a process that was killed did not remove
        yield Notice(f"{self.job.output} is finished already")
        yield from self._finish.complete()

    def take_done(self, segment: Segment) -> Iterator[Event]:
        """Take a segment that an earlier run, or another process, has finished, if all its chunks are there."""
        done = self.parts.done(segment.index)
        if done is None or not self.accepts(done.kind):
            return
        wanted = self.fingerprints(done.kind, segment.plan)
        if list(done.fingerprints) != wanted or stored(self.parts.chunks, wanted, done.keys)[0] < len(wanted):
            self.parts.reopen(segment.index)
            return
        self.done[segment.index] = done
        last = len(segment.plan.chunks) - 1
        yield from self.translate(segment, ChunksReused(last, None, 0, last + 1, "parts"))

    def fingerprints(self, kind: Kind, plan: Plan) -> list[str]:
        """Return the fingerprints of the chunks of `plan`, a segment, as a worker of `kind` makes them."""
        identity = identity_of(kind)
        return Fingerprints(identity.weights, identity.arithmetic, reanchor=self.job.options.reanchor).of(plan)

    def translate(self, segment: Segment, event: Event) -> Iterator[Event]:
        """Turn a worker's event about a segment into those of the film."""
        first, all_chunks = segment.first_chunk, len(self.plan.chunks)
        if isinstance(event, ChunkDone):
            if self._count({first + event.chunk}):
                yield replace(event, chunk=first + event.chunk, chunks=all_chunks, frames=self._num_frames())
        elif isinstance(event, ChunksReused):
            last = first + event.chunk
            new = self._count(set(range(last + 1 - event.count, last + 1)))
            if new:
                self._reused += sum(self.plan.chunks[index].num_frames for index in new)
                yield replace(event, chunk=last, chunks=all_chunks, frames=self._num_frames(), count=len(new))
        elif isinstance(event, StepDone):
            yield replace(event, chunk=first + event.chunk)
        elif isinstance(event, FilmDone):
            for phase, seconds in event.phases.items():
                self._phases[phase] += seconds if phase != "finish" else 0.0
            self._peak_host = max(self._peak_host, event.peak_host_bytes)
            self._peak_device = max(self._peak_device, event.peak_device_bytes or 0)
            self._peak_vae_device = max(self._peak_vae_device, event.peak_vae_device_bytes or 0)
        elif not isinstance(event, FilmStarted) and event != PhaseStarted("finish"):
            yield event

    def self_contained(self, task: Task, segment: Segment) -> Task:
        """Return the task for a worker that does not see the film's folder: it takes and gives contents of files."""
        assert self.kind is not None, "the film has begun"
        keys = piece_keys(segment.plan, self.target, self.job.options)
        kept, state = stored(self.parts.chunks, self.fingerprints(self.kind, segment.plan), keys)
        files = {str(path): path.read_bytes() for path in task.pictures}
        return replace(task, shared=False, kept=kept, state=state, files=files)

    def finish_segment(self, segment: Segment, done: DoneSegment) -> None:
        """Note that a worker has finished a segment. HeliosError if it made other chunks than the plan has."""
        if list(done.fingerprints) != self.fingerprints(done.kind, segment.plan):
            raise HeliosError(
                f"{self.job.film.name}: the chunks of segment {segment.index + 1} are not those of the plan",
                hint="a picture or clip differs on its machine: put it into a folder that all machines see",
            )
        self.parts.finish(segment.index, done)
        self.done[segment.index] = done

    def join(self) -> Generator[Event, None, None]:
        """Join the chunks to the film and finish it: nothing is rendered, and pieces are taken as they are. Yields
        events up to FilmDone.

        Raises Missing for a segment whose chunks are no longer whole, HeliosError for what else went wrong.
        """
        options = self.job.options
        done = [self.done[segment.index] for segment in self.segments]
        chunks = JoinedChunks(self.parts, done)
        fingerprints = [fingerprint for segment in done for fingerprint in segment.fingerprints]
        yield PhaseStarted("finish")
        began = time.monotonic()
        settings = in_words(self.plan, self.model.name, self.device, identity_of(done[0].kind).arithmetic.dtype)
        with open_film(self.job.output, self.plan, options, after=self._finish.after, track=self.track) as writer:
            resumed = writer.resume(Wanted(self.plan.chunks, fingerprints, settings), chunks)
            if resumed.notice:
                yield Notice(resumed.notice)
            for chunk in self.plan.chunks[resumed.chunks :]:
                fingerprint = fingerprints[chunk.index]
                state = partial(self._state, chunks, fingerprint, chunk.index)
                if not writer.take_kept(Safe(fingerprint, state), chunk.num_frames):
                    raise Missing(self._segment_of(chunk.index))
            if writer.has_after:
                yield from completed(writer)
                yield PhaseStarted("finish")
            self._finish.describe(writer)
            output = writer.close()
        if options.cache:
            with contextlib.suppress(OSError):  # a line of `helios cache list` is no reason to fail
                Cache().note_film(self.plan.title, str(output), fingerprints)
        self._phases["finish"] += time.monotonic() - began
        yield from self._finish.finish(self._film_done(str(output)))
        self.parts.remove()

    @property
    def _finish(self) -> Finish:
        assert self.kind is not None, "the film has begun"
        source, checkpoint = self.model.source, self.model.checkpoint
        folder = checkpoint.path if checkpoint else Path(source.revision or "")
        return Finish(
            Planned(self.plan, self.job.film),
            self.job.output,
            self.job.options,
            self.model.name,
            folder,
            checkpoint.adapters if checkpoint else (),
            None,
            self.device,
            self.target,
            identity_of(self.kind),
            self._all_fingerprints,
            self.track,
        )

    def _all_fingerprints(self, plan: Plan) -> list[str]:
        """Return the fingerprints of the film's chunks: of segments that are done, as they were made."""
        assert self.kind is not None
        found: list[str] = []
        for segment in self.segments:
            done = self.done.get(segment.index)
            found += done.fingerprints if done else self.fingerprints(self.kind, segment.plan)
        return found

    def _state(self, chunks: Cache, fingerprint: str, index: int) -> bytes:
        state = chunks.state(fingerprint)
        if state is None:
            raise Missing(self._segment_of(index))
        return state

    def _segment_of(self, chunk: int) -> int:
        return max(segment.index for segment in self.segments if segment.first_chunk <= chunk)

    def _count(self, chunks: set[int]) -> set[int]:
        """Count chunks as there; return those that were not counted before."""
        new = chunks - self._chunks
        self._chunks |= new
        return new

    def _num_frames(self) -> int:
        return sum(self.plan.chunks[index].num_frames for index in self._chunks)

    def _film_started(self) -> FilmStarted:
        assert self.kind is not None
        return FilmStarted(
            film=self.plan.title,
            output=str(self.target.path),
            model=self.model.name,
            device=self.device,
            dtype=identity_of(self.kind).arithmetic.dtype,
            width=self.plan.size[0],
            height=self.plan.size[1],
            fps=self.plan.fps,
            frames=self.plan.num_frames,
            chunks=len(self.plan.chunks),
            stages=self.model.stages,
            steps=None,
        )

    def _film_done(self, output: str) -> FilmDone:
        seconds = time.monotonic() - self._started
        frames = self.plan.num_frames
        return FilmDone(
            output=output,
            frames=frames,
            seconds=seconds,
            frames_per_second=(frames - self._reused) / seconds,
            peak_host_bytes=self._peak_host,
            peak_device_bytes=self._peak_device or None,
            peak_vae_device_bytes=self._peak_vae_device or None,
            phases=dict(self._phases),
            frames_reused=self._reused,
        )


def identity_of(kind: Kind) -> Identity:
    """Return what decides the pixels, of all that a kind holds."""
    return Identity(kind["weights"], Arithmetic(**kind["arithmetic"]), kind["attention_taken"])
