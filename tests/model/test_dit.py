"""The transformer against diffusers, and each thing that is computed once against computing it every time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from helios_cli.architecture import DiTConfig
from helios_cli.model import attention as attention_module
from helios_cli.model.attention import Backend, attention
from helios_cli.model.dit import FP32_ISLANDS, HeliosDiT, pad_biases
from helios_cli.units import MAX_TEXT_TOKENS, PROMPT_KEYS
from support import checkpoints, oracle
from support.calls import call_ours, call_theirs, inputs
from support.tolerance import assert_as_good, assert_equal_up_to_order

if TYPE_CHECKING:
    from diffusers import HeliosTransformer3DModel


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def pair(**config) -> tuple[HeliosTransformer3DModel, HeliosDiT]:
    torch.manual_seed(0)
    theirs = oracle.transformer(**config)
    ours = HeliosDiT(DiTConfig.from_json(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("height", "width", "shrink"),
    [(8, 16, 1), (16, 8, 4), (24, 16, 2), (12, 20, 1), (6, 14, 1)],
    ids=["wide", "tall-coarse", "middle", "not-of-8", "not-of-4"],
)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"is_amplify_history": True},
        {"is_amplify_history": True, "history_scale_mode": "scalar"},
        {"guidance_cross_attn": False},
        {"zero_history_timestep": False},
        {"cross_attn_norm": False},
    ],
    ids=lambda config: "-".join(f"{key}={value}" for key, value in config.items()) or "released",
)
def test_forward(config, height, width, shrink):
    theirs, ours = pair(**config)
    x = inputs(height, width, shrink)
    for timestep in (torch.tensor([742]), torch.tensor([371.855])):
        expected = call_theirs(theirs, x, timestep)
        assert_equal_up_to_order(call_ours(ours, x, timestep), expected)


@pytest.mark.oracle
def test_low_precision_keeps_the_islands():
    theirs, ours = pair()
    x, timestep = inputs(8, 16), torch.tensor([742])
    exact = call_theirs(theirs, x, timestep)
    theirs.to(torch.bfloat16)
    from diffusers import HeliosTransformer3DModel

    native_islands = HeliosTransformer3DModel._keep_in_fp32_modules
    assert set(native_islands) == FP32_ISLANDS
    for model in (theirs, ours):
        for name, parameter in model.named_parameters():
            island = not FP32_ISLANDS.isdisjoint(name.split("."))
            parameter.data = parameter.data.to(torch.float32 if island else torch.bfloat16)
    # Its rotary buffers are not parameters: they stay float32 in a real load, and .to() above cast them.
    theirs.rope = type(theirs.rope)(checkpoints.DIT["rope_dim"], 10000.0)
    assert ours.dtype == torch.bfloat16
    assert_as_good(call_ours(ours, x, timestep), call_theirs(theirs, x, timestep), exact, "flow")


@pytest.mark.oracle
def test_names_and_shapes_are_those_of_the_published_model():
    """1,101 tensors, 14,312,427,584 parameters, built without memory."""
    from diffusers import HeliosTransformer3DModel

    with torch.device("meta"):
        theirs, ours = HeliosTransformer3DModel(), HeliosDiT(DiTConfig())
    expected = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected
    assert len(expected) == 1101
    assert sum(math.prod(shape) for shape in expected.values()) == 14_312_427_584


@pytest.mark.oracle
def test_rope_tables_are_the_reference_s():
    """The tables hold cos and sin of long, mid, short and noisy rows, pooled where a token covers several cells."""
    theirs, ours = pair()
    seen = []
    block = theirs.blocks[0]
    forward = block.forward
    block.forward = lambda x, text, temb, rope, length: (seen.append(rope), forward(x, text, temb, rope, length))[1]
    x = inputs(20, 12, 2)
    call_theirs(theirs, x, torch.tensor([1]))
    table = ours.rope((10, 6), (5, 3))
    cos, sin = seen[0][0].chunk(2, dim=-1)
    torch.testing.assert_close(table[..., 0], cos[:, ::2], atol=1e-6, rtol=0)
    torch.testing.assert_close(table[..., 1], sin[:, ::2], atol=1e-6, rtol=0)
    assert (cos[0].abs() < 0.999).any(), "no pooled row: the test would not see the mean"


@pytest.mark.parametrize("tokens", [1, 37, MAX_TEXT_TOKENS - 1, MAX_TEXT_TOKENS])
def test_collapsed_padding_equals_512_rows(tokens):
    """One key with a log-count bias stands for all padding rows."""
    ours = checkpoints.transformer()
    x = inputs(8, 8)
    x["text"] = torch.randn(1, tokens, checkpoints.DIT["text_dim"])
    padded = torch.nn.functional.pad(x["text"], (0, 0, 0, MAX_TEXT_TOKENS - tokens))
    naive = call_ours(ours, x, torch.tensor([500]), text=padded)
    collapsed = ours.embed_text(x["text"])
    assert collapsed.keys.shape[2] == min(tokens + 1, MAX_TEXT_TOKENS)
    assert_equal_up_to_order(call_ours(ours, x, torch.tensor([500])), naive)


@pytest.mark.parametrize("tokens", [1, 37, 61, 63, 120, 300, MAX_TEXT_TOKENS - 1, MAX_TEXT_TOKENS])
def test_keys_that_are_left_out_change_nothing(tokens, monkeypatch):
    """On a GPU prompts have a few lengths; here the tensor says that it is on one while it is embedded."""
    ours = checkpoints.transformer()
    x = inputs(8, 8)
    rows = torch.randn(1, tokens, checkpoints.DIT["text_dim"])
    plain = ours.embed_text(rows)
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(torch.Tensor, "is_cuda", True)
        held = ours.embed_text(rows)
    assert held.keys.shape[2] in PROMPT_KEYS and (held.bias is None) == (plain.bias is None)
    rope, mods = ours.rope((4, 4), (4, 4)), ours.modulation(torch.tensor([742]))
    history = ours.embed_history(x["long"], x["mid"], x["short"])
    flows = [ours(x["noisy"], history, mods, rope, text) for text in (held, plain)]
    assert_equal_up_to_order(*flows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [0, 1, 3, 199, 475, 511])
def test_pad_biases_count_every_row(dtype, count):
    biases = torch.tensor(pad_biases(count, dtype))
    assert torch.equal(biases.to(dtype).float(), biases), "a bias is not exact in the dtype it is added in"
    assert abs(biases.double().exp().sum().item() - count) <= 1e-4 * count
    assert len(biases) <= 3


def test_last_block_leaves_out_only_what_nobody_reads():
    """`noisy_only` gives the noisy rows of the whole block."""
    ours = checkpoints.transformer(is_amplify_history=True)
    x = inputs(8, 16)
    history = ours.embed_history(x["long"], x["mid"], x["short"])
    rope, text, mods = ours.rope((4, 8), (4, 8)), ours.embed_text(x["text"]), ours.modulation(torch.tensor([742]))
    split = history.shape[1]
    stream = torch.randn(1, rope.shape[0], ours.config.width)
    args = (mods.blocks[:, 0], rope, (text.keys[0], text.values[0], text.bias), split)
    whole = ours.blocks[0](stream.clone(), *args)
    assert_equal_up_to_order(ours.blocks[0](stream.clone(), *args, noisy_only=True), whole[:, split:])


@pytest.mark.oracle
def test_two_modulation_rows_stand_for_all_tokens():
    """Rows are those of the reference's [B, S, 6, D] tensor: one value for history, one for noisy tokens."""
    theirs, ours = pair()
    seen = []
    block = theirs.blocks[1]
    forward = block.forward
    block.forward = lambda x, text, temb, rope, length: (seen.append(temb), forward(x, text, temb, rope, length))[1]
    x = inputs(8, 8)
    call_theirs(theirs, x, torch.tensor([385]))
    rows = ours.modulation(torch.tensor([385])).blocks[0, 1]
    split = ours.embed_history(x["long"], x["mid"], x["short"]).shape[1]
    full = theirs.blocks[1].scale_shift_table + seen[0][0].float()
    torch.testing.assert_close(full[:split], rows[0].expand(split, -1, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(full[split:], rows[1].expand(len(full) - split, -1, -1), atol=1e-6, rtol=0)


def test_gradients_take_the_same_mathematics():
    """With gradients recorded nothing is written in place; the flow is the same."""
    ours = checkpoints.transformer()
    x, timestep = inputs(8, 8), torch.tensor([742])
    expected = call_ours(ours, x, timestep)
    with torch.enable_grad():
        flow = call_ours(ours, x, timestep)
        flow.square().mean().backward()
    assert_equal_up_to_order(flow, expected)
    missing = [name for name, parameter in ours.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize(("name", "few"), [("blocked", 0), ("blocked", attention_module.FEW_SCORES), ("sdpa", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (300, 41, 3, 16), (257, 513, 2, 64)], ids=str)
def test_attention_backends(name, few, dtype, shape, monkeypatch):
    queries, keys, heads, size = shape
    g = torch.Generator().manual_seed(3)
    q = (2 * torch.randn(2, queries, heads, size, generator=g)).to(dtype)
    k, v = (torch.randn(2, keys, heads, size, generator=g).to(dtype) for _ in range(2))
    bias = torch.zeros(keys)
    bias[-1] = 4.0
    monkeypatch.setattr(attention_module, "cpu_backend", lambda: Backend(name, "the test asks for it"))
    monkeypatch.setattr(attention_module, "FEW_SCORES", few)
    logits = torch.einsum("bqnd,bknd->bnqk", q.double(), k.double()) / size**0.5 + bias.double()
    exact = torch.einsum("bnqk,bknd->bqnd", torch.softmax(logits, -1), v.double()).flatten(2)
    native = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias.to(dtype)[None, None, None]
    )
    assert_as_good(attention(q, k, v, bias), native.transpose(1, 2).flatten(2), exact, name)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm"),
        ({"added_kv_proj_dim": 64}, "added_kv_proj_dim"),
        ({"rope_dim": [4, 4, 4]}, "rope_dim"),
        ({"window_size": [1, 1]}, "window_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_of_another_model_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        DiTConfig.from_json({**checkpoints.DIT, **change})
