"""The report of a check: plain values, from which the terminal, JSON and the HTML page are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from helios_cli.check.limits import LIMITS
from helios_cli.check.measure import Thumbnail
from helios_cli.units import counted

REPORT_VERSION = 1

C = TypeVar("C")


@dataclass(frozen=True)
class ChunkPlace:
    """The frames of a chunk; both numbers count from 0."""

    index: int
    start_frame: int
    num_frames: int

    @property
    def end_frame(self) -> int:
        """The first frame after it."""
        return self.start_frame + self.num_frames


@dataclass(frozen=True)
class Look:
    """The means over some frames, in levels of 255.

    `si` to `entropy` are those of `detail.Detail`, the last two of `flow.Motion`; None where no frame has one.
    """

    red: float
    green: float
    blue: float
    brightness: float
    saturation: float
    contrast: float
    si: float | None
    ti: float | None
    blur: float | None
    entropy: float | None
    motion_length: float | None
    motion_signed: float | None


@dataclass(frozen=True, kw_only=True)
class ChunkReport(Look, ChunkPlace):
    """The numbers of one chunk, in levels of 255.

    Attributes:
        cut: whether a new take begins with it, so that it is not compared with the chunk before.
        motion: mean absolute difference of successive frames within the chunk.
        flicker: median distance of a frame's brightness from the mean of its two neighbours'.
        flicker_hz, flicker_swing: rate of a periodic change of brightness, and how far it goes from lowest to highest;
            None if there is none.
        jump: difference across the border to the chunk before; None for the first chunk.
        usual_step: the larger of the two chunks' median differences, with which `jump` is compared.
        jump_limit: the `jump` above which it is a finding; None for the first chunk.
        from_start: distance from the first chunk of its take.
    """

    cut: bool
    motion: float
    flicker: float
    flicker_hz: float | None
    flicker_swing: float | None
    jump: float | None
    usual_step: float | None
    jump_limit: float | None
    from_start: float


@dataclass(frozen=True)
class Drift:
    """The last 15 % of a take (between two cuts, or the whole film) against its first 15 %.

    `color` is a distance; see limits.DRIFT_COLOR. The others are last minus first, None where an end has none.
    """

    first_chunk: int
    last_chunk: int
    first: Look
    last: Look
    brightness: float
    color: float
    saturation: float
    contrast: float
    blur: float | None
    entropy: float | None


@dataclass(frozen=True)
class Summary:
    """One measure over the whole film, cuts or not.

    Attributes:
        name, unit: such as "brightness" and "levels".
        mean, highest: over its frames; for flicker over its chunks.
        first, last: over its first and its last 15 % of frames.
        drift: their distance, HeliosBench's |M(first 15 %) - M(last 15 %)|.
    """

    name: str
    unit: str
    mean: float | None
    highest: float | None
    first: float | None
    last: float | None
    drift: float | None


@dataclass(frozen=True)
class Finding:
    """A place worth a look.

    Attributes:
        kind: "black", "uniform", "frozen", "flickering", "seam jump", "drifting", "repeating" or "damaged".
        chunk, last_chunk: the first and the last chunk, from 0.
        value, limit: the value, and the one of `limits` that it passed; None for a damaged file.
        message: the same in words.
    """

    kind: str
    chunk: int
    last_chunk: int
    start_seconds: float
    end_seconds: float
    value: float | None
    limit: float | None
    message: str

    def __str__(self) -> str:
        """Return the finding as a line: kind, place, time and message."""
        return f"{self.kind}: {self.chunks}, {self.times}: {self.message}"

    @property
    def chunks(self) -> str:
        """The place in words, `chunk 3` or `chunks 3-5`, counted from 1."""
        if self.chunk == self.last_chunk:
            return f"chunk {self.chunk + 1}"
        return f"chunks {self.chunk + 1}-{self.last_chunk + 1}"

    @property
    def times(self) -> str:
        return f"{clock_time(self.start_seconds)}-{clock_time(self.end_seconds)}"


def damage(message: str, num_chunks: int, seconds: float) -> Finding:
    """Return the finding of a whole film whose file is damaged."""
    return Finding("damaged", 0, num_chunks - 1, 0.0, seconds, None, None, message)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A film that was checked, alone or against another one. `notices` are assumptions of the check."""

    film: str
    width: int
    height: int
    fps: float
    num_frames: int
    chunks: tuple[Any, ...]
    findings: tuple[Finding, ...]
    notices: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    @property
    def length(self) -> str:
        """The length in words."""
        return f"{counted(self.num_frames, 'frame')}, {clock_time(self.seconds)}"

    def facts(self) -> dict:
        """Return what the JSON of every check begins with."""
        return {
            "film": self.film,
            "ok": not self.findings,
            "width": self.width,
            "height": self.height,
            "fps": round(self.fps, 4),
            "frames": self.num_frames,
            "seconds": round(self.seconds, 3),
            "findings": [rounded(asdict(finding)) for finding in self.findings],
            "notices": list(self.notices),
        }


@dataclass(frozen=True, kw_only=True)
class Report(Checked):
    """A checked film. `thumbnails` are pictures of evenly spread chunks."""

    chunks: tuple[ChunkReport, ...]
    summary: tuple[Summary, ...]
    drifts: tuple[Drift, ...]
    thumbnails: tuple[Thumbnail, ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict:
        """Return the JSON object of `helios check --json`: everything except the pictures, with the limits in use."""
        return {
            "version": REPORT_VERSION,
            **self.facts(),
            "summary": [rounded(asdict(measure)) for measure in self.summary],
            "drifts": [rounded(asdict(drift)) for drift in self.drifts],
            "chunks": [rounded(asdict(chunk)) for chunk in self.chunks],
            "limits": {name: limit.value for name, limit in LIMITS.items()},
        }


def rounded(values: dict) -> dict:
    """Round to four decimals, finer than any visible difference; SSIM needs them."""
    return {
        key: rounded(value) if isinstance(value, dict) else round(value, 4) if isinstance(value, float) else value
        for key, value in values.items()
    }


def number(value: float | None, digits: int = 1, sign: str = "") -> str:
    """Format a number with `digits` decimals, None as nothing; with the `sign` "+" also a positive one has a sign."""
    return "" if value is None else f"{value:{sign}.{digits}f}"


def clock_time(seconds: float) -> str:
    """Format `75.25` as `1:15.25`, an hour as `1:00:00.00`."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{clock}:{rest // 100:02d}.{rest % 100:02d}"


def runs(chunks: Sequence[C], flags: Sequence[bool]) -> Iterator[list[C]]:
    """Yield runs of neighbouring chunks with a true flag."""
    for flag, pairs in groupby(zip(flags, chunks, strict=True), key=lambda pair: pair[0]):
        if flag:
            yield [chunk for _, chunk in pairs]


def chunks_with(findings: Iterable[Finding]) -> dict[int, list[str]]:
    """Return the kinds of findings by chunk, without drift and damage, which concern all chunks."""
    kinds: dict[int, list[str]] = {}
    for finding in findings:
        if finding.kind not in ("drifting", "damaged"):
            for chunk in range(finding.chunk, finding.last_chunk + 1):
                kinds.setdefault(chunk, []).append(finding.kind)
    return kinds
