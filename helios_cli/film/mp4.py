"""Fragmented MP4 taken apart and put together: the few boxes that a film which grows by whole pieces needs.

Such a file is an *init segment* (`ftyp`, `moov`: codec and size, no frames), then *fragments* (`moof` with times and
sizes, `mdat` with the frames). Fragments of two encoder runs with the same settings make one film under one init
segment once their times and sequence numbers go on.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A box in a buffer: its four-letter name, where it begins, its content begins, and it ends."""

    name: bytes
    start: int
    content: int
    end: int


Data = bytes | bytearray | mmap.mmap


def boxes_in(data: Data, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes that stand one after another in `data[start:end]`. ValueError if the last one is not whole."""
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


def find(data: Data, *path: bytes) -> Box:
    """The first box at a path such as (b"moov", b"trak"). ValueError if there is none."""
    start, end = 0, len(data)
    for name in path:
        box = next((box for box in boxes_in(data, start, end) if box.name == name), None)
        if box is None:
            raise ValueError(f"no box {name!r}")
        start, end = box.content, box.end
    return box


def split(data: bytes) -> tuple[bytes, list[bytearray]]:
    """The init segment and the fragments of a fragmented MP4, each `moof` with its `mdat`; indexes are left out."""
    init, fragments = b"", []
    for box in boxes_in(data):
        if box.name in (b"ftyp", b"moov"):
            init += data[box.start : box.end]
        elif box.name == b"moof":
            fragments.append(bytearray(data[box.start : box.end]))
        elif box.name == b"mdat":
            fragments[-1] += data[box.start : box.end]
    return init, fragments


def init_length(data: bytes) -> int:
    """Bytes of the init segment that `data` begins with; `data` may end anywhere after it."""
    return find(data[: _moov_end(data)], b"moov").end


def _moov_end(data: bytes) -> int:
    end = 0
    for _ in range(2):  # ftyp, moov
        end += struct.unpack_from(">I", data, end)[0]
    return end


def timescale(init: bytes) -> int:
    """Ticks in a second, of the first track's times."""
    header = find(init, b"moov", b"trak", b"mdia", b"mdhd")
    wide = init[header.content]  # version 1 has dates of 64 bits
    return struct.unpack_from(">I", init, header.content + (20 if wide else 12))[0]


def move(fragment: bytearray, *, ticks: int, number: int) -> None:
    """Let the fragment begin `ticks` later, as number `number` (from 1) of its film."""
    struct.pack_into(">I", fragment, find(fragment, b"moof", b"mfhd").content + 4, number)
    time = find(fragment, b"moof", b"traf", b"tfdt").content
    form = ">Q" if fragment[time] else ">I"
    struct.pack_into(form, fragment, time + 4, struct.unpack_from(form, fragment, time + 4)[0] + ticks)


def num_samples(data: Data) -> int:
    """Frames that a film which is whole, and no longer fragmented, lists for its first track."""
    return struct.unpack_from(">I", data, find(data, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz").content + 8)[
        0
    ]
