"""Ahead-of-time builds of the shipped configurations, without a GPU: registers, spills, shared memory, instructions.

The real launchers are called with tensors on the meta device, and each recorded launch is compiled, so that shapes,
strides and constants are those that a render uses. In a process that has not chosen Triton's interpreter,
`python tests/support/kernel_builds.py [CHIP ...]` prints `tests/kernels/compiled.json` anew, made on all cores. What
the file has with the same key is taken from it, all but a sample.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from helios_kernels import launch
from helios_kernels.case import Case, Op
from helios_kernels.check import OPS
from helios_kernels.dispatch import compiling_for
from helios_kernels.tuning import Config

RECORD = Path(__file__).parents[1] / "kernels/compiled.json"

CHIPS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")

SHARED_MEMORY = {
    "sm_80": 166912,
    **dict.fromkeys(("sm_86", "sm_89", "sm_120"), 101376),
    **dict.fromkeys(("sm_90", "sm_100"), 232448),
    "gfx942": 65536,
}
"""Bytes a program may have, by the vendors' documents. Triton's compiler does not check it."""

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
    torch.int8: "i8",
    torch.float8_e4m3fn: "fp8e4nv",
}


@dataclass(frozen=True)
class Launch:
    """A kernel with the positional arguments, constants and configuration that it would have started with."""

    kernel: Any
    args: tuple
    constants: dict[str, Any]
    config: Config


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Append launches to the yielded list and run nothing; tensors may be on the meta device."""
    launches: list[Launch] = []

    def record(kernel, grid, args, constants, config) -> None:
        launches.append(Launch(kernel, args, constants, config))

    with mock.patch.object(launch, "start", record):
        yield launches


@dataclass(frozen=True)
class Build:
    """The facts of a compiled kernel. `registers` are per thread, accumulation registers included."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    matrix_instructions: int
    tma_instructions: int


def marked(chips: tuple[str, ...] = CHIPS) -> Iterator[tuple[str, Op, Case, torch.dtype, str]]:
    """Yields (name, operation, case, dtype, chip) of every build."""
    for chip in chips:
        for op in OPS.values():
            if op.chips is None or chip in op.chips:
                for case in op.cases:
                    for dtype in case.compiled:
                        yield "-".join((op.name, case.id, TYPES[dtype], chip)), op, case, dtype, chip


def sample() -> set[str]:
    """Return the names of the builds that are always compiled: two of each operation, for chips by turns."""
    operations: dict[str, list[str]] = {}
    for name, op, *_ in marked():
        operations.setdefault(op.name, []).append(name)
    count = len(operations)
    places = [(names, turn % count) for n, names in enumerate(operations.values()) for turn in (n, n + count // 2)]
    return {names[turn * len(names) // count] for names, turn in places}


def launch_of(op: Op, case: Case, dtype: torch.dtype, chip: str) -> Launch:
    """Record the last launch of the case; those before it are other operations'."""
    with compiling_for(chip), recorded() as launches, torch.no_grad():
        op.run(**op.inputs(case, dtype, torch.device("meta")))
    return launches[-1]


@dataclass(frozen=True)
class Variant:
    """The specialisation of a launch: its arguments as Triton's own launcher specialises them.

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


def given(started: Launch, chip: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return (source, target, options): what `triton.compile` makes a build from."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    of = variant(started)
    source = ASTSource(fn=started.kernel, signature=of.signature, constexprs=of.constants, attrs=of.attributes)
    target = GPUTarget("hip", chip, 64) if chip.startswith("gfx") else GPUTarget("cuda", int(chip[3:]), 32)
    options = {"num_warps": started.config.num_warps, "num_stages": started.config.num_stages}
    return source, target, {**options, "enable_fp_fusion": True}


def key_of(started: Launch, chip: str) -> str:
    """Return a digest of what a build is made from, as the key of Triton's own cache: the kernel's source and all that
    it calls, types, constants, options, and the assembler. Triton's version is not in it."""
    from triton.compiler.compiler import make_backend

    source, target, options = given(started, chip)
    backend = make_backend(target)
    parts = (source.hash(), backend.hash(), backend.parse_options({**options, **source.parse_options()}).hash())
    return hashlib.sha256("-".join(parts).encode()).hexdigest()[:16]


def compile_launch(started: Launch, chip: str):
    """Run `triton.compile` on a recorded launch."""
    import triton

    source, target, options = given(started, chip)
    return triton.compile(source, target=target, options=options)


def facts(compiled, chip: str) -> Build:
    amd = chip.startswith("gfx")
    assembly = compiled.asm["amdgcn" if amd else "ptx"]
    registers, spilled = _amd_usage(assembly) if amd else _nvidia_usage(compiled.asm["cubin"])
    return Build(
        registers,
        spilled,
        compiled.metadata.shared,
        matrix_instructions=len(re.findall(MATRIX_INSTRUCTIONS[chip], assembly)),
        tma_instructions=len(re.findall(TMA_INSTRUCTION, assembly)),
    )


def _amd_usage(assembly: str) -> tuple[int, int]:
    """Return (vector registers, spilled bytes): spilled registers go to the scratch of a wavefront's lane."""
    vectors = int(re.search(r"\.amdhsa_next_free_vgpr (\d+)", assembly)[1])
    return vectors, int(re.search(r"\.amdhsa_private_segment_fixed_size (\d+)", assembly)[1])


def _nvidia_usage(cubin: bytes) -> tuple[int, int]:
    """Return (registers, stack bytes): Triton's kernels have no local variables, so a stack holds spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_cuobjdump()), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return max(map(int, re.findall(r"REG:(\d+)", text))), max(map(int, re.findall(r"STACK:(\d+)", text)))


@functools.cache
def _cuobjdump() -> Path:
    """The program that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


Record = dict[str, tuple[str, Build]]
"""The builds by name: (key of what the compiler was given, what came of it)."""


def read_record(text: str) -> tuple[str, Record]:
    """Return (Triton's version, record) of the text of compiled.json."""
    record = json.loads(text)
    return record["triton"], {name: (key, Build(*build)) for name, (key, *build) in record["builds"].items()}


def write_record(record: Record) -> str:
    """Return the text of compiled.json, a line each build."""
    builds = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps([key, *astuple(one)])}" for name, (key, one) in record.items()
    )
    return f'{{\n  "triton": {json.dumps(version("triton"))},\n  "builds": {{\n{builds}\n  }}\n}}'


def entry(number: int, chips: tuple[str, ...], known: Record, always: set[str]) -> tuple[str, tuple[str, Build]]:
    """Return the record's entry of the build with this number.

    A build that `known` has with the same key is compiled again only as one of the sample: a compiler makes the same
    from the same, and the sample shows that this one does.
    """
    name, op, case, dtype, chip = next(islice(marked(chips), number, None))
    started = launch_of(op, case, dtype, chip)
    key = key_of(started, chip)
    if name not in always and name in known and known[name][0] == key:
        return name, known[name]
    return name, (key, facts(compile_launch(started, chip), chip))


def main(chips: tuple[str, ...]) -> None:
    """Print compiled.json for the chips, made in processes that share what is imported here and take one build after
    another."""
    import triton.compiler  # noqa: F401

    compiler, known = read_record(RECORD.read_text())
    known = known if compiler == version("triton") else {}
    make = functools.partial(entry, chips=chips, known=known, always=sample())
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        numbers = range(sum(1 for _ in marked(chips)))
        print(write_record(dict(pool.imap(make, numbers))))


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or CHIPS)
