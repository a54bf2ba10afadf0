"""What benchmarks say: where and when they ran, and how two sides compare. No torch."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from helios_cli import __version__, machine
from helios_cli.bench.job import PROMPT, Job, Result
from helios_cli.film import ffmpeg
from helios_cli.units import FRAMES_PER_CHUNK, chunks_for
from helios_cli.versions import version_of

SAME_FILM_DB = 25
"""PSNR of two encodes of the same film, at least: those of random weights are near 38, those of two seeds near 13."""

Row = tuple[str, *tuple[float | str, ...]]
"""A label and numbers; "" where there is none."""


def environment() -> dict:
    """The machine, the versions and the date of a measurement."""
    cpu = machine.cpu()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**asdict(cpu), "memory_bytes": machine.host_memory().total_bytes, "system": platform.platform()},
        "versions": {
            "helios": __version__,
            "commit": commit(),
            "python": platform.python_version(),
            "torch": version_of("torch"),
        },
    }


def commit() -> str | None:
    """The checkout's commit, with "+" if files differ from it; None for an installed package."""
    if not (Path(__file__).parents[2] / ".git").exists():
        return None
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:  # no git
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def film(name: str, job: Job) -> dict:
    """What was rendered."""
    return {
        "model": name,
        "size": list(job.size),
        "frames": job.num_frames,
        "chunks": chunks_for(job.num_frames),
        "steps": list(job.steps),
        "dtype": job.dtype,
        "seed": job.seed,
        "prompt": PROMPT,
        "encoding": "H.264 crf 17 medium, by ffmpeg in a process and threads of its own",
        "warm_up": f"a film of {FRAMES_PER_CHUNK} frames in the same process",
    }


def side(result: Result) -> dict:
    derived = ("dit_seconds", "other_seconds", "frames_per_second")
    return {**asdict(result), **{name: getattr(result, name) for name in derived}}


def ratios(ours: Result, theirs: Result) -> dict[str, float]:
    """Our seconds over theirs."""
    return {
        "total": ours.seconds / theirs.seconds,
        "dit": ours.dit_seconds / theirs.dit_seconds,
        "decode": ours.phases["decode"] / theirs.phases["decode"],
        "load": ours.load_seconds / theirs.load_seconds,
    }


def rows(results: list[Result], floors: dict[str, float]) -> list[Row]:
    """A table's rows: what it is and in which unit, a number a side, with two sides the first over the second, the
    floor and its share of the first side's number; `floors` are seconds by phase."""
    numbers = {
        **{f"{phase}, s": [result.phases[phase] for result in results] for phase in results[0].phases},
        "all stages, s": [result.dit_seconds for result in results],
        "other, s": [result.other_seconds for result in results],
        "film, s": [result.seconds for result in results],
        "load, s": [result.load_seconds for result in results],
        "frames": [result.num_frames for result in results],
        "frames a second": [result.frames_per_second for result in results],
        "peak memory, MB": [result.peak_host_bytes / 1e6 for result in results],
    }
    if all(result.peak_device_bytes is not None for result in results):
        numbers["peak GPU memory, MB"] = [result.peak_device_bytes / 1e6 for result in results]
    if all(result.steady_frames_per_second is not None for result in results):
        numbers["steady frames a second"] = [result.steady_frames_per_second for result in results]
    stages = sum(seconds for phase, seconds in floors.items() if phase.startswith("stage "))
    least = {**{f"{phase}, s": seconds for phase, seconds in floors.items()}, "all stages, s": stages}
    least["film, s"] = sum(floors.values())
    table = []
    for label, values in numbers.items():
        ratio = [_rounded(values[0] / values[1])] if len(values) == 2 else []
        floor = [_rounded(least[label]), _rounded(least[label] / values[0])] if label in least else ["", ""]
        table.append((label, *map(_rounded, values), *ratio, *floor))
    return table


def agreement_db(first: str, second: str) -> float:
    """PSNR between two encoded films over the frames that both have, at most 100."""
    compare = ["-lavfi", "psnr=shortest=1", "-f", "null", "-"]
    command = [ffmpeg.program().path, "-hide_banner", "-i", first, "-i", second, *compare]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace").stderr
    return min(100.0, float(re.search(r"PSNR .*average:(\S+)", said)[1]))


def _rounded(value: float) -> float:
    """Three digits, or all those in front of the point."""
    return round(value) if abs(value) >= 100 else float(f"{value:.3g}")
