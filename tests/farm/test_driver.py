"""The driver: who gets which segment, and what becomes of workers and films that fail. The workers render noise."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    FilmDone,
    FilmStarted,
    Notice,
    SegmentDone,
    SegmentStarted,
    WorkerLost,
    WorkerReady,
)
from helios_cli.errors import CheckpointError, HeliosError, InputError, MachineError
from helios_cli.farm.driver import ATTEMPTS
from helios_cli.farm.pool import Message
from helios_cli.film.again import read_again
from helios_cli.film.claims import ALONE, Claims
from support.farm import KIND, FakePool, driver_of, films, noise
from support.reruns import decoded

CUTS = """version = 1
[[shot]]
prompt = "a red ball"
seconds = 1.375
[[shot]]
prompt = "a blue ball"
seconds = 4.125
transition = "cut"
[[shot]]
prompt = "a green ball"
seconds = 2.75
transition = "cut"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("cuts.toml").write_text(CUTS)
    Path("one.txt").write_text("[1s] a red ball\n")
    Path("two.txt").write_text("[2s] a green ball\n")
    Path("out").mkdir()
    return tmp_path


def events_of(pool: FakePool, *sources: str, **options) -> list:
    """Run a farm of `sources`; return (name of the film or None, event) in order."""
    how = {"stop": options.pop("stop", False)}
    made, given = films(Path("out"), sources, **options)
    return [(job and job.film.name, event) for job, event in driver_of(made, given, pool, **how).run()]


def of_kind(events: list, *kinds: type) -> list:
    return [event for _, event in events if isinstance(event, kinds)]


def failing(times: int, failed: Message) -> Iterator[Message]:
    """Return a worker's answers: its first renders end with `failed`, later ones are noise."""
    count = itertools.count()

    def answer(message: Message) -> Iterator[Message]:
        if "render" in message and next(count) < times:
            yield failed
        else:
            yield from noise(message)

    return answer


LOST = {"lost": "it was killed"}
FAILED = {"failed": {"error": "MachineError", "message": "no memory", "hint": "buy some"}}


def test_the_longest_segment_goes_first_and_the_film_is_joined():
    pool = FakePool()
    events = events_of(pool, "cuts.toml")
    assert pool.sent == [("a", "a blue ball"), ("b", "a green ball"), ("a", "a red ball")]
    assert [type(event) for event in of_kind(events, WorkerReady, FilmStarted, FilmDone)] == [
        WorkerReady,
        WorkerReady,
        FilmStarted,
        FilmDone,
    ]
    assert sorted(event.chunk for event in of_kind(events, ChunkDone)) == list(range(6))
    assert [event.frames for event in of_kind(events, ChunkDone)] == [33, 66, 99, 132, 165, 198]
    assert {(event.segment, event.segments) for event in of_kind(events, SegmentDone)} == {(0, 3), (1, 3), (2, 3)}
    (done,) = of_kind(events, FilmDone)
    assert (done.frames, done.frames_reused) == (198, 0)
    assert len(decoded(Path("out/cuts.mp4"))) == 198
    assert sorted(os.listdir("out")) == ["cuts.json", "cuts.mp4"]
    assert read_again(Path("out/cuts.mp4")).record.processor == "a cpu"
    assert pool.is_closed


def test_a_film_takes_no_time_while_it_waits_for_a_worker(monkeypatch):
    """Each render takes 100 s of a clock that stands still in between. The longer film goes first."""
    now = itertools.count(step=100.0)
    clock = [next(now)]
    monkeypatch.setattr("helios_cli.farm.film.time.monotonic", lambda: clock[0])

    def slow(message: Message) -> Iterator[Message]:
        if "render" in message:
            clock[0] = next(now)
        yield from noise(message)

    events = events_of(FakePool("a", answers={"a": slow}), "one.txt", "two.txt")
    assert {name: event.seconds for name, event in events if isinstance(event, FilmDone)}["one"] == 100.0


