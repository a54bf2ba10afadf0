"""The fp8 products: which operands are rounded, how, and how far the flow is from that in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import helios_kernels as kernels
from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import RandomModels, write_checkpoint
from helios_cli.engine.models import Models
from helios_cli.errors import InputError
from helios_cli.model.dit import HeliosDiT
from helios_cli.model.fp8 import Fp8, Fp8Linear, product, use_fp8
from helios_cli.model.ops import side_by_side
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import SCALE_SUFFIX, dtype_with, is_fp8, quantize_weight

CPU = torch.device("cpu")


def small() -> HeliosDiT:
    config = DiTConfig.from_json(SPECS["tiny"].transformer)
    with torch.device("meta"):
        return HeliosDiT(config)


def test_a_product_is_that_of_the_rounded_factors():
    """`_scaled_mm` against the same product written out in float64: what is left is bfloat16's own rounding."""
    torch.manual_seed(0)
    x, bias = torch.randn(2, 37, 64), torch.randn(48).bfloat16()
    weight, scale = quantize_weight(torch.randn(48, 64))
    activation = Fp8.of(x)
    y = product(activation, weight, scale, bias)
    exact = (activation.values.double() * activation.scales) @ (weight.double() * scale[:, None]).T + bias.double()
    assert y.shape == (2, 37, 48) and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=2**-8)


def test_a_weight_is_within_half_a_step_of_its_rounded_self():
    """The format e4m3 has 3 bits after the leading one: a relative error of 1/16 at most, above its subnormal
    numbers."""
    weight = torch.randn(64, 256)
    values, scale = quantize_weight(weight)
    error = (values.float() * scale[:, None] - weight).abs()
    assert (error <= weight.abs() / 16 + scale[:, None] * 2**-10).all()
    assert torch.equal(values.float().abs().amax(1), torch.full((64,), 448.0))


def test_self_attention_and_feed_forward_are_replaced_and_nothing_else():
    names = {name for name, layer in use_fp8(small(), is_fp8).named_modules() if isinstance(layer, Fp8Linear)}
    layers = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")
    assert names == {f"blocks.{i}.{layer}" for i in range(6) for layer in layers}


def test_sizes_that_no_chip_multiplies_are_refused():
    with pytest.raises(ValueError, match="8x24; fp8 products need multiples of 16"):
        use_fp8(nn.ModuleDict({"x": nn.Linear(24, 8)}), lambda name: name == "x.weight")


def test_joined_weights_are_one_product():
    block = use_fp8(small(), is_fp8).blocks[0].attn1.to_empty(device=CPU)
    for layer in (block.to_q, block.to_k, block.to_v):
        layer.weight.data, layer.weight_scale.data = quantize_weight(torch.randn(128, 128))
    before = [layer.weight.float().clone() for layer in (block.to_q, block.to_k, block.to_v)]
    block.join()
    after = [layer.weight.float() for layer in (block.to_q, block.to_k, block.to_v)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert block.to_k.weight.storage_offset() == block.to_q.weight.numel()
    assert block.to_v.weight_scale.untyped_storage().data_ptr() == block.to_q.weight_scale.untyped_storage().data_ptr()
    assert side_by_side(block.norm_q.weight, block.norm_k.weight).shape == (2 * 128,)


def test_rows_of_a_rounded_activation_are_the_rounded_rows():
    x = torch.randn(2, 9, 32)
    found, wanted = Fp8.of(x).rows(5), Fp8.of(x[:, 5:])
    assert torch.equal(found.values.float(), wanted.values.float()) and torch.equal(found.scales, wanted.scales)


@torch.inference_mode()
def test_the_last_block_rounds_its_rows_once(monkeypatch):
    """Queries of some rows, keys and values of all: what they are where each rounds by itself."""
    models = RandomModels(SPECS["tiny"], CPU, torch.bfloat16, name="tiny", quant="fp8")
    attention, rope = models.dit.blocks[-1].attn1, torch.randn(9, 16, 2)
    x = torch.randn(1, 9, 128).bfloat16()
    wanted = attention.query(x[:, 5:], rope[5:]), *attention.key_value(x, rope)
    rounded = []
    monkeypatch.setattr(kernels, "quantize", lambda x, gelu, f=kernels.quantize: rounded.append(1) or f(x, gelu=gelu))
    found = attention.query_key_value(x, rope, 5)
    assert len(rounded) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), SPECS["tiny"], dtype=torch.bfloat16)


def test_weights_are_rounded_as_they_are_loaded(folder):
    plain = Models(Checkpoint.open(folder), CPU, torch.bfloat16).dit.state_dict()
    found = Models(Checkpoint.open(folder), CPU, torch.bfloat16, quant="fp8").dit.state_dict()
    assert found.keys() == plain.keys() | {name + SCALE_SUFFIX for name in plain if is_fp8(name)}
    for name, value in plain.items():
        if is_fp8(name):
            values, scale = quantize_weight(value)
            assert torch.equal(found[name].float(), values.float())
            assert torch.equal(found[name + SCALE_SUFFIX], scale)
        else:
            assert torch.equal(found[name], value)


@torch.inference_mode()
def test_the_flow_stays_near_bfloat16s():
    """Signal to noise of 30 dB on these weights; bfloat16 itself has 38 dB against float32."""
    flows = []
    for quant in ("none", "fp8"):
        models = RandomModels(SPECS["tiny"], CPU, torch.bfloat16, name="tiny", quant=quant)
        dit = models.dit
        torch.manual_seed(0)
        history = dit.embed_history(*(torch.randn(1, 16, frames, 8, 16) for frames in (16, 2, 2)))
        text, mods = dit.embed_text(torch.randn(1, 7, 64)), dit.modulation(torch.tensor([500.0]))
        flows.append(dit(torch.randn(1, 16, 9, 8, 16), history, mods, dit.rope((4, 8), (4, 8)), text).float())
    noise = (flows[1] - flows[0]).square().mean() / flows[0].var()
    assert 0 < noise < 10**-2.7


@pytest.mark.parametrize(("asked", "found"), [("auto", "bfloat16"), ("bfloat16", "bfloat16")])
def test_the_rest_is_bfloat16(asked, found):
    assert dtype_with("fp8", asked) == found
    assert dtype_with("none", asked) == asked


def test_another_dtype_beside_fp8_is_refused():
    with pytest.raises(InputError, match="bfloat16, not float32"):
        dtype_with("fp8", "float32")
