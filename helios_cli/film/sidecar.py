"""Writes the record of a film next to it, its sidecar, and reads records from films and sidecars."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from helios_cli.errors import InputError, in_our_words
from helios_cli.files import replacing
from helios_cli.film import reading
from helios_cli.film.disk import disk_errors
from helios_cli.film.record import FORMAT, KEY, Record, as_bytes, file_name
from helios_cli.film.target import Target, sidecar_of, sidecars_of
from helios_cli.recipe.files import absence
from helios_cli.visible import printable

if TYPE_CHECKING:
    from helios_cli.recipe.plan import Plan

MAX_BYTES = 16 * 2**20
"""Largest sidecar: a film of 24 hours lists its chunks in 13 MB."""

FILM_SUFFIXES = (".mp4", ".mkv")


def sidecar_path(target: Target, source: str) -> Path | None:
    """Return where the sidecar of the film at `target`, made from `source`, replaces no other file; None if nowhere.

    That is `boat.json`, or `boat.mp4.json` if the first is the source, another film's sidecar, or anything else.
    """
    first, second = sidecars_of(target.path, folder=target.kind == "png")
    recipe = Path(os.path.abspath(source))
    if second != recipe and _is_ours(second, target):
        return second  # where there is one, it is the one that is read
    free = (path for path in (first, second) if not os.path.lexists(path) or _is_ours(path, target))
    return next((path for path in free if path != recipe), None)


def _is_ours(path: Path, target: Target) -> bool:
    """Return whether a file is the sidecar of this film, or of one that is gone."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return False
        content = json.loads(path.read_bytes())
        film = file_name(content["film"])
        is_sidecar = content["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return is_sidecar and (film == target.path.name or not os.path.lexists(path.with_name(film)))


def write_sidecar(
    path: Path, record: Record, target: Target, plan: Plan, fingerprints: Sequence[str], seconds: float
) -> None:
    """Write the record and the list of chunks to `path`, whole or not at all. MachineError if it cannot be written."""
    settings = ("size", "fps", "steps", "guidance", "seed", "negative")
    keys = ("start_frame", "num_frames", "fresh", "shot")
    content = {
        **record.model_dump(mode="json", exclude_none=True, exclude={"recipe", "frames"}),
        "film": target.path.name,
        "frames": record.frames,
        **{key: record.recipe[key] for key in settings},
        "seconds": round(seconds, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": record.recipe,
        "chunks": [
            {**{key: getattr(chunk, key) for key in keys}, "fingerprint": fingerprint}
            for chunk, fingerprint in zip(plan.chunks, fingerprints, strict=True)
        ],
    }
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replace a file, whole or not at all. MachineError if it cannot be written."""
    with disk_errors(path), replacing(path, durable=True) as new:
        new.write_bytes(as_bytes(text))


def record_at(target: Target) -> Record | None:
    """Return the record of the film at `target`, or None."""
    try:
        return film_and_record(target.path)[1]
    except InputError:
        return None


def film_and_record(path: Path) -> tuple[str, Record]:
    """Return the film's name and its record, from a film, its sidecar or, for a folder, the sidecar next to it."""
    source = sidecar_of(path) if os.path.isdir(path) else path
    if not os.path.isfile(source):
        if os.path.isdir(path):
            raise _without_record(path, f"there is no {source.name} next to it")
        next_step = "name a film that helios rendered, or its sidecar .json"
        message, hint = absence(path, (*FILM_SUFFIXES, ".json"), next_step) or ("not a file", next_step)
        raise InputError(f"--from {printable(path, 200)}: {message}", hint=hint)
    in_film = source.suffix.lower() in FILM_SUFFIXES
    try:
        if in_film:
            metadata = reading.metadata(source)
            if metadata is None:
                raise _without_record(path, f"its metadata is larger than {reading.MAX_TEXT_BYTES >> 20} MiB")
            text = metadata.get(KEY, "")
        elif source.stat().st_size > MAX_BYTES:
            raise _without_record(path, "too large for a sidecar")
        else:
            text = source.read_text("utf-8")
        record = Record.model_validate(json.loads(text))
    except OSError as error:
        raise InputError(f"--from {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = printable(".".join(map(str, first["loc"])))
        raise _without_record(path, f"`{key}`: {in_our_words(first['msg'])}") from error
    except (ValueError, RecursionError) as error:
        raise _without_record(path, "no record in it") from error
    film = source.name if in_film else record.film or source.name
    if path.is_dir() and Path(film).suffix.lower() in FILM_SUFFIXES:
        raise _without_record(path, f"{source.name} describes {film}")
    return film, record


def _without_record(path: Path, why: str) -> InputError:
    return InputError(
        f"--from {path}: the file does not say how it was made ({why})",
        hint="name a film that helios rendered without --no-metadata, or its sidecar .json",
    )
