"""`helios check` from outside: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from helios_cli import cli
from helios_cli.check.limits import LIMITS
from support.clips import CHUNK, film, noisy, pan, scene


@pytest.fixture
def helios(monkeypatch, capsys):
    """`helios(*arguments)` runs `helios check`; gives its exit code, and what it printed on stdout and stderr."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments) -> tuple[int, str, str]:
        code = cli.main(["check", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return film(tmp_path_factory.mktemp("clean") / "film.mp4", pan(scene(), 3 * CHUNK))


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """The second of three chunks flickers."""
    frames = pan(scene(), 3 * CHUNK)
    frames[CHUNK : 2 * CHUNK : 2] += 8
    return film(tmp_path_factory.mktemp("spoilt") / "film.mp4", frames)


def test_a_clean_film(helios, clean):
    code, out, err = helios(clean, "--strict")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "nothing found in 3 chunks, 99 frames, 0:04.12"


@pytest.mark.slow
def test_findings_are_no_error_unless_strict(helios, spoilt):
    code, out, err = helios(spoilt)
    assert (code, err) == (0, "")
    assert [line.endswith("flickering") for line in out.splitlines()[1:4]] == [False, True, False]
    assert "flickering: chunk 2, 0:01.38-0:02.75: " in out
    assert max(map(len, out.splitlines()[:4])) <= 80
    code, strict_out, err = helios(spoilt, "--strict")
    assert code == 1 and strict_out == out
    assert err.startswith("error: ") and "1 finding" in err and "hint: " in err


def test_json_is_the_report(helios, spoilt):
    code, out, err = helios(spoilt, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["version"], report["ok"], report["frames"], report["fps"]) == (1, False, 99, 24)
    (finding,) = report["findings"]
    assert (finding["kind"], finding["chunk"], finding["last_chunk"]) == ("flickering", 1, 1)
    assert finding["value"] > finding["limit"] == LIMITS["flicker"].value == report["limits"]["flicker"]
    assert len(report["chunks"]) == 3 and report["chunks"][0]["jump"] is None
    assert helios(spoilt, "--json", "--strict")[0] == 1


@pytest.mark.slow
def test_long_films_show_only_what_was_found(helios, tmp_path):
    frames = pan(scene(width=4096), 48 * 8)
    frames[80:88:2] += 12
    code, out, _ = helios(film(tmp_path / "film.mp4", frames), "--chunk-frames", 8)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert [row[0] for row in rows[:3]] == ["chunk", "11", "median"]
    assert "1 of 48 chunks are shown" in out


def test_the_page_is_written_before_strict_fails(helios, spoilt, tmp_path):
    code, _, err = helios(spoilt, "--strict", "--report", tmp_path / "report.html")
    assert code == 1 and "hint" not in err
    assert "flickering" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("against", [(), ("--against", "film.mp4")], ids=["alone", "compared"])
def test_a_page_that_cannot_be_written_costs_no_result(helios, clean, tmp_path, monkeypatch, against):
    (tmp_path / "report.html").symlink_to("/dev/full")
    monkeypatch.chdir(clean.parent)
    _, expected, _ = helios(clean, *against)
    code, out, err = helios(clean, *against, "--report", tmp_path / "report.html")
    assert (code, out) == (2, expected) and "No space left" in err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--report", "film.mp4"], "HTML"),
        (["--report", "no/r.html"], "does not exist"),
        (["--chunk-frames", "1"], "chunk-frames"),
        (["--psnr", "40"], "--against"),
        (["--ssim", "0.9"], "--against"),
        (["--against", "other.mp4", "--psnr", "nan"], "--psnr"),
        (["--against", "other.mp4", "--ssim", "40"], "--ssim"),
    ],
)
def test_wrong_options_end_before_the_film_is_read(helios, options, word):
    code, out, err = helios("no-such-film.mp4", *options)
    assert (code, out) == (2, "") and word in err


def test_a_film_that_is_none(helios, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"no film")
    code, out, err = helios(tmp_path / "film.mp4", "--json")
    assert (code, out) == (2, "") and err.startswith("error: ") and "hint: " in err


