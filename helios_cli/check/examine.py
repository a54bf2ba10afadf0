"""Checks a film: footage -> measures -> findings -> report."""

from __future__ import annotations

import os
from itertools import chain

from helios_cli.check.findings import chunk_reports, drifts, find
from helios_cli.check.footage import PictureFolder, VideoFile, open_footage
from helios_cli.check.layout import grid, read_sidecar
from helios_cli.check.measure import Measures, measure
from helios_cli.check.report import Finding, Report
from helios_cli.check.summary import summarize
from helios_cli.film.target import sidecar_of
from helios_cli.units import FRAMES_PER_CHUNK


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
        seconds, message = num_frames / footage.fps, f"ffmpeg reports faults: {footage.damage}"
        findings += (Finding("damaged", 0, len(chunks) - 1, 0.0, seconds, None, None, message),)
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
