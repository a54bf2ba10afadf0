"""The report of a comparison: plain values, from which the terminal, JSON and the HTML page are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from helios_cli.check.report import Finding

COMPARISON_VERSION = 1
COMPARED_AS = "8-bit RGB"


@dataclass(frozen=True)
class Likeness:
    """The likeness of some frames of two films.

    Attributes:
        psnr: decibels, from the mean squared error over all of the frames; None, for infinity, if they are equal.
        ssim: mean over the frames, 1 if they are equal; None if they are smaller than 8 pixels.
        vmaf: mean over the frames, 0 to 100; None without libvmaf. Equal frames have about 97 to 100.
        largest: largest difference of a red, green or blue value, in levels of 255.
        equal_frames: count of the frames in which nothing differs.
    """

    psnr: float | None
    ssim: float | None
    vmaf: float | None
    largest: int
    equal_frames: int

    def to_dict(self) -> dict:
        return {"equal": self.psnr is None, **_rounded(asdict(self))}


@dataclass(frozen=True)
class ChunkComparison:
    """A chunk, its frame of the least PSNR, counted from 0, and that PSNR."""

    index: int
    start_frame: int
    num_frames: int
    whole: Likeness
    worst_frame: int
    worst_psnr: float | None

    @property
    def is_equal(self) -> bool:
        return self.whole.equal_frames == self.num_frames

    def to_dict(self) -> dict:
        place = {"index": self.index, "start_frame": self.start_frame, "num_frames": self.num_frames}
        worst = {"worst_frame": self.worst_frame, "worst_psnr": self.worst_psnr}
        return {**place, **self.whole.to_dict(), **_rounded(worst)}


@dataclass(frozen=True)
class WorstFrame:
    """The frame `number`, the worst of its chunk, both counted from 0."""

    number: int
    chunk: int
    likeness: Likeness


@dataclass(frozen=True)
class Comparison:
    """Two films frame by frame. `worst` are the worst frames of the worst chunks; none if the films are equal."""

    film: str
    against: str
    width: int
    height: int
    fps: float
    num_frames: int
    whole: Likeness
    chunks: tuple[ChunkComparison, ...]
    worst: tuple[WorstFrame, ...]
    findings: tuple[Finding, ...]
    notices: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        return self.whole.equal_frames == self.num_frames

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    def to_dict(self) -> dict:
        """Return the JSON object of `helios check --against --json`. An infinite PSNR is null, next to `equal`."""
        return {
            "version": COMPARISON_VERSION,
            "film": self.film,
            "against": self.against,
            "ok": not self.findings,
            "compared_as": COMPARED_AS,
            "width": self.width,
            "height": self.height,
            "fps": round(self.fps, 4),
            "frames": self.num_frames,
            "seconds": round(self.seconds, 3),
            **self.whole.to_dict(),
            "findings": [_rounded(asdict(finding)) for finding in self.findings],
            "worst": [
                {"frame": frame.number, "chunk": frame.chunk, **frame.likeness.to_dict()} for frame in self.worst
            ],
            "chunks": [chunk.to_dict() for chunk in self.chunks],
            "notices": list(self.notices),
        }


def _rounded(values: Mapping) -> dict:
    """Round to four decimals: SSIM needs them."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}


def decibels(psnr: float | None) -> str:
    """Return a PSNR in words, `38.21` or `equal`; rounded down, so that none seems to reach a limit that it misses."""
    return "equal" if psnr is None else f"{math.floor(psnr * 100) / 100:.2f}"


def fraction(ssim: float | None) -> str:
    """Return an SSIM in words, rounded down like decibels, so that only equal frames have 1."""
    return "none" if ssim is None else f"{math.floor(ssim * 10_000) / 10_000:.4f}"


def score(vmaf: float | None) -> str:
    """Return a VMAF in words."""
    return "none" if vmaf is None else f"{vmaf:.1f}"
