"""The source of a model or a LoRA: what its name on a command line means, and how it is written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from helios_cli.errors import InputError
from helios_cli.visible import printable
from helios_cli.weights.checkpoint import MODEL_INDEX
from helios_cli.weights.names import EMBEDDED, EMBEDDED_FOLDER, KNOWN, NAMES, known_repo, nearest

HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/-]{0,200}", re.ASCII)

LORA_NAME = re.compile(r"(?!.*\.\.)\w[\w ./+()-]{0,250}\.safetensors", re.ASCII)
LORA_ON_HUB = re.compile(
    rf"(?P<repo>{HUB_ID.pattern})(?:/(?P<file>{LORA_NAME.pattern}))?(?:@(?P<revision>{REVISION.pattern}))?", re.ASCII
)


class Source(NamedTuple):
    """The source of a model: a folder on this disk, or a revision of a repository on the Hub.

    `file` is the LoRA file that is meant of a repository, "" for its only one, and None for a whole model."""

    folder: Path | None = None
    repo: str = ""
    revision: str = ""
    file: str | None = None


def source_of(model: str, revision: str | None = None) -> Source:
    """Return the source of `model`: a known name, else an existing folder, else a Hub id `owner/name`.

    A folder called `base` does not hide the known model; it is `./base` (`shadow_of`). Raises InputError with the
    nearest known name for anything else.
    """
    if revision is not None and not REVISION.fullmatch(revision):
        raise InputError(f"{printable(revision)} cannot be a revision", hint="name a branch, a tag or a commit")
    if model == EMBEDDED:
        return Source(folder=EMBEDDED_FOLDER)
    if model in KNOWN:
        return Source(repo=KNOWN[model].repo, revision=revision or KNOWN[model].revision)
    if model and Path(model).exists():
        return Source(folder=Path(model))  # for a file, opening it explains what a checkpoint is
    known = known_repo(model)
    if known:
        return Source(repo=known.repo, revision=revision or known.revision)
    suggestion = nearest(model)
    if suggestion and suggestion.lower() == model.lower():
        raise InputError(f"there is no model {model}: the Hub spells it {suggestion}", hint=f"write {suggestion}")
    if HUB_ID.fullmatch(model):
        return Source(repo=model, revision=revision or "main")
    hint = f"did you mean {suggestion}?" if suggestion else f"known names: {', '.join(NAMES)}"
    raise InputError(f"{model} is neither a folder, nor a known model, nor a Hub id owner/name", hint=hint)


def shadow_of(model: str) -> str | None:
    """Return a line about a checkpoint in the current folder that has the name of a known model, or None."""
    if model not in NAMES or not Path(model, MODEL_INDEX).is_file():
        return None
    return f"{model} is the known model, not the folder here; write ./{model} for the folder"


def lora_source(name: str) -> Source:
    """Return the repository of `owner/name[/file.safetensors][@revision]`. Raises InputError for another form."""
    match = LORA_ON_HUB.fullmatch(name)
    if match is None:
        raise InputError(
            f"{printable(name, 200)} is neither a LoRA file nor one on the Hub",
            hint="write a path, owner/name, or owner/name/file.safetensors",
        )
    return Source(repo=match["repo"], revision=match["revision"] or "main", file=match["file"] or "")


def spoken(source: Source) -> str:
    """Return `distilled` for its pinned revision, else the Hub id and its --revision, as typed on a command line."""
    known = known_repo(source.repo)
    if known and source.revision == known.revision:
        return known.name
    return source.repo if source.revision == "main" else f"{source.repo} --revision {source.revision}"


def how_to_go_on(source: Source) -> str:
    """Return what to do to go on with a download."""
    if source.file is None:
        return f"run again: helios models pull {spoken(source)}"
    return "run again: the same command" + ("" if source.file else f", or with the file's name: {with_file(source)}")


def with_file(source: Source) -> str:
    """Return the form of a LoRA's name that needs no listing of its repository."""
    return f"{source.repo}/FILE.safetensors" + ("" if source.revision == "main" else f"@{source.revision}")
