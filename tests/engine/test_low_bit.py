"""Weights in 8 and 4 bits: rounding against published levels, copies, and renders from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import helios_cli
from helios_cli.bench.fidelity import distances, film
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import RandomModels, write_checkpoint
from helios_cli.bench.task import plan_of
from helios_cli.engine.convert import convert
from helios_cli.engine.models import Models
from helios_cli.errors import MachineError
from helios_cli.model.low_bit import LOW_BITS, LowBitLinear, levels, round_weight, shapes, use_low_bit, widen
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import SCALE_SUFFIX
from helios_cli.weights.low_bit import BYTES, is_low_bit, kind_of
from helios_cli.weights.placement import Placement

CPU = torch.device("cpu")

PUBLISHED = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of QLoRA (Dettmers et al. 2023, appendix E)."""


def test_the_levels_are_those_that_were_published():
    assert torch.allclose(levels(), torch.tensor(PUBLISHED), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", LOW_BITS)
def test_each_weight_is_the_nearest_there_is(kind):
    torch.manual_seed(0)
    weight = torch.randn(1030, 128)
    values, scales = round_weight(weight, kind)
    assert (values.shape, scales.shape) == shapes(1030, 128, kind)
    found = widen(values, scales, torch.float32)
    if kind == "int8":
        choices = torch.arange(-127, 128).float() * (weight.abs().amax(1) / 127)[:, None, None]
        groups = weight
    else:
        groups = weight.view(-1, 64)
        choices = torch.tensor(PUBLISHED) * groups.abs().amax(1)[:, None, None]
    for first in range(0, len(groups), 50):
        rows = slice(first, first + 50)
        apart = (groups[rows, :, None] - choices[rows]).abs().amin(-1)
        assert torch.allclose((found.view(groups.shape)[rows] - groups[rows]).abs(), apart, atol=1e-6)
    assert torch.equal(widen(values, scales, torch.bfloat16), found.bfloat16())


@pytest.mark.oracle
def test_nf4_is_that_of_bitsandbytes():
    functional = pytest.importorskip(
        "bitsandbytes.functional", reason="bitsandbytes, another implementation, is missing"
    )
    weight = torch.randn(256, 512)
    values, scales = round_weight(weight, "nf4")
    theirs, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    assert torch.equal(theirs.view(-1), values.view(-1)) and torch.equal(state.absmax.view(-1), scales)
    widened = widen(values, scales, torch.float32)
    torch.testing.assert_close(functional.dequantize_4bit(theirs, state), widened, rtol=1e-6, atol=1e-6)  # its table


def test_a_row_of_zeros_stays_one():
    for kind in LOW_BITS:
        assert not widen(*round_weight(torch.zeros(2, 64), kind), torch.bfloat16).any()


def test_sizes_that_nf4_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="nf4 needs multiples of 64"):
        use_low_bit(nn.ModuleDict({"x": nn.Linear(32, 64)}), lambda name: name == "x.weight", "nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), SPECS["tiny"], dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def copies(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("copies")
    for kind in LOW_BITS:
        convert(Checkpoint.open(folder), out / kind, kind, lambda count: None)
    return {kind: Checkpoint.open(out / kind) for kind in LOW_BITS}


@pytest.mark.parametrize("kind", LOW_BITS)
def test_a_copy_is_kept_as_it_is_stored(kind, folder, copies):
    copy, original = copies[kind].component("transformer"), Checkpoint.open(folder).component("transformer")
    assert kind_of(copy.dtypes) == kind and kind_of(original.dtypes) is None
    assert copy.parameters == original.parameters
    plain = Models(Checkpoint.open(folder), CPU, torch.bfloat16).dit.state_dict()
    models = Models(copies[kind], CPU, torch.bfloat16)
    found = models.dit.state_dict()
    for name, value in plain.items():
        if is_low_bit(name):
            values, scales = round_weight(value, kind)
            assert torch.equal(found[name], values) and torch.equal(found[name + SCALE_SUFFIX], scales)
        else:
            assert torch.equal(found[name], value)
    layers = {name: layer for name, layer in models.dit.named_modules() if isinstance(layer, LowBitLinear)}
    assert len(layers) == 8 * len(models.dit.blocks) and not any("attn2.to_k" in name for name in layers)
    rounded = sum(layer.weight.nbytes + layer.weight_scale.nbytes for layer in layers.values())
    weights = sum(plain[f"{name}.weight"].numel() for name in layers)
    assert rounded == pytest.approx(BYTES[kind] * weights, rel=0.05)  # int8's scales are 3 % of a model this narrow


@pytest.mark.slow
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", LOW_BITS)
def test_renders_from_a_copy(kind, folder, copies):
    """The film is that of the widened weights in a plain model, streamed or not, and near the original's."""
    plan = plan_of(copies[kind].defaults, frames=33, size=(64, 64), steps=(1, 1, 1), seed=0)
    films = {}
    for name, placement in (("whole", Placement()), ("streamed", Placement("stream", resident=2))):
        models = Models(copies[kind], CPU, torch.bfloat16, placement=placement)
        films[name] = film(models, plan)
        models.unload()
    plain = Models(Checkpoint.open(folder), CPU, torch.bfloat16)
    films["original"] = film(plain, plan)
    with torch.inference_mode():
        for name, parameter in plain.dit.named_parameters():
            if is_low_bit(name):
                parameter.copy_(widen(*round_weight(parameter, kind), torch.bfloat16))
    films["widened"] = film(plain, plan)
    for name in ("streamed", "widened"):
        for ours, theirs in zip(films["whole"], films[name], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    (distance,) = distances(films["whole"], films["original"])
    assert distance.latents_db > (35 if kind == "int8" else 20)


def test_weights_are_not_rounded_twice(copies):
    with pytest.raises(MachineError, match="stored in nf4, and are not rounded twice"):
        Models(copies["nf4"], CPU, torch.bfloat16, quant="fp8")


@pytest.mark.parametrize("kind", LOW_BITS)
def test_a_plan_counts_no_fp8_for_weights_that_are_rounded_already(kind, copies):
    """As a render, which takes what --speed would round as it is, and refuses --quant."""
    how = {"model": str(copies[kind].path), "on": "H100", "frames": 33}
    fast, exact = (helios_cli.plan("a red ball", speed=speed, **how) for speed in ("fast", "exact"))
    assert not any(taken.is_taken for taken in fast.taken if taken.key == "quant")
    assert fast.duration == exact.duration and fast.memory == exact.memory
    with pytest.raises(MachineError, match=f"stored in {kind}, and are not rounded twice"):
        helios_cli.plan("a red ball", quant="fp8", **how)


def test_a_synthetic_model_is_not_low_bit():
    assert RandomModels(SPECS["tiny"], CPU, torch.bfloat16, name="tiny").checkpoint.low_bit is None
