"""Films that are killed, stopped and damaged, and run again. Real processes, signals and files; the bound is equality.

What an uninterrupted run makes is the measure: the decoded frames of a film that went on must be the same to the bit,
and no chunk may be rendered twice but the one that was in flight.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.events import ChunkDone, ChunksReused, Notice
from helios_cli.errors import InputError, MachineError
from helios_cli.film import encoding
from helios_cli.film import writer as writer_module
from helios_cli.film.cache import Cache
from helios_cli.film.compression import Encoding, piece_arguments
from helios_cli.film.target import Target
from helios_cli.film.writer import open_writer
from support import reruns
from support.programs import ffmpeg_program
from support.renders import Case, models_of, plan_of
from support.reruns import FFMPEG, PROMPTS, KillAt, decoded, in_child, journaled, plan, run
from support.tiers import some
from support.waiting import LONGEST

FILM = plan((PROMPTS[0], 33, 7), (PROMPTS[0], 20, None), (PROMPTS[1], 33, 3), (PROMPTS[2], 9, None))
"""Four chunks, two of them trimmed, and a cut."""


@pytest.fixture(scope="module")
def models(checkpoints):
    return models_of(checkpoints("distilled"))


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """Suffix -> frames of FILM, rendered at one go without a journal."""
    made = {}

    def get(suffix: str) -> np.ndarray:
        if suffix not in made:
            path = Path(f"{tmp_path_factory.mktemp('whole') / 'film'}{suffix}")
            for _ in render_chunks(
                FILM, models, open_writer(f"{path}/" if not suffix else path, size=FILM.size, fps=24)
            ):
                pass
            made[suffix] = decoded(path)
        return made[suffix]

    return get


@pytest.fixture
def out(tmp_path):
    return tmp_path / "film.mp4"


def rendered(events) -> list[int]:
    return [event.chunk for event in events if isinstance(event, ChunkDone)]


def notices(events) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice)]


def stop_after(chunks: int, models, out: Path, film=FILM, cache=None, **options) -> None:
    """Render until so many chunks are safe, then stop as Ctrl-C does."""
    writer = open_writer(out, size=film.size, fps=24, **options)
    fingerprints = reruns.fingerprints_of(film, models)
    with pytest.raises(KeyboardInterrupt):
        for event in render_chunks(film, models, writer, fingerprints=lambda _: fingerprints, cache=cache):
            if isinstance(event, ChunkDone) and event.chunk == chunks - 1:
                raise KeyboardInterrupt
    del event
    assert writer.safe_chunks == chunks


# Killed


@pytest.mark.slow
@pytest.mark.parametrize(("torn", "cached"), [(False, False), (True, True)], ids=["clean", "torn, with a cache"])
def test_killed_at_any_step_that_makes_something_last(torn, cached, checkpoints, tmp_path):
    """SIGKILL at the n-th fsync, rename or unlink, for every n; `torn` cuts the file off that was being synced.
    The film is as small as one can be, as it is made twice for each of them."""
    models, size = models_of(checkpoints("base")), (16, 16)
    models.encode(PROMPTS)
    film = plan((PROMPTS[0], 9, 7), (PROMPTS[0], 5, None), (PROMPTS[1], 9, 3), size=size, steps=(1,))
    (tmp_path / "whole").mkdir()
    with open_writer(tmp_path / "whole/film.mp4", size=size, fps=24) as writer:
        for _ in render_chunks(film, models, writer):
            pass
    expected = decoded(tmp_path / "whole/film.mp4", size)
    assert len(expected) == film.num_frames and len({frame.tobytes() for frame in expected}) == film.num_frames
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        folder.mkdir()
        out, cache = folder / "film.mp4", Cache(folder / "cache") if cached else None
        if not in_child(lambda n=step, out=out, cache=cache: (KillAt(n, torn=torn), run(film, models, out, cache))):
            break
        safe, finished = len(journaled(out)), out.exists()
        if finished:
            assert np.array_equal(decoded(out, size), expected)
        elif safe:
            frames = sum(record["frames"] for record in journaled(out))
            assert np.array_equal(decoded(Target.of(out).partial, size)[:frames], expected[:frames])
        events = run(film, models, out, cache)
        reused = [event for event in events if isinstance(event, ChunksReused)]
        assert len(rendered(events)) == 3 - sum(event.count for event in reused)
        assert finished or sum(event.count for event in reused if event.source == "journal") == safe
        assert np.array_equal(decoded(out, size), expected)
        assert sorted(os.listdir(folder)) == (["cache", "film.mp4"] if cached else ["film.mp4"])
    assert step > 20, "the steps were not met"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ""])
def test_killed_at_random_moments(suffix, models, whole, tmp_path):
    """Killed up to six times within the first third of a usual time, if it is slow enough, and then let finish."""
    models.encode(PROMPTS)
    started = time.monotonic()
    in_child(lambda: run(FILM, models, f"{tmp_path / 'usual'}{suffix or '/'}"))
    usual = time.monotonic() - started
    out = f"{tmp_path / 'film'}{suffix or '/'}"
    draw = random.Random(suffix)
    kills = 0
    while in_child(lambda: run(FILM, models, out), kill_after=usual * draw.uniform(0.02, 0.3) if kills < 6 else None):
        kills += 1
    assert kills, "it was finished before it was killed"
    assert np.array_equal(decoded(Path(out)), whole(suffix))


# Stopped


CLI = [sys.executable, "-m", "helios_cli", "render", PROMPTS[0], "--frames", "3300", "--size", "64x64", "-q"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.process
def test_signals_stop_at_once_and_the_chunks_are_safe(number, checkpoints, tmp_path):
    out = tmp_path / "film.mp4"
    command = [*CLI, "-m", str(checkpoints("distilled")), "-o", str(out), "--no-cache", "--dtype", "float32"]
    heeded = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeded)
    while len(journaled(out)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=LONGEST)[1]
    assert process.returncode == 130
    safe = len(journaled(out))
    assert 2 <= safe < 100
    assert f"{safe} of the 100 chunks" in said and "same command" in said
    assert len(decoded(Target.of(out).partial)) == 33 * safe
    assert not out.exists()


def test_what_was_computed_is_safe_when_the_consumer_stops(models, whole, out):
    stop_after(2, models, out)
    events = run(FILM, models, out)
    assert rendered(events) == [2, 3]
    reused = [event for event in events if isinstance(event, ChunksReused)]
    assert [(event.chunk, event.count, event.frames, event.source) for event in reused] == [(1, 2, 53, "journal")]
    assert [event.frames for event in events if isinstance(event, ChunkDone)] == [86, 95]
    assert (events[-1].frames, events[-1].frames_reused) == (95, 53)
    assert np.array_equal(decoded(out), whole(".mp4"))


def test_a_stuck_encoder_does_not_hold_up_the_stop(models, out, tmp_path, monkeypatch):
    """The piece that it does not finish is lost, after a bounded wait."""
    monkeypatch.setattr(encoding, "DRAIN_SECONDS", 0.2)
    stuck = f'[ "$1" != -hide_banner ] || sleep {2 * LONGEST}\nexec \'{FFMPEG}\' "$@"'
    ffmpeg_program(tmp_path / "ffmpeg", stuck, monkeypatch)
    writer = open_writer(out, size=FILM.size, fps=24)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        for event in render_chunks(
            FILM, models, writer, fingerprints=lambda plan: reruns.fingerprints_of(plan, models)
        ):
            if isinstance(event, ChunkDone):
                raise KeyboardInterrupt
    assert time.monotonic() - began < LONGEST  # half of what the encoder sleeps
    assert os.listdir(tmp_path) == ["ffmpeg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps", "options"),
    [
        ("distilled", (1, 1, 1), {"reanchor": True}),
        ("distilled", (1, 1, 1), {"image": "start.png"}),
        ("distilled", (1, 1, 1), {"video": "start.mkv"}),
        ("mid", (2, 2, 2), {}),
        ("base", (3,), {}),
    ],
    ids=lambda value: next(iter(value), "text") if isinstance(value, dict) else value,
)
def test_every_kind_of_film_goes_on(kind, steps, options, checkpoints, tmp_path):
    """Stopped after each of its chunks in turn, whatever its history and anchor come from."""
    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    Image.fromarray(frames[0]).save(tmp_path / "start.png")
    with open_writer(tmp_path / "start.mkv", size=(64, 64), fps=24) as writer:
        writer.write(frames)
    models = models_of(checkpoints(kind))
    case = Case(kind, (64, 64), steps, chunks=4, **{k: tmp_path / v for k, v in options.items() if k != "reanchor"})
    film, reanchor = plan_of(case), options.get("reanchor", False)
    fingerprints = reruns.fingerprints_of(film, models)
    for stop in (None, 0, 1, 2, None):
        name = "whole" if stop is None and not (tmp_path / "whole.mkv").exists() else "film"
        writer = open_writer(tmp_path / f"{name}.mkv", size=film.size, fps=24)
        events = render_chunks(film, models, writer, reanchor=reanchor, fingerprints=lambda _: fingerprints)
        for event in events:
            if isinstance(event, ChunkDone) and event.chunk == stop:
                events.close()
    assert np.array_equal(decoded(tmp_path / "film.mkv"), decoded(tmp_path / "whole.mkv"))


# What goes wrong


@pytest.mark.slow
def test_a_dead_ffmpeg_costs_one_chunk(models, whole, out, tmp_path, monkeypatch):
    """An ffmpeg that is killed at its third piece."""
    count = tmp_path / "count"
    killed = f'[ "$1" != -hide_banner ] || echo >> {count}\n[ $(wc -l < {count} || echo 0) != 3 ] || kill -9 $$'
    ffmpeg_program(tmp_path / "ffmpeg", f"{killed}\nexec '{FFMPEG}' \"$@\"", monkeypatch)
    with pytest.raises(MachineError, match="signal 9"):
        run(FILM, models, out)
    assert len(journaled(out)) == 2 and not out.exists()
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    assert rendered(run(FILM, models, out)) == [2, 3]
    assert np.array_equal(decoded(out), whole(".mp4"))


def limited(num_bytes: int, work) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    with pytest.raises(MachineError, match="file-size limit"):
        work()


@pytest.mark.slow
def test_a_film_over_the_file_size_limit_is_gone_on_with(models, whole, tmp_path):
    out = f"{tmp_path}/film.mkv"
    assert in_child(lambda: limited(700_000, lambda: run(FILM, models, out))) == 0
    safe = len(journaled(Path(out)))
    assert 1 <= safe < 4
    assert len(rendered(run(FILM, models, out))) == 4 - safe
    assert np.array_equal(decoded(Path(out)), whole(".mkv"))


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [600, 1400])
def test_a_full_disk_is_gone_on_with(kilobytes, models, whole, tmp_path):
    """At the first size the film fills the disk while it grows, at the second when it is finished."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        with pytest.raises(MachineError, match="disk became full"):
            run(FILM, models, small / "film.mkv")
        assert not (small / "film.mkv").exists() and not Target.of(small / "film.mkv").finishing.exists()
        safe = len(journaled(small / "film.mkv"))
        assert safe
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        assert len(rendered(run(FILM, models, small / "film.mkv"))) == 4 - safe
        assert np.array_equal(decoded(small / "film.mkv"), whole(".mkv"))
    finally:
        subprocess.run(["umount", small], check=True)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda out: flip(Target.of(out).partial, journaled(out)[1]["length"] + 500), [2, 3]),
        (lambda out: flip(Target.of(out).partial, 30), [0, 1, 2, 3]),
        (lambda out: flip(Target.of(out).state(2 % 2), 5000), [2, 3]),
        (lambda out: [Target.of(out).state(slot).unlink() for slot in range(2)], [2, 3]),
        (lambda out: Target.of(out).partial.unlink(), [0, 1, 2, 3]),
        (lambda out: os.truncate(Target.of(out).partial, journaled(out)[1]["length"] + 9), [2, 3]),
        (lambda out: os.truncate(Target.of(out).journal, Target.of(out).journal.stat().st_size - 3), [2, 3]),
        (lambda out: Target.of(out).journal.write_bytes(Target.of(out).journal.read_bytes() + b'{"chu\0\xff'), [3]),
        (lambda out: Target.of(out).journal.write_bytes(b'{"run": \xff\0[' * 99), [0, 1, 2, 3]),
    ],
    ids=["piece", "header", "state", "states", "film", "film's end", "journal's end", "journal's tail", "journal"],
)
def test_damage_is_rendered_again(damage, again, models, whole, out):
    """Chunk 2 begins with a cut: without any state the film goes on from there."""
    stop_after(3, models, out)
    damage(out)
    assert rendered(run(FILM, models, out)) == again
    assert np.array_equal(decoded(out), whole(".mp4"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda out: [Target.of(out).state(slot).unlink() for slot in range(2)], "continues after them is missing"),
        (lambda out: Target.of(out).partial.unlink(), "they are missing or damaged"),
    ],
    ids=["states", "film"],
)
def test_what_has_gone_is_said(harm, said, models, out):
    stop_after(3, models, out)
    harm(out)
    assert said in notices(run(FILM, models, out))[0]


