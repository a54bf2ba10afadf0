"""The shipped configurations, built ahead of time for seven chips without a GPU, as the launchers would start them.

In child processes: a process that has chosen Triton's interpreter cannot compile. compiled.json has the facts of the
Triton version that it names, with a key of what each build was made from: what has not changed since, is not compiled
again, except two builds of each operation. The bfloat16 facts are the table of kernels/README.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from helios_kernels.attention import TMA_CHIPS
from helios_kernels.check import OPS
from helios_kernels.dispatch import FP8_CHIPS, FP8_OPERATIONS
from support.kernel_builds import CHIPS, RECORD, SHARED_MEMORY, Build, Record, marked, read_record, sample
from support.waiting import LONGEST

pytestmark = [pytest.mark.kernels, pytest.mark.process]

README = Path(__file__).resolve().parents[2] / "kernels/README.md"
WORKER = Path(__file__).parents[1] / "support/kernel_builds.py"
TRITON, RECORDED = read_record(RECORD.read_text())
BUILDS = {name: (op, case, chip) for name, op, case, _, chip in marked()}


def python(*arguments: str) -> str:
    """Run Python where Triton compiles, and return what it prints."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=LONGEST)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def made(once) -> Record:
    """The record as this machine makes it."""
    return read_record(once("builds", lambda: python(str(WORKER))))[1]


@pytest.fixture
def built(made) -> dict[str, Build]:
    return {name: build for name, (_, build) in made.items()}


def test_every_build_is_made(built):
    assert built.keys() == BUILDS.keys()


def test_the_sample_has_builds_of_each_chip_and_operation():
    compiled = [BUILDS[name] for name in sample()]
    assert {chip for *_, chip in compiled} == set(CHIPS)
    assert {op.name for op, *_ in compiled} == {op.name for op, *_ in BUILDS.values()}


def test_nothing_spills_and_shared_memory_suffices(built):
    assert {name: one for name, one in built.items() if one.spilled_bytes} == {}
    limits = {name: SHARED_MEMORY[chip] for name, (*_, chip) in BUILDS.items()}
    assert {name: one for name, one in built.items() if one.shared_bytes > limits[name]} == {}


def test_products_are_on_the_matrix_units(built):
    attention = {name: (built[name], chip) for name, (op, _, chip) in BUILDS.items() if op.name == "attention"}
    assert len(attention) == 8 * len(CHIPS)
    assert [name for name, (one, _) in attention.items() if not one.matrix_instructions] == []
    convolutions = [built[name] for name, (op, *_) in BUILDS.items() if op.name.startswith("causal_conv")]
    assert len(convolutions) == 2 * 16 and all(one.matrix_instructions and one.tma_instructions for one in convolutions)
    by_tma = {name for name, (one, _) in attention.items() if one.tma_instructions}
    assert by_tma == {name for name, (_, chip) in attention.items() if chip in ("sm_90", "sm_100")}


def test_the_pointer_kernel_is_for_the_chips_without_tma():
    """With a TMA chip's configuration it does not fit there, and a trial would find it wrong."""
    assert set(OPS["attention_pointers"].chips) == set(CHIPS) - set(TMA_CHIPS)


def test_every_kernel_is_built_for_every_chip():
    started = {(op.name, chip) for op, _, chip in BUILDS.values()}
    # Ampere has no fp8 and AMD's chips have another; convolutions are of boxes (TMA); attention's pointer kernel is its
    # own elsewhere.
    missing = {(op, chip) for op in OPS for chip in CHIPS} - started
    assert missing == {(op, chip) for op in FP8_OPERATIONS for chip in CHIPS if chip not in FP8_CHIPS} | {
        ("attention_pointers", chip) for chip in CHIPS
    } | {(op, chip) for op in ("causal_conv", "causal_conv_norm") for chip in CHIPS if chip not in TMA_CHIPS}


def test_every_build_is_recorded():
    assert RECORDED.keys() == BUILDS.keys()


@pytest.mark.skipif(version("triton") != TRITON, reason=f"the record is of Triton {TRITON}")
def test_the_record_is_true(made):
    """Where a kernel has changed, `python tests/support/kernel_builds.py` prints the file that is true."""
    assert made == RECORDED


def test_the_readme_has_the_recorded_facts():
    """Registers and KiB of shared memory by kernel, case and chip."""
    rows = [f"| op, case | {' | '.join(CHIPS)} |", f"|---|{'---|' * len(CHIPS)}"]
    for op, case in dict.fromkeys((op.name, case.id) for op, case, _ in BUILDS.values()):
        recorded = [RECORDED.get(f"{op}-{case}-bf16-{chip}") for chip in CHIPS]
        cells = [f"{of[1].registers}, {of[1].shared_bytes / 1024:.1f}" if of else "-" for of in recorded]
        rows.append(f"| `{op}` {case} | {' | '.join(cells)} |")
    assert "\n".join(rows) in README.read_text()


def test_a_spill_is_seen():
    """A configuration that has to spill: 4 rows of 8192 by four warps are 256 numbers a thread."""
    script = (
        f"import sys; sys.path.insert(0, {str(WORKER.parent)!r})\n"
        "import kernel_builds as builds\n"
        "from helios_kernels import tuning\n"
        "tuning._ROW['any'] = tuning.Config(num_warps=4, tile=2**15)\n"
        "op = builds.OPS['modulated_norm']\n"
        "case = next(case for case in op.cases if case.compiled)\n"
        "started = builds.launch_of(op, case, case.compiled[0], 'sm_90')\n"
        "print(builds.facts(builds.compile_launch(started, 'sm_90'), 'sm_90').spilled_bytes)\n"
    )
    assert int(python("-c", script)) > 0
