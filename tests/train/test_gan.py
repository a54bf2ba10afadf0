"""The discriminator's heads and losses, against the formulas and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from helios_cli.errors import InputError
from helios_cli.train.discriminator import (
    FAKE,
    REAL,
    Head,
    Heads,
    adversarial_loss,
    crop_window,
    smoothness_loss,
)
from helios_cli.train.phase import Share
from helios_cli.train.phases import distill
from helios_cli.train.settings.student import DistillMemory
from support.distilling import Clips, checkpoint, distillation, gradients, network, watched


def test_losses_are_the_formulas():
    logits = torch.tensor([[0.5, -1.0], [3.0, 0.0]])
    for label in (FAKE, REAL):
        expected = [sum(math.log1p(math.exp(label * value)) for value in row) / 2 for row in logits.tolist()]
        assert adversarial_loss(logits, label).tolist() == pytest.approx(expected, rel=1e-6)
    moved = torch.tensor([[0.4, -1.2], [3.0, 1.0]])
    assert smoothness_loss(logits, moved).tolist() == pytest.approx([(0.01 + 0.04) / 2, 0.5], rel=1e-5)


def test_low_means_real():
    """The discriminator lowers the logits of real clips and raises the student's; the student lowers its own."""
    for label, falls in ((REAL, True), (FAKE, False)):
        logits = torch.zeros(1, 3, requires_grad=True)
        (gradient,) = torch.autograd.grad(adversarial_loss(logits, label).sum(), logits)
        assert (gradient > 0).all() == falls


def test_a_game_between_two_clouds_is_won():
    """With these labels a head learns to tell samples apart, real ones low."""
    torch.manual_seed(0)
    heads = Heads(8, (0,), 16)
    optimizer = torch.optim.Adam(heads.parameters(), 3e-3)
    real, fake = (torch.randn(16, 9 * 4 * 4, 8) + shift for shift in (0.5, -0.5))
    for _ in range(30):
        loss = adversarial_loss(heads([real], (9, 4, 4)), REAL) + adversarial_loss(heads([fake], (9, 4, 4)), FAKE)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert heads([real], (9, 4, 4)).max() < heads([fake], (9, 4, 4)).min()


@pytest.mark.parametrize("grid", [(9, 12, 20), (9, 4, 8), (9, 4, 4)], ids=str)
def test_a_head_takes_whole_and_cropped_pictures(grid):
    torch.manual_seed(0)
    hidden = torch.randn(2, math.prod(grid), 8)
    logits = Heads(8, (1, 3), 16)([hidden, -hidden], grid)
    assert logits.shape == (2, 2) and logits.isfinite().all()


