"""The schedule of segments against the best one and cases by hand, and their costs against `cost.work`."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_cli import machine
from helios_cli.cost import farm as farm_module
from helios_cli.cost.estimate import estimate_films
from helios_cli.cost.farm import farm_of, makespan, makespan_by_kind, segment_costs, useful_workers
from helios_cli.cost.work import work_of
from helios_cli.device import Device
from helios_cli.errors import InputError
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import segments
from support.recipes import film_of

costs = st.lists(st.integers(1, 100).map(float), min_size=1, max_size=6)
CUTS = {
    "shot": [
        {"prompt": "a boat", "seconds": 20},
        {"prompt": "the sea", "seconds": 5, "transition": "cut"},
        {"prompt": "a harbour", "seconds": 9, "transition": "blend"},
        {"prompt": "a storm", "seconds": 1, "transition": "cut"},
    ]
}


def best(films: list[list[float]], kinds: tuple[int, ...]) -> float:
    """The least time in which workers of these kinds end, by trying all ways, each film on one kind."""
    pools = [range(sum(kinds[:kind]), sum(kinds[: kind + 1])) for kind in range(len(kinds))]
    ends = []
    for chosen in product(pools, repeat=len(films)):
        ways = product(*(pool for film, pool in zip(films, chosen, strict=True) for _ in film))
        jobs = [cost for film in films for cost in film]
        for way in ways:
            loads = [0.0] * sum(kinds)
            for cost, worker in zip(jobs, way, strict=True):
                loads[worker] += cost
            ends.append(max(loads))
    return min(ends)


@given(costs, st.integers(1, 3))
def test_the_schedule_is_near_the_best_one(costs, workers):
    """By Graham's bound for the longest first."""
    least = best([costs], (workers,))
    assert least <= makespan(costs, workers) <= (4 / 3 - 1 / (3 * workers)) * least + 1e-9


@pytest.mark.parametrize(
    ("costs", "workers", "expected"),
    [
        ([4, 3, 2], 1, 9),
        ([4, 3, 2], 2, 5),
        ([4, 3, 2], 3, 4),
        ([4, 3, 2], 8, 4),
        ([3, 3, 2, 2, 2], 2, 7),  # the best would be 6: the worst case of two workers
        ([2, 2, 2, 3, 3], 2, 7),  # in whatever order they come
    ],
)
def test_schedules_by_hand(costs, workers, expected):
    assert makespan(costs, workers) == expected


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=40))
def test_one_worker_more_than_useful_only_waits(costs):
    useful = useful_workers(costs)
    assert makespan(costs, useful) == pytest.approx(max(costs)) == makespan(costs, useful + 1)
    assert useful == 1 or makespan(costs, useful - 1) > max(costs) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("films", "kinds", "expected"),
    [
        ([[4, 3, 2]], (1, 2), 5),  # one film stays on the two of a kind
        ([[4, 3, 2]], (1, 1), 9),
        ([[6, 6], [5]], (2, 1), 6),  # the longest film chooses first
        ([[5], [5], [5]], (1, 2), 5),
        ([[2], [9, 9], [2]], (1, 1), 18),
    ],
)
def test_films_stay_with_one_kind(films, kinds, expected):
    assert makespan_by_kind(films, kinds) == expected


@given(st.lists(st.lists(st.integers(1, 9).map(float), min_size=1, max_size=2), min_size=1, max_size=3))
def test_films_on_two_kinds_end_no_earlier_than_is_possible(films):
    least, most = best(films, (1, 2)), sum(map(sum, films))
    assert least <= makespan_by_kind(films, (1, 2)) <= most


@pytest.mark.parametrize("device", ["cpu", "H100"])
def test_a_segment_costs_what_its_work_takes(device):
    """By counting the work of each segment as a film of its own, to a hundredth: fewer frames of a chunk are decoded
    for a little more than their share. Seconds add up to those of the film."""
    options = RenderOptions(model="distilled", device="cpu", dtype="float32")
    (estimate,) = estimate_films([film_of(CUTS)], options, on=None if device == "cpu" else device)
    timed = estimate.seconds is not None
    assert timed == (device == "H100")
    rates, found = estimate.duration.rates, segment_costs(estimate, timed=timed)
    dit, vae = (rates.dit_flops, rates.vae_flops) if timed else (0.4, 0.2)
    works = [work_of(part.plan, estimate.model, "float32") for part in segments(estimate.plan)]
    expected = [work.denoise / dit + work.decode / vae for work in works]
    assert len(found) == 3
    assert [cost / sum(found) for cost in found] == pytest.approx([each / sum(expected) for each in expected], rel=1e-2)
    assert not timed or sum(found) == pytest.approx(estimate.seconds)


def planned(keys=CUTS, on="H100", **options):
    wanted = RenderOptions(model="distilled", **options)
    estimates = estimate_films([film_of(keys)], wanted, on=on, price=2.0)
    return farm_of(estimates, wanted, on=on), estimates


