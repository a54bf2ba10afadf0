"""A film that is decided chunk by chunk is the film of the plan that it becomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.events import ChunkDone, ChunksReused, Event, FilmStarted, Notice, PhaseStarted, StepDone
from helios_cli.engine.models import Models
from helios_cli.film.cache import Cache
from helios_cli.film.writer import open_writer
from helios_cli.recipe.plan import Plan
from helios_cli.units import MAX_TEXT_TOKENS
from helios_cli.weights.placement import Placement
from support import reruns
from support.renders import models_of
from support.tiers import some

RED, GREEN = reruns.PROMPTS[:2]
FILM = reruns.plan((RED, 33, 1), (GREEN, 33, None), (RED, 20, 5))


class Growing:
    """A script that learns each chunk only when it is requested, and knows nothing of the whole film."""

    num_frames = num_chunks = None

    def __init__(self, whole: Plan) -> None:
        self.whole = whole
        self.plan = replace(whole, chunks=whole.chunks[:1])

    def is_early(self, index: int) -> bool:
        return False

    def decide(self, index: int) -> Iterator[Event]:
        if index == len(self.plan.chunks):
            self.plan = replace(self.whole, chunks=self.whole.chunks[: index + 1])
        yield Notice(f"decided {index}")


@pytest.fixture
def models(checkpoints) -> Models:
    return models_of(checkpoints("distilled"))


@pytest.fixture(scope="module")
def planned(checkpoints, tmp_path_factory) -> np.ndarray:
    """The frames of FILM where all of it is known."""
    out = tmp_path_factory.mktemp("planned") / "film.mkv"
    reruns.run(FILM, models_of(checkpoints("distilled")), out)
    return reruns.decoded(out)


def run(plan: Plan, models: Models, out, cache: Cache | None = None, *, beside: int = 0) -> list[Event]:
    writer = open_writer(out, size=plan.size, fps=plan.fps)
    fingerprints = partial(reruns.fingerprints_of, models=models)
    return list(
        render_chunks(Growing(plan), models, writer, fingerprints=fingerprints, cache=cache, chunks_beside=beside)
    )


def test_the_frames_are_those_of_the_plan(models, tmp_path, planned):
    events = run(FILM, models, tmp_path / "grown.mkv")
    assert np.array_equal(reruns.decoded(tmp_path / "grown.mkv"), planned)
    (started,) = (event for event in events if isinstance(event, FilmStarted))
    assert (started.frames, started.chunks, started.steps) == (None, None, None)
    assert [(event.chunks, event.frames) for event in events if isinstance(event, ChunkDone)] == [
        (None, frames) for frames in (33, 66, 86)
    ]


@pytest.mark.parametrize(
    ("placement", "beside"),
    some(
        1,
        [
            (Placement("stream"), 1),
            (Placement("stream", turns=True), 0),
            (Placement("none", text_beside=False), 2),
            (Placement("none", text_beside=True), 1),
            (Placement("model"), 0),
        ],
    ),
    ids=["stream", "turns", "apart", "beside", "model"],
)
def test_a_prompt_that_comes_late_moves_parts_and_no_frame(models, tmp_path, placement, beside, planned):
    models.place(placement)
    run(FILM, models, tmp_path / "grown.mkv", beside=beside)
    assert np.array_equal(reruns.decoded(tmp_path / "grown.mkv"), planned)


def test_a_chunk_is_decided_when_the_one_before_it_is_denoised(models, tmp_path):
    events = run(FILM, models, tmp_path / "film.mkv")
    last = None
    for event in events:
        if isinstance(event, Notice):
            assert event.message == f"decided {0 if last is None else last + 1}"
        elif isinstance(event, StepDone):
            last = event.chunk
    assert events.count(Notice("decided 3")) == 1  # after which there is none


def test_a_prompt_that_comes_late_is_encoded_then(models, tmp_path):
    plan = reruns.plan((RED, 33, 1), (f"{GREEN} " * 300, 1, None))
    events = run(plan, models, tmp_path / "film.mkv")
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases == ["text", "load", "denoise", "decode", "text", "denoise", "decode", "finish"]
    assert any(
        f"longer than {MAX_TEXT_TOKENS} tokens" in event.message for event in events if isinstance(event, Notice)
    )


@pytest.mark.slow
def test_kept_chunks_come_first_and_the_model_is_loaded_behind_them(models, tmp_path, planned):
    cache = Cache(tmp_path / "cache")
    first = replace(FILM, chunks=FILM.chunks[:2], num_frames=66)
    reruns.run(first, models, tmp_path / "first.mkv", cache)
    events = run(FILM, models, tmp_path / "grown.mkv", cache)
    told = [type(event) if isinstance(event, ChunksReused) else getattr(event, "phase", None) for event in events]
    told = [entry for entry in told if entry]
    assert told[:4] == [ChunksReused, ChunksReused, "text", "load"]
    assert {film.chunks for film in cache.films()} == {2, 3}
    assert np.array_equal(reruns.decoded(tmp_path / "grown.mkv"), planned)
