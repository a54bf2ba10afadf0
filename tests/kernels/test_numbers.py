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
DTYPES = ("float32", "bfloat16", "float16")
CASES = [(op.name, case.id, dtype) for op in OPS.values() for case in op.cases if case.interpreted for dtype in DTYPES]


@pytest.fixture(scope="session")
def faults(once) -> dict[tuple[str, str, str], str | None]:
    """Return the fault of each case, None for a case without one."""
    return {(line["op"], line["case"], line["dtype"]): line["fault"] for line in once("numbers", compare_all)}


def compare_all() -> list[dict]:
    run = subprocess.run([sys.executable, str(WORKER)], capture_output=True, text=True, env=os.environ, timeout=LONGEST)
    assert run.returncode == 0, run.stderr
    return list(map(json.loads, run.stdout.splitlines()))


@pytest.mark.parametrize("op", OPS)
def test_as_good_as_the_twin(op, faults):
    """In every case and dtype; the message lists those that are not."""
    found = {case: faults[case] for case in CASES if case[0] == op}
    assert found and not {case: fault for case, fault in found.items() if fault}


def test_every_operation_is_interpreted():
    assert {name for name, *_ in CASES} == set(OPS)
