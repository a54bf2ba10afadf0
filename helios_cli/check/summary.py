"""Sums a film up: each measure over all frames, at its two ends, and how far it drifts between them.

The ends are HeliosBench's, the first and the last 15 % of frames, and so is drift, |M(first 15 %) - M(last 15 %)|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from helios_cli.check.detail import Detail
from helios_cli.check.findings import BRIGHTNESS, alternation, color_shift, end_frames, mean
from helios_cli.check.measure import LOOK, Measures
from helios_cli.check.report import ChunkReport, Summary, number

MEASURES = {
    "brightness": ("brightness", "levels"),
    "saturation": ("saturation", "levels"),
    "contrast": ("contrast", "levels"),
    "color": ("colour shift", "levels"),
    "blur": ("blur", "0 to 1"),
    "si": ("SI (P.910)", "levels"),
    "ti": ("TI (P.910)", "levels"),
    "entropy": ("entropy", "bits"),
    "motion_length": ("motion, length", "pixels"),
    "motion_signed": ("motion, signed", "pixels"),
    "flicker": ("flicker", "levels"),
}
"""The measures in the order in which they are shown, with label and unit. Pixels are those of a 640x384 picture, per
frame."""

COLUMNS = ("measure", "unit", "mean", "highest", "first 15 %", "last 15 %", "drift")


def rows(summary: Sequence[Summary]) -> list[list[str]]:
    """Return the table of COLUMNS."""
    table = []
    for measure in summary:
        numbers = (measure.mean, measure.highest, measure.first, measure.last, measure.drift)
        digits = 2 if measure.unit in ("levels", "bits") else 3
        table.append([MEASURES[measure.name][0], measure.unit, *(number(value, digits) for value in numbers)])
    return table


def summarize(measures: Measures, chunks: Sequence[ChunkReport]) -> tuple[Summary, ...]:
    """Return every one of MEASURES over the film."""
    columns = dict(zip(LOOK, measures.looks.T, strict=True))
    columns |= dict(zip(Detail._fields, measures.details.T, strict=True))
    columns |= dict(zip(("motion_length", "motion_signed"), measures.motions.T, strict=True))
    cuts = [chunk.start_frame for chunk in chunks if chunk.cut]
    for name in ("ti", "motion_length", "motion_signed"):
        columns[name] = columns[name].copy()
        columns[name][cuts] = np.nan  # a cut is no motion
    summaries = {name: _summary(name, columns[name]) for name in MEASURES if name in columns}
    brightness = measures.looks[:, BRIGHTNESS]
    flickers = np.array([chunk.flicker for chunk in chunks])
    summaries["flicker"] = _flicker(brightness, flickers)
    summaries["color"] = Summary("color", MEASURES["color"][1], None, None, None, None, _color_drift(measures))
    return tuple(summaries[name] for name in MEASURES)


def _summary(name: str, values: np.ndarray) -> Summary:
    average = _absolute_mean if name == "motion_signed" else mean
    there = values[~np.isnan(values)]
    highest = np.abs(there) if name == "motion_signed" else there
    return _drifting(name, values, average, average(values), float(highest.max()) if len(highest) else None)


def _absolute_mean(values: np.ndarray) -> float | None:
    """Return HeliosBench's motion amplitude: the sign goes after averaging, so that opposite motions cancel."""
    average = mean(values)
    return None if average is None else abs(average)


def _flicker(brightness: np.ndarray, of_chunks: np.ndarray) -> Summary:
    return _drifting("flicker", brightness, alternation, float(of_chunks.mean()), float(of_chunks.max()))


def _drifting(
    name: str,
    values: np.ndarray,
    average: Callable[[np.ndarray], float | None],
    whole: float | None,
    highest: float | None,
) -> Summary:
    share = end_frames(len(values))
    first, last = average(values[:share]), average(values[-share:])
    drift = None if first is None or last is None else abs(last - first)
    return Summary(name, MEASURES[name][1], whole, highest, first, last, drift)


def _color_drift(measures: Measures) -> float:
    share = end_frames(len(measures.looks))
    first, last = (part.mean(axis=0, dtype=np.float64) for part in (measures.looks[:share], measures.looks[-share:]))
    return color_shift(first, last)
