"""Makes a film again as its record says (`helios render --from`)."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from helios_cli.errors import InputError
from helios_cli.film.after import MAX_COMMAND
from helios_cli.film.record import Record
from helios_cli.film.sidecar import FILM_SUFFIXES, film_and_record
from helios_cli.recipe.film import Film
from helios_cli.recipe.lora import Lora, located
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.speed import KEYS
from helios_cli.recipe.validate import recipe_from
from helios_cli.recipe.values import LENGTH_KEYS
from helios_cli.visible import printable
from helios_cli.weights.hub import find_lora
from helios_cli.weights.names import EMBEDDED_FOLDER, known_repo


@dataclass(frozen=True)
class Again:
    """A film to be made again: `record` as it stood in `path`, `suffix` ".mp4", ".mkv" or "/"."""

    path: Path
    record: Record
    film: Film
    suffix: str

    def options(self, given: RenderOptions, named: Collection[str]) -> RenderOptions:
        """The options given, with those of the record that the command line does not name.

        A processor of another kind is never asked for: --device auto takes the GPU that is there, if there is one.
        Raises InputError if the record names a model that a stranger's film cannot be trusted with.
        """
        record = self.record
        has_length = any(getattr(given, key) is not None for key in LENGTH_KEYS)
        recorded: dict[str, Any] = {"dtype": record.dtype, "reanchor": record.reanchor}
        if record.device == "cpu":
            recorded["device"] = "cpu"
        kept = ("quant", "attention", "reuse_history", "reuse_steps")
        named = {*named, *KEYS} if "speed" in named else named  # which goes before the record, as any flag
        recorded |= {key: getattr(record, key) for key in kept if getattr(record, key)}
        recorded |= record.encoding.model_dump() if record.encoding else {}
        recorded |= self._after(named)
        return replace(
            given,
            **{key: value for key, value in recorded.items() if key not in named},
            model=self._checked_model() if given.model is None else given.model,
            revision=given.revision or self._revision(given.model),
            lora=self._checked_loras() if given.lora is None else given.lora,
            # As an option: a film that --frames cut short is not one whose recipe contradicts itself.
            frames=given.frames if has_length else record.frames,
            output=given.output or f"{self.film.name}{self.suffix}",
            attention_taken=record.attention_taken or {},
            repeats=self,
        )

    def _after(self, named: Collection[str]) -> dict[str, Any]:
        """Return the options of what comes after the render. A record alone makes no machine run a program."""
        after = self.record.after
        if after is None:
            return {}
        if after.through is not None and "through" not in named:
            flags = f"--through {shlex.quote(after.through)}"
            flags += f" --through-size {after.through_size[0]}x{after.through_size[1]}" if after.through_size else ""
            flags += f" --through-fps {after.through_fps:g}" if after.through_fps else ""
            raise InputError(
                f"--from {self.path}: the film's frames went through a program, which a record does not start",
                hint=f"if you trust it, add {printable(flags, MAX_COMMAND)}; or add --through none",
            )
        return {"filter": after.filter}

    def _checked_loras(self) -> tuple[Lora, ...]:
        """Return the LoRA files of the recipe. As with models, a record alone makes no machine fetch weights."""
        loras = tuple(
            located(Lora(entry.path, entry.weight), self.film.folder) for entry in self.film.recipe.lora or ()
        )
        for lora in loras:
            if lora.is_on_hub and find_lora(lora.path) is None:
                message = f"--from {self.path}: its record names the LoRA {lora.path} on the Hub, which is not here"
                words = " ".join(f"--lora {one.path}:{one.weight:g}" for one in loras)
                raise InputError(message, hint=f"if you trust it, add {words}; or write --lora none")
        return loras

    def _revision(self, model: str | None) -> str | None:
        """The recorded commit, unless another model was given."""
        return self.record.model.revision if model in (None, self.record.model.repo) else None

    def _checked_model(self) -> str:
        """Return the model as -m takes it. A record alone makes no machine fetch weights from an unknown place."""
        model, start = self.record.model, f"--from {self.path}: its record's"
        if model.folder:
            folder = os.path.abspath(self.film.folder / model.folder)
            if not os.path.isdir(folder):
                message = f"{start} `model.folder` is not a folder here: {printable(folder, 200)}"
                raise InputError(message, hint="name the model with -m")
            return folder
        if model.repo and not known_repo(model.repo):
            message = f"{start} `model.repo` is {model.repo} on the Hub, which helios does not know"
            raise InputError(message, hint=f"if you trust it, add -m {model.repo}; or name another model with -m")
        return model.repo or EMBEDDED_FOLDER.name


def read_again(path: Path) -> Again:
    """Read how to make a film again from `path`, the film or its sidecar. InputError if it has no record."""
    name, record = film_and_record(path)
    recipe = recipe_from(record.recipe, {}, Problems(f"{path} (its record)"))
    suffix = PurePath(name).suffix.lower() if PurePath(name).suffix.lower() in FILM_SUFFIXES else "/"
    stem = PurePath(name).stem if suffix != "/" else name
    folder = Path(os.path.abspath(path.parent))
    return Again(path, record, Film(f"{stem}-again", str(path), recipe, folder), suffix)
