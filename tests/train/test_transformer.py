"""The transformer's call in training against diffusers' in train mode: flows and the gradients of every parameter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from helios_cli.architecture import DiTConfig
from helios_cli.model import gradients, ops
from helios_cli.model.attention import attention
from helios_cli.model.dit import FP32_ISLANDS, HeliosDiT
from helios_cli.train.transformer import checkpointed, conditioning_of, flow, flow_and_hidden
from helios_cli.units import LATENTS_PER_CHUNK, LONG_TERM, MAX_TEXT_TOKENS, MID_TERM
from support import checkpoints, oracle
from support.tiers import some
from support.tolerance import assert_equal_up_to_order

if TYPE_CHECKING:
    from diffusers import HeliosTransformer3DModel

BATCH, ROWS = 3, 24
TIMESTEPS = torch.tensor([998.0, 385.0, 12.0])
INDICES = torch.arange(29)


def pair() -> tuple[HeliosTransformer3DModel, HeliosDiT]:
    torch.manual_seed(0)
    theirs = oracle.transformer().train()
    ours = HeliosDiT(DiTConfig.from_json(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def batch(shrink: int = 1) -> dict[str, Tensor]:
    """Three samples, whose captions have 3, 7 and 24 tokens. The second has no past."""
    g = torch.Generator().manual_seed(1)
    shapes = {"long": (LONG_TERM, 8, 16), "mid": (MID_TERM, 8, 16), "short": (2, 8, 16)}
    shapes["noisy"] = shapes["answer"] = (LATENTS_PER_CHUNK, 8 // shrink, 16 // shrink)
    drawn = {name: torch.randn(BATCH, 16, *shape, generator=g) for name, shape in shapes.items()}
    for name in ("long", "mid", "short"):
        drawn[name][1] = 0
    rows = torch.randn(BATCH, ROWS, checkpoints.DIT["text_dim"], generator=g)
    for sample, tokens in enumerate((3, 7, ROWS)):
        rows[sample, tokens:] = 0
    return {**drawn, "rows": rows}


def our_loss(dit: HeliosDiT, x: dict[str, Tensor], **how) -> Tensor:
    told = conditioning_of(dit, (x["long"], x["mid"], x["short"]), x["rows"])
    return (flow(dit, x["noisy"], TIMESTEPS, told, **how).float() - x["answer"]).square().mean()


def their_loss(dit: HeliosTransformer3DModel, x: dict[str, Tensor]) -> Tensor:
    x = {name: value.to(dit.dtype) if name != "answer" else value for name, value in x.items()}
    found = dit(
        hidden_states=x["noisy"],
        timestep=TIMESTEPS,
        encoder_hidden_states=torch.nn.functional.pad(x["rows"], (0, 0, 0, MAX_TEXT_TOKENS - ROWS)),
        indices_hidden_states=INDICES[None, 20:].expand(BATCH, -1),
        indices_latents_history_short=INDICES[None, [0, 19]].expand(BATCH, -1),
        indices_latents_history_mid=INDICES[None, 17:19].expand(BATCH, -1),
        indices_latents_history_long=INDICES[None, 1:17].expand(BATCH, -1),
        latents_history_short=x["short"],
        latents_history_mid=x["mid"],
        latents_history_long=x["long"],
        return_dict=False,
    )[0]
    return (found.float() - x["answer"]).square().mean()


def gradients_of(dit: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(dit.parameters()))
    return {name: g.float() for (name, _), g in zip(dit.named_parameters(), found, strict=True)}


@pytest.mark.oracle
@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_float32_is_diffusers(shrink):
    """A batch of samples with timesteps, pasts and captions of their own, at each stage's size."""
    theirs, ours = pair()
    x = batch(shrink)
    expected, found = their_loss(theirs, x), our_loss(ours, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    wanted = gradients_of(theirs, expected)
    for name, gradient in gradients_of(ours, found).items():
        assert_equal_up_to_order(gradient, wanted[name])


@pytest.mark.oracle
def test_bfloat16_is_as_good_as_diffusers():
    """With rounded products the whole gradient is at most twice as far from the exact one as that of a network whose
    weights are bfloat16 too, with its float32 islands."""
    theirs, ours = pair()
    x = batch(2)
    exact = gradients_of(ours, our_loss(ours, x))
    ours.compute_dtype = torch.bfloat16
    found = gradients_of(ours, our_loss(ours, x))
    for name, parameter in theirs.named_parameters():
        if FP32_ISLANDS.isdisjoint(name.split(".")):
            parameter.data = parameter.data.bfloat16()
    native = gradients_of(theirs, their_loss(theirs, x))
    distance = {
        side: sum((value[name] - exact[name]).square().sum().item() for name in exact) ** 0.5
        for side, value in (("ours", found), ("native", native))
    }
    scale = sum(value.square().sum().item() for value in exact.values()) ** 0.5
    assert distance["ours"] <= 2 * distance["native"], distance
    assert distance["native"] < 0.1 * scale, "the comparison would let anything pass"


def test_padding_to_a_batch_changes_nothing():
    """A caption without rows of zeros after it gives the same result."""
    ours = checkpoints.transformer()
    x = batch()
    with torch.no_grad():
        together = flow(
            ours, x["noisy"], TIMESTEPS, conditioning_of(ours, (x["long"], x["mid"], x["short"]), x["rows"])
        )
        for i, tokens in enumerate((3, 7, ROWS)):
            terms = tuple(x[name][i : i + 1] for name in ("long", "mid", "short"))
            alone = conditioning_of(ours, terms, x["rows"][i : i + 1, :tokens])
            assert_equal_up_to_order(flow(ours, x["noisy"][i : i + 1], TIMESTEPS[i : i + 1], alone)[0], together[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checkpointing_changes_no_gradient(dtype):
    ours = checkpoints.transformer()
    ours.compute_dtype = dtype
    x = batch(2)
    plain, saved = (gradients_of(ours, our_loss(ours, x, **how)) for how in ({}, {"run": checkpointed}))
    for name, gradient in plain.items():
        assert torch.equal(saved[name], gradient), name


def test_checkpointing_keeps_less():
    ours = checkpoints.transformer()

    def kept(**how) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            our_loss(ours, batch(), **how)
        return sum(sizes)

    assert kept(run=checkpointed) < 0.5 * kept()


def test_absolute_positions():
    """Each sample's own, for the ablation: past frames of the film move all positions but the anchor's."""
    ours = checkpoints.transformer()
    x = batch()
    terms = tuple(x[name] for name in ("long", "mid", "short"))
    with torch.no_grad():
        found = flow(ours, x["noisy"], TIMESTEPS, conditioning_of(ours, terms, x["rows"], past_frames=(0, 9, 900)))
        relative = flow(ours, x["noisy"], TIMESTEPS, conditioning_of(ours, terms, x["rows"]))
        assert_equal_up_to_order(found[0], relative[0])
        assert (found[1:] - relative[1:]).abs().amax((1, 2, 3, 4)).min() > 0.01 * relative.abs().max()
        alone = [x[name][2:] for name in ("long", "mid", "short")]
        table = ours.rope((4, 8), (4, 8), 900)
        text, mods = ours.embed_text(x["rows"][2:]), ours.modulation(TIMESTEPS[2:])
        assert_equal_up_to_order(found[2:], ours(x["noisy"][2:], ours.embed_history(*alone), mods, table, text))
    newest = 4 * 1 * 2 + 1 * 2 * 4  # tokens of the long and the mid term; the anchor comes next
    anchor = slice(newest, newest + 4 * 8)
    assert torch.equal(table[anchor], ours.rope((4, 8), (4, 8))[anchor])


def test_hidden_rows():
    """The hidden rows are those of the noisy latents after the requested blocks; the flow is the same."""
    ours = checkpoints.transformer()
    x = batch(2)
    told = conditioning_of(ours, (x["long"], x["mid"], x["short"]), x["rows"])
    seen = []
    handles = [b.register_forward_hook(lambda _m, _a, out: seen.append(out)) for b in ours.blocks]
    plain = flow(ours, x["noisy"], TIMESTEPS, told)
    for handle in handles:
        handle.remove()
    found, hidden = flow_and_hidden(ours, x["noisy"], TIMESTEPS, told, hidden=(0, 1))
    assert torch.equal(found, plain)
    assert torch.equal(hidden[0], seen[0][:, told.history.shape[1] :])
    assert torch.equal(hidden[1], seen[1])
    assert flow_and_hidden(ours, x["noisy"], TIMESTEPS, told, hidden=(1,))[1][0].shape == (BATCH, 9 * 2 * 4, 32)


@pytest.mark.oracle
def test_the_latents_have_a_gradient_where_the_parameters_are_frozen():
    theirs, ours = pair()
    ours.requires_grad_(False)
    x = batch(2)
    x["noisy"].requires_grad_()
    (found,) = torch.autograd.grad(our_loss(ours, x), x["noisy"])
    (expected,) = torch.autograd.grad(their_loss(theirs, x), x["noisy"])
    assert_equal_up_to_order(found, expected)


def doubles(*shape: int, seed: int) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_()


CHAINS = {
    "modulated_norm": lambda split, rows: (
        partial(gradients.modulated_norm, split=split, eps=1e-6),
        (doubles(2, 5, 8, seed=1), doubles(rows, 2, 8, seed=2), doubles(rows, 2, 8, seed=3)),
    ),
    "gated_residual": lambda split, rows: (
        partial(gradients.gated_residual, split=split),
        (doubles(2, 5, 8, seed=1), doubles(2, 5, 8, seed=2), doubles(rows, 2, 8, seed=3)),
    ),
    "gated_residual_layer_norm": lambda split, rows: (
        partial(gradients.gated_residual_layer_norm, split=split, eps=1e-6),
        (
            *(doubles(2, 5, 8, seed=1), doubles(2, 5, 8, seed=2), doubles(rows, 2, 8, seed=3)),
            *(doubles(8, seed=4), doubles(8, seed=5)),
        ),
    ),
    "residual_modulated_norm": lambda split, rows: (
        partial(gradients.residual_modulated_norm, split=split, eps=1e-6),
        (
            *(doubles(2, 5, 8, seed=1), doubles(2, 5 - split, 8, seed=2)),
            *(doubles(rows, 2, 8, seed=3), doubles(rows, 2, 8, seed=4)),
        ),
    ),
}


@pytest.mark.parametrize("rows", some(1, [2, 1]), ids=["each-its-own", "one-timestep"])
@pytest.mark.parametrize("split", [0, 2])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_by_finite_differences(name, split, rows):
    chain, inputs = CHAINS[name](split, rows)
    assert gradcheck(chain, inputs)


@pytest.mark.parametrize("turned", [True, False])
def test_rms_norm_rope_by_finite_differences(turned):
    rope = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) if turned else None
    chain = lambda x, weight: gradients.rms_norm_rope(x, weight, rope, 2, 1e-6)  # noqa: E731
    assert gradcheck(chain, (doubles(2, 5, 8, seed=1), doubles(8, seed=2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*CHAINS, "rms_norm_rope"])
def test_chains_are_those_of_sampling(name, dtype):
    """With and without a gradient recorded, the same numbers; float32 up to the order of its operations."""
    if name == "rms_norm_rope":
        rope = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(3))
        run = partial(ops.rms_norm_rope, rope_SD2=rope, heads=2, eps=1e-6)
        inputs = (doubles(2, 5, 8, seed=1), doubles(8, seed=2))
    else:
        chain, inputs = CHAINS[name](2, 2)
        run = partial(getattr(ops, name), **chain.keywords)
    stream = 1 if name in ("modulated_norm", "rms_norm_rope") else 2
    inputs = [x.detach().to(dtype if i < stream else torch.float32) for i, x in enumerate(inputs)]
    recorded = run(*(x.clone() for x in inputs))
    with torch.no_grad():
        plain = run(*(x.clone() for x in inputs))
    pairs = zip(recorded, plain, strict=True) if isinstance(plain, tuple) else [(recorded, plain)]
    for found, expected in pairs:
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=8e-3 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_attention_with_its_gradients(bias):
    """Explicit products on a CPU, as PyTorch's own attention."""
    q, k, v = (torch.randn(2, n, 3, 16, requires_grad=True) for n in (33, 40, 40))
    added = torch.linspace(-2, 2, 40) if bias else None
    found = attention(q, k, v, added)
    mask = None if added is None else added.expand(33, 40)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2).flatten(2)
    assert_equal_up_to_order(found, expected)
    outer = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(y, (q, k, v), outer) for y in (found, expected))
    for mine, wanted in zip(ours, theirs, strict=True):
        assert_equal_up_to_order(mine, wanted)
