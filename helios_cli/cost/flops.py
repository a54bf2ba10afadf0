"""Multiply-adds of the products, counted as 2 operations each, as `torch.utils.flop_counter` does.

What the engine does not compute is not counted: keys and values of the prompt are made once a prompt and not once a
call, all padding is one row, the last block leaves the history out. Norms, the modulation rows (0.7 GFLOP a timestep in
the 14B model, once a film) and the samplers are not counted either: together they are below a thousandth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from helios_cli.cost.shapes import DiTShape, TextShape, patch_cells
from helios_cli.cost.tokens import HistoryTokens


@dataclass(frozen=True)
class CallFlops:
    """One model call, by part.

    Attributes:
        self_attention: all rows' queries against all rows' keys and values.
        projections: queries, keys, values and output of the self-attention.
        cross_attention: noisy rows against the prompt, with its query and output projections.
        feed_forward: the two products of each block.
        embedding: noise to tokens, tokens to flow.
    """

    self_attention: int
    projections: int
    cross_attention: int
    feed_forward: int
    embedding: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def call_flops(dit: DiTShape, history: int, noisy: int, text_rows: int) -> CallFlops:
    """A forward of the transformer over `history` + `noisy` rows and `text_rows` rows of text."""
    width, before_last, rows = dit.width, dit.num_layers - 1, history + noisy
    square = 2 * width * width
    guided = noisy if dit.guidance_cross_attn else rows
    guided_rows = before_last * guided + noisy
    return CallFlops(
        self_attention=4 * width * rows * (before_last * rows + noisy),
        projections=square * (before_last * 4 * rows + 2 * rows + 2 * noisy),
        cross_attention=guided_rows * (2 * square + 4 * text_rows * width),
        feed_forward=4 * width * dit.ffn_dim * (before_last * rows + noisy),
        embedding=2 * noisy * patch_cells(dit) * width * (dit.in_channels + dit.out_channels),
    )


def history_flops(dit: DiTShape, history: HistoryTokens) -> int:
    """History to tokens, once a chunk: a token covers 1, 8 and 64 patches."""
    patches = history.short + 8 * history.mid + 64 * history.long
    return 2 * dit.width * dit.in_channels * patch_cells(dit) * patches


def context_flops(dit: DiTShape, text_rows: int) -> int:
    """Keys and values of a prompt for every block, once a prompt."""
    embedder = 2 * text_rows * dit.width * (dit.text_dim + dit.width)
    return embedder + 4 * dit.num_layers * text_rows * dit.width**2


def text_flops(text: TextShape, tokens: int) -> int:
    """The text encoder on one prompt."""
    inner = text.num_heads * text.d_kv
    attention = 8 * tokens * text.d_model * inner + 4 * tokens * tokens * inner
    return text.num_layers * (attention + 6 * tokens * text.d_model * text.d_ff)


def sum_flops(parts: list[tuple[CallFlops, int]]) -> CallFlops:
    """Several kinds of calls, each as often as it says."""
    names = [field.name for field in fields(CallFlops)]
    return CallFlops(*(sum(count * getattr(call, name) for call, count in parts) for name in names))
