"""`helios bench farm`: how much work a farm makes of sharing out films, and how soon it goes on after a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from helios_cli import options
from helios_cli.bench import report
from helios_cli.console import JsonFlag, console
from helios_cli.errors import InputError
from helios_cli.recipe.flags import read_flag
from helios_cli.recipe.values import MAX_WORKERS, parse_bytes
from helios_cli.units import counted, format_bytes

if TYPE_CHECKING:
    from helios_cli.bench.farm import Films

COLUMNS = {
    "workers": ("workers", 1.0),
    "chunks": ("chunks", 1.0),
    "overhead, ms": ("overhead_seconds", 1e3),
    "driver, ms": ("driver_seconds", 1e3),
    "view, ms": ("view_seconds", 1e3),
    "worker, ms": ("worker_seconds", 1e3),
    "of a core": ("driver_share", 1.0),
    "messages/s": ("messages_per_second", 1.0),
    "files": ("file_operations", 1.0),
}
"""The columns of the table: the number of a row, and by what it is multiplied. Peak memory comes last."""


def farm(
    workers: Annotated[str, typer.Option(help="Numbers of workers to measure.")] = "2,8,64",
    films: Annotated[int, typer.Option(min=1, help="Number of films.")] = 1000,
    segments: Annotated[int, typer.Option(min=1, help="Segments of each film, the parts between cuts.")] = 2,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of each segment.")] = 3,
    chunk_seconds: Annotated[float, typer.Option(min=0, help="Seconds that a worker sleeps for each chunk.")] = 0.1,
    state: Annotated[str, typer.Option(help="Size of the state that is kept with each chunk: 64K, 5M.")] = "64K",
    seconds: Annotated[float, typer.Option(min=1, help="Longest time to measure each number of workers.")] = 60,
    json: JsonFlag = False,
    out: options.BenchOut = None,
) -> None:
    """Measure a farm by itself, with workers that have no model: they sleep for each chunk, and keep noise.

    Films end without a join here, which is measured apart, and without ffmpeg.
    """
    from helios_cli.bench.farm import Films, measure, measure_faults, measure_parts

    counts = read_flag("--workers", _counts, workers)
    asked = Films(films, segments, chunks, chunk_seconds, read_flag("--state", parse_bytes, state))
    rows = []
    for count in counts:
        console.status(f"{counted(films, 'film')} by {counted(count, 'worker')}, for at most {seconds:g} s")
        rows.append(measure(asked, count, seconds))
    console.status("keeping and joining chunks, one after the other")
    parts = measure_parts(asked)
    console.status("killing a worker, and a driver")
    faults = measure_faults(asked)
    data = {**report.environment(), "films": vars(asked), "rows": rows, "parts": parts, "faults": faults}
    data["bounds"] = bounds(rows, parts, asked)
    table = [
        [*(report.rounded(row[key] * unit) for key, unit in COLUMNS.values()), format_bytes(row["peak_bytes"])]
        for row in rows
    ]
    console.table([*COLUMNS, "driver's peak"], table, data=data)
    for line in _lines(data):
        console.line(line)
    options.write_out(out, data)


def bounds(rows: list[dict[str, Any]], parts: dict[str, Any], films: Films) -> dict[str, float]:
    """Return the number of workers, each with a chunk a second, at which one resource is used up.

    `driver` is a core for the driver with its view, by the costs at the most workers that were measured; `store` is one
    writer at a time in the folder of parts; `joins` is a core for the joins of the films, with their ffmpeg.
    """
    last = rows[-1]
    join = (parts["join_driver_seconds"] + parts["join_ffmpeg_seconds"]) / films.chunks_of_film
    return {
        "driver": 1 / (last["driver_seconds"] + last["view_seconds"]),
        "store": 1 / parts["keep_seconds"],
        "joins": 1 / join,
    }


def _lines(data: dict[str, Any]) -> list[str]:
    rows, parts, faults = (data[key] for key in ("rows", "parts", "faults"))
    bound = {name: report.rounded(value) for name, value in data["bounds"].items()}
    plan, refresh = (max(row[key] for row in rows) for key in ("plan_seconds", "refresh_seconds"))
    return [
        f"planning takes {_ms(plan)} a film, one look of the view {_ms(refresh)}",
        f"a worker takes {_ms(parts['keep_seconds'])} to keep a chunk, the driver {_ms(parts['note_seconds'])} to note "
        "a segment",
        f"a join takes {_ms(parts['join_seconds'])} a film: {_ms(parts['join_driver_seconds'])} of the driver's "
        f"processor time, {_ms(parts['join_ffmpeg_seconds'])} of ffmpeg's",
        f"a killed worker is noticed after {_ms(faults['lost_seconds'])}, and its segment goes on after "
        f"{_ms(faults['replaced_seconds'])}, in which a new worker starts that loads no model",
        f"the claim of a killed driver of this machine is taken over after {_ms(faults['taken_over_seconds'])}, with "
        f"{counted(faults['taken_over_chunks'], 'chunk')} that need not be rendered again",
        f"a claim of another machine that expires after {faults['expiry_seconds']:g} s is taken over after "
        f"{_ms(faults['expired_seconds'])}",
        f"where each worker has a chunk a second, the driver takes a core at {bound['driver']} workers, joins "
        f"take one at {bound['joins']}, and the folders of parts take {bound['store']} chunks a "
        "second from one writer at a time",
    ]


def _ms(seconds: float) -> str:
    return f"{report.rounded(seconds * 1e3):g} ms"


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",") if part.strip().isascii() and part.strip().isdigit()]
    if len(counts) != text.count(",") + 1 or not all(1 <= count <= MAX_WORKERS for count in counts):
        raise InputError(f"{text!r} is not a list of numbers from 1 to {MAX_WORKERS}", hint="write 2,8,64")
    return counts
