"""A folder of what a teacher made: states along its way, and where each stage ended. Written shard by shard.

pairs.json                  what the pairs were made with
NAME.pairs.safetensors      M pairs, float16: `past` [M, C, 19, H, W], `anchor` [M, C, 1, H, W], `rows` [M, K, E],
                            and for each stage k `states.k` [M, n, C, 9, h, w] and `end.k` [M, C, 9, h, w]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helios_cli.errors import InputError
from helios_cli.files import replacing
from helios_cli.film.disk import disk_errors
from helios_cli.train.history import Lesson
from helios_cli.train.rollout import Walk

NOTE = "pairs.json"
SUFFIX = ".pairs.safetensors"


@dataclass(frozen=True)
class PairsNote:
    """What a folder's pairs are made with; with anything else they belong into another folder.

    Attributes:
        made_with: identities and settings, by name.
        kept: states of each stage.
        size: width and height in pixels.
    """

    made_with: dict[str, str]
    kept: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Pairs:
    """B pairs of one stage. `states`: [B, n, C, 9, h, w], `end`: [B, C, 9, h, w]; `lesson.target` is that end."""

    lesson: Lesson
    states: Tensor
    end: Tensor


class PairsFolder:
    """The pairs of a folder. InputError if it is none, or has no pair yet."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.note = read_note(self.folder)
        self._load = lru_cache(None)(load_file)
        paths = sorted(self.folder.glob(f"*{SUFFIX}"))
        self._places = [(path, i) for path in paths for i in range(len(self._load(path)["past"]))]
        if not self._places:
            raise InputError(f"{self.folder} has no pairs yet", hint="helios train recipes/train/tiny-pairs.toml")

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, picks: Sequence[int], stage: int) -> Pairs:
        """Some pairs' history, and what the teacher did in a stage, float32."""
        found = [(self._load(path), i) for path, i in (self._places[pick] for pick in picks)]

        def all_of(name: str) -> Tensor:
            return torch.stack([tensors[name][i] for tensors, i in found]).float()

        end = all_of(f"end.{stage}")
        lesson = Lesson(end, all_of("past"), all_of("anchor"), all_of("rows"), [], [])
        return Pairs(lesson, all_of(f"states.{stage}"), end)


def open_pairs(folder: Path, note: PairsNote) -> None:
    """Begin a folder, or go on with one made with the same. InputError if it was made with something else."""
    if not (folder / NOTE).exists():
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / NOTE) as new:  # other processes may be about to read it
                new.write_text(json.dumps(vars(note), indent=2) + "\n", encoding="utf-8")
        return
    found = read_note(folder)
    before, now = ({"kept": str(n.kept), "size": str(n.size), **n.made_with} for n in (found, note))
    changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        raise InputError(
            f"the pairs in {folder} were made otherwise: {'; '.join(changed)}",
            hint="write another `out`, or remove the folder",
        )


def read_note(folder: Path) -> PairsNote:
    """InputError if the folder holds no pairs."""
    try:
        fields = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return PairsNote(fields["made_with"], fields["kept"], tuple(fields["size"]))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no {NOTE}, so it holds no pairs of a teacher",
            hint="make them first: helios train recipes/train/tiny-pairs.toml",
        ) from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{folder / NOTE} cannot be read: {error}", hint=f"remove {folder}") from error


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}{SUFFIX}"


def write_pairs(path: Path, lesson: Lesson, walks: Sequence[Walk]) -> None:
    """Write the pairs of a batch as one shard, which appears whole or not at all."""
    tensors = {"past": lesson.past, "anchor": lesson.anchor, "rows": lesson.rows}
    for k, walk in enumerate(walks):
        tensors |= {f"states.{k}": walk.states.transpose(0, 1), f"end.{k}": walk.end}
    halves = {name: tensor.cpu().half().contiguous() for name, tensor in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in halves.values()):
        raise InputError(f"the teacher's pairs for {path} are not finite numbers", hint="train the teacher on")
    with disk_errors(path), replacing(path) as new:
        save_file(halves, new)
