"""Pairs of a teacher and the regression on them, against the engine's sampler and the transformer called one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from helios_cli.bench.specs import SCHEDULERS
from helios_cli.engine.clock import Clock
from helios_cli.engine.denoise import Denoiser, stages_of
from helios_cli.engine.history import History
from helios_cli.errors import InputError
from helios_cli.sampling.noise import BlockNoise
from helios_cli.sampling.schedule import SchedulerConfig
from helios_cli.train.data.encode import encoder_identity
from helios_cli.train.data.pairs import PairsFolder, PairsNote, open_pairs, shard_path, write_pairs
from helios_cli.train.events import FillDone, FillStarted
from helios_cli.train.history import Lesson
from helios_cli.train.phase import Share
from helios_cli.train.phases import ode, pairs
from helios_cli.train.rollout import Walk, draw_noise, guided, predictor, student_roll_out, teacher_roll_out
from helios_cli.train.settings.student import DistillSettings, OdeSettings, PairsSettings, PairsTeacher
from helios_cli.train.transformer import conditioning_of
from helios_cli.weights.checkpoint import Preset, weights_identity
from support.distilling import CONFIG, LATENT, SIZE, Clips, checkpoint, network
from support.slopes import assert_slope

DMD = SchedulerConfig.from_json(SCHEDULERS["distilled"])
MID = SchedulerConfig.from_json(SCHEDULERS["mid"])
CLOCK = Clock(torch.device("cpu"))


def lesson(samples: int) -> Lesson:
    batch = Clips().batch([(i % 2, 1) for i in range(samples)])
    return Lesson(batch.latents, batch.past, batch.anchor, batch.rows, batch.captions, [1] * samples)


def engine_chunk(dit, config: SchedulerConfig, steps: tuple[int, ...], guidance: float, told: Lesson) -> torch.Tensor:
    """Return what `helios render` makes of one sample's history and prompt."""
    history = History(told.past, told.anchor)
    settings = Preset(steps=steps, guidance=guidance)
    with torch.no_grad():
        text, negative = dit.embed_text(told.rows), dit.embed_text(torch.zeros_like(told.rows))
        if guidance == 1:
            negative = None
        denoiser = Denoiser(dit, config, settings, SIZE, CLOCK)
        chunk = denoiser.chunk(0, history, text, negative, torch.Generator().manual_seed(3), amplify=False)
        while True:
            try:
                next(chunk)
            except StopIteration as end:
                return end.value


def noise() -> object:
    return draw_noise(LATENT, DMD, BlockNoise(DMD.gamma, (1, 2, 2)), iter([torch.Generator().manual_seed(3)]))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_goes_as_the_engine_samples(steps):
    """Every part of it: history, prompt, timesteps, sigmas, noise, jumps."""
    dit, told = network(0), lesson(1)
    stages = stages_of(DMD, (steps,) * 3, SIZE, CONFIG.patch_size, amplify=False)
    predict = predictor(dit, conditioning_of(dit, told.terms(), told.rows))
    found = student_roll_out(predict, stages, noise(), [steps - 1] * 3)
    wanted = engine_chunk(dit, DMD, (steps,) * 3, 1.0, told)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # float32 in another order of sums


