"""All operations at the 14B model's shapes: time, share of the chip's own measured ceiling, speed-up over PyTorch.

`python -m helios_kernels.bench [--json] [op ...]`, or `helios bench kernels`. Every case is first compared with its
twin; one that differs gets no time. Ceilings are what a copy and a matrix product of this very GPU reach in the same
run, not what a data sheet says.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from helios_kernels.case import Case, Op
from helios_kernels.check import compare
from helios_kernels.dispatch import backend
from helios_kernels.registry import OPS
from helios_kernels.timing import gpu_seconds, sustained

DTYPE = torch.bfloat16
COPY_BYTES = 2**30
PRODUCT = 8192

COPY_SHARE = 0.85
"""Of the copy ceiling, that an element-wise operation is to reach."""

PYTORCH = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Attentions that ours is compared with, those that take the case."""

HEADING = (
    f"{'operation':30} {'case':20} {'time':>11} {'work':>15} {'of the ceiling':>17}  {'over':>7} {'the fastest':>13} "
    f"{'compiled':>8}"
)


@dataclass(frozen=True)
class Ceiling:
    """Bytes a second of a 1 GiB copy, read and written; FLOP a second of an 8192^3 product, and of one in fp8 with a
    scale a row and float32 sums, None where there is none. These are bursts: `sustained_product` is what the product
    reaches over two seconds without a pause, at `clock` MHz and `watts`; None where it was not measured or reported."""

    copy: float
    product: float
    fp8_product: float | None = None
    sustained_product: float | None = None
    clock: float | None = None
    watts: float | None = None


@dataclass(frozen=True)
class Timing:
    """One row of the table. `share` is of the least time that its bytes take at the copy ceiling or, if that is longer,
    its FLOPs at the product's; `bound` says which. `baselines` are PyTorch's milliseconds: "eager", or those of its
    attentions by name, and `over_eager` is the speed-up over the fastest of them.

    `fault` says how the kernel differs from its twin; then there are no times. `short_of` says which aim it misses.
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


def require(names: tuple[str, ...] = ()) -> None:
    """RuntimeError where kernels do not run on a GPU, and for a name that is no operation's.

    On a chip that is new the process has to insist: HELIOS_KERNELS=triton.
    """
    if not torch.cuda.is_available() or backend().chip is None:
        raise RuntimeError(f"no kernel can be timed here: {backend().reason}")
    if unknown := sorted(set(names) - OPS.keys()):
        raise RuntimeError(f"no operation is called {', '.join(unknown)}; there are {', '.join(OPS)}")


@torch.no_grad()
def bench(ceiling: Ceiling, names: tuple[str, ...] = (), *, compiled: bool = True) -> Iterator[Timing]:
    """Times the real cases of the named operations, of all without any, where `require` finds nothing.

    Without `compiled` there is no comparison with `torch.compile`, which takes most of the time. Yields each row as it
    is measured.
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
    fp8, long = _fp8_ceiling(left, right), sustained(lambda: left @ right)
    return Ceiling(
        copy=2 * COPY_BYTES / copy,
        product=2 * PRODUCT**3 / product,
        fp8_product=fp8,
        sustained_product=2 * PRODUCT**3 / long.seconds,
        clock=long.clock,
        watts=long.watts,
    )


def _fp8_ceiling(left: torch.Tensor, right: torch.Tensor) -> float | None:
    scales = torch.ones(PRODUCT, 1, device="cuda")
    how = {"scale_a": scales, "scale_b": scales.T, "out_dtype": torch.bfloat16, "use_fast_accum": False}
    try:
        a, b = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).T
        return 2 * PRODUCT**3 / gpu_seconds(lambda: torch._scaled_mm(a, b, **how))
    except (RuntimeError, ValueError):  # a chip or a library that has no such product
        return None