def test_a_film_in_the_making_that_cannot_be_read_is_not_begun_anew(models, whole, out):
    """Here it is a folder, as root may read all files."""
    stop_after(3, models, out)
    partial = Target.of(out).partial
    partial.rename(out.parent / "aside")
    partial.mkdir()
    with pytest.raises(MachineError, match=r"cannot read .*film\.partial\.mp4"):
        run(FILM, models, out)
    partial.rmdir()
    (out.parent / "aside").rename(partial)
    assert rendered(run(FILM, models, out)) == [3]
    assert np.array_equal(decoded(out), whole(".mp4"))


def test_an_encoder_that_fails_ends_the_film_at_the_next_model_call(models, out, monkeypatch, tmp_path):
    """Not when the next chunk is written."""
    failing = f'[ "$1" != -hide_banner ] || exit 7\nexec \'{FFMPEG}\' "$@"'
    ffmpeg_program(tmp_path / "ffmpeg", failing, monkeypatch)
    models.encode(PROMPTS)
    writer = open_writer(out, size=FILM.size, fps=24)
    began = []
    forward = type(models.dit).forward

    def call(self, *args):
        began.append(1)
        if len(began) > 6:  # the first chunk, amplified, has six
            writer._thread.join(60)
        return forward(self, *args)

    monkeypatch.setattr(type(models.dit), "forward", call)
    with pytest.raises(MachineError, match="exit status 7"):
        list(render_chunks(FILM, models, writer, fingerprints=lambda plan: reruns.fingerprints_of(plan, models)))
    assert len(began) <= 7


