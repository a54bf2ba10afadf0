"""The phases base and mid: their losses by their formulas, their batches, new weights, and what a run leaves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from helios_cli.bench.specs import SCHEDULERS, SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.schedule import SchedulerConfig
from helios_cli.train.history import Lesson
from helios_cli.train.phase import Share
from helios_cli.train.phases.flow import Base, FlowPhase, Mid
from helios_cli.train.settings.flow import BaseLoss, BaseSettings, CachedClips, MidLoss, MidSettings
from helios_cli.train.transformer import initialise, new_transformer, transformer_of
from helios_cli.units import MAX_TEXT_TOKENS
from helios_cli.weights.checkpoint import Checkpoint
from support.lessons import CONFIG, ROWS, cache, generators, network
from support.slopes import assert_slope
from support.tiers import some

CPU = torch.device("cpu")
KINDS = {"base": (BaseSettings, Base), "mid": (MidSettings, Mid)}


def phase(kind: str, clips, dit: HeliosDiT | None = None, **values) -> FlowPhase:
    settings, made = KINDS[kind]
    data = CachedClips(clips="clips", held_back=0, first=0.5)
    given = {"start": "s", "out": "o", "steps": 1, "dtype": "float32", "data": data, **values}
    return made(settings(phase=kind, **given), dit or network(), clips, CPU)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Noise in place of the numbered frames, as large as latents are."""

    class Noise(type(cache(tmp_path_factory.mktemp("clips"), (2, 3, 1)))):
        def batch(self, picks):
            found = super().batch(picks)
            scaled = (torch.sin(x * 1.7 + torch.arange(8)) for x in (found.latents, found.past, found.anchor))
            latents, past, anchor = scaled
            rows = torch.sin(found.rows + torch.arange(CONFIG.text_dim)) * found.rows.ne(0)
            kept = (found.past.ne(0) * past, found.anchor.ne(0) * anchor)
            return type(found)(latents, *kept, rows, found.captions)

    found = cache(tmp_path_factory.mktemp("clips"), (2, 3, 1))
    found.__class__ = Noise
    return found


def lesson(count: int) -> Lesson:
    g = torch.Generator().manual_seed(3)
    target, past, anchor = (torch.randn(count, 16, frames, 8, 8, generator=g) for frames in (9, 19, 1))
    rows = torch.randn(count, ROWS, CONFIG.text_dim, generator=g)
    return Lesson(target, past, anchor, rows, [""] * count, [0] * count)


