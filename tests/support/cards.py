"""The README's table of the 14B model in the memory of common cards, from the cost model.

`PYTHONPATH=tests python tests/support/cards.py` prints it; `tests/cost/test_cards.py` compares it with the README.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import describe
from helios_cli.cost.auto import usual_film
from helios_cli.cost.gpus import other_device
from helios_cli.cost.memory import MemoryBudget, MemoryPlan
from helios_cli.cost.model import Model, model_of
from helios_cli.cost.placing import fastest, memory_plans, speed_of
from helios_cli.weights.fp8 import Quant, is_fp8

GB = 10**9
HOST_BYTES = 64 * GB
CARDS = {12: "RTX 4070", 16: "RTX 4080", 24: "RTX 4090", 32: "RTX 5090", 48: "RTX 6000 Ada", 80: "H100"}
HEAD = "| memory | such as | bfloat16 | peak | moved | fp8 | peak | moved |\n|---|---|---|---|---|---|---|---|\n"


def copy_of_14b(folder: Path, quant: Quant) -> Model:
    """Return the 14B model as a converted copy holds it, in bfloat16 or float8, without weights."""
    checkpoint = describe(folder, SPECS["14b"], torch.bfloat16)
    transformer = checkpoint.components["transformer"]
    tensors = {
        name: replace(info, dtype="F8_E4M3", end=info.elements) if quant == "fp8" and is_fp8(name) else info
        for name, info in transformer.tensors.items()
    }
    components = {**checkpoint.components, "transformer": replace(transformer, tensors=tensors)}
    return model_of("distilled", replace(checkpoint, components=components))


def placed(model: Model, memory_gb: int, quant: Quant) -> MemoryPlan:
    """Return how `helios plan` places the usual film on a card with so much memory free, and 64 GB of the host's."""
    device = replace(other_device(CARDS[memory_gb]), free_bytes=memory_gb * GB)
    load = usual_film(model, device, "bfloat16", quant=quant)
    budget, speed = MemoryBudget(device.free_bytes, HOST_BYTES), speed_of(load)
    plans = [plan for plan in memory_plans(load, budget, speed) if plan.fits]
    return fastest(plans, budget, speed)


def way(plan: MemoryPlan) -> str:
    placement = plan.placement
    words = {"model": "`model`", "stream": f"`stream`, {placement.resident} of 40 blocks stay"}
    words["none"] = "all stays" if placement.prompt_matrices else "all stays but what only prompts need"
    return words[plan.name] + (", no graphs" if plan.name == "none" and not placement.graphs else "")


def rows() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        models = {quant: copy_of_14b(Path(folder, quant), quant) for quant in ("none", "fp8")}
        for memory_gb, name in CARDS.items():
            plans = [placed(model, memory_gb, quant) for quant, model in models.items()]
            cells = [
                cell
                for plan in plans
                for cell in (way(plan), f"{plan.device_bytes / GB:.1f} GB", f"{plan.moved_bytes / GB:.0f} GB")
            ]
            yield f"| {memory_gb} GB | {name} | {' | '.join(cells)} |\n"


def table() -> str:
    return HEAD + "".join(rows())


if __name__ == "__main__":
    sys.stdout.write(table())
