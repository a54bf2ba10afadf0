"""The choice of the target chunk, and the history that the model gets with it."""

from __future__ import annotations

import math

import pytest
import torch

from helios_cli.engine.history import History as EngineHistory
from helios_cli.errors import InputError
from helios_cli.train.history import REFRESHED_EVERY, Lessons
from helios_cli.train.settings.flow import CachedClips, Corruption, HistorySettings
from support.lessons import ROWS, cache, frame, generators

CLEAN = Corruption(clean=1.0)
WHOLE = HistorySettings(text=0, image=0, short=0, empty_caption=0)


def lessons(clips, history: HistorySettings = WHOLE, **drawing) -> Lessons:
    return Lessons(clips, CachedClips(**{"clips": "clips", "held_back": 0, **drawing}), history, CLEAN)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return cache(tmp_path_factory.mktemp("clips"), (1, 4, 2, 3))


def clip_of(latents: torch.Tensor) -> tuple[int, int]:
    """The clip, and the chunk of it, that begins with these latents."""
    number = int(latents[0, 0, 0, 0]) - 1
    return number // 100, number % 100 // 9


def test_the_terms_are_those_of_the_engine(clips):
    """The history of a film that made the same chunks before."""
    lesson = lessons(clips).draw(generators(24))
    seen = set()
    for i, target in enumerate(lesson.target):
        clip, chunk = clip_of(target)
        seen.add(chunk)
        engine = EngineHistory.empty(16, 8, 8, torch.device("cpu"))
        for past in range(chunk):
            frames = torch.stack([frame(clip, 9 * past + t) for t in range(9)], dim=1)[None]
            engine.remember(frames)
        for ours, theirs in zip(lesson.terms(), engine.terms(), strict=True):
            assert torch.equal(ours[i : i + 1], theirs)
        assert lesson.captions[i] == f"clip {clip}"
        assert torch.equal(lesson.rows[i, :, 0], torch.tensor([clip] * 3 + [0] * (ROWS - 3)).float())
        assert lesson.chunks[i] == chunk
    assert seen == {0, 1, 2, 3}


def rate(hits: list[bool], expected: float) -> None:
    """The share of hits is within 4.5 deviations of a binomial number's: one false alarm in 150,000."""
    found, deviation = sum(hits) / len(hits), math.sqrt(expected * (1 - expected) / len(hits))
    assert abs(found - expected) <= 4.5 * deviation, f"{found:.3f} instead of {expected}"


def test_chunk_0_as_often_as_asked(clips):
    lesson = lessons(clips, first=0.6).draw(generators(600))
    rate([chunk == 0 for chunk in lesson.chunks], 0.6)
    later = [clip_of(target) for target, chunk in zip(lesson.target, lesson.chunks, strict=True) if chunk]
    assert set(later) == {(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2)}
    assert {clip_of(t)[0] for t, chunk in zip(lesson.target, lesson.chunks, strict=True) if not chunk} == {0, 1, 2, 3}


def kind_of(past: torch.Tensor, anchor: torch.Tensor) -> tuple[int, bool]:
    """Empty frames at the beginning of a past, and whether there is an anchor."""
    filled = past.ne(0).any(-1).any(-1).any(0)
    missing = int(filled.float().argmax()) if filled.any() else 19
    assert filled[missing:].all()
    return missing, bool(anchor.ne(0).any())


def test_tasks_are_drawn_as_the_method_says(tmp_path):
    """From text; from a picture; with a short past: probabilities one after the other, each of what is left."""
    clips = cache(tmp_path, (4,))
    source = lessons(clips, HistorySettings(text=0.4, image=0.1, short=0.5, empty_caption=0.2))
    lesson = source.draw(generators(2000))
    whole = [i for i, chunk in enumerate(lesson.chunks) if chunk == 3]
    kinds = [kind_of(lesson.past[i], lesson.anchor[i]) for i in whole]
    assert set(kinds) == {(19, False), (18, True), (0, True), (1, True), (10, True), (19, True)}
    rate([kind == (19, False) for kind in kinds], 0.4)
    rate([kind == (18, True) for kind in kinds], 0.6 * 0.1)
    rate([kind == (0, True) for kind in kinds], 0.6 * 0.9 * 0.5)
    rate([kind == (10, True) for kind in kinds], 0.6 * 0.9 * 0.5 / 3)
    empty = [caption == "" for caption in lesson.captions]
    rate(empty, 0.2)
    for i, is_empty in enumerate(empty):
        first, rest = lesson.rows[i, 0, 0].item(), lesson.rows[i, 1:, 0]
        assert (first == -1 and not rest.any()) == is_empty  # the one row of "", as the engine guides by


def test_no_anchor_if_it_is_off(clips):
    lesson = lessons(clips, HistorySettings(text=0, image=0.3, short=0, empty_caption=0, anchor=False)).draw(
        generators(64)
    )
    assert not lesson.anchor.any()
    assert lesson.past.any()


def test_a_sample_is_its_generator_s(clips):
    """Alone or in company, whatever the others draw."""
    settings = HistorySettings(text=0.2, image=0.2, short=0.5, empty_caption=0.3)
    together = lessons(clips, settings, first=0.5).draw(generators(16))
    for i in (0, 5, 15):
        alone = lessons(clips, settings, first=0.5).draw(generators(16)[i : i + 1])
        for name in ("target", "past", "anchor", "rows"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i])
        assert alone.captions == together.captions[i : i + 1]


def test_held_back_clips_are_not_trained_on(clips):
    for first in (None, 0.5):
        lesson = lessons(clips, held_back=2, first=first).draw(generators(64))
        assert {clip_of(target)[0] for target in lesson.target} == {2, 3}


def test_all_clips_held_back_is_an_error(clips):
    with pytest.raises(InputError, match="4 clips, but 4 are held back"):
        lessons(clips, held_back=4)


def test_clips_added_later_are_found(tmp_path):
    clips = cache(tmp_path, (1, 1))
    source = lessons(clips, first=0.5)
    assert {clip_of(t)[0] for t in source.draw(generators(32)).target} == {0, 1}
    cache(tmp_path, (2, 1), "b", first=2)
    for i in range(REFRESHED_EVERY):
        lesson = source.draw(generators(32 if i == REFRESHED_EVERY - 1 else 1, seed=i))
    assert {clip_of(t) for t in source.draw(generators(64)).target} == {(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)}
    assert lesson.target.shape == (32, 16, 9, 8, 8)
