"""Streams, read by ffmpeg at the other end of a real pipe, against the film that the same chunks make as a file."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from helios_cli.errors import InputError, ReaderGone
from helios_cli.film.compression import Encoding
from helios_cli.film.encoding import Safe
from helios_cli.film.feed import Feed
from helios_cli.film.jobs import find_jobs
from helios_cli.film.resume import Wanted
from helios_cli.film.sound import open_track
from helios_cli.film.stream import CONTAINERS, StreamWriter, open_stream
from helios_cli.film.writer import open_writer
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.sound import Sound
from support import sounds
from support.tiers import some
from support.waiting import wait_until

LENGTHS = (33, 33, 33, 7)
SIZE = (64, 64)
WITH_SOUND = ("mkv", "mp4", "ts")
EXE = imageio_ffmpeg.get_ffmpeg_exe()


def moving(num_frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 64, 64, 3), np.uint8)


def write(writer, feed: Feed | None = None, lengths=LENGTHS) -> None:
    writer.feed = feed
    writer.resume(Wanted((), (), {}), None)
    for seed, length in enumerate(lengths):
        writer.write(moving(length, seed))
        writer.end_piece(Safe(f"{seed}", lambda: b"state"))


@contextmanager
def stream(container: str, fps: float = 24, **sound) -> Iterator[tuple[StreamWriter, int]]:
    """Provide a writer and the reading end of its pipe, which is as short as the system makes one."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, getattr(fcntl, "F_SETPIPE_SZ", 1031), 4096)
    try:
        with open_stream(writing, container, size=SIZE, fps=fps, encoding=Encoding(), **sound) as writer:
            yield writer, reading
    finally:
        os.close(reading)


