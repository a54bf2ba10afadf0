"""Matroska as far as to count a film's frames: elements in elements, each an id, a length, and its content."""

from __future__ import annotations

import mmap

SEGMENT, CLUSTER, BLOCK_GROUP, SIMPLE_BLOCK = 0x18538067, 0x1F43B675, 0xA0, 0xA3


def num_blocks(data: bytes | mmap.mmap) -> int:
    """Frames of a film with one track. ValueError if it is not whole."""
    return _blocks(data, 0, len(data))


def _blocks(data: bytes | mmap.mmap, at: int, end: int) -> int:
    count = 0
    while at < end:
        name, at = _number(data, at, end, marked=True)
        length, at = _number(data, at, end, marked=False)
        if at + length > end:
            raise ValueError(f"the element {name:#x} before byte {at} is not whole")
        if name in (SEGMENT, CLUSTER):
            count += _blocks(data, at, at + length)
        count += name in (BLOCK_GROUP, SIMPLE_BLOCK)
        at += length
    return count


def _number(data: bytes | mmap.mmap, at: int, end: int, *, marked: bool) -> tuple[int, int]:
    """A number of as many bytes as its first one has zeros in front, and one; and where it ends. An id keeps the bit
    that says so."""
    size = 9 - data[at].bit_length() if at < end else 9
    if size > 8 or at + size > end:
        raise ValueError(f"no number at byte {at}")
    value = int.from_bytes(data[at : at + size])
    return value if marked else value & ~(1 << 7 * size), at + size