def test_a_film_has_the_peaks_of_its_workers():
    def with_peaks(vae_bytes: int) -> Callable[[Message], Iterator[Message]]:
        def answer(message: Message) -> Iterator[Message]:
            for reply in noise(message):
                peaks = {"peak_device_bytes": 7, "peak_vae_device_bytes": vae_bytes}
                yield reply | peaks if reply.get("event") == "film_done" else reply

        return answer

    events = events_of(FakePool(answers={"a": with_peaks(3), "b": with_peaks(5)}), "cuts.toml")
    (done,) = of_kind(events, FilmDone)
    assert (done.peak_device_bytes, done.peak_vae_device_bytes) == (7, 5)


def test_events_of_workers_name_them_and_go_through_json():
    events = events_of(FakePool(), "cuts.toml")
    for event in of_kind(events, ChunkDone, SegmentStarted, SegmentDone):
        assert event.worker.host == "here" and event.pid == 1
        assert type(event).from_dict(event.to_dict()) == event
    (film,) = of_kind(events, FilmStarted)
    assert (film.frames, film.chunks, film.worker) == (198, 6, None)


def test_a_lost_worker_is_renewed_and_its_segment_goes_on():
    pool = FakePool(answers={"a": failing(1, LOST)})
    events = events_of(pool, "cuts.toml")
    assert [event.reason for event in of_kind(events, WorkerLost)] == ["it was killed"]
    assert pool.renewed == ["a"]
    assert "cuts: segment 2 is tried again" in [event.message for event in of_kind(events, Notice)], (
        "with no reason twice"
    )
    assert [prompt for _, prompt in pool.sent].count("a blue ball") == 2
    assert len(of_kind(events, FilmDone)) == 1


@pytest.mark.parametrize("failed", [LOST, FAILED])
def test_a_segment_that_fails_three_times_fails_its_film_alone(failed):
    def answer(message: Message) -> Iterator[Message]:
        if "render" in message and message["render"]["plan"]["title"] == "cuts":
            yield failed
        else:
            yield from noise(message)

    pool = FakePool("abcd", answers=dict.fromkeys("abcd", answer))
    events = events_of(pool, "cuts.toml", "one.txt")
    (error,) = of_kind(events, HeliosError)
    assert (type(error), error.exit_code) == (HeliosError, 1)
    assert f"cuts: segment 2 failed {ATTEMPTS} times" in error.message
    assert [name for name, event in events if isinstance(event, FilmDone)] == ["one"]
    assert sorted(os.listdir("out")) == ["one.json", "one.mp4"]


@pytest.mark.parametrize("kind", ["InputError", "PictureError"])
def test_an_error_that_every_worker_would_have_is_not_tried_again(kind):
    pool = FakePool("a", answers={"a": failing(99, {"failed": {"error": kind, "message": "bad", "hint": None}})})
    events = events_of(pool, "one.txt", "two.txt")
    assert [(name, event.message) for name, event in events if isinstance(event, HeliosError)] == [
        ("two", "bad"),
        ("one", "bad"),
    ]
    assert len(pool.sent) == 2


def test_the_error_of_a_film_is_raised_where_one_ends_all():
    pool = FakePool(answers=dict.fromkeys("ab", failing(99, {"failed": {**FAILED["failed"], "error": "InputError"}})))
    with pytest.raises(InputError, match="no memory"):
        events_of(pool, "one.txt", "two.txt", stop=True)
    assert pool.is_closed
    assert os.listdir("out") == []


def test_workers_that_never_finish_a_chunk_are_given_up():
    pool = FakePool("ab")
    dying = {name: lambda message: iter([LOST]) for name in "ab"}
    pool.answers = dying
    with pytest.raises(MachineError, match=f"ended {ATTEMPTS} times before it finished a chunk.*it was killed"):
        events_of(pool, "one.txt")
    assert len(pool.renewed) == 2 * (ATTEMPTS - 1)


def test_a_worker_that_is_given_up_is_named_where_others_go_on():
    pool = FakePool("ab", answers={"a": lambda message: iter([LOST])})
    events = events_of(pool, "cuts.toml", "one.txt", "two.txt")
    given_up = [event.message for event in of_kind(events, Notice) if "not started again" in event.message]
    assert len(given_up) == 1 and given_up[0].startswith(f"worker a ended {ATTEMPTS} times before it finished a chunk")
    assert (pool.renewed, pool.ended) == (["a"] * (ATTEMPTS - 1), ["a"])
    assert len(of_kind(events, FilmDone)) == 3


