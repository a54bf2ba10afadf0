"""Configurations that are found on a machine: the fastest that is right, kept, and used from then on."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helios_kernels import devices, dispatch, tuning
from helios_kernels.check import OPS
from helios_kernels.dispatch import compiling_for
from helios_kernels.tuning import TUNABLES, Config, LocalConfigs, Tuning, keep_local
from support.kernel_builds import SHARED_MEMORY, compile_launch, facts, recorded
from support.waiting import LONGEST

WORKER = Path(__file__).parents[1] / "support/kernel_tuning.py"


@pytest.fixture(autouse=True)
def no_file():
    yield
    tuning.use(None)


@pytest.mark.kernels
@pytest.mark.process
def test_the_fastest_that_is_right_is_kept_and_used(tmp_path):
    file = tmp_path / "home" / "kernels.json"
    run = subprocess.run([sys.executable, str(WORKER), str(file)], capture_output=True, text=True, timeout=LONGEST)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["best"] == "num_warps 1, num_stages 1, tile 512, programs 1"
    assert said["refused"] == 1
    assert said["seconds"] == [2.0, 1.0]
    assert said["tiles"] == [2**18, 2**18, 512]
    tuning.use(file)
    assert tuning.of("interpreter").like == "interpreter"


def test_what_is_kept_of_one_kernel_leaves_the_others(tmp_path):
    file = tmp_path / "kernels.json"
    tuning.use(file)
    keep_local("GPU", LocalConfigs("sm_89", "3.7.1", {"renoise": {"num_warps": 4, "tile": 512}}), file)
    keep_local("GPU", LocalConfigs("sm_89", "3.9.0", {"dmd_step": {"num_warps": 2, "tile": 512}}), file)
    keep_local("other", LocalConfigs("sm_90", "3.9.0", {}), file)
    assert set(tuning.of("GPU").configs) == {"renoise", "dmd_step"}
    assert tuning.of("GPU").triton == "3.9.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"version": 2, "devices": {}}',
        '{"version": 1, "devices": {"GPU": {"like": "sm_80"}}}',
        '{"version": 1, "devices": {"GPU": {"like": "sm_80", "triton": "3", "configs": {"x": {"speed": 3}}}}}',
        '{"version": 1, "devices": {"GPU": {"like": "sm_80", "triton": "3", "configs": {"x": {"tile": 3}}}}}',
    ],
)
def test_a_damaged_file_is_no_file(text, tmp_path):
    file = tmp_path / "kernels.json"
    file.write_text(text)
    tuning.use(file)
    assert tuning.of("GPU") is None


def test_a_configuration_that_is_tried_ends_with_the_block():
    tried = Config(num_warps=2, tile=64)
    with tuning.trying("renoise", tried):
        assert tuning.local_config("renoise") == tried
    assert tuning.local_config("renoise") is None


@pytest.fixture
def unshipped(monkeypatch):
    """A GPU that no configuration is shipped for, as far as its properties go."""
    properties = SimpleNamespace(name="NVIDIA X1", major=13, minor=0, gcnArchName="gfx90a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(dispatch, "_borrows", False)
    monkeypatch.setenv("HELIOS_KERNELS", "triton")
    devices.changed()
    yield
    devices.changed()


@pytest.mark.parametrize(("hip", "like"), [(None, "sm_86"), ("7.0", "gfx942")])
def test_a_chip_that_none_are_shipped_for_is_tuned_from_the_nearest(hip, like, unshipped, monkeypatch, tmp_path):
    file = tmp_path / "kernels.json"
    tuning.use(file)
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.raises(RuntimeError, match="bench kernels --tune"):
        dispatch.backend()
    assert tuning.begin() == like == dispatch.current_chip() == dispatch.backend().chip
    assert tuning.config("renoise").tile and tuning.attention_config(128, bias=True).block_q
    tuning.keep(Tuning("renoise", None, None, None, tried=3, refused=3), file)
    assert tuning.of("NVIDIA X1") is None  # nothing ran
    tuning.keep(Tuning("renoise", None, 1.0, 1.0, tried=3, refused=2), file)
    tuning.keep(Tuning("quantize", Config(num_warps=2, tile=64), 1.0, 2.0, tried=3, refused=0), file)
    assert tuning.of("NVIDIA X1").configs == {"quantize": {"num_warps": 2, "num_stages": 1, "tile": 64, "programs": 1}}
    monkeypatch.setattr(dispatch, "_borrows", False)  # another process
    devices.changed()
    assert dispatch.backend().chip == like and not dispatch.backend().borrowed


def test_what_would_be_pytorch_alone_is_not_tuned(unshipped, monkeypatch):
    monkeypatch.setenv("HELIOS_KERNELS", "auto")
    with pytest.raises(RuntimeError, match="no kernel can be tuned here: kernels have not been tried"):
        tuning.begin()


def test_a_shipped_chip_that_has_the_best_already_is_not_written(unshipped, monkeypatch, tmp_path):
    monkeypatch.setattr(dispatch, "chip_of", lambda _: "sm_90")
    tuning.use(tmp_path / "kernels.json")
    assert tuning.begin() == "sm_90"
    tuning.keep(Tuning("renoise", None, 1.0, 1.0, tried=3, refused=2), tmp_path / "kernels.json")
    assert tuning.of("NVIDIA X1") is None


@pytest.mark.kernels
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton builds them")
@pytest.mark.parametrize(("chip", "tried"), [("sm_90", tuning.SPECIALIZED[0]), ("sm_100", tuning.SPECIALIZED[3])])
def test_warps_are_specialised_without_spills(chip, tried):
    """Triton drops the wish without a word where it cannot: what loads by itself gives its registers away."""
    op = OPS["attention"]
    with tuning.trying("attention 128", tried), compiling_for(chip), recorded() as launches, torch.no_grad():
        case = next(case for case in op.cases if case.id == "stage2-self")
        op.run(**op.inputs(case, torch.bfloat16, torch.device("meta")))
    built = compile_launch(launches[0], chip)
    found = facts(built, chip)
    assert found.spilled_bytes == 0 and found.shared_bytes <= SHARED_MEMORY[chip]
    assert found.matrix_instructions and found.tma_instructions
    assert "setmaxnreg" in built.asm["ptx"] and built.metadata.num_warps > tried.num_warps


@pytest.mark.kernels
@pytest.mark.process
def test_specialised_warps_compute_the_same():
    """Through the interpreter, where one loop has the ragged end as well."""
    code = (
        "import torch\n"
        "from helios_kernels import tuning\n"
        "from helios_kernels.check import OPS, compare\n"
        "case = next(case for case in OPS['attention'].cases if case.id == 'Q63-K257-D64-B2')\n"
        "with torch.no_grad(), tuning.trying('attention 64', tuning.SPECIALIZED[1]):\n"
        "    print(*(one.good for one in compare(OPS['attention'], case, torch.float32, torch.device('cpu'))))\n"
    )
    variables = {**os.environ, "TRITON_INTERPRET": "1", "HELIOS_KERNELS": "triton"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=LONGEST)
    assert run.stdout.split() == ["True"], run.stderr


def test_what_is_tuned_is_there():
    """The tuned kernels are all kernels that can be timed, with attention's second kernel listed apart, on cases
    that exist."""
    assert {one.op for one in TUNABLES} | {
        "modulated_norm_fp8",
        "gated_residual",
        "gated_residual_layer_norm",
        "gated_residual_modulated_norm_fp8",
        "attention_pointers",
        "attention_8bit",
        "causal_conv_norm",
        "channel_extremes",
        "round_heads",
        "causal_pad",
        "causal_sum_pad",
        "renoise",
        "dmd_step",
    } == set(OPS)
    for one in TUNABLES:
        cases = {case.id: case for case in OPS[one.op].cases}
        assert all(cases[name].interpreted for name in one.checked)
        assert all(cases[name].real or cases[name].compiled for name in one.timed)
