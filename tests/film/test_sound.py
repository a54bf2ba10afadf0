"""Sound under a film: ffmpeg decodes what was written, and decides which files are whole."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from helios_cli.errors import InputError
from helios_cli.film import ffmpeg, reading
from helios_cli.film import sound as sound_module
from helios_cli.film.sound import open_track
from helios_cli.film.writer import open_writer
from helios_cli.recipe.sound import Sound
from support import sounds
from support.sounds import heard, picture_packets, tone
from support.tiers import some

SIZE = (64, 48)
LAST_BIT = 2**-23
"""A step of the 24 bits in an .mkv."""


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE[1], SIZE[0], 3), np.uint8)


def film(path: Path, count: int, file: Path | None = None, fps: float = 24, **fitted) -> Path:
    """A film of `count` frames with the sound `file`."""
    track = open_track(Sound(file, **fitted)) if file else None
    with open_writer(path, size=SIZE, fps=fps, track=track) as writer:
        writer.write(frames(count))
    return path


@pytest.fixture
def wav(tmp_path) -> Path:
    return sounds.write(tmp_path / "sound.wav", tone(2))


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
@pytest.mark.parametrize(("count", "fps", "samples"), some(1, [(40, 23.976, 80080), (24, 24, 48000), (60, 24, 120000)]))
def test_the_sound_is_as_long_as_the_film_to_a_sample(tmp_path, wav, name, count, fps, samples):
    """In an .mp4 by its packets: ffmpeg 7 plays the last to its end, and writes it up to 63 samples short."""
    path = film(tmp_path / name, count, wav, fps)
    assert len(heard(path)) == samples if name == "film.mkv" else 0 <= len(heard(path)) - samples < 1024
    if name == "film.mp4":
        listed = sounds.run("-i", str(path), "-map", "0:a", "-c", "copy", "-f", "framecrc", "-").decode()
        _, _, shown, length, *_ = listed.splitlines()[-1].split(",")
        short = samples - int(shown) - int(length)
        assert "#tb 0: 1/48000" in listed and (short == 0 or (0 < short < 64 and ffmpeg.program().version < "8"))
    assert reading.num_frames(path, "-c", "copy") == count


@pytest.mark.slow
@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_the_picture_is_not_touched(tmp_path, wav, name):
    silent, sounding = film(tmp_path / f"silent-{name}", 40), film(tmp_path / name, 40, wav)
    assert picture_packets(sounding) == picture_packets(silent)
    assert reading.probe(sounding) == reading.probe(silent)


def test_an_mp4_has_aac_and_an_mkv_lossless_flac(tmp_path, wav):
    kinds = {name: film(tmp_path / name, 24, wav) for name in ("film.mp4", "film.mkv")}
    listed = ["-map", "0:a", "-c", "copy", "-f", "framecrc", "-"]
    streams = {name: sounds.run("-i", str(path), *listed).decode() for name, path in kinds.items()}
    assert "#codec_id 0: aac" in streams["film.mp4"] and "#codec_id 0: flac" in streams["film.mkv"]
    assert all("#sample_rate 0: 48000" in stream and "stereo" in stream for stream in streams.values())


@pytest.mark.slow
def test_a_longer_sound_is_cut_and_fades_out(tmp_path, wav):
    played = heard(film(tmp_path / "film.mkv", 24, wav, fade=0.25))
    whole = heard(wav)[:48000]
    gain = np.minimum(1, (48000 - np.arange(48000)) / 12000)[:, None]
    assert np.abs(played - whole * gain).max() <= LAST_BIT
    assert not np.array_equal(played, whole)


def test_without_a_fade_it_is_cut(tmp_path, wav):
    assert np.array_equal(heard(film(tmp_path / "film.mkv", 24, wav, fade=0)), heard(wav)[:48000])


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["trim", "pad"])
def test_silence_follows_a_shorter_sound_which_is_not_faded(tmp_path, wav, fit):
    played = heard(film(tmp_path / "film.mkv", 60, wav, fit=fit))
    assert np.array_equal(played[:96000], heard(wav))
    assert not played[96000:].any()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", some(2, ("m4a", "wav", "flac", "mp3", "ogg", "opus")))
def test_a_loop_begins_again_without_a_gap(tmp_path, suffix):
    """Some of these have samples in front or behind that players leave out, in each round."""
    file = sounds.write(tmp_path / "sound.wav", tone(0.7, 44100), 44100)
    file = file if suffix == "wav" else sounds.convert(file, tmp_path / f"sound.{suffix}")
    once = heard(file, "aresample=48000", "asetpts=N/SR/TB", "aformat=sample_fmts=fltp")
    played = heard(film(tmp_path / "film.mkv", 48, file, fit="loop", fade=0))
    rounds = np.tile(once, (4, 1))[: len(played)]
    assert len(played) == 96000
    assert np.abs(played - rounds).max() <= LAST_BIT
    assert sorted(os.listdir(tmp_path)) == sorted({"film.mkv", "sound.wav", file.name})


@pytest.mark.slow
def test_a_loop_fades_at_the_end_of_the_film(tmp_path, wav):
    played = heard(film(tmp_path / "film.mkv", 60, wav, fit="loop", fade=0.5))
    rounds = np.tile(heard(wav), (2, 1))[:120000]
    gain = np.minimum(1, (120000 - np.arange(120000)) / 24000)[:, None]
    assert np.abs(played - rounds * gain).max() <= LAST_BIT


def test_a_fade_longer_than_the_film_takes_all_of_it(tmp_path, wav):
    played = heard(film(tmp_path / "film.mkv", 12, wav, fade=100))
    gain = ((24000 - np.arange(24000)) / 24000)[:, None]
    assert np.abs(played - heard(wav)[:24000] * gain).max() <= LAST_BIT


# What files there are


@pytest.mark.slow
def test_mono_is_heard_on_both_sides_at_the_same_level(tmp_path):
    file = sounds.write(tmp_path / "mono.wav", tone(1, channels=1))
    played = heard(film(tmp_path / "film.mkv", 24, file))
    alone = np.frombuffer(sounds.run("-i", str(file), "-f", "f32le", "-"), np.float32)
    assert np.array_equal(played[:, 0], alone) and np.array_equal(played[:, 1], alone)


def test_eight_bits_and_44100_hertz(tmp_path):
    file = sounds.write(tmp_path / "old.wav", tone(1, 44100), 44100, width=1)
    played = heard(film(tmp_path / "film.mkv", 24, file))
    assert played.shape == (48000, 2)
    steps = tone(1)  # the same sines at the film's rate; 8 bits are off by half a step, and ring at the ends
    assert np.abs(played - steps)[100:-100].max() < 2 / 128


@pytest.mark.slow
def test_six_channels_are_mixed_without_clipping(tmp_path):
    """Full scale on all of them at once: the mix keeps within it, and keeps the sides apart."""
    loud = np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)[:, None] * np.array([1, 0.25, 1, 0, 1, 0.25])
    file = sounds.convert(
        sounds.write(tmp_path / "six.wav", loud), tmp_path / "six.flac", "-af", "aformat=channel_layouts=5.1"
    )
    played = heard(film(tmp_path / "film.mkv", 24, file))
    left, right = np.abs(played).max(0)
    assert 0.8 < left <= 1 and right < left
    ratio = played[100, 0] / np.sin(2 * np.pi * 440 * 100 / 48000)
    assert np.abs(played[:, 0] - ratio * loud[:, 0]).max() < 1e-4  # still a sine: nothing is cut off


@pytest.mark.slow
def test_a_cover_is_not_a_picture_of_the_film(tmp_path, wav):
    cover = tmp_path / "cover.png"
    sounds.run("-f", "lavfi", "-i", "color=red:s=32x32", "-frames:v", "1", str(cover))
    song = tmp_path / "song.mp3"
    sounds.run("-i", str(wav), "-i", str(cover), "-map", "0", "-map", "1", "-metadata", "title=Other", str(song))
    path = film(tmp_path / "film.mp4", 24, song)
    assert picture_packets(path) == picture_packets(film(tmp_path / "silent.mp4", 24))
    assert "title" not in reading.metadata(path)
    assert np.abs(heard(path)).max() > 0.1


def test_the_sound_of_a_film_is_one(tmp_path, wav):
    """A picture that goes on after its sound is no fault."""
    source = tmp_path / "clip.mp4"
    picture = ["-f", "lavfi", "-i", "color=red:s=32x32:r=24:d=4"]
    sounds.run(*picture, "-i", str(wav), "-map", "0", "-map", "1", str(source))
    assert abs(open_track(Sound(source)).seconds - 2) < 0.05  # the encoder's last packet


@pytest.mark.parametrize("name", some(2, ("[a]{b},;=.wav", "a b'c\"d.wav", "-y.wav", "ä:ö%03d.wav", "http:x.wav")))
def test_any_name_is_a_file(tmp_path, name):
    file = sounds.write(tmp_path / name, tone(1))
    assert np.array_equal(heard(film(tmp_path / "film.mkv", 24, file)), heard(file))


# What is refused


def refused(file: Path) -> str:
    with pytest.raises(InputError) as error:
        open_track(Sound(file))
    assert file.name in error.value.message and "\n" not in error.value.message
    return f"{error.value.message} ({error.value.hint})"


@pytest.mark.slow
def test_what_is_no_sound(tmp_path, wav):
    assert "No such file" in refused(tmp_path / "absent.wav")
    assert "is not a file" in refused(tmp_path)
    (tmp_path / "text.wav").write_text("RIFF of all kinds")
    assert "no sound that ffmpeg can read" in refused(tmp_path / "text.wav")
    (tmp_path / "empty.mp3").write_bytes(b"")
    assert "no sound that ffmpeg can read" in refused(tmp_path / "empty.mp3")
    silent = film(tmp_path / "film.mp4", 24)
    assert "no sound that ffmpeg can read" in refused(silent)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert "is not a file" in refused(tmp_path / "pipe.wav")


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 2**-15.5])
def test_a_silent_file_is_refused_and_the_quietest_is_not(tmp_path, level):
    """-90.3 dB is one step of 16 bits: less is refused."""
    quiet = np.full((48000, 2), level)
    raw = (tmp_path / "quiet.f32", tmp_path / "quiet.wav")
    raw[0].write_bytes(quiet.astype(np.float32).tobytes())
    sounds.run("-f", "f32le", "-ar", "48000", "-ac", "2", "-i", str(raw[0]), "-c:a", "pcm_f32le", str(raw[1]))
    assert "is silent: " + ("its peak is -93 dB" if level else "all its samples are zero") in refused(raw[1])
    heard_at_all = sounds.write(tmp_path / "soft.wav", tone(1) / 4000)
    assert open_track(Sound(heard_at_all)).num_samples == 48000


def test_samples_that_are_not_numbers(tmp_path):
    for bad in (np.nan, np.inf, 1e20):
        samples = tone(1).astype(np.float32)
        samples[1000, 0] = bad
        raw = tmp_path / "bad.f32"
        raw.write_bytes(samples.tobytes())
        file = tmp_path / f"{bad}.wav"
        sounds.run("-f", "f32le", "-ar", "48000", "-ac", "2", "-i", str(raw), "-c:a", "pcm_f32le", str(file))
        assert "samples that are not numbers" in refused(file)


@pytest.mark.parametrize("suffix", some(2, ("flac", "mp3", "wav", "m4a", "aac", "wv", "aiff")))
def test_half_a_file_is_refused(tmp_path, suffix):
    """Not raw AAC or Ogg cut between two packets: those are whole files of half the length."""
    wav = sounds.write(tmp_path / "whole.wav", tone(4))
    index_first = ["-movflags", "+faststart"] if suffix == "m4a" else []
    whole = wav if suffix == "wav" else sounds.convert(wav, tmp_path / f"whole.{suffix}", *index_first)
    assert open_track(Sound(whole)).seconds > 3.99
    half = tmp_path / f"half.{suffix}"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2 + 1])
    assert ("is cut short, or has a hole: only 1.9" if suffix == "mp3" else "is damaged: ") in refused(half)


@pytest.mark.parametrize("suffix", some(2, ("flac", "ogg", "m4a", "mp3", "opus", "aac", "wv")))
def test_a_hole_in_a_file_is_refused(tmp_path, suffix):
    whole = sounds.convert(sounds.write(tmp_path / "whole.wav", tone(4)), tmp_path / f"whole.{suffix}")
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    holed = tmp_path / f"holed.{suffix}"
    holed.write_bytes(data)
    assert re.search("is damaged: |is cut short, or has a hole: only 3", refused(holed))


@pytest.mark.parametrize("suffix", some(2, ("flac", "mp3", "wav", "m4a", "ogg")))
def test_a_tag_behind_the_last_sample_is_no_fault(tmp_path, suffix):
    wav = sounds.write(tmp_path / "whole.wav", tone(2))
    whole = wav if suffix == "wav" else sounds.convert(wav, tmp_path / f"whole.{suffix}")
    tagged = tmp_path / f"tagged.{suffix}"
    tagged.write_bytes(whole.read_bytes() + b"TAG" + b"a title".ljust(125, b"\0"))
    assert open_track(Sound(tagged)).num_samples == open_track(Sound(whole)).num_samples


def test_no_other_file_is_opened(tmp_path, wav):
    """Playlists, also in disguise; the sound that they name is a good one."""
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\n{wav}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{wav}'\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert "names other files" in refused(tmp_path / name)
        disguised = tmp_path / f"{name}.wav"
        disguised.write_text(text)
        assert "no sound that ffmpeg can read" in refused(disguised)


# The file while the film is rendered


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_file_that_is_replaced_is_not_put_under_the_film(tmp_path, wav, when, monkeypatch):
    track = open_track(Sound(wav))
    other = sounds.write(tmp_path / "other.wav", tone(2)[::-1])
    writer = open_writer(tmp_path / "film.mkv", size=SIZE, fps=24, track=track)
    writer.write(frames(24))
    if when == "before":
        os.replace(other, wav)
    else:
        check = sound_module.Track.check_unchanged

        def replace_after_it(self):
            check(self)
            if other.exists():
                os.replace(other, wav)

        monkeypatch.setattr(sound_module.Track, "check_unchanged", replace_after_it)
    with pytest.raises(InputError, match=r"sound\.wav changed while the film was rendered"):
        writer.close()
    assert not list(tmp_path.glob("film*"))


def test_a_file_that_is_removed_says_the_same(tmp_path, wav):
    writer = open_writer(tmp_path / "film.mp4", size=SIZE, fps=24, track=open_track(Sound(wav)))
    writer.write(frames(24))
    wav.unlink()
    with pytest.raises(InputError, match="changed while the film was rendered"):
        writer.close()


def test_a_file_of_another_content_is_read_again(tmp_path, wav):
    before = open_track(Sound(wav))
    sounds.write(wav, tone(1))
    assert (open_track(Sound(wav)).num_samples, before.num_samples) == (48000, 96000)
