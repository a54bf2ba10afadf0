"""Films in lockstep: what each would be alone, while each block is read once for all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helios_cli.engine.calls import Lane, answered, lockstep
from helios_cli.engine.clock import Clock
from helios_cli.engine.events import Event
from helios_cli.engine.models import Models
from helios_cli.engine.render import render_steps
from helios_cli.engine.script import Planned
from helios_cli.errors import CheckpointError, OutOfMemory, PictureError
from helios_cli.film.writer import open_writer
from helios_cli.recipe.plan import Plan
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.placement import HOST_SLOTS, Placement
from support.renders import Case, plan_of

LAYERS = 3


@pytest.fixture
def models_at(checkpoints):
    def make(kind: str, placement: Placement) -> Models:
        folder = checkpoints(kind, num_layers=LAYERS)
        return Models(Checkpoint.open(folder), torch.device("cpu"), torch.float32, placement=placement)

    return make


def plans_of(kind: str) -> list[Plan]:
    """Of different length, size, seed and prompt; the second has a cut, after which steps are doubled again."""
    steps = (2,) if kind == "base" else (1, 1, 2)
    first = plan_of(Case(kind, (64, 64), steps, chunks=1))
    second = plan_of(Case(kind, (128, 64), steps, chunks=3, seed=5, prompt="the green square"))
    cut = replace(second.chunks[2], fresh=True, seed=9)
    third = plan_of(Case(kind, (64, 64), steps, chunks=2, seed=8))
    third = replace(third, guidance=1.0 if kind == "distilled" else 3.0)
    return [first, replace(second, chunks=(*second.chunks[:2], cut)), third]


def steps_of(plan: Plan, models: Models, out):
    return render_steps(Planned(plan), models, open_writer(f"{out}/", size=plan.size, fps=plan.fps))


def lane_of(plan: Plan, models: Models, out) -> Lane:
    """A film of which only the calls are passed on."""

    def steps():
        film, reply = steps_of(plan, models, out), None
        while True:
            try:
                said = film.send(reply)
            except StopIteration:
                return "done"
            reply = None if isinstance(said, Event) else (yield said)

    return Lane(steps())


def frames_in(out) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])


def frames_alone(plan: Plan, models: Models, out) -> np.ndarray:
    with torch.inference_mode():
        list(answered(steps_of(plan, models, out), models.answer))
    return frames_in(out)


WAYS = {"none": Placement("none"), "stream": Placement("stream"), "turns": Placement("stream", 1, turns=True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "placement"),
    [(kind, way) for kind in ("base", "mid", "distilled") for way in WAYS.values()]
    + [("distilled", Placement("model"))],
    ids=str,
)
def test_films_together_are_what_they_are_alone(kind, placement, models_at, tmp_path):
    plans, models = plans_of(kind), models_at(kind, placement)
    lanes = [lane_of(plan, models, tmp_path / str(place)) for place, plan in enumerate(plans)]
    with torch.inference_mode():
        lockstep(lanes, models.answer)
    alone = models_at(kind, Placement())
    for place, (plan, lane) in enumerate(zip(plans, lanes, strict=True)):
        assert lane.error is None and lane.result == "done"
        expected = frames_alone(plan, alone, tmp_path / f"alone{place}")
        assert np.array_equal(frames_in(tmp_path / str(place)), expected)


@pytest.mark.slow
def test_each_block_is_read_once_for_all(models_at, tmp_path):
    """Three films of two chunks take the passes of one."""
    models = models_at("distilled", Placement("stream"))
    plans = [plan_of(Case("distilled", (64, 64), (1, 1, 1), chunks=2, seed=seed)) for seed in (1, 2, 3)]
    with torch.inference_mode():
        lockstep([lane_of(plan, models, tmp_path / str(place)) for place, plan in enumerate(plans)], models.answer)
    passes = 6 + 3
    assert passes * LAYERS <= sum(models.stream.blocks_read) <= passes * LAYERS + HOST_SLOTS


def test_a_film_that_fails_leaves_the_others_alone(models_at, tmp_path, monkeypatch):
    plans, models = plans_of("distilled"), models_at("distilled", Placement("stream"))
    lanes = [lane_of(plan, models, tmp_path / str(place)) for place, plan in enumerate(plans)]
    isfinite, seen = torch.isfinite, []

    def one_is_not(x):
        wide = x.dim() == 5 and x.shape[-1] == 16  # the second film's latents, from its second chunk on
        seen.extend([1] if wide else [])
        return torch.zeros(1, dtype=torch.bool) if wide and len(seen) == 2 else isfinite(x)

    monkeypatch.setattr("helios_cli.engine.render.torch.isfinite", one_is_not)
    with torch.inference_mode():
        lockstep(lanes, models.answer)
    assert isinstance(lanes[1].error, PictureError) and not (tmp_path / "1").exists()
    monkeypatch.undo()
    for place in (0, 2):
        expected = frames_alone(plans[place], models, tmp_path / f"alone{place}")
        assert np.array_equal(frames_in(tmp_path / str(place)), expected)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU"), OutOfMemory),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), OutOfMemory),
        (RuntimeError("Triton Error [CUDA]: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError),
        (CheckpointError("gone"), CheckpointError),
        (RuntimeError("a bug"), RuntimeError),
    ],
    ids=["device", "host", "Python", "CUDA", "cuBLAS", "cuDNN", "Triton", "access", "file", "bug"],
)
def test_a_call_that_fails_ends_all_that_wait_for_it(raised, told, models_at, tmp_path):
    models = models_at("distilled", Placement("none"))
    lanes = [lane_of(plan, models, tmp_path / str(place)) for place, plan in enumerate(plans_of("distilled"))]

    def fail(calls):
        if calls:
            raise raised
        return []

    with torch.inference_mode():
        lockstep(lanes, fail)
    assert [type(lane.error) for lane in lanes] == [told] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_key_press_ends_all(models_at, tmp_path):
    models = models_at("distilled", Placement("none"))
    lanes = [lane_of(plan, models, tmp_path / str(place)) for place, plan in enumerate(plans_of("distilled"))]

    def press(calls):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        lockstep(lanes, press)
    assert list(tmp_path.iterdir()) == []


def test_a_film_s_phases_hold_its_own_time(models_at, tmp_path, monkeypatch):
    """Neither other films' model calls nor what happens between a film's steps. By a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    models = models_at("distilled", Placement("none"))
    plans = [plan_of(Case("distilled", (64, 64), (1, 1, 1), chunks=1, seed=seed)) for seed in (1, 2)]
    clocks = [Clock(models.device) for _ in plans]

    def film(plan, clock, out):
        writer = open_writer(f"{out}/", size=plan.size, fps=plan.fps)
        steps, reply = render_steps(Planned(plan), models, writer, clock=clock), None
        while True:
            try:
                said = steps.send(reply)
            except StopIteration:
                return
            now[0] += 1000.0  # somebody looks at what it says
            reply = None if isinstance(said, Event) else (yield said)

    def answer(calls):
        now[0] += 10.0 * len(calls)
        return models.answer(calls)

    lanes = [
        Lane(film(plan, clock, tmp_path / str(i))) for i, (plan, clock) in enumerate(zip(plans, clocks, strict=True))
    ]
    with torch.inference_mode():
        lockstep(lanes, answer)
    assert [lane.error for lane in lanes] == [None, None]
    for clock in clocks:  # a first chunk's steps are doubled
        assert [clock.seconds[f"stage {k}"] for k in range(3)] == [20.0, 20.0, 20.0]