@pytest.fixture(scope="module")
def noisy_film(tmp_path_factory):
    """The film of `clean`, noisy in its second chunk."""
    frames = pan(scene(), 3 * CHUNK)
    frames[CHUNK : 2 * CHUNK] = noisy(frames[CHUNK : 2 * CHUNK], 40)
    return film(tmp_path_factory.mktemp("noisy") / "film.mp4", frames)


@pytest.mark.slow
def test_films_that_differ(helios, clean, noisy_film):
    code, out, err = helios(noisy_film, "--against", clean)
    lines = out.splitlines()
    assert (code, err) == (0, "") and max(map(len, lines)) <= 80
    psnrs = [float(line.split()[2]) for line in lines[1:4]]
    assert psnrs[1] < 25 < min(psnrs[0], psnrs[2])
    assert lines[-2].startswith("PSNR ") and "SSIM" in lines[-2]
    code, strict_out, err = helios(noisy_film, "--against", clean, "--strict", "--psnr", 25)
    assert code == 1 and "low PSNR: chunk 2, 0:01.38-0:02.75: " in strict_out
    assert err.startswith("error: ") and "chunk 2: PSNR is " in err and "hint: " in err
    assert helios(noisy_film, "--against", clean, "--strict", "--psnr", 5, "--ssim", 0.1)[0] == 0
    assert helios(noisy_film, "--against", clean, "--strict")[0] == 1


def test_films_that_are_equal(helios, clean):
    code, out, err = helios(clean, "--against", clean, "--strict", "--psnr", 200)
    assert (code, err) == (0, "") and out.splitlines()[-1].startswith("the films are equal: every pixel in 99 frames")


def test_json_of_a_comparison(helios, clean, noisy_film, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = helios(noisy_film, "--against", clean, "--json", "--strict", "--psnr", 25, "--report", page)
    said = json.loads(out)
    assert code == 1 and page.is_file()
    assert (said["version"], said["ok"], said["equal"], said["frames"]) == (1, False, False, 99)
    assert [finding["kind"] for finding in said["findings"]] == ["low PSNR"]
    assert said["worst"][0]["chunk"] == 1 and len(said["chunks"]) == 3
    assert json.loads(helios(clean, "--against", clean, "--json")[1])["psnr"] is None


@pytest.mark.slow
def test_of_a_long_comparison_the_worst_chunks_are_shown(helios, tmp_path):
    frames = np.zeros((48 * 8, 16, 16, 3))
    changed = frames.copy()
    changed[11 * 8] = 9
    films = film(tmp_path / "a.mkv", changed), film(tmp_path / "b.mkv", frames)
    code, out, _ = helios(films[0], "--against", films[1], "--chunk-frames", 8)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and len(rows[1:41]) == 40 and ["12", "0:03.67"] in [row[:2] for row in rows]
    assert "the worst 40 of 48 chunks are shown" in out


@pytest.mark.slow
def test_several_films(helios, clean, spoilt, tmp_path):
    code, out, err = helios(clean, spoilt)
    assert (code, err) == (0, "") and max(map(len, out.splitlines()[-8:])) <= 80
    assert "averages over 2 films" in out and "flickering" in out
    said = json.loads(helios(clean, spoilt, "--json")[1])
    assert [len(said["films"]), said["ok"], said["failed"]] == [2, False, []]
    assert {measure["name"] for measure in said["summary"]} >= {"brightness", "motion_length"}
    code, _, err = helios(clean, spoilt, "--strict")
    assert code == 1 and "1 film of 2" in err
    code, _, err = helios(clean, tmp_path / "none.mp4")
    assert code == 1 and "none.mp4" in err and "1 film of 2 could not be read" in err
    for option in ("--report", "--against"):
        code, out, err = helios(clean, spoilt, option, "x.html")
        assert (code, out) == (2, "") and option in err


@pytest.mark.process
def test_help_and_the_whole_check_leave_torch_alone(clean):
    """`--help` even numpy: what a command needs is imported when it runs."""
    script = "import sys; import helios_cli.commands.check; print('numpy' in sys.modules)\n"
    script += "from helios_cli.check.examine import examine; examine(sys.argv[1]); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script, str(clean)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
