"""What a run needs to go on where it stopped, and the checkpoint it leaves for others.

out/state/step-000500.pt    everything a resumed run needs; the last two are kept
out/checkpoint/             the published layout, for rendering and for the next phase
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
from helios_cli.train.config import Config
from helios_cli.weights.checkpoint import MODEL_INDEX, Checkpoint, files_of

CHECKPOINT, STATE = "checkpoint", "state"

KEPT_STATES = 2
"""The newest, and the one before it in case that one cannot be read."""

FREE_TO_CHANGE = ("out", "steps", "max_minutes", "log", "samples", "knows", "memory")
"""Keys that a resumed run may have otherwise, with all below them but FIXED: they change no gradient."""

FIXED = ("memory.adapters",)
"""What is trained, not only how."""


def open_start(path: Path | str) -> Checkpoint:
    """The checkpoint in the folder `path`, or of the run there."""
    path = Path(path)
    inner = path / CHECKPOINT
    return Checkpoint.open(inner if (inner / MODEL_INDEX).exists() else path)


def save_state(folder: Path, step: int, state: dict) -> Path:
    """Write `state` as that of `step` to the run `folder`: all of it or nothing. Returns the file."""
    states = folder / STATE
    file = states / f"step-{step:08d}.pt"
    with replacing(file, durable=True) as new, new.open("wb") as out:  # given a path, torch refuses a name like .new-12
        torch.save(state, out)
    for old in [*states.glob(".new-*"), *sorted(states.glob("step-*.pt"))[:-KEPT_STATES]]:
        old.unlink()
    return file


def load_state(folder: Path) -> dict | None:
    """The newest state of the run `folder` that can be read; None if it has none. CheckpointError if none can."""
    faults = []
    for file in sorted((folder / STATE).glob("step-*.pt"), reverse=True):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
            faults.append(f"{file} ({error})")
    if faults:
        raise CheckpointError(
            f"no state of the run can be read: {'; '.join(faults)}",
            hint=f"to begin again, remove {folder / STATE}",
        )
    return None


def trained_state(player: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a player without the parameters that are frozen, such as a shared backbone's."""
    frozen = {id(p) for p in player.parameters() if not p.requires_grad}
    state = player.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in state.items() if id(value) not in frozen}


def check_same(config: Config, saved: dict, folder: Path) -> None:
    """InputError if the run that `saved` settings began would go on with others."""
    changed = [
        f"{key} was {before!r}, is {now!r}"
        for key, before, now in _differences(saved, config.model_dump(mode="json"))
        if key in FIXED or key.split(".")[0] not in FREE_TO_CHANGE
    ]
    if changed:
        raise InputError(
            f"the run in {folder} was begun with other settings: {'; '.join(changed)}",
            hint="put them back to go on, or name another folder with `out`",
        )


def _differences(before: dict, now: dict, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """(key, value before, value now) of what differs. A key that one side lacks came, or went, with another version."""
    for key in sorted(before.keys() & now.keys()):
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            yield from _differences(before[key], now[key], f"{prefix}{key}.")
        elif before[key] != now[key]:
            yield f"{prefix}{key}", before[key], now[key]


def open_folder(config: Config) -> None:
    """Make the run's folder. InputError if it holds something else, or what the run starts from."""
    out = config.folder
    if config.start is not None:
        start = Path(config.start).resolve()
        if out.resolve() in (start, start.parent):
            raise InputError(f"the run would overwrite what it starts from, {config.start}", hint="name another `out`")
    require_own(out, STATE, "run")
    (out / STATE).mkdir(parents=True, exist_ok=True)


def require_own(out: Path, mark: str, what: str) -> None:
    """InputError if something is at `out` that is no folder of ours: one that is empty, or has an entry `mark`."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", hint="name a folder with `out`")
    if out.is_dir() and any(out.iterdir()) and not (out / mark).exists():
        raise InputError(f"{out} holds other files and no {what}", hint="name a new folder with `out`")


def prepare_checkpoint(folder: Path, start: Checkpoint | None, seed: int) -> Path:
    """Make the run's checkpoint folder anew: a copy of `start`, or random weights of the size tiny."""
    target, new = folder / CHECKPOINT, folder / f"{CHECKPOINT}.new"
    shutil.rmtree(new, ignore_errors=True)
    if start is None:
        from helios_cli.bench.specs import SPECS
        from helios_cli.bench.synthetic import write_checkpoint  # with the whole engine, which training has no need of

        write_checkpoint(new, SPECS["tiny"], seed=seed, kind="base")
    else:
        for name in files_of(start.path):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(start.path / name, new / name)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(new, target)
    return target
