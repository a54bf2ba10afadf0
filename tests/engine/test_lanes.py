"""Films in lockstep: what each would be alone, while each block is read once for all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.events import FilmDone
from helios_cli.engine.lanes import Lane, lockstep
from helios_cli.engine.models import Models
from helios_cli.engine.session import Session
from helios_cli.errors import CheckpointError, HeliosError, OutOfMemory, PictureError
from helios_cli.film.writer import open_writer
from helios_cli.recipe.plan import Plan
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.placement import HOST_SLOTS, Placement
from support.renders import Case, ended_early, models_of, plan_of

LAYERS = 3


@pytest.fixture
def models_at(checkpoints):
    def make(kind: str, placement: Placement) -> Models:
        folder = checkpoints(kind, num_layers=LAYERS)
        return Models(Checkpoint.open(folder), torch.device("cpu"), torch.float32, placement=placement)

    return make


def plans_of(kind: str) -> list[Plan]:
    """Plans with different lengths, sizes, seeds and prompts; the second has a cut, after which steps are doubled
    again."""
    steps = (2,) if kind == "base" else (1, 1, 2)
    first = plan_of(Case(kind, (64, 64), steps, chunks=1))
    second = plan_of(Case(kind, (128, 64), steps, chunks=3, seed=5, prompt="the green square"))
    cut = replace(second.chunks[2], fresh=True, seed=9)
    third = plan_of(Case(kind, (64, 64), steps, chunks=2, seed=8))
    third = replace(third, guidance=1.0 if kind == "distilled" else 3.0)
    second = replace(second, chunks=(*second.chunks[:2], cut))
    return [first, ended_early(second), ended_early(third)]


class Calling(Session):
    """A session with this model, whose calls `answer` makes."""

    def __init__(self, models: Models, answer=None) -> None:
        super().__init__()
        self._models, self.answer = models, answer or models.answer


def together(plans: list[Plan], models: Models, out: Path, answer=None) -> list[object]:
    """Renders the films into folders 0, 1, ... of `out`; the last event, or error, of each."""
    session = Calling(models, answer)

    def film(place: int, plan: Plan, lane: Session):
        writer = open_writer(f"{out / str(place)}/", size=plan.size, fps=plan.fps)
        return render_chunks(
            plan, models, writer, answer=lane.answer, clock=lane.clock(), chunks_beside=lane.chunks_beside
        )

    lanes = [Lane(session, partial(film, place, plan)) for place, plan in enumerate(plans)]
    ends = {lane: step for lane, step in lockstep(lanes, session)}
    return [ends.get(lane) for lane in lanes]


def frames_in(out) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])


def frames_alone(plan: Plan, models: Models, out: Path) -> np.ndarray:
    list(render_chunks(plan, models, open_writer(f"{out}/", size=plan.size, fps=plan.fps)))
    return frames_in(out)


@pytest.fixture(scope="module")
def films_alone(checkpoints, tmp_path_factory):
    """Return a function that gives the frames of `plans_of` a kind, each rendered alone, once."""
    known: dict[str, list[np.ndarray]] = {}

    def frames_of(kind: str) -> list[np.ndarray]:
        if kind not in known:
            models, out = models_of(checkpoints(kind, num_layers=LAYERS)), tmp_path_factory.mktemp("alone")
            known[kind] = [frames_alone(plan, models, out / str(place)) for place, plan in enumerate(plans_of(kind))]
        return known[kind]

    return frames_of


WAYS = {"none": Placement("none"), "stream": Placement("stream"), "turns": Placement("stream", 1, turns=True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "placement"),
    [(kind, way) for kind in ("base", "mid", "distilled") for way in WAYS.values()]
    + [("distilled", Placement("model"))],
    ids=str,
)
def test_films_together_are_what_they_are_alone(kind, placement, models_at, films_alone, tmp_path):
    ends = together(plans_of(kind), models_at(kind, placement), tmp_path)
    for place, (end, expected) in enumerate(zip(ends, films_alone(kind), strict=True)):
        assert isinstance(end, FilmDone)
        assert np.array_equal(frames_in(tmp_path / str(place)), expected)


@pytest.mark.slow
def test_each_block_is_read_once_for_all(models_at, tmp_path):
    """Three films of two chunks take the passes of one."""
    models = models_at("distilled", Placement("stream"))
    plans = [plan_of(Case("distilled", (64, 64), (1, 1, 1), chunks=2, seed=seed)) for seed in (1, 2, 3)]
    together(plans, models, tmp_path)
    passes = 6 + 3
    assert passes * LAYERS <= sum(models.stream.blocks_read) <= passes * LAYERS + HOST_SLOTS


@pytest.mark.slow
def test_a_film_that_fails_leaves_the_others_alone(models_at, films_alone, tmp_path, monkeypatch):
    plans, models = plans_of("distilled"), models_at("distilled", Placement("stream"))
    isfinite, seen = torch.isfinite, []

    def one_is_not(x):
        wide = x.dim() == 5 and x.shape[-1] == 16  # the second film's latents, from its second chunk on
        seen.extend([1] if wide else [])
        return torch.zeros(1, dtype=torch.bool) if wide and len(seen) == 2 else isfinite(x)

    monkeypatch.setattr("helios_cli.engine.chunks.torch.isfinite", one_is_not)
    ends = together(plans, models, tmp_path)
    assert isinstance(ends[1], PictureError) and not (tmp_path / "1").exists()
    monkeypatch.undo()
    for place in (0, 2):
        assert np.array_equal(frames_in(tmp_path / str(place)), films_alone("distilled")[place])


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

    def fail(calls):
        if calls:
            raise raised
        return []

    if issubclass(told, HeliosError):
        assert [type(end) for end in together(plans_of("distilled"), models, tmp_path, fail)] == [told] * 3
    else:
        with pytest.raises(told, match=str(raised)[:20]):
            together(plans_of("distilled"), models, tmp_path, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_key_press_ends_all(models_at, tmp_path):
    models = models_at("distilled", Placement("none"))

    def press(calls):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(plans_of("distilled"), models, tmp_path, press)
    assert list(tmp_path.iterdir()) == []


def test_a_film_s_phases_hold_its_own_time(models_at, tmp_path, monkeypatch):
    """Neither other films' model calls nor what happens between a film's steps. By a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    models = models_at("distilled", Placement("none"))
    plans = [plan_of(Case("distilled", (64, 64), (1, 1, 1), chunks=1, seed=seed)) for seed in (1, 2)]
    done = {}

    def answer(calls):
        now[0] += 10.0 * len(calls)
        return models.answer(calls)

    session = Calling(models, answer)

    def film(plan: Plan, lane: Session):
        writer = open_writer(f"{tmp_path}/{plan.chunks[0].seed}/", size=plan.size, fps=plan.fps)
        return render_chunks(plan, models, writer, answer=lane.answer, clock=lane.clock(), chunks_beside=0)

    for lane, event in lockstep([Lane(session, partial(film, plan)) for plan in plans], session):
        now[0] += 1000.0  # the consumer takes its time
        done[lane] = event
    for end in done.values():  # a first chunk's steps are doubled
        assert [end.phases[f"stage {k}"] for k in range(3)] == [20.0, 20.0, 20.0]
