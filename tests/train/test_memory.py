"""Less memory, the same gradients: each way against the plain one."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from helios_cli.model.dit import HeliosDiT
from helios_cli.train.memory import cached_loss, frozen, placed
from helios_cli.train.networks import OneBackbone
from support.distilling import distillation, gradients, network
from support.tiers import some


def inputs(seed: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    drawn = {"noisy": (2, 16, 9, 4, 8), "long": (2, 16, 16, 4, 8), "mid": (2, 16, 2, 4, 8), "short": (2, 16, 2, 4, 8)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in drawn.items()}
    return {**tensors, "rows": torch.randn(2, 5, 64, generator=generator)}


def flow(dit: HeliosDiT, x: dict, noisy: torch.Tensor | None = None) -> torch.Tensor:
    history = dit.embed_history(x["long"], x["mid"], x["short"])
    text, mods = dit.embed_text(x["rows"]), dit.modulation(torch.tensor([700.0, 20.0]))
    return dit(x["noisy"] if noisy is None else noisy, history, mods, dit.rope((2, 4), (2, 4)), text)


def critic() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def test_a_cached_loss_has_the_plain_gradients():
    made, judge, x = nn.Linear(4, 6), critic(), torch.randn(5, 4)
    plain = judge(made(x)).square().mean()
    expected = torch.autograd.grad(4 * plain, list(made.parameters()))
    cached = cached_loss(made(x), lambda sample: judge(sample).square().mean())
    assert cached.item() == plain.item()
    for found, wanted in zip(torch.autograd.grad(4 * cached, list(made.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert all(p.grad is None for p in judge.parameters())


def test_a_cached_loss_by_finite_differences():
    judge = critic().double()
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: cached_loss(s, lambda leaf: judge(leaf).square().mean()), x)


@pytest.mark.slow
def test_a_cached_loss_frees_the_graph_behind_it():
    judge, kept = critic(), []

    def loss_of(sample):
        for layer in judge:
            sample = layer(sample)
            kept.append(weakref.ref(sample))
        return sample.mean()

    x = torch.randn(5, 6, requires_grad=True)
    plain = loss_of(x)
    gc.collect()
    assert any(ref() is not None for ref in kept)  # the plain loss keeps what its backward needs
    del plain
    kept.clear()
    loss = cached_loss(x, loss_of)
    gc.collect()
    assert all(ref() is None for ref in kept)
    loss.backward()
    assert x.grad.abs().sum() > 0


def test_frozen_parameters_get_no_gradient_and_are_trained_afterwards():
    judge, x = critic(), torch.randn(3, 6, requires_grad=True)
    judge[0].bias.requires_grad_(False)
    with frozen(judge):
        judge(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in judge.parameters())
    assert [p.requires_grad for p in judge.parameters()] == [True, False, True, True, True, True]


def test_placed_keeps_the_parameters_that_an_optimizer_has():
    judge = critic()
    before = list(judge.parameters())
    values = [p.detach().clone() for p in before]
    optimizer = torch.optim.SGD(before, 0.1)
    with placed(judge, torch.device("cpu")):
        judge(torch.ones(1, 6)).sum().backward()
        optimizer.step()
    assert all(a is b for a, b in zip(before, judge.parameters(), strict=True))
    assert any((a != b).any() for a, b in zip(before, values, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_placed_moves_there_and_back():
    judge = critic()
    with placed(judge, torch.device("cuda")):
        assert {p.device.type for p in judge.parameters()} == {"cuda"}
        judge(torch.ones(1, 6, device="cuda")).sum().backward()
    assert {p.device.type for p in judge.parameters()} == {p.grad.device.type for p in judge.parameters()} == {"cpu"}


def backbone(rank: int) -> OneBackbone:
    return OneBackbone(network(0), None, rank, torch.device("cpu"))


def test_a_new_adapter_changes_nothing():
    x = inputs()
    expected = flow(network(0), x)
    shared = backbone(rank=4)
    for name in ("student", "fake", "real"):
        with shared.using(name) as dit:
            torch.testing.assert_close(flow(dit, x), expected, rtol=0, atol=0)


def test_an_adapter_of_full_rank_is_the_other_network():
    x = inputs()
    other = network(5)
    shared = backbone(rank=48)
    assert shared.fit("student", other.state_dict()) < 1e-12
    with shared.using("student") as dit:
        torch.testing.assert_close(flow(dit, x), flow(other, x), rtol=1e-4, atol=1e-4)
    with shared.using("real") as dit:
        torch.testing.assert_close(flow(dit, x), flow(network(0), x), rtol=0, atol=0)


def test_a_narrow_adapter_is_the_best_of_its_rank():
    """The remainder is what the singular values say (Eckart-Young), computed by numpy one matrix at a time."""
    shared, other, base = backbone(rank=4), network(5), network(0)
    left = shared.fit("student", other.state_dict())
    squares = rest = 0.0
    for name, layer in base.blocks.named_modules():
        if isinstance(layer, nn.Linear):
            singular = torch.linalg.svdvals((other.blocks.get_submodule(name).weight - layer.weight).double())
            squares, rest = squares + singular.square().sum(), rest + singular[4:].square().sum()
    assert 0.1 < left < 1 and left == pytest.approx((rest / squares).item(), rel=1e-6)


def test_gradients_of_an_adapter_follow_from_the_plain_networks():
    """The product rule for d(base + up down) = dW gives d up = dW down^T and d down = up^T dW; whole parameters
    have the plain network's own gradients."""
    x, other = inputs(), network(5).requires_grad_()
    flow(other, x).square().sum().backward()
    wanted = {name: p.grad for name, p in other.named_parameters()}
    shared = backbone(rank=48)
    shared.fit("student", other.state_dict())
    with shared.using("student") as dit:
        flow(dit, x).square().sum().backward()
    adapter = shared.student
    # Sums in float32 in another order: 1e-4 at most was seen, of gradients of up to 0.04.
    for key, whole in adapter.whole.items():
        torch.testing.assert_close(whole.grad, wanted[key.replace("/", ".")], rtol=1e-4, atol=5e-4)
    for key in adapter.up:
        gradient, up, down = wanted[key.replace("/", ".")], adapter.up[key], adapter.down[key]
        torch.testing.assert_close(up.grad, gradient @ down.detach().T, rtol=1e-4, atol=5e-4)
        torch.testing.assert_close(down.grad, up.detach().T @ gradient, rtol=1e-4, atol=5e-4)
    assert all(p.grad is None for p in (*shared.fake.parameters(), *shared.dit.parameters()))


