"""Probing what a run has learnt, by losses on clips that it does not train on.

The cheapest sign that captions have an effect, long before films can be judged, is how much the loss rises when one
thing in the caption is replaced. For that, right and wrong captions are written in plain words of the toy world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_cli.train.data.cache import Batch
from helios_cli.train.history import Clips, Lesson
from helios_cli.train.models import InMemoryModels
from helios_cli.train.world.captions import MOVES, NOUNS, PLACES, Attributes, attributes
from helios_cli.train.world.palette import COLOURS, MOTIONS, SHAPES

ATTRIBUTES = tuple(field.name for field in fields(Attributes))
VALUES = {"background": tuple(COLOURS), "colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}
SEED = 20_240_601

Errors = Callable[[Lesson, int, Sequence[torch.Generator]], Tensor]
"""Returns the loss of each sample of a lesson in a stage, [B]."""


class Probe:
    """Losses of the first `count` clips: first chunks with the caption alone, and second chunks with the past.

    `models` encode the captions; `anchor`: whether the model is trained with one.
    """

    def __init__(
        self, clips: Clips, count: int, models: InMemoryModels, text_rows: int, *, anchor: bool = True
    ) -> None:
        lengths = clips.lengths[:count]
        self._first = clips.batch([(i, 0) for i in range(len(lengths))])
        later = [(i, 1) for i, chunks in enumerate(lengths) if chunks > 1]
        self._later = clips.batch(later) if later else None
        if self._later and not anchor:
            self._later = self._later._replace(anchor=torch.zeros_like(self._later.anchor))
        self._labels = [attributes(caption) for caption in self._first.captions]
        self._models, self._text_rows = models, text_rows
        plain = [caption_of(labels) for labels in self._labels]
        swapped = {name: [caption_of(swap(labels, name)) for labels in self._labels] for name in ATTRIBUTES}
        with torch.inference_mode():
            models.encode([text for texts in (plain, *swapped.values()) for text in texts if text])
        self._right = self._rows(plain)
        self._wrong = {name: self._rows(texts) for name, texts in swapped.items()}

    @torch.no_grad()
    def figures(self, errors: Errors, stages: range) -> dict[str, float]:
        """Return figures by stage: `loss` of first chunks, `loss_later` of second ones, and `swap_X`, the relative rise
        of the loss where X is swapped. The noise is the same each time."""
        figures = {}
        for stage in stages:
            figures[f"loss_{stage}"] = self._errors(errors, self._first, self._first.rows, stage).mean().item()
            if self._later:
                later = self._errors(errors, self._later, self._later.rows, stage, chunk=1)
                figures[f"loss_later_{stage}"] = later.mean().item()
            complete = torch.tensor([caption_of(labels) is not None for labels in self._labels])
            if not complete.any():
                continue
            right = self._errors(errors, self._first, self._right, stage)[complete].mean()
            for name, rows in self._wrong.items():
                wrong = self._errors(errors, self._first, rows, stage)[complete].mean()
                figures[f"swap_{name}_{stage}"] = (wrong / right - 1).item()
        return figures

    def _errors(self, errors: Errors, batch: Batch, rows: Tensor, stage: int, chunk: int = 0) -> Tensor:
        lesson = Lesson(batch.latents, batch.past, batch.anchor, rows, batch.captions, [chunk] * len(rows))
        return errors(lesson, stage, [torch.Generator().manual_seed(SEED + i) for i in range(len(rows))]).cpu()

    def _rows(self, captions: Sequence[str | None]) -> Tensor:
        """Return [B, text_rows, E]; zeros for a missing caption."""
        width = self._first.rows.shape[-1]
        rows = [self._models.prompts[text].rows.float().cpu() if text else torch.zeros(0, width) for text in captions]
        return torch.stack([F.pad(row, (0, 0, 0, self._text_rows - len(row))) for row in rows])


def caption_of(labels: Attributes) -> str | None:
    """Return a plain caption with these attributes; None if one is missing."""
    if None in (labels.background, labels.colour, labels.shape, labels.motion):
        return None
    article = "an" if labels.colour[0] in "aeiou" else "a"
    noun, does = NOUNS[labels.shape][0], MOVES[labels.motion].split("|")[0]
    where = PLACES[labels.background] if labels.background in PLACES else PLACES["plain"]
    place = where.split("|")[0].format(labels.background).replace("a orange", "an orange")
    return f"{article} {labels.colour} {noun} {does} {place}"


def swap(labels: Attributes, name: str) -> Attributes:
    """Replace one attribute by the next value in its list that nothing else in the caption has.

    A wrong colour is therefore never that of the background or the object.
    """
    values, own = VALUES[name], getattr(labels, name)
    start = values.index(own) + 1 if own in values else 0
    taken = (labels.background, labels.colour, own)
    rotated = (values[(start + i) % len(values)] for i in range(len(values)))
    return replace(labels, **{name: next(value for value in rotated if value not in taken)})
