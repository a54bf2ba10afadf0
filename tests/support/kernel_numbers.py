"""Run by test_numbers.py in a process of its own: all kernels through Triton's interpreter, one JSON line a case.

The interpreter is chosen by a variable that has to be set before Triton is imported and holds for the whole process.
"""

from __future__ import annotations

import json
import os

os.environ.update(TRITON_INTERPRET="1", HELIOS_KERNELS="triton")

import torch
from interpreter import quicken, round_to_nearest

from helios_kernels.check import OPS, compare

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.no_grad()
def main() -> None:
    round_to_nearest()
    quicken()
    jobs = [(op, case, name) for op in OPS.values() for case in op.cases if case.interpreted for name in DTYPES]
    for op, case, name in jobs:
        fault = None
        try:
            for result in compare(op, case, DTYPES[name], torch.device("cpu")):
                assert result.good, f"{result.name}: {result.error:.3g} of {result.bound:.3g}"
        except AssertionError as error:
            fault = str(error)
        print(json.dumps({"op": op.name, "case": case.id, "dtype": name, "fault": fault}), flush=True)


if __name__ == "__main__":
    main()
