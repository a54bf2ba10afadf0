"""A folder of clips with captions as a cache: real files made by ffmpeg, damaged ones among them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.errors import InputError
from helios_cli.train.data.cache import LatentClips, shards
from helios_cli.train.data.encode import ClipEncoder
from helios_cli.train.data.folder import ClipEncoded, ClipSkipped, FolderDone, SourceClip, encode_folder, find_clips
from helios_cli.train.settings.encoders import FolderClips
from helios_cli.weights.checkpoint import Checkpoint
from support.waiting import LONGEST

SIZE = (32, 16)
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
DAMAGED = ("cut.mp4", "cut.mkv", "cut.webm", "cut.gif", "torn.mp4")


def ffmpeg(*arguments: object) -> bytes:
    command = [FFMPEG, "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def film(path: Path, frames: int = 40, *options: object, rate: int = 24) -> Path:
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s=64x32:r={rate}", "-frames:v", frames, *options, path)
    return path


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """Films, a folder of frames, and what cannot be used."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "below/frames").mkdir(parents=True)
    film(folder / "exact.mkv", 40, "-vf", "scale=32:16", "-c:v", "ffv1", "-pix_fmt", "bgr0")
    film(folder / "long.mp4", 70)
    film(folder / "slow.webm", 17, "-deadline", "realtime", rate=12)
    film(folder / "moving.gif")
    film(folder / "below/frames/%d.png", 34)
    film(folder / "short.mp4", 32)
    film(folder / "uncaptioned.mp4", 33)
    film(folder / "blank.mp4", 33)
    for kind in ("mp4", "mkv", "webm", "gif"):
        whole = film(folder / f"whole.{kind}", 96, *(["-movflags", "+faststart"] if kind == "mp4" else []))
        data = whole.read_bytes()
        (folder / f"cut.{kind}").write_bytes(data[: len(data) * 6 // 10 + 17])
        if kind == "mp4":
            middle = slice(len(data) // 2, len(data) // 2 + 500)
            (folder / "torn.mp4").write_bytes(
                data[: middle.start] + np.random.default_rng(0).bytes(500) + data[middle.stop :]
            )
        whole.unlink()
    (folder / "words.mp4").write_text("not a film")
    (folder / "nowhere.mp4").symlink_to(folder / "moved.mp4")
    for clip in find_clips(folder):
        if "uncaptioned" not in clip.name:
            stem = clip.path if clip.path.is_dir() else clip.path.with_suffix("")
            Path(f"{stem}.txt").write_text(f"a  test picture,\n{stem.name} &amp; more\n")
    (folder / "blank.txt").write_text(" \n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), SPECS["tiny"])


@pytest.fixture
def encoder(model) -> ClipEncoder:
    return ClipEncoder(Checkpoint.open(model), torch.device("cpu"), torch.float32, SIZE)


def encode(folder: Path, clips: Path, encoder: ClipEncoder) -> list:
    return list(encode_folder(folder, FolderClips(path=str(clips)), 0, encoder))


@pytest.mark.train
def test_good_clips_are_encoded_and_the_others_named(originals, encoder, tmp_path):
    events = encode(tmp_path, originals, encoder)
    encoded = {event.clip: event.chunks for event in events if isinstance(event, ClipEncoded)}
    assert encoded == {"below/frames": 1, "exact.mkv": 1, "long.mp4": 2, "moving.gif": 1, "slow.webm": 1}
    skipped = {event.clip: event.reason for event in events if isinstance(event, ClipSkipped)}
    assert all("it is damaged: " in skipped.pop(name) for name in DAMAGED)
    assert "32 frames at 24 fps; 33 are needed" in skipped.pop("short.mp4")
    assert "no uncaptioned.txt next to it" in skipped.pop("uncaptioned.mp4")
    assert "blank.txt is empty" in skipped.pop("blank.mp4")
    assert "no video that ffmpeg can read" in skipped.pop("words.mp4")
    assert skipped.pop("nowhere.mp4") == "it cannot be read: No such file or directory"
    assert not skipped
    assert events[-1] == FolderDone(encoded=5, kept=0, skipped=10)
    clips = LatentClips(tmp_path, text_rows=64)
    assert sorted(clips.lengths) == [1, 1, 1, 1, 2]
    captions = {clips.batch([(i, 0)]).captions[0] for i in range(5)}
    assert captions == {f"a test picture, {name} & more" for name in ("frames", "exact", "long", "moving", "slow")}


def test_chunks_are_the_last_whole_ones_as_ffmpeg_decodes_them(originals):
    """A lossless film of the right size and rate, and its frames as pictures: not a bit is changed."""
    raw = ffmpeg("-i", originals / "exact.mkv", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    frames = np.frombuffer(raw, np.uint8).reshape(40, 16, 32, 3)
    (chunk,) = SourceClip(originals / "exact.mkv", "exact.mkv").chunks(SIZE, 24)
    assert np.array_equal(np.rint((chunk + 1) * 127.5).astype(np.uint8).transpose(1, 2, 3, 0), frames[7:])


def test_frames_are_taken_by_their_numbers(tmp_path):
    """Forty frames, 1.png to 40.png, so that by name 10 comes before 2; the first seven are in no chunk."""
    (tmp_path / "clip").mkdir()
    for number in range(1, 41):
        Image.new("RGB", SIZE, (number, 0, 0)).save(tmp_path / "clip" / f"{number}.png")
    (chunk,) = SourceClip(tmp_path / "clip", "clip").chunks(SIZE, 24)
    assert np.rint((chunk[0, :, 0, 0] + 1) * 127.5).tolist() == list(range(8, 41))


@pytest.mark.slow
def test_only_what_changes_is_encoded_again(encoder, tmp_path):
    folder, cache = tmp_path / "clips", tmp_path / "cache"
    folder.mkdir()
    for name in ("one", "two", "three"):
        film(folder / f"{name}.mp4", 33 if name == "one" else 36)
        (folder / f"{name}.txt").write_text(f"the film {name}")

    def again() -> tuple[list[str], FolderDone]:
        *events, done = encode(cache, folder, encoder)
        return [event.clip for event in events], done

    assert again() == (["one.mp4", "three.mp4", "two.mp4"], FolderDone(3, 0, 0))
    before = {path.name: path.stat().st_mtime_ns for path in shards(cache)}
    assert again() == ([], FolderDone(0, 3, 0))
    os.utime(folder / "one.mp4")  # touched
    shutil.copy(folder / "two.mp4", folder / "renamed.mp4")  # and its caption with it
    (folder / "two.mp4").unlink()
    (folder / "two.txt").rename(folder / "renamed.txt")
    assert again() == ([], FolderDone(0, 3, 0))
    assert {path.name: path.stat().st_mtime_ns for path in shards(cache)} == before

    (folder / "one.txt").write_text("another caption")
    film(folder / "three.mp4", 34)
    (folder / "renamed.mp4").unlink()
    assert again() == (["one.mp4", "three.mp4"], FolderDone(2, 0, 0))
    clips = LatentClips(cache, text_rows=64)
    assert {clips.batch([(i, 0)]).captions[0] for i in range(len(clips))} == {"another caption", "the film three"}


def test_a_folder_without_one_good_clip_is_an_error(encoder, tmp_path):
    folder, cache = tmp_path / "clips", tmp_path / "cache"
    with pytest.raises(InputError, match="there is no folder"):
        encode(cache, folder, encoder)
    folder.mkdir()
    with pytest.raises(InputError, match="holds no clips"):
        encode(cache, folder, encoder)
    good = film(folder / "clip.mp4", 33)
    (folder / "clip.txt").write_text("a film")
    encode(cache, folder, encoder)
    kept = shards(cache)
    good.write_bytes(good.read_bytes()[:300])
    with pytest.raises(InputError, match=r"none of the 1 clips .* can be used \(clip\.mp4: "):
        encode(cache, folder, encoder)
    assert shards(cache) == kept  # as where the disk with the clips is not there today


@pytest.mark.process
@pytest.mark.slow
def test_the_command_names_what_it_skips(originals, model, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("exact.mkv", "exact.txt", "cut.mkv", "cut.txt"):
        shutil.copy(originals / name, clips)
    config = tmp_path / "latents.toml"
    config.write_text(
        f'phase = "latents"\nstart = "{model}"\nout = "{tmp_path}/out"\nsize = [32, 16]\n[clips]\npath = "{clips}"\n'
    )
    command = [sys.executable, "-m", "helios_cli", "train", str(config), "--progress", "plain", "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    assert run.returncode == 0, run.stderr
    assert "skipped cut.mkv: it is damaged: File ended prematurely" in run.stdout + run.stderr
    assert len(LatentClips(tmp_path / "out", text_rows=64)) == 1
