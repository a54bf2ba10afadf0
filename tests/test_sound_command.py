"""Sound from the command line: flags, recipes, records, plans, live films, workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import helios_cli as helios
from helios_cli.cli import main
from helios_cli.film.again import read_again
from helios_cli.film.reading import sound_end
from support import sounds
from support.sounds import heard, picture_packets, tone

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--size", "64x64", "--steps", "1,1,1", "--dtype", "float32", "--device", "cpu"]
SHORT = ["--frames", "40"]
PROMPT = "a red circle"
SECONDS = 40 / 24


@pytest.fixture
def folder(tmp_path, monkeypatch, distilled) -> Path:
    """The current folder, with a sound of 4 seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    sounds.write(Path("music.wav"), tone(4))
    return tmp_path


def render(output: str, *arguments: str, source: str = PROMPT, length: list[str] = SHORT) -> Path:
    assert main(["render", source, "-o", output, *FLAGS, *length, "-q", *arguments]) == 0
    return Path(output)


def recipe(keys: str = "", name: str = "film.toml", shots: str = "") -> None:
    Path(name).write_text(f'version = 1\n{keys}\n[[shot]]\nprompt = "{PROMPT}"\n{shots}')


def said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def refused(capsys, *arguments: str, source: str = PROMPT) -> str:
    assert main(["render", source, *FLAGS, *SHORT, *arguments]) == 2
    return said(capsys)


def reused(capsys, *arguments: str) -> bool:
    """Render, and return whether no chunk was rendered."""
    capsys.readouterr()
    assert main(["render", PROMPT, *FLAGS, *SHORT, "--json", *arguments]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return not [event for event in events if event["event"] == "step_done"]


def is_silent(film: Path) -> bool:
    """Return whether the film has no sound stream."""
    listed = sounds.run("-i", str(film), "-map", "0:v", "-map", "0:a?", "-c", "copy", "-f", "streamhash", "-")
    return len(listed.splitlines()) == 1


def test_a_film_with_sound_has_the_frames_of_one_without(folder, capsys):
    silent, sounding = render("silent.mkv"), render("film.mkv", "--audio", "music.wav", "--audio-fade", "0")
    assert picture_packets(sounding) == picture_packets(silent)
    assert np.array_equal(heard(sounding), heard(Path("music.wav"))[:80000])
    record = read_again(sounding).record
    digest = sha256(Path("music.wav").read_bytes()).hexdigest()
    assert record.audio.model_dump() == {"name": "music.wav", "sha256": digest, "fit": "trim", "fade": 0}
    assert json.loads(Path("film.json").read_text())["audio"]["sha256"] == digest
    assert "notice" not in said(capsys)


@pytest.mark.slow
def test_another_sound_is_another_film_but_renders_nothing(folder, capsys):
    again = ["-o", "film.mkv", "--audio", "music.wav"]
    render("film.mkv", "--audio", "music.wav")
    assert "exists" in refused(capsys, *again)
    assert reused(capsys, *again, "--audio-fade", "0", "--force")
    assert np.array_equal(heard(Path("film.mkv")), heard(Path("music.wav"))[:80000])
    assert reused(capsys, "-o", "film.mkv", "--force")
    assert is_silent(Path("film.mkv"))


@pytest.mark.slow
def test_a_recipe_s_sound_is_that_of_the_flags_which_replace_it(folder, monkeypatch):
    sounds.write(Path("other.wav"), tone(1))
    by_flag = heard(render("flag.mkv", "--audio", "other.wav", "--audio-fit", "loop", "--audio-fade", "0.2"))
    recipe('audio = "other.wav"\naudio_fit = "loop"\naudio_fade = 0.2')
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert np.array_equal(heard(render("recipe.mkv", source="../film.toml")), by_flag)
    silent = picture_packets(render("none.mkv", "--audio", "none", source="../film.toml"))
    assert silent == picture_packets(Path("recipe.mkv"))
    played = heard(render("over.mkv", "--audio", "../music.wav", "--audio-fade", "0", source="../film.toml"))
    assert np.array_equal(played, heard(Path("../music.wav"))[:80000])
    assert is_silent(Path("none.mkv"))


@pytest.mark.slow
def test_a_film_is_made_again_with_its_sound(folder, capsys, monkeypatch):
    film = render("film.mkv", "--audio", "music.wav", "--audio-fade", "0.25")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["render", "--from", "../film.mkv", "-q"]) == 0
    assert np.array_equal(heard(Path("film-again.mkv")), heard(Path("../film.mkv")))
    assert "bit-identical" not in said(capsys)
    sounds.write(Path("../music.wav"), tone(3))
    assert main(["render", "--from", "../film.mkv", "-o", "other.mkv", "--progress", "plain"]) == 0
    assert "will not be bit-identical to ../film.mkv: it differs in audio" in said(capsys)
    Path("../music.wav").unlink()
    assert main(["render", "--from", "../film.mkv", "-o", "third.mkv"]) == 2
    assert re.search(r"music.wav: no such file.*--audio none leaves it out", said(capsys))
    assert main(["render", "--from", "../film.mkv", "-o", "third.mkv", "--audio", "none", "-q"]) == 0
    assert picture_packets(Path("third.mkv")) == picture_packets(folder / film)


