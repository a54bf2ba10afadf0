"""Reports of benchmarks: where and when they ran, how two sides compare, `bench all` as Markdown. No torch."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helios_cli import __version__, machine
from helios_cli.bench.task import PROMPT, Result, Task
from helios_cli.film import ffmpeg
from helios_cli.units import FRAMES_PER_CHUNK, chunks_for, format_bytes, format_figure
from helios_cli.versions import version_of

SAME_FILM_DB = 25
"""Least PSNR of two encodes of the same film: those of random weights are near 38, those of two seeds near 13."""

Row = tuple[str, *tuple[float | str, ...]]
"""A label and numbers; "" where there is none."""

PER_SECOND = {
    "copy": (1e9, "GB/s copied"),
    "product": (1e12, "TFLOP/s"),
    "sustained_product": (1e12, "TFLOP/s for two seconds"),
    "clock": (1, "MHz during those"),
    "watts": (1, "W"),
    "fp8_product": (1e12, "TFLOP/s in fp8"),
}
"""The unit and the label of each number of the ceiling."""


def environment() -> dict[str, Any]:
    """Return the machine, the versions and the date of a measurement."""
    memory = machine.host_memory().total_bytes
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**machine.cpu()._asdict(), "memory_bytes": memory, "system": platform.platform()},
        "versions": {
            "helios": __version__,
            "commit": commit(),
            "python": platform.python_version(),
            "torch": version_of("torch"),
        },
    }


def commit() -> str | None:
    """Return the checkout's commit, with "+" if files differ from it; None for an installed package."""
    if not (Path(__file__).parents[2] / ".git").exists():
        return None
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:  # no git
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def film(name: str, task: Task) -> dict[str, Any]:
    """Return a description of the film."""
    return {
        "model": name,
        "size": list(task.size),
        "frames": task.num_frames,
        "chunks": chunks_for(task.num_frames),
        "steps": list(task.steps),
        "dtype": task.dtype,
        "seed": task.seed,
        "prompt": PROMPT,
        "encoding": "H.264 crf 17 medium, by ffmpeg in a process and threads of its own",
        "warm_up": f"a film of {FRAMES_PER_CHUNK} frames in the same process",
    }


def side(result: Result) -> dict[str, Any]:
    derived = ("dit_seconds", "other_seconds", "frames_per_second")
    return {**asdict(result), **{name: getattr(result, name) for name in derived}}


def ratios(ours: Result, theirs: Result) -> dict[str, float]:
    """Return our seconds over theirs."""
    return {
        "total": ours.seconds / theirs.seconds,
        "dit": ours.dit_seconds / theirs.dit_seconds,
        "decode": ours.phases["decode"] / theirs.phases["decode"],
        "load": ours.load_seconds / theirs.load_seconds,
    }


def rows(results: list[Result], floors: dict[str, float]) -> list[Row]:
    """Return a table's rows: a label with its unit, a number a side, with two sides the first over the second, then the
    floor and its share of the first side's number. `floors` are seconds by phase."""
    numbers: dict[str, list[float]] = {
        **{f"{phase}, s": [result.phases[phase] for result in results] for phase in results[0].phases},
        "all stages, s": [result.dit_seconds for result in results],
        "other, s": [result.other_seconds for result in results],
        "film, s": [result.seconds for result in results],
        "load, s": [result.load_seconds for result in results],
        "frames": [result.num_frames for result in results],
        "frames a second": [result.frames_per_second for result in results],
        "peak memory, MB": [result.peak_host_bytes / 1e6 for result in results],
    }
    optional = {
        "peak GPU memory, MB": [result.peak_device_bytes and result.peak_device_bytes / 1e6 for result in results],
        "steady frames a second": [result.steady_frames_per_second for result in results],
    }
    for label, measured in optional.items():
        if None not in measured:
            numbers[label] = [value for value in measured if value is not None]
    stages = sum(seconds for phase, seconds in floors.items() if phase.startswith("stage "))
    least = {**{f"{phase}, s": seconds for phase, seconds in floors.items()}, "all stages, s": stages}
    least["film, s"] = sum(floors.values())
    table: list[Row] = []
    for label, values in numbers.items():
        ratio = [rounded(values[0] / values[1])] if len(values) == 2 else []
        floor = [rounded(least[label]), rounded(least[label] / values[0])] if label in least else ["", ""]
        table.append((label, *map(rounded, values), *ratio, *floor))
    return table


def agreement_db(first: str, second: str) -> float:
    """Return the PSNR between two encoded films over the frames that both have, at most 100."""
    compare = ["-lavfi", "psnr=shortest=1", "-f", "null", "-"]
    command = [ffmpeg.program().path, "-hide_banner", "-i", first, "-i", second, *compare]
    log = subprocess.run(command, capture_output=True, text=True, errors="replace").stderr
    average = re.search(r"PSNR .*average:(\S+)", log)
    assert average, log
    return min(100.0, float(average[1]))


def rounded(value: float) -> float:
    """Round to three figures, or to all those before the point."""
    return round(value) if abs(value) >= 100 else float(f"{value:.3g}")


