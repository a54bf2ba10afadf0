"""From a job to a film, its record, and what else is made beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from helios_cli.batch.jobs import Job
from helios_cli.batch.workbench import Workbench
from helios_cli.console import console
from helios_cli.errors import HeliosError, InputError, Interrupted, MachineError
from helios_cli.units import MAX_TEXT_TOKENS

if TYPE_CHECKING:
    from helios_cli.engine.events import FilmDone
    from helios_cli.engine.models import Models
    from helios_cli.engine.record import Record
    from helios_cli.engine.target import Target
    from helios_cli.recipe.fingerprint import Arithmetic
    from helios_cli.recipe.plan import Plan


def render_all(jobs: list[Job], bench: Workbench, *, stop: bool) -> Iterator[str]:
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


def _render_one(job: Job, bench: Workbench) -> FilmDone:
    models = bench.models(job.model)
    plan = bench.plan(job, models)
    for notice in plan.notices:
        bench.tell(notice)
    if bench.strict:
        _require_whole_prompts(plan, models)
    return render_plan(plan, job.output, models, bench, job)


def _require_whole_prompts(plan: Plan, models: Models) -> None:
    """InputError if the model does not see the end of a prompt."""
    models.encode(text for chunk in plan.chunks for text, _ in chunk.prompts)
    for prompt in models.prompts.values():
        if prompt.lost:
            raise InputError(
                f"a prompt is longer than {MAX_TEXT_TOKENS} tokens; this end of it is not seen: {prompt.lost!r}",
                hint="shorten it, or leave out --strict",
            )


def render_plan(plan: Plan, output: str, models: Models, bench: Workbench, job: Job | None = None) -> FilmDone:
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
    job: Job,
    plan: Plan,
    models: Models,
    bench: Workbench,
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
        attention=bench.attention,
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
    job: Job, target: Target, record: Record, plan: Plan, fingerprints: list[str], seconds: float, bench: Workbench
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


def _look_at(job: Job, target: Target, plan: Plan, bench: Workbench) -> int:
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
    from helios_cli.cost.arithmetic import arithmetic_of
    from helios_cli.cost.device import Device, cpu_name

    device = models.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = cpu_name(torch.get_num_threads()) if device.type == "cpu" else machine.cpu().model
    dtype = str(models.dtype).removeprefix("torch.")
    seen = Device(device.type, name, None, None)
    return arithmetic_of(seen, dtype, quant=models.quant, attention=models.attention)