@pytest.mark.slow
def test_damaged_pictures_are_rendered_again(models, whole, tmp_path):
    stop_after(3, models, f"{tmp_path}/film/")
    flip(tmp_path / "film.partial" / "frame_000060.png", 3000)
    assert rendered(run(FILM, models, f"{tmp_path}/film/")) == [2, 3]
    assert np.array_equal(decoded(tmp_path / "film"), whole(""))


# Another film under the same name


@pytest.mark.slow
def test_another_checkpoint_starts_over(checkpoints, models, out, tmp_path):
    other = models_of(checkpoints("distilled", is_amplify_history=True))
    stop_after(2, models, out)
    events = run(FILM, other, out)
    assert rendered(events) == [0, 1, 2, 3]
    assert len(notices(events)) == 1 and "of 2 chunks" in notices(events)[0] and "model" in notices(events)[0]
    run(FILM, other, tmp_path / "fresh.mp4")
    assert np.array_equal(decoded(out), decoded(tmp_path / "fresh.mp4"))


OTHER_SEED = replace(FILM, chunks=(replace(FILM.chunks[0], seed=8), *FILM.chunks[1:]))


@pytest.mark.slow
def test_an_unfinished_film_that_would_be_lost_stays(models, whole, out, tmp_path):
    """One of its two chunks is kept nowhere else."""
    cache = Cache(tmp_path / "cache")
    stop_after(2, models, out)
    run(replace(FILM, chunks=FILM.chunks[:1], num_frames=33), models, tmp_path / "other.mp4", cache)
    with pytest.raises(
        InputError, match=r"film\.mp4: 2 of 2 chunks .* \(seed 7, now 8\), and they are kept nowhere"
    ) as error:
        run(OTHER_SEED, models, out, cache, force=False)
    assert "--force" in error.value.hint
    assert rendered(run(FILM, models, out, force=False)) == [2, 3], "as if nothing had been"
    assert np.array_equal(decoded(out), whole(".mp4"))