def test_plan_shows_it(folder, capsys):
    recipe('audio = "music.wav"\naudio_fit = "loop"')
    assert main(["plan", "film.toml", *FLAGS, *SHORT, "--audio-fade", "2", "--json"]) == 0
    (film,) = json.loads(capsys.readouterr().out)["films"]
    path, digest = str(folder / "music.wav"), sha256(Path("music.wav").read_bytes()).hexdigest()
    assert film["audio"] == {"path": path, "sha256": digest, "seconds": 4, "fit": "loop", "fade": 2}
    assert [film["settings"][key]["from"] for key in ("audio", "audio_fit", "audio_fade")] == [
        "recipe",
        "recipe",
        "flag",
    ]
    assert main(["render", "film.toml", *FLAGS, *SHORT, "--dry-run"]) == 0
    shown = said(capsys)
    assert "audio fit loop recipe" in shown and "audio fade 0.5 default" in shown
    assert main(["plan", "film.toml", *FLAGS, *SHORT, "--audio", "none", "--json"]) == 0
    (film,) = json.loads(capsys.readouterr().out)["films"]
    assert film["audio"] is None and "audio" not in film["settings"]


def test_a_sound_that_is_too_short_is_said_and_under_strict_refused(folder, capsys):
    sounds.write(Path("short.wav"), tone(1))
    line = "short.wav is 1.00 s long, and the film 1.67 s: silence follows it (--audio-fit loop repeats it)"
    assert main(["plan", PROMPT, *FLAGS, *SHORT, "--audio", "short.wav"]) == 0
    assert line in said(capsys).replace(str(folder) + "/", "")
    assert line in refused(capsys, "--audio", "short.wav", "--strict").replace(str(folder) + "/", "")
    for fit in ("loop", "pad"):
        assert main(["plan", PROMPT, *FLAGS, *SHORT, "--audio", "short.wav", "--audio-fit", fit, "--strict"]) == 0
        assert "silence" not in said(capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--audio", "musik.wav"], "--audio: musik.wav: no such file hint: did you mean music.wav?"),
        (["--audio", "https://example.org/a.mp3"], "only local files are read hint: download it first"),
        (["--audio", "list.m3u8"], "list.m3u8 names other files"),
        (["--audio", "silent.wav"], "silent.wav is silent: all its samples are zero"),
        (["--audio", "half.wav"], "half.wav is damaged"),
        (["--audio", "."], "is not a file"),
        (["--audio", "music.wav", "--audio-fit", "pad"], "is 4.00 s long, and the film 1.67 s: pad keeps it whole"),
        (["--audio", "music.wav", "--audio-fade", "-1"], "--audio-fade -1.0: must be 0 to 3,600"),
        (["--audio", "music.wav", "--audio-fade", "nan"], "--audio-fade nan: must be 0 to 3,600"),
        (["--audio-fit", "loop"], "--audio-fit fits a sound, but the film has none hint: name a file with --audio"),
        (["--audio", "music.wav", "--takes", "2"], "--audio is for a film, but --takes makes none"),
        (["--audio", "music.wav", "-o", "frames/"], "frames/: a folder of pictures has no sound"),
        (["--audio", "film.mkv"], "the film would replace"),
    ],
)
def test_what_is_wrong_is_said_before_anything_renders(folder, flags, message, capsys):
    Path("list.m3u8").write_text("#EXTM3U\nmusic.wav\n")
    sounds.write(Path("silent.wav"), np.zeros((48000, 2)))
    Path("half.wav").write_bytes(Path("music.wav").read_bytes()[:300_001])
    if "film.mkv" in flags:
        shutil.copy("music.wav", "film.mkv")
        flags = [*flags, "--force"]
    before = sorted(os.listdir())
    output = [] if "-o" in flags else ["-o", "film.mkv"]
    assert message in refused(capsys, *output, *flags).replace(f"{folder}/", "")
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('audio = "musik.wav"', "film.toml:2: `audio`: musik.wav: no such file hint: did you mean music.wav?"),
        ('audio = "http://example.org/a.mp3"', "film.toml:2: `audio`: begins with `http:`: only local files are read"),
        ('audio = "music.wav"\naudio_fit = "lop"', "film.toml:3: `audio_fit`: must be 'trim', 'loop' or 'pad', not"),
        ('audio = "music.wav"\naudio_fit = "lop"', 'write `audio_fit = "loop"`'),
        ('audio = "music.wav"\naudio_fade = -1', "film.toml:3: `audio_fade`: "),
        ('audio_fit = "loop"', "film.toml:2: `audio_fit`: fits no sound: name a file with `audio`, or remove the key"),
        ('audoi = "music.wav"', "write `audio`"),
    ],
)
def test_a_wrong_recipe_is_said(folder, keys, message, capsys):
    recipe(keys)
    assert message in refused(capsys, "-o", "film.mkv", source="film.toml").replace(f"{folder}/", "")