def test_a_teacher_goes_as_the_engine_samples():
    dit, told = network(0), lesson(1)
    stages = stages_of(MID, (3, 3, 3), SIZE, CONFIG.patch_size, amplify=False)
    cond = predictor(dit, conditioning_of(dit, told.terms(), told.rows))
    uncond = predictor(dit, conditioning_of(dit, told.terms(), torch.zeros_like(told.rows)))
    walks = teacher_roll_out(guided(cond, uncond, 2.0), MID, stages, noise(), 1)
    wanted = engine_chunk(dit, MID, (3, 3, 3), 2.0, told)
    torch.testing.assert_close(walks[-1].end, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("size", [(128, 64), (640, 384)])
@pytest.mark.parametrize("kept", [4, 12])
def test_kept_states_are_the_student_s_steps(size, kept):
    """The teacher's finer schedule and every coarser one of the student meet in the numbers that the engine uses."""
    every = stages_of(DMD, (kept,) * 3, size, (1, 2, 2), amplify=False)
    for steps in (1, 2, 4):
        for fine, coarse in zip(every, stages_of(DMD, (steps,) * 3, size, (1, 2, 2), amplify=False), strict=True):
            assert fine.timesteps[:: kept // steps] == coarse.timesteps
            assert fine.sigmas[: -1 : kept // steps] == pytest.approx(coarse.sigmas[:-1], abs=1e-12)
            assert fine.renoise == coarse.renoise
    doubled = stages_of(DMD, (1, 1, 1), size, (1, 2, 2), amplify=True)
    assert doubled == stages_of(DMD, (2, 2, 2), size, (1, 2, 2), amplify=False)


def test_states_lie_where_a_straight_flow_says():
    """With a constant flow v a solver of any order goes from the start point P along P - (sigma_0 - sigma) v."""
    flow = torch.randn(1, *LATENT)[..., :1, :1]
    stages = stages_of(DMD, (8, 8, 8), SIZE, (1, 2, 2), amplify=False)
    for config in (MID, SchedulerConfig(scheduler_type="euler")):
        for walk, stage in zip(
            teacher_roll_out(lambda x, t: flow.expand_as(x), config, stages, noise(), 4), stages, strict=True
        ):
            start = walk.states[0]
            for state, sigma in zip(walk.states, stage.sigmas[:-1:2], strict=True):
                torch.testing.assert_close(state, start - (stage.sigmas[0] - sigma) * flow, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(walk.end, start - stage.sigmas[0] * flow, rtol=1e-4, atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    """Four pairs of noise in two shards, two states kept."""
    torch.manual_seed(0)
    open_pairs(tmp_path, PairsNote({"teacher": "none"}, 2, SIZE))
    for number in range(2):
        walks = [
            Walk(torch.randn(2, 2, 16, 9, 2 << k, 4 << k), torch.randn(2, 16, 9, 2 << k, 4 << k)) for k in range(3)
        ]
        write_pairs(shard_path(tmp_path, number), lesson(2), walks)
    return tmp_path


def settings_of(folder: Path, *steps: int, **changes) -> OdeSettings:
    """A student that is to take so many steps a stage, one of these each time."""
    data, student = {"pairs": str(folder)}, {"steps": steps}
    return OdeSettings(phase="ode", start="-", out="-", steps=1, dtype="float32", data=data, student=student, **changes)


def phase(folder: Path, **changes) -> ode.OdePhase:
    settings, pairs_of_it = settings_of(folder, 1, 2, **changes), PairsFolder(folder)
    return ode.OdePhase(settings, network(0).requires_grad_(), pairs_of_it, torch.device("cpu"))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_errors_are_those_of_the_plain_transformer(folder, stage):
    ours, dit = phase(folder), network(0)
    numbers = stages_of(DMD, (2, 2, 2), SIZE, CONFIG.patch_size, amplify=False)[stage]
    found = ours.errors(stage, [0, 3, 2], [0, 1, 1])
    batch = ours.pairs.batch([0, 3, 2], stage)
    for i, place in enumerate([0, 1, 1]):
        told, state = batch.lesson, batch.states[i : i + 1, place]
        with torch.no_grad():
            history = dit.embed_history(*(term[i : i + 1] for term in told.terms()))
            mods = dit.modulation(torch.tensor([numbers.timesteps[place]]))
            rope = dit.rope((4, 8), (1 << stage, 2 << stage))
            flow = dit(state, history, mods, rope, dit.embed_text(told.rows[i : i + 1]))
        error = (state - numbers.sigmas[place] * flow - batch.end[i : i + 1]).square().mean()
        assert found[i].item() == pytest.approx(error.item(), rel=1e-4)


def test_gradient_by_finite_differences(folder):
    """The weight of 80 and the mean over two samples are in the gradient alone."""
    share = Share(step=0, samples=range(2), batch=2, seed=0)
    assert_slope(phase(folder), "student", share, lambda losses: 40.0 * sum(losses.values()))


def test_two_processes_add_up_to_one(folder):
    whole, halves = phase(folder), phase(folder)
    whole.backward("student", Share(step=3, samples=range(4), batch=4, seed=0))
    for samples in (range(2), range(2, 4)):
        halves.backward("student", Share(step=3, samples=samples, batch=4, seed=0))
    for a, b in zip(whole.dit.parameters(), halves.dit.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)  # sums in another order


def test_samples_are_steps_of_the_student_s_schedules(folder):
    """For (1, 2), half the draws are the one step and a quarter each of the two."""
    ours = phase(folder)
    places = [ours.draw_state(torch.Generator().manual_seed(i)) for i in range(400)]
    assert set(places) == {0, 1} and places.count(1) == pytest.approx(100, abs=5 * 8.7)


def test_pairs_are_made_once_and_go_on(tmp_path, monkeypatch):
    start = checkpoint(tmp_path, "mid")
    monkeypatch.setattr(pairs, "LatentClips", lambda *_, **__: _Noted())
    monkeypatch.setattr(pairs, "require_same_encoder", lambda *_: None)
    settings = pairs_settings(tmp_path / "pairs", pairs=2)
    assert made(settings, start) == [1, 2]
    first, second = (shard_path(settings.folder, number) for number in range(2))
    assert first.read_bytes() != second.read_bytes()
    before = second.read_bytes()
    second.unlink()
    assert made(settings, start) == [2]
    assert second.read_bytes() == before
    with pytest.raises(InputError, match=r"guidance was 2\.0, is 3\.0"):
        list(
            pairs.run(
                settings.model_copy(update={"teacher": PairsTeacher(steps=2, kept=1, guidance=3.0)}),
                start,
                torch.device("cpu"),
            )
        )


@pytest.mark.slow
def test_several_processes_share_the_pairs(tmp_path, monkeypatch):
    """The second one's are those that one process alone would have made."""
    start = checkpoint(tmp_path, "mid")
    monkeypatch.setattr(pairs, "LatentClips", lambda *_, **__: _Noted())
    monkeypatch.setattr(pairs, "require_same_encoder", lambda *_: None)
    alone, shared = (pairs_settings(tmp_path / name, pairs=3) for name in ("alone", "shared"))
    made(alone, start)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, done in (("1", [1]), ("0", [2, 3])):
        monkeypatch.setenv("RANK", rank)
        assert made(shared, start) == done
    for number in range(3):
        one, other = (shard_path(settings.folder, number).read_bytes() for settings in (alone, shared))
        assert one == other


def made(settings: PairsSettings, start) -> list[int]:
    """Makes the pairs that are missing; how many there were after each batch."""
    started, *filled, done = pairs.run(settings, start, torch.device("cpu"))
    assert isinstance(started, FillStarted) and isinstance(done, FillDone)
    assert all(event.total == settings.pairs for event in filled)
    return [event.done for event in filled]


def pairs_settings(out: Path, **values) -> PairsSettings:
    return PairsSettings(
        phase="pairs",
        start="-",
        out=str(out),
        dtype="float32",
        batch=1,
        data={"clips": "-", "held_back": 0},
        teacher=PairsTeacher(steps=2, kept=1, guidance=2.0),
        **values,
    )


class _Noted(Clips):
    note = SimpleNamespace(latent_shape=(16, 8, 16), encoder="-", size=SIZE)


def test_what_does_not_fit_is_said(tmp_path, folder):
    with pytest.raises(InputError, match="no pairs of a teacher"):
        PairsFolder(tmp_path / "none")
    with pytest.raises(ValueError, match="write `steps = 8`"):
        PairsTeacher(steps=6, kept=4)
    with pytest.raises(InputError, match="keep 2 states"):
        ode.build(settings_of(folder, 3), None, torch.device("cpu"))
    for phase in (PairsSettings, DistillSettings):
        tables = {"data": {"clips": "-"}, "history": {"positions": "absolute"}}
        more = {"pairs": 1} if phase is PairsSettings else {"steps": 1, "matching": {"real": "-"}}
        with pytest.raises(ValidationError, match="leave it out here"):
            phase(phase="-", start="-", out="-", **tables, **more)


def test_pairs_of_another_model_are_refused(tmp_path):
    """Pairs of another text encoder are refused for any student; those of another teacher, for a student that has
    not begun."""
    mid = checkpoint(tmp_path, "mid")
    start = dataclasses.replace(mid, kind="distilled")

    def build(start, **made_with: str) -> None:
        (tmp_path / "pairs.json").unlink(missing_ok=True)
        open_pairs(tmp_path, PairsNote(made_with, 1, SIZE))
        ode.build(settings_of(tmp_path, 1), start, torch.device("cpu"))

    walks = [Walk(torch.zeros(1, 1, 16, 9, 2 << k, 4 << k), torch.zeros(1, 16, 9, 2 << k, 4 << k)) for k in range(3)]
    write_pairs(shard_path(tmp_path, 0), lesson(1), walks)
    encoder, teacher = encoder_identity(start), weights_identity(start)
    build(mid, encoder=encoder, teacher=teacher)
    build(start, encoder=encoder, teacher="another")
    with pytest.raises(InputError, match="another teacher"):
        build(mid, encoder=encoder, teacher="another")
    with pytest.raises(InputError, match="another VAE or text encoder"):
        build(start, encoder="another", teacher=teacher)
