"""What a run has learnt, by losses on clips that it does not train on.

The cheapest sign that a caption is listened to, long before films can be judged: by how much the loss rises if one
thing in the caption is another. Captions are put in plain words of the toy world for that, right and wrong alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_cli.train.data.cache import Batch
from helios_cli.train.held import HeldModels
from helios_cli.train.history import Lesson, Source
from helios_cli.train.world.grammar import MOVES, NOUNS, PLACES, Attributes, attributes
from helios_cli.train.world.palette import COLOURS, MOTIONS, SHAPES

ATTRIBUTES = tuple(field.name for field in fields(Attributes))
VALUES = {"background": tuple(COLOURS), "colour": tuple(COLOURS), "shape": tuple(SHAPES), "motion": tuple(MOTIONS)}
SEED = 20_240_601

Errors = Callable[[Lesson, int, Sequence[torch.Generator]], Tensor]
"""The loss of each sample of a lesson in a stage, [B]."""


class Probe:
    """Losses of held-back clips: their first chunks with the caption alone, and their second ones with the past."""

    def __init__(self, clips: Source, count: int, models: HeldModels, text_rows: int, *, anchor: bool = True) -> None:
        """Of the first `count` clips. `models` encode the captions; `anchor`: whether the model is taught with one."""
        lengths = clips.lengths[:count]
        self._first = clips.batch([(i, 0) for i in range(len(lengths))])
        later = [(i, 1) for i, chunks in enumerate(lengths) if chunks > 1]
        self._later = clips.batch(later) if later else None
        if self._later and not anchor:
            self._later = self._later._replace(anchor=torch.zeros_like(self._later.anchor))
        self._said = [attributes(caption) for caption in self._first.captions]
        self._models, self._text_rows = models, text_rows
        plain = [caption_of(said) for said in self._said]
        swapped = {name: [caption_of(swap(said, name)) for said in self._said] for name in ATTRIBUTES}
        with torch.inference_mode():
            models.encode([text for texts in (plain, *swapped.values()) for text in texts if text])
        self._right = self._rows(plain)
        self._wrong = {name: self._rows(texts) for name, texts in swapped.items()}

    @torch.no_grad()
    def figures(self, errors: Errors, stages: range) -> dict[str, float]:
        """By stage: `loss` of first chunks, `loss_later` of second ones, and `swap_X`, the rise of the loss as a share
        of it where X is swapped. The same noise each time."""
        found = {}
        for stage in stages:
            found[f"loss_{stage}"] = self._errors(errors, self._first, self._first.rows, stage).mean().item()
            if self._later:
                later = self._errors(errors, self._later, self._later.rows, stage, chunk=1)
                found[f"loss_later_{stage}"] = later.mean().item()
            known = torch.tensor([caption_of(said) is not None for said in self._said])
            if not known.any():
                continue
            right = self._errors(errors, self._first, self._right, stage)[known].mean()
            for name, rows in self._wrong.items():
                wrong = self._errors(errors, self._first, rows, stage)[known].mean()
                found[f"swap_{name}_{stage}"] = (wrong / right - 1).item()
        return found

    def _errors(self, errors: Errors, batch: Batch, rows: Tensor, stage: int, chunk: int = 0) -> Tensor:
        lesson = Lesson(batch.latents, batch.past, batch.anchor, rows, batch.captions, [chunk] * len(rows))
        return errors(lesson, stage, [torch.Generator().manual_seed(SEED + i) for i in range(len(rows))]).cpu()

    def _rows(self, captions: Sequence[str | None]) -> Tensor:
        """[B, text_rows, E]; zero for a caption that says nothing."""
        width = self._first.rows.shape[-1]
        rows = [self._models.prompts[text].rows.float().cpu() if text else torch.zeros(0, width) for text in captions]
        return torch.stack([F.pad(row, (0, 0, 0, self._text_rows - len(row))) for row in rows])


def caption_of(said: Attributes) -> str | None:
    """A plain caption that says so; None if something is left open."""
    if None in (said.background, said.colour, said.shape, said.motion):
        return None
    article = "an" if said.colour[0] in "aeiou" else "a"
    noun, does = NOUNS[said.shape][0], MOVES[said.motion].split("|")[0]
    where = PLACES[said.background] if said.background in PLACES else PLACES["plain"]
    place = where.split("|")[0].format(said.background).replace("a orange", "an orange")
    return f"{article} {said.colour} {noun} {does} {place}"


def swap(said: Attributes, name: str) -> Attributes:
    """Another value for one attribute: the next in its list that nothing else in the caption has, so that a wrong
    colour is not the other thing's."""
    values, own = VALUES[name], getattr(said, name)
    start = values.index(own) + 1 if own in values else 0
    turn = (values[(start + i) % len(values)] for i in range(len(values)))
    return replace(said, **{name: next(value for value in turn if value not in (said.background, said.colour, own))})