def test_a_farm_is_its_schedule_and_loading():
    farm, (estimate,) = planned(workers=2)
    (own,) = farm.costs
    assert farm.load_seconds == pytest.approx(80.5, abs=0.1)  # 80.5 GB at the stated 1 GB/s
    one, two, many = farm.on(1), farm.on(2), farm.on(64)
    assert one.seconds == pytest.approx(farm.load_seconds + estimate.seconds) and one.speedup == pytest.approx(1)
    assert two.seconds == pytest.approx(farm.load_seconds + max(own[0], sum(own[1:])))
    assert two.speedup == pytest.approx(one.seconds / two.seconds)
    assert many.seconds == two.seconds == farm.best.seconds and many.speedup == farm.best.speedup
    assert farm.useful == 2 and farm.longest == (0, 0) and farm.reaches_bound
    assert many.cost == pytest.approx(64 * 2.0 * many.seconds / 3600)  # workers that wait are paid, too
    assert [outcome.workers for outcome in farm.table] == [1, 2]


def test_a_cpu_has_no_more_workers_than_cores(monkeypatch):
    """Threads that find no core wait for one, so that more workers are no faster."""
    monkeypatch.setattr(farm_module, "_threads", lambda estimate: (1, 2))
    keys = {"shot": [{"prompt": "a boat", "seconds": 5, "transition": "cut"}] * 4}
    farm, _ = planned(keys, on=None, workers=4, device="cpu", dtype="float32")
    assert not farm.timed and farm.on(4).seconds is None and farm.best.seconds is None
    assert farm.on(1).speedup == 1 and farm.on(2).speedup == farm.on(4).speedup == pytest.approx(2)
    assert farm.best == farm.on(2) and farm.useful == 2 and not farm.reaches_bound


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({}, 1),
        ({"workers": 3}, 3),
        ({"cluster": "auto"}, None),
        ({"cluster": "auto", "workers": "auto"}, None),
        ({"cluster": "local"}, None),
        ({"cluster": "ray://node:10001", "workers": 8}, 8),
        ({"share": True}, None),
        ({"share": True, "workers": 2}, 2),
    ],
)
def test_the_number_of_workers_is_known_unless_others_decide(options, workers):
    assert planned(**options)[0].workers == workers


H200, L4 = (Device("cuda", f"NVIDIA {name}", 10**11, 10**11, (9, 0)) for name in ("H200", "L4"))


@pytest.fixture
def rack(monkeypatch):
    """`rack(*gpus)` puts GPUs into this machine."""

    def install(*gpus: Device) -> None:
        monkeypatch.setattr(farm_module, "find_gpus", lambda: gpus)
        monkeypatch.setattr("helios_cli.cost.estimate.find_device", lambda name: gpus[0])

    return install


def test_auto_counts_the_gpus_of_this_machine(rack):
    rack(*[H200] * 5)
    farm, _ = planned(on=None, workers="auto")
    assert farm.workers == 5 and farm.kinds == {"NVIDIA H200": 5} and farm.notices == ()
    farm, _ = planned(on=None, workers="auto", gpus_per_film=2)
    assert farm.workers == 2 and farm.kinds == {"NVIDIA H200": 2} and farm.on(2).gpus == 4
    with pytest.raises(InputError, match="--on H100 is another one"):
        planned(workers="auto")


def test_gpus_that_differ_are_named(rack):
    rack(H200, L4, L4)
    farm, _ = planned(on=None, workers="auto")
    assert "1 on NVIDIA H200, 2 on NVIDIA L4; a film is rendered by one kind" in farm.notices[0]
    assert farm.on(3).seconds == pytest.approx(farm.load_seconds + makespan(farm.costs[0], 2))
    keys = {"shot": [{"prompt": "a boat", "seconds": 5, "transition": "cut"}] * 3}
    farm, _ = planned(keys, on=None, workers=3)
    assert farm.on(3).speedup < 2
    mixed, _ = planned(keys, on=None, workers=3, mixed=True)
    assert mixed.on(3).seconds == pytest.approx(mixed.load_seconds + mixed.costs[0][0])
    assert "--mixed lets a film use all of them" in mixed.notices[0]


@pytest.mark.parametrize(("workers", "free", "warned"), [(1, 1, 0), (3, 2.9, 1), (3, 3.1, 0)])
def test_memory_of_all_workers_is_counted(monkeypatch, workers, free, warned):
    """Each of them fits alone into what is free."""
    (estimate,) = planned(on=None, device="cpu", dtype="float32")[1]
    available = int(free * estimate.mode.host_bytes)
    monkeypatch.setattr(machine, "host_memory", lambda: machine.HostMemory(10**12, available, ()))
    monkeypatch.setattr("helios_cli.cost.estimate.budget_of", lambda *_, **__: estimate.budget)
    farm, _ = planned(on=None, device="cpu", dtype="float32", workers=workers)
    assert len(farm.notices) == warned
    assert all("3 workers with" in notice and "of host memory" in notice for notice in farm.notices)


