"""Contact sheets: what films look like at a few moments, one row a film, its caption beside it. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from helios_cli.files import replacing
from helios_cli.train.config import Count, Positive, Table
from helios_cli.units import FRAMES_PER_CHUNK

PICTURE_WIDTH = 160
"""Pictures wider than this are reduced to it."""

TEXT_WIDTH, TEXT_SIZE, GAP = 220, 13, 6
PAPER, INK, FAINT = (250, 250, 248), (30, 30, 34), (130, 130, 136)


class Samples(Table):
    """What the contact sheets of a run show; [log] says how often.

    Attributes:
        prompts: none stands for captions of the toy world whose combinations training never sees.
        count: how many of those.
        chunks: length of each film.
        pictures: of a row, evenly over the film.
        steps: of the solver, one count a stage.
        seed: of the noise, and of the captions.
    """

    prompts: tuple[str, ...] = ()
    count: Annotated[int, Field(ge=1)] = 8
    chunks: Annotated[int, Field(ge=1)] = 2
    pictures: Annotated[int, Field(ge=2)] = 8
    steps: tuple[Annotated[int, Field(ge=1)], ...] = (4, 4, 4)
    guidance: Positive = 1.0
    seed: Count = 0

    def moments(self) -> list[int]:
        """The frames to be shown, from a film's first to its last."""
        last = self.chunks * FRAMES_PER_CHUNK - 1
        return [round(i * last / (self.pictures - 1)) for i in range(self.pictures)]


@dataclass(frozen=True)
class Row:
    """A film on a sheet. `pictures`: uint8 [H, W, 3] by frame; `fault`: why there are fewer than asked for, or ""."""

    caption: str
    pictures: dict[int, np.ndarray]
    fault: str = ""


def save_sheet(path: Path, title: str, rows: Sequence[Row], size: tuple[int, int], moments: Sequence[int]) -> None:
    """Write the sheet as a PNG. `size`: (width, height) of the films; `moments`: the frames that make its columns."""
    width = min(PICTURE_WIDTH, size[0])
    height = round(size[1] * width / size[0])
    font, top = ImageFont.load_default(TEXT_SIZE), 2 * (TEXT_SIZE + GAP) + GAP
    left = TEXT_WIDTH + GAP
    canvas = (left + len(moments) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", canvas, PAPER)
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


def _wrapped(text: str, font: ImageFont.FreeTypeFont, height: int) -> str:
    """The text in lines of the column's width; those that do not fit into a row are left out."""
    lines = [""]
    for word in text.replace("\n", " \n ").split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if word == "\n" or font.getlength(longer) > TEXT_WIDTH - GAP:
            lines.append("" if word == "\n" else word)
        else:
            lines[-1] = longer
    room = max(1, height // (TEXT_SIZE + 3))
    return "\n".join(lines[:room])
