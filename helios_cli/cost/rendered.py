"""Records the speed of a finished film, so that the next plan on this machine has times."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from helios_cli.cost.duration import DIT_UTILISATION, VAE_UTILISATION, measured_dtype
from helios_cli.cost.memory import Subject
from helios_cli.cost.speeds import Speed, find_speed, record_speed
from helios_cli.cost.work import work_of

LEAST_CHUNKS = 3
"""Chunks that a film on a GPU needs: the first may have compiled and recorded, two more did not."""


def keep_speed(subject: Subject, phases: Mapping[str, float], chunks: Sequence[float]) -> None:
    """Keep the speed of the film of `subject`, which was rendered alone, as a whole and with its weights at hand.

    `phases` are `FilmDone.phases`, `chunks` the seconds of each chunk. The highest speed counts: what else a machine
    does makes films slower, never faster. A home that cannot be written has none.
    """
    speed = rendered_speed(subject, phases, chunks)
    if speed is None:
        return
    known = find_speed(speed.device, speed.dtype, speed.parameters)
    exact = known is not None and known.parameters == speed.parameters and known.dit_flops and known.vae_flops
    if not exact or _seconds(subject, speed) < _seconds(subject, known):
        with contextlib.suppress(OSError):
            record_speed(speed)


def rendered_speed(subject: Subject, phases: Mapping[str, float], chunks: Sequence[float]) -> Speed | None:
    """What the seconds of a film say; None if that is nothing."""
    if subject.device.kind == "cpu":
        denoise = sum(seconds for phase, seconds in phases.items() if phase.startswith("stage "))
        decode = phases.get("decode", 0.0)
        if not denoise or not decode:
            return None
        return _speed(subject, subject.work.denoise / denoise, subject.work.decode / decode)
    if len(chunks) < LEAST_CHUNKS:
        return None
    # Python is ahead of a GPU, which decodes beside the transformer: the seconds of whole chunks are what is known.
    rest = replace(subject.plan, chunks=subject.plan.chunks[1:])
    work = work_of(rest, subject.model, subject.prompts, subject.dtype)
    slower = DIT_UTILISATION / VAE_UTILISATION
    dit = (work.denoise + slower * work.decode) / sum(chunks[1:])
    return _speed(subject, dit, dit / slower)


def _speed(subject: Subject, dit_flops: float, vae_flops: float) -> Speed:
    return Speed(
        device=subject.device.name,
        dtype=measured_dtype(subject.dtype, subject.quant),
        parameters=subject.model.parameters["transformer"],
        dit_flops=dit_flops,
        vae_flops=vae_flops,
        measured=datetime.now(UTC).date().isoformat(),
    )


def _seconds(subject: Subject, speed: Speed) -> float:
    return subject.work.denoise / speed.dit_flops + subject.work.decode / speed.vae_flops
