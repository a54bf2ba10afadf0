"""Which implementation runs is decided once, by a variable and by what the machine has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helios_cli.cli import main
from helios_kernels import bench, dispatch, trial
from helios_kernels.attention import aligned
from helios_kernels.check import OPS, compare
from helios_kernels.dispatch import Backend, backend, chip_of
from helios_kernels.round_heads import round_heads
from helios_kernels.timing import sustained
from support.kernel_builds import CHIPS
from support.programs import program
from support.waiting import LONGEST

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what happens without a GPU")


def python(code: str, **variables: str) -> str:
    """Return what a separate process prints."""
    clean = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "HELIOS_KERNELS")}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, env={**clean, **variables}, timeout=LONGEST)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def decide(monkeypatch, choice: str | None) -> Backend:
    """The decision anew, leaving the process's own as it is."""
    if choice is None:
        monkeypatch.delenv("HELIOS_KERNELS", raising=False)
    else:
        monkeypatch.setenv("HELIOS_KERNELS", choice)
    return backend()


@no_gpu
@pytest.mark.parametrize(
    ("choice", "reason"),
    [(None, "PyTorch sees no GPU"), ("auto", "PyTorch sees no GPU"), ("reference", "HELIOS_KERNELS=reference")],
)
def test_the_choice_has_a_reason(choice, reason, monkeypatch):
    decided = decide(monkeypatch, choice)
    assert (decided.name, decided.reason) == ("reference", reason)


@no_gpu
@pytest.mark.parametrize(
    ("choice", "said"),
    [("triton", "HELIOS_KERNELS=triton, but PyTorch sees no GPU"), ("cuda", "must be one of auto, triton, reference")],
)
def test_a_choice_that_cannot_be_had_is_refused(choice, said, monkeypatch):
    with pytest.raises(RuntimeError, match=said):
        decide(monkeypatch, choice)


@pytest.mark.process
def test_importing_brings_in_no_triton():
    assert python("import sys, helios_kernels, helios_kernels.check; print('triton' in sys.modules)") == "False"


@pytest.mark.process
def test_kernels_run_only_where_no_gradient_is_recorded():
    """Through the interpreter, where there is always something to run them."""
    code = (
        "import torch, helios_kernels\n"
        "x = torch.zeros(1)\n"
        "recording = helios_kernels.runs(x, 'renoise')\n"
        "with torch.no_grad():\n"
        "    print(helios_kernels.backend().name, recording, helios_kernels.runs(x, 'renoise'))\n"
    )
    assert python(code, TRITON_INTERPRET="1") == "triton False True"


@no_gpu
def test_the_bench_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setenv("HELIOS_KERNELS", "auto")
    assert main(["bench", "kernels"]) == 3
    assert capsys.readouterr().err.startswith(f"error: no kernel can be timed here: {backend().reason}\n")


NEEDED = {
    "`modulated_norm`": ("modulated_norm", "stage2"),
    "`gated_residual`": ("gated_residual", "stage2"),
    "`gated_residual_modulated_norm`": ("gated_residual_modulated_norm", "stage2"),
    "the same after cross-attention": ("gated_residual_modulated_norm", "stage2-cross"),
    "`gated_residual_layer_norm`": ("gated_residual_layer_norm", "stage2"),
    "`modulated_norm_fp8`": ("modulated_norm_fp8", "stage2"),
    "`gated_residual_modulated_norm_fp8`": ("gated_residual_modulated_norm_fp8", "stage2"),
    "`qk_norm_rope`": ("qk_norm_rope", "stage2"),
    "`attention`": ("attention", "stage2-self"),
    "`attention_8bit`": ("attention_8bit", "stage2-self-int8"),
    "`channel_extremes`": ("channel_extremes", "stage2"),
    "`round_heads`": ("round_heads", "stage2-keys-int8"),
    "`quantize`": ("quantize", "stage2-gelu"),
    "`renoise`": ("renoise", "into-stage2"),
    "`dmd_step`": ("dmd_step", "stage2"),
    "`vae_norm_silu`": ("vae_norm_silu", "C96-384x640"),
    "`causal_pad`": ("causal_pad", "C96-384x640"),
    "`causal_sum_pad`": ("causal_sum_pad", "C96-384x640-shortcut"),
    "`causal_conv`": ("causal_conv", "C96-384x640-shortcut"),
    "`causal_conv_norm`": ("causal_conv_norm", "C96-384x640-shortcut"),
}


@torch.no_grad()
def test_the_readme_has_the_bytes_that_operations_move():
    """Counted by hand there: megabytes that a kernel has to read and write."""
    table = (Path(__file__).parents[2] / "kernels/README.md").read_text().split("## Which one runs")[0]
    needed = dict(re.findall(r"^\| ([^|]+) \|.* ([\d,.]+) \|$", table, re.MULTILINE))
    for name, (operation, case_id) in NEEDED.items():
        op = OPS[operation]
        case = next(case for case in op.cases if case.id == case_id)
        moved = op.moved_bytes(op.inputs(case, torch.bfloat16, torch.device("meta"))) / 1e6
        assert moved == pytest.approx(float(needed[name].replace(",", "")), rel=2e-3, abs=0.05), name


