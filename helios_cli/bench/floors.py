"""The least time that a film's phases can take: its operations, as `helios plan` counts them, at the rates that large
products reach on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helios_cli import machine
from helios_cli.bench.job import Job, Result, job_plan
from helios_cli.bench.specs import SPECS
from helios_cli.cost.flops import CallFlops
from helios_cli.cost.model import Model, find_model, opened
from helios_cli.cost.tokens import count_tokens
from helios_cli.cost.work import texts_of, work_of
from helios_cli.weights.hub import Source


@contextmanager
def counted_model(job: Job) -> Iterator[Model]:
    """The job's model as `helios plan` has it; that of a resident size from its configs, without weights."""
    if job.folder:
        yield find_model(job.folder)
        return
    import torch

    from helios_cli.bench.synthetic import describe

    spec = SPECS[job.synthetic]
    with machine.temporary_folder() as folder:
        described = describe(Path(folder), spec, torch.float32)
        yield opened(job.synthetic, Source(folder=described.path), described)


def floors(job: Job, dtype: str, ceiling: dict) -> dict[str, float]:
    """Seconds of each stage and of decoding, if products were all there is and ran at the rates of `ceiling`
    (`helios_kernels.bench.Ceiling`), those that --quant fp8 has in fp8 at the rate of fp8 if that is known."""
    with counted_model(job) as model:
        plan = job_plan(job, model.defaults)
        work = work_of(plan, model, count_tokens(model, texts_of(plan)), dtype)
    rate = ceiling["product"]
    in_fp8 = ceiling["fp8_product"] if job.quant == "fp8" else None

    def seconds(film: CallFlops) -> float:
        quick = film.projections + film.feed_forward if in_fp8 else 0  # `weights.fp8.LAYERS`
        return (film.total - quick) / rate + (quick / in_fp8 if in_fp8 else 0.0)

    return {**{f"stage {stage.index}": seconds(stage.film) for stage in work.stages}, "decode": work.decode / rate}


def against_floors(job: Job, result: Result, ceiling: dict) -> dict[str, dict[str, float]]:
    """The floors of a film that was timed, and what share of each phase's time its floor is."""
    floor = floors(job, result.dtypes["transformer"], ceiling)
    return {"floors": floor, "share_of_floor": {phase: floor[phase] / result.phases[phase] for phase in floor}}
