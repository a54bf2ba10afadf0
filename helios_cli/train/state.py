"""A run's saved states, from which it resumes, and the checkpoint that it leaves for others.

out/state/step-000500.pt    everything a resumed run needs; the last two are kept
out/checkpoint/             the published layout, for rendering and for the next phase
out/lora.safetensors        in place of it, a LoRA of the start
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from helios_cli.errors import CheckpointError, InputError
from helios_cli.files import replacing
from helios_cli.train.settings.run import TrainingSettings
from helios_cli.weights.checkpoint import MODEL_INDEX, Checkpoint, files_of
from helios_cli.weights.hub import find
from helios_cli.weights.names import NAMES
from helios_cli.weights.source import source_of

CHECKPOINT, LORA, STATE = "checkpoint", "lora.safetensors", "state"

KEPT_STATES = 2
"""The newest one, and the one before it in case the newest cannot be read."""

FREE_TO_CHANGE = ("out", "steps", "max_minutes", "log", "samples", "knows", "memory")
"""Keys that may change when a run resumes, with all keys below them except FIXED: they change no gradient."""

FIXED = ("memory.adapters",)
"""Keys of the above that decide what is trained."""


def open_start(start: str) -> Checkpoint:
    """Open the checkpoint in a folder, that of the run there, or that of a known model, which is not downloaded."""
    path = find(source_of(start)) if start in NAMES else Path(start)
    if path is None:
        raise CheckpointError(f"the model {start} is not on this disk", hint=f"run: helios models pull {start}")
    if (path / LORA).exists() and not (path / CHECKPOINT).exists():
        raise CheckpointError(
            f"{start} is a run that left a LoRA, not a checkpoint",
            hint=f"merge it first: helios models convert MODEL --lora {path / LORA}",
        )
    inner = path / CHECKPOINT
    return Checkpoint.open(inner if (inner / MODEL_INDEX).exists() else path)


def save_state(folder: Path, step: int, state: dict) -> None:
    """Write `state` as that of `step` to the run `folder`, atomically."""
    states = folder / STATE
    # torch refuses a path that looks like .new-12, but takes an open file.
    with replacing(states / f"step-{step:08d}.pt", durable=True) as new, new.open("wb") as out:
        torch.save(state, out)
    for old in [*states.glob(".new-*"), *sorted(states.glob("step-*.pt"))[:-KEPT_STATES]]:  # a killed run leaves .new-*
        old.unlink()


def load_state(folder: Path) -> dict | None:
    """Return the newest readable state of the run `folder`; None without any. CheckpointError if none is readable."""
    faults = []
    for file in sorted((folder / STATE).glob("step-*.pt"), reverse=True):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
            faults.append(f"{file} ({error})")
    if faults:
        raise CheckpointError(
            f"no state of the run can be read: {'; '.join(faults)}",
            hint=f"to start again, remove {folder / STATE}",
        )
    return None


def trained_state(player: nn.Module) -> dict[str, Tensor]:
    """Return a player's parameters and buffers, without frozen parameters such as a shared backbone's."""
    frozen = {id(p) for p in player.parameters() if not p.requires_grad}
    state = player.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in state.items() if id(value) not in frozen}


def check_same(settings: TrainingSettings, saved: dict) -> None:
    """InputError if settings differ from the `saved` ones in a way that would make it another run."""
    changed = [
        f"{key} was {before!r}, is {now!r}"
        for key, before, now in _differences(saved, settings.model_dump(mode="json"))
        if key in FIXED or key.split(".")[0] not in FREE_TO_CHANGE
    ]
    if changed:
        raise InputError(
            f"the run in {settings.folder} was started with other settings: {'; '.join(changed)}",
            hint="restore them to continue it, or name another folder with `out`",
        )


def _differences(before: dict, now: dict, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield (key, value before, value now) of keys that both have: others come from another version of helios."""
    for key in sorted(before.keys() & now.keys()):
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            yield from _differences(before[key], now[key], f"{prefix}{key}.")
        elif before[key] != now[key]:
            yield f"{prefix}{key}", before[key], now[key]


def open_folder(settings: TrainingSettings) -> None:
    """Make the run's folder. InputError if it holds something else, or the run's start."""
    out = settings.folder
    if settings.start is not None:
        start = Path(settings.start).resolve()
        if out.resolve() in (start, start.parent):
            raise InputError(f"the run would overwrite its start, {settings.start}", hint="name another `out`")
    require_own(out, STATE, "run")
    (out / STATE).mkdir(parents=True, exist_ok=True)


def require_own(out: Path, mark: str, what: str) -> None:
    """InputError if `out` exists and is neither an empty folder nor one with an entry `mark`."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", hint="name a folder with `out`")
    if out.is_dir() and any(out.iterdir()) and not (out / mark).exists():
        raise InputError(f"{out} holds other files, but no {what}", hint="name a new folder with `out`")


def prepare_checkpoint(checkpoint: Path, start: Checkpoint | None, seed: int) -> None:
    """Replace the run's checkpoint folder by a copy of `start`, or by random weights of the size tiny."""
    new = checkpoint.with_name(f"{checkpoint.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    if start is None:
        from helios_cli.bench.specs import SPECS
        from helios_cli.bench.synthetic import write_checkpoint  # imports the whole engine

        write_checkpoint(new, SPECS["tiny"], seed=seed, kind="base")
    else:
        copy_files(start.path, new, files_of(start.path))
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(new, checkpoint)


def copy_files(source: Path, target: Path, names: list[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
