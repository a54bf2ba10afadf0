"""The share of the next part that may be read while another one runs."""

from dataclasses import replace

import pytest

from helios_cli.cost.memory import AHEAD_SHARE, MemoryBudget, plan_memory
from helios_cli.cost.model import find_model
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.weights.placement import Placement
from support.recipes import plan_of

GPU = Device("cuda", "GPU", 48 * 10**9, 45 * 10**9)
CPU = Device("cpu", "CPU", None, None)


def model_mode(device: Device, budget: MemoryBudget):
    model, plan = find_model("distilled"), plan_of({"shot": [{"prompt": "a red ball"}]}, size=(640, 384))
    return plan_memory(Workload(plan, model, device, "bfloat16"), budget, Placement("model"))


@pytest.mark.parametrize("device", [GPU, CPU], ids=["GPU", "CPU"])
def test_it_is_what_the_budget_leaves_beside_the_part_that_works(device):
    least = model_mode(device, MemoryBudget())
    assert (least.placement.transformer_ahead_bytes, least.placement.vae_ahead_bytes) == (0, 0)
    peak, spare = max(phase.total for phase in least.phases), 10**9
    taken = (least.device_bytes if device is GPU else least.host_bytes) + spare
    mode = model_mode(device, MemoryBudget(round(taken / AHEAD_SHARE), round(taken / AHEAD_SHARE)))
    assert mode.fits
    text, denoise, decode = mode.phases
    assert peak == denoise.total
    assert mode.placement.vae_ahead_bytes == pytest.approx(spare, abs=2)
    beside_others = spare + denoise.total - max(text.total, decode.total)
    assert mode.placement.transformer_ahead_bytes == pytest.approx(beside_others, abs=2)
    short = model_mode(device, MemoryBudget(text.total, text.total))
    assert not short.fits and short.placement.vae_ahead_bytes == 0


def test_it_is_no_other_placement():
    """Parts that are loaded may stay when the budget changes."""
    assert model_mode(GPU, MemoryBudget(40 * 10**9, None)).placement == Placement("model")
    assert replace(Placement("model"), turns=True) != Placement("model")
