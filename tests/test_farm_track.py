"""The numbers of a farm, whatever order its events come in, against what its films consist of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_cli.engine.events import ChunkDone, ChunksReused, FilmDone, SegmentStarted, StepDone, WorkerLost
from helios_cli.errors import MachineError
from helios_cli.farm_track import FarmTrack, Totals
from support.farm_events import Farm, FarmEvents, film_started, frames_of
from support.tiers import examples

FILMS = {"harbour": (2, 3, 1), "storm": (4,), "dawn": (1, 1, 2), "sea": (2,)}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def tracked(farm: Farm, events=None) -> FarmTrack:
    """Return the track of a farm after `events`, (film, event), or all of its own."""
    track = FarmTrack(list(farm.films), Clock())
    for film, event in [event[1:] for event in FarmEvents(farm)] if events is None else events:
        track.follow(film, event)
    return track


def counts(totals: Totals) -> tuple:
    """Return the numbers that no order of events may change."""
    films = (totals.films, totals.films_done, totals.films_failed, totals.segments_done, totals.segments)
    return (
        *films,
        totals.chunks_done,
        totals.chunks,
        totals.frames_done,
        totals.frames,
        totals.frames_rendered,
        totals.is_exact,
        totals.losses,
    )


@pytest.mark.parametrize("are_safe", [True, False], ids=["safe", "rendered-again"])
@pytest.mark.parametrize("kills", [(), ((25.0, 1), (26.0, 0), (35.0, 1))], ids=["calm", "kills"])
def test_at_the_end_everything_is_counted_once(kills, are_safe):
    totals = tracked(Farm(FILMS, kills=kills, are_safe=are_safe)).totals()
    chunks, frames = sum(map(sum, FILMS.values())), sum(map(frames_of, FILMS.values()))
    assert (totals.films_done, totals.films_failed, totals.is_exact) == (4, 0, True)
    assert (totals.chunks_done, totals.chunks) == (chunks, chunks)
    assert (totals.frames_done, totals.frames, totals.frames_rendered) == (frames, frames, frames)
    assert (totals.segments_done, totals.segments) == (8, 8)
    assert (totals.fraction, totals.seconds_left, totals.losses) == (1.0, 0.0, len(kills))


@settings(max_examples=examples(20))
@given(st.randoms(use_true_random=False), st.integers(0, 5), st.booleans(), st.sampled_from([(), ("storm",)]))
def test_any_order_of_events_gives_the_same_totals(random, seed, are_safe, failing):
    kills = ((20.0 + seed, seed % 4), (50.0, 1))
    farm = Farm(FILMS, kills=kills, are_safe=are_safe, seed=seed, failing=frozenset(failing))
    events = [event[1:] for event in FarmEvents(farm)]
    shuffled = list(events)
    random.shuffle(shuffled)
    track = FarmTrack(list(FILMS), Clock())
    for film, event in shuffled:
        track.follow(film, event)
        totals = track.totals()
        assert totals.fraction is None or 0 <= totals.fraction <= 1
        assert totals.frames is None or totals.frames_done <= totals.frames
    assert counts(track.totals()) == counts(tracked(farm, events).totals())


@settings(max_examples=examples(20))
@given(st.integers(1, 9), st.integers(0, 9), st.lists(st.tuples(st.floats(0, 200), st.integers(0, 8)), max_size=4))
def test_what_is_done_never_shrinks(workers, seed, kills):
    kills = [(seconds, number) for seconds, number in kills if number < workers]
    track, done = FarmTrack(list(FILMS), Clock()), (0, 0, 0)
    for _, film, event in FarmEvents(Farm(FILMS, workers, kills=kills, are_safe=False, seed=seed)):
        track.follow(film, event)
        totals = track.totals()
        now = (totals.chunks_done, totals.frames_done, totals.films_done)
        assert all(after >= before for before, after in zip(done, now, strict=True))
        done = now


def test_a_segment_that_begins_again_is_not_counted_twice():
    track = FarmTrack(["sea"], Clock())
    farm = Farm({"sea": (2, 6)})
    track.follow("sea", film_started("sea", (2, 6)))
    for worker in (farm.worker(0), farm.worker(1)):
        track.follow("sea", SegmentStarted(1, 2, 2, 6, worker=worker))
        for chunk in (2, 3):
            track.follow("sea", ChunkDone(chunk, 8, 33, 10.0, worker=worker))
        assert track.totals().chunks_done == 2
        track.follow("sea", WorkerLost("killed", worker=worker))
    assert (track.totals().workers, track.totals().lost, track.totals().losses) == (0, 2, 2)
    assert track.totals().seconds_left is None


@pytest.mark.parametrize(
    "events", [[ChunksReused(4, 8, 165, 5, "journal")], [ChunksReused(c, 8, 0, 1, "cache") for c in range(5)]]
)
def test_reused_chunks_are_done_and_not_rendered(events):
    track = tracked(
        Farm({"sea": (2, 6)}), [("sea", film_started("sea", (2, 6))), *(("sea", event) for event in events)]
    )
    totals = track.totals()
    assert (totals.chunks_done, totals.frames_rendered) == (5, 0)
    assert totals.frames_done == round(frames_of((2, 6)) * 5 / 8)


def test_films_that_have_not_begun_count_like_the_others():
    track = FarmTrack(["a", "b", "c", "d"], Clock())
    assert track.totals().chunks is None and track.totals().fraction is None
    track.follow("a", film_started("a", (4,)))
    track.follow("b", film_started("b", (8,)))
    assert (track.totals().chunks, track.totals().is_exact) == (24, False)
    track.follow("c", MachineError("no picture"))
    assert (track.totals().chunks, track.totals().is_exact) == (18, False)
    track.follow("d", FilmDone("out/d.mp4", 130, 0.0, 0.0, 1, None, frames_reused=130))
    assert (track.totals().chunks, track.totals().is_exact) == (12, True)
    assert (track.totals().films_done, track.totals().films_failed, track.totals().chunks_done) == (1, 1, 0)


def test_of_a_failed_film_nothing_more_is_awaited():
    track = FarmTrack(["a", "b"], Clock())
    for name in ("a", "b"):
        track.follow(name, film_started(name, (4,)))
    track.follow("a", ChunkDone(2, 4, 33, 10.0))
    track.follow("a", MachineError("out of disk space"))
    assert (track.totals().chunks_done, track.totals().chunks) == (1, 5)


@pytest.mark.parametrize("workers", [1, 4, 8])
def test_the_time_left_is_about_what_it_takes(workers):
    """One-chunk segments keep all workers busy to the end, so that the estimate should hold."""
    farm = Farm({"film": (1,) * 80}, workers)
    events = list(FarmEvents(farm))
    clock, end = Clock(), events[-1][0]
    track = FarmTrack(["film"], clock)
    for seconds, film, event in events:
        clock.now = 100.0 + seconds
        track.follow(film, event)
        totals = track.totals()
        if 20 <= totals.chunks_done <= 60 and isinstance(event, StepDone):
            assert totals.seconds_left == pytest.approx(end - seconds, rel=0.2)
            assert totals.frames_per_second == pytest.approx(workers * 20 / 10, rel=0.15)


def test_the_time_left_is_at_least_that_of_the_longest_segment():
    clock, farm = Clock(), Farm({"long": (40,), "short": (1,)}, 4)
    track = FarmTrack(list(farm.films), clock)
    for seconds, film, event in FarmEvents(farm):
        clock.now = 100.0 + seconds
        track.follow(film, event)
        if isinstance(event, ChunkDone) and event.chunk == 19:
            break
    assert track.totals().seconds_left == pytest.approx(20 * 10, rel=0.15)


def test_a_worker_follows_its_segment():
    farm, clock = Farm({"sea": (2, 6)}), Clock()
    track, worker = FarmTrack(["sea"], clock), farm.worker(0)
    track.follow("sea", film_started("sea", (2, 6)))
    track.follow("sea", SegmentStarted(1, 2, 2, 6, worker=worker))
    assert track.worker("w1").number == 1
    track.follow("sea", StepDone(2, 0, 0, 2, worker=worker))
    track.follow("sea", StepDone(3, 0, 0, 2, worker=worker))  # chunk 2 is decoded while chunk 3 is denoised
    track.follow("sea", ChunkDone(2, 8, 99, 10.0, worker=worker))
    assert (track.worker("w1").number, track.worker("w1").step.chunk) == (2, 3)
    track.follow("sea", ChunkDone(3, 8, 132, 10.0, worker=worker))
    assert (track.worker("w1").number, track.worker("w1").step) == (3, None)
    track.follow("sea", ChunksReused(7, 8, 0, 4, "cache", worker=worker))
    assert track.worker("w1").number == 6