def answer_of(dit: HeliosDiT, told: Lesson, i: int, noisy: torch.Tensor, timestep: float) -> torch.Tensor:
    """Sample i's flow by the calls that sampling makes."""
    grids = [tuple(side // 2 for side in x.shape[-2:]) for x in (told.past, noisy)]
    with torch.no_grad():
        history = dit.embed_history(*(term[i : i + 1] for term in told.terms()))
        text, mods = dit.embed_text(told.rows[i : i + 1]), dit.modulation(torch.tensor([timestep]))
        return dit(noisy[None], history, mods, dit.rope(*grids), text)[0]


@pytest.mark.parametrize("kind", ["base", "mid"])
def test_gradient_by_finite_differences(kind, clips):
    """The weight of a stage is in the gradient alone."""
    tables = {"loss": MidLoss(ratio=(0, 1, 0), weight=(1.0, 5.0, 1.0))} if kind == "mid" else {}
    share = Share(step=0, samples=range(2), batch=2, seed=0)
    scale = 5.0 if kind == "mid" else 1.0
    assert_slope(phase(kind, clips, **tables), "transformer", share, lambda losses: scale * sum(losses.values()))


def test_the_loss_of_base_is_its_formula(clips):
    """`|f((1 - s) z + s n, 1000 s) - (n - z)|^2`, s logistic-normal."""
    trained, told = phase("base", clips, loss=BaseLoss(mean=0.5, deviation=0.8)), lesson(3)
    found = trained.errors(told, 0, generators(3))
    for i, g in enumerate(generators(3)):
        n = torch.randn(1, 16, 9, 8, 8, generator=g)[0]
        s = 1 / (1 + math.exp(-(0.5 + 0.8 * torch.randn((), generator=g).item())))
        z = told.target[i]
        flow = answer_of(trained.dit, told, i, (1 - s) * z + s * n, 1000 * s)
        assert found[i].item() == pytest.approx((flow - (n - z)).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("stage", range(3))
def test_the_loss_of_mid_is_its_formula(clips, stage):
    """On the line from start to end point, with the method's constants and the sampler's shift."""
    trained, told = phase("mid", clips), lesson(3)
    found = trained.errors(told, stage, generators(3))
    share_start, share_end = [(1.0, 0.666333), (0.799760, 0.333666), (0.500374, 0.0)][stage]
    first, last = [(999.0, 743.512), (743.256, 385.972), (385.614, 1.384)][stage]
    tokens = 9 * [1, 1, 4][stage]
    strength = math.exp(tokens * 0.65 / 3840 + 0.456667)
    for i, g in enumerate(generators(3)):
        n, z = torch.randn(1, 16, 9, 8, 8, generator=g)[0], told.target[i]
        place = torch.rand(2, generator=g)[1].item() * 0.999
        sigma = strength / (strength + 1 / place - 1)
        size = 2 ** (2 - stage)
        noise, clean = F.avg_pool3d(n, (1, size, size)) * size, F.avg_pool3d(z, (1, size, size))
        before = F.avg_pool3d(clean, (1, 2, 2)).repeat_interleave(2, -1).repeat_interleave(2, -2) if stage else 0
        start, end = share_start * noise + (1 - share_start) * before, share_end * noise + (1 - share_end) * clean
        timestep = math.floor(last + sigma * (first - last))
        flow = answer_of(trained.dit, told, i, sigma * start + (1 - sigma) * end, timestep)
        assert found[i].item() == pytest.approx((flow - (start - end)).square().mean().item(), rel=1e-4)


def test_the_first_sigma_as_often_as_asked(clips):
    trained = phase("mid", clips, loss=MidLoss(first=0.25))
    z, n = torch.zeros(400, 16, 9, 8, 8), torch.zeros(400, 16, 9, 8, 8)
    told = trained.target_of(z, n, 0, generators(400)).timestep
    scheduler = SchedulerConfig.from_json(SCHEDULERS["mid"])
    assert scheduler.num_train_timesteps == 1000
    share = (told == 998).float().mean().item()
    # The others reach the whole timestep 998 as well: sigma over 0.996, which is 0.6 % of them.
    assert abs(share - 0.2545) < 4.5 * math.sqrt(0.25 * 0.75 / 400)
    assert told.min() < 760


def gradients(trained: FlowPhase, shares: list[Share]) -> tuple[dict, dict]:
    """Losses and gradients, both added over processes."""
    trained.dit.zero_grad()
    losses: dict[str, float] = {}
    for share in shares:
        for name, loss in trained.backward("transformer", share).items():
            losses[name] = losses.get(name, 0.0) + loss.item()
    return losses, {name: p.grad.clone() for name, p in trained.dit.named_parameters()}


@pytest.mark.parametrize("kind", ["base", "mid"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_processes_add_up_to_the_batch(clips, kind, every):
    """The sums also agree where only every n-th sample takes part, and a process has none of them."""
    loss = {"loss": MidLoss(every=(every,) * 3, weight=(8.0, 2.0, 1.0))} if kind == "mid" else {}
    trained = phase(kind, clips, **loss)
    whole = gradients(trained, [Share(4, range(5), 5, seed=9)])
    parts = gradients(trained, [Share(4, part, 5, seed=9) for part in (range(1), range(1, 3), range(3, 5))])
    assert whole[0].keys() == parts[0].keys()
    for name, loss in whole[0].items():
        assert parts[0][name] == pytest.approx(loss, rel=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(parts[1][name], gradient, atol=1e-6 + 1e-5 * gradient.abs().max().item(), rtol=0)


def test_stages_get_their_share_and_weight(clips):
    trained = phase("mid", clips, loss=MidLoss(ratio=(0.5, 0.3, 0.2), weight=(8.0, 2.0, 1.0)))
    stages = [trained.stage_of(Share(step, range(1), 1, seed=0)) for step in range(1000)]
    for stage, ratio in enumerate((0.5, 0.3, 0.2)):
        assert abs(stages.count(stage) / 1000 - ratio) < 4.5 * math.sqrt(ratio * (1 - ratio) / 1000)
    step = stages.index(0)
    share = Share(step, range(2), 2, seed=0)
    losses, weighted = gradients(trained, [share])
    light = phase("mid", clips, trained.dit, loss=MidLoss(ratio=(0.5, 0.3, 0.2)))
    same, plain = gradients(light, [share])
    assert losses == same
    torch.testing.assert_close(weighted["proj_out.weight"], 8 * plain["proj_out.weight"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(1, ["mid", "base"]))
def test_it_learns(clips, kind):
    """Twenty steps of plain gradient descent with momentum, on one batch."""
    dit = HeliosDiT(CONFIG)
    initialise(dit, torch.Generator().manual_seed(0))
    trained = phase(kind, clips, dit, dtype="bfloat16")
    optimizer = torch.optim.Adam(dit.parameters(), 3e-3)
    share, seen = Share(0, range(4), 4, seed=0), []
    for _ in range(20):
        optimizer.zero_grad()
        seen.append(sum(loss.item() for loss in trained.backward("transformer", share).values()))
        optimizer.step()
    assert seen[-1] < 0.7 * seen[0]


def test_new_weights():
    """No flow at first; and an even, still picture is the same token in all terms of history (of sums of up to 1024
    products, in float32)."""
    dit = HeliosDiT(CONFIG)
    initialise(dit, torch.Generator().manual_seed(0))
    told = lesson(1)
    assert not answer_of(dit, told, 0, told.target[0], 500.0).any()
    picture = torch.randn(1, 16, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    terms = [picture.expand(1, 16, frames, 8, 8) for frames in (16, 2, 2)]
    tokens = dit.embed_history(*terms)
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), atol=1e-4, rtol=0)
    noisy = dit.patchify(dit.patch_embedding, picture.expand(1, 16, 9, 8, 8))
    torch.testing.assert_close(noisy, tokens[:, :1].expand_as(noisy), atol=1e-4, rtol=0)
    again = HeliosDiT(CONFIG)
    initialise(again, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(dit.parameters(), again.parameters(), strict=True))


def test_new_weights_listen_to_words_more_than_to_padding():
    """Over rows of the size that an encoder's norm gives, the zero rows' logits lie some 7 below the words', so that
    the nearly 500 of them have less attention than ten words."""
    config = replace(CONFIG, num_attention_heads=4, attention_head_dim=32, rope_dim=(12, 10, 10), text_dim=64)
    dit = HeliosDiT(config)
    initialise(dit, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    rows = torch.cat([torch.randn(1, 10, 64, generator=g), torch.zeros(1, 2, 64)], dim=1)
    stream = F.layer_norm(torch.randn(1, 200, config.width, generator=g), (config.width,))
    for block in dit.blocks:
        keys, _ = block.attn2.key_value(dit.condition_embedder.text(rows))
        logits = torch.einsum("bqnd,bknd->bnqk", block.attn2.query(stream), keys) / 32**0.5
        words, padding = logits[..., :10], logits[..., 10]
        assert -8.5 < (padding - words.mean(-1)).mean() < -5
        share = (MAX_TEXT_TOKENS - 10) * padding.exp() / words.exp().sum(-1)
        assert share.median() < 0.5


@pytest.mark.oracle
def test_what_is_saved_is_read_again(tmp_path, clips):
    """Both helios and diffusers read it as a checkpoint of the phase's kind; a fresh transformer has its config."""
    from diffusers import HeliosTransformer3DModel

    spec = replace(SPECS["tiny"], transformer={**SPECS["tiny"].transformer, "num_layers": 1})
    folder = write_checkpoint(tmp_path / "model", spec, kind="base")
    fresh = new_transformer(Checkpoint.open(folder), seed=3)
    assert len(fresh.blocks) == 1
    with torch.no_grad():
        fresh.proj_out.weight.normal_()
    phase("mid", clips, fresh, dtype="bfloat16").save(folder)
    found = Checkpoint.open(folder)
    assert (found.kind, found.trained) == ("mid", True)
    theirs = dict(HeliosTransformer3DModel.from_pretrained(folder / "transformer").named_parameters())
    for name, parameter in transformer_of(found).named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, fresh.get_parameter(name))
        assert torch.equal(theirs[name].data, parameter)


def test_impossible_losses_are_refused():
    with pytest.raises(ValidationError, match="0 for every stage"):
        MidLoss(ratio=(0.0, 0.0, 0.0))
