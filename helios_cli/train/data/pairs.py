"""A folder of a teacher's pairs: states along its way, and the end point of each stage. Written shard by shard.

pairs.json                  what the pairs were made with
NAME.pairs.safetensors      M pairs, float16: `past` [M, C, 19, H, W], `anchor` [M, C, 1, H, W], `rows` [M, K, E],
                            and for each stage k `states.k` [M, n, C, 9, h, w] and `end.k` [M, C, 9, h, w]
"""

from __future__ import annotations

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
from helios_cli.train.data.cache import read_note, require_same, write_note
from helios_cli.train.history import Lesson
from helios_cli.train.rollout import Walk

NOTE = "pairs.json"
SUFFIX = ".pairs.safetensors"
MAKE_FIRST = "make them first: helios train recipes/train/tiny-pairs.toml"


@dataclass(frozen=True)
class PairsNote:
    """The making of a folder's pairs: anything else needs another folder.

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
    """The pairs of a folder. InputError if it holds none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.note = read_pairs_note(self.folder)
        self._load = lru_cache(None)(load_file)
        paths = sorted(self.folder.glob(f"*{SUFFIX}"))
        self._places = [(path, i) for path in paths for i in range(len(self._load(path)["past"]))]
        if not self._places:
            raise InputError(f"{self.folder} has no pairs yet", hint=MAKE_FIRST)

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, picks: Sequence[int], stage: int) -> Pairs:
        """Return some pairs' history, and the teacher's states and end point of a stage, float32."""
        rows = [(self._load(path), i) for path, i in (self._places[pick] for pick in picks)]

        def all_of(name: str) -> Tensor:
            return torch.stack([tensors[name][i] for tensors, i in rows]).float()

        end = all_of(f"end.{stage}")
        lesson = Lesson(end, all_of("past"), all_of("anchor"), all_of("rows"), [], [])
        return Pairs(lesson, all_of(f"states.{stage}"), end)


def open_pairs(folder: Path, note: PairsNote) -> None:
    """Begin a folder, or continue one made with the same note. InputError if it was made with something else."""
    if not (folder / NOTE).exists():
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_note(folder / NOTE, vars(note))
        return
    now = {"kept": str(note.kept), "size": str(note.size), **note.made_with}
    found = read_pairs_note(folder)
    before = {"kept": str(found.kept), "size": str(found.size), **found.made_with}
    require_same(f"the pairs in {folder} were", {key: before.get(key) for key in now}, now)


def read_pairs_note(folder: Path) -> PairsNote:
    """InputError if the folder holds no pairs."""
    return read_note(
        folder / NOTE,
        lambda fields: PairsNote(fields["made_with"], fields["kept"], tuple(fields["size"])),
        missing=f"{folder} has no {NOTE}, so it holds no pairs of a teacher",
        hint=MAKE_FIRST,
    )


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}{SUFFIX}"


def write_pairs(path: Path, lesson: Lesson, walks: Sequence[Walk]) -> None:
    """Write the pairs of a batch as one shard, atomically."""
    tensors = {"past": lesson.past, "anchor": lesson.anchor, "rows": lesson.rows}
    for k, walk in enumerate(walks):
        tensors |= {f"states.{k}": walk.states.transpose(0, 1), f"end.{k}": walk.end}
    halves = {name: tensor.cpu().half().contiguous() for name, tensor in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in halves.values()):
        raise InputError(f"the teacher's pairs for {path} are not finite numbers", hint="train the teacher longer")
    with disk_errors(path), replacing(path) as new:
        save_file(halves, new)
