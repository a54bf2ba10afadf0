"""The trial of this machine's arithmetic: a fault is found before any film, and another way is taken."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helios_cli import cli, machine
from helios_cli.bench import selftest
from helios_cli.bench.screening import Showing, films
from helios_cli.engine import arithmetic
from helios_cli.engine.models import Models
from helios_cli.model import ops, products
from helios_cli.units import FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.names import EMBEDDED_FOLDER

CPU = torch.device("cpu")
OPERATIONS = {"linear", "matmul", "convolve", "convolve_pictures", "pointwise", "attention sdpa"}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(arithmetic, "_tried", {})
    monkeypatch.setattr(ops, "WIDER", {})


def tiny(dtype: torch.dtype = torch.bfloat16) -> Models:
    return Models(Checkpoint.open(EMBEDDED_FOLDER), CPU, dtype, name="tiny")


@pytest.fixture
def broken(monkeypatch) -> str:
    """Convolutions of clips give the channels of their neighbours, in the type that bfloat16 is computed in here; that
    type's name."""
    wrong_in = ops.product_dtype(torch.zeros(1, dtype=torch.bfloat16), "convolve")

    def breaking(convolution):
        def wrong(x, *rest):
            y = convolution(x, *rest)
            return y.roll(1, dims=1) if x.dtype == wrong_in else y

        return wrong

    monkeypatch.setattr(torch, "mkldnn_convolution", breaking(torch.mkldnn_convolution))
    monkeypatch.setattr(F, "conv3d", breaking(F.conv3d))
    return str(wrong_in).removeprefix("torch.")


@pytest.fixture
def one_chunk(monkeypatch):
    """The first chunk of the golden alone: convolutions in float64, which are right, take seconds for each."""
    golden = selftest.read_golden()
    monkeypatch.setattr(selftest, "read_golden", lambda: replace(golden, frames=golden.frames[:1]))
    monkeypatch.setattr(selftest, "CHUNKS", 1)


def test_every_operation_is_tried_in_the_type_of_the_film_and_in_float32():
    found = {(one.operation, one.dtype): one for one in arithmetic.tried(tiny())}
    assert {(name, dtype) for name in OPERATIONS for dtype in ("bfloat16", "float32")} <= found.keys()
    # Whatever processor this is: what is not right in float32 has no fallback worth its name.
    for one in found.values():
        assert one.is_right or one.dtype == "bfloat16", one


def test_products_of_a_film_are_those_that_are_tried(monkeypatch):
    """Layers of a rendered film call oneDNN with weights and strides that the trial calls it with too."""
    called = set()
    convolve = torch.mkldnn_convolution

    def noting(x, weight, bias, padding, stride, *rest):
        called.add((tuple(weight.shape), tuple(stride)))
        return convolve(x, weight, bias, padding, stride, *rest)

    monkeypatch.setattr(torch, "mkldnn_convolution", noting)
    models = tiny(torch.float32)
    products.try_products((case for case in products.cases(*_shapes(models), CPU) if "frames" in case.name), (), CPU)
    tried = called.copy()
    called.clear()
    with torch.inference_mode():
        for _ in models.vae.decode(torch.randn(1, 16, 2, 8, 16)):
            pass
    assert called and called <= tried


def _shapes(models: Models) -> tuple:
    return models.dit_config, models.vae_config, models.text_config, models.checkpoint.native_size


