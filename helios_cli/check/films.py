"""Checks several films, and averages their measures over the films, as benchmarks report them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from helios_cli.check.examine import examine
from helios_cli.check.report import Report, Summary, rounded
from helios_cli.errors import InputError

FILMS_VERSION = 1


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
