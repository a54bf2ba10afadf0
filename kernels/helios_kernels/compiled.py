"""Ahead-of-time builds of the shipped configurations, without a GPU: registers, spills, shared memory, instructions.

The real launchers are called with tensors on the meta device, and what they would have started is compiled: shapes,
strides and constants cannot drift from what a render uses. `python -m helios_kernels.compiled` prints the table.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios_kernels.case import Case, Op
from helios_kernels.configs import CHIPS
from helios_kernels.dispatch import compiling_for
from helios_kernels.facts import COMPILED
from helios_kernels.launch import Launch, recorded
from helios_kernels.registry import OPS

MATRIX_INSTRUCTIONS = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), r"\bmma\.sync"),
    "sm_90": r"\bwgmma\.mma_async",
    "sm_100": r"\btcgen05\.mma",
    "gfx942": r"\bv_mfma_f32",
}
TMA_INSTRUCTION = r"cp\.async\.bulk\.tensor"

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
}


@dataclass(frozen=True)
class Build:
    """What a case's kernel compiles to on a chip. `registers` are per thread (accumulation registers included)."""

    op: str
    case: str
    dtype: str
    chip: str
    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    matrix_instructions: int
    tma_instructions: int


def builds(chips: tuple[str, ...] = CHIPS) -> Iterator[Build]:
    """Compiles every case that is marked for it, for every chip. Equal kernels are compiled once."""
    for op, case, dtype, chip in marked(chips):
        started = launch_of(op, case, dtype, chip)
        known = facts(compile_launch(started, chip), chip)
        yield Build(op.name, case.id, TYPES[dtype], chip, started.kernel.__name__, **known)


def marked(chips: tuple[str, ...] = CHIPS) -> Iterator[tuple[Op, Case, torch.dtype, str]]:
    """What is built."""
    for chip in chips:
        for op in OPS.values():
            if op.chips is None or chip in op.chips:
                yield from ((op, case, dtype, chip) for case in op.cases for dtype in case.compiled)


def launch_of(op: Op, case: Case, dtype: torch.dtype, chip: str) -> Launch:
    """The one launch of the case."""
    with compiling_for(chip), recorded() as launches, torch.no_grad():
        op.run(**op.inputs(case, dtype, torch.device("meta")))
    (started,) = launches
    return started


@dataclass(frozen=True)
class Variant:
    """What a launch is compiled for: its arguments specialised as Triton's own launcher does it.

    Attributes:
        signature: types by parameter, "constexpr" for constants.
        constants: their values.
        attributes: by position of a parameter, what the compiler may rely on.
    """

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list]


def variant(started: Launch) -> Variant:
    signature, constants, attributes = {}, dict(started.constants), {}
    for position, parameter in enumerate(started.kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            continue
        argument = started.args[position]
        aligned = False
        if isinstance(argument, Tensor):
            signature[parameter.name], aligned = f"*{TYPES[argument.dtype]}", True
        elif isinstance(argument, float):
            signature[parameter.name] = "fp32"
        elif argument == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        else:
            signature[parameter.name] = "i32" if abs(argument) < 2**31 else "i64"
            aligned = argument % 16 == 0 and not parameter.do_not_specialize
        if aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return Variant(signature, constants, attributes)


def compile_launch(started: Launch, chip: str):
    """`triton.compile` of a recorded launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    of = variant(started)
    source = ASTSource(fn=started.kernel, signature=of.signature, constexprs=of.constants, attrs=of.attributes)
    target = GPUTarget("hip", chip, 64) if chip.startswith("gfx") else GPUTarget("cuda", int(chip[3:]), 32)
    options = {"num_warps": started.config.num_warps, "num_stages": started.config.num_stages}
    return triton.compile(source, target=target, options={**options, "enable_fp_fusion": True})


def facts(compiled, chip: str) -> dict[str, int]:
    amd = chip.startswith("gfx")
    assembly = compiled.asm["amdgcn" if amd else "ptx"]
    registers, spilled = _amd_usage(assembly) if amd else _nvidia_usage(compiled.asm["cubin"])
    return {
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": compiled.metadata.shared,
        "matrix_instructions": len(re.findall(MATRIX_INSTRUCTIONS[chip], assembly)),
        "tma_instructions": len(re.findall(TMA_INSTRUCTION, assembly)),
    }


def _amd_usage(assembly: str) -> tuple[int, int]:
    """(vector registers, spilled bytes): the scratch of a wavefront's lane holds what was spilled."""
    vectors = int(re.search(r"\.amdhsa_next_free_vgpr (\d+)", assembly)[1])
    return vectors, int(re.search(r"\.amdhsa_private_segment_fixed_size (\d+)", assembly)[1])


def _nvidia_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes): Triton's kernels have no local variables, so a stack holds spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_cuobjdump()), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return max(map(int, re.findall(r"REG:(\d+)", text))), max(map(int, re.findall(r"STACK:(\d+)", text)))


@functools.cache
def _cuobjdump() -> Path:
    """Comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def table() -> str:
    """The bfloat16 facts as README.md has them: registers and KiB of shared memory by kernel, case and chip."""
    rows = [f"| op, case | {' | '.join(CHIPS)} |", f"|---|{'---|' * len(CHIPS)}"]
    for op, case in dict.fromkeys((op, case) for op, case, dtype, _ in COMPILED if dtype == "bf16"):
        recorded = [COMPILED.get((op, case, "bf16", chip)) for chip in CHIPS]
        cells = [f"{entry[0]}, {entry[1] / 1024:.1f}" if entry else "-" for entry in recorded]
        rows.append(f"| `{op}` {case} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main(arguments: list[str]) -> None:
    """One line a build, ready for facts.py, or with `--json` everything; other arguments are chips, all without any."""
    as_json, chips = "--json" in arguments, tuple(name for name in arguments if name != "--json")
    for built in builds(chips or CHIPS):
        key = (built.op, built.case, built.dtype, built.chip)
        fact = json.dumps(key).replace("[", "(").replace("]", ")")
        text = json.dumps(asdict(built)) if as_json else f"    {fact}: ({built.registers}, {built.shared_bytes}),"
        print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
