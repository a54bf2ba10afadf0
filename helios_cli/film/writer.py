"""Writes frames into a film: an .mp4 or .mkv through ffmpeg, or a folder of PNG pictures.

The film grows piece by piece under `<name>.partial.mp4` next to its target and takes the target's name only when it is
whole, so a file under that name is never broken.

With a journal next to it (`resume`), each piece is safe as soon as it is finished: whatever ends the process, the next
run continues after the last one.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from helios_cli.film.after import After
from helios_cli.film.cache import Cache
from helios_cli.film.compression import Encoding
from helios_cli.film.disk import disk_errors
from helios_cli.film.encoding import PieceEnd, PieceWriter, Safe
from helios_cli.film.growing import Chapter, GrowingFile, GrowingFilm, growing_film
from helios_cli.film.journal import Journal
from helios_cli.film.resume import Resumed, Wanted, resume
from helios_cli.film.sound import Track
from helios_cli.film.target import Target, check_target, film_exists, is_taken
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan

__all__ = ["FilmWriter", "Safe", "Target", "check_target", "open_writer"]


def open_writer(
    path: str | os.PathLike,
    *,
    size: tuple[int, int],
    fps: float,
    codec: str = "h264",
    crf: int = 17,
    preset: str = "medium",
    keep: bool = False,
    force: bool = True,
    after: After | None = None,
    track: Track | None = None,
    preview: str = "",
) -> FilmWriter:
    """Start a film at `path` of `size` (width, height) pixels; use it as a context manager.

    A film at `path` stays until `close` replaces it; `check_target` and `check_encoding` check it first. `codec`,
    `crf` and `preset` apply to .mp4 only. At most QUEUE_BYTES of frames wait for the encoder, or one larger array.
    `keep` leaves journal and pieces next to the finished film. Without `force`, `FilmWriter.resume` and `close` replace
    no finished film, and no unfinished one whose chunks are of no use and in no cache. `after` is what comes after the
    render, `track` the sound of a file. `preview` is the hash of the decoder whose frames these are, if it is not the
    VAE: its pieces are not the film's.
    """
    target = check_target(path, force=True)
    film = growing_film(target, size, fps, Encoding(codec, crf, preset), after=after, preview=preview)
    return FilmWriter(target, film, size, keep, force, track)


def open_film(
    output: str,
    plan: Plan,
    options: RenderOptions,
    *,
    after: After | None = None,
    track: Track | None = None,
    preview: str = "",
) -> FilmWriter:
    """Start the film that `options` ask for, as `open_writer` does."""
    return open_writer(
        output,
        size=plan.size,
        fps=plan.fps,
        codec=options.codec,
        crf=options.crf,
        preset=options.preset,
        keep=options.keep,
        force=options.force,
        after=after,
        track=track,
        preview=preview,
    )


class FilmWriter(PieceWriter):
    """A film that is being written. Leaving the `with` block closes it; an exception in the block aborts it."""

    def __init__(
        self,
        target: Target,
        film: GrowingFilm,
        size: tuple[int, int],
        keep: bool,
        force: bool,
        track: Track | None = None,
    ) -> None:
        super().__init__(target, film, size)
        self._keep_journal, self._force, self._track = keep, force, track
        self._metadata: Mapping[str, str] = {}
        self._chapters: Sequence[Chapter] = ()
        self._journal: Journal | None = None

    def resume(self, wanted: Wanted, cache: Cache | None) -> Resumed:
        """Keep a journal, and continue what an earlier run left of the film. Call it before the first frame.

        Finished chunks also go into `cache`. MachineError if another process renders the film, InputError if a film is
        there that must not be replaced, or the beginning of another.
        """
        self._journal = Journal(self.target)
        if not self._force and is_taken(self.target):  # checked this late: another run may just have finished it
            raise film_exists(self.target.path)
        wanted = replace(wanted, settings={**wanted.settings, "encoding": self._film.name})
        resumed = resume(wanted, self._journal, self._film, cache, force=self._force)
        self.num_frames = self._film.num_frames
        if self.feed:
            marks = [one.mark for one in self._journal.records]
            sound = None
            if self._track and isinstance(self._film, GrowingFile):
                sound = self._film.sound_pieces(self._track, first=sum(mark.frames for mark in marks[:-1]))
            with disk_errors(self.target.partial, "read"):
                self.feed.begin(self.target.partial, marks, sound)
        self._start(cache)
        return resumed

    def describe(self, metadata: Mapping[str, str], chapters: Sequence[Chapter]) -> None:
        """Set the metadata and chapters of a file; a folder of pictures has none. Call it before `close`."""
        self._metadata, self._chapters = metadata, chapters

    @property
    def safe_chunks(self) -> int:
        """The number of chunks that the next run of the same film need not render."""
        return len(self._journal.records) if self._journal else 0

    def complete(self) -> Generator[int, None, None]:
        with self._aborting():
            if not self.num_frames:
                raise ValueError("no frames were written")
        yield from super().complete()

    def _finish(self) -> None:
        self._film.finish(self._metadata, self._chapters, self._track)
        if not self._force and is_taken(self.target):  # a film that came during the render is not replaced
            raise film_exists(self.target.path)

    def _leave(self, *, is_whole: bool) -> None:
        """Name the film if it is whole, then close the journal or, if it is of no use, remove the unfinished film, and
        after it the journal that guards it."""
        if is_whole:
            self._film.publish()
        elif self._thread.ident:
            self._film.discard()
        if self._journal and (self._keep_journal if is_whole else self.safe_chunks > 0):
            self._journal.close()
        elif self._journal:  # without one nothing there is ours
            self._film.remove()
            self._journal.remove()

    def _put(self, item: np.ndarray | PieceEnd, num_bytes: int = 0) -> None:
        if self._journal is None and not self._is_closed:
            self._journal = Journal(self.target)
            self._film.begin()
            self._journal.begin("", {})
            self._thread.start()
        super()._put(item, num_bytes)

    def _keep(self, piece: bytes, end: PieceEnd) -> bytes | None:
        """Put the piece into the film, then its record into the journal, each on disk before the next."""
        mark = self._film.append(piece, end.num_frames)
        if end.safe is None or self._journal is None:
            return None
        state = end.safe.save()
        self._journal.append(end.safe.fingerprint, mark, state)
        if self.feed:
            self.feed.add(mark)
        return state
