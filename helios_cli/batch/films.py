"""From a job to a film, its record, and what else is made beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios_cli.batch.jobs import Job
from helios_cli.batch.workbench import Workbench
from helios_cli.console import console
from helios_cli.errors import HeliosError, InputError, Interrupted, MachineError, OutOfMemory
from helios_cli.units import counted

if TYPE_CHECKING:
    from torch import Tensor

    from helios_cli.engine.calls import Lane, ModelCalls
    from helios_cli.engine.events import FilmDone
    from helios_cli.engine.models import Models
    from helios_cli.engine.script import Script
    from helios_cli.film.record import Record
    from helios_cli.film.target import Target
    from helios_cli.film.writer import FilmWriter
    from helios_cli.progress import View
    from helios_cli.recipe.fingerprint import Arithmetic, Fingerprints
    from helios_cli.recipe.plan import Plan


def render_all(jobs: list[Job], bench: Workbench, *, stop: bool, lanes: int = 1) -> Iterator[str]:
    """Renders all films, `lanes` at a time; yields the names of those that failed. The error of an only film is raised
    as it is."""
    from helios_cli.cost.estimate import groups_of

    for group in groups_of(jobs, lanes, lambda job: job.model):
        try:
            _render_group(group, bench)
        except HeliosError as error:
            for job in group:
                job.error = job.error if job.done or job.error else error
            if isinstance(error, Interrupted):
                raise
        for job in filter(lambda job: job.error, group):
            if stop or len(jobs) == 1:
                raise job.error
            console.error(job.error)
            yield job.film.name


def _render_group(jobs: list[Job], bench: Workbench) -> None:
    """Films of one model, in lockstep. What is wrong with one of them is its job's `error`."""
    from helios_cli.engine.script import Planned

    models = bench.models(jobs[0].model)
    runs = []
    for job in jobs:
        try:
            plan = bench.plan(job, models)
        except HeliosError as error:
            job.error = error
            continue
        for notice in plan.notices:
            bench.tell(notice)
        runs.append(Run(Planned(plan), job.output, job))
    if not runs:
        return
    bench.place([run.plan for run in runs], models, lanes=len(runs))
    if bench.strict:
        runs = [run for run in runs if _has_whole_prompts(run, models)]
    try:
        render_runs(runs, models, bench)
    finally:  # of films that a key press ends some may be finished
        for run in runs:
            run.job.done, run.job.error = run.done, run.error


def _has_whole_prompts(run: Run, models: Models) -> bool:
    """Whether the model sees the end of every prompt; if not, that is the job's error."""
    from helios_cli.recipe.plan import too_long

    models.encode(text for chunk in run.plan.chunks for text, _ in chunk.prompts)
    for text in {text for chunk in run.plan.chunks for text, _ in chunk.prompts}:
        if lost := models.prompts[text].lost:
            run.job.error = InputError(
                f"{run.plan.title}, {too_long(run.plan, text, lost)}", hint="shorten it, or leave out --strict"
            )
            return False
    return True


@dataclass
class Run:
    """A film on its way: its chunks and where it goes; that of a `job` gets a record, and all that is made beside it.

    The job's film is the one that the script's plan is of.
    """

    script: Script
    output: str
    job: Job | None = None
    writer: FilmWriter | None = None
    done: FilmDone | None = None
    error: HeliosError | None = None

    @property
    def plan(self) -> Plan:
        return self.script.plan


def render_run(run: Run, models: Models, bench: Workbench) -> FilmDone:
    """One film alone. Raises what it ends with."""
    render_runs([run], models, bench)
    if run.error:
        raise run.error
    return run.done


def render_runs(runs: list[Run], models: Models, bench: Workbench) -> None:
    """Films in lockstep; each of them ends with `done` or `error`.

    Where memory runs out, the films that it stopped are rendered again, from their last safe chunk on, with less of the
    model in it, once and if the user leaves that to helios.
    """
    _render_lanes(runs, models, bench)
    short = [run for run in runs if isinstance(run.error, OutOfMemory)]
    for run in short:  # what was computed hangs on the traceback
        run.error.__traceback__ = run.error.__cause__ = run.error.__context__ = None
    if short and bench.place_deeper([run.plan for run in short], models, lanes=len(short)):
        for run in short:
            run.error = None
        _render_lanes(short, models, bench)


