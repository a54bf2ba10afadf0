"""Claims of processes that share a folder: one owner at a time, and dead owners are found out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helios_cli.errors import MachineError
from helios_cli.film.claims import ALONE, EXPIRY_SECONDS, Claims, Owner
from support.users import as_user, needs_users
from support.waiting import wait_until

ELSEWHERE = Owner("elsewhere", 1, "another boot", "2026-01-01")

HOLDER = """
    import sys, time
    from pathlib import Path
    from helios_cli.film.claims import Claims
    claims = Claims(Path(sys.argv[1]))
    print(claims.take("segment-0"), flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "claims"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_claim_has_one_owner_at_a_time(folder):
    mine, theirs = Claims(folder), Claims(folder, ELSEWHERE)
    assert mine.take("segment-0") and mine.take("segment-0")
    assert not theirs.take("segment-0")
    assert theirs.take("segment-1")
    assert str(theirs.rival("segment-0").owner) == f"process {os.getpid()} on {Owner.here().host}"
    mine.release("segment-0")
    assert theirs.take("segment-0")
    theirs.release_all()
    assert os.listdir(folder) == []


def test_names_with_the_same_beginning_are_different_claims(folder):
    mine, theirs = Claims(folder), Claims(folder, ELSEWHERE)
    assert mine.take("segment-1") and theirs.take("segment-11") and theirs.take("segment")


def test_a_claim_of_another_machine_expires_when_nothing_changes_it(folder):
    """By the clock of who waits: the file's time may be any."""
    clock = Clock()
    theirs, mine = Claims(folder, ELSEWHERE), Claims(folder, clock=clock)
    theirs.take("segment-0")
    assert not mine.take("segment-0")
    clock.now = EXPIRY_SECONDS - 1
    assert not mine.take("segment-0")
    os.utime(folder / "segment-0.1", (1, 1))
    clock.now = EXPIRY_SECONDS + 1  # it has changed in between
    assert not mine.take("segment-0")
    clock.now = 2 * EXPIRY_SECONDS
    assert not mine.take("segment-0")
    clock.now = 2 * EXPIRY_SECONDS + 1
    assert mine.take("segment-0")
    assert not theirs._create("segment-0", 2)  # who comes second does not get it


def test_an_owner_that_lives_keeps_its_claim(folder):
    clock = Clock()
    theirs, mine = Claims(folder, ELSEWHERE), Claims(folder, clock=clock)
    theirs.take("segment-0")
    for _ in range(5):
        clock.now += EXPIRY_SECONDS - 1
        os.utime(folder / "segment-0.1", (clock.now, clock.now))
        theirs.beat()
        assert not mine.take("segment-0")


def test_an_owner_that_lost_its_claim_does_not_give_away_the_new_one(folder):
    clock = Clock()
    theirs, mine, third = Claims(folder, ELSEWHERE), Claims(folder, clock=clock), Claims(folder, clock=clock)
    theirs.take("segment-0")
    mine.take("segment-0")
    clock.now = EXPIRY_SECONDS
    assert mine.take("segment-0")
    theirs.release("segment-0")
    assert not third.take("segment-0")


@pytest.mark.process
def test_a_killed_process_of_this_machine_loses_its_claim_at_once(folder):
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLDER), folder], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"True\n"
    mine = Claims(folder)
    assert not mine.take("segment-0")
    assert mine.rival("segment-0").owner.pid == holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    wait_until(lambda: mine.take("segment-0"))


def test_a_file_system_without_links_and_locks(folder, monkeypatch):
    def without(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", without)
    monkeypatch.setattr("fcntl.flock", without)
    clock = Clock()
    mine, theirs = Claims(folder, clock=clock), Claims(folder, clock=clock)
    assert mine.take("segment-0") and not theirs.take("segment-0")
    clock.now = EXPIRY_SECONDS
    assert theirs.take("segment-0")


@needs_users
@pytest.mark.parametrize(
    ("umask", "seconds"), [(0o022, 0), (0o077, EXPIRY_SECONDS)], ids=["readable", "not readable, so by time"]
)
def test_a_dead_process_of_another_user_loses_its_claim(shared, umask, seconds):
    def owner() -> None:
        assert Claims(shared).take("segment-0")

    def heir() -> None:
        clock = Clock()
        mine = Claims(shared, clock=clock)
        assert mine.take("segment-0") is (seconds == 0)
        clock.now = seconds
        assert mine.take("segment-0")

    as_user(1001, owner, umask)
    as_user(1002, heir)


@needs_users
def test_a_process_of_another_user_that_lives_keeps_its_claim(shared):
    theirs = Claims(shared)
    theirs.take("segment-0")

    def another_user() -> None:
        clock = Clock()
        mine = Claims(shared, clock=clock)
        assert not mine.take("segment-0")
        clock.now = EXPIRY_SECONDS
        assert not mine.take("segment-0")

    as_user(1001, another_user)


def test_alone_excludes_every_other_claim(folder):
    """`Claims` of this process count as another process's: each holds its own locks."""
    mine, theirs = Claims(folder), Claims(folder)
    theirs.take("segment-3")
    with pytest.raises(MachineError, match=f"film.mp4 is being rendered by process {os.getpid()}"):
        list(mine.require_alone("film.mp4"))
    assert list(mine.require_shared("film.mp4")) == []
    theirs.release_all()
    assert list(mine.require_alone("film.mp4")) == []
    assert list(mine.require_alone("film.mp4")) == []
    with pytest.raises(MachineError):
        list(theirs.require_shared("film.mp4"))
    mine.release_all()
    assert os.listdir(folder) == []


def test_alone_waits_for_what_only_time_tells(folder, monkeypatch):
    """A claim of another machine, whose process is dead."""
    clock = Clock()
    Claims(folder, ELSEWHERE).take(ALONE)
    monkeypatch.setattr("helios_cli.film.claims.time.sleep", lambda seconds: setattr(clock, "now", clock.now + 30))
    mine = Claims(folder, clock=clock)
    (notice,) = mine.require_alone("film.mp4")
    assert notice.startswith(f"film.mp4 was being rendered by process {ELSEWHERE.pid} on {ELSEWHERE.host}; waiting")
    assert clock.now >= EXPIRY_SECONDS
    assert mine.take(ALONE) and not Claims(folder).take(ALONE)
