"""Several films in one command: a row for each, and averages over them, against sums by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helios_cli.check.examine import examine, examine_films
from support.clips import film, pan, scene


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A film that gets darker, a steady one, and one of a single frame, which has no motion."""
    folder = tmp_path_factory.mktemp("films")
    frames = pan(scene(), 40)
    fading = frames * np.linspace(1, 0.8, 40)[:, None, None, None]
    return [
        film(folder / name, drawn)
        for name, drawn in (("1_40_ori40.mp4", fading), ("2_40_ori40.mp4", frames), ("3_1_ori1.mp4", frames[:1]))
    ]


@pytest.mark.slow
def test_measures_are_averaged_over_films(films):
    result = examine_films(films)
    alone = [{measure.name: measure for measure in examine(path).summary} for path in films]
    assert [report.film for report in result.reports] == [str(path) for path in films]
    for average in result.summary:
        for value in ("mean", "first", "last", "drift"):
            there = [getattr(one[average.name], value) for one in alone]
            there = [number for number in there if number is not None]
            expected = pytest.approx(np.mean(there)) if there else None
            assert getattr(average, value) == expected, (average.name, value)
    drifts = {average.name: average.drift for average in result.summary}
    assert drifts["brightness"] > 5


def test_a_film_that_cannot_be_read_stops_no_other(films, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    result = examine_films([tmp_path / "broken.mp4", films[1]])
    assert [report.film for report in result.reports] == [str(films[1])]
    ((path, error),) = result.failed
    assert path == tmp_path / "broken.mp4" and "broken.mp4" in error.message
    said = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert said["ok"] is False and said["failed"][0]["film"] == str(path)
