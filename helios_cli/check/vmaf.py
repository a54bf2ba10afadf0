"""VMAF by ffmpeg's libvmaf, with the model that is built into it, where this ffmpeg has them."""

from __future__ import annotations

import csv
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from helios_cli.errors import MachineError
from helios_cli.film import ffmpeg

THREADS = 2


class Vmaf:
    """Scores pairs of pictures, uint8 [h, w, 3], one after another, in an ffmpeg of its own; `log` takes the scores.

    A pair is one picture for ffmpeg, the reference below the other, so that no pair can fall out of step. Luma, which
    is all that the model sees, is that of BT.709.
    """

    def __init__(self, width: int, height: int, log: IO[bytes]) -> None:
        self._log = log
        half = f"crop={width}:{height}:0"
        luma = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,format=yuv420p"
        graph = (
            f"[0:v]split[both][again];[both]{half}:0,{luma}[one];[again]{half}:{height},{luma}[other];"
            f"[one][other]libvmaf=log_fmt=csv:log_path=/dev/fd/{log.fileno()}:n_threads={THREADS}"
        )
        pixels = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{2 * height}", "-r", "24", "-i", "pipe:0"]
        self._process = ffmpeg.Process(
            [*pixels, "-filter_complex", graph, "-f", "null", "-"],
            doing="computing VMAF",
            stdin=subprocess.PIPE,
            pass_fds=[log.fileno()],
        )

    def write(self, one: np.ndarray, reference: np.ndarray) -> None:
        """Score the next pair."""
        try:
            self._process.write(np.ascontiguousarray(one).data)
            self._process.write(np.ascontiguousarray(reference).data)
        except BrokenPipeError:
            self._process.complete()  # raises why it ended
            raise

    def scores(self) -> np.ndarray:
        """Return the score of every pair, float64 from 0 to 100, after the last one."""
        self._process.close_input()
        self._process.complete()
        self._log.seek(0)
        rows = csv.DictReader(line.decode() for line in self._log)
        return np.array([float(row["vmaf"]) for row in rows])

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def scoring(width: int, height: int) -> Iterator[Vmaf]:
    """Yield a Vmaf for pictures of that size."""
    with tempfile.TemporaryFile() as log:
        vmaf = Vmaf(width, height, log)
        try:
            yield vmaf
        finally:
            vmaf.kill()


def scorable(width: int, height: int) -> bool:
    """Return whether this ffmpeg computes VMAF for pictures of that size: it tries two."""
    grey = np.full((height, width, 3), 128, np.uint8)
    try:
        with scoring(width, height) as vmaf:
            for _ in range(2):
                vmaf.write(grey, grey)
            return len(vmaf.scores()) == 2
    except (MachineError, OSError, KeyError):  # no libvmaf, no model in it, too small for it
        return False