def seconds_here(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
@pytest.mark.parametrize(("op", "case", "bound"), [("attention", "Q1-K1", "copy"), ("renoise", "odd", "copy")])
def test_a_kernel_is_timed_beside_each_of_pytorchs_own(op, case, bound, monkeypatch):
    """On a CPU, where the plain path is what is timed; it has no attention of cuDNN's."""
    monkeypatch.setattr(bench, "gpu_seconds", seconds_here)
    one = next(known for known in OPS[op].cases if known.id == case)
    slow = bench.Ceiling(copy=1e18, product=1e18)
    row = bench._timed(OPS[op], one, slow, torch.device("cpu"), against_compile=False)
    assert set(row.baselines) == ({"flash"} if op == "attention" else {"eager"})
    assert row.bound == bound and row.over_eager == pytest.approx(min(row.baselines.values()) / row.milliseconds)
    assert row.short_of == (None if op == "attention" else "85% of a copy")
    assert case in str(row) and min(row.baselines) in str(row)


@pytest.mark.parametrize(
    ("share", "theirs", "expected"),
    [
        (0.84, {"eager": 9.0}, "85% of a copy"),
        (0.86, {"eager": 0.5}, None),
        (0.2, {"cudnn": 0.9, "flash": 2.0}, "cuDNN"),
        (0.2, {"cudnn": 1.1, "flash": 0.5}, None),
        (0.2, {"flash": 0.5}, None),
    ],
)
def test_a_mark_stands_where_an_aim_is_missed(share, theirs, expected):
    assert bench.short_of(share, 1.0, theirs) == expected


@pytest.mark.parametrize(
    ("said", "clock", "watts"),
    [("1980, 650.25", 1980, 650.25), ("1980, [N/A]", 1980, None), ("No devices", None, None)],
)
def test_what_a_chip_sustains_comes_with_clock_and_watts(said, clock, watts, tmp_path, monkeypatch):
    """Clock and power are recorded while the chip works, if the driver reports them."""
    program(tmp_path / "nvidia-smi", f'echo "$@" > {tmp_path}/asked; echo "{said}"')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="0f3c"))
    calls = []
    found = sustained(lambda: calls.append(time.sleep(0.001)), seconds=0.05)
    assert (found.clock, found.watts) == (clock, watts) and len(calls) > 2
    assert found.seconds >= 0.001
    assert (tmp_path / "asked").read_text().endswith("-i GPU-0f3c\n")


def test_where_no_driver_tells_anything_the_rate_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("synchronize", "current_device"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace())
    found = sustained(lambda: time.sleep(0.001), seconds=0.01)
    assert (found.clock, found.watts) == (None, None) and found.seconds > 0


@pytest.mark.parametrize("name", [name for name in OPS if name != "attention_pointers"])
def test_the_plain_path_is_the_twin(name):
    """Without Triton the public function does what the twin does, in place where it says so."""
    op = OPS[name]
    if backend().chip is not None:
        pytest.skip("kernels run here")
    with torch.no_grad():
        for result in compare(
            op, next(case for case in op.cases if case.interpreted), torch.float32, torch.device("cpu")
        ):
            torch.testing.assert_close(result.ours, result.native, rtol=1e-5, atol=1e-5)


class Properties:
    def __init__(self, major: int, minor: int) -> None:
        self.major, self.minor = major, minor


@pytest.mark.skipif(torch.version.hip is not None, reason="CUDA's numbering")
@pytest.mark.parametrize(
    ("capability", "chip"),
    [
        ((7, 5), None),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_120"),
        ((12, 1), "sm_120"),
        ((13, 0), None),
    ],
)
def test_chips_have_the_configurations_they_can_hold(capability, chip):
    assert chip_of(Properties(*capability)) == chip


@pytest.mark.parametrize("chip", CHIPS)
def test_what_has_no_kernel_on_a_chip_is_left_to_pytorch(chip, monkeypatch):
    """Convolutions and both forms of attention are chosen by the shape of what they get."""
    monkeypatch.setattr(dispatch, "chip_of", lambda properties: chip)
    off = dispatch._on_gpu(SimpleNamespace(name="a GPU"), "3.9").off
    chosen = {"causal_conv", "causal_conv_norm", "attention_pointers"}
    assert off.keys() == OPS.keys() - chosen - {*trial.operations(chip)}


def test_rows_less_a_mean_that_no_kernel_computes_are_left_to_pytorch():
    x, sizes = torch.randn(1, 5, 2, 64), {"over": "row", "centred": True}
    assert round_heads.takes(x, torch.int8, "row") and round_heads.takes(x, torch.int8, "head", centred=True)
    assert not round_heads.takes(x, torch.int8, **sizes)
    values, scales = round_heads(x, torch.int8, **sizes)
    torch.testing.assert_close(values * scales, x - x.mean(1, keepdim=True), rtol=0, atol=x.abs().max().item() / 127)


def test_only_rows_that_start_askew_are_copied():
    product = torch.randn(2, 9, 3 * 64, dtype=torch.bfloat16)
    q = product[..., :64].unflatten(-1, (2, 32))
    assert aligned(q) is q
    askew = torch.randn(2, 9, 3 * 64 + 1, dtype=torch.bfloat16)[..., :64].unflatten(-1, (2, 32))
    assert aligned(askew).is_contiguous() and torch.equal(aligned(askew), askew)
