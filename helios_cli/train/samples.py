"""Films of a network that is being trained, by the engine that renders all films, as contact sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helios_cli.bench.specs import SCHEDULERS
from helios_cli.engine.chunks import render_chunks
from helios_cli.errors import PictureError
from helios_cli.film.screen import Screen
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.train.held import HeldModels
from helios_cli.train.sheet import Row, Samples, save_sheet
from helios_cli.train.world.grammar import caption
from helios_cli.train.world.scene import draw_scene
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import PRESETS, Checkpoint


class Sampler:
    """Renders prompts with the weights of the moment; VAE and text encoder are the checkpoint's and stay loaded.

    `kind` (base, mid or distilled) decides how the transformer is sampled, whatever the checkpoint's is (and without
    CFG-Zero*, which blanks most of a short schedule);
    `transformer_config` replaces the checkpoint's where another transformer is trained. `size` is (width, height).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kind: str,
        samples: Samples,
        size: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
        *,
        transformer_config: dict | None = None,
    ) -> None:
        self.samples, self.kind, self.size = samples, kind, size
        self.models = HeldModels(_of_kind(checkpoint, kind, transformer_config), device, dtype)
        self.prompts = samples.prompts or held_out_prompts(samples.count, samples.seed)

    def sheet(self, path: Path, transformer: Mapping[str, Tensor], title: str = "") -> None:
        """Write the contact sheet of the prompts, rendered with this state dict of the transformer."""
        rows = self.rows(transformer)
        settings = f"steps {','.join(map(str, self.samples.steps))}, guidance {self.samples.guidance:g}"
        save_sheet(path, f"{title or self.kind}: {settings}", rows, self.size, self.samples.moments())

    def rows(self, transformer: Mapping[str, Tensor]) -> list[Row]:
        """One film a prompt, its pictures at `samples.moments()`. A film that is not finite says so in its row."""
        self.models.hold("transformer", transformer)
        with torch.inference_mode():
            self.models.encode([*self.prompts, ""])
        rows = [self._row(prompt, self.samples.seed + number) for number, prompt in enumerate(self.prompts)]
        self.models.release("transformer")
        return rows

    def _row(self, prompt: str, seed: int) -> Row:
        moments, kept, fault = set(self.samples.moments()), {}, ""

        def take(frames_THWC: np.ndarray) -> None:
            first = screen.num_frames - len(frames_THWC)
            kept.update({first + i: frame.copy() for i, frame in enumerate(frames_THWC) if first + i in moments})

        screen = Screen(take)
        try:
            for _ in render_chunks(self._plan(prompt, seed), self.models, screen):
                pass
        except PictureError as error:  # what a sheet is there to show
            fault = error.message
        return Row(prompt, kept, fault)

    def _plan(self, prompt: str, seed: int) -> Plan:
        chunks = tuple(
            Chunk(
                index=i,
                shot=0,
                start_frame=i * FRAMES_PER_CHUNK,
                num_frames=FRAMES_PER_CHUNK,
                prompts=((prompt, 1.0),),
                fresh=i == 0,
                seed=seed if i == 0 else None,
            )
            for i in range(self.samples.chunks)
        )
        return Plan(
            title="samples",
            chunks=chunks,
            num_frames=len(chunks) * FRAMES_PER_CHUNK,
            fps=DEFAULT_FPS,
            size=self.size,
            negative="",
            steps=self.samples.steps[-1:] if self.kind == "base" else self.samples.steps,
            guidance=self.samples.guidance,
        )


def _of_kind(checkpoint: Checkpoint, kind: str, transformer_config: dict | None) -> Checkpoint:
    if transformer_config is not None:
        transformer = replace(checkpoint.component("transformer"), config=transformer_config)
        checkpoint = replace(checkpoint, components={**checkpoint.components, "transformer": transformer})
    return replace(checkpoint, kind=kind, preset=PRESETS[kind], scheduler=SCHEDULERS[kind])


def held_out_prompts(count: int, seed: int) -> tuple[str, ...]:
    """Captions of the toy world with combinations that training never sees."""
    return tuple(caption(draw_scene(seed + i, split="held_out"), seed + i) for i in range(count))