def ffmpeg(*arguments: str, data: bytes) -> bytes:
    command = [EXE, "-loglevel", "error", *arguments, "pipe:1"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def picture_hashes(data: bytes, *filters: str) -> list[str]:
    """Return the hash of each decoded picture, and its time in 24ths of a second."""
    lines = ffmpeg("-i", "pipe:0", *filters, "-fps_mode", "passthrough", "-f", "framemd5", data=data).decode()
    return [line.split(",")[-1].strip() for line in lines.splitlines() if not line.startswith("#")]


def read_all(descriptor: int, into: bytearray) -> threading.Thread:
    def read() -> None:
        while block := os.read(descriptor, 1 << 16):
            into.extend(block)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A folder with the film as .mp4 and as .mkv without loss."""
    folder = tmp_path_factory.mktemp("films")
    for name in ("film.mp4", "film.mkv"):
        with open_writer(folder / name, size=SIZE, fps=24) as writer:
            write(writer)
    return folder


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_stream_has_the_pictures_of_the_film(films, container):
    data = bytearray()
    with stream(container) as (writer, reading):
        reader = read_all(reading, data)
        write(writer)
        writer.close()
        reader.join()
    if container == "y4m":  # the film without loss, converted as it is for an .mp4
        exact = ("-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp")
        expected = picture_hashes((films / "film.mkv").read_bytes(), *exact, "-pix_fmt", "yuv420p")
        assert data.startswith(b"YUV4MPEG2 W64 H64 F24:1")
    else:
        expected = picture_hashes((films / "film.mp4").read_bytes())
    assert picture_hashes(bytes(data)) == expected and len(expected) == sum(LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["trim", "loop"])
@pytest.mark.parametrize("container", WITH_SOUND)
def test_a_stream_has_the_sound_of_the_film_in_time(films, tmp_path, container, fit):
    """It begins with the first picture and is as long as the film, whose pictures are those without it."""
    tone = sounds.tone(3)
    track = open_track(Sound(sounds.write(tmp_path / "music.wav", tone), fit))
    data, feed, film = bytearray(), Feed(), tmp_path / f"film.{container}"
    with stream(container, track=track) as (writer, reading):
        reader = read_all(reading, data)
        writer.feed = feed
        write(writer, feed, lengths=LENGTHS[:2])
        wait_until(lambda: feed.num_frames == 66 and len(picture_hashes(bytes(data))) >= 65)
        film.write_bytes(data)
        assert sounds.is_in_time(film, tone)  # of 2.75 seconds
        for seed, length in enumerate(LENGTHS[2:], 2):
            writer.write(moving(length, seed))
            writer.end_piece(Safe(f"{seed}", lambda: b"state"))
        writer.close()
        reader.join()
    film.write_bytes(data)
    assert picture_hashes(bytes(data), "-map", "0:v") == picture_hashes((films / "film.mp4").read_bytes())
    heard = sounds.heard(film)
    assert 0 <= len(heard) / sounds.RATE - sum(LENGTHS) / 24 < 0.2
    if fit == "loop":
        assert sounds.is_in_time(film, np.concatenate([tone] * 3), start=round(2.6 * sounds.RATE))
    else:
        assert np.abs(heard[round(3.1 * sounds.RATE) :]).max() < 1e-3


@pytest.mark.parametrize("container", WITH_SOUND)
def test_the_sound_of_a_film_of_known_length_fades_at_its_end(tmp_path, container):
    track = open_track(Sound(sounds.write(tmp_path / "music.wav", np.full((48_000, 2), 0.5)), fade=0.5))
    data, film = bytearray(), tmp_path / f"film.{container}"
    with stream(container, track=track, num_frames=20) as (writer, reading):
        reader = read_all(reading, data)
        write(writer, lengths=(20,))
        writer.close()
        reader.join()
    film.write_bytes(data)
    heard = sounds.heard_at(film)[round(sounds.first_picture(film) * sounds.RATE) :]
    assert abs(len(heard) - 40_000) <= 2048  # packets of AAC
    quarter, late = (np.abs(heard[at : at + 500]).mean() for at in (10_000, 39_400))
    assert 0.45 < quarter < 0.55 and late < 0.05


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_chunk_can_be_shown_before_the_next_one_is_there(container):
    """All its pictures but one: Matroska writes a picture when it knows how long it stays."""
    data, feed = bytearray(), Feed()
    with stream(container) as (writer, reading):
        reader = read_all(reading, data)
        write(writer, feed, lengths=(33, 33))
        wait_until(lambda: feed.num_frames == 66 and len(picture_hashes(bytes(data))) >= 65)
        writer.close()
        reader.join()


@pytest.mark.parametrize("container", some(1, ["mp4", "mkv"]))
def test_a_reader_that_does_not_read_holds_the_writer_back(container):
    """The playhead counts what has gone down the pipe, and nothing behind it."""
    feed = Feed()
    with stream(container) as (writer, reading):
        wanted = threading.Thread(target=write, args=(writer, feed, (33,) * 12))
        wanted.start()
        select.select([reading], [], [])
        wait_until(lambda: writer._waiting)  # of 1.7 MB that 12 chunks of noise take
        assert feed.num_pieces < 12 and not feed.is_over
        reader = read_all(reading, bytearray())
        wanted.join()
        writer.close()
        assert feed.num_pieces == 12 and feed.is_over
        reader.join()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_reader_that_goes_ends_the_stream(container):
    """It does while nothing is written, too: whoever waits for it must be woken."""
    feed = Feed()
    reading, writing = os.pipe()
    with pytest.raises(ReaderGone), open_stream(writing, container, size=SIZE, fps=24, encoding=Encoding()) as writer:
        write(writer, feed, lengths=(33,))
        assert os.read(reading, 10)
        os.close(reading)
        wait_until(lambda: feed.is_over)
        write_more = moving(33, 1)
        writer.write(write_more)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"takes": 2}, "--takes needs a film in a file"),
        ({"export": "otio"}, "--export needs a film in a file"),
        ({"workers": 2}, "needs a film in a file"),
        ({"through": "cat"}, "needs a film in a file"),
        ({"through_size": "64x64"}, "describes what --through gives"),
        ({"container": "y4m", "audio": "music.wav"}, "there is no sound in .y4m"),
        ({"container": "ts", "codec": "av1"}, "there is no AV1 in a .ts"),
        ({"container": "avi"}, "must be one of mkv, mp4, ts, y4m"),
        ({"output": "film.mkv", "container": "mkv"}, "--container mkv is for a stream"),
        ({"output": "rtmp://host/live/key"}, "films are written to local files"),
    ],
)
def test_what_does_not_go_with_a_stream_is_said_first(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sounds.write(Path("music.wav"), sounds.tone(6))
    with pytest.raises(InputError, match=says):
        find_jobs(["a ball"], RenderOptions.parse(**{"output": "-", **options}))


def test_a_pipe_is_shown_for_addresses():
    with pytest.raises(InputError) as caught:
        find_jobs(["a ball"], RenderOptions(output="rtmp://host/live/key"))
    assert caught.value.hint == (
        "write -o film.mp4; to send it there: -o - | ffmpeg -re -i - -c copy -f flv rtmp://host/live/key"
    )


def test_two_films_are_not_one_stream():
    with pytest.raises(InputError, match="there are 2 films"):
        find_jobs(["a ball", "a star"], RenderOptions(output="-"))
