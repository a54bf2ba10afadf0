"""Views of a render: the numbers of a track by a clock in hand, and what each view shows."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.text import Text

from helios_cli.console import console
from helios_cli.engine import events
from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    FilmDone,
    FilmStarted,
    Notice,
    PhaseStarted,
    Playback,
    PromptTaken,
    StepDone,
)
from helios_cli.progress import LiveLines, RichView, open_view
from helios_cli.track import PHASES, Track
from helios_cli.units import format_duration
from support.terminal import rows
from support.waiting import LONGEST
from test_console import in_terminal

FILM = FilmStarted("harbour", "out/harbour.mp4", "tiny", "cpu", "float32", 192, 128, 24.0, 130, 4, 3, 15)
DONE = FilmDone("out/harbour.mp4", 130, 75.0, 1.733, 1_500_000_000, 2_000_000_000, {"load": 1.0, "decode": 60.0})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def film_events(chunk_seconds=(20.0, 10.0, 10.0, 10.0)):
    """The events of FILM: the first chunk is amplified, two steps a stage instead of one; the last holds 31 frames."""
    yield PhaseStarted("text")
    yield Notice("untrained [tiny] model")
    yield PhaseStarted("load")
    yield FILM
    for chunk, seconds in enumerate(chunk_seconds):
        yield PhaseStarted("denoise")
        steps = 2 if chunk == 0 else 1
        for stage in range(3):
            yield from (StepDone(chunk, stage, step, steps) for step in range(steps))
        yield PhaseStarted("decode")
        yield ChunkDone(chunk, 4, min(130, 33 * (chunk + 1)), seconds)
    yield PhaseStarted("finish")
    yield DONE


def track_after(*chunks: tuple[int, float], clock: Clock) -> Track:
    """A track of 10 chunks of 33 frames, after `chunks` of (index, seconds)."""
    film = FilmStarted("f", "f.mp4", "m", "cpu", "float32", 64, 64, 24.0, 330, 10, 3, 30)
    track = Track(film, clock)
    for index, seconds in chunks:
        clock.now += seconds
        track.follow(ChunkDone(index, 10, 33 * (index + 1), seconds))
    return track


def test_nothing_is_foretold_before_the_first_chunk():
    track = track_after(clock=Clock())
    assert track.seconds_left is None and track.frames_per_second is None
    assert track.left_text == "-:-- left"


def test_time_left_after_the_first_chunk_is_its_time_for_each():
    track = track_after((0, 20.0), clock=Clock())
    assert track.seconds_left == 9 * 20
    assert track.frames_per_second == 33 / 20


def test_the_first_chunk_is_forgotten_when_another_is_known():
    track = track_after((0, 20.0), (1, 10.0), clock=Clock())
    assert track.seconds_left == 8 * 10
    assert track.frames_per_second == 33 / 10


def test_the_chunk_in_flight_counts_down_and_never_below_the_chunks_behind_it():
    clock = Clock()
    track = track_after((0, 20.0), (1, 10.0), clock=clock)
    clock.now += 4
    assert track.seconds_left == 8 * 10 - 4
    clock.now += 100
    assert track.seconds_left == 7 * 10


def test_one_slow_chunk_is_smoothed_and_a_lasting_change_is_followed():
    clock = Clock()
    hiccup = track_after(*((index, 40.0 if index == 5 else 10.0) for index in range(9)), clock=clock)
    assert 10 < hiccup.seconds_left < 15
    slower = track_after((0, 10.0), *((index, 30.0) for index in range(1, 9)), clock=clock)
    assert slower.seconds_left == 30


def test_nothing_is_left_after_the_last_chunk():
    track = track_after(*((index, 10.0) for index in range(10)), clock=Clock())
    assert (track.seconds_left, track.fraction) == (0.0, 1.0)


def test_a_film_that_goes_on_at_chunk_7():
    """Chunks that were taken over took no time: they say nothing about the speed."""
    track = track_after(clock=Clock())
    track.follow(ChunksReused(chunk=6, chunks=10, frames=33 * 7, count=7, source="journal"))
    assert track.fraction == 0.7
    track.follow(ChunkDone(7, 10, 33 * 8, 10.0))
    assert track.seconds_left == 2 * 10
    assert track.fraction == 0.8
    assert track.frames_per_second == 3.3


def overlapped(clock: Clock, chunks: int, denoising: float, decoding: float):
    """Yield a track, and after each event of a film of `chunks` chunks, each decoded during the next, what
    follows: the chunk that is denoised, and the seconds from then to the film's end."""
    film = FilmStarted("f", "f.mp4", "m", "cuda", "bfloat16", 64, 64, 24.0, 33 * chunks, chunks, 1, 4 * chunks)
    track, end = Track(film, clock), clock.now + chunks * denoising + decoding
    for chunk in range(chunks):
        for event in (PhaseStarted("denoise"), *(StepDone(chunk, 0, step, 4) for step in range(4))):
            clock.now += denoising / 4 * isinstance(event, StepDone)
            track.follow(event)
            yield track, chunk, end - clock.now
        if chunk > 0:
            track.follow(ChunkDone(chunk - 1, chunks, 33 * chunk, denoising + (chunk == 1) * decoding))
            yield track, chunk, end - clock.now
        track.follow(PhaseStarted("decode"))
    clock.now += decoding
    track.follow(ChunkDone(chunks - 1, chunks, 33 * chunks, denoising))
    yield track, chunks - 1, 0.0


