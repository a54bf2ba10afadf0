"""Views of a farm: lines, rows and events, on terminals of any size."""

from __future__ import annotations

import io
import json
from itertools import islice
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console as RichConsole

from helios_cli.console import console
from helios_cli.engine.events import ChunkDone, FilmDone, Notice, PhaseStarted, SegmentStarted, WorkerReady
from helios_cli.errors import HeliosError, Interrupted
from helios_cli.farm_track import FarmTrack
from helios_cli.farm_view import PlainFarmView, RichFarmView, done_line, worker_rows
from helios_cli.films_view import FilmsView
from helios_cli.progress import BREAKS, NO_BREAKS
from support.farm_events import Farm, FarmEvents, film_started
from support.terminal import rows
from support.tiers import examples

FILMS = {"harbour": (1, 2), "a-film-with-a-name-that-is-far-too-long-0001": (6,), "日本の夜明け": (2, 1)}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def terminal_of(width: int, height: int = 24, encoding: str = "utf-8") -> RichConsole:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return RichConsole(file=file, width=width, height=height, force_terminal=True, color_system=None)


def screen_of(terminal: RichConsole) -> list[str]:
    """Return the lines that are on a terminal."""
    terminal.file.flush()
    return list(filter(None, rows(terminal.file.buffer.getvalue().decode())))


def drawn(view: RichFarmView, terminal: RichConsole) -> list[str]:
    with terminal.capture() as captured:
        terminal.print(view.draw())
    return captured.get().rstrip("\n").split("\n")


def screens(farm: Farm, width: int, height: int = 24, encoding: str = "utf-8"):
    """Yield the track of a farm after an event of eleven, and the lines of its view."""
    clock = Clock()
    track, terminal = FarmTrack(list(farm.films), clock), terminal_of(width, height, encoding)
    view = RichFarmView(track, terminal)
    for number, (seconds, film, event) in enumerate(FarmEvents(farm)):
        clock.now = 100.0 + seconds
        track.follow(film, event)
        if number % 11 == 0:
            yield track, drawn(view, terminal)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("hosts", [1, 3])
def test_lines_fit_and_no_number_is_lost(width, encoding, hosts):
    films = FILMS if encoding == "utf-8" else {name: parts for name, parts in FILMS.items() if name.isascii()}
    for track, lines in screens(Farm(films, kills=[(25.0, 1)], hosts=hosts), width, encoding=encoding):
        assert max(map(cell_len, lines)) <= width
        assert encoding == "utf-8" or "".join(lines).isascii()
        totals = track.totals()
        if totals.are_over:
            assert lines == ["stopping the workers 0:00"]
            continue
        if totals.frames is not None:
            assert f"{totals.frames_done}/" in lines[-2] and lines[-2].rstrip().endswith("left")
            assert f"chunks {totals.chunks_done}/" in lines[-1] and f"{totals.workers} worker" in lines[-1]
        for worker, line in zip(sorted(track.workers, key=lambda worker: worker.worker.name), lines[1:-2], strict=True):
            assert line.startswith(worker.worker.name)
            if worker.segment is not None:
                assert f" {worker.number}/{worker.segment.chunks} " in f"{line} "
                speed = worker.recent.frames_per_second
                assert speed is None or f" {speed:.3g}" in line


@settings(max_examples=examples(40))
@given(
    st.lists(st.text(max_size=30), min_size=1, max_size=5, unique=True),
    st.lists(st.tuples(st.text(min_size=1, max_size=20), st.text(max_size=20), st.text(max_size=20)), max_size=9),
    st.integers(20, 200),
    st.integers(1, 30),
)
def test_rows_of_any_names_fit_any_terminal(names, workers, width, height):
    clock = Clock()
    track = FarmTrack(names, clock)
    farm = Farm({})
    for number, (name, host, device) in enumerate(workers):
        worker = farm.worker(number).__class__(name, host, device)
        film = names[number % len(names)]
        track.follow(film, film_started(film, (3, 4)))
        track.follow(film, SegmentStarted(1, 2, 3, 4, worker=worker))
    lines = worker_rows(track.workers, width, height, clock.now, "…")
    assert len(lines) <= height
    assert all(cell_len(line) <= width and "\n" not in line for line, _ in lines)