def _time_case(op: Op, case: Case, ceiling: Ceiling, *, against_compile: bool) -> Timing:
    """Its row, or what is wrong with it. Raises what a GPU says that answers nothing more."""
    try:
        return _timed(op, case, ceiling, torch.device("cuda"), against_compile=against_compile)
    except Exception as error:  # a compiler's, a launch's, a twin's that differs: the other cases are worth having
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
    compiled = None
    if op.baseline is None and against_compile:
        torch._dynamo.reset()  # sizes of the case before would make it compile for any size
        twin = torch.compile(op.reference, dynamic=False)
        compiled = gpu_seconds(lambda: twin(**inputs))
    moved, flops = op.moved_bytes(case, DTYPE.itemsize), op.flops(case) if op.flops else None
    floors = {"copy": moved / ceiling.copy, "product": (flops or 0) / ceiling.product}
    bound = max(floors, key=floors.get)
    share = floors[bound] / ours
    return Timing(
        op.name,
        case.id,
        milliseconds=ours * 1e3,
        moved_bytes=moved,
        flops=flops,
        share=share,
        bound=bound,
        baselines={name: 1e3 * seconds for name, seconds in theirs.items()},
        over_eager=min(theirs.values()) / ours if theirs else None,
        over_compile=compiled / ours if compiled else None,
        short_of=short_of(share, ours, theirs) if bound == "copy" or op.baseline else None,
    )


def _baselines(op: Op, inputs: dict) -> dict[str, float]:
    """Seconds of PyTorch's own ways of doing it."""
    if op.baseline is None:
        return {"eager": gpu_seconds(lambda: op.reference(**inputs))}
    times = {}
    for name, attention in PYTORCH.items():
        try:
            with sdpa_kernel([attention]):
                times[name] = gpu_seconds(lambda: op.baseline(**inputs))
        except RuntimeError:  # it has no bias, or no such heads, or is not for this chip
            continue
    return times


def short_of(share: float, ours: float, theirs: Mapping[str, float]) -> str | None:
    """The aim that a kernel misses: cuDNN's seconds for attention, else a share of the copy ceiling."""
    if "eager" in theirs:
        return f"{COPY_SHARE:.0%} of a copy" if share < COPY_SHARE else None
    return "cuDNN" if ours > theirs.get("cudnn", ours) else None


def told(ceiling: Ceiling) -> str:
    in_fp8 = f", in fp8 {ceiling.fp8_product / 1e12:.1f}" if ceiling.fp8_product else ""
    burst = f"a copy has {ceiling.copy / 1e9:.0f} GB/s, a product {ceiling.product / 1e12:.1f} TFLOP/s{in_fp8}"
    if ceiling.sustained_product is None:
        return burst
    clock = f" at {ceiling.clock:.0f} MHz" if ceiling.clock else ""
    watts = f", {ceiling.watts:.0f} W" if ceiling.watts else ""
    return f"{burst}; two seconds of products {ceiling.sustained_product / 1e12:.1f} TFLOP/s{clock}{watts}"


def line(timing: Timing) -> str:
    head = f"{timing.op:30} {timing.case:20}"
    if timing.fault:
        return f"{head} not timed: {timing.fault}"
    amount = f"{timing.flops / 1e9:9.1f} GFLOP" if timing.flops else f"{timing.moved_bytes / 1e6:9.1f} MB   "
    compiled = f"{timing.over_compile:6.2f}x" if timing.over_compile else "      -"
    share = f"{timing.share:6.1%} of {timing.bound:7}"
    fastest = min(timing.baselines, key=timing.baselines.get, default="-")
    eager = f"{timing.over_eager:6.2f}x" if timing.over_eager else "      -"
    mark = f"  < {timing.short_of}" if timing.short_of else ""
    return f"{head} {timing.milliseconds:8.3f} ms {amount} {share}  {eager} {fastest:>13} {compiled:>8}{mark}"


def main(arguments: list[str]) -> int:
    as_json, names = "--json" in arguments, tuple(name for name in arguments if name != "--json")
    red = False
    try:
        require(names)
        ceiling = measure_ceiling()
        if not as_json:
            print(f"{torch.cuda.get_device_name()}: {told(ceiling)}\n{HEADING}", flush=True)
        for timing in bench(ceiling, names):
            red |= timing.fault is not None
            print(json.dumps(asdict(timing)) if as_json else line(timing), flush=True)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 1 if red else 0


if __name__ == "__main__":
    os.environ.setdefault("HELIOS_KERNELS", "triton")
    sys.exit(main(sys.argv[1:]))
