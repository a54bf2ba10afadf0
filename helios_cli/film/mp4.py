"""Takes fragmented MP4 apart and puts it together: the few boxes that a film of whole pieces needs.

Such a file is an *init segment* (`ftyp`, `moov`: codec and size, no frames), then *fragments* (`moof` with times and
sizes, `mdat` with the frames). Fragments of two encoder runs with the same settings make one film under one init
segment once their times and sequence numbers continue.
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
