"""`helios cache`: list and clear the cached chunks of films."""

from __future__ import annotations

import time

import typer

from helios_cli import machine
from helios_cli.console import JsonFlag, console
from helios_cli.errors import MachineError
from helios_cli.film.cache import Cache
from helios_cli.units import counted, format_bytes

app = typer.Typer(help="List or clear the cached chunks that later films reuse.", no_args_is_help=True)

AGES = ((86400, "day"), (3600, "hour"), (60, "minute"))


@app.command("list")
def list_(json: JsonFlag = False) -> None:
    """List the films with cached chunks."""
    cache = _cache()
    films, num_bytes = cache.films(), cache.num_bytes()
    rows = [
        (
            film.title,
            f"{film.kept_chunks}/{film.chunks}",
            format_bytes(film.num_bytes),
            _age(film.last_used),
            film.output,
        )
        for film in films
    ]
    data = {"folder": str(cache.folder), "bytes": num_bytes, "films": [film._asdict() for film in films]}
    console.table(("film", "chunks", "size", "last used", "output"), rows, data=data)
    console.line(f"{format_bytes(num_bytes)} in {cache.folder}")


@app.command()
def clear(json: JsonFlag = False) -> None:
    """Remove all cached chunks. Finished and unfinished films are not touched."""
    cache = _cache()
    freed = cache.clear()
    console.result({"folder": str(cache.folder), "freed": freed})
    console.line(f"freed {format_bytes(freed)} in {cache.folder}")


def _cache() -> Cache:

    if machine.home() == machine.NO_HOME:
        raise MachineError(machine.NO_HOME_MESSAGE)
    return Cache()


def _age(since: float) -> str:
    """Format a time in seconds since the epoch: `3 hours ago`."""
    seconds = time.time() - since
    for length, name in AGES:
        if seconds >= length:
            count = int(seconds / length)
            return f"{counted(count, name)} ago"
    return "just now"
