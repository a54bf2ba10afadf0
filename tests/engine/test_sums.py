"""Fast sums of fp8 products: where they are taken, what is remembered, and what that does to fingerprints."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helios_cli.architecture import DiTConfig
from helios_cli.cost.arithmetic import arithmetic_of, fast_sums, product_shapes
from helios_cli.device import Device
from helios_cli.engine import choices
from helios_cli.measured import SUMS, Measured
from helios_cli.model.fp8 import FAST_LENGTHS, Fp8, product
from helios_cli.weights.fp8 import EXACT, FAST, quantize_weight
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
        ((2.0, 1.5), (0.0374, 0.0376), FAST),
        ((2.0, 1.5), (0.0374, 0.0412), EXACT),  # a tenth more
        ((2.0, 2.1), (0.0374, 0.0374), EXACT),
        ((2.0, 1.5), (0.0374, float("nan")), EXACT),
    ],
)
def test_fast_sums_have_to_be_faster_and_nearly_as_exact(ms, errors, taken):
    names = EXACT, FAST
    assert choices.sums_to_take(dict(zip(names, ms, strict=True)), dict(zip(names, errors, strict=True))) == taken


def test_the_error_is_that_of_rounding_both_factors():
    """Steps of at most 2^-3 leave a relative error of about 2^-4 / sqrt(3) in each; a CPU has no faster sums."""
    found = choices.compare_sums(64, 128, 64, CPU, lambda call: 1.0)
    assert found.apart[EXACT] == pytest.approx(2**-4 / 3**0.5, rel=0.35)
    assert found.apart[FAST] == pytest.approx(found.apart[EXACT], rel=0.02) and found.name == EXACT


def test_a_length_is_fast_where_all_its_products_are():
    good, bad = Measured(FAST, {}), Measured(EXACT, {})
    shapes = product_shapes(DiTConfig(), (640, 384), 3)
    assert shapes == ["11040x5120x15360", "11040x5120x5120", "11040x5120x13824", "11040x13824x5120"]
    assert fast_sums(dict.fromkeys(shapes, good), shapes) == {5120, 13824}
    assert fast_sums({**dict.fromkeys(shapes, good), shapes[1]: bad}, shapes) == {13824}
    assert fast_sums(dict.fromkeys(shapes[:3], good), shapes) == {5120}  # the last was not measured


def test_products_are_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    measured, shapes = [], ["64x32x96", "64x96x32"]

    def compare(rows, inner, outer, device, seconds):
        measured.append(f"{rows}x{inner}x{outer}")
        return Measured(FAST if inner == 32 else EXACT, {EXACT: 2.0, FAST: 1.0})

    monkeypatch.setattr(choices, "compare_sums", compare)
    for _ in range(2):  # the second time by another process
        choices.measure_sums(SUMS.on("a GPU"), shapes, CPU)
        assert measured == shapes
    assert fast_sums(SUMS.on("a GPU").known, shapes) == {32}
    old = {"64x32x96": {"ms": [2, 1], "errors": [0.03, 0.03]}}  # as sums were kept before: measured anew
    devices.write(SUMS.key("a GPU"), old, tmp_path / SUMS.file)
    assert SUMS.on("a GPU").known == {}


def test_fast_sums_make_other_pictures():
    device = Device("cuda", "a GPU", 2**34, 2**34)

    def kernels(*lengths: int) -> str:
        how = {"quant": "fp8", "attention": "auto"}
        return arithmetic_of(device, "bfloat16", {}, fast_sums=lengths, **how).kernels

    assert kernels() == arithmetic_of(device, "bfloat16", {}, quant="fp8", attention="auto").kernels
    assert len({kernels(), kernels(5120), kernels(5120, 13824)}) == 3
    assert kernels(13824, 5120) == kernels(5120, 13824)