def test_merged_is_a_plain_checkpoint():
    shared, x = backbone(rank=4), inputs()
    shared.fit("student", network(5).state_dict())
    plain = network(7)
    plain.load_state_dict(shared.state())
    with shared.using("student") as dit:
        torch.testing.assert_close(flow(plain, x), flow(dit, x), rtol=1e-5, atol=1e-5)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    """Every gradient within `tolerance` of its own size."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        apart = (found[name] - gradient).norm() / gradient.norm().clamp_min(1e-12)
        assert apart <= tolerance, f"{name}: {apart:.1e}"


@functools.cache
def plain_gradients(player: str) -> dict[str, torch.Tensor]:
    return gradients(distillation(), player)


EVERYTHING = dict.fromkeys(("cache_gradients", "separate_backward", "checkpoint_blocks", "rest_on_host"), True)
"""Settings that go together: adapters have one network, which cannot rest on the host."""


@pytest.mark.parametrize(
    ("way", "player", "tolerance"),
    some(
        3,
        [
            # The same products in the same order: equal to the last bit.
            ({"checkpoint_blocks": True}, "student", 0.0),
            # The two losses' gradients are added up in another order; one parameter's may nearly cancel.
            (EVERYTHING, "student", 1e-4),
            (EVERYTHING, "critic", 1e-4),
            ({"checkpoint_blocks": True}, "critic", 0.0),
            ({"cache_gradients": True}, "student", 1e-4),
            ({"separate_backward": True}, "critic", 1e-4),
            ({"rest_on_host": True, "cache_gradients": True}, "student", 1e-4),
            ({"rest_on_host": True, "cache_gradients": True}, "critic", 1e-4),
        ],
    ),
    ids=str,
)
def test_a_turn_has_the_plain_gradients(way, player, tolerance):
    wanted = {name: g for name, g in plain_gradients(player).items() if name.startswith(player)}
    assert len(wanted) > 50
    found = {name: g for name, g in gradients(distillation(**way), player).items() if name.startswith(player)}
    assert_same(found, wanted, tolerance)


@pytest.mark.parametrize("cached", some(1, [True, False]))
@pytest.mark.parametrize("player", ["student", "critic"])
def test_a_turn_moves_its_own_player_alone(player, cached):
    found = gradients(distillation(cache_gradients=cached), player)
    assert {name.split(".")[0] for name in found} == {player}


@pytest.mark.parametrize("checkpoint_blocks", some(1, [True, False]))
@pytest.mark.parametrize("cached", some(1, [True, False]))
def test_adapters_play_like_networks_of_their_own(checkpoint_blocks, cached):
    """A whole parameter's gradient is that of the plain network, also where blocks are computed again while another
    adapter is active."""
    plain = plain_gradients("student")
    student, base = network(0), network(1)
    networks = OneBackbone(base, student.state_dict(), 48, torch.device("cpu"), checkpoint_blocks=checkpoint_blocks)
    assert networks.left_out < 1e-12
    networks.fit("fake", network(2).state_dict())
    phase = distillation(networks=networks, cache_gradients=cached, checkpoint_blocks=checkpoint_blocks)
    found = gradients(phase, "student")
    for name in ("blocks/0/attn1/to_q/bias", "blocks/2/ffn/net/2/bias", "patch_embedding/weight", "proj_out/weight"):
        wanted = plain[f"student.{name.replace('/', '.')}"]
        # A rank of 48 holds the student up to rounding.
        bound = 1e-4 * wanted.abs().max().item()
        torch.testing.assert_close(found[f"student.whole.{name}"], wanted, rtol=1e-3, atol=bound)
