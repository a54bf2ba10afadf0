"""A film of `tiny` in each dtype against golden pictures of it, which diffusers made in float32.

The golden is a sheet: a row a chunk, with some of the chunk's frames. `golden/tiny.json` records its prompt and how it
was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from helios_cli.bench.fidelity import psnr_db
from helios_cli.bench.screening import Showing, films
from helios_cli.engine import arithmetic
from helios_cli.engine.models import Models
from helios_cli.model.products import Tried, take
from helios_cli.units import FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.names import EMBEDDED, EMBEDDED_FOLDER

PICTURES = Path(__file__).with_name("golden") / "tiny.png"
PROVENANCE = PICTURES.with_suffix(".json")

CHUNKS = 4
MOMENTS = (0, 7, 14, 21, 28)
"""Frames of a chunk in the golden. diffusers leaves out a film's last three."""

LEAST_DB = {"bfloat16": 35.0, "float16": 45.0, "float32": 60.0}
"""Least PSNR of every chunk where arithmetic is right. Measured, the least of four chunks: 45 in bfloat16, 58 in
float16, and in float32 no pixel further off than rounding, on instructions from AVX2 to AMX. A wrong product has 12 to
25."""


@dataclass(frozen=True)
class Golden:
    prompt: str
    seed: int
    frames: np.ndarray
    """uint8 [CHUNKS, len(MOMENTS), height, width, 3]."""


@dataclass(frozen=True)
class Tested:
    """One dtype: its products, and the PSNR of each chunk of the film against the golden, in dB."""

    dtype: str
    products: list[Tried]
    chunks: list[float]

    @property
    def least(self) -> float:
        return LEAST_DB[self.dtype]

    @property
    def is_right(self) -> bool:
        """Return whether the film is right and no product that runs is wrong: it would be right without this test,
        too."""
        products = all(one.is_right or not one.runs for one in self.products)
        return products and all(psnr >= self.least for psnr in self.chunks)


def test(device: torch.device) -> Iterator[Tested]:
    """Try the products of every dtype anew, and render the film. Raises what `helios render` raises."""
    golden, checkpoint = read_golden(), Checkpoint.open(EMBEDDED_FOLDER)
    for dtype in LEAST_DB:
        models = Models(checkpoint, device, getattr(torch, dtype), name=EMBEDDED)
        products = arithmetic.tried(models, anew=True)
        take(products, device)
        (film,) = films(models, [golden.prompt], CHUNKS * FRAMES_PER_CHUNK, Showing(seed=golden.seed))
        yield Tested(dtype, products, psnr(chosen(film), golden.frames))


def provenance() -> dict[str, Any]:
    """Return the golden's prompt and seed, and how it was made."""
    return json.loads(PROVENANCE.read_text(encoding="utf-8"))


def read_golden() -> Golden:
    about = provenance()
    rows = np.split(np.asarray(Image.open(PICTURES).convert("RGB")), CHUNKS)
    frames = np.stack([np.stack(np.split(row, len(MOMENTS), axis=1)) for row in rows])
    return Golden(about["prompt"], about["seed"], frames)


def chosen(film: np.ndarray) -> np.ndarray:
    """Return the frames of a film that the golden has."""
    return np.stack([film[chunk * FRAMES_PER_CHUNK + np.array(MOMENTS)] for chunk in range(CHUNKS)])


def sheet(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([np.concatenate(list(row), axis=1) for row in frames])


def psnr(frames: np.ndarray, golden: np.ndarray) -> list[float]:
    """Return the PSNR of each chunk in dB; 100 for pictures that are equal or nearly so."""
    pairs = zip(frames, golden, strict=True)
    return [psnr_db(torch.from_numpy(ours), torch.from_numpy(other), 255) for ours, other in pairs]
