"""`--takes`: clips and a contact sheet of several seeds, and how to go on with one of them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.batch.films import Run, render_run
from helios_cli.batch.jobs import Job, given_flags
from helios_cli.batch.workbench import Workbench
from helios_cli.errors import Interrupted

if TYPE_CHECKING:
    import typer

    from helios_cli.recipe.film import Film


def render_takes(job: Job, bench: Workbench, count: int, shot: int, context: typer.Context) -> None:
    """Clips and contact sheet, and how to go on with one of them."""
    from helios_cli.engine.script import Planned
    from helios_cli.film.takes import TakesFiles, takes_of, write_sheet

    models = bench.models(job.model)
    plan = bench.plan(job, models)
    for notice in plan.notices:
        bench.tell(notice)
    takes = takes_of(plan, count, shot)
    bench.place([takes[0].plan], models)
    files = TakesFiles.of(job.output, force=True)
    files.make_folder()
    for done, take in enumerate(takes):
        try:
            render_run(Run(Planned(take.plan), str(files.clip(take.seed))), models, bench)
        except (Interrupted, KeyboardInterrupt):  # in a clip, or between two
            hint = "run the same command again to go on from there"
            if not bench.use_cache:  # finished takes are found again as kept chunks
                hint = "the same command begins with the first take again; without --no-cache takes are kept"
            raise Interrupted(f"stopped: {done} of {count} takes are done", hint=hint) from None
    write_sheet(files, takes)
    bench.tell(f"the takes are on {os.path.relpath(files.sheet)}, a row for each seed, and in {files.folder.name}/")
    bench.tell(_how_to_go_on(job.film, shot, takes[-1].seed, context, kept=bench.use_cache))


def _how_to_go_on(film: Film, shot: int, seed: int, context: typer.Context, *, kept: bool) -> str:
    """What to type for the film with the take of `seed`."""
    whence = "goes on from its kept chunk" if kept else "renders it again, with the same frames"
    if shot == 1 and film.recipe.shots[0].seed is None:
        return f"the film with seed {seed}, for example, {whence}: {_command_line(context, seed)}"
    edit = f"give shot {shot} of {film.source} the seed {seed}, for example"
    if Path(film.source).suffix.lower() not in (".toml", ".yaml", ".yml", ".json"):
        edit += " (as a recipe, which `helios recipe convert` makes of it)"
    return f"{edit}; the film then {whence}: {_command_line(context, None)}"


def _command_line(context: typer.Context, seed: int | None) -> str:
    """The command as it was given, for the film and not its takes, with another seed if there is one."""
    left_out = {"source", "takes", "shot", "force", *(["seed"] if seed is not None else [])}
    seeds = [] if seed is None else ["--seed", str(seed)]
    return shlex.join(["helios", "render", *context.params["source"], *given_flags(context, left_out), *seeds])