@pytest.mark.parametrize(("height", "shown"), [(24, 18), (10, 4), (5, 0), (100, 64)])
def test_workers_without_room_are_summed_up(height, shown):
    films = {f"film-{number:03}": (1,) for number in range(70)}
    for track, lines in islice(screens(Farm(films, 64, kills=[(22.0, 63)]), 80, height), 10, None, 16):
        assert len(lines) < height
        if len(track.workers) < 64:
            continue
        shown_rows = [line for line in lines if line.startswith("w") and line.split()[0] != "worker"]
        assert [row.split()[0] for row in shown_rows] == [f"w{number + 1}" for number in range(shown)]
        if shown < 64 and height > 5:
            (rest,) = [line for line in lines if "more: " in line]
            parts = rest.split(": ")[1].split(", ")
            states = [int(part.split()[0]) for part in parts if not part.endswith("frames/s")]
            assert rest.startswith(f"and {64 - shown} more") and sum(states) == 64 - shown


def test_a_worker_that_is_silent_says_so():
    clock, farm = Clock(), Farm({"sea": (2,)})
    track, terminal = FarmTrack(["sea"], clock), terminal_of(80)
    view = RichFarmView(track, terminal)
    clock.now += 3
    assert drawn(view, terminal) == ["starting the workers 0:03"]
    track.follow(None, WorkerReady(worker=farm.worker(0)))
    track.follow("sea", film_started("sea", (2,)))
    track.follow("sea", SegmentStarted(0, 1, 0, 2, worker=farm.worker(0)))
    track.follow("sea", PhaseStarted("load", worker=farm.worker(0)))
    clock.now += 75
    assert "loading the model 1:15" in drawn(view, terminal)[1]
    track.follow("sea", PhaseStarted("denoise", worker=farm.worker(0)))
    assert "denoising" in drawn(view, terminal)[1]
    clock.now += 75
    assert "silent 1:15" in drawn(view, terminal)[1]


def test_workers_that_are_being_stopped_have_no_rows():
    clock, farm = Clock(), Farm({"sea": (2,)})
    track, terminal, stops = FarmTrack(["sea"], clock), terminal_of(80), []
    view = RichFarmView(track, terminal, lambda: bool(stops))
    track.follow(None, WorkerReady(worker=farm.worker(0)))
    assert "w1" in drawn(view, terminal)[1]
    stops.append("Ctrl-C")
    assert drawn(view, terminal) == ["stopping the workers 0:00"]
    clock.now += 12
    assert drawn(view, terminal) == ["stopping the workers 0:12"]


def test_a_terminal_that_became_narrower_is_cleared_of_broken_lines():
    """A line of 80 columns takes two rows on a terminal of 50: one row more is cleared than Rich knows of."""
    track, terminal = FarmTrack(["sea"], Clock()), terminal_of(80)
    for film, event in [event[1:] for event in FarmEvents(Farm({"sea": (2,)}, 1))][:6]:
        track.follow(film, event)
    view = RichFarmView(track, terminal)
    with terminal.capture() as captured, view:
        terminal.print("above")
        lines = captured_lines(drawn_at=view.draw(), terminal=terminal_of(80))
        broken = sum(cell_len(line) > 50 for line in lines)
        terminal.width = 50
        terminal.print("after")
    written = captured.get()
    clear = written[: written.index("after")].rpartition(BREAKS)[2]
    assert broken >= 1 and clear.count("\x1b[1A") == len(lines) - 1 + broken
    assert written.count(NO_BREAKS) == written.count(BREAKS) and written.rindex(BREAKS) > written.rindex(NO_BREAKS)


def captured_lines(drawn_at, terminal: RichConsole) -> list[str]:
    with terminal.capture() as captured:
        terminal.print(drawn_at)
    return captured.get().rstrip("\n").split("\n")


def jobs_of(films, **options) -> list:
    options = SimpleNamespace(**{"is_shared_out": True, "lanes": 1} | options)
    return [
        SimpleNamespace(film=SimpleNamespace(name=name), output=f"out/{name}.mp4", options=options) for name in films
    ]


