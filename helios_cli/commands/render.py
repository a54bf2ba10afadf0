"""`helios render`: sources to films."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from helios_cli import options
from helios_cli.console import console
from helios_cli.errors import HeliosError, InputError, Interrupted, MachineError
from helios_cli.plan_view import show_plans
from helios_cli.progress import View, open_view

if TYPE_CHECKING:
    import torch

    from helios_cli.engine.events import FilmDone
    from helios_cli.engine.ffmpeg import Encoding
    from helios_cli.engine.models import Models
    from helios_cli.engine.record import Again, Record
    from helios_cli.engine.target import Target
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.fingerprint import Arithmetic
    from helios_cli.recipe.plan import Plan
    from helios_cli.recipe.settings import Flags


MAX_TAKES = 100


def render(
    context: typer.Context,
    source: options.Sources = None,
    from_film: Annotated[
        Path | None,
        typer.Option("--from", help="In place of SOURCE: make this film again, from what it, or its .json, records."),
    ] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    minutes: options.Minutes = None,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    size: options.Size = None,
    seed: options.Seed = None,
    negative: options.Negative = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    image: options.Image = None,
    video: options.Video = None,
    reanchor: options.Reanchor = False,
    output: options.Output = None,
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=options.OUTPUT, help="Replace a finished film.")
    ] = False,
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", rich_help_panel=options.OUTPUT, help="Take no chunks of earlier films, keep none."),
    ] = False,
    keep: Annotated[
        bool,
        typer.Option("--keep", rich_help_panel=options.OUTPUT, help="Leave journal and pieces beside the film."),
    ] = False,
    takes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_TAKES,
            rich_help_panel=options.OUTPUT,
            help="No film: so many seeds of its first chunk as clips and a contact sheet, to choose from.",
        ),
    ] = None,
    shot: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=options.OUTPUT, help="Takes of this shot, a cut. (default: the first)"),
    ] = None,
    codec: options.Codec = "h264",
    crf: options.Crf = 17,
    preset: Annotated[
        str, typer.Option(rich_help_panel=options.OUTPUT, help="Encoder preset, ultrafast to veryslow.")
    ] = "medium",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    no_metadata: Annotated[
        bool,
        typer.Option("--no-metadata", rich_help_panel=options.OUTPUT, help="Record in film and .json nothing of how."),
    ] = False,
    export: Annotated[
        str | None, typer.Option(rich_help_panel=options.OUTPUT, help="Write otio, edl or otio,edl beside the film.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look at the finished film as helios check does; see --strict.")
    ] = False,
    strict: options.Strict = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan, as helios plan does.")] = False,
    on_error: Annotated[
        Literal["continue", "stop"], typer.Option(help="What one failed film of several means for the others.")
    ] = "continue",
    progress: Annotated[
        Literal["auto", "rich", "plain", "json", "none"], typer.Option(help="How to show it.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Same as --progress none.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Same as --progress json: one event a line.")] = False,
) -> None:
    """Render films from prompts: helios render "a red ball rolls left" --seconds 20"""
    flags = options.film_flags(
        model=model,
        minutes=minutes,
        seconds=seconds,
        frames=frames,
        fps=fps,
        size=size,
        seed=seed,
        negative=negative,
        steps=steps,
        guidance=guidance,
        image=image,
        video=video,
    )
    _check_takes_flags(takes, shot, from_film, dry_run=dry_run)
    again = _again(source, from_film, dry_run=dry_run)
    if again:
        revision = revision or again.revision(flags)
        flags, output = again.flags(flags), output or f"{again.film.name}{again.suffix}"
        recorded = {key: value for key, value in again.settings().items() if not _is_given(context, key)}
        device, dtype = recorded.get("device", device), recorded.get("dtype", dtype)
        codec, crf, preset = recorded.get("codec", codec), recorded.get("crf", crf), recorded.get("preset", preset)
        reanchor = recorded.get("reanchor", reanchor)
    if dry_run:
        from helios_cli.cost.estimate import Terms, estimate_sources

        console.json = json or progress == "json"
        terms = Terms(flags, revision, device, dtype, output, codec, crf, reanchor=reanchor, strict=strict)
        show_plans(estimate_sources(source, terms))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a machine that is taken away is a Ctrl-C
    films = [again.film] if again else None
    jobs = _jobs(source, flags, output, force=force, takes_of_shot=takes and (shot or 1), films=films)
    extras = _Extras(again, not no_metadata, _forms(None if takes else export, jobs, force=force), check)
    encoding = _encoding(jobs, codec, crf, preset, clips=takes is not None)
    kind = "none" if quiet else "json" if json else progress
    with _table_at_the_end(jobs, shown=kind not in ("none", "json")), open_view(kind) as view:
        bench = _Workbench(flags, revision, device, dtype, encoding, view, strict, reanchor, not no_cache, keep, extras)
        if takes:
            _render_takes(jobs[0], bench, takes, shot or 1, context)
            return
        failed = list(_render_all(jobs, bench, stop=on_error == "stop"))
    if failed:
        raise HeliosError(f"{len(failed)} of {len(jobs)} films failed: {', '.join(failed)}")


def _again(sources: list[str] | None, from_film: Path | None, *, dry_run: bool) -> Again | None:
    """The film that --from names; exactly one of it and SOURCE is there."""
    if from_film is None:
        if not sources:
            raise InputError("nothing says what to render", hint='helios render "A boat leaves the harbour."')
        return None
    if sources:
        raise InputError("--from makes a film again, and SOURCE says another one", hint="leave one of them out")
    if dry_run:
        raise InputError("--dry-run plans a SOURCE, not a film made again", hint="leave out --dry-run")
    from helios_cli.engine.record import read_again

    return read_again(from_film)


def _is_given(context: typer.Context, key: str) -> bool:
    source = context.get_parameter_source(key)
    return source is not None and source.name != "DEFAULT"


@dataclass(frozen=True)
class _Extras:
    """What is made beside a film, and the film that it is made again from, if it is."""

    again: Again | None
    metadata: bool
    export: tuple[str, ...]
    check: bool


def _forms(export: str | None, jobs: list[_Job], *, force: bool) -> tuple[str, ...]:
    """What --export asks for. InputError if it cannot be written."""
    from helios_cli.engine.export import check_exports, parse_forms
    from helios_cli.engine.target import Target

    forms = () if export is None else parse_forms(export)
    for job in jobs:
        check_exports(Target.of(job.output), forms, len(job.film.recipe.shots), force=force)
    return forms


@dataclass
class _Job:
    """One film to render, and how that ended: `done` and `error` are None until it is tried."""

    film: Film
    model: str
    output: str
    done: FilmDone | None = None
    error: HeliosError | None = None


def _jobs(
    sources: list[str],
    flags: Flags,
    output: str | None,
    *,
    force: bool,
    takes_of_shot: int | None,
    films: list[Film] | None,
) -> list[_Job]:
    """Films, models and output names; everything about them that can be wrong without a model is found here."""
    from helios_cli.recipe.plan import check_film
    from helios_cli.recipe.settings import choose_model
    from helios_cli.recipe.sources import read_films

    films = films or read_films(sources)
    for film in films:
        check_film(film, flags)
    outputs = _outputs(films, output)
    if takes_of_shot and len(films) > 1:
        raise InputError(f"--takes shows one film, not {len(films)}", hint="name one source")

    from helios_cli.engine.takes import TakesFiles, check_shot
    from helios_cli.engine.writer import check_target  # after the recipes: it brings in numpy

    jobs = []
    for film, target in zip(films, outputs, strict=True):
        if takes_of_shot:
            check_shot(film, takes_of_shot)
            TakesFiles.of(target, force=force)
        else:
            check_target(target, force=force)
        name, origin = choose_model(film.recipe, flags)
        jobs.append(_Job(film, os.environ.get("HELIOS_MODEL") or name if origin == "default" else name, target))
    return jobs


def _outputs(films: list[Film], output: str | None) -> list[str]:
    if len(films) == 1:
        return [output or f"{films[0].name}.mp4"]
    if output and not Path(output).is_dir():
        raise InputError(f"-o {output}: {len(films)} films need a folder that exists", hint=f"mkdir -p {output}")
    names = [f"{film.name}.mp4" for film in films]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"several films would be called {', '.join(doubled)}", hint="rename their sources")
    return [str(Path(output or "") / name) for name in names]


def _encoding(jobs: list[_Job], codec: str, crf: int, preset: str, *, clips: bool) -> Encoding:
    """The .mp4 encoding, tried on one frame if any film needs it: not two hours later."""
    from helios_cli.engine.ffmpeg import Encoding, check_encoding

    if clips or any(job.output.lower().endswith(".mp4") for job in jobs):
        return check_encoding(codec=codec, crf=crf, preset=preset)
    return Encoding(codec, crf, preset)


@contextlib.contextmanager
def _table_at_the_end(jobs: list[_Job], *, shown: bool) -> Iterator[None]:
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


def _row(job: _Job) -> tuple[str, ...]:
    if done := job.done:
        speed = f"{done.frames_per_second:.3g}" if done.frames > done.frames_reused else "reused"
        return job.film.name, "done", str(done.frames), f"{done.seconds:.1f}", speed, job.output
    if job.error is None:
        return job.film.name, "not tried", "", "", "", ""
    result = "stopped" if isinstance(job.error, Interrupted) else "failed"
    return job.film.name, result, "", "", "", job.error.message.splitlines()[0]


@dataclass
class _Workbench:
    """What all films of one command share: flags, device, and the model that is loaded."""

    flags: Flags
    revision: str | None
    device_name: str
    dtype_name: str
    encoding: Encoding
    view: View
    strict: bool
    reanchor: bool
    use_cache: bool
    keep: bool
    extras: _Extras
    loaded: dict[str, Models] = field(default_factory=dict)

    def tell(self, message: str) -> None:
        from helios_cli.engine.events import Notice

        self.view.show(Notice(message))

    def device(self) -> tuple[torch.device, torch.dtype]:
        from helios_cli import machine

        device = machine.pick_device(self.device_name)
        return device, machine.pick_dtype(self.dtype_name, device)[0]

    def plan(self, job: _Job, models: Models) -> Plan:
        from helios_cli.recipe.plan import plan_film
        from helios_cli.recipe.settings import ModelDefaults, resolve

        checkpoint = models.checkpoint
        defaults = ModelDefaults(checkpoint.native_size, checkpoint.preset.steps, checkpoint.preset.guidance)
        return plan_film(job.film, resolve(job.film.recipe, self.flags, defaults), strict=self.strict)

    def models(self, name: str) -> Models:
        """The loaded model called `name`; several films share it."""
        if name not in self.loaded:
            self.loaded.clear()  # one model in memory at a time
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    def _load(self, name: str) -> Models:
        from helios_cli.engine import preflight
        from helios_cli.engine.models import Models
        from helios_cli.recipe.settings import DEFAULT_MODEL
        from helios_cli.weights import hub
        from helios_cli.weights.checkpoint import Checkpoint

        device, dtype = self.device()
        if name == DEFAULT_MODEL:
            name, line = preflight.auto_model(device, dtype)
            self.tell(line)
        folder = hub.resolve(name, self.revision, progress=console.progress_bytes)
        checkpoint = Checkpoint.open(folder)
        if checkpoint.knows:
            self.tell(f"{name} {'' if checkpoint.trained else 'is untrained; it '}knows {checkpoint.knows}")
        preflight.require_memory(checkpoint, device, dtype)
        return Models(checkpoint, device, dtype, name=name)


def _render_all(jobs: list[_Job], bench: _Workbench, *, stop: bool) -> Iterator[str]:
    """Renders all films; yields the names of those that failed. The error of an only film is raised as it is."""
    for job in jobs:
        try:
            job.done = _render_one(job, bench)
        except Interrupted as error:
            job.error = error
            raise
        except HeliosError as error:
            job.error = error
            if stop or len(jobs) == 1:
                raise
            console.error(error)
            yield job.film.name


def _check_takes_flags(takes: int | None, shot: int | None, from_film: Path | None, *, dry_run: bool) -> None:
    if shot and not takes:
        raise InputError("--shot says which shot --takes shows", hint="add --takes 4, or leave --shot out")
    if takes and dry_run:
        raise InputError("--dry-run plans a film, --takes makes none", hint="leave one of them out")
    if takes and from_film:
        raise InputError("--from makes a film again, --takes shows others", hint="name its source in place of --from")


def _render_takes(job: _Job, bench: _Workbench, count: int, shot: int, context: typer.Context) -> None:
    """Clips and contact sheet, and how to go on with one of them."""
    from helios_cli.engine.takes import TakesFiles, takes_of, write_sheet

    models = bench.models(job.model)
    plan = bench.plan(job, models)
    for notice in plan.notices:
        bench.tell(notice)
    takes = takes_of(plan, count, shot)
    files = TakesFiles.of(job.output, force=True)
    files.make_folder()
    for done, take in enumerate(takes):
        try:
            _render_plan(take.plan, str(files.clip(take.seed)), models, bench)
        except (Interrupted, KeyboardInterrupt):  # in a clip, or between two
            hint = "run the same command again to go on from there"
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
    left_out = {"takes", "shot", "force", *(["seed"] if seed is not None else [])}
    words, sources = ["helios", "render"], []
    for parameter in context.command.params:
        value, source = context.params.get(parameter.name), context.get_parameter_source(parameter.name)
        if parameter.name in left_out or source is None or source.name != "COMMANDLINE":
            continue
        if parameter.name == "source":
            sources = value
        elif value is True:
            words.append(parameter.opts[0])
        else:
            words += [parameter.opts[0], str(value)]
    words += [] if seed is None else ["--seed", str(seed)]
    return shlex.join([*words[:2], *sources, *words[2:]])


def _render_one(job: _Job, bench: _Workbench) -> FilmDone:
    models = bench.models(job.model)
    plan = bench.plan(job, models)
    for notice in plan.notices:
        bench.tell(notice)
    return _render_plan(plan, job.output, models, bench, job)


def _render_plan(plan: Plan, output: str, models: Models, bench: _Workbench, job: _Job | None = None) -> FilmDone:
    """The film of `plan`; that of a `job` with its record, and all that is made beside it."""
    from helios_cli.cost.disk import film_bytes
    from helios_cli.engine.cache import Cache
    from helios_cli.engine.events import FilmDone
    from helios_cli.engine.record import chapters
    from helios_cli.engine.render import render as render_film
    from helios_cli.engine.target import Target, check_space
    from helios_cli.engine.writer import open_writer
    from helios_cli.recipe.fingerprint import chunk_fingerprints
    from helios_cli.weights.identity import weights_identity

    encoding = bench.encoding
    target = Target.of(output)
    if notice := check_space(target, film_bytes(plan, target.kind, encoding.codec, encoding.crf)):
        bench.tell(notice)
    weights = weights_identity(models.checkpoint)
    arithmetic = _arithmetic(models)
    fingerprints = chunk_fingerprints(plan, weights, arithmetic, reanchor=bench.reanchor)
    record = job and _record(job, plan, models, bench, weights, arithmetic, fingerprints)
    tells = record is not None and bench.extras.metadata
    writer = open_writer(
        output,
        size=plan.size,
        fps=plan.fps,
        codec=encoding.codec,
        crf=encoding.crf,
        preset=encoding.preset,
        metadata=record.metadata() if tells and target.kind != "png" else None,
        chapters=chapters(job.film, plan) if tells else (),
        keep=bench.keep,
    )
    events = render_film(
        plan,
        models,
        writer,
        reanchor=bench.reanchor,
        fingerprints=fingerprints,
        cache=Cache() if bench.use_cache else None,
    )
    try:
        with contextlib.closing(events):
            for event in events:
                if not isinstance(event, FilmDone):
                    bench.view.show(event)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped: {writer.safe_chunks} of the {len(plan.chunks)} chunks of {output} are safe",
            hint="run the same command again to go on from there",
        ) from None
    if tells:
        _write_sidecar(job, target, record, plan, fingerprints, event.seconds, bench)
    findings = _look_at(job, target, plan, bench) if job else 0
    bench.view.show(event)  # the last one: the film is done
    if findings and bench.strict:
        what = "1 finding" if findings == 1 else f"{findings} findings"
        raise HeliosError(f"{output} is complete, with {what}, and --strict allows none")
    return event


def _record(
    job: _Job,
    plan: Plan,
    models: Models,
    bench: _Workbench,
    weights: str,
    arithmetic: Arithmetic,
    fingerprints: list[str],
) -> Record:
    """How the film is made; the user is told if that is not how the one was that it is made again from."""
    from helios_cli import __version__
    from helios_cli.engine.record import make_record, model_record
    from helios_cli.engine.target import Target
    from helios_cli.weights.hub import source_of

    target, checkpoint = Target.of(job.output), models.checkpoint.path
    source = source_of(models.name, bench.revision)
    record = make_record(
        job.film,
        bench.flags,
        plan,
        fingerprints,
        model=model_record(models.name, source, checkpoint, weights, target.path.parent),
        device=str(models.device),
        arithmetic=arithmetic,
        reanchor=bench.reanchor,
        encoding=bench.encoding if target.kind == "mp4" else None,
        helios_version=__version__,
        folder=target.path.parent,
    )
    again = bench.extras.again
    if again and again.record.fingerprint != record.fingerprint:
        others = ", ".join(again.record.differences(record)) or "picture or clip"
        bench.tell(f"bit for bit not the same film as {again.path}: other {others}")
    return record


def _write_sidecar(
    job: _Job, target: Target, record: Record, plan: Plan, fingerprints: list[str], seconds: float, bench: _Workbench
) -> None:
    """The record beside the film. The film is complete: what stands against its sidecar is told and stops nothing."""
    from helios_cli.engine.record import sidecar_path, write_sidecar

    path = sidecar_path(target, job.film.source)
    if path is None:
        bench.tell(f"{job.output} gets no sidecar: other files have both names that it could have")
        return
    if path.name.count(".") > target.path.name.count(".") + (target.kind == "png"):
        bench.tell(f"the sidecar is {path.name}, since {target.path.stem}.json is another file")
    try:
        write_sidecar(path, record, target, plan, fingerprints, seconds)
    except MachineError as error:
        bench.tell(f"{job.output} is complete, but its sidecar is not: {error.message}")


def _look_at(job: _Job, target: Target, plan: Plan, bench: _Workbench) -> int:
    """Exports the finished film and checks it, as far as that was asked for; returns how many findings there are."""
    from helios_cli.engine.export import export

    for notice in export(target, plan, bench.extras.export):
        bench.tell(notice)
    if not bench.extras.check:
        return 0
    from helios_cli.check.examine import examine
    from helios_cli.check.report import chunk_range, clock_time

    report = examine(target.path)
    for notice in report.notices:
        bench.tell(notice)
    for finding in report.findings:
        span = f"{clock_time(finding.start_seconds)}-{clock_time(finding.end_seconds)}"
        bench.tell(f"check: {finding.kind}: {chunk_range(finding)}, {span}: {finding.message}")
    if not report.findings:
        bench.tell(f"check: nothing found in {len(report.chunks)} chunks")
    return len(report.findings)


def _arithmetic(models: Models) -> Arithmetic:
    """What rounds the numbers, as `helios plan` names it too."""
    import torch

    from helios_cli import machine
    from helios_cli.cost.device import cpu_name
    from helios_cli.recipe.fingerprint import Arithmetic

    device = models.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = cpu_name(torch.get_num_threads()) if device.type == "cpu" else machine.cpu().model
    return Arithmetic(name, str(models.dtype).removeprefix("torch."), metadata.version("torch"))
