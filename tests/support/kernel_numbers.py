"""Run by test_numbers.py in a process of its own: all kernels through Triton's interpreter, one JSON line a case.

Each case runs in float32 and in one of the two types of 16 bits, by turns: no kernel has a branch on the type.

The interpreter is chosen by a variable that has to be set before Triton is imported and holds for the whole process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

os.environ.update(TRITON_INTERPRET="1", HELIOS_KERNELS="triton")

import torch
from interpreter import quicken, round_to_nearest

from helios_kernels.case import Case, Op
from helios_kernels.check import OPS, compare
from helios_kernels.dispatch import HALVES


def jobs() -> Iterator[tuple[Op, Case, torch.dtype]]:
    for op in OPS.values():
        for index, case in enumerate(case for case in op.cases if case.interpreted):
            yield op, case, torch.float32
            yield op, case, HALVES[(index + index // 2) % 2]  # cases in pairs, of int8 and fp8, get both


@torch.no_grad()
def main() -> None:
    round_to_nearest()
    quicken()
    for op, case, dtype in jobs():
        fault = None
        try:
            for result in compare(op, case, dtype, torch.device("cpu")):
                assert result.good, f"{result.name}: {result.error:.3g} of {result.bound:.3g}"
        except AssertionError as error:
            fault = str(error)
        print(json.dumps({"op": op.name, "case": case.id, "dtype": str(dtype), "fault": fault}), flush=True)


if __name__ == "__main__":
    main()