def show(kind: str, farm: Farm) -> FilmsView:
    jobs = jobs_of(farm.films)
    by_name = {job.film.name: job for job in jobs}
    with FilmsView(jobs, kind) as shown:
        for _, film, event in FarmEvents(farm):
            shown.show((by_name.get(film), event))
    return shown


def test_plain_lines_name_worker_and_film(capsys):
    show("plain", Farm({"harbour": (1, 2), "storm": (1,)}, 2, kills=[(16.0, 1)], failing=frozenset({"storm"})))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:-1] == [
        "w1: ready on gpu-node-1, cuda:0",
        "w2: ready on gpu-node-1, cuda:1",
        "harbour: 73 frames, 3.0 s at 24 fps, 640x384, 3 chunks, model tiny on cpu in float32, to out/harbour.mp4",
        "w1: harbour: segment 1/2 begins, 1 chunk",
        "w1: harbour: loading the model",
        "w2: harbour: segment 2/2 begins, 2 chunks",
        "w2: harbour: loading the model",
        "w2: harbour: segment 2/2, chunk 1/2 in 11.4 s, 2.13 frames/s",
        "w1: harbour: segment 1/2, chunk 1/1 in 11.8 s, 2.06 frames/s",
        "w1: harbour: segment 1/2 done in 0:15",
        "storm: 20 frames, 0.8 s at 24 fps, 640x384, 1 chunk, model tiny on cpu in float32, to out/storm.mp4",
        "w1: storm: segment 1/1 begins, 1 chunk",
        "warning: w2: harbour: worker lost: killed by signal 9",
        "w2: ready on gpu-node-1, cuda:1",
        "w2: harbour: segment 2/2 begins, 2 chunks",
        "w2: harbour: loading the model",
        "w2: harbour: 1 chunk from earlier renders",
        "w1: storm: segment 1/1, chunk 1/1 in 9.2 s, 2.18 frames/s",
        "w1: storm: segment 1/1 done in 0:09",
        "error: storm: out of disk space",
        "hint: make room",
        "w2: harbour: segment 2/2, chunk 2/2 in 10.3 s, 2.36 frames/s",
        "w2: harbour: segment 2/2 done in 0:13",
        "harbour: done, 73 frames in 0:33, 2.19 frames/s",
        "film     result  frames  seconds  frames/s  output or error",
        "harbour  done        73     33.3      2.19  out/harbour.mp4",
        "storm    failed                             out of disk space",
    ]


def test_plain_reused_chunks_are_one_line(capsys):
    farm = Farm({"sea": (6,), "land": (6,)}, 2, kills=[(55.0, 0), (55.0, 1)])
    show("plain", farm)
    lines = capsys.readouterr().err.splitlines()
    reused = [line for line in lines if "from earlier renders" in line]
    assert len(reused) == 2 and all(line.startswith(("w1: ", "w2: ")) for line in reused)


def test_plain_totals_come_now_and_then(capsys):
    clock, farm = Clock(), Farm({"sea": (30,)}, 1)
    track = FarmTrack(["sea"], clock)
    view = PlainFarmView(track)
    for seconds, film, event in FarmEvents(farm):
        clock.now = 100.0 + seconds
        track.follow(film, event)
        (view.of(film) if film else view).show(event)
    totals = [line for line in capsys.readouterr().err.splitlines() if line.startswith("total: ")]
    assert 8 <= len(totals) <= 10
    assert totals[0].startswith("total: segments 0/1, chunks 3/30, ") and totals[0].endswith(" left")


def test_json_is_one_stream_that_names_film_and_worker(capsys):
    farm = Farm(FILMS, kills=[(25.0, 1)])
    show("json", farm)
    out, err = capsys.readouterr()
    assert err == ""
    for line, (_, film, event) in zip(out.splitlines(), FarmEvents(farm), strict=True):
        assert json.loads(line) == event.to_dict() | ({} if film is None else {"film": film})


def test_json_of_one_film_has_its_title(capsys):
    show("json", Farm({"sea": (2, 1)}))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["film"] for line in lines if "film" in line] == ["Sea"]
    assert {line["pid"] for line in lines if line["event"] == "chunk_done"} <= {1000, 1001, 1002, 1003}


