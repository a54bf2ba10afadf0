"""Muon and AdamW against PyTorch's own and against a singular value decomposition; rates and means against formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helios_cli.errors import InputError
from helios_cli.train.optim import Muon, PlayerOptimizer, RunningMean, orthogonal, rate_scale, split
from helios_cli.train.settings.run import Optimizer

SHAPES = [(48, 48), (96, 32), (32, 96), (2, 50)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_orthogonal_keeps_the_directions_and_levels_their_lengths(shape, dtype):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    found = orthogonal(matrices.to(dtype)).float()
    for matrix, result in zip(matrices, found, strict=True):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        lengths = u.T @ result @ vh.T
        # The quintic's image of what five steps reach is [0.68, 1.13]; bfloat16 has 8 bits, in each of 15 products. A
        # singular value under a thousandth of the norm would not be lifted that far: there is none here.
        assert s.min() / s.norm() > 1e-3
        assert lengths.diagonal().min() > 0.6 and lengths.diagonal().max() < 1.25
        off = lengths - lengths.diagonal().diag()
        assert off.abs().max() < (1e-3 if dtype == torch.float32 else 0.06)


@pytest.mark.parametrize("shape", [*SHAPES, (8, 4, 3, 3), (4, 8, 3, 3, 3)], ids=str)
def test_muon_moves_as_pytorchs(shape):
    """PyTorch's takes matrices only, so a kernel is handed to it flat."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("PyTorch has Muon from 2.9")
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    before = theirs.detach().clone()
    muon = Muon([ours], lr=0.02, momentum=0.9, dtype=torch.bfloat16)
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.0)
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.flatten(1).clone()
        muon.step()
        reference.step()
    moved = (theirs - before).norm()
    # Both multiply in bfloat16, in another order of additions: 2^-8 a product, 15 products.
    assert (ours.flatten(1) - theirs).norm() < 0.03 * moved


def test_parameters_of_one_shape_do_not_mix():
    torch.manual_seed(0)
    both = [nn.Parameter(torch.randn(6, 4)) for _ in range(2)]
    alone = [nn.Parameter(p.detach().clone()) for p in both]
    gradients = [torch.randn(6, 4) for _ in range(2)]
    optimizers = [Muon(both, lr=0.1, momentum=0.9), *(Muon([p], lr=0.1, momentum=0.9) for p in alone)]
    for p, gradient in zip(both + alone, gradients * 2, strict=True):
        p.grad = gradient.clone()
    for optimizer in optimizers:
        optimizer.step()
    for p, q in zip(both, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Conv3d(2, 3, 3)])
        self.head = nn.Linear(6, 4)
        self.gate = nn.Linear(6, 1)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)


def names(net, params):
    return {name for name, p in net.named_parameters() if any(p is q for q in params)}


def test_globs_choose_what_muon_moves():
    net = Net()
    muon, rest = split(net, ["blocks.*", "gate.*"])
    assert names(net, muon) == {"blocks.0.weight", "blocks.1.weight"}  # no vectors, no matrix of one row
    assert names(net, rest) == {
        "blocks.0.bias",
        "blocks.1.bias",
        "head.weight",
        "head.bias",
        "gate.weight",
        "gate.bias",
    }
    assert split(net, [])[0] == []


def test_a_glob_that_names_nothing_is_refused():
    """A slip of the pen would leave all to AdamW; one that names a frozen part is meant."""
    with pytest.raises(InputError, match=r"'block\.\*'") as error:
        PlayerOptimizer(Net(), Optimizer(muon=("block.*",)), torch.float32)
    assert "blocks.0.weight" in error.value.hint
    assert len(PlayerOptimizer(Net(), Optimizer(muon=("blocks.*", "frozen.*")), torch.float32).optimizers) == 2


def test_the_rest_moves_as_pytorchs_adamw_does():
    net, settings = Net(), Optimizer(lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, muon=("blocks.*",))
    other = copy.deepcopy(net)
    optimizer = PlayerOptimizer(net, settings, torch.float32)
    rest = split(other, settings.muon)[1]
    reference = torch.optim.AdamW(rest, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, foreach=False)
    for _ in range(4):
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            p.grad, q.grad = (torch.randn_like(p),) * 2 if p.requires_grad else (None, None)
        assert optimizer.step(0.5) == 0.5 * settings.lr
        reference.param_groups[0]["lr"] = 0.005
        reference.step()
    for p, q in zip(split(net, settings.muon)[1], rest, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert torch.equal(net.frozen.weight, other.frozen.weight)


def test_clipping_shortens_all_gradients_together():
    net = Net()
    optimizer = PlayerOptimizer(net, Optimizer(clip=2.0), torch.float32)
    for p in optimizer.params:
        p.grad = torch.full_like(p, 3.0)
    count = sum(p.numel() for p in optimizer.params)
    assert optimizer.clip() == pytest.approx(3 * count**0.5, rel=1e-5)
    assert torch.cat([p.grad.flatten() for p in optimizer.params]).norm().item() == pytest.approx(2.0, rel=1e-4)
    assert PlayerOptimizer(net, Optimizer(clip=0), torch.float32).clip() == pytest.approx(2.0, rel=1e-4)
    assert torch.cat([p.grad.flatten() for p in optimizer.params]).norm().item() == pytest.approx(2.0, rel=1e-4)


def test_parameters_of_another_type_are_refused():
    with pytest.raises(TypeError, match="float32"):
        PlayerOptimizer(nn.Linear(2, 2).bfloat16(), Optimizer(), torch.float32)


@pytest.mark.parametrize(
    ("step", "fraction", "expected"),
    [(0, 0.0, 0.25), (1, 0.01, 0.5), (3, 0.1, 1.0), (50, 0.5, 1.0), (60, 0.6, 1.0), (80, 0.8, 0.5), (100, 1.0, 0.0)],
)
def test_rates_rise_stay_and_fall(step, fraction, expected):
    assert rate_scale(Optimizer(warmup=4, decay=0.4), step, fraction) == pytest.approx(expected)


def test_rates_are_constant_unless_asked():
    assert {rate_scale(Optimizer(), step, step / 100) for step in range(101)} == {1.0}


def test_the_mean_is_the_formulas():
    net = nn.Linear(3, 3)
    mean = RunningMean(net, 0.9)
    expected, history = net.weight.detach().double(), []
    for update in range(30):
        with torch.no_grad():
            net.weight.copy_(torch.randn(3, 3))
        history.append(net.weight.detach().clone())
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * history[-1].double()
        mean.update()
    mean.swap()
    torch.testing.assert_close(net.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    mean.swap()
    assert torch.equal(net.weight, history[-1])


def test_a_mean_that_has_not_begun_is_the_parameters():
    net = nn.Linear(3, 3)
    mean = RunningMean(net, 0.99)
    with torch.no_grad():
        net.weight.add_(1)
    mean.follow()
    held = net.weight.detach().clone()
    mean.swap()
    assert torch.equal(net.weight, held)


def test_a_mean_takes_in_what_bfloat16_would_lose():
    """A thousandth of a step of 1/256 is far below bfloat16's resolution at 1."""
    net = nn.Linear(1, 1)
    nn.init.ones_(net.weight)
    mean = RunningMean(net, 0.999)
    mean.updates = 10_000
    nn.init.constant_(net.weight, 1 + 1 / 256)
    for _ in range(700):
        mean.update()
    mean.swap()
    assert net.weight.item() == pytest.approx(1 + (1 - 0.999**700) / 256, abs=2e-5)
