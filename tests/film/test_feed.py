"""The pieces of a growing film as its readers get them, against ffmpeg's decoding of the finished film."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from helios_cli.film.encoding import Safe
from helios_cli.film.feed import Feed
from helios_cli.film.resume import Wanted
from helios_cli.film.sound import Track, open_track
from helios_cli.film.writer import open_writer
from helios_cli.recipe.sound import Sound
from support import reruns, sounds
from support.tiers import some
from support.waiting import wait_until

LENGTHS = (33, 33, 7)


def moving(num_frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 64, 64, 3), np.uint8)


def decoded(data: bytes) -> np.ndarray:
    """Return the frames of a stream, as ffmpeg decodes them."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", "pipe:0", "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "rgb24", "pipe:1"], input=data, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, 64 * 64 * 3)


def picture_hashes(path: Path) -> bytes:
    """The hash of each decoded picture."""
    return sounds.run("-i", f"file:{path}", "-map", "0:v", "-f", "framemd5", "-")


def write(path: Path, feed: Feed, track: Track | None = None) -> None:
    with open_writer(path, size=(64, 64), fps=24, track=track) as writer:
        writer.feed = feed
        writer.resume(Wanted((), (), {}), None)
        for seed, length in enumerate(LENGTHS):
            writer.write(moving(length, seed))
            writer.end_piece(Safe(f"{seed}", lambda: b"state"))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_readers_begin_with_any_piece_and_read_on_after_the_film_is_finished(tmp_path, suffix):
    """Each piece is a whole number of pictures of the film, bit for bit."""
    feed, path = Feed(), tmp_path / f"film{suffix}"
    write(path, feed)
    whole, ends = reruns.decoded(path), np.cumsum(LENGTHS)
    assert feed.is_over and feed.num_pieces == 3 and not feed.wait(3)
    pieces = [feed.piece(index) for index in range(3)]
    assert [(piece.start_frame, piece.num_frames) for piece in pieces] == [(0, 33), (33, 33), (66, 7)]
    for first in range(3):
        stream = feed.init + b"".join(piece.data for piece in pieces[first:])
        assert np.array_equal(decoded(stream), whole[ends[first] - LENGTHS[first] :])
    feed.close()
    with pytest.raises(IndexError):
        feed.piece(0)


def test_who_waits_gets_each_piece_as_soon_as_it_is_safe(tmp_path):
    feed, calls, read = Feed(), [], []
    feed.listen(lambda: calls.append(feed.num_pieces))

    def follow() -> None:
        while feed.wait(len(read)):
            read.append(feed.piece(len(read)).num_frames)

    reader = threading.Thread(target=follow)
    reader.start()
    with pytest.raises(IndexError):
        feed.piece(0)
    write(tmp_path / "film.mp4", feed)
    reader.join()
    assert read == list(LENGTHS) and calls == [0, 1, 2, 3, 3]
    feed.close()


def test_a_film_that_goes_on_has_the_pieces_of_its_first_run(tmp_path):
    """A folder of pictures has pieces that are counted, and cannot be read."""
    for name in ("film.mp4", "film/"):
        feed = Feed()
        with pytest.raises(ZeroDivisionError), open_writer(f"{tmp_path}/{name}", size=(64, 64), fps=24) as writer:
            writer.feed = feed
            writer.resume(Wanted((), (), {}), None)
            writer.write(moving(33, 0))
            writer.end_piece(Safe("a", lambda: b"state"))
            feed.wait(0)
            raise ZeroDivisionError
        assert feed.is_over and feed.num_frames == 33 and feed.num_kept == 0
        assert bool(feed.init) == (name == "film.mp4")
        feed.close()


@pytest.fixture
def track(tmp_path) -> Track:
    return open_track(Sound(sounds.write(tmp_path / "music.wav", sounds.tone(4))))


def play(feed: Feed, first: int, path: Path) -> Path:
    """Write a film of the pieces from `first` on."""
    path.write_bytes(feed.init + b"".join(feed.piece(index).data for index in range(first, feed.num_pieces)))
    return path


@pytest.mark.parametrize("suffix", some(1, [".mp4", ".mkv"]))
def test_pieces_have_their_sound_wherever_a_reader_begins(tmp_path, suffix, track):
    """Their pictures are those that they have without one."""
    silent, feed = Feed(), Feed()
    write(tmp_path / f"silent{suffix}", silent)
    write(tmp_path / f"film{suffix}", feed, track)
    for index in range(3):
        assert feed.piece(index).data.startswith(silent.piece(index).data)
    assert sounds.is_in_time(play(feed, 0, tmp_path / "all.mp4"), sounds.tone(4), start=1024)  # a packet
    late = play(feed, 1, tmp_path / "late.mp4")
    assert sounds.first_picture(late) >= 33 / 24
    shifted = sounds.tone(4)[round(33 / 24 * sounds.RATE) :]
    assert sounds.is_in_time(late, shifted, start=round(0.1 * sounds.RATE))  # a fragment of the sound begins there
    assert picture_hashes(late) == picture_hashes(play(silent, 1, tmp_path / "silent.mp4"))
    for one in (silent, feed):
        one.close()


@pytest.mark.slow
def test_a_film_that_goes_on_is_heard_from_its_last_piece_on(tmp_path, track):
    feed, path = Feed(), tmp_path / "film.mp4"
    names = [f"{index:064}" for index in range(3)]
    wanted = Wanted(reruns.plan(*(("a ball", length, 1) for length in LENGTHS)).chunks, names, {})
    with contextlib.suppress(ZeroDivisionError), open_writer(path, size=(64, 64), fps=24, track=track) as writer:
        writer.feed = feed
        writer.resume(wanted, None)
        for seed in range(2):
            writer.write(moving(33, seed))
            writer.end_piece(Safe(names[seed], lambda: b"state"))
        wait_until(lambda: feed.num_pieces == 2)
        raise ZeroDivisionError
    with open_writer(path, size=(64, 64), fps=24, track=track) as writer:
        writer.feed = feed
        writer.resume(wanted, None)
        writer.write(moving(7, 2))
        writer.end_piece(Safe(names[2], lambda: b"state"))
    assert (feed.num_kept, feed.num_pieces) == (2, 3)
    shifted = sounds.tone(4)[round(33 / 24 * sounds.RATE) :]
    assert sounds.is_in_time(play(feed, 1, tmp_path / "late.mp4"), shifted)
    made = {"film.mp4", "music.wav", "late.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == made
    feed.close()
