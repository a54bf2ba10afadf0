"""Launch configurations: the shipped ones, those found on this machine, and the search for better ones.

Configurations are shipped for every chip, so that nobody waits for autotuning. None of them has been timed on a GPU
yet: they were chosen among those that compile without spills and within the chip's shared memory, for the reasons given
here. `tune` times candidates on the 14B model's shapes and keeps the fastest that agrees with the twin in a file:

    "NVIDIA A10": {"like": "sm_89", "triton": "3.7.1", "configs": {"modulated_norm": {"num_warps": 8, "tile": 8192}}}

`like` is the chip whose configurations serve the kernels that have none of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from helios_kernels import devices
from helios_kernels.attention import TMA_CHIPS
from helios_kernels.check import OPS, compare
from helios_kernels.dispatch import INTERPRETER, backend, borrow, compiling_ahead, current_chip, find_triton


@dataclass(frozen=True)
class Config:
    """The launch configuration of a kernel.

    Attributes:
        tile: elements of a program of the element-wise kernels.
        block_q, block_k: attention's queries and keys at a time; a convolution's rows and columns.
        programs: persistent programs of attention's kernel a multiprocessor, which may be more than fit.
        specialize: some warps load keys and values while others compute.
    """

    num_warps: int
    num_stages: int = 1
    tile: int = 0
    block_q: int = 0
    block_k: int = 0
    programs: int = 1
    specialize: bool = False

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in asdict(self).items() if value)


@dataclass(frozen=True)
class RowTile:
    """A program's share of [rows, E]: `rows` rows, each padded to `block` columns."""

    rows: int
    block: int
    config: Config


# A tile of 8192 is one padded row of width 5120. What counts is how many rows a multiprocessor has in flight, and that
# no instruction is spent on more threads than loads need. With 4 warps (146 registers for the modulated norm on sm_90)
# it has three rows, and issues for 23 microseconds of the 53 that the bytes of a call at stage 2 take; with 16 warps it
# has two, and issues for 55. The same number on CDNA, whose wavefronts are twice as wide.
_ROW = {"any": Config(num_warps=4, tile=8192)}

# No reduction: only enough bytes in flight.
_FLAT = {"any": Config(num_warps=4, tile=1024)}

# On Ampere and Ada both factors pass through registers, and 32 keys at a time leave none spilled with every Triton from
# 3.6 to 3.9. Hopper and Blackwell multiply from shared memory: 128 keys at a time, three buffers; 64 on Blackwell,
# where 128 spill. With a bias there are a prompt's few keys, all in one block, and waiting for memory takes the time:
# few queries at a time, two programs.
_AMPERE = ("sm_80", "sm_86", "sm_89", "sm_120")
_ALL_KEYS = Config(num_warps=8, num_stages=3, block_q=128, block_k=128)
_PROMPT = Config(num_warps=4, num_stages=1, block_q=64, block_k=128, programs=2)
_FEW_KEYS = Config(num_warps=8, num_stages=3, block_q=128, block_k=64)


def _attention(ampere: Config, hopper: Config, blackwell: Config, cdna_keys: int) -> dict[str, Config]:
    cdna = Config(num_warps=4, num_stages=2, block_q=128, block_k=cdna_keys)
    return {**dict.fromkeys(_AMPERE, ampere), "sm_90": hopper, "sm_100": blackwell, "gfx942": cdna}


_SHIPPED = {
    "modulated_norm": _ROW,
    "gated_residual": _ROW,
    "qk_norm_rope": _ROW,
    "quantize": {"any": Config(num_warps=16, tile=16384)},
    "round_heads": {"any": Config(num_warps=4, tile=8192), INTERPRETER: Config(num_warps=1, tile=8192)},
    "renoise": _FLAT,
    "dmd_step": _FLAT,
    "vae_norm_silu": {
        "any": Config(num_warps=8, tile=8192),
        "gfx942": Config(num_warps=4, tile=8192),
        "sm_120": Config(num_warps=8, tile=4096),  # where twice as many spill up to 24 bytes at 64 registers
    },
    "attention 128": _attention(
        Config(num_warps=8, num_stages=3, block_q=128, block_k=32), _ALL_KEYS, _FEW_KEYS, cdna_keys=64
    ),
    "attention 128 bias": _attention(
        Config(num_warps=8, num_stages=2, block_q=128, block_k=32), _PROMPT, _PROMPT, cdna_keys=32
    ),
    "attention 64": _attention(_FEW_KEYS, _ALL_KEYS, _ALL_KEYS, cdna_keys=64),
    "attention 64 bias": _attention(
        Config(num_warps=8, num_stages=2, block_q=128, block_k=64), _PROMPT, _PROMPT, cdna_keys=32
    ),
    # Factors of one byte: half of attention's shared memory.
    "attention_8bit": {
        "any": Config(num_warps=8, num_stages=2, block_q=128, block_k=64),
        "sm_90": _FEW_KEYS,  # 128 keys spill 16 bytes
        "sm_100": _ALL_KEYS,
    },
    # Each position of a box is multiplied with all output channels: more positions at a time read the weights less
    # often, and 256 of them leave no registers spilled with 96 channels, 128 with 192.
    "causal_conv 96": {
        "any": Config(num_warps=8, num_stages=3, block_q=16, block_k=16),
        INTERPRETER: Config(num_warps=1, block_q=8, block_k=16),
    },
    "causal_conv 192": {
        "any": Config(num_warps=8, num_stages=4, block_q=8, block_k=16),
        INTERPRETER: Config(num_warps=1, block_q=8, block_k=16),
    },
}
"""By kernel and chip; "any" other chip. A number is that of channels, or of a head's."""