@pytest.mark.slow
def test_takes_of_a_recipe_with_sound_have_none(folder):
    recipe('audio = "music.wav"')
    assert main(["render", "film.toml", *FLAGS, *SHORT, "--takes", "2", "-q"]) == 0
    clips = sorted(Path("film.takes").glob("*.mp4"))
    assert len(clips) == 2 and all(map(is_silent, clips))


def test_one_form_of_recipe_becomes_another(folder, capsys):
    recipe('audio = "music.wav"\naudio_fit = "loop"\naudio_fade = 2.5')
    Path("other").mkdir()
    assert main(["recipe", "convert", "film.toml", "other/film.yaml"]) == 0
    text = Path("other/film.yaml").read_text()
    assert "audio: ../music.wav" in text and "audio_fit: loop" in text and "audio_fade: 2.5" in text
    assert main(["recipe", "check", "other/film.yaml"]) == 0


@pytest.mark.slow
def test_a_batch_has_it_in_each_film_and_skips_the_finished_ones(folder, capsys):
    recipe(name="one.toml")
    recipe('audio = "music.wav"\naudio_fade = 1', name="two.toml")
    Path("films").mkdir()
    batch = ["render", "one.toml", "two.toml", "-o", "films", *FLAGS, *SHORT, "--lanes", "2", "--audio", "music.wav"]
    assert main([*batch, "--audio-fade", "0"]) == 0
    assert [round(sound_end(Path(f"films/{name}.mp4")) * 48000) for name in ("one", "two")] == [80000, 80000]
    assert "finished already" not in said(capsys)
    assert main([*batch, "--audio-fade", "0"]) == 0
    assert said(capsys).count("finished already") == 2
    assert main(batch) == 1
    assert "films/one.mp4 exists" in (text := said(capsys)) and "films/two.mp4 exists" in text
    sounds.write(Path("music.wav"), tone(4)[::-1])
    assert main([*batch, "--audio-fade", "0"]) == 1
    assert "exists" in said(capsys)