def test_a_worker_takes_gpus_that_follow_each_other(rack):
    rack(H200, L4, L4, L4, L4)
    farm, _ = planned(on=None, workers="auto", gpus_per_film=2)
    assert farm.workers == 2 and farm.kinds == {"NVIDIA H200 and NVIDIA L4": 1, "NVIDIA L4": 1}
    assert farm.on(2).gpus == 4 and "the workers differ" in farm.notices[0]
    assert planned(on=None, workers="auto", gpus_per_film=5)[0].kinds == {"NVIDIA H200 and NVIDIA L4": 1}


@pytest.mark.parametrize(("vae_device", "gpus"), [("cuda:1", 4), ("cuda:4", 5)])
def test_the_gpu_that_decodes_belongs_to_its_worker(rack, vae_device, gpus):
    """One that decodes alone does so while the next chunk is denoised."""
    rack(*[H200] * 9)
    assert planned(on=None, workers="auto", gpus_per_film=4, vae_device=vae_device)[0].workers == 9 // gpus
    farm, (estimate,) = planned(gpus_per_film=4, vae_device=vae_device)
    denoise, decode = estimate.speed.denoise, estimate.speed.decode
    divided = denoise / 4 + farm.split.moved_bytes / 300e9
    expected = max(divided, decode) if gpus == 5 else divided + decode
    assert farm.on(1).gpus == gpus and farm.split.share == pytest.approx(expected / max(denoise, decode))


def test_gpus_that_are_missing_are_counted(rack):
    rack(H200, H200)
    (notice,) = planned(on=None, workers=2, gpus_per_film=2)[0].notices
    assert notice == "a render would end with an error: 4 GPUs are needed, and this machine has 2 GPUs"


@pytest.mark.parametrize(("gpus", "gigabytes"), [(2, 4.5), (4, 3.4), (8, 2.0)])
def test_bytes_that_gpus_exchange(gpus, gigabytes):
    """A call at full size, 11,040 rows of 5,120 in 40 blocks and bfloat16, counted on paper."""
    farm, (estimate,) = planned(gpus_per_film=gpus)
    stage = estimate.work.stages[-1]
    rows = sum(each.film_calls * each.rows for each in estimate.work.stages)
    moved = farm.split.moved_bytes * len(estimate.plan.chunks)
    assert stage.rows == 11040 and moved * stage.rows / rows / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_a_film_on_several_gpus():
    """Calls and decoding are divided, and what moves is waited for."""
    farm, (estimate,) = planned(gpus_per_film=4)
    duration, chunks = estimate.duration, len(estimate.plan.chunks)
    waited = farm.split.moved_bytes * chunks / 300e9
    expected = (duration.denoise / 4 + duration.decode / 4 + waited) / (duration.denoise + duration.decode)
    assert "calls and decoding divide evenly" in farm.split.basis
    assert farm.split.share == pytest.approx(expected) and 0.25 < expected < 0.5
    one = farm.on(1)
    assert one.gpus == 4 and one.seconds == pytest.approx(farm.load_seconds + expected * estimate.seconds)
    assert 1 < one.speedup < 4
    slow, _ = planned(on="4090", gpus_per_film=4, vram=10**12)
    assert slow.split.share is None and "weights do not stay" in slow.split.basis
    unknown, _ = planned(on=None, gpus_per_film=4, device="cpu", dtype="float32")
    assert unknown.split.share is None and unknown.on(1).speedup is None and unknown.best.seconds is None


def test_both_calls_of_guidance_are_made_at_once():
    """Two groups exchange half as often, and each group is half as large."""
    keys = {"shot": [{"prompt": "a boat", "seconds": 5}], "guidance": 5}
    two, (estimate,) = planned(keys, gpus_per_film=2)
    four, _ = planned(keys, gpus_per_film=4)
    plain, _ = planned(keys | {"guidance": 1}, gpus_per_film=2)
    assert estimate.plan.guidance == 5 and two.split.moved_bytes == 0
    assert four.split.moved_bytes == pytest.approx(plain.split.moved_bytes)
    assert "decoding does not" in four.split.basis


@pytest.mark.parametrize(("gpus", "guidance"), [(3, 1), (7, 1), (16, 1), (6, 5), (3, 5)])
def test_gpus_that_heads_cannot_be_divided_among(gpus, guidance):
    with pytest.raises(InputError, match=f"--gpus-per-film {gpus}: the 40 attention heads of distilled") as raised:
        planned(CUTS | {"guidance": guidance}, gpus_per_film=gpus)
    assert raised.value.hint.startswith("use 2, 4, 5, 8" if guidance == 1 else "use 2, 4, 5, 8, 10, 16")
