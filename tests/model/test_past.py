"""Keys and values of history rows that pass from call to call: against calls that have these rows, and by hand."""

from __future__ import annotations

import pytest
import torch

from helios_cli.architecture import DiTConfig
from helios_cli.bench import specs
from helios_cli.model.block import Block, Past, Rows
from helios_cli.model.dit import Call, HeliosDiT
from support.meta_networks import SMALL

SIZE = (4, 6)
"""Rows and columns of patches."""


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "amplified"])
def dit(request) -> HeliosDiT:
    torch.manual_seed(0)
    config = DiTConfig.from_json({**specs.TRANSFORMER, **SMALL, "is_amplify_history": request.param})
    return HeliosDiT(config).requires_grad_(False).eval()


def call_of(dit: HeliosDiT, seed: int = 0, *, timestep: float = 500.0) -> Call:
    torch.manual_seed(seed)
    rows, columns = (2 * size for size in SIZE)
    history = dit.embed_history(*(torch.randn(1, 16, frames, rows, columns) for frames in (16, 2, 2)))
    text = dit.embed_text(torch.randn(1, 7, dit.config.text_dim))
    mods = dit.modulation(torch.full((1,), timestep))
    return Call(torch.randn(1, 16, 9, rows, columns), history, mods, dit.rope(SIZE, SIZE), text)


@torch.inference_mode()
def test_a_call_that_leaves_them_is_the_call_itself(dit):
    call = call_of(dit)
    past = dit.empty_past()
    leaving = call._replace(past=past)
    assert not leaving.has_past
    assert torch.equal(dit(*leaving), dit(*call)) and leaving.has_past
    rows = call.history_BME.shape[1]
    assert {tuple(one.keys.shape) for one in past} == {(1, rows, dit.config.num_attention_heads, 16)}
    assert all(one.keys.untyped_storage().nbytes() == one.keys.nbytes for one in past)  # no more than the rows


@torch.inference_mode()
def test_a_history_that_does_not_change_gives_the_same_flow(dit):
    """The same call without its history rows: nothing that they would compute is different."""
    call = call_of(dit)._replace(past=dit.empty_past())
    flow = dit(*call)
    assert torch.allclose(dit(*call.without_history()), flow, rtol=1e-4, atol=1e-6)
    other = call._replace(noisy_BCTHW=call_of(dit, 1).noisy_BCTHW)
    exact, reused = dit(*other._replace(past=None)), dit(*other.without_history())
    assert not torch.allclose(reused, exact, rtol=1e-3)  # here the rows would have seen other noise
    assert torch.equal(dit(*other.without_history()), reused)  # calls without these rows change nothing


@torch.inference_mode()
def test_attention_is_that_over_both_by_hand(dit):
    """Softmax of queries of noisy rows with kept and own keys, in one block, against plain sums."""
    torch.manual_seed(2)
    block: Block = dit.blocks[1]
    heads, size, history, noisy = dit.config.num_attention_heads, 16, 5, 11
    width = heads * size
    u, rope = torch.randn(1, noisy, width), dit.rope(SIZE, SIZE)[-noisy:]
    past = Past(torch.randn(1, history, heads, size), torch.randn(1, history, heads, size))
    found = block._attend(Rows(u, u, past=past), rope, 0, noisy_only=False)

    def heads_of(layer, norm=None):
        x = u[0] @ layer.weight.T + layer.bias
        if norm is None:
            return x.view(noisy, heads, size)
        x = x / (x.square().mean(-1, keepdim=True) + dit.config.eps).sqrt() * norm.weight
        turned = torch.view_as_complex(x.view(noisy, heads, size // 2, 2)) * torch.view_as_complex(rope)[:, None]
        return torch.view_as_real(turned).flatten(2)

    attn = block.attn1
    q, k, v = heads_of(attn.to_q, attn.norm_q), heads_of(attn.to_k, attn.norm_k), heads_of(attn.to_v)
    k, v = torch.cat([past.keys[0], k]), torch.cat([past.values[0], v])
    weights = torch.einsum("qnd,knd->nqk", q, k).div(size**0.5).softmax(-1)
    out = torch.einsum("nqk,knd->qnd", weights, v).flatten(1)
    expected = out @ attn.to_out[0].weight.T + attn.to_out[0].bias
    assert torch.allclose(found[0], expected, rtol=1e-4, atol=1e-6)
