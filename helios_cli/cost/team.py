"""The division of a film's model calls among the ranks of `--gpus-per-film`, and what it gains by stated speeds
(`model/sharded.md`), without torch; `engine.teams` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from helios_cli.cost.gpus import peer_rate
from helios_cli.device import ITEMSIZE, gpu_index
from helios_cli.errors import InputError
from helios_cli.recipe.options import RenderOptions
from helios_cli.units import PIXELS_PER_CELL, format_bytes

if TYPE_CHECKING:
    from helios_cli.cost.estimate import Estimate


class Team(NamedTuple):
    """The ranks that make one model call together: all of them, or half of them where both branches of guidance are
    made at the same time."""

    size: int
    notice: str | None = None
    """The notice of a film whose branches of guidance are made one after the other."""
    ranks: int = 1
    """The ranks of the film, in one team or two."""

    @classmethod
    def of(cls, ranks: int, guidance: float, heads: int, model: str) -> Team:
        """Return the team of a film on `ranks`. Raises InputError unless they can share the heads of attention."""
        guided = guidance > 1
        choices = divisions(heads, guided=guided)
        if ranks == 1:
            return cls(1)
        if ranks not in choices:
            raise InputError(
                f"--gpus-per-film {ranks}: the {heads} attention heads of {model} cannot be divided so",
                hint=f"use {_listed(choices[:8])}" if choices else "leave it out",
            )
        if not guided:
            return cls(ranks, ranks=ranks)
        if ranks % 2 == 0:
            return cls(ranks // 2, ranks=ranks)
        even = [count for count in choices if count % 2 == 0]
        nearest = [count for count in even if count < ranks][-1:] + [count for count in even if count > ranks][:1]
        return cls(
            ranks,
            f"--gpus-per-film {ranks} is odd, so that all ranks make the two branches of guidance one after the other; "
            f"{_listed(nearest)} ranks would make both at the same time",
            ranks,
        )

    def decoders(self, size: tuple[int, int], *, is_apart: bool) -> int:
        """Return how many ranks decode a chunk together, of films of `size` (width, height).

        They do where all of them make every call together, since their frames are rounded differently anyway. Rank 0
        decodes alone, while the next chunk is denoised, where that takes much longer (guidance), or where the VAE
        `is_apart`, on a device of its own.
        """
        is_shared = self.size == self.ranks <= size[1] // PIXELS_PER_CELL and not is_apart
        return self.ranks if is_shared else 1


def divisions(heads: int, *, guided: bool) -> list[int]:
    """Return the numbers of ranks, from 2 on, that can make the calls of a model with so many attention heads.

    With guidance an even number makes two teams, each of which shares the heads.
    """
    return [
        ranks for ranks in range(2, 2 * heads + 1) if heads % (ranks // 2 if guided and ranks % 2 == 0 else ranks) == 0
    ]


def _listed(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


# What it gains


class Split(NamedTuple):
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
    decoders = [each.team.decoders(each.plan.size, is_apart=each.mode.is_apart) for each in estimates]
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
    dit, ranks = estimate.model.dit, estimate.team.size
    branches = gpus // ranks
    row = 4 * dit.num_layers * dit.width * ITEMSIZE[estimate.dtype]
    rows = sum(stage.film_calls * stage.rows for stage in estimate.work.stages) / branches
    return rows * row / ranks * (ranks - 1) / ranks
