"""Players, played by small programs that read what a player reads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from helios_cli.errors import MachineError
from helios_cli.film.encoding import Safe
from helios_cli.film.feed import Feed
from helios_cli.film.resume import Wanted
from helios_cli.film.writer import open_writer
from helios_cli.live.player import Player, find_player
from support import reruns
from support.waiting import wait_until


def write(path: Path, feed: Feed, before_each=lambda index: None) -> None:
    with open_writer(path, size=(64, 64), fps=24) as writer:
        writer.feed = feed
        writer.resume(Wanted((), (), {}), None)
        for index in range(3):
            before_each(index)
            writer.write(np.full((33, 64, 64, 3), index * 60, np.uint8))
            writer.end_piece(Safe(f"{index}", lambda: b"state"))


def test_a_player_is_looked_for_and_missed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="--play needs mpv or ffplay") as caught:
        find_player()
    assert "apt install mpv" in caught.value.hint
    for name in ("ffplay", "mpv"):  # the better one comes first
        (tmp_path / name).touch(0o755)
        assert find_player()[0] == str(tmp_path / name)


@pytest.mark.process
def test_it_gets_the_film_and_may_play_to_the_end(tmp_path):
    shown, said = [], []
    program = f"import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, open({str(tmp_path / 'seen.mp4')!r}, 'wb'))"
    feed = Feed()
    with Player([sys.executable, "-c", program], feed, shown.append, said.append):
        write(tmp_path / "film.mp4", feed)
    assert np.array_equal(reruns.decoded(tmp_path / "seen.mp4"), reruns.decoded(tmp_path / "film.mp4"))
    assert shown == [33, 66, 99] and not said


@pytest.mark.process
def test_a_player_that_is_closed_does_not_end_the_film(tmp_path):
    shown, said = [], []
    feed = Feed()
    with Player([sys.executable, "-c", "import sys; sys.stdin.buffer.read(10)"], feed, shown.append, said.append):
        write(tmp_path / "film.mp4", feed, lambda index: index != 2 or wait_until(lambda: said))
    assert said == ["the player was closed; the film goes on"]
    assert shown[-1] == 99
