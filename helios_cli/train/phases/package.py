"""The phase that makes one small checkpoint from the results of several runs. It trains nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from helios_cli.errors import InputError
from helios_cli.train.data.cache import captions_of
from helios_cli.train.events import Event
from helios_cli.train.processes import rank_and_count
from helios_cli.train.settings import PackageSettings
from helios_cli.train.state import copy_files, open_start, require_own
from helios_cli.units import format_bytes
from helios_cli.weights.checkpoint import MODEL_INDEX, Checkpoint, Component, files_of
from helios_cli.weights.layout import set_own, write_json, write_weights
from helios_cli.weights.reader import StoredTensor, WeightFiles
from helios_cli.weights.vocabulary import words_of


@dataclass(frozen=True)
class Packaged(Event):
    """The checkpoint is complete; `bytes` is the size of its weights."""

    out: str
    bytes: int

    @property
    def text(self) -> str:
        return f"wrote {self.out}: {format_bytes(self.bytes)} of weights"


def run(settings: PackageSettings, start: Checkpoint, device: torch.device) -> Iterator[Event]:
    """Write the checkpoint `settings.out`, once all its parts are made. Of several processes the first one writes it.

    InputError if the VAEs have different latents, `clips` is not a cache, or `out` holds something else.
    """
    if rank_and_count()[0]:
        return
    out = settings.folder
    if out.resolve() == start.path.resolve():
        raise InputError(f"the package would overwrite its start, {start.path}", hint="name another `out`")
    require_own(out, MODEL_INDEX, "checkpoint")
    parts = dict(start.components)
    if settings.vae is not None:
        parts["vae"] = open_start(settings.vae).component("vae")
        _require_same_latents(start.component("vae"), parts["vae"])
    folder = out.with_name(f"{out.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    weights = (".safetensors", ".safetensors.index.json")
    copy_files(start.path, folder, [name for name in files_of(start.path) if not name.endswith(weights)])
    for name, part in parts.items():
        write_weights(folder, name, _tensors(part, getattr(torch, settings.dtype)))
        config = {**part.config, "dtype": settings.dtype} if "dtype" in part.config else part.config
        write_json(folder / name / "config.json", config)
    words = None if settings.clips is None else _words_of(Path(settings.clips))
    set_own(folder, knows=settings.knows, words=words, things=list(settings.things) or None)
    if settings.steps:
        set_own(folder, steps=list(settings.steps))
    for name in files_of(folder):  # other files in `out`, such as a model card, stay
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, out / name)
    shutil.rmtree(folder)
    yield Packaged(settings.out, sum(part.bytes for part in Checkpoint.open(out).components.values()))


def _words_of(clips: Path) -> list[str]:
    return sorted({word for caption in captions_of(clips) for word in words_of(caption)})


def _tensors(part: Component, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    files, state = WeightFiles(), {}
    for name, info in part.tensors.items():
        state[name] = torch.empty(info.shape, dtype=dtype)
        files.read(StoredTensor(info), state[name])
    files.close()
    return state


def _require_same_latents(one: Component, other: Component) -> None:
    for key in ("latents_mean", "latents_std"):
        if one.config[key] != other.config[key]:
            raise InputError(
                f"the transformer of {one.folder.parent} was trained on latents that {other.folder} does not decode",
                hint='train that VAE with `part = "decoder"`, which leaves the latents what they are',
            )
