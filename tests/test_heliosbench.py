"""HeliosBench's recipe in the README: one command renders its list, and its scripts find the films."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helios_cli.cli import main
from helios_cli.film import reading

LIST = 'id,prompt,duration\n7,"A red circle, moving right.",40\n12,The green square moves left.,12\n'
SMALL = ("--size", "64x64", "--steps", "1,1,1", "--dtype", "float32", "--no-cache", "-q")


@pytest.fixture
def bench(tmp_path, monkeypatch, distilled):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))
    Path("list.csv").write_text(LIST)
    Path("bench").mkdir()
    return Path("bench")


@pytest.mark.slow
def test_a_list_renders_in_one_command_under_the_names_that_the_scripts_read(bench):
    assert main(["render", "list.csv", *SMALL, "-o", "bench"]) == 0
    films = sorted(bench.glob("*_*_ori*.mp4"), key=lambda film: int(re.search(r"(\d+)_", film.name)[1]))
    assert [film.name for film in films] == ["7_40_ori40.mp4", "12_12_ori12.mp4"]
    for film in films:
        number, duration = film.stem.split("_")[:2]
        assert number in ("7", "12")
        assert reading.num_frames(film, "-c:v", "wrapped_avframe") == int(duration)
        record = json.loads(film.with_suffix(".json").read_text())
        assert LIST.count(record["recipe"]["shot"][0]["prompt"]) == 1
    before = [film.stat().st_mtime_ns for film in films]
    assert main(["render", "list.csv", *SMALL, "-o", "bench"]) == 0
    assert [film.stat().st_mtime_ns for film in films] == before