@pytest.mark.slow
def test_a_live_film_has_it_and_keeps_it_in_its_recipe(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    live = ["live", PROMPT, *FLAGS, "--frames", "140", "-o", "live.mkv", "--progress", "plain"]
    assert main([*live, "--audio", "music.wav", "--audio-fit", "pad"]) == 2
    assert "pad needs a film of a known length" in said(capsys)
    assert main([*live, "--audio", "music.wav"]) == 0
    assert "is 4.00 s long, and the film 5.83 s: silence follows it" in said(capsys)
    played = heard(Path("live.mkv"))
    assert np.array_equal(played[:192000], heard(Path("music.wav"))) and not played[192000:].any()
    assert len(played) == 280000
    assert re.search(r'audio = "music.wav"\naudio_fit = "trim"\naudio_fade = 0.5', Path("live.toml").read_text())
    command = re.search(r"#   helios (.*)", Path("live.toml").read_text())[1].split()
    assert "--audio" not in command
    assert main([*command, "-o", "again.mkv", "-q"]) == 0
    assert np.array_equal(heard(Path("again.mkv")), played)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("how", [["--workers", "2"], ["--share"], ["--gpus-per-film", "2"]])
def test_whoever_renders_the_film_has_sound(folder, how):
    Path("cuts.txt").write_text(f"[1s] {PROMPT}\n\n[cut] the green square\n")
    alone = render("alone.mkv", "--audio", "music.wav", source="cuts.txt")
    shared = render("shared.mkv", "--audio", "music.wav", *how, source="cuts.txt")
    assert np.array_equal(heard(shared), heard(alone))
    if how != ["--gpus-per-film", "2"]:
        assert picture_packets(shared) == picture_packets(alone)


@pytest.mark.slow
@pytest.mark.process
def test_a_file_that_is_replaced_meanwhile_costs_no_chunk(folder, capsys, monkeypatch):
    from helios_cli.engine import render as module

    opened, again = module.open_film, ["-o", "film.mkv", "--audio", "music.wav", "--no-cache"]

    def replaced(*arguments, **options):
        sounds.write(Path("music.wav"), tone(4)[::-1])
        return opened(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "open_film", replaced)
        assert "changed while the film was rendered" in refused(capsys, *again)
    assert not Path("film.mkv").exists()
    assert reused(capsys, *again)
    assert len(heard(Path("film.mkv"))) == 80000


@pytest.mark.slow
def test_python_and_the_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    assert Path("recipes/bells.flac").stat().st_size < 30_000
    how = {"size": "64x64", "steps": "1,1,1", "dtype": "float32", "device": "cpu", "cache": False}
    for _ in helios.render("recipes/sound.toml", output="film.mkv", **how):
        pass
    how |= {"frames": 24, "audio": Path("recipes/bells.flac"), "audio_fade": 0}
    for _ in helios.render("a red circle", output="short.mkv", **how):
        pass
    bells = heard(Path("recipes/bells.flac"), "aresample=48000", "aformat=sample_fmts=fltp")
    played = heard(Path("film.mkv"))
    assert len(played) == 6 * 48000
    assert np.abs(played[:240000, 0] - np.tile(bells.reshape(-1), 2)[:240000]).max() < 1e-6
    assert np.array_equal(heard(Path("short.mkv")), played[:48000])
