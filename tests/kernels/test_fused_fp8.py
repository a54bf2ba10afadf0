"""Norms that round their rows to fp8: bit for bit the norm and the rounding as two kernels, through the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import LONGEST

pytestmark = [pytest.mark.kernels, pytest.mark.process]

SCRIPT = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from interpreter import quicken, round_to_nearest
import helios_kernels as kernels
from helios_kernels.case import outliers
from helios_kernels.dispatch import HALVES

round_to_nearest()
quicken()
torch.manual_seed(0)
DEVICE = torch.device("cpu")
SIZES = (1, 101, 40, 5120), (2, 63, 17, 96), (1, 1, 0, 5120), (3, 65, 65, 320)
for index, (batch, rows, split, width) in enumerate(SIZES):
    for dtype in (torch.float32, HALVES[index % 2]):  # by turns: the kernels have no branch on the type
        x, y = (outliers(batch, rows, width, dtype=dtype, device=DEVICE) for _ in range(2))
        gate, scale, shift = torch.randn(3, batch, 2, width)
        with torch.no_grad():
            norm = kernels.modulated_norm(x, scale, shift, split, 1e-6)
            pairs = [(kernels.modulated_norm_fp8(x, scale, shift, split, 1e-6), kernels.quantize(norm))]
            for factor, added in ((gate, y), (None, y[:, split:])):
                one, two = x.clone(), x.clone()
                norm = kernels.gated_residual_modulated_norm(one, added, factor, scale, shift, split, 1e-6)
                fused = kernels.gated_residual_modulated_norm_fp8(two, added, factor, scale, shift, split, 1e-6)
                pairs += [(fused, kernels.quantize(norm)), ((one, one), (two, two))]
        for found, wanted in pairs:
            for a, b in zip(found, wanted, strict=True):
                assert a.dtype == b.dtype and torch.equal(a.float(), b.float()), (dtype, rows, width)
"""


def test_the_fused_kernels_write_the_same_bits():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HELIOS_KERNELS": "triton"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=LONGEST
    )
    assert run.returncode == 0, run.stderr
