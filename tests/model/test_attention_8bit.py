"""Attention in 8 bits: what is rounded, how far the result is, and which kind a GPU takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import helios_kernels as kernels
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import RandomModels
from helios_cli.cost.arithmetic import attention_shapes
from helios_cli.measured import Measured
from helios_cli.model import attention, backends
from helios_cli.model.attention import RUN, RUN_8BIT, Choice, Choice8Bit, nearest_of_the_faster
from helios_cli.units import IN_8_BITS
from helios_kernels.attention_8bit import KINDS, rounded

CPU = torch.device("cpu")


def factors(rows: int = 70, keys: int = 150, size: int = 32) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, count, 3, size).bfloat16() for count in (rows, keys, keys))


def exactly(q, k, v) -> torch.Tensor:
    return F.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_attention_within_its_rounding(kind):
    """Steps of e4m3 are a relative error of up to 2^-4, 2.6 % on average: of weights and values, and of the logits'
    factors."""
    q, k, v = factors()
    found = kernels.attention_8bit(q, k, v, kind)
    assert found.shape == q.shape and found.dtype == q.dtype
    assert 0.01 < backends.distance(found, exactly(q, k, v)) < (0.045 if kind == "int8" else 0.06)


def test_int8_is_nearer():
    q, k, v = factors()
    errors = {kind: backends.distance(kernels.attention_8bit(q, k, v, kind), exactly(q, k, v)) for kind in KINDS}
    assert errors["int8"] < 0.8 * errors["e4m3"]


def test_what_all_keys_share_costs_int8_nothing():
    q, k, v = factors()
    near = backends.distance(kernels.attention_8bit(q, k, v), exactly(q, k, v))
    shifted = k.float() + 20 * torch.randn(1, 1, 3, 32)
    assert backends.distance(kernels.attention_8bit(q.float(), shifted, v.float()), exactly(q, shifted, v)) < 1.2 * near


def test_factors_times_scales_are_the_tensors():
    q, k, v = factors()
    of = rounded(q, k, v, "int8")
    logits = torch.einsum("bqnd,bknd->bnqk", of.q_BQND.double(), of.k_BKND.double()) * of.factors_BNQ[..., None]
    smooth = k.double() - k.double().mean(1, keepdim=True)
    exact = torch.einsum("bqnd,bknd->bnqk", q.double(), smooth) * 32**-0.5 / torch.tensor(2.0).log()
    assert (logits - exact).abs().max() < 0.1 and of.q_BQND.dtype == of.k_BKND.dtype == torch.int8
    values = (of.v_BNDK.double() * of.v_scales_BND[..., None]).permute(0, 3, 1, 2)
    assert ((values - v.double()).abs() <= v.double().abs() / 16 + of.v_scales_BND[:, None] * 2**-10).all()


def test_the_nearest_of_the_faster_is_taken():
    names = ("cudnn", "int8", "e4m3", "fa3-e4m3")
    ms, apart = (
        {"cudnn": 4.0, "int8": 3.5, "e4m3": 3.4, "fa3-e4m3": 3.0},
        {"int8": 0.04, "e4m3": 0.05, "fa3-e4m3": 0.05},
    )

    def taken(names=names, **other: float) -> str:
        return nearest_of_the_faster(Measured("", {**ms, **other}, {}, apart), names)

    assert taken() == "int8"
    assert taken(int8=4.1) == "e4m3"
    assert taken(int8=4.1, e4m3=5.0) == "fa3-e4m3"
    assert taken(cudnn=1.0) == "cudnn"
    assert taken(("cudnn", "fa3-e4m3")) == "fa3-e4m3"  # without kernels
    assert nearest_of_the_faster(Measured("", {}, {"cudnn": "no"}), names) == "cudnn"


def test_kinds_are_measured_against_the_plain_one():
    q, k, v = factors()
    candidates = {"sdpa": RUN["sdpa"], **{name: RUN_8BIT[name] for name in KINDS}}
    found = backends.measure(candidates, q, k, v, None, lambda call: 1.0, backends.AGREES_IN_8_BITS)
    assert set(found.apart) == set(KINDS) and not found.refused
    assert set(backends.measure(candidates, q, k, v, None, lambda call: 1.0).refused) == set(KINDS)


def test_self_attention_alone_is_in_8_bits():
    models = RandomModels(SPECS["tiny"], CPU, torch.bfloat16, name="tiny", quant="fp8+attention")
    q, k, v = factors()
    for block in models.dit.blocks:
        assert block.attn1.choice.of(q, k, v, None) == "int8"
        assert block.attn2.choice.of(q, k, v, None) in RUN
    wanted = kernels.attention_8bit(q, k, v).flatten(2)
    with torch.no_grad():
        assert torch.equal(attention.attention(q, k, v, None, Choice8Bit(Choice())), wanted)


def test_shapes_in_8_bits_have_choices_of_their_own():
    config, how = RandomModels(SPECS["tiny"], CPU, torch.bfloat16, name="tiny").dit_config, ((128, 64), 3, "bfloat16")
    plain = list(attention_shapes(config, *how))
    both = list(attention_shapes(config, *how, quant="fp8+attention"))
    assert [shape for shape in both if not shape.endswith(IN_8_BITS)] == plain
    assert all("bias" not in shape for shape in both if shape.endswith(IN_8_BITS)) and len(both) == len(plain) + 6


def test_flash_attention_3_is_left_alone_where_it_cannot_run():
    assert not attention.has_fa3(CPU)
    assert "fa3" not in Choice()._candidates(torch.empty(1, 8, 2, 32), None)
