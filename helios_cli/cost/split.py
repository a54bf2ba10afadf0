"""The gain of making one film's model calls on several GPUs, from stated speeds (`model/sharded.md`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios_cli.cost.gpus import peer_rate
from helios_cli.cost.team import Team
from helios_cli.device import ITEMSIZE, gpu_index
from helios_cli.recipe.options import RenderOptions
from helios_cli.units import format_bytes

if TYPE_CHECKING:
    from helios_cli.cost.estimate import Estimate


@dataclass(frozen=True)
class Split:
    """One film's model calls on several GPUs.

    Attributes:
        gpus: GPUs of one film.
        share: time of a chunk on them, as a share of its time on one; None if it is unknown.
        moved_bytes: bytes that each GPU receives in a chunk.
        basis: where the share comes from, or why there is none.
    """

    gpus: int
    share: float | None
    moved_bytes: float | None
    basis: str


def split_of(estimates: Sequence[Estimate], options: RenderOptions) -> Split:
    """Return the gain of dividing each film's model calls among GPUs, on average over the films."""
    first, gpus = estimates[0], options.gpus_per_film
    rate = peer_rate(first.device.name)
    if first.device.kind == "cpu":
        return Split(gpus, None, None, "unknown: on a CPU, the processes share its cores")
    if rate is None:
        return Split(gpus, None, None, f"unknown: how fast {first.device.name} moves data to another GPU is not stated")
    if any(estimate.seconds is None for estimate in estimates):
        return Split(gpus, None, None, "unknown, as is the speed of one GPU")
    if any(estimate.mode.name != "none" for estimate in estimates):
        return Split(gpus, None, None, "unknown where weights do not stay on the device")
    # A GPU that only decodes works while the next chunk is denoised; one that also denoises does one after the other.
    together = max if gpu_index(options.vae_device) >= gpus else lambda denoise, decode: denoise + decode
    alone = divided = moved = 0.0
    decoders = [
        _team(estimate, gpus).decoders(estimate.plan.size, is_apart=estimate.mode.is_apart) for estimate in estimates
    ]
    for estimate, ranks in zip(estimates, decoders, strict=True):
        chunks = len(estimate.plan.chunks)
        denoise, decode = estimate.duration.denoise or 0.0, estimate.duration.decode or 0.0
        film_bytes = _moved_bytes(estimate, gpus)
        alone += chunks / estimate.lanes * (estimate.speed.seconds(estimate.mode, estimate.budget) or 0.0)
        divided += together(denoise / gpus + film_bytes / rate, decode / ranks)
        moved += film_bytes
    divide = "calls and decoding divide evenly" if min(decoders) > 1 else "calls divide evenly, decoding does not"
    basis = f"stated: {divide}, data moves at {format_bytes(rate)}/s between GPUs"
    return Split(gpus, divided / alone, moved / sum(len(estimate.plan.chunks) for estimate in estimates), basis)


def _moved_bytes(estimate: Estimate, gpus: int) -> float:
    """Return the bytes that each GPU receives for a film: queries, keys, values and the output of self-attention are
    exchanged in each block, so that each GPU has all rows of its heads (Ulysses, arXiv 2309.14509)."""
    dit, ranks = estimate.model.dit, _team(estimate, gpus).size
    branches = gpus // ranks
    row = 4 * dit.num_layers * dit.width * ITEMSIZE[estimate.dtype]
    rows = sum(stage.film_calls * stage.rows for stage in estimate.work.stages) / branches
    return rows * row / ranks * (ranks - 1) / ranks


def _team(estimate: Estimate, gpus: int) -> Team:
    return Team.of(gpus, estimate.plan.guidance, estimate.model.dit.num_attention_heads, estimate.model.name)