@pytest.mark.slow
def test_an_unfinished_film_that_is_kept_elsewhere_goes(models, out, tmp_path):
    cache = Cache(tmp_path / "cache")
    run(FILM, models, tmp_path / "other.mp4", cache)
    stop_after(2, models, out)
    events = run(OTHER_SEED, models, out, cache, force=False)
    assert "(seed 7, now 8), and stay in the cache" in notices(events)[0]
    assert rendered(run(FILM, models, out, cache)) == []


@pytest.mark.slow
def test_chunks_that_were_promised_to_a_film_outlast_the_one_in_its_place(models, whole, out, tmp_path):
    """In a cache that has no room for both."""
    cache = Cache(tmp_path / "cache", limit=500_000)
    stop_after(3, models, out, cache=cache)
    assert "stay in the cache" in notices(run(OTHER_SEED, models, out, cache, force=False))[0]
    others = reruns.fingerprints_of(OTHER_SEED, models)
    assert not all(map(cache.has, others)) and cache.num_bytes() <= 500_000
    assert rendered(run(FILM, models, out, cache)) == [3]
    assert np.array_equal(decoded(out), whole(".mp4"))


@pytest.mark.slow
def test_the_beginning_that_is_equal_is_kept(models, out, tmp_path):
    stop_after(3, models, out)
    changed = replace(FILM.chunks[2], prompts=((PROMPTS[3], 1.0),))
    film = replace(FILM, chunks=(*FILM.chunks[:2], changed, FILM.chunks[3]))
    events = run(film, models, out)
    assert rendered(events) == [2, 3]
    assert "1 of 3 chunks" in notices(events)[0] and "cannot be reused" in notices(events)[0]
    run(film, models, tmp_path / "fresh.mp4")
    assert np.array_equal(decoded(out), decoded(tmp_path / "fresh.mp4"))


