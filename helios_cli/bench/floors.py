"""The least time that a film's phases can take: its operations, as `helios plan` counts them, at a given rate."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helios_cli.bench.job import Job, job_plan
from helios_cli.cost.model import Model, find_model
from helios_cli.cost.shapes import DiTShape, TextShape, VAEShape
from helios_cli.cost.tokens import count_tokens
from helios_cli.cost.work import texts_of, work_of
from helios_cli.weights.hub import Source
from helios_cli.weights.specs import SPECS


@contextmanager
def counted_model(job: Job) -> Iterator[Model]:
    """The job's model as `helios plan` has it; that of a resident size from its configs, without weights."""
    if job.folder:
        yield find_model(job.folder)
        return
    import torch

    from helios_cli.bench.synthetic import describe

    spec = SPECS[job.synthetic]
    with tempfile.TemporaryDirectory(prefix="helios-") as folder:
        described = describe(Path(folder), spec, torch.float32)
        yield Model(
            name=job.synthetic,
            source=Source(folder=described.path),
            kind=described.kind,
            preset=described.preset,
            native_size=described.native_size,
            dit=DiTShape.from_config(spec.transformer),
            text=TextShape.from_config(spec.text_encoder),
            vae=VAEShape.from_config(spec.vae),
            parameters={name: part.parameters for name, part in described.components.items()},
            checkpoint=described,
            download_bytes=0,
        )


def floors(job: Job, dtype: str, flops_a_second: float) -> dict[str, float]:
    """Seconds of each stage and of decoding, if products were all there is and ran at that rate."""
    with counted_model(job) as model:
        plan = job_plan(job, model.defaults)
        work = work_of(plan, model, count_tokens(model, texts_of(plan)), dtype)
    stages = {f"stage {stage.index}": stage.film.total / flops_a_second for stage in work.stages}
    return {**stages, "decode": work.decode / flops_a_second}
