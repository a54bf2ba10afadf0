"""Small networks and clips for the tests of the phases of distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.model.dit import HeliosDiT
from helios_cli.train.data.cache import Batch
from helios_cli.train.discriminator import Heads
from helios_cli.train.networks import Networks, ThreeNetworks
from helios_cli.train.phase import Share
from helios_cli.train.phases.distill import DistillPhase
from helios_cli.train.settings.student import DistillSettings
from helios_cli.weights.checkpoint import Checkpoint

TRANSFORMER = {
    **SPECS["tiny"].transformer,
    **{"num_attention_heads": 2, "attention_head_dim": 16, "rope_dim": [6, 4, 6]},
    **{"num_layers": 3, "ffn_dim": 48, "freq_dim": 16},
}
SPEC = replace(SPECS["tiny"], transformer=TRANSFORMER)
CONFIG = DiTConfig.from_json(TRANSFORMER)
SIZE = (128, 64)
LATENT = (16, 9, 8, 16)


def network(seed: int) -> HeliosDiT:
    """Return random weights with which the flow is far from zero and reacts to all inputs."""
    torch.manual_seed(seed)
    return HeliosDiT(CONFIG).requires_grad_(False)


@contextlib.contextmanager
def watched(dit: HeliosDiT, blocks: Collection[int]) -> Iterator[list[torch.Tensor]]:
    """Collect the outputs of these blocks while sampling's call of the transformer runs, [B, S, E], in order."""
    seen = []

    def watch(advance):
        def watching(rows, *args, **kwargs) -> None:
            advance(rows, *args, **kwargs)
            seen.append(rows.x.clone())

        return watching

    with contextlib.ExitStack() as stack:
        for i in blocks:
            stack.enter_context(mock.patch.object(dit.blocks[i], "advance", watch(dit.blocks[i].advance)))
        yield seen


def checkpoint(folder: Path, kind: str) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(folder / kind, SPEC, kind=kind, seed=len(kind)))


class Clips:
    """A cache of two clips of two chunks, the same noise each time."""

    lengths = (2, 2)

    def __len__(self) -> int:
        return 2

    def refresh(self) -> int:
        return 0

    def batch(self, picks: Sequence[tuple[int, int]]) -> Batch:
        found = [self._chunk(clip, chunk) for clip, chunk in picks]
        return Batch(*(torch.stack(values) for values in zip(*found, strict=True)), [""] * len(picks))

    def _chunk(self, clip: int, chunk: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(10 * clip + chunk)
        channels, frames, height, width = LATENT
        shapes = [(channels, count, height, width) for count in (frames, 19, 1)]
        return *(torch.randn(shape, generator=generator) for shape in shapes), torch.randn(6, 64, generator=generator)

    def empty_rows(self) -> torch.Tensor:
        return torch.zeros(6, 64)


def distillation(seed: int = 0, *, networks: Networks | None = None, **memory: object) -> DistillPhase:
    """The phase on small networks in float32, its discriminator at work from step 5 on. Equal seeds, equal networks."""
    settings = DistillSettings(
        phase="distill",
        start="-",
        out="-",
        steps=1,
        dtype="float32",
        data={"clips": "-", "held_back": 0},
        matching={"real": "-", "guidance": 3.0, "critic_turns": 2},
        gan={"start": 5, "blocks": (0, 2), "channels": 16, "student": 0.5, "critic": 0.5, "r1": 3.0, "r2": 1.0},
        memory={"cache_gradients": False, "separate_backward": False, **memory},
    )
    if networks is None:
        roles = {role: network(seed + i) for i, role in enumerate(("student", "real", "fake"))}
        ways = {"checkpoint_blocks": settings.memory.checkpoint_blocks, "rest_on_host": settings.memory.rest_on_host}
        networks = ThreeNetworks(roles, torch.device("cpu"), **ways)
    torch.manual_seed(seed)
    heads = Heads(CONFIG.width, settings.gan.blocks, settings.gan.channels)
    return DistillPhase(settings, networks, heads, Clips(), SIZE, torch.device("cpu"))


def gradients(phase: DistillPhase, player: str, samples: int = 1, step: int = 5) -> dict[str, torch.Tensor]:
    """Return the gradients of one turn by parameter, those of the other player included if it got any."""
    for module in phase.players.values():
        module.zero_grad()
    phase.backward(player, Share(step=step, samples=range(samples), batch=samples, seed=0))
    named = ((f"{name}.{key}", p) for name, module in phase.players.items() for key, p in module.named_parameters())
    return {name: p.grad.clone() for name, p in named if p.grad is not None}
