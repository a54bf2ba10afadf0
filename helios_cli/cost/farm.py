"""The time of films on several workers, by a schedule of their segments. Nothing is started or asked.

A worker loads the model once and renders one segment after another. The queue holds the segments of all films, the
longest first. Nothing ends before the longest segment: that is the bound, however many workers there are.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from helios_cli import machine
from helios_cli.cost.speeds import DIT_UTILISATION, VAE_UTILISATION
from helios_cli.cost.team import Split, split_of
from helios_cli.device import Device, find_gpus, gpu_index
from helios_cli.errors import InputError
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.values import MAX_WORKERS
from helios_cli.units import counted, format_bytes
from helios_cli.weights.names import WEIGHT_BYTES

if TYPE_CHECKING:
    from helios_cli.cost.estimate import Estimate

TOLERANCE = 1e-9
"""Share by which sums of the same numbers may differ."""


# The schedule: pure numbers


def makespan(costs: Iterable[float], workers: int) -> float:
    """Return when the last worker ends, if each takes the longest segment that is left as soon as it is free.

    That is at most 4/3 - 1/(3 workers) times the best schedule (Graham, Bounds on multiprocessing timing anomalies,
    1969).
    """
    ends = [0.0] * workers
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def makespan_by_kind(films: Iterable[Sequence[float]], kinds: Sequence[int]) -> float:
    """Return `makespan` where workers are of several kinds, so many of each, and a film stays with one kind.

    The longest film chooses first, by the time at which its kind could end at best.
    """
    costs: list[list[float]] = [[] for _ in kinds]
    for film in sorted(films, key=sum, reverse=True):
        ends = [
            max(max([*film, *taken[:1]], default=0.0), (sum(taken) + sum(film)) / workers)
            for taken, workers in zip(costs, kinds, strict=True)
        ]
        chosen = costs[ends.index(min(ends))]
        chosen.extend(film)
        chosen.sort(reverse=True)
    return max(makespan(taken, workers) for taken, workers in zip(costs, kinds, strict=True))


def useful_workers(costs: Sequence[float]) -> int:
    """Return how many workers reach the bound, the longest segment; further ones would only wait."""
    bound = max(costs) * (1 + TOLERANCE)
    least, enough = max(1, ceil(sum(costs) / bound)), len(costs)
    while least < enough:
        middle = (least + enough) // 2
        if makespan(costs, middle) <= bound:
            enough = middle
        else:
            least = middle + 1
    return enough


# Films on workers


class Outcome(NamedTuple):
    """Films on so many workers. Seconds include loading; `speedup` is against one worker with one GPU. None where the
    speed of this machine, or of films on several GPUs, is unknown."""

    workers: int
    gpus: int
    seconds: float | None
    speedup: float | None
    cost: float | None


@dataclass(frozen=True)
class Farm:
    """Films and the workers that render them.

    Attributes:
        costs: for each film, the cost of each of its segments on one worker: seconds, or operations if not `timed`.
        load_seconds: time in which a worker loads the models.
        workers: how many render, or None if only the cluster knows.
        kinds: workers by the names of their GPUs, as far as they are known; none on a CPU.
        mixed: a film may be rendered by GPUs of several kinds.
        is_here: they are all on this machine, or on the one that is planned for.
        threads: (threads of a worker, cores that all of them share) where they share a CPU, else None.
        split: what one film on several GPUs gains, or None if each film has one.
        gpus_per_worker: GPUs that a worker takes, the one that decodes included.
        price: price of a GPU-hour, if it is known.
        is_asked_for: the flags name workers or GPUs, and not only the films.
        notices: what the user should know of these workers.
    """

    costs: tuple[tuple[float, ...], ...]
    timed: bool
    load_seconds: float
    workers: int | None
    kinds: Mapping[str, int]
    mixed: bool
    is_here: bool
    threads: tuple[int, int] | None
    split: Split | None
    gpus_per_worker: int
    price: float | None
    is_asked_for: bool
    notices: tuple[str, ...] = ()

    @property
    def all_costs(self) -> tuple[float, ...]:
        return tuple(cost for film in self.costs for cost in film)

    @property
    def gpus_per_film(self) -> int:
        return self.split.gpus if self.split else 1

    @property
    def longest(self) -> tuple[int, int]:
        """Return film and segment of the longest segment."""
        places = [(film, place) for film, costs in enumerate(self.costs) for place in range(len(costs))]
        return max(places, key=lambda at: self.costs[at[0]][at[1]])

    @property
    def useful(self) -> int:
        """Return how many workers could help: until the longest segment is the bound, or a CPU has no more cores."""
        most = MAX_WORKERS if self.threads is None else max(1, self.threads[1] // self.threads[0])
        return min(useful_workers(self.all_costs), most)

    @property
    def reaches_bound(self) -> bool:
        """Return whether `useful` workers end with the longest segment; those that there can be may be too few."""
        return self.useful == useful_workers(self.all_costs)

    @property
    def best(self) -> Outcome:
        """Return what `useful` workers make of the films; more of them make it no faster."""
        return self._outcome(self.useful, makespan(self.all_costs, self.useful))

    def on(self, workers: int) -> Outcome:
        """Return what so many workers make of the films."""
        if len(self.kinds) > 1 and not self.mixed and workers == self.workers:
            return self._outcome(workers, makespan_by_kind(self.costs, tuple(self.kinds.values())))
        return self._outcome(workers, makespan(self.all_costs, workers))

    def _outcome(self, workers: int, ends: float) -> Outcome:
        """Return the outcome where the last segment ends after `ends`, by the cost on one GPU and a core a thread."""
        if self.threads is not None:  # a thread that finds no core waits for one
            busy = min(workers, len(self.all_costs))
            ends *= max(1.0, busy * self.threads[0] / self.threads[1])
        gpus = workers * self.gpus_per_worker if self.threads is None else 1
        share = self.split.share if self.split else 1.0
        if share is None:
            return Outcome(workers, gpus, None, None, None)
        load = self.load_seconds if self.timed else 0.0
        faster = (load + sum(self.all_costs)) / (load + share * ends)
        if not self.timed:
            return Outcome(workers, gpus, None, faster, None)
        seconds = load + share * ends
        cost = None if self.price is None else self.price * gpus * seconds / 3600
        return Outcome(workers, gpus, seconds, faster, cost)

    @property
    def table(self) -> tuple[Outcome, ...]:
        """Return what powers of two of workers make of the films, and the numbers that matter, up to those."""
        matter = {1, self.useful, self.workers or 1}
        doubled = (2**power for power in range(MAX_WORKERS.bit_length()))
        return tuple(map(self.on, sorted(matter | {count for count in doubled if count <= self.useful})))


def farm_of(estimates: Sequence[Estimate], options: RenderOptions, *, on: str | None = None) -> Farm:
    """Return the farm that `options` ask for, on the GPU `on` that is not here, or on this machine.

    InputError for a number of workers that this machine does not have, and GPUs that a film cannot be divided among.
    """
    first = estimates[0]
    is_asked_for = options.is_shared_out or options.gpus_per_film > 1
    here = find_gpus() if is_asked_for and first.device.kind == "cuda" and on is None else ()
    per_worker = gpus_per_worker(options)
    workers = _workers(options, len(here) // per_worker, on)
    timed = all(estimate.seconds is not None for estimate in estimates)
    split = split_of(estimates, options) if options.gpus_per_film > 1 else None
    is_here = options.cluster in (None, "local") and (workers is not None or not options.share)
    used = _groups(here, per_worker)[: workers or 1] if is_here else []
    return Farm(
        costs=tuple(segment_costs(estimate, timed=timed) for estimate in estimates),
        timed=timed,
        load_seconds=sum(_load_seconds(estimate) for estimate in _one_a_model(estimates)),
        workers=workers,
        kinds=Counter(used),
        mixed=options.mixed,
        is_here=is_here,
        threads=_threads(first) if first.device.kind == "cpu" and is_here else None,
        split=split,
        gpus_per_worker=per_worker,
        price=first.price,
        is_asked_for=is_asked_for,
        notices=(
            *_gpu_notices(options, here, Counter(used), (workers or 1) * per_worker),
            *(_memory_notices(estimates, workers or 1) if is_here and on is None else ()),
        ),
    )


def segment_costs(estimate: Estimate, *, timed: bool) -> tuple[float, ...]:
    """Return the seconds of each segment of a film, or its operations if not `timed`; loading is left out.

    A film's seconds are divided by the work of its chunks: the first one after a cut may take twice the model calls.
    """
    work, rates, plan = estimate.work, estimate.duration.rates, estimate.plan
    dit, vae = rates.dit_flops, rates.vae_flops
    if dit is None or vae is None:
        dit, vae = DIT_UTILISATION, VAE_UTILISATION
    costs: list[float] = []
    for chunk in plan.chunks:
        calls = ((stage.first_calls if chunk.fresh else stage.calls) * stage.call.total for stage in work.stages)
        cost = sum(calls) / dit + work.decode * chunk.num_frames / plan.num_frames / vae
        if chunk.fresh:
            costs.append(0.0)
        costs[-1] += cost
    scale = (estimate.seconds or 0.0) / sum(costs) if timed else 1.0
    return tuple(cost * scale for cost in costs)


# What they run on


def _workers(options: RenderOptions, fitting: int, on: str | None) -> int | None:
    """Return the number of workers, where there are GPUs for `fitting` of them; None if others decide it later."""
    if isinstance(options.workers, int):
        return options.workers
    if options.cluster is not None or (options.share and options.workers is None):
        return None
    if options.workers is None:
        return 1
    if on is not None:
        raise InputError(
            f"--workers auto counts the GPUs of this machine, but --on {on} is another one",
            hint="write the number of workers, such as --workers 8",
        )
    return max(1, fitting)  # a CPU has one


def _threads(estimate: Estimate) -> tuple[int, int]:
    return machine.cpu_threads(estimate.model.parameters["transformer"]), machine.cores()


def _one_a_model(estimates: Sequence[Estimate]) -> list[Estimate]:
    return list({estimate.model.name: estimate for estimate in estimates}.values())


def _load_seconds(estimate: Estimate) -> float:
    """Return the seconds in which a worker reads a model from the disk."""
    checkpoint = estimate.model.checkpoint
    stored = WEIGHT_BYTES if checkpoint is None else sum(part.bytes for part in checkpoint.components.values())
    return stored / estimate.speed.bandwidths.disk


def gpus_per_worker(options: RenderOptions) -> int:
    """Return the GPUs that a worker takes: the first of them make the model calls, and --vae-device names one."""
    return max(options.gpus_per_film, gpu_index(options.vae_device) + 1)


def _groups(gpus: Sequence[Device], each: int) -> list[str]:
    """Return the names of each worker's GPUs, which follow each other, as far as there are enough."""
    groups = (gpus[first : first + each] for first in range(0, len(gpus) - each + 1, each))
    return [" and ".join(dict.fromkeys(gpu.name for gpu in group)) for group in groups]


def _gpu_notices(
    options: RenderOptions, here: Sequence[Device], kinds: Mapping[str, int], needed: int
) -> Iterator[str]:
    """Say where GPUs are missing, and where workers differ by theirs."""
    if here and options.cluster is None and needed > len(here):
        has = counted(len(here), "GPU")
        yield f"a render would end with an error: {counted(needed, 'GPU')} are needed, and this machine has {has}"
    if len(kinds) > 1:
        listed = ", ".join(f"{count} on {name}" for name, count in kinds.items())
        rule = "a film is rendered by one kind of them, as kinds round differently; --mixed lets it use all"
        yield f"the workers differ: {listed}; {'--mixed lets a film use all of them' if options.mixed else rule}"


def _memory_notices(estimates: Sequence[Estimate], workers: int) -> Iterator[str]:
    """Warn if the workers take more host memory together than is free; each of them looks at its own alone."""
    free, each = machine.host_memory().available_bytes, max(estimate.mode.host_bytes for estimate in estimates)
    if workers > 1 and free is not None and workers * each > free:
        yield (
            f"{workers} workers with {format_bytes(each)} each take {format_bytes(workers * each)} of host memory, of "
            f"which {format_bytes(free)} is free: use fewer, or set --ram for each"
        )
