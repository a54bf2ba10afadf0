"""All operations at the 14B model's shapes: time, share of the chip's own measured ceiling, speed-up over PyTorch.

For `helios bench kernels`. Every case is first compared with its twin; one that differs is not timed. Ceilings are what
a copy and a matrix product reach on this very GPU in the same run, not the numbers of a data sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from helios_kernels.case import Case, Op
from helios_kernels.check import OPS, compare
from helios_kernels.dispatch import backend
from helios_kernels.timing import gpu_seconds, sustained

DTYPE = torch.bfloat16
COPY_BYTES = 2**30
PRODUCT = 8192

COPY_SHARE = 0.85
"""Share of the copy ceiling that an element-wise operation should reach."""

PYTORCH = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""PyTorch's attentions that ours is compared with, as far as they take the case."""

HEADING = (
    f"{'operation':30} {'case':20} {'time':>11} {'work':>15} {'of the ceiling':>17}  {'over':>7} {'the fastest':>13} "
    f"{'compiled':>8}"
)


@dataclass(frozen=True)
class Ceiling:
    """The rates that a chip reaches.

    Attributes:
        copy: bytes a second of a 1 GiB copy, read and written.
        product: FLOP a second of an 8192^3 product; `fp8_product` of one in fp8 with a scale a row and float32 sums,
            None where there is none. These are bursts.
        sustained_product: FLOP a second over two seconds without a pause, at `clock` MHz and `watts`; None where it was
            not measured or reported.
    """

    copy: float
    product: float
    fp8_product: float | None = None
    sustained_product: float | None = None
    clock: float | None = None
    watts: float | None = None

    def __str__(self) -> str:
        in_fp8 = f", in fp8 {self.fp8_product / 1e12:.1f}" if self.fp8_product else ""
        burst = f"a copy has {self.copy / 1e9:.0f} GB/s, a product {self.product / 1e12:.1f} TFLOP/s{in_fp8}"
        if self.sustained_product is None:
            return burst
        clock = f" at {self.clock:.0f} MHz" if self.clock else ""
        watts = f", {self.watts:.0f} W" if self.watts else ""
        return f"{burst}; two seconds of products {self.sustained_product / 1e12:.1f} TFLOP/s{clock}{watts}"


@dataclass(frozen=True)
class Timing:
    """One row of the table.

    Attributes:
        fault: how the kernel differs from its twin; then there are no times.
        share: the least time that its bytes take at the copy ceiling or, if that is longer, its FLOPs at the product's,
            over its time; `bound` names the ceiling.
        baselines: PyTorch's milliseconds: "eager", or those of its attentions by name; `over_eager` is the speed-up
            over the fastest of them.
        short_of: the aim that it misses.
    """

    op: str
    case: str
    fault: str | None = None
    milliseconds: float | None = None
    moved_bytes: int | None = None
    flops: int | None = None
    share: float | None = None
    bound: Literal["copy", "product"] | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    over_eager: float | None = None
    over_compile: float | None = None
    short_of: str | None = None

    def __str__(self) -> str:
        head = f"{self.op:30} {self.case:20}"
        if self.fault:
            return f"{head} not timed: {self.fault}"
        amount = f"{self.flops / 1e9:9.1f} GFLOP" if self.flops else f"{(self.moved_bytes or 0) / 1e6:9.1f} MB   "
        compiled = f"{self.over_compile:6.2f}x" if self.over_compile else "      -"
        fastest = min(self.baselines, key=self.baselines.__getitem__, default="-")
        eager = f"{self.over_eager:6.2f}x" if self.over_eager else "      -"
        mark = f"  < {self.short_of}" if self.short_of else ""
        return (
            f"{head} {self.milliseconds:8.3f} ms {amount} {self.share:6.1%} of {self.bound:7}  "
            f"{eager} {fastest:>13} {compiled:>8}{mark}"
        )


def require(names: tuple[str, ...] = ()) -> None:
    """Raise RuntimeError where kernels do not run on a GPU, and for an unknown operation.

    On a chip that is new the process has to insist: HELIOS_KERNELS=triton.
    """
    if not torch.cuda.is_available() or backend().chip is None:
        raise RuntimeError(f"no kernel can be timed here: {backend().reason}")
    if unknown := sorted(set(names) - OPS.keys()):
        raise RuntimeError(f"unknown operation {', '.join(unknown)}; choose from {', '.join(OPS)}")


