"""`helios bench quality`: what films of the toy world show against their prompts, and how long films last."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from helios_cli import options
from helios_cli.bench.report import environment, figure
from helios_cli.console import JsonFlag, console
from helios_cli.device import pick_device, torch_dtype
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.values import DEFAULT_BLEND_SECONDS
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK

if TYPE_CHECKING:
    from helios_cli.bench.screening import Showing
    from helios_cli.engine.models import Models

LONG_PROMPT = "a red ball rolls left over green hills"
"""The prompt of the first long film."""

SHEET_ROWS = 16

SHOT_CHUNKS = 5
"""Length of each of the two shots of a film that changes."""


def quality(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model of the toy world: tiny, or a folder. (default: tiny)")
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=2, help="Number of short films, half of them of combinations never prompted in training.")
    ] = 64,
    chunks: Annotated[int, typer.Option(min=1, help="Length of the short films in chunks of 33 frames.")] = 2,
    minutes: Annotated[float, typer.Option(min=0, help="Length of the long films in minutes; 0 for none.")] = 3,
    films: Annotated[int, typer.Option(min=1, help="Number of long films.")] = 2,
    changes: Annotated[int, typer.Option(min=0, help="Number of two-shot films for each transition; 0 for none.")] = 12,
    steps: options.BenchSteps = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale; 1 turns guidance off. (default: the model's)")
    ] = None,
    without: Annotated[
        Literal["anchor", "relative"] | None,
        typer.Option(help="Render without the anchor, or with absolute positions, as the model was trained."),
    ] = None,
    reuse_history: Annotated[bool, typer.Option("--reuse-history", help="As in `helios render`.")] = False,
    reuse_steps: Annotated[int, typer.Option(metavar="N", help="As in `helios render`.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts and films.")] = 0,
    device: options.BenchDevice = "auto",
    dtype: Annotated[Literal["auto", "bfloat16", "float32"], typer.Option(help="Data type to compute in.")] = "auto",
    sheet: Annotated[Path | None, options.file_option("Write frames of the first 16 films to this PNG.")] = None,
    json: JsonFlag = False,
    out: options.BenchOut = None,
) -> None:
    """Measure a model of the toy world: what its films show against their prompts, and how long films last."""

    asked = RenderOptions.parse(steps=steps).steps
    name, checkpoint = options.open_model(model, console.progress_bytes)

    from helios_cli.bench.screening import Showing
    from helios_cli.engine.models import Models
    from helios_cli.train.ablation import WITHOUT

    where = pick_device(device)
    models = Models(checkpoint, where, torch_dtype(dtype, where), name=name)
    how = Showing(asked, guidance, seed, reuse_history, reuse_steps)
    report = {
        **environment(),
        "model": models.name,
        "steps": list(asked or checkpoint.preset.steps),
        "guidance": checkpoint.preset.guidance if guidance is None else guidance,
        "without": without,
        "reuse_history": reuse_history,
        "reuse_steps": reuse_steps,
        "seed": seed,
    }
    with WITHOUT[without]() if without else nullcontext():
        report["prompts"] = _adherence(models, how, prompts, chunks, sheet)
        if minutes:
            report["long"] = _lasting(models, how, films, minutes)
        if changes:
            report["changes"] = _changes(models, how, changes)
    console.result(report)
    options.write_out(out, report)


def _adherence(models: Models, how: Showing, count: int, chunks: int, sheet: Path | None) -> dict:
    """Render, score and show the films of held-out prompts."""
    from helios_cli.bench.screening import films as rendered
    from helios_cli.train.samples import Row, save_sheet
    from helios_cli.train.settings.run import Samples
    from helios_cli.train.world.judge import ATTRIBUTES, adherence, score
    from helios_cli.train.world.prompts import prompts as held_out_prompts

    asked = held_out_prompts(count, how.seed)
    moments = Samples(chunks=chunks).moments()
    scores, size = [], (0, 0)
    rows: list[Row] = []
    console.status(f"{count} films of {chunks * FRAMES_PER_CHUNK} frames")
    films = rendered(models, [prompt.caption for prompt in asked], chunks * FRAMES_PER_CHUNK, how)
    for prompt, film in zip(asked, films, strict=True):
        scores.append(score(film, prompt.expected))
        if sheet and len(rows) < SHEET_ROWS:
            size = film.shape[2], film.shape[1]
            wrong = [name for name in ATTRIBUTES if not getattr(scores[-1], name)]
            rows.append(Row(prompt.caption, {moment: film[moment] for moment in moments}, ", ".join(wrong)))
    if sheet:
        save_sheet(sheet, f"{models.name}: held-out prompts, each with what the film lacks", rows, size, moments)
    groups = {
        "unseen": [one for one, prompt in zip(scores, asked, strict=True) if prompt.unseen],
        "seen": [one for one, prompt in zip(scores, asked, strict=True) if not prompt.unseen],
        "all": scores,
    }
    table = {name: adherence(group) for name, group in groups.items()}
    measures = list(table["all"])
    console.table(["", *table], [[name, *(figure(table[group][name]) for group in table)] for name in measures])
    each = [{"caption": prompt.caption, **asdict(one)} for prompt, one in zip(asked, scores, strict=True)]
    return {**table, "films": each}


def _lasting(models: Models, how: Showing, count: int, minutes: float) -> dict:
    """Render and watch long films, and show how they last."""
    from helios_cli.bench.screening import show
    from helios_cli.train.world.judge import Watcher, lasting
    from helios_cli.train.world.prompts import prompts as held_out_prompts

    captions = [LONG_PROMPT, *(prompt.caption for prompt in held_out_prompts(64, how.seed + 1))][:count]
    watched = []
    for caption in captions:
        console.status(f"{minutes:g} minutes of {caption!r}")
        watcher = Watcher()
        show(models, caption, max(1, round(minutes * 60 * DEFAULT_FPS)), watcher.write, how)
        watched.append(watcher.result())
    table = lasting(watched)
    console.line()
    console.table([f"{minutes:g} minutes", ""], [[name, figure(value)] for name, value in table.items()])
    each = [{"caption": caption, **asdict(one)} for caption, one in zip(captions, watched, strict=True)]
    return {"minutes": minutes, **table, "films": each}


def _changes(models: Models, how: Showing, count: int) -> dict:
    """Render films of two shots with each transition, and show how they go from one prompt to the other."""
    from helios_cli.bench.screening import two_shots
    from helios_cli.train.world.judge import change
    from helios_cli.train.world.judge import changes as together
    from helios_cli.train.world.prompts import pairs

    frames = SHOT_CHUNKS * FRAMES_PER_CHUNK
    blended = math.ceil(DEFAULT_BLEND_SECONDS * DEFAULT_FPS / FRAMES_PER_CHUNK)
    table: dict[str, Any] = {}
    for transition, due in (("cut", 0), ("switch", 0), ("blend", blended)):
        console.status(f"{count} films of two shots, with a {transition}")
        films = []
        for before, after in pairs(count, how.seed):
            film = two_shots(models, (before.caption, after.caption), transition, frames, how)
            films.append(change(film, before.expected, after.expected, frames))
        table[transition] = {**together(films, due), "due_chunks": due, "chunks": [film.chunks for film in films]}
    console.line()
    names = ("held", "in_time", "stayed")
    rows = [[transition, *(figure(found[name]) for name in names)] for transition, found in table.items()]
    console.table(["from shot to shot", *names], rows)
    return table
