"""Configurations for the GPU at hand, for chips that none are shipped for and for others that want better ones.

Every candidate that compiles, fits and agrees with the twin is timed on the 14B model's shapes; the fastest wins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch

from helios_kernels import configs, tuned
from helios_kernels.attention import TMA_CHIPS
from helios_kernels.case import Case, Op
from helios_kernels.check import compare
from helios_kernels.configs import Config
from helios_kernels.dispatch import backend, borrow, find_triton
from helios_kernels.registry import OPS
from helios_kernels.tuned import Tuned

WORTH = 0.98
"""Share of the present configuration's time that another one has to stay under: less is noise."""

# By the 14B model's padded rows, one or two a program: of 8192, of 16384, and of the VAE's few channels.
ROWS = tuple(Config(num_warps=warps, tile=tile) for warps, tile in product((2, 4, 8, 16), (8192, 16384)))
WIDE_ROWS = tuple(Config(num_warps=warps, tile=16384) for warps in (4, 8, 16, 32))
SHORT_ROWS = tuple(Config(num_warps=warps, tile=tile) for warps, tile in product((4, 8), (2048, 4096, 8192)))
SELF = tuple(
    Config(num_warps=warps, num_stages=stages, block_q=q, block_k=k, programs=programs)
    for warps, q, k, programs, many in (
        (8, 128, 128, 1, (2, 3)),
        (8, 128, 64, 1, (2, 3, 4)),
        (4, 128, 64, 1, (2, 3)),
        (4, 64, 64, 2, (2, 3)),
        (8, 128, 32, 1, (2, 3)),
    )
    for stages in many
)
# What compiles to warps that load and warps that compute, without spills: on sm_90 with four warps and 64 queries, on
# sm_100 with eight and 128 (Triton 3.9.0, ahead of time).
SPECIALIZED = tuple(
    Config(num_warps=warps, num_stages=stages, block_q=q, block_k=k, specialize=True)
    for warps, stages, q, k in (
        (4, 2, 64, 128),
        (4, 2, 64, 64),
        (4, 3, 64, 64),
        (8, 2, 128, 128),
        (8, 3, 128, 128),
        (8, 3, 128, 64),
    )
)
PROMPT = tuple(
    Config(num_warps=4, num_stages=stages, block_q=q, block_k=k, programs=2)
    for stages, q, k in product((1, 2), (64, 128), (32, 64, 128))
)


@dataclass(frozen=True)
class Subject:
    """A kernel to tune: what it is timed on, and what shows that it is right."""

    kernel: str
    op: str
    timed: tuple[str, ...]
    checked: tuple[str, ...]
    candidates: tuple[Config, ...]


# `renoise` and `dmd_step` take a microsecond or two, in which a launch cannot be told from noise.
SUBJECTS = (
    Subject("modulated_norm", "modulated_norm", ("stage2",), ("S101-split40",), ROWS),
    Subject("gated_residual", "gated_residual_modulated_norm", ("stage2", "stage2-cross"), ("S101-split40",), ROWS),
    Subject("qk_norm_rope", "qk_norm_rope", ("stage2", "stage2-cross-query"), ("S101",), ROWS),
    Subject("quantize", "quantize", ("stage2-gelu", "stage2"), ("S65-E13824-gelu",), WIDE_ROWS),
    Subject("vae_norm_silu", "vae_norm_silu", ("C384-96x160", "C96-384x640"), ("C96-T5-B2",), SHORT_ROWS),
    Subject("attention 128", "attention", ("stage2-self",), ("Q130-K2940", "Q256-K256-even"), SELF + SPECIALIZED),
    Subject("attention 128 bias", "attention", ("stage2-cross",), ("Q257-K122-bias",), PROMPT),
    Subject("attention 64", "attention", ("head64-self",), ("Q63-K257-D64-B2",), SELF + SPECIALIZED),
    Subject("attention 64 bias", "attention", ("head64-cross",), ("Q40-K300-first-block-outside",), PROMPT),
)