_INTERPRETED = Config(num_warps=1, tile=2**18, block_q=128, block_k=128)
"""Few programs, each of which takes the interpreter some milliseconds."""


@dataclass(frozen=True)
class LocalConfigs:
    """The configurations found on one device, by kernel, with the fields that are not 0."""

    like: str
    triton: str
    configs: dict[str, dict[str, Any]]


def _parse(entry: dict) -> LocalConfigs:
    return LocalConfigs(entry["like"], entry["triton"], {name: _ints(one) for name, one in entry["configs"].items()})


def _ints(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Config` as they were read; ValueError for anything else."""
    names = {field.name for field in fields(Config)}
    good = all(name in names and isinstance(value, int) and value >= 0 for name, value in config.items())
    if not good or not config.get("num_warps"):
        raise ValueError("not a configuration")
    return dict(config)


_entries = devices.Entries(_parse)
use, of = _entries.use, _entries.of

_candidate: dict[str, Config] = {}


@contextmanager
def trying(kernel: str, candidate: Config | None) -> Iterator[None]:
    """Launch `kernel` with this configuration inside the block; with None, with the present one."""
    if candidate is not None:
        _candidate[kernel] = candidate
    try:
        yield
    finally:
        _candidate.pop(kernel, None)


def local_config(kernel: str) -> Config | None:
    """Return the configuration that is being tried for `kernel`, or was found on this machine."""
    if kernel in _candidate or compiling_ahead():
        return _candidate.get(kernel)
    local = of(find_triton().device)
    own = local.configs.get(kernel) if local else None
    return Config(**own) if own else None


def config(kernel: str) -> Config:
    """Return the configuration of a kernel on the chip at hand."""
    chip, shipped = current_chip(), _SHIPPED[kernel]
    if local := local_config(kernel):
        return local
    return _INTERPRETED if chip == INTERPRETER and chip not in shipped else shipped.get(chip) or shipped["any"]


def attention_config(head: int, *, bias: bool) -> Config:
    """Return attention's configuration; head sizes below 64 take that of 64."""
    return config(f"attention {max(head, 64)}{' bias' if bias else ''}")


def row_tile(kernel: str, width: int) -> RowTile:
    """Return how a program of `kernel` is cut from rows of `width` channels."""
    chosen = config(kernel)
    block = 1 << (width - 1).bit_length()
    return RowTile(max(1, chosen.tile // block), block, chosen)


# The search

WORTH = 0.98
"""Share of the present configuration's time below which another one is taken: less is noise."""

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
# Those that compile to warps that load and warps that compute, without spills: on sm_90 with four warps and 64 queries,
# on sm_100 with eight and 128 (Triton 3.9.0, ahead of time).
_SPECIALIZED = ((4, 2, 64, 128), (4, 2, 64, 64), (4, 3, 64, 64), (8, 2, 128, 128), (8, 3, 128, 128), (8, 3, 128, 64))
SPECIALIZED = tuple(
    Config(num_warps=warps, num_stages=stages, block_q=q, block_k=k, specialize=True)
    for warps, stages, q, k in _SPECIALIZED
)
BOXES = tuple(
    Config(num_warps=warps, num_stages=stages, block_q=rows, block_k=columns)
    for warps, stages, (rows, columns) in product((4, 8), (3, 4), ((4, 32), (8, 16), (16, 16)))
)
PROMPT = tuple(
    Config(num_warps=4, num_stages=stages, block_q=q, block_k=k, programs=2)
    for stages, q, k in product((1, 2), (64, 128), (32, 64, 128))
)


@dataclass(frozen=True)
class Tunable:
    """A kernel that can be tuned: the cases that are timed, those that show whether it is right, the candidates."""

    kernel: str
    op: str
    timed: tuple[str, ...]
    checked: tuple[str, ...]
    candidates: tuple[Config, ...]


# `renoise` and `dmd_step` take a microsecond or two, in which a launch cannot be distinguished from noise.
TUNABLES = (
    Tunable("modulated_norm", "modulated_norm", ("stage2",), ("S101-split40",), ROWS),
    Tunable("gated_residual", "gated_residual_modulated_norm", ("stage2", "stage2-cross"), ("S101-split40",), ROWS),
    Tunable("qk_norm_rope", "qk_norm_rope", ("stage2", "stage2-cross-query"), ("S101",), ROWS),
    Tunable("quantize", "quantize", ("stage2-gelu", "stage2"), ("S65-E13824-gelu",), WIDE_ROWS),
    Tunable("vae_norm_silu", "vae_norm_silu", ("C384-96x160", "C96-384x640"), ("C96-T5-B2",), SHORT_ROWS),
    Tunable("causal_conv 96", "causal_conv", ("C96-384x640",), ("C96-9x17-shortcut",), BOXES),
    Tunable("causal_conv 192", "causal_conv", ("C192-192x320",), ("C192-10x5-shortcut",), BOXES),
    Tunable("attention 128", "attention", ("stage2-self",), ("Q130-K2940", "Q256-K256-even"), SELF + SPECIALIZED),
    Tunable("attention 128 bias", "attention", ("stage2-cross",), ("Q257-K122-bias",), PROMPT),
    Tunable("attention 64", "attention", ("head64-self",), ("Q63-K257-D64-B2",), SELF + SPECIALIZED),
    Tunable("attention 64 bias", "attention", ("head64-cross",), ("Q40-K300-first-block-outside",), PROMPT),
)


@dataclass(frozen=True)
class Tuning:
    """The outcome for one kernel. `best` is None where no candidate was better; `seconds` is then the present one's."""

    kernel: str
    best: Config | None
    seconds: float | None
    before: float | None
    tried: int
    refused: int


Timer = Callable[[Callable[[], object]], float]
"""Returns the seconds that a call takes."""


@torch.no_grad()
def tune(
    timer: Timer,
    *,
    device: torch.device,
    like: str,
    names: Collection[str] = (),
    tunables: tuple[Tunable, ...] = TUNABLES,
) -> Iterator[Tuning]:
    """Try all candidates of the kernels that run on this chip, which is `like` one, and yield each outcome.

    `names` are those of operations; without any, all are tuned. RuntimeError for one that is not tuned.
    """
    known = dict.fromkeys(one.op for one in tunables)
    if unknown := sorted(set(names) - known.keys()):
        raise RuntimeError(f"{', '.join(unknown)}: not tuned; choose from {', '.join(known)}")
    for one in tunables:
        chips = OPS[one.op].chips
        if (not names or one.op in names) and (chips is None or like in chips):
            yield _tune_one(one, like, partial(_time, one, timer=timer, device=device))


def begin() -> str:
    """Let kernels run here, with the nearest chip's configurations if none are shipped for this one; return its chip.

    RuntimeError where no kernel runs, as where HELIOS_KERNELS does not insist on a chip that is new.
    """
    borrow()
    found = find_triton()
    if found.chip is None or backend().chip is None:
        raise RuntimeError(f"no kernel can be tuned here: {(backend() if found.chip else found).reason}")
    return found.chip


def keep(tuning: Tuning, file: Path) -> None:
    """Write a better configuration to `file`, under this device's name. OSError if it cannot be written.

    On a chip that none are shipped for, a kernel that runs with its first configuration is written, too: kernels run
    there from then on.
    """
    import triton

    here = find_triton()
    if tuning.best is None and not (here.borrowed and tuning.before is not None):
        return
    own = {} if tuning.best is None else {key: value for key, value in asdict(tuning.best).items() if value}
    keep_local(
        here.device, LocalConfigs(here.chip or "", triton.__version__, {tuning.kernel: own} if own else {}), file
    )


def keep_local(device: str, local: LocalConfigs, file: Path) -> None:
    """Write the configurations of `local` to the entry of `device`, in which other kernels stay as they are."""

    def update(entry: object) -> dict:
        known = _entries.parsed(entry)
        return asdict(LocalConfigs(local.like, local.triton, {**(known.configs if known else {}), **local.configs}))

    devices.change(device, file, update)
    _entries.forget()


def _tune_one(tunable: Tunable, like: str, time: Callable[[Config | None], float | None]) -> Tuning:
    candidates = [one for one in tunable.candidates if like in TMA_CHIPS or not one.specialize]
    before = time(None)
    times = {config: seconds for config in candidates if (seconds := time(config)) is not None}
    best = min(times, key=times.__getitem__, default=None)
    if best is not None and before is not None and times[best] > WORTH * before:
        best = None
    seconds = before if best is None else times[best]
    return Tuning(tunable.kernel, best, seconds, before, len(candidates), len(candidates) - len(times))


def _time(tunable: Tunable, config: Config | None, timer: Timer, device: torch.device) -> float | None:
    """Time all timed cases together; None for a configuration that does not compile, fit or agree."""
    op = OPS[tunable.op]
    cases = {case.id: case for case in op.cases}
    with trying(tunable.kernel, config):
        try:
            if not all(
                one.good for name in tunable.checked for one in compare(op, cases[name], torch.bfloat16, device)
            ):
                return None
            inputs = (op.inputs(cases[name], torch.bfloat16, device) for name in tunable.timed)
            return sum([timer(partial(op.run, **given)) for given in inputs], 0.0)
        except Exception:  # compilers, assemblers and drivers each raise their own
            return None