def test_a_chunk_that_is_decoded_beside_the_next():
    """Decoding is shown behind the steps of the next chunk: position, time left and share are those of the chunk
    being denoised."""
    last = 0.0
    for track, chunk, left in overlapped(Clock(), 10, 1.0, 0.6):
        assert track.place_text.startswith(f"chunk {chunk + 1}/10, ")
        assert track.fraction >= last
        last = track.fraction
        if chunk >= 3:
            assert track.seconds_left == pytest.approx(max(0.0, left - 0.6), abs=1e-6)
            assert track.frames_per_second == pytest.approx(33)
    assert last == 1.0


def test_fraction_grows_with_every_step_and_is_whole_only_at_the_end():
    track, last = Track(FILM, Clock()), 0.0
    for event in film_events():
        if event is FILM:
            continue
        track.follow(event)
        assert track.fraction >= last
        if isinstance(event, StepDone) and event.chunk > 0:
            assert last < track.fraction < 1
        last = track.fraction
    assert last == 1.0


def test_place_counts_from_one():
    track = Track(FILM, Clock())
    track.follow(PhaseStarted("denoise"))
    track.follow(StepDone(0, 2, 1, 2))
    assert track.place_text == "chunk 1/4, stage 3/3, step 2/2"
    track.follow(PhaseStarted("decode"))
    assert track.place_text == "chunk 1/4, decoding"


def test_steps_without_a_phase_are_denoising():
    track = Track(FILM, Clock())
    track.follow(PhaseStarted("load"))
    track.follow(StepDone(0, 0, 0, 2))
    assert track.place_text == "chunk 1/4, stage 1/3, step 1/2"