def test_rows_are_laid_out_as_the_picture():
    """A head sees row i of the sequence at frame, row, column of i."""
    torch.manual_seed(0)
    head, grid = Heads(3, (0,), 16), (9, 4, 8)
    hidden = torch.randn(1, math.prod(grid), 3)
    picture = torch.zeros(1, 3, *grid)
    for i in range(math.prod(grid)):
        picture[0, :, i // 32, i // 8 % 4, i % 8] = hidden[0, i]
    torch.testing.assert_close(head([hidden], grid)[:, 0], head.heads[0](picture))


def test_a_head_by_finite_differences():
    torch.manual_seed(0)
    head = Head(2, 16).double()
    picture = torch.randn(1, 2, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, picture)


def test_smoothness_is_the_squared_gradient_times_the_noise():
    """For small noise E[(f(x) - f(x + n))^2] = deviation^2 |f'|^2, which is what R1 is."""
    torch.manual_seed(0)
    weight = torch.randn(50)
    x = torch.randn(20000, 50)
    found = smoothness_loss((x @ weight)[:, None], ((x + 0.1 * torch.randn_like(x)) @ weight)[:, None]).mean()
    assert found.item() == pytest.approx(0.01 * weight.square().sum().item(), rel=0.05)  # 5 deviations


def test_windows_are_halves_at_whole_patches():
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(200):
        rows, columns = crop_window((48, 80), (2, 2), generator)
        assert rows.stop - rows.start == 24 and columns.stop - columns.start == 40
        assert rows.start % 2 == columns.start % 2 == 0 and rows.stop <= 48 and columns.stop <= 80
        seen.add(rows.start)
    assert seen == set(range(0, 26, 2))
    assert crop_window((8, 16), (2, 2), generator)[0] == slice(0, 8)  # half of 8 is less than a head takes


def hidden_rows(dit, noisy, sigma, batch, blocks) -> list[torch.Tensor]:
    """Return the outputs of some blocks of the plain transformer as sampling calls it."""
    history = dit.embed_history(
        batch.past[:, :, :16], batch.past[:, :, 16:18], torch.cat([batch.anchor, batch.past[:, :, 18:]], 2)
    )
    mods, rope = dit.modulation(1000 * sigma), dit.rope((4, 8), (4, 8))
    with torch.no_grad(), watched(dit, blocks) as seen:
        dit(noisy, history, mods, rope, dit.embed_text(batch.rows))
    return [rows[:, -9 * 4 * 8 :] for rows in seen]


def test_logits_are_the_heads_on_the_hidden_rows():
    phase, batch = distillation(), Clips().batch([(0, 1), (1, 1)])
    lesson = phase.lessons.draw([torch.Generator().manual_seed(i) for i in range(2)])
    sigma, noisy = torch.tensor([0.3, 0.9]), torch.randn(2, 16, 9, 8, 16)
    whole = (slice(0, 8), slice(0, 16))
    with phase.networks.using("fake") as dit:
        found = phase.logits(dit, noisy, sigma, lesson, whole)
    batch = batch._replace(past=lesson.past, anchor=lesson.anchor, rows=lesson.rows)
    wanted = phase.heads(hidden_rows(network(2), noisy, sigma, batch, (0, 2)), (9, 4, 8))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_game_begins_at_its_step():
    phase = distillation()
    share = {"samples": range(1), "batch": 1, "seed": 0}
    assert set(phase.backward("student", Share(step=4, **share))) == {"matching"}
    assert set(phase.backward("student", Share(step=5, **share))) == {"matching", "adversarial"}
    assert set(phase.backward("critic", Share(step=4, **share))) == {"score"}
    assert set(phase.backward("critic", Share(step=5, **share))) == {"score", "told_fake", "told_real"}
    assert phase.turns(0) == ("critic", "critic", "student")


def test_before_the_game_heads_are_left_alone():
    found = gradients(distillation(), "critic", step=4)
    assert any(name.startswith("critic.score") for name in found)
    assert not any(name.startswith("critic.heads") for name in found)
    assert any(name.startswith("critic.heads") for name in gradients(distillation(), "critic", step=5))


def test_what_does_not_go_together_is_said(tmp_path, monkeypatch):
    mid, base = checkpoint(tmp_path, "mid"), checkpoint(tmp_path, "base")
    monkeypatch.setattr(distill, "LatentClips", lambda *_, **__: Clips())
    monkeypatch.setattr(distill, "require_same_encoder", lambda *_: None)
    settings = distillation().settings

    def build(real, **gan):
        matching = settings.matching.model_copy(update={"real": str(real.path)})
        changes = {"matching": matching, "gan": settings.gan.model_copy(update=gan)}
        return distill.build(settings.model_copy(update=changes), mid, torch.device("cpu"))

    with pytest.raises(InputError, match="of kind mid"):
        build(mid)
    with pytest.raises(InputError, match="blocks 0 to 2"):
        build(base, blocks=(1, 3))
    with pytest.raises(ValueError, match="cache_gradients"):
        DistillMemory(cache_gradients=False, rest_on_host=True)
    with pytest.raises(ValueError, match="leave out `rest_on_host`"):
        DistillMemory(adapters=4, rest_on_host=True)
