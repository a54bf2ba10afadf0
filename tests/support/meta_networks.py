"""Our networks on the meta device: every shape, no number."""

from __future__ import annotations

import torch

from helios_cli.architecture import DiTConfig
from helios_cli.model.dit import Call, HeliosDiT
from helios_cli.model.sharded import Exchange
from helios_cli.units import grid_of

SMALL = {"num_attention_heads": 3, "attention_head_dim": 16, "rope_dim": [4, 6, 6], "num_layers": 3}
SMALL |= {"ffn_dim": 80, "text_dim": 24, "freq_dim": 32}


def on_meta(build):
    with torch.device("meta"):
        return build().requires_grad_(False)


def call(dit: HeliosDiT, size: tuple[int, int], halvings: int, prompt_tokens: int):
    """A model call's inputs as the engine makes them, and the three kinds of work, each to be counted."""
    width, height = (pixels // 8 for pixels in size)
    shape = DiTConfig()
    full, grid = (grid_of(size, shape.patch_size, times) for times in (0, halvings))
    terms = [torch.empty(1, 16, frames, height, width, device="meta") for frames in (16, 2, 2)]
    noisy = torch.empty(1, 16, 9, 2 * grid[0], 2 * grid[1], device="meta")
    rows = torch.empty(1, prompt_tokens, dit.config.text_dim, device="meta")
    found = {}
    found["history"] = lambda: found.setdefault("tokens", dit.embed_history(*terms))
    found["text"] = lambda: found.setdefault("context", dit.embed_text(rows))
    mods = dit.modulation(torch.zeros(1, device="meta"))
    found["inputs"] = lambda: Call(noisy, found["tokens"], mods, dit.rope(full, grid), found["context"])
    found["call"] = lambda: dit(*found["inputs"]())
    return found


class Counted(Exchange):
    """A rank of so many, without the others: what they give has only a shape.

    `received` counts its bytes, `exchanges` how often ranks meet."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self.rank, self.size = rank, size
        self.received = self.exchanges = 0

    def swap(self, rows: torch.Tensor, given, taken) -> torch.Tensor:
        out = rows.new_empty(sum(taken), *rows.shape[1:])
        self.exchanges += 1
        self.received += (sum(taken) - taken[self.rank]) * out[:1].nbytes
        return out
