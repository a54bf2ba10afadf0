"""The journal's file: torn anywhere, filled with anything."""

from __future__ import annotations

import json
import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helios_cli.errors import InputError, MachineError
from helios_cli.film.growing import Mark
from helios_cli.film.journal import Journal
from helios_cli.film.resume import Wanted
from helios_cli.film.target import Target, check_space, check_target
from helios_cli.film.writer import Safe, open_writer

SETTINGS = {"model": "tiny", "steps": "2,2,2"}


@pytest.fixture
def target(tmp_path):
    return Target.of(tmp_path / "film.mp4")


def written(target: Target, chunks: int = 3) -> Journal:
    journal = Journal(target)
    journal.begin("key", SETTINGS)
    for index in range(chunks):
        journal.append(f"{index:064}", Mark(33, 100 * index + 100, f"{index:x}"), f"state {index}".encode())
    return journal


def test_what_was_written_is_read(target):
    journal = written(target)
    journal.close()
    again = Journal(target)
    assert (again.encoding, again.settings, again.records) == ("key", SETTINGS, journal.records)
    assert [again.state(index) for index in range(3)] == [None, b"state 1", b"state 2"]
    again.remove()
    assert os.listdir(target.path.parent) == []


def test_cut_anywhere_it_holds_the_records_before(target):
    """At every byte: as many records as lines were whole, and the next one is written in their place."""
    written(target).close()
    data = target.journal.read_bytes()
    for length in range(len(data) + 1):
        target.journal.write_bytes(data[:length])
        journal = Journal(target)
        whole = max(0, data[:length].count(b"\n") - 2)  # `run` and `film` come first
        assert len(journal.records) == whole
        if whole:
            journal.append("new", Mark(1, 2, "3"), b"")
        journal.close()
        lines = target.journal.read_bytes().splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)
        assert sum(b'"chunk"' in line for line in lines) == whole + bool(whole)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    ["run", "film", "chunk", "fingerprint", "frames", "length", "digest", "state", "encoding", "settings"]
)
lines = st.lists(values | st.dictionaries(keys, values)).map(
    lambda many: b"\n".join(json.dumps(v).encode() for v in many)
)


@pytest.mark.slow
@given(data=st.binary() | lines)
def test_any_bytes_are_no_journal_of_ours_and_stay(data, tmp_path_factory):
    target = Target.of(tmp_path_factory.mktemp("journal") / "film.mp4")
    data = b"x" + data
    target.journal.write_bytes(data)
    with pytest.raises(InputError, match="not a helios journal"):
        Journal(target)
    assert target.journal.read_bytes() == data and os.listdir(target.path.parent) == ["film.mp4.journal"]


@pytest.mark.slow
@given(data=st.binary() | lines)
@example(data=b"[" * 100_000 + b"\n")
def test_any_bytes_after_the_first_line_are_a_journal_without_chunks(data, tmp_path_factory):
    target = Target.of(tmp_path_factory.mktemp("journal") / "film.mp4")
    target.journal.write_bytes(b'{"run": {}}\n' + data)
    journal = Journal(target)
    assert journal.records == []
    journal.begin("key", SETTINGS)
    journal.close()
    assert Journal(target).encoding == "key"


def test_records_after_a_cut_follow_on(target):
    journal = written(target)
    journal.cut(1)
    journal.append("new", Mark(20, 150, "f"), b"new state")
    journal.close()
    again = Journal(target)
    assert [record.fingerprint for record in again.records] == [f"{0:064}", "new"]
    assert [again.state(0), again.state(1)] == [None, b"new state"]  # slot 0 held that of the third chunk


BESIDE = ["film.partial.mp4", "film.finishing.mp4", "film.mp4.state-0", "film.mp4.state-1"]