def test_a_worker_without_the_weights_says_so_before_anything_renders():
    missing = {"failed": {"error": "CheckpointError", "message": "no weights", "hint": "pull them"}}
    pool = FakePool(answers={"a": lambda message: iter([missing])})
    events = events_of(pool, "cuts.toml")
    assert [event.message for event in of_kind(events, Notice) if event.worker] == [
        "worker a on here cannot render: no weights"
    ]
    assert {name for name, _ in pool.sent} == {"b"}
    with pytest.raises(CheckpointError, match="no weights"):
        events_of(FakePool("a", answers={"a": lambda message: iter([missing])}), "one.txt", stop=True)


OTHER = {**KIND, "arithmetic": {**KIND["arithmetic"], "device": "another cpu"}}


def test_workers_of_another_kind_do_not_mix_inside_a_film():
    """The kind that comes first renders the film alone; the other one renders another film."""
    pool = FakePool(answers={"b": lambda message: noise(message, OTHER)})
    events = events_of(pool, "cuts.toml", "one.txt")
    assert {name for name, prompt in pool.sent if prompt != "a red ball"} == {"a"}
    assert len(of_kind(events, FilmDone)) == 2
    processors = {name: read_again(Path(f"out/{name}.mp4")).record.processor for name in ("cuts", "one")}
    assert processors["cuts"] == "a cpu"


def test_mixed_lets_them():
    pool = FakePool(answers={"b": lambda message: noise(message, OTHER)})
    events = events_of(pool, "cuts.toml", mixed=True)
    assert {name for name, _ in pool.sent} == {"a", "b"}
    assert len(of_kind(events, FilmDone)) == 1


def interrupted(pool: FakePool, *sources: str, after: int, **options) -> None:
    """Run a farm, and stop it after so many finished chunks."""
    made, given = films(Path("out"), sources, **options)
    run = driver_of(made, given, pool).run()
    chunks = 0
    for _, event in run:
        chunks += isinstance(event, ChunkDone)
        if chunks == after:
            break
    run.close()


def test_the_same_command_goes_on():
    interrupted(FakePool("a"), "cuts.toml", after=4)
    assert os.listdir("out") == ["cuts.mp4.parts"]
    pool = FakePool("a")
    events = events_of(pool, "cuts.toml")
    assert pool.sent == [("a", "a green ball"), ("a", "a red ball")]
    (reused,) = of_kind(events, ChunksReused)
    assert (reused.count, reused.frames) == (3, 99)
    (done,) = of_kind(events, FilmDone)
    assert done.frames_reused == 99
    assert sorted(os.listdir("out")) == ["cuts.json", "cuts.mp4"]


def full_disk(*_) -> str:
    raise MachineError("the disk is full")


@pytest.mark.parametrize(("kind", "is_full"), [(KIND, True), (OTHER, False)])
def test_chunks_of_a_segment_that_is_not_done_outlive_a_run_that_cannot_use_them(kind, is_full, monkeypatch):
    interrupted(FakePool("a"), "cuts.toml", after=1)
    with monkeypatch.context() as patch, pytest.raises(HeliosError):
        if is_full:
            patch.setattr("helios_cli.engine.finish.check_space", full_disk)
        events_of(FakePool("a", answers={"a": lambda message: noise(message, kind)}), "cuts.toml", stop=True)
    assert os.listdir("out/cuts.mp4.parts/chunks")


def test_a_film_that_was_begun_by_another_kind_is_refused_with_the_difference():
    interrupted(FakePool("a"), "cuts.toml", after=4)
    with pytest.raises(InputError, match="begun by workers of another kind: device a cpu and another cpu"):
        events_of(FakePool("a", answers={"a": lambda message: noise(message, OTHER)}), "cuts.toml", stop=True)
    assert os.listdir("out") == ["cuts.mp4.parts"]
    pool = FakePool("a", answers={"a": lambda message: noise(message, OTHER)})
    assert len(of_kind(events_of(pool, "cuts.toml", force=True), FilmDone)) == 1
    assert len(pool.sent) == 3


def test_a_finished_film_is_not_rendered_again():
    events_of(FakePool(), "cuts.toml", "one.txt")
    pool = FakePool()
    events = events_of(pool, "cuts.toml", "one.txt")
    assert pool.sent == []
    assert [event.frames_reused for event in of_kind(events, FilmDone)] == [198, 24]


