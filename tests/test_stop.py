"""Signals that this process sends to itself, raised where Python loses them, too."""

from __future__ import annotations

import os
import signal

import pytest

from helios_cli.cli import main
from helios_cli.film.writer import FilmWriter
from helios_cli.stop import stop_after_step, stop_at_once
from support.tiers import some

ALL = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


class Sends:
    """Sends a signal in its destructor, the errors of which Python swallows."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(1000):  # Python runs handlers between two of its own instructions
            pass


@pytest.fixture(autouse=True)
def hangups_are_not_ignored():
    """The signals are ignored in this way under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@ALL
def test_stop_at_once(number):
    with stop_at_once() as is_stopped:
        assert not is_stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
        assert is_stopped()


@ALL
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_swallows_is_told(number):
    with stop_at_once() as is_stopped:
        Sends(number)
        assert is_stopped()


@pytest.mark.parametrize("number", some(1, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_render_that_lost_its_stop_ends_after_the_chunk(number, tmp_path, monkeypatch, capfd):
    def end_and_stop(writer, safe):
        end_piece(writer, safe)
        Sends(number)

    end_piece = FilmWriter.end_piece
    monkeypatch.setattr(FilmWriter, "end_piece", end_and_stop)
    out = tmp_path / "film.mp4"
    film = ["render", "a red ball", "-m", "tiny", "--size", "64x64", "--frames", "99", "--no-cache"]
    assert main([*film, "-o", str(out)]) == 130
    assert "1 of the 3 chunks" in capfd.readouterr().err
    assert not out.exists()


def test_stop_after_step_waits_once():
    with stop_after_step() as is_stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stopped()
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does after a Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


@pytest.mark.parametrize("kind", [stop_at_once, stop_after_step])
def test_handlers_are_put_back(kind):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with kind():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_the_caller_ignores_is_ignored():
    """A background job of a shell script ignores SIGINT in this way."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_at_once() as is_stopped:
            os.kill(os.getpid(), signal.SIGINT)
            assert not is_stopped()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
