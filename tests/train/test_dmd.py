"""Distribution matching against formulas written out by hand, finite differences, and the engine's own sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helios_cli.bench.specs import SCHEDULERS
from helios_cli.sampling.noise import BlockNoise, coarsest, draw
from helios_cli.sampling.schedule import SchedulerConfig, build_stage
from helios_cli.sampling.solvers import make_solver
from helios_cli.train import rollout, score
from helios_cli.train.phase import Share
from helios_cli.train.transformer import transformer_of
from helios_cli.weights.checkpoint import Checkpoint
from support.distilling import checkpoint, distillation, network
from support.tiers import some

DMD = SchedulerConfig.from_json(SCHEDULERS["distilled"])
MID = SchedulerConfig.from_json(SCHEDULERS["mid"])
SHAPE = (4, 9, 8, 16)


def stages_with(steps: int, config: SchedulerConfig = DMD) -> list:
    return [build_stage(config, k, steps, 9 * 8 * 4**k) for k in range(3)]


def noise_of(samples: int, seed: int = 0) -> rollout.Noise:
    block_noise = BlockNoise(DMD.gamma, (1, 2, 2))
    generators = (torch.Generator().manual_seed(seed + i) for i in range(samples))
    return rollout.draw_noise(SHAPE, DMD, block_noise, generators)


def bent(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """A network that is not linear and reacts to the timestep."""
    return torch.tanh(x) + 0.3 * torch.sin(x + timestep)


def test_gradient_and_loss_are_the_formulas():
    rng = np.random.default_rng(0)
    x, real, fake = (rng.normal(size=(3, 2, 4, 5)) for _ in range(3))
    gradient = score.matching_gradient(*(torch.from_numpy(value) for value in (x, real, fake)))
    expected = np.stack([(f - r) / np.mean(np.abs(a - r)) for a, r, f in zip(x, real, fake, strict=True)])
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12)
    loss = score.matching_loss(torch.from_numpy(x), gradient)
    np.testing.assert_allclose(loss.numpy(), [0.5 * np.mean(g**2) for g in expected], rtol=1e-12)


def test_matching_pushes_by_the_gradient_and_through_nothing_else():
    torch.manual_seed(0)
    weight = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 5, dtype=torch.float64) @ weight
    real, fake = x * 0.5 + 1, x.sin()  # both depend on x, as scores do
    gradient = score.matching_gradient(x, real, fake)
    (at_x,) = torch.autograd.grad(score.matching_loss(x, gradient).sum(), x, retain_graph=True)
    torch.testing.assert_close(at_x, gradient / 5, rtol=1e-12, atol=1e-12)


def test_matching_loss_by_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 6, dtype=torch.float64)
    # The target is held at this x: what autograd is to see is the quadratic around it.
    held = (x - target).detach()
    (found,) = torch.autograd.grad(score.matching_loss(x, held).sum(), x)
    for i in range(6):
        ends = []
        for sign in (1, -1):
            moved = x.detach().clone()
            moved[0, i] += sign * 1e-6
            ends.append((0.5 * (moved - target).square().mean(1)).sum())
        assert found[0, i].item() == pytest.approx(((ends[0] - ends[1]) / 2e-6).item(), rel=1e-6)


def test_where_the_scores_agree_nothing_moves():
    x = torch.randn(2, 3, 4)
    assert score.matching_gradient(x, x * 0.2, x * 0.2).abs().max() == 0
    assert score.matching_gradient(x, x, x).isfinite().all()


def test_noised_and_x0_are_inverse_and_the_flow_loss_is_zero_at_the_truth():
    x, noise, sigma = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0.1, 0.5, 0.98])
    noisy = score.noised(x, noise, sigma)
    torch.testing.assert_close(score.x0_of(noisy, noise - x, sigma), x, rtol=1e-5, atol=1e-5)
    assert score.flow_loss(noise - x, noise, x).tolist() == [0, 0, 0]
    wrong = score.flow_loss(noise - x + 2, noise, x)
    torch.testing.assert_close(wrong, torch.full((3,), 4.0))


def test_score_times_bend_from_beta_to_uniform():
    times = score.ScoreTimes(shift=1.919, low=0.02, high=0.98, begin=(4.0, 1.5), anneal=500)
    assert times.beta(0) == (4.0, 1.5)
    assert times.beta(250) == pytest.approx((2.5, 1.25))
    assert times.beta(500) == times.beta(9999) == (1.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    early = np.array([times.draw(0, generator) for _ in range(4000)])
    late = np.array([times.draw(500, generator) for _ in range(4000)])
    assert early.min() >= 0.02 and early.max() <= 0.98
    # Medians: Beta(4, 1.5) has .7527 (scipy), uniform .5, both through u -> m u / (1 + (m - 1) u). Three deviations.
    for drawn, u, spread in ((early, 0.7527, 0.17), (late, 0.5, 0.29)):
        assert np.median(drawn) == pytest.approx(1.919 * u / (1 + 0.919 * u), abs=3 * 1.25 * spread / math.sqrt(4000))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_roll_out_to_the_last_steps_is_the_sampler(steps):
    """Against the solver and the noise as the engine's Denoiser puts them together, one film at a time."""
    stages = stages_with(steps)
    rolled = rollout.student_roll_out(bent, stages, noise_of(3), [steps - 1] * 3)
    for sample in range(3):
        generator, block_noise = torch.Generator().manual_seed(sample), BlockNoise(DMD.gamma, (1, 2, 2))
        x = coarsest(draw((1, *SHAPE), generator), 3)
        for stage in stages:
            if stage.renoise:
                x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
                x = stage.renoise[0] * x + stage.renoise[1] * block_noise.draw(tuple(x.shape), generator)
            solver = make_solver(DMD, stage, x)
            for i, timestep in enumerate(stage.timesteps):
                x = solver.step(i, x, bent(x, timestep))
        torch.testing.assert_close(rolled[sample], x[0], rtol=0, atol=0)


