"""Resumes a film that an earlier run left unfinished, as far as it is the film to render now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helios_cli.errors import InputError
from helios_cli.film.cache import PROMISED_DAYS, Cache
from helios_cli.film.growing import GrowingFilm
from helios_cli.film.journal import Journal
from helios_cli.recipe.plan import Chunk, Plan


@dataclass(frozen=True)
class Wanted:
    """The film to render: its chunks, the fingerprint of each, and its settings in words."""

    chunks: Sequence[Chunk]
    fingerprints: Sequence[str]
    settings: Mapping[str, str]


def in_words(plan: Plan, model: str, device: str, dtype: str) -> dict[str, str]:
    """Return a film's settings in words, for a message about what changed between two runs."""
    return {
        "model": model,
        "device": device,
        "dtype": dtype,
        "size": f"{plan.size[0]}x{plan.size[1]}",
        "fps": f"{plan.fps:g}",
        "steps": ",".join(map(str, plan.steps)),
        "guidance": f"{plan.guidance:g}",
        "seed": str(plan.chunks[0].seed),
    }


@dataclass(frozen=True)
class Resumed:
    """The number of `chunks` that are reused, and the `state` after them, or None if it is not needed.

    `notice` says which chunks of the unfinished film cannot be used and why, or is "".
    """

    chunks: int = 0
    state: bytes | None = None
    notice: str = ""


def resume(wanted: Wanted, journal: Journal, film: GrowingFilm, cache: Cache | None, *, force: bool) -> Resumed:
    """Cut journal and film back to their longest good beginning, or start both anew.

    InputError if the unfinished film has chunks, none of which belong to the wanted film, and the cache does not have
    them: a slip in a flag must not undo hours. `force` drops them.
    """
    records, matching = journal.records, 0
    if journal.encoding == film.key:
        plan = zip(records, wanted.chunks, wanted.fingerprints, strict=False)
        same = [(old.fingerprint, old.mark.frames) == (new, chunk.num_frames) for old, chunk, new in plan]
        matching = [*same, False].index(False)
    are_kept = cache is not None and cache.promise([record.fingerprint for record in records[matching:]])
    if records and not (matching or are_kept or force):
        raise InputError(
            f"{journal.target.path}: {_notice(wanted, journal, 0, 0, 0)}, and they are kept nowhere else",
            hint="use the settings that it was started with, add --force to discard it, or choose another name with -o",
        )
    count = intact = film.verified([record.mark for record in records[:matching]])
    state = None
    while 0 < count < len(wanted.chunks) and not wanted.chunks[count].fresh:
        state = journal.state(count - 1)
        if state is None and cache:
            state = cache.state(wanted.fingerprints[count - 1])
        if state is not None:
            break
        count -= 1
    notice = _notice(wanted, journal, matching, intact, count)
    if notice and are_kept and count == matching:
        notice += f", and stay in the cache for {PROMISED_DAYS} days"
    if count:
        film.resume([record.mark for record in records[:count]])
        journal.cut(count)
    else:
        film.begin()
        journal.begin(film.key, wanted.settings)
    return Resumed(count, state, notice)


def _notice(wanted: Wanted, journal: Journal, matching: int, intact: int, count: int) -> str:
    """Say why, of the `matching` chunks, of which `intact` are whole in the film, only `count` are reused."""
    dropped = len(journal.records) - count
    if not dropped:
        return ""
    if count == matching:
        changes = [
            f"{name} {old or 'none'}, now {wanted.settings.get(name, 'none')}"
            for name, old in journal.settings.items()
            if old != wanted.settings.get(name)
        ]
        why = f"they belong to another film ({'; '.join(changes) or 'its plan'})"
    elif count < intact:
        why = "the saved state that continues after them is missing or damaged"
    else:
        why = "they are missing or damaged"
    return f"{dropped} of {len(journal.records)} chunks of the unfinished film here cannot be reused: {why}"
