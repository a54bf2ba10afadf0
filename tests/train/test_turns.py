"""Whole turns of distillation, written out on plain networks: each player's inputs, losses and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.noise import draw
from helios_cli.train.discriminator import crop_window
from helios_cli.train.history import Lesson
from helios_cli.train.phase import Share
from helios_cli.train.phases.distill import PURPOSES, SCHEDULER, DistillPhase
from helios_cli.train.rollout import draw_noise, student_roll_out
from support.distilling import LATENT, distillation, gradients, network, watched

pytestmark = pytest.mark.slow

SHARE = Share(step=5, samples=range(2), batch=2, seed=0)
HEADS = (0, 2)


@dataclass
class Turn:
    """The draws of one turn, in their order: each sample has a generator of its own, and all share another."""

    phase: DistillPhase
    player: str

    def __post_init__(self) -> None:
        self.own = [SHARE.generator(i, PURPOSES[self.player]) for i in SHARE.samples]
        self.shared = SHARE.generator(-1, PURPOSES[self.player])
        self.lesson = self.phase.lessons.draw(self.own)

    def chunks(self, student: HeliosDiT) -> Tensor:
        """Return what the student makes, by a drawn schedule and drawn exits."""
        stages = self.phase.schedules[int(torch.randint(2, (), generator=self.shared))]
        exits = [int(torch.randint(stage.steps, (), generator=self.shared)) for stage in stages]
        noise = draw_noise(LATENT, SCHEDULER, self.phase.block_noise, iter(self.own))
        return student_roll_out(lambda x, t: call(student, x, torch.full((2,), t), self.lesson), stages, noise, exits)

    def noise(self) -> Tensor:
        return torch.cat([draw((1, *LATENT), g) for g in self.own])

    def score_time(self) -> Tensor:
        return torch.tensor([self.phase.times.draw(SHARE.step, g) for g in self.own])


def call(dit: HeliosDiT, x: Tensor, timestep: Tensor, lesson: Lesson, rows: Tensor | None = None) -> Tensor:
    """The plain transformer's flow of a chunk of any stage."""
    terms = lesson.terms()
    full, grid = ((y.shape[-2] // 2, y.shape[-1] // 2) for y in (terms[0], x))
    text = dit.embed_text(lesson.rows if rows is None else rows)
    return dit(x, dit.embed_history(*terms), dit.modulation(timestep), dit.rope(full, grid), text)


def logits(
    phase: DistillPhase, fake: HeliosDiT, noisy: Tensor, sigma: Tensor, lesson: Lesson, columns: slice
) -> Tensor:
    """The heads on what leaves the fake score's blocks, which are shown those columns of chunk and history alone."""
    noisy = noisy[..., columns]
    history = fake.embed_history(*(term[..., columns] for term in lesson.terms()))
    grid = noisy.shape[-2] // 2, noisy.shape[-1] // 2
    with watched(fake, HEADS) as seen:
        fake(noisy, history, fake.modulation(1000 * sigma), fake.rope(grid, grid), fake.embed_text(lesson.rows))
    return phase.heads([rows[:, -9 * grid[0] * grid[1] :] for rows in seen], (9, *grid))


def noised(x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    s = sigma.view(2, 1, 1, 1, 1)
    return (1 - s) * x + s * noise


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys() and len(wanted) > 50
    for name, gradient in wanted.items():
        apart = (found[name] - gradient).norm() / gradient.norm().clamp_min(1e-9)
        assert apart < 2e-3, f"{name}: {apart:.1e}"


def gradients_of(**modules: torch.nn.Module) -> dict[str, Tensor]:
    named = ((f"{name}.{key}", p) for name, module in modules.items() for key, p in module.named_parameters())
    return {name: p.grad for name, p in named if p.grad is not None}


def test_a_critic_s_turn_by_hand():
    """The fake score learns the student's flow; the heads call real clips low, R1 with its weight on these, R2 on the
    student's chunks; all but the score by the critic's weight."""
    phase = distillation()
    fake, turn = network(2).requires_grad_(), Turn(phase, "critic")
    with torch.no_grad():
        x = turn.chunks(network(0))
    sigma = 1e-3 + (1 - 1e-3) * torch.cat([torch.rand(1, generator=g) for g in turn.own])
    noise = turn.noise()
    flow = call(fake, noised(x, noise, sigma), 1000 * sigma, turn.lesson)
    losses = {"score": (flow - (noise - x)).square().mean()}
    sigma, noise = turn.score_time(), turn.noise()
    _, columns = crop_window((8, 16), (2, 2), turn.shared)
    assert columns.stop - columns.start == 8
    real = turn.lesson.target
    for name, chunks, label, weight in (("told_fake", x, -1.0, 1.0), ("told_real", real, 1.0, 3.0)):
        noisy, nudge = noised(chunks, noise, sigma), 0.1 * turn.noise()
        said, nudged = (logits(phase, fake, y, sigma, turn.lesson, columns) for y in (noisy, noisy + nudge))
        losses[name] = F.softplus(label * said).mean() + weight * (said - nudged).square().mean()
    (losses["score"] + 0.5 * losses["told_fake"] + 0.5 * losses["told_real"]).backward()
    wanted = gradients_of(**{"critic.score": fake, "critic.heads": phase.heads})

    tried = distillation()
    found = {name: loss.item() for name, loss in tried.backward("critic", SHARE).items()}
    assert found == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4)
    assert_same(gradients(distillation(), "critic", samples=2), wanted)


def test_a_student_s_turn_by_hand():
    """The chunks move against the difference of the scores, and to where the heads call them real."""
    phase = distillation()
    student, real, fake, turn = network(0).requires_grad_(), network(1), network(2), Turn(phase, "student")
    x = turn.chunks(student)
    sigma, noise = turn.score_time(), turn.noise()
    noisy = noised(x, noise, sigma)
    with torch.no_grad():
        s, rows = sigma.view(2, 1, 1, 1, 1), turn.lesson.rows
        c, u = (noisy - s * call(real, noisy, 1000 * sigma, turn.lesson, r) for r in (rows, torch.zeros_like(rows)))
        guided, own = u + 3 * (c - u), noisy - s * call(fake, noisy, 1000 * sigma, turn.lesson)
        pull = torch.stack([(own[i] - guided[i]) / (x[i] - guided[i]).abs().mean() for i in range(2)])
    _, columns = crop_window((8, 16), (2, 2), turn.shared)
    fooled = F.softplus(logits(phase, fake, noisy, sigma, turn.lesson, columns)).mean()
    ((pull * x).mean() + 0.5 * fooled).backward()
    wanted = gradients_of(student=student)

    tried = distillation()
    found = {name: loss.item() for name, loss in tried.backward("student", SHARE).items()}
    assert found == pytest.approx(
        {"matching": 0.5 * pull.square().mean().item(), "adversarial": fooled.item()}, rel=1e-3
    )
    assert_same(gradients(distillation(), "student", samples=2), wanted)