def _render_lanes(runs: list[Run], models: Models, bench: Workbench) -> None:
    import torch

    from helios_cli.engine.calls import Lane, lockstep, memory_told

    alone = len(runs) == 1
    views = [bench.view if alone else bench.view.of(run.job.film.name) for run in runs]  # titles may be equal
    overlap = None if alone else False  # films in lockstep take turns
    lanes = [Lane(_steps(run, models, bench, view, overlap)) for run, view in zip(runs, views, strict=True)]
    try:
        with torch.inference_mode():
            if len(runs) > 1:  # the text encoder comes once for all
                with memory_told():
                    models.encode(text for run in runs for text in _texts(run.plan))
            lockstep(lanes, models.answer)
    except KeyboardInterrupt:
        _take_results(runs, lanes)
        raise _stopped(runs) from None
    _take_results(runs, lanes)


def _take_results(runs: list[Run], lanes: list[Lane]) -> None:
    """Stores what each film ended with. A bug in one is raised once all results are stored."""
    for run, lane in zip(runs, lanes, strict=True):
        run.done = lane.result
        run.error = lane.error if isinstance(lane.error, HeliosError) else None
    for lane in lanes:
        if lane.error is not None and not isinstance(lane.error, HeliosError):
            raise lane.error


def _texts(plan: Plan) -> list[str]:
    negative = [plan.negative] if plan.guidance > 1 else []
    return [text for chunk in plan.chunks for text, _ in chunk.prompts] + negative


def _stopped(runs: list[Run]) -> Interrupted:
    safe = [
        f"{run.writer.safe_chunks} of the {counted(len(run.plan.chunks), 'chunk')} of {run.output}"
        for run in runs
        if run.writer is not None and run.done is None and run.error is None
    ]
    what = f"stopped: {' and '.join(safe)} are safe" if safe else "stopped before a chunk was begun"
    return Interrupted(what, hint="run the same command again to go on from there")


def _steps(
    run: Run, models: Models, bench: Workbench, view: View, overlap: bool | None
) -> Generator[ModelCalls, list[Tensor] | None, FilmDone]:
    """Renders a film, its model calls being the caller's to answer; `overlap` as in `engine.render.render`."""
    from helios_cli.cost.disk import film_bytes
    from helios_cli.cost.rendered import keep_speed
    from helios_cli.engine.calls import ModelCalls, memory_told
    from helios_cli.engine.events import ChunkDone, FilmDone, PhaseStarted
    from helios_cli.engine.render import render_steps
    from helios_cli.engine.script import Planned
    from helios_cli.film.cache import Cache
    from helios_cli.film.record import chapters, is_finished
    from helios_cli.film.target import Target, check_space
    from helios_cli.film.writer import open_writer
    from helios_cli.recipe.fingerprint import Fingerprints
    from helios_cli.weights.identity import weights_identity

    output, job, encoding = run.output, run.job, bench.encoding
    target = Target.of(output)
    weights, size = weights_identity(models.checkpoint), run.plan.size
    with memory_told():
        models.settle(size)
    arithmetic = _arithmetic(models, size)
    fingerprints = Fingerprints(weights, arithmetic, reanchor=bench.reanchor)
    record = job and _record(run, models, bench, weights, arithmetic, fingerprints)
    if bench.extras.again:
        _tell_what_differs(record, bench)
    tells = record is not None and bench.extras.metadata
    if tells and not job.force and is_finished(target, record):
        bench.tell(f"{output} is finished already")
        return _done_before(job, target, run.plan, bench)
    if notice := check_space(target, film_bytes(run.plan, target.kind, encoding.codec, encoding.crf)):
        bench.tell(notice)
    run.writer = open_writer(
        output,
        size=size,
        fps=run.plan.fps,
        codec=encoding.codec,
        crf=encoding.crf,
        preset=encoding.preset,
        keep=bench.keep,
        force=job is None or job.force,
    )
    steps = render_steps(
        run.script,
        models,
        run.writer,
        reanchor=bench.reanchor,
        fingerprints=fingerprints.of,
        cache=Cache() if bench.use_cache else None,
        overlap=overlap,
    )
    reply, chunks = None, []
    with contextlib.closing(steps):
        while True:
            if bench.is_stopped():
                raise KeyboardInterrupt
            try:
                said = steps.send(reply)
            except StopIteration:
                break
            reply = None
            if isinstance(said, ModelCalls):
                reply = yield said
            elif isinstance(said, FilmDone):
                done = said
            else:
                if tells and said == PhaseStarted("finish"):  # by now the last of its chunks is decided
                    record = _record(run, models, bench, weights, arithmetic, fingerprints)
                    run.writer.describe(record.metadata(), chapters(job.film, run.plan))
                elif job is None and said == PhaseStarted("finish"):  # a take, which is known by its title
                    run.writer.describe({"title": target.path.stem}, ())
                if isinstance(said, ChunkDone):
                    chunks.append(said.seconds)
                view.show(said)
    alone, waits_for_weights = overlap is None, models.placement.mode != "none"
    if job and alone and isinstance(run.script, Planned) and not (done.frames_reused or waits_for_weights):
        keep_speed(bench.subject([run.plan], models), done.phases, chunks)
    if tells:
        _write_sidecar(job, target, record, run.plan, fingerprints.of(run.plan), done.seconds, bench)
    findings = _look_at(job, target, run.plan, bench, bench.extras.export) if job else 0
    view.show(done)
    _check_findings(findings, output, bench)
    return done


