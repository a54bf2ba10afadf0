"""The phase that trains the text encoder of a small model to represent what a caption says.

A linear head reads the background, and the colour, shape and motion of the object, from each token's row alone, so
every row has to hold all of it. The encoder thus learns which colour belongs to what, and the transformer, which learns
slowly, does not have to. The head is discarded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from helios_cli.bench.specs import SPECS, word_tokenizer
from helios_cli.model.umt5 import UMT5Config, UMT5Encoder
from helios_cli.train.phase import Phase, Share
from helios_cli.train.settings.encoders import TextSettings
from helios_cli.train.world.captions import Attributes, caption_with_labels
from helios_cli.train.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from helios_cli.train.world.scene import Split, draw_scene
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.layout import write_component
from helios_cli.weights.load import load_component
from helios_cli.weights.tokenizer import read_tokenizer

NAMES = {"background": tuple(BACKGROUNDS), "colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}
"""The attributes that are read from a caption, and their values."""

PROBED = 128
"""Number of held-out captions that the probe reads."""


class Reader(nn.Module):
    """The encoder with a head on top."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.encoder = UMT5Encoder(config)
        self.head = nn.Linear(config.d_model, sum(map(len, NAMES.values())))

    def forward(self, tokens_BS: Tensor) -> dict[str, Tensor]:
        """Return the logits [B, S, values] of each attribute, for captions of one length."""
        logits = self.head(torch.vmap(self.encoder)(tokens_BS))
        return dict(zip(NAMES, logits.split([len(values) for values in NAMES.values()], dim=-1), strict=True))


class TextPhase(Phase):
    def __init__(self, settings: TextSettings, reader: Reader, tokenizer: Tokenizer, device: torch.device) -> None:
        self.players = {"text_encoder": reader}
        self._settings, self._reader, self._tokenizer, self._device = settings, reader, tokenizer, device

    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        seeds = (draw_seed(share.generator(sample)) for sample in share.samples)
        losses = {name: torch.zeros((), device=self._device) for name in NAMES}
        for tokens_BS, truth in self._by_length(seeds, "train"):
            for name, logits in self._reader(tokens_BS).items():
                # Every caption has the same weight, whatever its length.
                each = F.cross_entropy(logits.transpose(1, 2), truth[name], reduction="sum") / tokens_BS.shape[1]
                losses[name] = losses[name] + each / share.batch
        sum(losses.values()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def probe(self, share: Share) -> dict[str, float]:
        """Return the share of tokens of held-out captions from which each attribute is read correctly."""
        right, tokens = dict.fromkeys(NAMES, 0.0), 0
        # With gradients, since vmap does not support the products of inference.
        for tokens_BS, truth in self._by_length(range(PROBED), "held_out"):
            tokens += tokens_BS.numel()
            for name, logits in self._reader(tokens_BS).items():
                right[name] += (logits.argmax(-1) == truth[name]).sum().item()
        part = len(share.samples) / share.batch  # all processes find the same, and the sum is taken
        return {name: part * count / tokens for name, count in right.items()}

    def save(self, folder: Path) -> None:
        write_component(folder, "text_encoder", self._reader.encoder, dtype=torch.float32)

    def _by_length(self, seeds: Iterable[int], split: Split) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Return captions of scenes by their number of tokens: ids [B, S], and the true attributes, [B, S] each."""
        groups = defaultdict(list)
        for seed in seeds:
            scene = draw_scene(seed, split=split, variety=self._settings.data.world)
            text, labels = caption_with_labels(scene, seed)
            ids = self._tokenizer.encode(text).ids
            groups[len(ids)].append((ids, indices(labels)))
        return [self._tensors(*zip(*group, strict=True)) for group in groups.values()]

    def _tensors(self, ids: Sequence[list[int]], truths: Sequence[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens_BS = torch.tensor(ids, device=self._device)
        columns = torch.tensor(truths, device=self._device).unbind(1)
        return tokens_BS, {name: c[:, None].expand_as(tokens_BS) for name, c in zip(NAMES, columns, strict=True)}


def indices(labels: Attributes) -> list[int]:
    """Return the index of each attribute's value in NAMES."""
    return [values.index(getattr(labels, name)) for name, values in NAMES.items()]


def draw_seed(generator: torch.Generator) -> int:
    """Draw the seed of a scene."""
    return int(torch.randint(2**31, (), generator=generator))


def build(settings: TextSettings, start: Checkpoint | None, device: torch.device) -> TextPhase:
    """Return the phase, with the text encoder and tokenizer of `start` or new ones."""
    source = SPECS["tiny"].text_encoder if start is None else start.components["text_encoder"].config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        reader = Reader(UMT5Config.from_json(source))
    if start is not None:
        load_component(reader.encoder, start.components["text_encoder"], device="cpu", dtype=torch.float32)
        reader.requires_grad_(True)
    tokenizer = word_tokenizer() if start is None else read_tokenizer(start.tokenizer)
    return TextPhase(settings, reader.to(device), tokenizer, device)
