"""Every kernel against its twin on a GPU, at the 14B model's shapes as well; without one there is nothing to run.

What the interpreter cannot show: the chip's own rounding, products of bfloat16, TMA, races.
"""

from __future__ import annotations

import pytest
import torch

from helios_kernels.case import DTYPES
from helios_kernels.check import OPS, compare
from helios_kernels.dispatch import HALVES, INTERPRETER, find_triton

pytestmark = pytest.mark.gpu

FOUND = find_triton()
if FOUND.chip in (None, INTERPRETER):
    pytest.skip(f"kernels run on no GPU: {FOUND.reason}", allow_module_level=True)

CASES = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.id}-{str(dtype).removeprefix('torch.')}")
    for op in OPS.values()
    for case in op.cases
    for dtype in (HALVES if op.name.startswith("attention") else DTYPES)
]


@pytest.fixture(autouse=True)
def kernels_run(monkeypatch):
    """Whatever was found when they were tried here."""
    monkeypatch.setenv("HELIOS_KERNELS", "triton")


@torch.no_grad()
@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_as_good_as_the_twin(op, case, dtype):
    if op.chips is not None and FOUND.chip not in op.chips:
        pytest.skip(f"not for {FOUND.chip}")
    try:
        compared = compare(op, case, dtype, torch.device("cuda"))
    except torch.OutOfMemoryError:  # of the float64 result
        pytest.skip("the GPU's memory is too small for the comparison")
    wrong = [result for result in compared if not result.good]
    assert not wrong, [(result.name, result.error, result.bound) for result in wrong]
