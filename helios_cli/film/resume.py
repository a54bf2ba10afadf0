"""Going on with a film that an earlier run left unfinished: how much of it is the film that is asked for now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helios_cli.errors import InputError
from helios_cli.film.cache import PROMISED_DAYS, Cache
from helios_cli.film.growing import GrowingFilm
from helios_cli.film.journal import Journal
from helios_cli.recipe.plan import Chunk


@dataclass(frozen=True)
class Wanted:
    """The film that is asked for: its chunks, the fingerprint of each, and what it is made with, in words."""

    chunks: Sequence[Chunk]
    fingerprints: Sequence[str]
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Resumed:
    """`chunks` finished ones are taken over; `state` is what comes after them, None where none is needed.

    `notice` says what of the unfinished film is of no use, or is "".
    """

    chunks: int = 0
    state: bytes | None = None
    notice: str = ""


def resume(
    wanted: Wanted, journal: Journal, film: GrowingFilm, encoding: str, cache: Cache | None, *, force: bool
) -> Resumed:
    """Cut journal and film back to their longest good beginning, or start both anew.

    InputError if nothing of what is there is of the film that is asked for, and it is kept nowhere else: a slip in a
    flag must not undo hours. `force` drops it.
    """
    matching = _matching(wanted, journal) if journal.encoding == encoding else 0
    kept = cache is not None and cache.promise([record.fingerprint for record in journal.records[matching:]])
    if journal.records and not (matching or kept or force):
        raise InputError(
            f"{journal.target.path}: {_notice(wanted, journal, 0, 0, 0)}, and are kept nowhere else",
            hint="go on with the settings it was begun with, add --force to drop it, or choose another name with -o",
        )
    count = sound = film.verified([record.mark for record in journal.records[:matching]])
    state = None
    while 0 < count < len(wanted.chunks) and not wanted.chunks[count].fresh:
        state = journal.state(count - 1)
        if state is None and cache:
            state = cache.state(wanted.fingerprints[count - 1])
        if state is not None:
            break
        count -= 1
    notice = _notice(wanted, journal, matching, sound, count)
    if notice and kept and count == matching:
        notice += f", and stay kept for that one, {PROMISED_DAYS} days"
    if count:
        film.resume([record.mark for record in journal.records[:count]])
        journal.cut(count)
    else:
        film.begin()
        journal.begin(encoding, wanted.settings)
    return Resumed(count, state, notice)


def _matching(wanted: Wanted, journal: Journal) -> int:
    for index, (record, chunk, fingerprint) in enumerate(
        zip(journal.records, wanted.chunks, wanted.fingerprints, strict=False)
    ):
        if (record.fingerprint, record.mark.frames) != (fingerprint, chunk.num_frames):
            return index
    return min(len(journal.records), len(wanted.chunks))


def _notice(wanted: Wanted, journal: Journal, matching: int, sound: int, count: int) -> str:
    """Why of the `matching` chunks, of which `sound` are whole in the film, only `count` are taken over."""
    dropped = len(journal.records) - count
    if not dropped:
        return ""
    changed = [
        f"{name} {old or 'none'}, now {wanted.settings.get(name, 'none')}"
        for name, old in journal.settings.items()
        if old != wanted.settings.get(name)
    ]
    if count == matching:
        why = f"they are of another film ({'; '.join(changed) or 'its plan'})"
    elif count < sound:
        why = "the saved state that continues after them is missing or damaged"
    else:
        why = "they are missing or damaged"
    left = f"of {len(journal.records)} chunks that an unfinished film left here, {dropped} cannot be used"
    return f"{left}: {why}"
