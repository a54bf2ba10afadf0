"""--speed: what each rung is on a device and for a model, and that a flag of its own goes before."""

from __future__ import annotations

import pytest

from helios_cli.cost.ladder import quant_of, taken_of
from helios_cli.cost.model import find_model
from helios_cli.cost.speeds import duration_of
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.settings import resolve_settings
from helios_cli.recipe.sources import read_films
from helios_cli.recipe.speed import KEYS, LEVERS
from support.recipes import plan_of

H100, A100 = (Device("cuda", f"NVIDIA {name}", 80 * 10**9, 80 * 10**9) for name in ("H100", "A100"))
OLD = Device("cuda", "a GPU", 24 * 10**9, 24 * 10**9, capability=(8, 6))
BITS = "fp8+attention"
CPU = Device("cpu", "a CPU", 64 * 10**9, 64 * 10**9)


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [
        (H100, {"speed": "fast"}, BITS),
        (H100, {"speed": "fastest"}, BITS),
        (H100, {"speed": "exact"}, "none"),
        (H100, {}, "none"),
        (H100, {"speed": "fastest", "quant": "none"}, "none"),
        (H100, {"speed": "exact", "quant": "fp8"}, "fp8"),
        (H100, {"speed": "fast", "dtype": "float32"}, "none"),
        (H100, {"speed": "fast", "dtype": "bfloat16"}, BITS),
        (A100, {"speed": "fast"}, "none"),
        (OLD, {"speed": "fast"}, "none"),
        (CPU, {"speed": "fast"}, "none"),
        (CPU, {"quant": "fp8"}, "fp8"),
    ],
    ids=str,
)
def test_fp8_where_a_gpu_has_it(device, flags, expected):
    assert quant_of(RenderOptions.parse(**flags), device) == expected


@pytest.mark.parametrize(
    ("model", "flags", "history", "every"),
    [
        ("distilled", {"speed": "fastest"}, True, 1),
        ("distilled", {"speed": "fast"}, False, 1),
        ("distilled", {}, False, 1),
        ("distilled", {"speed": "fastest", "steps": "4,4,4"}, True, 2),
        ("distilled", {"speed": "fastest", "reuse_history": False}, False, 1),
        ("distilled", {"speed": "fastest", "gpus_per_film": 2}, False, 1),
        ("mid", {"speed": "fastest"}, True, 2),
        ("mid", {"speed": "fastest", "reuse_steps": 1}, True, 1),
        ("mid", {"speed": "exact", "reuse_steps": 3}, False, 3),
        ("base", {"speed": "fastest"}, False, 2),
    ],
    ids=str,
)
def test_what_is_reused_where_that_spares_something(model, flags, history, every):
    recipe = read_films(["a red ball"])[0].recipe
    found = resolve_settings(recipe, RenderOptions.parse(**flags), find_model(model).defaults)
    assert (found.reuse_history, found.reuse_steps) == (history, every)
    for key, is_taken in (("reuse_history", history), ("reuse_steps", every > 1)):
        assert found.origins.get(key) == (("flag" if key in flags else "speed") if is_taken else None)


def test_what_each_choice_is_worth():
    """Each is compared with the film without it alone; all of them together are worth more than any."""
    keys, model = {"shot": [{"prompt": "a red ball"}]}, find_model("mid")
    how = {"size": (640, 384), "steps": (20, 20, 20), "guidance": 5.0}
    exact = Workload(plan_of(keys, **how), model, H100, "bfloat16")
    fastest = Workload(plan_of(keys, **how, speed="fastest"), model, H100, "bfloat16", BITS)
    taken = {one.key: one for one in taken_of(RenderOptions(speed="fastest"), fastest)}
    assert set(taken) == KEYS and all(one.is_taken and one.origin == "speed" for one in taken.values())
    seconds = [found.denoise + found.decode for found in map(duration_of, (exact, fastest))]
    assert all(1.1 < one.times < seconds[0] / seconds[1] for one in taken.values())
    assert 1.5 < taken["reuse_steps"].times < 2
    given = taken_of(RenderOptions(speed="fastest", quant="none"), exact)
    assert [(one.key, one.is_taken, one.times) for one in given] == [(lever.key, False, None) for lever in LEVERS]
    assert given[0].origin == "flag" and taken_of(RenderOptions(), exact) == ()
