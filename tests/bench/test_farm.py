"""`helios bench farm`: its workers are served as real ones are, and what it measures is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helios_cli.bench.farm import Films, Stage
from helios_cli.bench.farm_worker import STAGES, Sleeper
from helios_cli.cli import main
from helios_cli.commands.bench_farm import bounds
from helios_cli.engine.events import Event
from helios_cli.farm.start import plan_films
from helios_cli.farm.task import Task
from helios_cli.film.parts import Parts, stored


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path, Films(number=1, segments=2, chunks=2, chunk_seconds=0.0, state_bytes=100))


def rendered(stage: Stage) -> tuple[Parts, list[list[dict]]]:
    """Render the segments of the only film. Returns its parts, and the messages for each segment."""
    (job,) = stage.jobs()
    (film,) = plan_films([job], job.options)
    sleeper = Sleeper(stage.how())
    return film.parts, [
        list(sleeper.answer(json.loads(json.dumps(Task(one.plan, job.options, "mp4").to_message()))))
        for one in film.segments
    ]


def test_a_worker_without_a_model_keeps_chunks_that_are_found(stage):
    parts, answers = rendered(stage)
    found = set()
    for *events, last in answers:
        kinds = [type(Event.from_dict(event)).__name__ for event in events]
        chunk = ["PhaseStarted", *["StepDone"] * STAGES, "PhaseStarted", "ChunkDone"]
        assert kinds == [*chunk, *chunk, "PhaseStarted", "FilmDone"]
        done = last["done"]
        assert stored(parts.chunks, done["fingerprints"], done["keys"])[0] == 2
        found.update(done["fingerprints"])
    assert len(found) == 4, "each chunk is another one"


def test_its_chunks_are_made_once(stage):
    rendered(stage)
    _, answers = rendered(stage)
    assert [events[0]["event"] for events in answers] == ["chunks_reused", "chunks_reused"]
    assert not [event for events in answers for event in events if event.get("event") == "chunk_done"]


def test_bounds_are_the_workers_that_use_a_resource_up():
    rows = [{"driver_seconds": 1.0, "view_seconds": 1.0}, {"driver_seconds": 0.004, "view_seconds": 0.001}]
    parts = {"join_driver_seconds": 0.01, "join_ffmpeg_seconds": 0.05, "keep_seconds": 0.02}
    found = bounds(rows, parts, Films(10, 2, 3, 0.1, 100))
    assert found == pytest.approx({"driver": 200, "joins": 100, "store": 50})


@pytest.mark.process
@pytest.mark.slow
def test_a_farm_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    asked = ["--films", "3", "--segments", "2", "--chunks", "2", "--chunk-seconds", "0.01", "--state", "1K"]
    out = tmp_path / "farm.json"
    assert main(["bench", "farm", "--workers", "1,2", *asked, "--json", "--out", str(out)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert json.loads(Path(out).read_text()) == data
    assert [(row["workers"], row["chunks"]) for row in data["rows"]] == [(1, 12), (2, 12)]
    for row in data["rows"]:
        per_segment = 2 * (STAGES + 3) + 2 + 1  # events of its chunks, of its end, and `done`
        assert row["messages"] * 12 == pytest.approx(6 * per_segment, abs=2 * row["workers"] + 4)
        assert row["overhead_seconds"] > 0 and row["driver_seconds"] > 0 and row["peak_bytes"] > 10_000_000
    assert data["parts"]["films"] == 3 and data["parts"]["join_ffmpeg_seconds"] > 0
    assert data["faults"]["taken_over_chunks"] > 2
    assert data["faults"]["expired_seconds"] >= data["faults"]["expiry_seconds"]
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("workers", ["", "0", "2,", "2;8", "-1", "9999"])
def test_numbers_of_workers(workers, capsys):
    assert main(["bench", "farm", "--workers", workers]) == 2
    assert "--workers" in capsys.readouterr().err
