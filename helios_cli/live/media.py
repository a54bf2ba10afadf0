"""Descriptions of a film for browsers: the names of its codecs, and a playlist of its pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from helios_cli.film.mp4 import boxes_in, content_of

SAMPLE_ENTRY_BYTES = 78
"""The fields of a picture's sample entry, before the boxes in it."""


SOUND = "mp4a.40.2"
"""AAC of low complexity, the only sound in the pieces of a film."""


def has_sound(init: bytes) -> bool:
    """Return whether an init segment has a second track."""
    movie = next(box for box in boxes_in(init) if box.name == b"moov")
    return sum(box.name == b"trak" for box in boxes_in(init, movie.content, movie.end)) > 1


def codecs_of(init: bytes) -> str:
    """Return the codecs of an H.264 film as RFC 6381 has them, such as avc1.640028,mp4a.40.2. ValueError for another
    film."""
    entries = content_of(init, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd") + 8
    length, name = int.from_bytes(init[entries : entries + 4]), init[entries + 4 : entries + 8]
    if name != b"avc1":
        raise ValueError(f"no H.264, but {name!r}")
    entry = init[entries + 8 + SAMPLE_ENTRY_BYTES : entries + length]
    settings = content_of(entry, b"avcC")
    picture = f"avc1.{entry[settings + 1 : settings + 4].hex()}"  # profile, constraints, level
    return f"{picture},{SOUND}" if has_sound(init) else picture


def playlist(first: int, lengths: Sequence[float], start: float, *, is_over: bool) -> str:
    """Return an HLS playlist of the pieces from `first` on, given their lengths in seconds.

    Its dates are seconds of film from the year 1970 on, by which a page knows where a player is.
    """
    date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=start)
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{max(map(math.ceil, lengths), default=1)}",
        f"#EXT-X-MEDIA-SEQUENCE:{first}",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        '#EXT-X-MAP:URI="init.mp4"',
        f"#EXT-X-PROGRAM-DATE-TIME:{date.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}",
    ]
    for index, length in enumerate(lengths, first):
        lines += [f"#EXTINF:{length:.6f},", f"{index}.m4s"]
    return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if is_over else []), ""])