@pytest.mark.slow
def test_another_encoding_starts_over_and_says_so(models, out):
    stop_after(2, models, out)
    events = run(FILM, models, out, crf=30)
    assert rendered(events) == [0, 1, 2, 3]
    assert "encoding h264 crf 17 medium, now h264 crf 30 medium" in notices(events)[0]


@pytest.mark.slow
def test_a_longer_film_goes_on_from_a_journal_that_was_kept(models, whole, out):
    short = replace(FILM, chunks=FILM.chunks[:3], num_frames=86)
    run(short, models, out, keep=True)
    assert len(decoded(out)) == 86 and len(journaled(out)) == 3
    assert rendered(run(FILM, models, out)) == [3]
    assert np.array_equal(decoded(out), whole(".mp4"))
    assert os.listdir(out.parent) == ["film.mp4"]


# Two runs


@pytest.mark.slow
def test_two_runs_of_one_film(models, whole, out):
    """The second is refused and touches nothing; when the first is killed its lock is gone with it."""
    models.encode(PROMPTS)

    def slowly() -> None:
        writer = open_writer(out, size=FILM.size, fps=24)
        for event in render_chunks(
            FILM, models, writer, fingerprints=lambda plan: reruns.fingerprints_of(plan, models)
        ):
            if isinstance(event, ChunkDone) and event.chunk == 1:
                time.sleep(60)

    pid = os.fork()
    if pid == 0:
        slowly()
        os._exit(0)
    while len(journaled(out)) < 2:
        time.sleep(0.02)
    before = {path: path.read_bytes() for path in out.parent.iterdir()}
    with pytest.raises(MachineError, match=f"process {pid} on ") as error:
        run(FILM, models, out)
    assert "-o" in error.value.hint
    assert {path: path.read_bytes() for path in out.parent.iterdir()} == before
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert rendered(run(FILM, models, out)) == [2, 3]
    assert np.array_equal(decoded(out), whole(".mp4"))