def test_a_film_that_is_not_ours_is_not_replaced():
    Path("out/one.mp4").write_bytes(b"mine")
    pool = FakePool()
    events = events_of(pool, "cuts.toml", "one.txt")
    (error,) = of_kind(events, HeliosError)
    assert "one.mp4 exists" in error.message
    assert Path("out/one.mp4").read_bytes() == b"mine"
    assert sorted(os.listdir("out")) == ["cuts.json", "cuts.mp4", "one.mp4"]


def test_damaged_chunks_are_rendered_again():
    """Flipped bits are noticed when the film is joined."""
    interrupted(FakePool("a"), "cuts.toml", after=4)
    (piece, *_) = sorted(Path("out").rglob("*.piece"))
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    pool = FakePool("a")
    events = events_of(pool, "cuts.toml")
    assert len(of_kind(events, FilmDone)) == 1
    assert len(decoded(Path("out/cuts.mp4"))) == 198


def test_a_silent_worker_is_replaced(monkeypatch):
    """It answers nothing; time passes with each look at it."""
    now = itertools.count(step=10.0)
    monkeypatch.setattr("helios_cli.farm.driver.time.monotonic", lambda: next(now))
    silent = iter([True])

    def answer(message: Message) -> Iterator[Message]:
        if "render" in message and next(silent, False):
            return iter([])
        return noise(message)

    pool = FakePool("a", answers={"a": answer})
    events = events_of(pool, "one.txt", worker_timeout=300.0)
    assert [event.reason for event in of_kind(events, WorkerLost)] == ["it sent no event for 300 s (--worker-timeout)"]
    assert pool.renewed == ["a"]
    assert len(of_kind(events, FilmDone)) == 1


@pytest.mark.parametrize(("name", "share"), [(ALONE, False), (ALONE, True), ("segment-0", False)])
def test_a_film_that_another_process_renders_is_refused(name, share):
    """A process that shares the film is refused only by one that does not."""
    made, _ = films(Path("out"), ["one.txt"])
    made[0].parts.begin(KIND)
    claims = Claims(made[0].parts.folder / "claims")
    claims.take(name)
    with pytest.raises(MachineError, match=f"one.mp4 is being rendered by process {os.getpid()} on "):
        events_of(FakePool(), "one.txt", stop=True, share=share)
    claims.release_all()
    assert len(of_kind(events_of(FakePool(), "one.txt", share=share), FilmDone)) == 1
    assert sorted(os.listdir("out")) == ["one.json", "one.mp4"]


def test_force_does_not_take_the_chunks_of_a_process_that_renders():
    interrupted(FakePool("a"), "cuts.toml", after=4)
    claims = Claims(Path("out/cuts.mp4.parts/claims"))
    claims.take(ALONE)
    with pytest.raises(MachineError, match="is being rendered"):
        events_of(FakePool(), "cuts.toml", stop=True, force=True)
    claims.release_all()
    (reused,) = of_kind(events_of(FakePool("a"), "cuts.toml"), ChunksReused)
    assert reused.count == 3


def test_two_drivers_share_the_segments_of_films(monkeypatch):
    """They take turns, step by step; each segment is rendered once, and each film joined once."""
    monkeypatch.setattr("helios_cli.farm.driver.POLL_SECONDS", 0.0)
    pools = [FakePool("a"), FakePool("b")]
    runs, ends = [], {0: [], 1: []}
    for pool in pools:
        made, given = films(Path("out"), ["cuts.toml", "one.txt", "two.txt"], share=True)
        runs.append(driver_of(made, given, pool).run())
    while runs[0] or runs[1]:
        for number, run in enumerate(runs):
            if run is not None:
                step = next(run, None)
                if step is None:
                    runs[number] = None
                elif isinstance(step[1], FilmDone):
                    ends[number].append(step[0].film.name)
    assert sorted(prompt for pool in pools for _, prompt in pool.sent) == sorted(
        ["a red ball", "a blue ball", "a green ball", "a red ball", "a green ball"]
    )
    assert sorted(ends[0]) == sorted(ends[1]) == ["cuts", "one", "two"]
    assert sorted(os.listdir("out")) == sorted(f"{n}.{s}" for n in ("cuts", "one", "two") for s in ("json", "mp4"))