@pytest.mark.parametrize("name", BESIDE)
def test_files_without_a_journal_are_not_ours(target, name):
    (target.path.parent / name).write_bytes(b"mine")
    for attempt in (lambda: Journal(target), lambda: check_target(target.path, force=True)):
        with pytest.raises(InputError, match=f"{name} does not belong to an unfinished film") as error:
            attempt()
        assert "-o" in error.value.hint
        assert os.listdir(target.path.parent) == [name]
    assert (target.path.parent / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", [*BESIDE, "film.mp4.journal"])
@pytest.mark.parametrize("begun", [False, True])
def test_links_are_not_followed(target, name, begun):
    """A link next to a helios journal is not followed either: anybody can create one in a shared folder."""
    if begun:
        written(target).close()
    victim, link = target.path.parent / "victim", target.path.parent / name
    victim.write_bytes(b"mine")
    link.unlink(missing_ok=True)
    link.symlink_to("victim")
    with pytest.raises(InputError, match="a link"):
        check_target(target.path, force=True)
    with pytest.raises((InputError, MachineError), match=r"a link|Too many levels"):
        Journal(target)
    assert victim.read_bytes() == b"mine" and link.is_symlink()


def test_a_journal_that_is_no_file_is_refused(target):
    os.mkfifo(target.journal)
    with pytest.raises(InputError, match="not a file"):
        check_target(target.path, force=True)


def test_a_link_that_comes_while_a_film_is_made_is_not_followed(target):
    journal = written(target, chunks=1)
    victim = target.path.parent / "victim"
    victim.write_bytes(b"mine")
    target.state(1).symlink_to("victim")
    with pytest.raises(MachineError, match="state-1"):
        journal.append("a", Mark(1, 2, "3"), b"state")
    assert victim.read_bytes() == b"mine"


def test_a_locked_journal_says_who_has_it(target):
    journal = written(target)
    with pytest.raises(MachineError, match=f"process {os.getpid()} on ") as error:
        Journal(target)
    assert "-o" in error.value.hint
    journal.close()
    Journal(target).close()


def test_a_journal_that_went_while_it_was_opened_is_made_anew(target, monkeypatch):
    """A run that finishes removes its journal; one that waited for the lock must not hold what nobody can find."""
    import fcntl

    first = written(target)
    flock, opened = fcntl.flock, []

    def late(file, operation):
        if not opened:
            opened.append(file)
            first.remove()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    journal = Journal(target)
    assert opened and journal.records == []
    with pytest.raises(MachineError, match="is being rendered"):
        Journal(target)


def test_space_is_asked_for_before_the_start(target, tmp_path, monkeypatch):
    monkeypatch.setattr("helios_cli.machine.disk_free_bytes", lambda _: 1_000_000)
    assert check_space(target, 400_000) == ""
    assert "may take 1.2 MB" in check_space(target, 600_000)
    with pytest.raises(MachineError, match=r"1\.2 MB to 6 MB, but only 1 MB is free") as error:
        check_space(target, 3_000_000)
    assert "-o" in error.value.hint
    target.partial.write_bytes(bytes(300_000))
    check_space(target, 3_000_000)
    assert check_space(Target.of(f"{tmp_path}/frames/"), 900_000) == ""


WANTED = Wanted(
    [SimpleNamespace(num_frames=3, fresh=index == 0) for index in range(4)], [f"{index:064}" for index in range(4)], {}
)
STATES = [f"state {index}".encode() * 9 for index in range(3)]


def unfinished_film(path: str) -> Target:
    """A film of which three chunks of four are safe; the state after the first has gone by then."""
    target = Target.of(path)
    writer = open_writer(target.path, size=(16, 16), fps=24)
    writer.resume(WANTED, None)
    for index, state in enumerate(STATES):
        writer.write(np.full((3, 16, 16, 3), 80 * index, np.uint8))
        writer.end_piece(Safe(WANTED.fingerprints[index], lambda state=state: state))
    writer.abort()
    return target


@pytest.fixture
def unfinished(tmp_path):
    return unfinished_film(f"{tmp_path}/film.mp4")


def test_an_unfinished_folder_with_another_program_s_file_goes_on(tmp_path):
    target = unfinished_film(f"{tmp_path}/frames/")
    (target.partial / ".DS_Store").write_bytes(b"\0")
    writer = open_writer(check_target(f"{tmp_path}/frames/", force=False).path, size=(16, 16), fps=24)
    assert writer.resume(WANTED, None).chunks == 3
    writer.write(np.zeros((3, 16, 16, 3), np.uint8))
    writer.close()
    names = sorted(os.listdir(tmp_path / "frames"))
    assert names == [".DS_Store", *(f"frame_{number:06}.png" for number in range(1, 13))]


def taken_over(target: Target) -> int | None:
    """Chunks that the next run takes over, which must be as they were; None if it takes the files for another's."""
    whole = target.partial.read_bytes()
    try:
        writer = open_writer(target.path, size=(16, 16), fps=24)
        resumed = writer.resume(WANTED, None)
    except InputError:
        return None
    writer.abort()
    assert resumed.state == (STATES[resumed.chunks - 1] if resumed.chunks else None)
    if resumed.chunks:
        assert whole.startswith(target.partial.read_bytes())
    return resumed.chunks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["journal", "partial", "state 0", "state 1"])
def test_a_bit_that_turned_anywhere_is_noticed_or_means_nothing(unfinished, tmp_path, name):
    """At every fifth byte; of the film at every 37th."""
    states = {f"state {slot}": unfinished.state(slot) for slot in range(2)}
    victim = {"journal": unfinished.journal, "partial": unfinished.partial, **states}[name]
    sound = {path: path.read_bytes() for path in (unfinished.journal, unfinished.partial, *states.values())}
    assert taken_over(unfinished) == 3
    counts = Counter()
    for at in range(0, len(sound[victim]), 37 if name == "partial" else 5):
        for path, data in sound.items():
            path.write_bytes(data)
        turned = bytearray(sound[victim])
        turned[at] ^= 1 << at % 8
        victim.write_bytes(turned)
        counts[taken_over(unfinished)] += 1
    least = {"journal": {None, 0, 1, 2, 3}, "partial": {0, 2}, "state 0": {2}, "state 1": {3}}[name]
    assert set(counts) <= least and counts[3] + counts[2] + counts[0], counts