def test_it_is_tried_once_and_remembered(monkeypatch):
    found = arithmetic.tried(tiny())
    monkeypatch.setattr(arithmetic, "_tried", {})  # another process
    monkeypatch.setattr(products, "try_products", lambda *_: pytest.fail("tried again"))
    assert arithmetic.tried(tiny()) == found
    assert {(one.operation, one.dtype) for one in arithmetic.known(CPU)} == {
        (one.operation, one.dtype) for one in found
    }


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"])
def test_other_instructions_are_another_device(variable, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    before = arithmetic.device_key(CPU)
    monkeypatch.setenv(variable, "AVX2")
    assert arithmetic.device_key(CPU) != before


@pytest.mark.slow
def test_a_small_model_does_not_drift_in_bfloat16():
    """With latents in bfloat16, this film is at 24 dB in its tenth chunk; decoding alone is at 55 dB in all of them."""
    chunks = []
    for dtype in (torch.bfloat16, torch.float32):
        (film,) = films(tiny(dtype), ["a red ball rolls to the left"], 10 * FRAMES_PER_CHUNK, Showing())
        chunks.append(np.split(film, 10))
    assert min(selftest.psnr(*chunks)) > 50


@pytest.mark.slow
def test_a_home_that_cannot_be_written_or_read(monkeypatch, tmp_path):
    """Tried in every process, and the film goes on; what is in a damaged file is not believed."""
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    found = arithmetic.tried(tiny())
    assert found and arithmetic.tried(tiny()) is found
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    for damage in ({}, {"linear": 1}, [{"operation": "linear"}], None):
        monkeypatch.setattr(arithmetic, "_tried", {})
        devices = {arithmetic.device_key(CPU): {arithmetic._model_key(tiny(), CPU): damage}}
        (machine.home() / machine.ARITHMETIC).write_text(json.dumps({"version": 1, "devices": devices}))
        assert [one.operation for one in arithmetic.tried(tiny())] == [one.operation for one in found]


@pytest.mark.slow
def test_a_convolution_that_is_wrong_is_found_and_the_film_is_right(broken, one_chunk, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--test", "--json"]) == 3
    out, err = capsys.readouterr()
    assert "computes wrong results in" in err and broken in err
    tested = {one["dtype"]: one for one in json.loads(out)["test"]}
    assert not tested["bfloat16"]["right"] and any("convolve in" in fault for fault in tested["bfloat16"]["faults"])
    for one in tested.values():  # for it was computed otherwise
        assert all(psnr >= one["least_db"] for psnr in one["chunks_db"]), one
    ops.WIDER.clear()
    assert cli.main(["render", "a red ball rolls left", "-m", "tiny", "--dtype", "bfloat16", "--frames", "9"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert f"convolve in {broken} is wrong here" in err and ops.WIDER
    assert cli.main(["doctor"]) == 0
    assert f"convolve in {broken} is wrong here" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_film_with_a_wrong_convolution_would_be_seen(broken, one_chunk, monkeypatch, capsys):
    """The golden pictures alone tell, where no product was found wrong."""
    monkeypatch.setattr(products, "BOUND", dict.fromkeys(products.BOUND, math.inf))
    assert cli.main(["doctor", "--test", "--json"]) == 3
    tested = {one["dtype"]: one for one in json.loads(capsys.readouterr().out)["test"]}
    assert max(tested["bfloat16"]["chunks_db"]) < tested["bfloat16"]["least_db"] and not tested["bfloat16"]["faults"]


@pytest.mark.parametrize("operation", sorted(OPERATIONS - {"convolve"}))
def test_every_operation_that_is_wrong_is_found(operation, monkeypatch):
    """One value of each result is that of its neighbour, in bfloat16."""
    cases = []
    for case in products.cases(*_shapes(tiny()), CPU):
        if case.operation == operation:
            cases.append(_with_one_value_wrong(case))
    found = products.try_products(cases, [torch.bfloat16], CPU)
    assert {(one.dtype, one.is_right, one.computed_in) for one in found} == {
        ("float32", True, "float32"),
        ("bfloat16", False, "float32"),
    }


def _with_one_value_wrong(case: products.Case) -> products.Case:
    def call(*tensors):
        y = case.call(*tensors).clone()
        if tensors[0].dtype == torch.bfloat16:
            y.view(-1)[y.numel() // 2] += 0.5 * y.float().square().mean().sqrt()
        return y

    return replace(case, call=call)


LIMITS = {
    "as it is": ({}, None),
    "AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx2"),
    "AVX512_CORE": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "avx512f"),
    "AVX512_CORE_BF16": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "avx512_bf16"),
    "ATen's default": ({"ATEN_CPU_CAPABILITY": "default"}, None),
}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", LIMITS)
def test_films_are_right_on_every_instruction_set(name):
    """In every dtype, whatever oneDNN and PyTorch are held to: as far as this processor goes."""
    limits, needed = LIMITS[name]
    if needed and needed not in machine.cpu().features:
        pytest.skip(f"this processor has no {needed}")
    command = [sys.executable, "-m", "helios_cli", "doctor", "--test", "--json"]
    done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert all(f"{key}={value}" in report["arithmetic"]["device"] for key, value in limits.items())
    for one in report["test"]:
        assert one["right"] and min(one["chunks_db"]) >= one["least_db"], one