@dataclass(frozen=True)
class Tuning:
    """What came of one kernel. `best` is None where nothing was better than what it had (`seconds` is then its own)."""

    kernel: str
    best: Config | None
    seconds: float | None
    before: float | None
    tried: int
    refused: int


@torch.no_grad()
def tune(
    seconds: Callable[[Callable[[], object]], float],
    *,
    device: torch.device,
    like: str,
    names: Collection[str] = (),
    dtype: torch.dtype = torch.bfloat16,
    subjects: tuple[Subject, ...] = SUBJECTS,
) -> Iterator[Tuning]:
    """Tries all candidates of the subjects that run on this chip, which is `like` one; `seconds` times a call.

    `names` are those of operations; without any, all are tuned. RuntimeError for one that is not tuned.
    """
    if unknown := sorted(set(names) - {subject.op for subject in subjects}):
        tuned = ", ".join(dict.fromkeys(subject.op for subject in subjects))
        raise RuntimeError(f"{', '.join(unknown)}: not tuned; there are {tuned}")
    for subject in subjects:
        chosen = not names or subject.op in names
        if chosen and (OPS[subject.op].chips is None or like in OPS[subject.op].chips):
            tried = [one for one in subject.candidates if like in TMA_CHIPS or not one.specialize]
            yield _tune_one(subject, tried, seconds, device, dtype)


def begin() -> str:
    """Let kernels run here, with the nearest chip's configurations if none are shipped for this one; returns whose they
    are. RuntimeError where no kernel runs, as where HELIOS_KERNELS does not insist on a chip that is new."""
    borrow()
    found = find_triton()
    if found.chip is None or backend().chip is None:
        raise RuntimeError(f"no kernel can be tuned here: {(backend() if found.chip else found).reason}")
    return found.chip


def keep(tuning: Tuning, file: Path) -> None:
    """Write what was found better to `file`, under this device's name. OSError if it cannot be written.

    On a chip that none are shipped for, one kernel that runs with what it began with is worth writing as well: kernels
    run there from then on.
    """
    import triton

    here = find_triton()
    if tuning.best is None and not (here.borrowed and tuning.before is not None):
        return
    fields = {} if tuning.best is None else {key: value for key, value in asdict(tuning.best).items() if value}
    known = {tuning.kernel: fields} if fields else {}
    tuned.keep(here.device, Tuned(here.chip, triton.__version__, known), file)


def told(config: Config) -> str:
    return ", ".join(f"{key} {value}" for key, value in asdict(config).items() if value)


def _tune_one(
    subject: Subject, candidates: list[Config], seconds: Callable, device: torch.device, dtype: torch.dtype
) -> Tuning:
    before = _time(subject, None, seconds, device, dtype)
    found = {config: _time(subject, config, seconds, device, dtype) for config in candidates}
    good = {config: time for config, time in found.items() if time is not None}
    best = min(good, key=good.get, default=None)
    if best is not None and before is not None and good[best] > WORTH * before:
        best = None
    return Tuning(
        kernel=subject.kernel,
        best=best,
        seconds=before if best is None else good[best],
        before=before,
        tried=len(found),
        refused=len(found) - len(good),
    )


def _time(
    subject: Subject, config: Config | None, seconds: Callable, device: torch.device, dtype: torch.dtype
) -> float | None:
    """Of the timed cases together; None for a configuration that does not compile, fit or agree."""
    op = OPS[subject.op]
    with configs.trying(subject.kernel, config):
        try:
            if not all(
                result.good for name in subject.checked for result in compare(op, _case(op, name), dtype, device)
            ):
                return None
            return sum(_time_case(op, _case(op, name), seconds, device, dtype) for name in subject.timed)
        except Exception:  # compilers, assemblers and drivers each have their own for what they cannot do
            return None


def _time_case(op: Op, case: Case, seconds: Callable, device: torch.device, dtype: torch.dtype) -> float:
    inputs = op.inputs(case, dtype, device)
    return seconds(lambda: op.run(**inputs))


def _case(op: Op, name: str) -> Case:
    return next(case for case in op.cases if case.id == name)
