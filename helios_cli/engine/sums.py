"""The sums of fp8 products: in float32, or in the fewer bits that Hopper's tensor cores take for speed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial

import torch

from helios_cli import machine
from helios_cli.cost.arithmetic import fast_sums, measured_sums
from helios_cli.model.backends import distance
from helios_cli.model.fp8 import Fp8, product
from helios_cli.weights.fp8 import Sums, quantize_weight
from helios_kernels import devices
from helios_kernels.case import outliers
from helios_kernels.timing import gpu_seconds

COMPARED = 1024
"""Outputs of a layer that are compared with float32."""

_sums_here: dict[tuple[str, tuple[int, int, int]], Sums] = {}
"""The measurements of this process by device and shape, for homes that cannot be written."""


@torch.no_grad()
def measure(
    rows: int, inner: int, outer: int, device: torch.device, seconds: Callable[[Callable[[], object]], float]
) -> Sums:
    """Time a product and compare it with float32, with sums in float32 and with fast ones."""
    x = outliers(rows, inner, dtype=torch.bfloat16, device=device)  # as in the stream of a trained model
    weight = torch.randn(outer, inner, device=device)
    bias = torch.zeros(outer, device=device, dtype=torch.bfloat16)
    exact = x.float() @ weight[:COMPARED].T
    rounded, (values, scales) = Fp8.of(x), quantize_weight(weight)
    del x, weight
    ms, errors = [], []
    for fast in (False, True):
        call = partial(product, rounded, values, scales, bias, fast_sums=fast)
        errors.append(distance(call()[:, :COMPARED], exact))
        ms.append(1e3 * seconds(call))
    return Sums((ms[0], ms[1]), (errors[0], errors[1]))


def measure_sums(shapes: Iterable[tuple[int, int, int]], device: torch.device) -> frozenset[int]:
    """Time and compare the fp8 products of a film that were not measured on this GPU yet, each (rows, inputs, outputs),
    and return the lengths of sums that are fast (`cost.arithmetic.fast_sums`)."""
    name, shapes = torch.cuda.get_device_name(device), tuple(shapes)
    known = measured_sums(name)
    for shape in shapes:
        if shape in known or (name, shape) in _sums_here:
            continue
        with contextlib.suppress(torch.OutOfMemoryError):  # not known, so not fast
            found = _sums_here[name, shape] = measure(*shape, device, gpu_seconds)
            _keep_sums(name, shape, found)
    return fast_sums({**{shape: one for (own, shape), one in _sums_here.items() if own == name}, **known}, shapes)


def _keep_sums(name: str, shape: tuple[int, int, int], found: Sums) -> None:
    entry = {"x".join(map(str, shape)): asdict(found)}
    with contextlib.suppress(OSError):  # a home that cannot be written: the next process measures again
        file = machine.home() / machine.SUMS
        devices.change(machine.sums_key(name), file, lambda known: {**(known or {}), **entry})
