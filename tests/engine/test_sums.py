"""Fast sums of fp8 products: where they are taken, what is remembered, and what that does to fingerprints."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helios_cli import machine
from helios_cli.architecture import DiTConfig
from helios_cli.cost.arithmetic import arithmetic_of, fast_sums, measured_sums, product_shapes
from helios_cli.device import Device
from helios_cli.engine import sums
from helios_cli.model.fp8 import FAST_LENGTHS, Fp8, product
from helios_cli.weights.fp8 import Sums, quantize_weight
from helios_kernels import devices

CPU = torch.device("cpu")


class Products(TorchDispatchMode):
    """Notes the sums of fp8 products."""

    def __init__(self) -> None:
        super().__init__()
        self.fast: list[bool] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._overloadpacket.__name__ == "_scaled_mm":
            self.fast.append(bool(args[7]) if len(args) > 7 else (kwargs or {}).get("use_fast_accum", False))
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def lengths():
    yield FAST_LENGTHS
    FAST_LENGTHS.clear()


def test_a_product_is_summed_as_its_length_says(lengths):
    (values, scales), bias = quantize_weight(torch.randn(16, 32)), torch.zeros(16).bfloat16()
    x = Fp8.of(torch.randn(4, 32))
    with Products() as noted:
        product(x, values, scales, bias)
        lengths.add(32)
        product(x, values, scales, bias)
        product(x, values, scales, bias, fast_sums=False)
    assert noted.fast == [False, True, False]


@pytest.mark.parametrize(
    ("ms", "errors", "taken"),
    [
        ((2.0, 1.5), (0.0374, 0.0376), True),
        ((2.0, 1.5), (0.0374, 0.0412), False),  # a tenth more
        ((2.0, 2.1), (0.0374, 0.0374), False),
        ((2.0, 1.5), (0.0374, float("nan")), False),
    ],
)
def test_fast_sums_have_to_be_faster_and_nearly_as_exact(ms, errors, taken):
    assert Sums(ms, errors).fast is taken


def test_the_error_is_that_of_rounding_both_factors():
    """Steps of at most 2^-3 leave a relative error of about 2^-4 / sqrt(3) in each; a CPU has no faster sums."""
    found = sums.measure(64, 128, 64, CPU, lambda call: 1.0)
    assert found.errors[0] == pytest.approx(2**-4 / 3**0.5, rel=0.35)
    assert found.errors[1] == pytest.approx(found.errors[0], rel=0.02) and not found.fast


def test_a_length_is_fast_where_all_its_products_are():
    good, bad = Sums((2.0, 1.0), (0.03, 0.03)), Sums((1.0, 1.0), (0.03, 0.03))
    shapes = list(product_shapes(DiTConfig(), (640, 384), 3))
    assert shapes == [(11040, 5120, 15360), (11040, 5120, 5120), (11040, 5120, 13824), (11040, 13824, 5120)]
    assert fast_sums(dict.fromkeys(shapes, good), shapes) == {5120, 13824}
    assert fast_sums({**dict.fromkeys(shapes, good), shapes[1]: bad}, shapes) == {13824}
    assert fast_sums(dict.fromkeys(shapes[:3], good), shapes) == {5120}  # the last was not measured


def test_products_are_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(sums, "_sums_here", {})
    measured, shapes = [], [(64, 32, 96), (64, 96, 32)]

    def measure(rows, inner, outer, device, seconds):
        measured.append((rows, inner, outer))
        return Sums((2.0, 1.0), (0.03, 0.03 if inner == 32 else 0.05))

    monkeypatch.setattr(sums, "measure", measure)
    for _ in range(2):
        assert sums.measure_sums(shapes, CPU) == {32}
        assert measured == shapes
    monkeypatch.setattr(sums, "_sums_here", {})
    assert sums.measure_sums(shapes, CPU) == {32} and measured == shapes  # by another process
    assert fast_sums(measured_sums("a GPU"), shapes) == {32}  # as a plan reads it
    devices.write(machine.sums_key("a GPU"), {"64x32x96": {"ms": [1]}, "x": None}, tmp_path / machine.SUMS)
    assert measured_sums("a GPU") == {}


def test_fast_sums_make_other_pictures():
    device = Device("cuda", "a GPU", 2**34, 2**34)

    def kernels(*lengths: int) -> str:
        how = {"quant": "fp8", "attention": "auto"}
        return arithmetic_of(device, "bfloat16", {}, fast_sums=lengths, **how).kernels

    assert kernels() == arithmetic_of(device, "bfloat16", {}, quant="fp8", attention="auto").kernels
    assert len({kernels(), kernels(5120), kernels(5120, 13824)}) == 3
    assert kernels(13824, 5120) == kernels(5120, 13824)