def test_a_gradient_passes_the_exits_alone_and_all_stages():
    calls = []
    scale = torch.tensor([1.0], requires_grad=True)

    def predict(x, timestep):
        calls.append((timestep, torch.is_grad_enabled()))
        return scale * bent(x, timestep)

    stages, exits = stages_with(2), (1, 0, 1)
    rollout.student_roll_out(predict, stages, noise_of(2), exits).sum().backward()
    expected = []
    for stage, last in zip(stages, exits, strict=True):
        expected += [(stage.timesteps[i], i == last) for i in range(last + 1)]
    assert calls == expected
    assert scale.grad.abs() > 0

    # One number per stage: each has its part in the last stage's end.
    knobs = torch.ones(3, requires_grad=True)

    def staged(x, timestep):
        stage = next(k for k in range(3) if timestep in stages[k].timesteps)
        return knobs[stage] * bent(x, timestep)

    (found,) = torch.autograd.grad(
        rollout.student_roll_out(staged, stages, noise_of(2), (0, 0, 0)).square().sum(), knobs
    )
    assert (found.abs() > 1e-3).all()


def test_roll_out_gradient_by_finite_differences():
    stages, noise = stages_with(2), noise_of(1)
    double = rollout.Noise(noise.start.double(), tuple(jump.double() for jump in noise.jumps))

    def end(knob: torch.Tensor) -> torch.Tensor:
        def predict(x, timestep):
            return _Double(knob * bent(x, timestep))

        return rollout.student_roll_out(predict, stages, double, (0, 0, 0)).square().mean()

    class _Double(torch.Tensor):
        """A float64 tensor that stays float64: the roll-out rounds flows to float32, which finite differences
        would see."""

        def float(self):
            return torch.Tensor(self)

    knob = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(end(knob), knob)
    with torch.no_grad():
        numeric = (end(knob + 1e-6) - end(knob - 1e-6)) / 2e-6
    assert found.item() == pytest.approx(numeric.item(), rel=1e-6)