@pytest.mark.parametrize("kind", ["plain", "json", "none"])
def test_films_that_failed_are_named(kind, capsys):
    shown = show(kind, Farm(FILMS, failing=frozenset({"harbour"})))
    assert shown.failed == ["harbour"]
    err = capsys.readouterr().err
    assert "error: harbour: out of disk space\nhint: make room\n" in err
    table = [line.split()[:2] for line in err.splitlines()[-5:-1]]
    assert (table == [["film", "result"], ["harbour", "failed"], *([name, "done"] for name in list(FILMS)[1:])]) is (
        kind == "plain"
    )


def test_the_end_says_what_the_workers_did(capsys):
    show("plain", Farm(FILMS, kills=[(25.0, 1)]))
    assert capsys.readouterr().err.splitlines()[-1].startswith("4 workers (1 lost on the way): 331 frames in ")


def test_on_a_terminal_what_was_said_stays_and_the_rows_go(monkeypatch):
    terminal = terminal_of(80)
    monkeypatch.setattr(console, "live", lambda: terminal)
    farm, screen = Farm({"harbour": (1, 2), "storm": (1,)}, 2, kills=[(16.0, 1)], failing=frozenset({"storm"})), []
    jobs = {job.film.name: job for job in jobs_of(farm.films)}
    with FilmsView(list(jobs.values()), "rich") as shown:
        for _, film, event in FarmEvents(farm):
            shown.show((jobs.get(film), event))
            screen.append(screen_of(terminal))
    said = [
        "model tiny in float32",
        "warning: w2: harbour: worker lost: killed by signal 9",
        "error: storm: out of disk space",
        "hint: make room",
        "harbour: done, 73 frames in 0:33, 2.19 frames/s",
    ]
    assert screen_of(terminal) == said
    after_the_loss = next(rows for rows in screen if said[1] in rows)
    assert after_the_loss[:3] == [*said[:2], after_the_loss[2]] and after_the_loss[2].startswith("worker  film")
    assert after_the_loss[-1].endswith("  1 worker, 1 lost")


def test_films_that_were_stopped_say_how_far_they_are(capsys):
    events = [event[1:] for event in FarmEvents(Farm({"harbour": (1, 2), "日本": (9,), "sea": (1,)}, 2))]
    jobs = {job.film.name: job for job in jobs_of(["harbour", "日本", "sea"])}
    with pytest.raises(Interrupted), FilmsView(list(jobs.values()), "plain") as shown:
        for film, event in events:
            shown.show((jobs.get(film), event))
            if film == "日本" and isinstance(event, ChunkDone):
                raise Interrupted("stopped: 2 of 3 films are not done")
    assert capsys.readouterr().err.splitlines()[-5:-1] == [
        "film     result     frames  seconds  frames/s  output or error",
        "harbour  stopped                               2 of 3 chunks done",
        "日本     stopped                               1 of 9 chunks done",
        "sea      not tried",
    ]


def test_one_film_has_its_summary_and_no_table(capsys):
    show("plain", Farm({"sea": (2, 1)}, 3, kills=[(12.0, 0)]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "by 3 workers (1 lost on the way)"
    assert "wrote out/sea.mp4: 73 frames, 3.0 s" in lines and not any(line.startswith("film ") for line in lines)


def test_notices_are_about_a_film_or_all(capsys):
    with FilmsView(jobs_of(["a", "b"]), "plain") as shown:
        shown.show((None, Notice("no GPU is free")))
        shown.show((shown.jobs[1], Notice("its sidecar could not be written")))
        shown.show((None, HeliosError("the cluster is gone")))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "note: no GPU is free",
        "note: b: its sidecar could not be written",
        "error: the cluster is gone",
    ]


@pytest.mark.parametrize(
    ("reused", "line"),
    [
        (0, "done, 130 frames in 1:15, 1.73 frames/s"),
        (33, "done, 130 frames in 1:15, 1.73 frames/s, 33 frames from earlier renders"),
        (130, "done, 130 frames from earlier renders"),
    ],
)
def test_a_film_that_is_done_is_one_line(reused, line):
    assert done_line(FilmDone("out/harbour.mp4", 130, 75.0, 1.733, 1, None, frames_reused=reused)) == line