# While it grows


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_growing_film_plays_at_any_moment(suffix, models, whole, tmp_path):
    out = tmp_path / f"film{suffix}"
    lengths, frames = [], 0
    for event in render_chunks(
        FILM,
        models,
        open_writer(out, size=FILM.size, fps=24),
        fingerprints=lambda plan: reruns.fingerprints_of(plan, models),
    ):
        if isinstance(event, ChunkDone):
            while len(journaled(out)) <= event.chunk:
                time.sleep(0.01)
            frames += FILM.chunks[event.chunk].num_frames
            playing = decoded(Target.of(out).partial)
            assert np.array_equal(playing, whole(suffix)[:frames])
            lengths.append(Target.of(out).partial.stat().st_size)
    assert lengths == sorted(set(lengths)) and len(lengths) == 4


def test_a_finished_film_is_not_made_again_by_itself(models, out):
    run(FILM, models, out)
    with pytest.raises(InputError, match="exists"):
        writer_module.check_target(out, force=False)


@pytest.mark.parametrize("name", some(1, ["film.mp4", "film/"]))
def test_what_comes_while_a_film_is_made_is_not_replaced(models, whole, tmp_path, name):
    out = f"{tmp_path}/{name}"
    place = Target.of(out).path
    theirs = place / "frame_000001.png" if name == "film/" else place

    def interrupted() -> None:
        writer = open_writer(out, size=FILM.size, fps=24, force=False)
        for event in render_chunks(
            FILM, models, writer, fingerprints=lambda plan: reruns.fingerprints_of(plan, models)
        ):
            if isinstance(event, ChunkDone) and not place.exists():
                theirs.parent.mkdir(exist_ok=True)
                theirs.write_bytes(b"precious")

    with pytest.raises(InputError, match="exists"):
        interrupted()
    assert theirs.read_bytes() == b"precious"
    place.rename(tmp_path / "theirs")
    assert rendered(run(FILM, models, out, force=False)) == []
    assert np.array_equal(decoded(place), whole(place.suffix))


@pytest.mark.slow
def test_pieces_of_any_length_have_one_header_and_delay(tmp_path):
    """Every codec and preset, and lengths shorter than its reordering: their film has one constant frame time."""
    frames = np.random.default_rng(0).integers(0, 256, (33, 64, 64, 3), np.uint8)
    for codec, preset in [("h264", "ultrafast"), ("h264", "veryslow"), ("hevc", "fast"), ("av1", "veryfast")]:
        path = tmp_path / f"{codec}-{preset}.mp4"
        with open_writer(path, size=(64, 64), fps=23.976, codec=codec, preset=preset, crf=30) as writer:
            for length in (1, 33, 2, 1, 7):
                writer.write(frames[:length])
                writer.end_piece()
        listing = subprocess.run(
            [FFMPEG, "-v", "error", "-i", path, "-c", "copy", "-copyts", "-f", "framehash", "-"],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        rows = [line.split(",") for line in listing.splitlines() if not line.startswith("#")]
        times = sorted(int(row[2]) for row in rows)
        assert times == [1001 * index for index in range(44)], codec


def test_number_of_threads_is_fixed():
    """The number of threads changes the decisions of x264, and a film may resume on another machine."""
    assert "-threads" in piece_arguments(Encoding(), Fraction(24))
