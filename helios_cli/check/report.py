"""The report of a check: plain values, from which the terminal, JSON and the HTML page are made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from helios_cli.check.limits import LIMITS
from helios_cli.check.measure import Thumbnail

REPORT_VERSION = 1


@dataclass(frozen=True)
class ChunkReport:
    """The numbers of one chunk, in levels of 255.

    Attributes:
        index: from 0.
        cut: whether a new take begins with it, so that it is not compared with the chunk before.
        red, green, blue, brightness, saturation, contrast: means over its frames.
        motion: mean absolute difference of successive frames within the chunk.
        flicker: median distance of a frame's brightness from the mean of its two neighbours'.
        jump: difference across the border to the chunk before; None for the first chunk.
        usual_step: the larger of the two chunks' median differences, with which `jump` is compared.
        from_start: distance from the first chunk of its take.
    """

    index: int
    start_frame: int
    num_frames: int
    cut: bool
    red: float
    green: float
    blue: float
    brightness: float
    saturation: float
    contrast: float
    motion: float
    flicker: float
    jump: float | None
    usual_step: float | None
    from_start: float

    @property
    def end_frame(self) -> int:
        """The first frame after it."""
        return self.start_frame + self.num_frames


@dataclass(frozen=True)
class Look:
    """The means over some frames, in levels."""

    red: float
    green: float
    blue: float
    brightness: float
    saturation: float
    contrast: float


@dataclass(frozen=True)
class Drift:
    """The last 15 % of a take (between two cuts, or the whole film) against its first 15 %.

    `brightness`, `saturation` and `contrast` are last minus first, `color` is a distance; see limits.DRIFT_COLOR.
    """

    first_chunk: int
    last_chunk: int
    first: Look
    last: Look
    brightness: float
    color: float
    saturation: float
    contrast: float


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


@dataclass(frozen=True)
class Report:
    """A checked film. `notices` are assumptions of the check; `thumbnails` are pictures of evenly spread chunks."""

    film: str
    width: int
    height: int
    fps: float
    num_frames: int
    chunks: tuple[ChunkReport, ...]
    drifts: tuple[Drift, ...]
    findings: tuple[Finding, ...]
    notices: tuple[str, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = field(default=(), repr=False, compare=False)

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    def to_dict(self) -> dict:
        """Return the JSON object of `helios check --json`: everything except the pictures, with the limits in use."""
        return {
            "version": REPORT_VERSION,
            "film": self.film,
            "ok": not self.findings,
            "width": self.width,
            "height": self.height,
            "fps": round(self.fps, 4),
            "frames": self.num_frames,
            "seconds": round(self.seconds, 3),
            "findings": [_rounded(asdict(finding)) for finding in self.findings],
            "drifts": [_rounded(asdict(drift)) for drift in self.drifts],
            "chunks": [_rounded(asdict(chunk)) for chunk in self.chunks],
            "notices": list(self.notices),
            "limits": {name: limit.value for name, limit in LIMITS.items()},
        }


def _rounded(values: dict) -> dict:
    """Round to three decimals, finer than any visible difference."""
    return {
        key: _rounded(value) if isinstance(value, dict) else round(value, 3) if isinstance(value, float) else value
        for key, value in values.items()
    }


def clock_time(seconds: float) -> str:
    """Format `75.25` as `1:15.25`, an hour as `1:00:00.00`."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{clock}:{rest // 100:02d}.{rest % 100:02d}"


def chunk_range(finding: Finding) -> str:
    """Return `chunk 3` or `chunks 3-5`, counted from 1."""
    if finding.chunk == finding.last_chunk:
        return f"chunk {finding.chunk + 1}"
    return f"chunks {finding.chunk + 1}-{finding.last_chunk + 1}"


def chunks_with(findings: Iterable[Finding]) -> dict[int, list[str]]:
    """Return the kinds of findings by chunk, without drift and damage, which concern all chunks."""
    kinds: dict[int, list[str]] = {}
    for finding in findings:
        if finding.kind not in ("drifting", "damaged"):
            for chunk in range(finding.chunk, finding.last_chunk + 1):
                kinds.setdefault(chunk, []).append(finding.kind)
    return kinds