def _done_before(job: Job, target: Target, plan: Plan, bench: Workbench) -> FilmDone:
    """A film that an earlier run finished: what that did not come to make beside it is made now."""
    from helios_cli.engine.events import FilmDone
    from helios_cli.film.export import export_path
    from helios_cli.machine import peak_host_bytes

    missing = tuple(form for form in bench.extras.export if not export_path(target, form).exists())
    _check_findings(_look_at(job, target, plan, bench, missing), job.output, bench)
    frames = plan.num_frames
    return FilmDone(str(target.path), frames, 0.0, 0.0, peak_host_bytes(), None, frames_reused=frames)


def _check_findings(findings: int, output: str, bench: Workbench) -> None:
    if findings and bench.strict:
        what = counted(findings, "finding")
        raise HeliosError(f"{output} is complete, with {what}, and --strict allows none")


def _record(
    run: Run, models: Models, bench: Workbench, weights: str, arithmetic: Arithmetic, fingerprints: Fingerprints
) -> Record:
    """How the film is made, as far as it is decided."""
    from helios_cli import __version__
    from helios_cli.film.record import make_record, model_record
    from helios_cli.film.target import Target
    from helios_cli.weights.hub import source_of

    target, checkpoint = Target.of(run.output), models.checkpoint.path
    source = source_of(models.name, bench.revision)
    return make_record(
        run.job.film,
        bench.flags,
        run.plan,
        fingerprints.of(run.plan),
        model=model_record(models.name, source, checkpoint, weights, target.path.parent),
        device=str(models.device),
        arithmetic=arithmetic,
        attention=bench.attention,
        attention_taken=_attention_taken(models, run.plan.size),
        reanchor=bench.reanchor,
        encoding=bench.encoding if target.kind == "mp4" else None,
        helios_version=__version__,
        folder=target.path.parent,
    )


def _tell_what_differs(record: Record, bench: Workbench) -> None:
    """Tell the user if the film is not made as the one was that it is made again from."""
    again = bench.extras.again
    if again.record.fingerprint != record.fingerprint:
        others = ", ".join(again.record.differences(record)) or "picture or clip"
        bench.tell(f"bit for bit not the same film as {again.path}: other {others}")


def _write_sidecar(
    job: Job, target: Target, record: Record, plan: Plan, fingerprints: list[str], seconds: float, bench: Workbench
) -> None:
    """The record beside the film. The film is complete: what stands against its sidecar is told and stops nothing."""
    from helios_cli.film.record import sidecar_path, write_sidecar

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


def _look_at(job: Job, target: Target, plan: Plan, bench: Workbench, forms: tuple[str, ...]) -> int:
    """Exports the finished film as `forms`, and checks it if asked for; returns how many findings there are."""
    from helios_cli.film.export import export

    for notice in export(target, plan, forms):
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
        bench.tell(f"check: nothing found in {counted(len(report.chunks), 'chunk')}")
    return len(report.findings)


def _arithmetic(models: Models, size: tuple[int, int]) -> Arithmetic:
    """What rounds the numbers, as `helios plan` names it too."""
    from helios_cli.cost.arithmetic import arithmetic_of
    from helios_cli.device import device_of

    dtype, taken = str(models.dtype).removeprefix("torch."), _attention_taken(models, size)
    return arithmetic_of(device_of(models.device), dtype, taken, quant=models.quant, attention=models.attention)


def _attention_taken(models: Models, size: tuple[int, int]) -> dict[str, str]:
    """By shape of a film of this size, what `auto` takes; empty on a CPU, where it follows from the processor."""
    from helios_cli.cost.arithmetic import attention_shapes

    dtype = str(models.dtype).removeprefix("torch.")
    shapes = attention_shapes(models.dit_config, size, models.scheduler.stages, dtype)
    return {shape: models.attention_taken[shape] for shape in shapes if shape in models.attention_taken}
