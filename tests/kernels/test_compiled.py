"""The shipped configurations, built ahead of time for seven chips without a GPU, as the launchers would start them.

In a child process: a process that has chosen Triton's interpreter cannot compile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

from helios_kernels.attention import TMA_CHIPS
from helios_kernels.compiled import TYPES, marked, table
from helios_kernels.configs import CHIPS, SHARED_MEMORY
from helios_kernels.facts import COMPILED, TRITON
from helios_kernels.registry import OPS
from support.waiting import LONGEST

README = Path(__file__).resolve().parents[2] / "kernels/README.md"
CASES = [(op.name, case.id, TYPES[dtype], chip) for op, case, dtype, chip in marked()]


@pytest.fixture(scope="session")
def built() -> dict[tuple[str, str, str, str], dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "helios_kernels.compiled", "--json"]

    def lines(chips: tuple[str, ...]) -> list[dict]:
        run = subprocess.run([*command, *chips], capture_output=True, text=True, env=environment, timeout=LONGEST)
        assert run.returncode == 0, run.stderr
        return list(map(json.loads, run.stdout.splitlines()))

    processes = min(os.cpu_count(), len(CHIPS))
    with ThreadPoolExecutor(processes) as together:
        shares = [CHIPS[number::processes] for number in range(processes)]
        found = [line for part in together.map(lines, shares) for line in part]
    return {(line["op"], line["case"], line["dtype"], line["chip"]): line for line in found}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_nothing_spills_and_shared_memory_suffices(case, built):
    assert built[case]["spilled_bytes"] == 0
    assert built[case]["shared_bytes"] <= SHARED_MEMORY[case[-1]]


@pytest.mark.parametrize("case", [case for case in CASES if case[0] == "attention"], ids="-".join)
def test_attention_is_on_the_matrix_units(case, built):
    assert built[case]["matrix_instructions"] > 0
    assert (built[case]["tma_instructions"] > 0) == (case[-1] in ("sm_90", "sm_100"))


def test_the_pointer_kernel_is_for_the_chips_without_tma():
    """With a TMA chip's configuration it does not fit there: whoever tried it would call all kernels wrong."""
    assert set(OPS["attention_pointers"].chips) == set(CHIPS) - set(TMA_CHIPS)


def test_every_kernel_is_built_for_every_chip():
    started = {(op, chip) for op, _, _, chip in CASES}
    # Ampere has no fp8; LayerNorm alone is modulated_norm's kernel; the pointer kernel is attention's own elsewhere.
    missing = {(op, chip) for op in OPS for chip in CHIPS} - started
    assert missing == {("quantize", "sm_80"), ("quantize", "sm_86")} | {
        (op, chip) for op in ("layer_norm", "attention_pointers") for chip in CHIPS
    }


def test_every_build_is_recorded():
    assert COMPILED.keys() == set(CASES)


@pytest.mark.skipif(version("triton") != TRITON, reason=f"the record is Triton {TRITON}'s")
def test_the_record_is_true(built):
    facts = {case: (line["registers"], line["shared_bytes"]) for case, line in built.items()}
    assert facts == COMPILED


def test_the_readme_has_the_recorded_facts():
    assert table() in README.read_text()


def test_a_spill_is_seen():
    """A configuration that has to spill: 4 rows of 8192 by four warps are 256 numbers a thread."""
    script = (
        "from helios_kernels import compiled, configs\n"
        "configs._ROW['cuda'] = configs.Config(num_warps=4, tile=2**15)\n"
        "op = compiled.OPS['modulated_norm']\n"
        "case = next(case for case in op.cases if case.compiled)\n"
        "started = compiled.launch_of(op, case, case.compiled[0], 'sm_90')\n"
        "print(compiled.facts(compiled.compile_launch(started, 'sm_90'), 'sm_90')['spilled_bytes'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=LONGEST
    )
    assert int(run.stdout) > 0, run.stderr
