"""The folder of finished chunks next to a film that several workers render."""

from __future__ import annotations

import os

import pytest

from helios_cli.errors import InputError
from helios_cli.film.parts import DoneSegment, JoinedChunks, Parts, stored
from helios_cli.film.target import Target

KIND = {"weights": "a", "arithmetic": {"device": "cpu"}}


@pytest.fixture
def parts(tmp_path) -> Parts:
    return Parts(Target.of(tmp_path / "film.mp4"))


def test_the_first_process_decides_what_the_chunks_are_computed_by(parts):
    assert parts.kind() is None
    assert parts.begin(KIND) == KIND
    assert parts.begin({"weights": "b"}) == KIND
    assert sorted(os.listdir(parts.folder)) == ["done", "film.json"]


def test_a_segment_is_done_until_chunks_of_it_are_missing(parts):
    parts.begin(KIND)
    done = DoneSegment(KIND, ("f" * 64,), ("key-33",))
    assert parts.done(3) is None
    parts.finish(3, done)
    assert parts.done(3) == done
    parts.reopen(3)
    assert parts.done(3) is None


@pytest.mark.parametrize("note", [b"", b"[]", b'{"kind": {}, "keys": 3}', b'{"kind": {}}', b"\xff"])
def test_a_damaged_note_says_nothing(parts, note):
    parts.begin(KIND)
    (parts.folder / "done" / "0.json").write_bytes(note)
    assert parts.done(0) is None


def test_a_folder_that_is_not_ours_is_refused_and_stays(parts):
    parts.folder.mkdir()
    parts.check()
    (parts.folder / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="not a folder of finished chunks"):
        parts.check()
    parts.begin(KIND)
    parts.check()


def test_a_link_is_refused(parts, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    parts.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError):
        parts.check()


def test_chunks_count_as_far_as_they_are_whole(parts):
    parts.begin(KIND)
    names, keys = ["a" * 64, "b" * 64, "c" * 64], ["key-33", "key-33", "key-20"]
    assert stored(parts.chunks, names, keys) == (0, None)
    for name, key in zip(names, keys, strict=True):
        parts.chunks.put(name, b"state " + name[:1].encode(), key, b"piece " + name[:1].encode())
    assert stored(parts.chunks, names, keys) == (3, b"state c")
    assert stored(parts.chunks, names, ["key-33", "key-20", "key-20"]) == (1, b"state a")
    damaged = parts.folder / "chunks" / names[1] / "key-33.piece"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert stored(parts.chunks, names, keys) == (1, b"state a")


def test_pieces_are_joined_under_the_key_of_the_worker_that_made_them(parts):
    """Two segments may have the same chunk, cut to other lengths."""
    parts.begin(KIND)
    name = "a" * 64
    parts.chunks.put(name, b"state", "other-33", b"whole")
    parts.chunks.put(name, b"state", "other-20", b"cut")
    joined = JoinedChunks(parts, [DoneSegment(KIND, (name,), ("other-33",)), DoneSegment(KIND, (name,), ("other-20",))])
    assert joined.piece(name, "mine-33") == b"whole"
    assert joined.piece(name, "mine-20") == b"cut"
    assert joined.piece(name, "mine-7") is None
