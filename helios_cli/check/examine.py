"""Checks a film, footage -> measures -> findings -> report, or several films, whose measures are averaged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from helios_cli.check.findings import chunk_reports, drifts, find
from helios_cli.check.footage import PictureFolder, VideoFile, open_footage
from helios_cli.check.layout import grid, read_sidecar
from helios_cli.check.measure import Measures, measure
from helios_cli.check.report import Report, Summary, damage, rounded
from helios_cli.check.summary import summarize
from helios_cli.errors import InputError
from helios_cli.film.target import sidecar_of
from helios_cli.units import FRAMES_PER_CHUNK

FILMS_VERSION = 1


def examine(path: str | os.PathLike, *, chunk_frames: int | None = None) -> Report:
    """Check the film at `path`, a video file or a folder of PNG pictures, in chunks of `chunk_frames`.

    Without `chunk_frames`, chunks and cuts are those of the film's sidecar, else 33 frames without cuts. The film is
    decoded once, a frame at a time. InputError if it cannot be read.
    """
    footage = open_footage(path)
    measures, notices = _measured(footage, chunk_frames)
    chunks = chunk_reports(measures, footage.fps)
    drifted = drifts(measures, chunks)
    findings = find(measures, chunks, drifted, footage.fps)
    num_frames = len(measures.steps)
    if footage.damage:
        findings += (damage(f"ffmpeg reports faults: {footage.damage}", len(chunks), num_frames / footage.fps),)
    return Report(
        film=os.fspath(path),
        width=footage.width,
        height=footage.height,
        fps=footage.fps,
        num_frames=num_frames,
        chunks=chunks,
        summary=summarize(measures, chunks),
        drifts=drifted,
        findings=findings,
        notices=notices,
        thumbnails=measures.thumbnails,
    )


def _measured(footage: VideoFile | PictureFolder, chunk_frames: int | None) -> tuple[Measures, tuple[str, ...]]:
    sidecar = None if chunk_frames else read_sidecar(footage.path)
    if sidecar is None:
        return measure(footage, grid(chunk_frames or FRAMES_PER_CHUNK)), ()
    total = sidecar.num_frames
    measures = measure(footage, chain(sidecar.spans, grid(FRAMES_PER_CHUNK, total)))
    count = len(measures.steps)
    if count == total:
        return measures, ()
    notice = (
        f"{sidecar_of(footage.path)} describes {total} frames, but the film has {count}: chunks of 33 frames are used"
    )
    return measure(footage, grid(FRAMES_PER_CHUNK)), (notice,)


@dataclass(frozen=True)
class FilmReports:
    """The reports of several films. `failed` are those that could not be read, with the error."""

    reports: tuple[Report, ...]
    failed: tuple[tuple[Path, InputError], ...]

    @property
    def summary(self) -> tuple[Summary, ...]:
        """Each measure, averaged over the films that have it; every film counts the same, however long it is."""
        return tuple(_average(measures) for measures in zip(*(report.summary for report in self.reports), strict=True))

    def to_dict(self) -> dict:
        """Return the JSON object of `helios check --json` with several films."""
        return {
            "version": FILMS_VERSION,
            "ok": not self.failed and not any(report.findings for report in self.reports),
            "films": [report.to_dict() for report in self.reports],
            "failed": [{"film": str(path), "error": error.message} for path, error in self.failed],
            "summary": [rounded(asdict(measure)) for measure in self.summary],
        }


def examine_films(paths: Sequence[Path], *, chunk_frames: int | None = None) -> FilmReports:
    """Check each of the films as `examine` does; a film that cannot be read does not stop the others."""
    reports: list[Report] = []
    failed: list[tuple[Path, InputError]] = []
    for path in paths:
        try:
            report = examine(path, chunk_frames=chunk_frames)
            reports.append(replace(report, thumbnails=()))  # pictures of hundreds of films would add up
        except InputError as error:
            failed.append((path, error))
    return FilmReports(tuple(reports), tuple(failed))


def _average(measures: Sequence[Summary]) -> Summary:
    one = measures[0]
    names = ("mean", "highest", "first", "last", "drift")
    return Summary(one.name, one.unit, **{name: _mean([getattr(each, name) for each in measures]) for name in names})


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