@pytest.mark.parametrize("start", [[FILM, PhaseStarted("load")], [PhaseStarted("load"), FILM]], ids=["first", "later"])
def test_a_bar_shows_the_phase_wherever_the_film_starts(start):
    terminal = RichConsole(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view, drawn = RichView(terminal), []
    for event in start:
        view.show(event)
        with terminal.capture() as captured:
            terminal.print(view.draw())
        drawn.append(captured.get())
    loading = drawn[1 if start[0] is FILM else 0]
    assert "loading the model" in loading and "chunk" not in loading
    assert "chunk 1/4" in drawn[0 if start[0] is FILM else 1]


def test_phases_have_words_for_every_phase_of_the_engine():
    named = {word for word in PhaseStarted.__doc__.split('"')[1::2]}
    assert named == set(PHASES)


def show_all(kind: str) -> None:
    with open_view(kind) as view:
        for event in film_events():
            view.show(event)


def test_plain_is_one_line_a_chunk_and_a_phase(capsys):
    show_all("plain")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading the prompts",
        "note: untrained [tiny] model",
        "loading the model",
        "harbour: 130 frames, 5.4 s at 24 fps, 192x128, 4 chunks",
        "model tiny on cpu in float32, to out/harbour.mp4",
        "denoising",
        "decoding",
        "chunk 1/4 in 20.0 s: 33/130 frames, film 1.4 of 5.4 s, 1.65 frames/s, 1:00 left",
        "chunk 2/4 in 10.0 s: 66/130 frames, film 2.8 of 5.4 s, 3.3 frames/s, 0:20 left",
        "chunk 3/4 in 10.0 s: 99/130 frames, film 4.1 of 5.4 s, 3.3 frames/s, 0:10 left",
        "chunk 4/4 in 10.0 s: 130/130 frames, film 5.4 of 5.4 s, 3.23 frames/s, 0:00 left",
        "finishing the file",
        "wrote out/harbour.mp4: 130 frames, 5.4 s",
        "  in 1:15, 1.73 frames/s, peak memory 1.5 GB and 2 GB on the device",
        "  load 1.0 s, decode 60.0 s",
    ]


def test_chunks_of_milliseconds_take_less_than_a_tenth_of_a_second(capsys):
    with open_view("plain") as view:
        for event in film_events((0.02, 0.02, 0.06, 0.02)):
            view.show(event)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("chunk")]
    assert [line.partition(": ")[0] for line in lines[:3]] == [
        "chunk 1/4 in < 0.1 s",
        "chunk 2/4 in < 0.1 s",
        "chunk 3/4 in 0.1 s",
    ]
    assert lines[1].endswith(", 1,650 frames/s, 0:00 left")


def test_json_is_every_event_one_a_line_on_stdout(capsys):
    show_all("json")
    out, err = capsys.readouterr()
    assert err == ""
    assert [json.loads(line) for line in out.splitlines()] == [event.to_dict() for event in film_events()]
    assert {json.loads(line)["version"] for line in out.splitlines()} == {events.STREAM_VERSION}


@pytest.mark.process
def test_json_comes_as_it_happens():
    """A reader of the pipe has the first event while the film is still being rendered."""
    code = (
        "from helios_cli.progress import open_view; from helios_cli.engine.events import PhaseStarted\n"
        "with open_view('json') as view: view.show(PhaseStarted('load')); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert json.loads(process.stdout.readline())["phase"] == "load"
    assert process.poll() is None
    process.communicate("\n", timeout=LONGEST)
    assert process.returncode == 0


def test_none_is_silent(capsys):
    show_all("none")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["auto", "rich"])
def test_without_a_terminal_lines_are_plain(kind, capsys):
    show_all("plain")
    plain = capsys.readouterr()
    show_all(kind)
    assert capsys.readouterr() == plain


def test_chunks_taken_over_are_one_line(capsys):
    with open_view("plain") as view:
        view.show(FILM)
        for chunk in range(3):
            view.show(ChunksReused(chunk, 4, 33 * (chunk + 1), 1, "cache"))
        view.show(ChunkDone(3, 4, 130, 10.0))
        view.show(replace(DONE, frames_reused=99))
    lines = capsys.readouterr().err.splitlines()[2:]
    assert lines[0] == "3 chunks from earlier renders, film 4.1 of 5.4 s"
    assert lines[1].startswith("chunk 4/4 in 10.0 s: 130/130 frames")
    assert "1.73 frames/s, 99 frames from earlier renders" in lines[3]


