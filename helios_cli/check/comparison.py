"""The report of a comparison: plain values, from which the terminal, JSON and the HTML page are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from helios_cli.check.report import Checked, ChunkPlace, rounded

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
        return {"equal": self.psnr is None, **rounded(asdict(self))}

    def __str__(self) -> str:
        return f"PSNR {decibels(self.psnr)} dB, SSIM {fraction(self.ssim)}, VMAF {score(self.vmaf)}"


@dataclass(frozen=True)
class ChunkComparison(ChunkPlace):
    """A chunk, its frame of the least PSNR, counted from 0, and that PSNR."""

    whole: Likeness
    worst_frame: int
    worst_psnr: float | None

    @property
    def is_equal(self) -> bool:
        return self.whole.equal_frames == self.num_frames

    def to_dict(self) -> dict:
        values = rounded(asdict(self))
        del values["whole"]
        return {**values, **self.whole.to_dict()}


@dataclass(frozen=True)
class WorstFrame:
    """The frame `number`, the worst of its chunk, both counted from 0."""

    number: int
    chunk: int
    likeness: Likeness


@dataclass(frozen=True, kw_only=True)
class Comparison(Checked):
    """Two films frame by frame. `worst` are the worst frames of the worst chunks; none if the films are equal."""

    against: str
    whole: Likeness
    chunks: tuple[ChunkComparison, ...]
    worst: tuple[WorstFrame, ...]

    @property
    def is_equal(self) -> bool:
        return self.whole.equal_frames == self.num_frames

    def to_dict(self) -> dict:
        """Return the JSON object of `helios check --against --json`. An infinite PSNR is null, next to `equal`."""
        return {
            "version": COMPARISON_VERSION,
            "against": self.against,
            "compared_as": COMPARED_AS,
            **self.facts(),
            **self.whole.to_dict(),
            "worst": [
                {"frame": frame.number, "chunk": frame.chunk, **frame.likeness.to_dict()} for frame in self.worst
            ],
            "chunks": [chunk.to_dict() for chunk in self.chunks],
        }


def decibels(psnr: float | None) -> str:
    """Return a PSNR in words, `38.21` or `equal`; rounded down, so that none seems to reach a limit that it misses."""
    return "equal" if psnr is None else f"{math.floor(psnr * 100) / 100:.2f}"


def fraction(ssim: float | None) -> str:
    """Return an SSIM in words, rounded down like decibels, so that only equal frames have 1."""
    return "none" if ssim is None else f"{math.floor(ssim * 10_000) / 10_000:.4f}"


def score(vmaf: float | None) -> str:
    """Return a VMAF in words."""
    return "none" if vmaf is None else f"{vmaf:.1f}"
