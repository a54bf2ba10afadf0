"""Teacher forcing: a chunk of a real clip as the target, with the history that came before it.

The same three terms of history, with more or fewer of them empty (zero), serve films from text, pictures and clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Generator, Tensor

from helios_cli.errors import InputError
from helios_cli.train.corruption import corrupt
from helios_cli.train.settings.flow import CachedClips, Corruption, HistorySettings
from helios_cli.units import HISTORY_LATENTS, LATENTS_PER_CHUNK, LONG_TERM, MID_TERM, SHORT_TERM

if TYPE_CHECKING:
    from helios_cli.train.data.cache import Batch

REFRESHED_EVERY = 50
"""Number of lessons between looks for clips that were added to the cache."""

SHORT_PASTS = tuple(HISTORY_LATENTS % LATENTS_PER_CHUNK + LATENTS_PER_CHUNK * n for n in range(3))
"""The number of oldest latents that a short past lacks: after one chunk of a film, after two, and after none."""


class Clips(Protocol):
    """Clips as latents and captions: `data.cache.LatentClips`."""

    lengths: list[int]

    def __len__(self) -> int: ...

    def refresh(self) -> int: ...

    def batch(self, picks: Sequence[tuple[int, int]]) -> Batch: ...

    def empty_rows(self) -> Tensor: ...


@dataclass(frozen=True)
class Lesson:
    """B targets with their conditioning.

    Attributes:
        target: [B, C, 9, H, W], clean latents.
        past: [B, C, 19, H, W], oldest first, corrupted.
        anchor: [B, C, 1, H, W], corrupted.
        rows: [B, K, text_dim], captions.
        captions: captions as text.
        chunks: index of each target's chunk in its clip.
    """

    target: Tensor
    past: Tensor
    anchor: Tensor
    rows: Tensor
    captions: list[str]
    chunks: list[int]

    def terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `engine.history.History.terms`: long, mid, and short, which is the anchor and the newest latent."""
        long, mid, newest = self.past.split([LONG_TERM, MID_TERM, SHORT_TERM], dim=2)
        return long, mid, torch.cat([self.anchor, newest], dim=2)

    def to(self, device: torch.device) -> Lesson:
        target, past, anchor, rows = (x.to(device) for x in (self.target, self.past, self.anchor, self.rows))
        return Lesson(target, past, anchor, rows, self.captions, self.chunks)


class Lessons:
    """Draws lessons from clips. A sample depends only on its generator and on the clips in the cache.

    InputError if all clips are held back.
    """

    def __init__(self, clips: Clips, drawing: CachedClips, history: HistorySettings, corruption: Corruption) -> None:
        self.clips, self.drawing, self.history, self.corruption = clips, drawing, history, corruption
        self.empty = clips.empty_rows()
        self._lessons = self._num_clips = 0
        self._long: list[int] = []
        if len(clips) <= drawing.held_back:
            raise InputError(
                f"{drawing.clips} has {len(clips)} clips, but {drawing.held_back} are held back for the probe",
                hint="encode more, or lower data.held_back",
            )

    def draw(self, generators: Sequence[Generator]) -> Lesson:
        """Draw one sample with each generator."""
        self._refresh()
        picks = [self._pick(g) for g in generators]
        batch = self.clips.batch(picks)
        past, anchor = batch.past, batch.anchor if self.history.anchor else torch.zeros_like(batch.anchor)
        captions = list(batch.captions)
        for i, g in enumerate(generators):
            missing, anchored = self._task(g)
            past[i, :, :missing] = 0
            anchor[i] *= anchored
            if _chance(g, self.history.empty_caption):
                batch.rows[i], captions[i] = self.empty, ""
        past, anchor = corrupt(past, anchor, self.corruption, generators)
        return Lesson(batch.latents, past, anchor, batch.rows, captions, [chunk for _, chunk in picks])

    def _refresh(self) -> None:
        if self._lessons % REFRESHED_EVERY == 0:
            self.clips.refresh()
            first = max(self._num_clips, self.drawing.held_back)
            self._long += [i for i in range(first, len(self.clips)) if self.clips.lengths[i] > 1]
            self._num_clips = len(self.clips)
        self._lessons += 1

    def _pick(self, g: Generator) -> tuple[int, int]:
        """Draw a clip that is not held back, and the index of one of its chunks."""
        held, lengths = self.drawing.held_back, self.clips.lengths
        if self.drawing.first is None:
            clip = _below(g, len(self.clips) - held) + held
            return clip, _below(g, lengths[clip])
        if _chance(g, self.drawing.first) or not self._long:
            return _below(g, len(self.clips) - held) + held, 0
        clip = self._long[_below(g, len(self._long))]
        return clip, 1 + _below(g, lengths[clip] - 1)

    def _task(self, g: Generator) -> tuple[int, bool]:
        """Draw how many of the oldest latents of the past are missing, and whether there is an anchor."""
        if _chance(g, self.history.text):
            return HISTORY_LATENTS, False
        if _chance(g, self.history.image):
            return HISTORY_LATENTS - SHORT_TERM, True
        if _chance(g, self.history.short):
            return SHORT_PASTS[_below(g, len(SHORT_PASTS))], True
        return 0, True


def _chance(g: Generator, probability: float) -> bool:
    return torch.rand((), generator=g).item() < probability


def _below(g: Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=g))