def live_events():
    """The events of a film of no known length."""
    yield replace(FILM, frames=None, chunks=None, steps=None)
    yield PromptTaken("a [red] boat", 0, "cut")
    for chunk in range(2):
        yield PhaseStarted("denoise")
        yield StepDone(chunk, 0, 0, 1)
        yield ChunkDone(chunk, None, 33 * (chunk + 1), 10.0)
    yield PromptTaken("the sea", 2, "blend")
    yield ChunksReused(2, None, 99, 1, "cache")
    yield replace(DONE, frames=99)


def test_a_film_of_no_known_length_says_how_far_it_is(capsys):
    with open_view("plain") as view:
        for event in live_events():
            view.show(event)
    assert capsys.readouterr().err.splitlines()[:-2] == [
        "harbour: 192x128 at 24 fps, as long as prompts come",
        "model tiny on cpu in float32, to out/harbour.mp4",
        "from chunk 1 on, cut: a [red] boat",
        "denoising",
        "chunk 1 in 10.0 s: 33 frames, film 1.4 s, 3.3 frames/s",
        "chunk 2 in 10.0 s: 66 frames, film 2.8 s, 3.3 frames/s",
        "from chunk 3 on, blend: the sea",
        "1 chunk from earlier renders, film 4.1 s",
        "wrote out/harbour.mp4: 99 frames, 4.1 s",
    ]


def test_the_bar_of_a_film_of_no_known_length_counts_what_is_done(capsys):
    terminal = RichConsole(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view = RichView(terminal)
    for event in list(live_events())[:-1]:
        view.show(event)
        with terminal.capture() as captured:
            terminal.print(view.draw())
        bar, place = captured.get().rstrip("\n").split("\n")
        assert "%" not in bar and "left" not in bar
        if isinstance(event, StepDone):
            assert bar.endswith(f" {33 * event.chunk} frames") or f" {33 * event.chunk} frames " in bar
            assert place.startswith(f"chunk {event.chunk + 1}, stage 1/3, step 1/1  film {1.375 * event.chunk:.1f} s")
    assert "from chunk 3 on, blend: the sea" in capsys.readouterr().err


def test_two_films_in_one_view(capsys):
    with open_view("plain") as view:
        for _ in range(2):
            for event in film_events():
                view.show(event)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 30 and lines[:15] == lines[15:]


def test_a_film_among_several_is_named_once_a_line(capsys):
    with open_view("plain") as view:
        view.of("harbour").show(FILM)
    assert [line.count(FILM.film) for line in capsys.readouterr().err.replace("out/harbour", "").splitlines()] == [1, 1]


@pytest.mark.parametrize("width", [46, 80, 200])
@pytest.mark.parametrize("utf8", [True, False], ids=["utf-8", "ascii"])
def test_the_bar_is_never_wider_than_its_terminal(width, utf8):
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if utf8 else "ascii")
    terminal = RichConsole(file=file, width=width, force_terminal=True, color_system=None)
    view = RichView(terminal)
    for event in film_events():
        view.show(event)
        with terminal.capture() as captured:
            terminal.print(view.draw())
        lines = captured.get().rstrip("\n").split("\n")
        assert len(lines) <= 2
        assert max(cell_len(line) for line in lines) <= width
        assert utf8 or captured.get().isascii() or width == 46  # an ellipsis cuts the line of the narrow one
        if isinstance(event, StepDone):
            assert f"/{FILM.frames} frames" in lines[0] and "left" in lines[0]
            assert lines[1].startswith(f"chunk {event.chunk + 1}/4, stage {event.stage + 1}/3, step ")


RENDER_IN_TERMINAL = """
from test_progress import film_events
from helios_cli.progress import open_view
with open_view("auto") as view:
    for event in film_events():
        view.show(event)
        view.refresh()  # ten times a second, as the terminal does it, is too rarely for a busy processor
"""