@pytest.mark.train
def test_matching_brings_one_cloud_over_another():
    """A student x = place + width z against N(2, 0.5^2), with both scores known exactly: it ends there, in place and
    width. A wrong sign, or scores in the wrong order, would drive it away."""
    generator = torch.Generator().manual_seed(0)
    place, width = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    times = score.ScoreTimes(shift=1.919, low=0.02, high=0.98, begin=(4.0, 1.5), anneal=20)
    optimizer = torch.optim.SGD([place, width], 0.8)

    def best_guess(noisy, sigma, mean, deviation):
        """E[x0 | x_t] of a normal distribution."""
        gain = (1 - sigma) * deviation**2 / ((1 - sigma) ** 2 * deviation**2 + sigma**2)
        return mean + gain * (noisy - (1 - sigma) * mean)

    for step in range(120):
        x = place + width * torch.randn(64, 8, generator=generator)
        sigma = torch.tensor([times.draw(step, generator) for _ in range(64)])
        noisy = score.noised(x.detach(), torch.randn(x.shape, generator=generator), sigma)
        real = best_guess(noisy, sigma[:, None], 2.0, 0.5)
        fake = best_guess(noisy, sigma[:, None], place.detach(), width.detach())
        loss = score.matching_loss(x, score.matching_gradient(x, real, fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert place.item() == pytest.approx(2.0, abs=0.15)
    assert abs(width.item()) == pytest.approx(0.5, abs=0.15)


def told(dit, x: torch.Tensor, timestep: torch.Tensor, lesson, rows: torch.Tensor) -> torch.Tensor:
    """The plain transformer's flow at the last stage's size."""
    with torch.no_grad():
        history, text = dit.embed_history(*lesson.terms()), dit.embed_text(rows)
        return dit(x, history, dit.modulation(timestep), dit.rope((4, 8), (4, 8)), text)


def test_the_phase_s_gradient_is_that_of_plain_scores():
    """Real score guided in x0: u + 3 (c - u); fake score plain; timesteps a thousand times sigma."""
    phase = distillation()
    lesson = phase.lessons.draw([torch.Generator().manual_seed(i) for i in range(2)])
    x, noise, sigma = torch.randn(2, 16, 9, 8, 16), torch.randn(2, 16, 9, 8, 16), torch.tensor([0.3, 0.9])
    s = sigma.view(2, 1, 1, 1, 1)
    noisy = (1 - s) * x + s * noise
    c, u = (noisy - s * told(network(1), noisy, 1000 * sigma, lesson, rows) for rows in (lesson.rows, 0 * lesson.rows))
    real, fake = u + 3 * (c - u), noisy - s * told(network(2), noisy, 1000 * sigma, lesson, lesson.rows)
    wanted = torch.stack([(fake[i] - real[i]) / (x[i] - real[i]).abs().mean() for i in range(2)])
    found = phase.matching_gradient(x, noise, sigma, lesson)
    torch.testing.assert_close(found.float(), wanted, rtol=1e-4, atol=2e-5)  # guided flows in float32, summed otherwise


@pytest.mark.slow
@pytest.mark.parametrize("player", some(1, ["student", "critic"]))
def test_two_processes_add_up_to_one(player):
    whole, halves = distillation(), distillation()
    whole.backward(player, Share(step=5, samples=range(2), batch=2, seed=0))
    for samples in (range(1), range(1, 2)):
        halves.backward(player, Share(step=5, samples=samples, batch=2, seed=0))
    for a, b in zip(whole.players[player].parameters(), halves.players[player].parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-3 * a.grad.norm() + 1e-7


def test_a_saved_student_is_a_distilled_checkpoint(tmp_path):
    start = checkpoint(tmp_path, "mid")
    phase = distillation()
    phase.save(start.path)
    saved = Checkpoint.open(start.path)
    assert saved.kind == "distilled" and saved.trained
    for (name, a), b in zip(transformer_of(saved).named_parameters(), phase.networks.student.parameters(), strict=True):
        assert torch.equal(a, b), name
