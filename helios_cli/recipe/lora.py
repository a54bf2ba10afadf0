"""The LoRA files of a film: how they are written in a flag or a recipe, and where they are."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.errors import InputError
from helios_cli.recipe.values import pick, shown
from helios_cli.visible import printable

if TYPE_CHECKING:
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.options import RenderOptions

MAX_WEIGHT = 10.0
"""Largest factor of a LoRA; beyond 2 the pictures of most fall apart."""

MAX_LORAS = 20

NONE = "none"
"""The value of --lora that leaves out the recipe's LoRA files."""

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")

_WEIGHT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_HUB = re.compile(
    r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(?:/(?!.*\.\.)\w[\w ./+()-]{0,250}\.safetensors)?(?:@\w[\w.+/-]{0,200})?", re.ASCII
)

_FORM = "write style.safetensors, or style.safetensors:0.8"


@dataclass(frozen=True)
class Lora:
    """A LoRA file: `path` is a file, or `owner/name[/file.safetensors][@revision]` on the Hub; `weight` its factor.
    One that `is_located` stays what it is, whatever lies in the current folder."""

    path: str
    weight: float = 1.0
    is_located: bool = field(default=False, compare=False, repr=False)

    @property
    def is_on_hub(self) -> bool:
        """Return whether a `located` path is one on the Hub: those of files are absolute."""
        return not os.path.isabs(self.path)


def parse_lora(text: str) -> Lora:
    """Read `FILE[:WEIGHT]`. The last colon begins a weight only if a number follows, so that `C:\\style` is a path."""
    path, colon, weight = text.rpartition(":")
    if not (colon and len(path) > 1 and _WEIGHT.fullmatch(weight.strip())):
        path, weight = text, "1"
    if not path.strip():
        raise InputError(f"{shown(text)} names no LoRA file", hint=_FORM)
    return _checked(Lora(path, float(weight)))


def parse_loras(value: object) -> tuple[Lora, ...]:
    """Read --lora: one or several `FILE[:WEIGHT]`, `Lora`, or `none`. InputError for anything else."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if values == [NONE]:
        return ()
    loras = []
    for item in values:
        if isinstance(item, str | Path):
            loras.append(parse_lora(os.fspath(item)))
        elif isinstance(item, Lora):
            loras.append(_checked(item))
        else:
            raise InputError(f"{shown(item)} names no LoRA file", hint=_FORM)
    if len(loras) > MAX_LORAS:
        raise InputError(f"{len(loras)} LoRA files; at most {MAX_LORAS} are folded", hint="merge some of them first")
    return tuple(loras)


def _checked(lora: Lora) -> Lora:
    if not (math.isfinite(lora.weight) and abs(lora.weight) <= MAX_WEIGHT):
        limits = f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
        message = f"{printable(lora.path, 200)}: the weight {lora.weight:g} is not within {limits}"
        raise InputError(message, hint="most LoRA files are made for a weight of about 1")
    return lora


def choose_loras(film: Film, options: RenderOptions) -> tuple[tuple[Lora, ...], str]:
    """Return the LoRA files of a film, located, and where they come from: a flag replaces those of the recipe."""
    loras, origin = pick("lora", options, film.recipe, ())
    folder = Path.cwd() if origin == "flag" else film.folder
    return tuple(located(one if isinstance(one, Lora) else Lora(one.path, one.weight), folder) for one in loras), origin


def located(lora: Lora, folder: Path) -> Lora:
    """Return it with an absolute path, relative to `folder`, or with that on the Hub if only the Hub can have it."""
    path = os.path.abspath(folder / lora.path)
    is_on_hub = _HUB.fullmatch(lora.path) and not _is_file_name(lora.path) and not os.path.lexists(path)
    if lora.is_located or is_on_hub:
        path = lora.path
    return Lora(path, lora.weight, is_located=True)


def _is_file_name(path: str) -> bool:
    """Return whether `a/b` ends as a file of weights does, and so is no repository."""
    return path.count("/") == 1 and path.lower().endswith((".safetensors", *PICKLES))
