"""What a model call reads: rows of history, of noise and of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from helios_cli.architecture import DiTConfig
from helios_cli.cost.model import Model
from helios_cli.units import LATENTS_PER_CHUNK, LONG_TERM, MAX_TEXT_TOKENS, MID_TERM, SHORT_TERM, grid_of
from helios_cli.weights.tokenizer import read_tokenizer, tokens_of

READ_TOKENIZER = 4 * 2**20
"""Size up to which a tokenizer is read to count tokens. The published one, of 256,000 words, takes over a second."""

CHARACTERS_PER_TOKEN = 4
"""Of English, where the tokenizer is not read."""

PAD_ROWS = {"float32": 1, "bfloat16": 2, "float16": 2}
"""Rows that stand for all padding of a prompt; in bfloat16 a quarter of the lengths needs a third."""


@dataclass(frozen=True)
class HistoryTokens:
    """By term; `short` is the anchor and the newest frame."""

    long: int
    mid: int
    short: int

    @property
    def total(self) -> int:
        return self.long + self.mid + self.short


def history_tokens(dit: DiTConfig, size: tuple[int, int]) -> HistoryTokens:
    """History is patchified at full size whatever the stage: mid 2 times and long 4 times coarser than short."""
    rows, columns = grid_of(size, dit.patch_size)

    def term(frames: int, coarser: int) -> int:
        return ceil(frames / dit.patch_size[0] / coarser) * ceil(rows / coarser) * ceil(columns / coarser)

    return HistoryTokens(term(LONG_TERM, 4), term(MID_TERM, 2), term(1 + SHORT_TERM, 1))


def noisy_tokens(dit: DiTConfig, size: tuple[int, int], stages: int) -> tuple[int, ...]:
    """Rows that a call denoises, by stage, coarsest first."""
    grids = (grid_of(size, dit.patch_size, stages - 1 - stage) for stage in range(stages))
    return tuple(LATENTS_PER_CHUNK // dit.patch_size[0] * rows * columns for rows, columns in grids)


@dataclass(frozen=True)
class PromptTokens:
    """Tokens by prompt, end token included, at most 512. `counted`: by the model's own tokenizer, else estimated.

    `lost` are the prompts that are longer, with the end of them that the model does not see.
    """

    tokens: dict[str, int]
    counted: bool
    lost: dict[str, str]

    def rows(self, prompts: Iterable[str], dtype: str) -> int:
        """Rows of text that a cross-attention reads for a mix of prompts."""
        longest = max(self.tokens[prompt] for prompt in prompts)
        return min(MAX_TEXT_TOKENS, longest + PAD_ROWS[dtype])


def count_tokens(model: Model, prompts: Iterable[str]) -> PromptTokens:
    file = model.checkpoint.tokenizer if model.checkpoint else None
    if file is None or file.stat().st_size > READ_TOKENIZER:
        estimates = {text: min(MAX_TEXT_TOKENS, len(text) // CHARACTERS_PER_TOKEN + 1) for text in prompts}
        return PromptTokens(estimates, counted=False, lost={})
    tokenizer = read_tokenizer(file)
    tokens, lost = {}, {}
    for text in dict.fromkeys(prompts):
        ids, left = tokens_of(text, tokenizer, model.text.vocab_size)
        tokens[text] = len(ids)
        if left:
            lost[text] = left
    return PromptTokens(tokens, counted=True, lost=lost)