@pytest.mark.process
@pytest.mark.parametrize(("no_color", "colored"), [("1", False), ("", True)], ids=["NO_COLOR", "color"])
def test_a_terminal_gets_a_bar_that_goes_and_a_summary_that_stays(no_color, colored, request):
    paths = [str(request.config.rootpath), str(request.path.parent)]
    written = in_terminal(f"import sys; sys.path[:0] = {paths}\n{RENDER_IN_TERMINAL}", NO_COLOR=no_color)
    assert "━" in written and "/4, stage " in written
    assert "note:" in written and "untrained [tiny] model" in written
    assert ("\x1b[36m" in written) is colored
    end = written[written.rindex("wrote out/harbour.mp4: 130 frames") :]
    assert "stage" not in end and "\x1b[?25h" in end  # no bar is drawn again, and the cursor is back


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3599.7, "1:00:00"), (3675, "1:01:15")]
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_a_film_that_was_finished_before_has_no_summary(capsys):
    """Nor does it pass for the film before it, which failed on its way."""
    with open_view("plain") as view:
        view.show(FILM)
        view.show(FilmDone("out/other.mp4", 130, 0.0, 0.0, 1, None, frames_reused=130))
    assert "wrote" not in capsys.readouterr().err


def terminal_file() -> RichConsole:
    return RichConsole(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None)


def test_lines_that_are_printed_while_others_are_redrawn_all_stay():
    """The number of lines that are redrawn changes all the time, as when workers come and go."""
    terminal, drawings = terminal_file(), itertools.count()
    with LiveLines(terminal, lambda: Text("\n".join(["redrawn"] * (1 + next(drawings) % 7))), per_second=5000):
        for number in range(300):
            console.status(f"printed {number}")
    assert list(filter(None, rows(terminal.file.getvalue()))) == [f"printed {number}" for number in range(300)]
    assert next(drawings) > 300


def test_lines_make_room_for_a_download(monkeypatch):
    terminal = terminal_file()
    monkeypatch.setattr(console, "live", lambda: terminal)
    with LiveLines(terminal, lambda: Text("redrawn")) as lines:
        lines.refresh()
        begun = len(terminal.file.getvalue())
        with console.progress_bytes("pull", 1000) as advance:
            advance(1000)
            lines.refresh()
        written = terminal.file.getvalue()[begun:]
        download = written[written.index("pull") : written.rindex("pull")]
        assert "1.0/1.0 kB" in written and "redrawn" not in download
        lines.refresh()
        assert rows(terminal.file.getvalue())[-1] == "redrawn"
    assert console.lines is None
    assert "redrawn" not in rows(terminal.file.getvalue())


def test_a_live_film_says_how_far_ahead_it_is_and_when_prompts_show(capsys):
    film = replace(FILM, frames=None, chunks=None, steps=None)
    playing = Playback("playing", 1.0, 2.9, 4.25)
    shown = [
        film,
        PromptTaken("a storm", 2, "cut", 3.5),
        playing,
        ChunkDone(2, None, 99, 1.5),
        replace(playing, state="late", in_front=0.0),
        ChunkDone(3, None, 132, 1.5),
        replace(playing, state="paused"),
    ]
    with open_view("plain") as view:
        for event in shown:
            view.show(event)
    lines = capsys.readouterr().err.splitlines()[2:]
    assert lines[0] == "from chunk 3 on, 3.5 s after it came, cut: a storm"
    assert lines[1].endswith("2.9 s ahead, prompts show in 4.2 s")
    assert lines[2].endswith("late: 0.0 s ahead, prompts show in 4.2 s")
    assert lines[3] == "paused; [play] goes on"


@pytest.mark.parametrize(
    ("state", "text"), [("waiting", "waiting for the viewer"), ("paused", "paused"), ("playing", "denoising")]
)
def test_a_live_film_that_waits_says_for_what(state, text):
    track = track_after((0, 20.0), clock=Clock())
    track.follow(Playback(state, 1.0, 2.9, 4.25))
    assert track.place_text == f"chunk 2/10, {text}"
