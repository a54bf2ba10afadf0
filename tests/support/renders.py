"""Renders of ours for tests: a plan from an oracle's case, and the frames that come out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.history import History
from helios_cli.engine.models import Models
from helios_cli.film.writer import open_writer
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Case:
    """A film that both sides render. `size` is (width, height)."""

    kind: str
    size: tuple[int, int]
    steps: tuple[int, ...]
    chunks: int = 4
    prompt: str = "a red circle moves left over the blue background"
    negative: str = "green square"
    seed: int = 7
    image: Path | None = None
    video: Path | None = None
    reanchor: bool = False

    @property
    def guidance(self) -> float:
        return 1.0 if self.kind == "distilled" else 5.0


def plan_of(case: Case) -> Plan:
    chunks = tuple(
        Chunk(
            index=i,
            shot=0,
            start_frame=33 * i,
            num_frames=33,
            prompts=((case.prompt, 1.0),),
            fresh=i == 0,
            seed=case.seed if i == 0 else None,
            image=case.image if i == 0 else None,
            video=case.video if i == 0 else None,
        )
        for i in range(case.chunks)
    )
    return Plan("test", chunks, 33 * case.chunks, 24, case.size, case.negative, case.steps, case.guidance)


def ended_early(plan: Plan, frames: int = 9) -> Plan:
    """The plan with so many frames of its last chunk: the VAE decodes no more, which is most of a small film's time."""
    *chunks, last = plan.chunks
    return replace(plan, chunks=(*chunks, replace(last, num_frames=frames)), num_frames=last.start_frame + frames)


def models_of(folder: Path, dtype: torch.dtype = torch.float32) -> Models:
    return Models(Checkpoint.open(folder), torch.device("cpu"), dtype)


def rendered(
    case: Case, folder: Path, out: Path, dtype: torch.dtype = torch.float32, plan: Plan | None = None
) -> np.ndarray:
    """Frames [T, H, W, 3], through the whole render loop and read back from the picture folder it wrote."""
    plan = plan or plan_of(case)
    writer = open_writer(f"{out}/", size=plan.size, fps=plan.fps)
    for _ in render_chunks(plan, models_of(folder, dtype), writer, reanchor=case.reanchor):
        pass
    return np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])


@contextmanager
def latents_of() -> Iterator[list[torch.Tensor]]:
    """Collect the latents of every chunk rendered inside the block."""
    latents: list[torch.Tensor] = []
    remember = History.remember

    def noting(self, chunk, **how):
        latents.append(chunk.clone())
        return remember(self, chunk, **how)

    with mock.patch.object(History, "remember", noting):
        yield latents


def differing(frames: np.ndarray, expected: np.ndarray) -> float:
    """Share of samples off by more than one level. The reference drops the last 3 of 132 frames, we keep them."""
    off = np.abs(frames[: len(expected)].astype(int) - expected.astype(int)) > 1
    return off.mean()


def smooth_frames(count: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """A moving pattern without sharp edges, uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]] / 40
    phase = rng.uniform(0, 6, 3)
    waves = [np.stack([np.sin(x * (c + 1) + y + phase[c] + t / 15) for c in range(3)], axis=-1) for t in range(count)]
    return (127.5 + 120 * np.stack(waves)).astype(np.uint8)
