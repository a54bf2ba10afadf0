"""Several films of one command that is stopped and given again, in this process, by real signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helios_cli.cli import main
from helios_cli.engine.events import ChunkDone, Event, FilmDone, StepDone
from helios_cli.engine.finish import Finish
from helios_cli.film.writer import FilmWriter
from helios_cli.progress import PlainView

SMALL = ("--size", "64x64", "--steps", "1,1,1", "--dtype", "float32", "--no-cache", "--progress", "plain")


@pytest.fixture
def helios(tmp_path, monkeypatch, distilled):
    """Runs `helios render` for films of one and of two chunks; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))
    Path("one.txt").write_text("[1s] a red circle\n")
    Path("two.txt").write_text("[2s] the green square\n")
    Path("out").mkdir()
    return lambda *arguments: main(["render", "one.txt", "two.txt", *SMALL, "-o", "out", *arguments])


@contextmanager
def when(wanted: Callable[[Event], bool], action: Callable[[], object]) -> Iterator[None]:
    """Has something done as soon as an event is shown that is as wanted."""
    show = PlainView.show

    def shown(view: PlainView, event: Event) -> None:
        show(view, event)
        if wanted(event):
            action()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainView, "show", shown)
        yield


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def in_second_film(event: Event) -> bool:
    """At the end of its first chunk of two."""
    return isinstance(event, ChunkDone) and (event.chunk, event.chunks) == (0, 2)


def test_the_same_command_goes_on_with_films_that_were_stopped(helios, capsys):
    with when(in_second_film, press):
        assert helios("--export", "otio") == 130
    one = Path("out/one.mp4").stat()
    Path("out/one.otio").unlink()
    assert helios("--export", "otio") == 0
    assert "out/one.mp4 is finished already" in (told := capsys.readouterr().err)
    assert "1 chunk from earlier renders" in told
    assert (Path("out/one.mp4").stat().st_ino, Path("out/one.mp4").stat().st_mtime_ns) == (one.st_ino, one.st_mtime_ns)
    assert {path.suffix for path in Path("out").iterdir()} == {".mp4", ".json", ".otio"}
    assert len(list(Path("out").iterdir())) == 6
    assert helios("--seed", "5") == 1, "these are other films"
    assert "out/one.mp4 exists" in (told := capsys.readouterr().err) and "2 of 2 films failed" in told
    assert Path("out/one.mp4").stat().st_mtime_ns == one.st_mtime_ns


def test_a_file_that_came_meanwhile_stays(helios, capsys):
    two = Path("out/two.mp4")
    with when(lambda event: isinstance(event, FilmDone), lambda: two.write_bytes(b"precious")):
        assert helios() == 1
    assert "two.mp4 exists" in capsys.readouterr().err
    assert two.read_bytes() == b"precious"
    assert sorted(path.name for path in Path("out").iterdir()) == ["one.json", "one.mp4", "two.mp4"]


def test_a_film_in_lockstep_that_was_finished_is_told_as_done(helios, capsys):
    with when(lambda event: isinstance(event, StepDone) and event.chunk == 1, press):
        assert helios("--lanes", "2") == 130
    told = capsys.readouterr().err
    assert "stopped: 1 of the 2 chunks of out/two.mp4 are safe" in told
    rows = [line.split()[:2] for line in told.splitlines() if line.startswith(("one  ", "two  "))]
    assert rows == [["one", "done"], ["two", "stopped"]]


def test_a_bug_in_one_film_in_lockstep_takes_nothing_from_the_others(helios, capsys, monkeypatch):
    describe = Finish.describe

    def fail(finish: Finish, writer: FilmWriter) -> None:
        if finish.film.name == "one":
            raise ZeroDivisionError("of the first")
        describe(finish, writer)

    monkeypatch.setattr(Finish, "describe", fail)
    assert helios("--lanes", "2") == 1
    rows = [line.split()[:2] for line in capsys.readouterr().err.splitlines() if line.startswith(("one  ", "two  "))]
    assert rows == [["one", "failed"], ["two", "done"]] and Path("out/two.mp4").exists()


@pytest.mark.parametrize(
    ("flags", "said"), [([], "to continue from there"), (["--no-cache"], "again with the first take")]
)
def test_takes_that_were_stopped_say_what_comes_next(flags, said, helios, capsys):
    arguments = [flag for flag in SMALL if flag != "--no-cache"] + flags
    with when(lambda event: isinstance(event, FilmDone), press):
        assert main(["render", "one.txt", *arguments, "--takes", "3"]) == 130
    told = capsys.readouterr().err
    assert "stopped: 0 of 3 takes are done" in told and said in told
