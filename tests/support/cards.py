"""The README's table of the 14B model in the memory of common cards, from the cost model.

`PYTHONPATH=tests python tests/support/cards.py` prints it; `tests/cost/test_cards.py` compares it with the README.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import describe
from helios_cli.cost.auto import usual_film
from helios_cli.cost.gpus import other_device
from helios_cli.cost.memory import MemoryBudget, MemoryPlan
from helios_cli.cost.model import Model, model_of
from helios_cli.cost.placing import fastest, memory_plans, speed_of
from helios_cli.model.low_bit import LOW_BITS, LowBit, shapes
from helios_cli.weights.fp8 import SCALE_SUFFIX, Quant, is_fp8
from helios_cli.weights.low_bit import STORED_AS, is_low_bit

GB = 10**9
HOST_BYTES = 64 * GB
CARDS = {12: "RTX 4070", 16: "RTX 4080", 24: "RTX 4090", 32: "RTX 5090", 48: "RTX 6000 Ada", 80: "H100"}
SMALL = (12, 16, 24)
"""Memory of the cards for which weights in 8 and 4 bits are worth it."""

HEAD = "| memory | such as | bfloat16 | peak | moved | fp8 | peak | moved |\n|---|---|---|---|---|---|---|---|\n"


def copy_of_14b(folder: Path, quant: Quant | LowBit) -> Model:
    """Return the 14B model as a converted copy holds it, in bfloat16, float8, int8 or nf4, without weights."""
    checkpoint = describe(folder, SPECS["14b"], torch.bfloat16)
    transformer = checkpoint.components["transformer"]
    tensors = {}
    for name, info in transformer.tensors.items():
        if quant == "fp8" and is_fp8(name):
            info = info._replace(dtype="F8_E4M3", end=info.begin + info.elements)
        elif quant in LOW_BITS and is_low_bit(name):
            values, scales = shapes(info.shape[0], info.shape[1], quant)
            code = {kind: code for code, kind in STORED_AS.items()}[quant]
            end = info.begin + math.prod(scales) * 4
            tensors[name + SCALE_SUFFIX] = info._replace(dtype="F32", shape=scales, end=end)
            info = info._replace(dtype=code, shape=values, end=info.begin + math.prod(values))
        tensors[name] = info
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


def rows(kinds: tuple[Any, ...] = ("none", "fp8"), cards: Iterable[int] = tuple(CARDS)) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        models = {kind: copy_of_14b(Path(folder, kind), kind) for kind in kinds}
        for memory_gb in cards:
            name = CARDS[memory_gb]
            plans = [placed(one, memory_gb, kind if kind == "fp8" else "none") for kind, one in models.items()]
            cells = [
                cell
                for plan in plans
                for cell in (way(plan), f"{plan.device_bytes / GB:.1f} GB", f"{plan.moved_bytes / GB:.0f} GB")
            ]
            yield f"| {memory_gb} GB | {name} | {' | '.join(cells)} |\n"


def table() -> str:
    return HEAD + "".join(rows())


def low_bit_table() -> str:
    return HEAD.replace("bfloat16", "int8").replace("fp8", "nf4") + "".join(rows(LOW_BITS, SMALL))


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n{low_bit_table()}")
