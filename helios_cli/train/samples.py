"""Contact sheets of a network in training: films rendered by the engine, one row each, with their captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from helios_cli.bench.specs import SCHEDULERS
from helios_cli.engine.chunks import render_chunks
from helios_cli.errors import PictureError
from helios_cli.files import replacing
from helios_cli.film.screen import Screen
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.train.models import InMemoryModels
from helios_cli.train.settings.run import Samples
from helios_cli.train.world.captions import caption
from helios_cli.train.world.scene import draw_scene
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import PRESETS, Checkpoint

PICTURE_WIDTH = 160
"""Wider pictures are scaled down to this."""

TEXT_WIDTH, TEXT_SIZE, GAP = 220, 13, 6
PAPER, INK, FAINT = (250, 250, 248), (30, 30, 34), (130, 130, 136)


@dataclass(frozen=True)
class Row:
    """A film on a sheet. `pictures`: uint8 [H, W, 3] by frame; `fault`: why some are missing, or ""."""

    caption: str
    pictures: dict[int, np.ndarray]
    fault: str = ""


class Sampler:
    """Renders prompts with the current weights; the VAE and text encoder are the checkpoint's and stay loaded.

    `kind` (base, mid or distilled) decides how the transformer is sampled, whatever the checkpoint's kind is, and
    without CFG-Zero*, which blanks most of a short schedule. `size` is (width, height).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kind: str,
        samples: Samples,
        size: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.samples, self.kind, self.size = samples, kind, size
        checkpoint = replace(checkpoint, kind=kind, preset=PRESETS[kind], scheduler=SCHEDULERS[kind])
        self.models = InMemoryModels(checkpoint, device, dtype)
        self.prompts = samples.prompts or held_out_prompts(samples.count, samples.seed)

    def sheet(self, path: Path, transformer: Mapping[str, Tensor], title: str = "") -> None:
        """Write the contact sheet of the prompts, rendered with this state dict of the transformer."""
        rows = self.rows(transformer)
        settings = f"steps {','.join(map(str, self.samples.steps))}, guidance {self.samples.guidance:g}"
        save_sheet(path, f"{title or self.kind}: {settings}", rows, self.size, self.samples.moments())

    def rows(self, transformer: Mapping[str, Tensor]) -> list[Row]:
        """Render each prompt and return its pictures at `samples.moments()`, or the fault of a film that fails."""
        self.models.hold("transformer", transformer)
        with torch.inference_mode():
            self.models.encode([*self.prompts, ""])
        rows = [self._row(prompt, self.samples.seed + number) for number, prompt in enumerate(self.prompts)]
        self.models.release("transformer")
        return rows

    def _row(self, prompt: str, seed: int) -> Row:
        moments, fault = set(self.samples.moments()), ""
        pictures: dict[int, np.ndarray] = {}

        def take(frames_THWC: np.ndarray) -> None:
            first = screen.num_frames - len(frames_THWC)
            pictures.update({first + i: frame.copy() for i, frame in enumerate(frames_THWC) if first + i in moments})

        screen = Screen(take)
        try:
            for _ in render_chunks(self._plan(prompt, seed), self.models, screen):
                pass
        except PictureError as error:  # a sheet exists to show such faults
            fault = error.message
        return Row(prompt, pictures, fault)

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


def held_out_prompts(count: int, seed: int) -> tuple[str, ...]:
    """Return captions of the toy world with combinations that training never sees."""
    return tuple(caption(draw_scene(seed + i, split="held_out"), seed + i) for i in range(count))


def save_sheet(path: Path, title: str, rows: Sequence[Row], size: tuple[int, int], moments: Sequence[int]) -> None:
    """Write the sheet as a PNG. `size`: (width, height) of the films; `moments`: the frames that make its columns."""
    width = min(PICTURE_WIDTH, size[0])
    height = round(size[1] * width / size[0])
    font, top = ImageFont.load_default(TEXT_SIZE), 2 * (TEXT_SIZE + GAP) + GAP
    left = TEXT_WIDTH + GAP
    sheet = Image.new("RGB", (left + len(moments) * (width + GAP), top + len(rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, font)
    for column, moment in enumerate(moments):
        draw.text((left + column * (width + GAP), TEXT_SIZE + 2 * GAP), f"{moment}", FAINT, font)
    for number, row in enumerate(rows):
        y = top + number * (height + GAP)
        text = f"{row.caption}\n{row.fault}".strip()
        draw.multiline_text((GAP, y), _wrapped(text, font, height), INK, font, spacing=2)
        for column, moment in enumerate(moments):
            if moment in row.pictures:
                picture = Image.fromarray(row.pictures[moment]).resize((width, height), Image.Resampling.BOX)
                sheet.paste(picture, (left + column * (width + GAP), y))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        sheet.save(new, format="PNG")


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, height: int) -> str:
    """Break the text into lines of the column's width, and drop lines that do not fit into a row."""
    lines = [""]
    for word in text.replace("\n", " \n ").split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if word == "\n" or font.getlength(longer) > TEXT_WIDTH - GAP:
            lines.append("" if word == "\n" else word)
        else:
            lines[-1] = longer
    return "\n".join(lines[: max(1, height // (TEXT_SIZE + 3))])