def markdown(data: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a result of `helios bench all`; parts without one are listed with the reason."""
    parts, versions = data["parts"], data["versions"]
    results = {name: part["result"] for name, part in parts.items() if part.get("result")}
    ceiling = results.get("ceiling") or {}
    rates = [f"{ceiling[key] / unit:.4g} {label}" for key, (unit, label) in PER_SECOND.items() if ceiling.get(key)]
    yield ", ".join(
        [data["device"], data["date"][:10], f"commit {versions['commit']}", f"torch {versions['torch']}", *rates]
    )
    renders = {name: one for name, one in results.items() if name.startswith("render ")}
    phases = list(dict.fromkeys(phase for one in renders.values() for phase in one.get("floors", {})))
    yield from _table(
        ["", "frames a second", "steady", *GATES.values(), *(f"{phase}, s (of floor)" for phase in phases)],
        [
            [
                name,
                figure(one["frames_per_second"]),
                figure(one["steady_frames_per_second"]),
                *(figure(one.get("gates", {}).get(gate)) for gate in GATES),
                *_phases(one, phases),
            ]
            for name, one in renders.items()
        ],
    )
    yield from _table(
        ["op", "case", "ms", "of the ceiling", "over eager or PyTorch's fastest", "short of"],
        [
            [f"`{row['op']}`", row["case"], *([row["fault"]] * 4 if row.get("fault") else _kernel(row))]
            for row in results.get("kernels", [])
        ],
    )
    shapes = results.get("attention", [])
    names = list(dict.fromkeys(name for row in shapes for name in row["ms"]))
    yield from _table(
        ["attention, ms", *names, "taken"],
        [[row["shape"], *(figure(row["ms"].get(name)) for name in names), row["name"]] for row in shapes],
    )
    for part, name in (("sustained products", "shape"), ("decoding", "piece"), ("decoding", "convolution")):
        found = [row for row in results.get(part, []) if name in row]
        keys = list(dict.fromkeys(key for row in found for key in row if key != name))
        yield from _table([name, *keys], [[row[name], *(_cell(row.get(key)) for key in keys)] for row in found])
    yield from (f"\n{key}: {_cell(value)}" for row in results.get("decoding", [])[-1:] for key, value in row.items())
    products = results.get("fp8 products", [])
    names = list(dict.fromkeys(name for row in products for name in row["milliseconds"]))
    yield from _table(
        ["product, ms (distance from float32)", *names, "fast sums"],
        [[_shape(row), *(_product(row, name) for name in names), _taken(row)] for row in products],
    )
    yield from _table(
        ["fp8 against bfloat16: chunk", "latents, dB", "frames, dB"],
        [
            [str(row["chunk"] + 1), figure(row["latents_db"]), figure(row["frames_db"])]
            for row in results.get("fp8 quality", [])
        ],
    )
    yield from _table(
        ["kernel", "before, ms", "tuned, ms", "configuration"],
        [_tuned(row) for row in results.get("tuning", [])],
    )
    yield from _offload(results.get("offload") or {})
    if waits := results.get("synchronisations"):
        yield f"\nIn a chunk the host waits for the GPU {waits['count']} times: " + ", ".join(
            f"{place} ({count})" for place, count in waits["where"].items()
        )
    yield ""
    for name, part in parts.items():
        verdict = results[name].get("verdict") if isinstance(results.get(name), dict) else None
        if text := part.get("failed") or part.get("left_out") or verdict:
            yield f"- {name}: {text}"


GATES = {"dit_teraflops": "transformer, TFLOP/s", "decode_hidden": "decoding hidden"}
"""The two that decide a film's rate, apart (`bench.task.gates`)."""


def _phases(one: dict[str, Any], phases: Sequence[str]) -> list[str]:
    shares = one.get("share_of_floor", {})
    return [
        f"{format_figure(one['phases'][phase])} ({shares[phase]:.0%})" if phase in shares else "-" for phase in phases
    ]


def _kernel(row: dict[str, Any]) -> list[str]:
    share = f"{row['share']:.0%} of {row['bound']}"
    return [figure(row["milliseconds"]), share, f"{figure(row['over_eager'])}x", row["short_of"] or ""]


def _tuned(row: dict[str, Any]) -> list[str]:
    if row.get("fault"):
        return [f"`{row['op']}`", *[row["fault"]] * 3]
    settings = ", ".join(f"{name} {value}" for name, value in (row["best"] or {}).items() if value)
    return [f"`{row['kernel']}`", *(_milliseconds(row[key]) for key in ("before", "seconds")), settings or "as before"]


def _milliseconds(seconds: float | None) -> str:
    return figure(None if seconds is None else seconds * 1e3)


def _offload(result: dict[str, Any]) -> Iterator[str]:
    """Yield the table of the ways of placing a model, and the bandwidths that their floors follow from."""
    yield from _table(
        ["placement", "peak on the device", "s a chunk", "floor, s", "ratio"],
        [
            [row["mode"], *[row["failed"]] * 4]
            if row.get("failed")
            else [
                row["mode"] if row["budget_bytes"] is None else f"{row['mode']} in {format_bytes(row['budget_bytes'])}",
                "-" if row["peak_device_bytes"] is None else format_bytes(row["peak_device_bytes"]),
                *(figure(row[key]) for key in ("seconds", "floor_seconds", "ratio")),
            ]
            for row in result.get("modes", [])
        ],
    )
    if rates := result.get("bandwidths"):
        yield "\n" + ", ".join(f"{name}: {format_figure(rate / 1e9)} GB/s" for name, rate in rates.items())


def _cell(value: Any) -> str:
    return str(rounded(value)) if isinstance(value, float) else "-" if value is None else str(value)


def _shape(row: dict[str, Any]) -> str:
    return f"{row['rows']}x{row['inner']}x{row['outer']}"


def _product(row: dict[str, Any], name: str) -> str:
    error = row["relative_error"].get(name)
    return figure(row["milliseconds"].get(name)) + ("" if error is None else f" ({error:.3g})")


def _taken(row: dict[str, Any]) -> str:
    return row["refused"].get("fp8") or ("taken" if row["fast_sums"] else "not taken")


def figure(value: float | None) -> str:
    """Format a number of a table; `-` for None."""
    return "-" if value is None else format_figure(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from ("", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
        yield from (f"| {' | '.join(row)} |" for row in rows)
