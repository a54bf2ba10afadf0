"""Every kernel against its twin and the exact result, through Triton's interpreter on the CPU.

`TRITON_INTERPRET` has to be set before Triton is imported and changes it for the whole process, in which other tests
import PyTorch's own users of Triton, and ahead-of-time builds would fail. So all cases run in one child process, once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helios_kernels.check import OPS
from support.waiting import LONGEST

pytestmark = [pytest.mark.kernels, pytest.mark.process]

WORKER = Path(__file__).parents[1] / "support/kernel_numbers.py"
DTYPES = {"torch.float32", "torch.bfloat16", "torch.float16"}


@pytest.fixture(scope="session")
def faults(once) -> dict[tuple[str, str, str], str | None]:
    """Return the fault of each case in each dtype it runs in, None where there is none."""
    return {(line["op"], line["case"], line["dtype"]): line["fault"] for line in once("numbers", compare_all)}


def compare_all() -> list[dict]:
    run = subprocess.run([sys.executable, str(WORKER)], capture_output=True, text=True, env=os.environ, timeout=LONGEST)
    assert run.returncode == 0, run.stderr
    return list(map(json.loads, run.stdout.splitlines()))


@pytest.mark.parametrize("op", OPS)
def test_as_good_as_the_twin(op, faults):
    """In every case; the message lists those that are not."""
    found = {job: fault for job, fault in faults.items() if job[0] == op}
    assert {case for _, case, _ in found} == {case.id for case in OPS[op].cases if case.interpreted}
    assert {dtype for *_, dtype in found} == DTYPES
    assert not {job: fault for job, fault in found.items() if fault}
