"""What became of each of several films."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from helios_cli.batch.jobs import Job
from helios_cli.console import console
from helios_cli.errors import Interrupted


@contextlib.contextmanager
def table_at_the_end(jobs: list[Job], *, shown: bool) -> Iterator[None]:
    """What became of each of several films, on stderr, however the command ends."""
    try:
        yield
    finally:
        if shown and len(jobs) > 1:
            rows = [("film", "result", "frames", "seconds", "frames/s", "output or error"), *map(_row, jobs)]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            for row in rows:
                numbers = [cell.rjust(width) for cell, width in zip(row[2:5], widths[2:5], strict=True)]
                console.status("  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *numbers, row[5]]))


def _row(job: Job) -> tuple[str, ...]:
    if done := job.done:
        speed = f"{done.frames_per_second:.3g}" if done.frames > done.frames_reused else "reused"
        return job.film.name, "done", str(done.frames), f"{done.seconds:.1f}", speed, job.output
    if job.error is None:
        return job.film.name, "not tried", "", "", "", ""
    result = "stopped" if isinstance(job.error, Interrupted) else "failed"
    return job.film.name, result, "", "", "", job.error.message.splitlines()[0]