@torch.no_grad()
def bench(ceiling: Ceiling, names: tuple[str, ...] = (), *, compiled: bool = True) -> Iterator[Timing]:
    """Time the real cases of the named operations, of all without any, and yield each row as it is measured.

    Needs what `require` checks. `compiled` adds a comparison with `torch.compile`, which takes most of the time.
    """
    for op in OPS.values():
        chosen = not names or op.name in names
        if chosen and (op.chips is None or backend().chip in op.chips):
            for case in op.cases:
                if case.real:
                    yield _time_case(op, case, ceiling, against_compile=compiled)


def measure_ceiling(dtype: torch.dtype = DTYPE) -> Ceiling:
    source = torch.empty(COPY_BYTES, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    left, right = torch.randn(2, PRODUCT, PRODUCT, device="cuda").to(dtype)
    copy, product = gpu_seconds(lambda: target.copy_(source)), gpu_seconds(lambda: left @ right)
    fp8, long, flops = _fp8_seconds(left, right), sustained(lambda: left @ right), 2 * PRODUCT**3
    fp8_product = flops / fp8 if fp8 else None
    return Ceiling(2 * COPY_BYTES / copy, flops / product, fp8_product, flops / long.seconds, long.clock, long.watts)


def _fp8_seconds(left: torch.Tensor, right: torch.Tensor) -> float | None:
    scales = torch.ones(PRODUCT, 1, device="cuda")
    options: dict[str, Any] = {"scale_a": scales, "scale_b": scales.T, "out_dtype": DTYPE, "use_fast_accum": False}
    try:
        a, b = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).T
        return gpu_seconds(lambda: torch._scaled_mm(a, b, **options))
    except (RuntimeError, ValueError):  # a chip or a library without such a product
        return None


def _time_case(op: Op, case: Case, ceiling: Ceiling, *, against_compile: bool) -> Timing:
    """Return the row of a case, or its fault. Raises what a GPU raises that no longer answers."""
    try:
        return _timed(op, case, ceiling, torch.device("cuda"), against_compile=against_compile)
    except Exception as error:  # of a compiler, a launch or a comparison: the other cases are timed all the same
        torch.cuda.synchronize()
        return Timing(op.name, case.id, fault=f"{type(error).__name__}: {error}")


def _timed(op: Op, case: Case, ceiling: Ceiling, device: torch.device, *, against_compile: bool) -> Timing:
    wrong = [result for result in compare(op, case, DTYPE, device) if not result.good]
    if wrong:
        faults = (f"{result.name}: error {result.error:.3g}, bound {result.bound:.3g}" for result in wrong)
        return Timing(op.name, case.id, fault="; ".join(faults))
    inputs = op.inputs(case, DTYPE, device)
    ours = gpu_seconds(lambda: op.run(**inputs))
    theirs = _baselines(op, inputs)
    # PyTorch's attention is a kernel of its own that compiling would not change.
    compiled = _compiled_seconds(op, inputs) if op.baseline is None and against_compile else None
    moved, flops = op.moved_bytes(inputs), op.flops(case) if op.flops else None
    at_copy, at_product = moved / ceiling.copy, (flops or 0) / ceiling.product
    share = max(at_copy, at_product) / ours
    return Timing(
        op.name,
        case.id,
        milliseconds=ours * 1e3,
        moved_bytes=moved,
        flops=flops,
        share=share,
        bound="copy" if at_copy >= at_product else "product",
        baselines={name: 1e3 * seconds for name, seconds in theirs.items()},
        over_eager=min(theirs.values()) / ours if theirs else None,
        over_compile=compiled / ours if compiled else None,
        short_of=short_of(share, ours, theirs) if at_copy >= at_product or op.baseline else None,
    )


def _compiled_seconds(op: Op, inputs: dict[str, Any]) -> float:
    torch._dynamo.reset()  # other sizes before it would make it compile for any size
    twin = torch.compile(op.reference, dynamic=False)
    return gpu_seconds(lambda: twin(**inputs))


def _baselines(op: Op, inputs: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of PyTorch's own ways of doing it."""
    theirs: Callable[..., Any] | None = op.baseline
    if theirs is None:
        return {"eager": gpu_seconds(lambda: op.reference(**inputs))}
    times = {}
    for name, attention in PYTORCH.items():
        try:
            with sdpa_kernel([attention]):
                times[name] = gpu_seconds(lambda: theirs(**inputs))
        except RuntimeError:  # it has no bias, or no such heads, or is not for this chip
            continue
    return times


def short_of(share: float, ours: float, theirs: Mapping[str, float]) -> str | None:
    """Return the aim that a kernel misses: cuDNN's seconds for attention, a share of the copy ceiling for others."""
    if "eager" in theirs:
        return f"{COPY_SHARE:.0%} of a copy" if share < COPY_SHARE else None
    return "cuDNN" if ours > theirs.get("cudnn", ours) else None
