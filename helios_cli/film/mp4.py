"""Takes fragmented MP4 apart and puts it together: the few boxes that a film of whole pieces needs.

Such a file is an *init segment* (`ftyp`, `moov`: codec and size, no frames), then *fragments* (`moof` with times and
sizes, `mdat` with the frames). Fragments of two encoder runs with the same settings make one film under one init
segment once their times and sequence numbers continue. A sound of its own joins them as the second track.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A box in a buffer: its four-letter name, and where the box, its content, and its end are."""

    name: bytes
    start: int
    content: int
    end: int


def boxes_in(data: bytes | bytearray, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yield the boxes that stand one after another in `data[start:end]`. ValueError if the last one is not whole."""
    end = len(data) if end is None else end
    while start < end:
        if end - start < 8:
            raise ValueError(f"half a box at byte {start}")
        length, name = struct.unpack_from(">I4s", data, start)
        header = 8
        if length == 1:  # the length did not fit into 32 bits
            length, header = struct.unpack_from(">Q", data, start + 8)[0], 16
        if length < header or start + length > end:
            raise ValueError(f"the box {name!r} at byte {start} is not whole")
        yield Box(name, start, start + header, start + length)
        start += length


def content_of(data: bytes | bytearray, *path: bytes) -> int:
    """Return where the content of the first box at a path such as (b"moov", b"trak") begins. ValueError without one."""
    start, end = 0, len(data)
    for name in path:
        box = next((box for box in boxes_in(data, start, end) if box.name == name), None)
        if box is None:
            raise ValueError(f"no box {name!r}")
        start, end = box.content, box.end
    return start


def split(data: bytes) -> tuple[bytes, list[bytearray]]:
    """Return the init segment and the fragments, each `moof` with its `mdat`, without indexes."""
    init, fragments = b"", []
    for box in boxes_in(data):
        if box.name in (b"ftyp", b"moov"):
            init += data[box.start : box.end]
        elif box.name == b"moof":
            fragments.append(bytearray(data[box.start : box.end]))
        elif box.name == b"mdat":
            fragments[-1] += data[box.start : box.end]
    return init, fragments


def timescale(init: bytes) -> int:
    """Return the ticks in a second of the first track's times."""
    header = content_of(init, b"moov", b"trak", b"mdia", b"mdhd")
    is_wide = init[header]  # version 1 has dates of 64 bits
    return struct.unpack_from(">I", init, header + (20 if is_wide else 12))[0]


def move(fragment: bytearray, *, ticks: int, number: int) -> None:
    """Let the fragment begin `ticks` later, as number `number` (from 1) of its film."""
    struct.pack_into(">I", fragment, content_of(fragment, b"moof", b"mfhd") + 4, number)
    time = content_of(fragment, b"moof", b"traf", b"tfdt")
    form = ">Q" if fragment[time] else ">I"
    struct.pack_into(form, fragment, time + 4, struct.unpack_from(form, fragment, time + 4)[0] + ticks)


SECOND_TRACK = 2


def as_second_track(fragment: bytearray) -> None:
    """Let the fragment of another file belong to the second track."""
    struct.pack_into(">I", fragment, content_of(fragment, b"moof", b"traf", b"tfhd") + 4, SECOND_TRACK)


def start_of(fragment: bytes | bytearray) -> int:
    """Return the time of a fragment, in ticks."""
    time = content_of(fragment, b"moof", b"traf", b"tfdt")
    return struct.unpack_from(">Q" if fragment[time] else ">I", fragment, time + 4)[0]


def with_second_track(init: bytes, other: bytes) -> bytes:
    """Return an init segment that has the track of `other` behind its own."""
    (track, extends), _ = _tracks(bytearray(other), SECOND_TRACK)
    (own, own_extends), rest = _tracks(bytearray(init), None)
    head = bytearray(next(data for name, data in rest if name == b"mvhd"))
    struct.pack_into(">I", head, len(head) - 4, SECOND_TRACK + 1)  # the next track's number
    others = b"".join(data for name, data in rest if name != b"mvhd")
    movie = _box(b"moov", bytes(head) + own + track + _box(b"mvex", own_extends + extends) + others)
    return b"".join(movie if box.name == b"moov" else init[box.start : box.end] for box in boxes_in(init))


def _tracks(init: bytearray, number: int | None) -> tuple[tuple[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Return the track of an init segment and its defaults for fragments, both under another `number` if one is given;
    and the other boxes of its `moov`, by name."""
    movie = next(box for box in boxes_in(init) if box.name == b"moov")
    header, extends = content_of(init, b"moov", b"trak", b"tkhd"), content_of(init, b"moov", b"mvex", b"trex")
    if number is not None:
        struct.pack_into(">I", init, header + (20 if init[header] else 12), number)
        struct.pack_into(">I", init, extends + 4, number)
    boxes = [(box.name, bytes(init[box.start : box.end])) for box in boxes_in(init, movie.content, movie.end)]
    track = next(data for name, data in boxes if name == b"trak")
    end = extends - 8 + int.from_bytes(init[extends - 8 : extends - 4])
    rest = [(name, data) for name, data in boxes if name not in (b"trak", b"mvex")]
    return (track, bytes(init[extends - 8 : end])), rest


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content
