"""Everything there is to measure on a chip, in one go: `helios bench all`.

Every part is measured in a process of its own. One that fails or hangs is reported with its results so far, and the
next ones go on; one that there is no time for is left out. On a CPU the same parts run at small shapes, which shows
that they run and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import helios_kernels
from helios_cli import machine
from helios_cli.bench.fidelity import distances
from helios_cli.bench.offload import measure_modes, placements, workload_of
from helios_cli.bench.report import environment, side
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.bench.task import STEADY_CHUNKS, Task, against_floors, gates, plan_of, run
from helios_cli.child import ChildError, ask
from helios_cli.device import pick_device
from helios_cli.engine.gpu import recall_kernels
from helios_cli.errors import HeliosError
from helios_cli.units import FRAMES_PER_CHUNK, format_figure
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import FP8_CAPABILITY
from helios_kernels.check import OPS
from helios_kernels.tuning import TUNABLES

SECONDS = 480.0
"""Seconds after which no part goes on."""

OPERATION_SECONDS = 30
"""Seconds of one operation of a part that measures them one by one: a kernel that hangs costs no more."""

NOISE_DB = 3.0
"""Margin by which kernels may be further from float32 than PyTorch: twice its squared error."""

LEAST_SECONDS = 5.0
"""Seconds in which a process can at least begin."""


@dataclass(frozen=True)
class Shapes:
    """The sizes that are measured on a kind of device.

    Attributes:
        size: synthetic model that is rendered; `compared`: the one that is rendered with kernels on and off.
        attention: (queries, keys, heads, head size, with a bias).
        products: (rows, inputs, outputs) of products in fp8; `sustained`: of those in bfloat16.
        pieces: powers of 2 of elements that a decoding works on at a time.
        convolutions: (frames, height, width, inputs, outputs).
        chunks: length of every film except the compared ones.
        budgets: bytes in which the compared model streams.
    """

    size: str
    compared: str
    attention: tuple[tuple[int, int, int, int, bool], ...]
    products: tuple[tuple[int, int, int], ...]
    sustained: tuple[tuple[int, int, int], ...]
    pieces: tuple[int, ...]
    convolutions: tuple[tuple[int, int, int, int, int], ...]
    chunks: int
    budgets: tuple[int, ...]


GPU = Shapes(
    size="14b",
    compared="1.3b",
    attention=(
        *((rows, rows, 40, 128, False) for rows in (2940, 4560, 11040)),
        (8640, 11040, 40, 128, False),
        *((rows, 122, 40, 128, True) for rows in (540, 2160, 8640)),
    ),
    products=((11040, 5120, 15360), (11040, 5120, 13824), (11040, 13824, 5120), (2940, 5120, 13824)),
    sustained=tuple((rows, 5120, outer) for rows in (11040, 4560, 2940) for outer in (15360, 5120, 13824)),
    pieces=(26, 28, 29),
    convolutions=(
        (9, 48, 80, 384, 384),
        (9, 96, 160, 192, 384),
        (18, 96, 160, 384, 384),
        (33, 192, 320, 192, 192),
        (8, 384, 640, 96, 96),
        (33, 384, 640, 96, 96),
    ),
    chunks=STEADY_CHUNKS,
    budgets=(3 * 10**9, 5 * 10**9),
)
CPU = Shapes(
    size="tiny",
    compared="tiny",
    attention=((300, 300, 4, 32, False), (200, 20, 4, 32, True)),
    products=((256, 128, 512),),
    sustained=((256, 128, 512),),
    pieces=(20, 23),
    convolutions=((4, 8, 16, 32, 32),),
    chunks=2,
    budgets=(10**9,),
)


def shapes_of(device: torch.device) -> Shapes:
    return GPU if device.type == "cuda" else CPU


Json = dict[str, Any]
Results = dict[str, Json]
"""By the name of the part: "seconds", and "result" or "failed" or "left_out"."""


@dataclass(frozen=True)
class Probe:
    """A part. `measure` is given the seconds that it may take, at most `seconds`, and the results of earlier parts."""

    name: str
    seconds: float
    measure: Callable[[float, Results], object]
    needs_gpu: bool = False
    needs_fp8: bool = False

    def why_not(self, device: torch.device) -> str | None:
        """Return why there is nothing to measure on `device`."""
        if self.needs_gpu and device.type != "cuda":
            return "timed on a GPU"
        if self.needs_fp8 and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
            return "this GPU has no fp8"
        return None


def probes(device: torch.device, folder: str) -> list[Probe]:
    """Return all parts, the most valuable first."""
    shapes = shapes_of(device)
    size, frames = SPECS[shapes.size].native_size, shapes.chunks * FRAMES_PER_CHUNK
    threads, kernels = 0 if device.type == "cuda" else 1, _wanted_kernels(device)
    task = Task(
        size, frames, (1, 1, 1), "bfloat16", str(device), synthetic=shapes.size, threads=threads, kernels=kernels
    )
    in_fp8, more = replace(task, quant="fp8"), replace(task, quant="fp8+attention")
    film = f"render {shapes.size}"

    def rows(part: str, **arguments: Any) -> Callable[[float, Results], list[Json]]:
        return lambda seconds, earlier: _child(device, part, seconds, **arguments)

    def first(part: str, **arguments: Any) -> Callable[[float, Results], Json]:
        return lambda seconds, earlier: _child(device, part, seconds, **arguments)[0]

    return [
        Probe("ceiling", 30, first("ceiling")),
        Probe(f"{film} 1,1,1", 120, partial(_render, task)),
        Probe("decoding", 60, rows("decoding")),
        Probe("attention", 60, rows("attention", seconds_each=OPERATION_SECONDS)),
        Probe("sustained products", 30, rows("sustained products")),
        Probe("fp8 products", 40, rows("fp8 products"), needs_fp8=True),
        Probe(f"{film} 1,1,1 fp8", 75, partial(_render, in_fp8), needs_fp8=True),
        Probe(f"{film} 1,1,1 fp8+attention", 75, partial(_render, more), needs_fp8=True),
        Probe("kernels", 120, partial(_kernels, device, compiled=False), needs_gpu=True),
        Probe("kernels on and off", 90, partial(_on_and_off, device, shapes.compared, folder)),
        Probe("fp8 quality", 60, rows("fp8 quality"), needs_fp8=True),
        Probe("tuning", 120, partial(_tuning, device), needs_gpu=True),
        Probe(f"{film} 2,2,2", 90, partial(_render, replace(task, steps=(2, 2, 2)))),
        Probe("offload", 90, partial(_offload, device, shapes, folder)),
        Probe("synchronisations", 30, first("synchronisations", size=shapes.compared), needs_gpu=True),
    ]


def measure_all(device: torch.device, *, seconds: float = SECONDS) -> Iterator[tuple[str, Json]]:
    """Measure every part; yield its name with all results so far, as it ends."""
    data = {**environment(), **heading(device), "parts": {}}
    parts, began = data["parts"], time.perf_counter()
    with machine.temporary_folder() as folder:
        for probe in probes(device, folder):
            start = time.perf_counter()
            left = seconds - (start - began)
            why = f"{seconds:g} seconds were over" if left < LEAST_SECONDS else probe.why_not(device)
            outcome = {"left_out": why} if why else _measured(probe, min(left, probe.seconds), parts)
            parts[probe.name] = {"seconds": 0.0 if why else time.perf_counter() - start, **outcome}
            yield probe.name, data


def _measured(probe: Probe, seconds: float, earlier: Results) -> Json:
    try:
        return {"result": probe.measure(seconds, earlier)}
    except Exception as error:  # of any kind: the next parts are measured all the same
        outcome = {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc(limit=-3)}
        return {**outcome, **({"result": error.answers} if isinstance(error, ChildError) and error.answers else {})}


def _wanted_kernels(device: torch.device) -> str:
    """Return HELIOS_KERNELS for a chip on which `auto` has not tried them yet."""
    return "triton" if device.type == "cuda" and helios_kernels.find_triton().chip else ""


def _child(device: torch.device, part: str, seconds: float, *, kernels: str | None = None, **arguments) -> list[Json]:
    """Return the rows of a part of `chip`; HELIOS_KERNELS is `_wanted_kernels` unless `kernels` names another."""
    kernels = _wanted_kernels(device) if kernels is None else kernels
    question = {"part": part, "device": str(device), **arguments}
    variables = {"HELIOS_KERNELS": kernels} if kernels else None
    return ask("helios_cli.bench.chip", question, environment=variables, timeout=seconds)


def _kernels(device: torch.device, seconds: float, earlier: Results, *, compiled: bool) -> list[Json]:
    """Time all operations."""
    names = sorted(OPS, key=lambda name: name.startswith("attention"))  # the most likely to hang are last
    ceiling = earlier.get("ceiling", {}).get("result")
    arguments = {"compiled": compiled, "ceiling": ceiling, "seconds_each": OPERATION_SECONDS}
    return _one_by_one(device, "kernels", names, seconds, **arguments)


def _tuning(device: torch.device, seconds: float, earlier: Results) -> list[Json]:
    """Tune as `helios bench kernels --tune`: a better configuration is kept at once, and stays if time runs out."""
    names = list(dict.fromkeys(one.op for one in TUNABLES))
    return _one_by_one(device, "tuning", names, seconds, kernels="triton")


def _one_by_one(device: torch.device, part: str, names: list[str], seconds: float, **arguments: Any) -> list[Json]:
    """Measure operations. One that takes its process down loses only its own rows: another process does the rest."""
    end, rows = time.perf_counter() + seconds, []
    while names:
        try:
            answers = _child(device, part, end - time.perf_counter(), names=names, **arguments)
            names = []
        except ChildError as error:
            answers = error.answers
            begun = [row["begun"] for row in answers if "begun" in row]
            if not begun:
                raise
            answers.append({"op": begun[-1], "case": "the one after", "fault": error.message})
            names = names[names.index(begun[-1]) + 1 :] if end - time.perf_counter() > LEAST_SECONDS else []
        rows += [row for row in answers if "begun" not in row]
    return rows


def _render(task: Task, seconds: float, earlier: Results) -> Json:
    """Measure a film, its phases and their floors. If untried kernels crash it, it is measured without them, and the
    result reports that."""
    end, lost = time.perf_counter() + seconds, {}
    try:
        result = run("ours", task, timeout=seconds)
    except HeliosError as error:
        left = end - time.perf_counter()
        if task.kernels != "triton" or left < LEAST_SECONDS:
            raise
        lost = {"kernels_failed": error.message}
        result = run("ours", replace(task, kernels="reference"), timeout=left)
    ceiling = earlier.get("ceiling", {}).get("result")
    floors = {} if ceiling is None else against_floors(task, result, ceiling)
    return {**side(result), **lost, **floors, "gates": gates(task, result)}


def _offload(device: torch.device, shapes: Shapes, folder: str, seconds: float, earlier: Results) -> Json:
    """Render a chunk of a model that is read from the disk, in each way of placing it."""
    end, size = time.perf_counter() + seconds, shapes.compared
    checkpoint = Checkpoint.open(write_checkpoint(Path(folder, "model"), SPECS[size], dtype=torch.bfloat16))
    (rates,) = _child(device, "bandwidths", end - time.perf_counter(), folder=str(checkpoint.path))
    plan = plan_of(checkpoint.defaults, steps=(1, 1, 1), frames=FRAMES_PER_CHUNK, seed=0)
    load = workload_of(size, checkpoint, plan, device, torch.bfloat16)
    placed, small = placements(load, shapes.budgets)
    modes = [
        row if isinstance(row, dict) else {"mode": mode.name, "failed": row.message}
        for mode, row in measure_modes(checkpoint, load, placed, rates, device, seconds=end - time.perf_counter())
    ]
    return {"model": size, "bandwidths": rates, "modes": modes, "nothing_streams_in": small}


def _on_and_off(device: torch.device, compared: str, folder: str, seconds: float, earlier: Results) -> Json:
    """Compare a chunk with kernels and one without to the same in float32: kernels should be as near as PyTorch."""
    ways = {
        "on": (_wanted_kernels(device), "bfloat16"),
        "off": ("reference", "bfloat16"),
        "float32": ("reference", "float32"),
    }
    films, results = {}, dict[str, Json]()
    for name, (kernels, dtype) in ways.items():
        file = f"{folder}/{name}.pt"
        try:
            _child(device, "one chunk", seconds / len(ways), kernels=kernels, size=compared, dtype=dtype, file=file)
            films[name] = torch.load(file)
        except HeliosError as error:
            results[name] = {"failed": error.message}
    for ours, other in (("on", "float32"), ("off", "float32"), ("on", "off")):
        if ours in films and other in films:
            (distance,) = distances(films[ours], films[other])
            results[f"{ours} against {other}"] = {"latents_db": distance.latents_db, "frames_db": distance.frames_db}
    return {**results, "verdict": verdict(results)}


def verdict(results: dict[str, Json]) -> str:
    """Return whether kernels are right: within `NOISE_DB` as near float32 as PyTorch is without them."""
    on, off = results.get("on against float32"), results.get("off against float32")
    if not (on and off):
        failed = {name: one["failed"] for name, one in results.items() if "failed" in one}
        return "; ".join(f"not compared, {name}: {why}" for name, why in failed.items())
    good = all(on[measure] >= off[measure] - NOISE_DB for measure in on)
    figures = ", ".join(f"{on[key]:.1f} and {off[key]:.1f} dB ({key.removesuffix('_db')})" for key in on)
    return f"{'right' if good else 'WRONG'}: with kernels and without {figures} from float32"


def summary(part: Json) -> str:
    """Return the outcome of a part in a line."""
    result = part["result"] if isinstance(part.get("result"), dict) else {}
    verdict = result.get("verdict") or (rate_line(result) if "gates" in result else None)
    return part.get("failed") or part.get("left_out") or verdict or "done"  # a failure may have half a result


def rate_line(render: Json) -> str:
    """Return a render's rate, and apart from it what decides that."""
    rate, gates = render["steady_frames_per_second"] or render["frames_per_second"], render["gates"]
    steady = "steady" if render["steady_frames_per_second"] else "of the whole film"
    return (
        f"{format_figure(rate)} frames a second ({steady}); "
        f"transformer at {format_figure(gates['dit_teraflops'])} TFLOP/s; "
        f"{gates['decode_hidden']:.0%} of decoding hidden behind it"
    )


def heading(device: torch.device) -> Json:
    """Return what was measured on, and with."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "kernels": asdict(helios_kernels.find_triton()),
        "note": None if device.type == "cuda" else "a CPU: small shapes, which show that all parts run, not how fast",
    }


def main(arguments: list[str]) -> None:
    """Run `helios bench all` without the packages of the command line: PyTorch, Triton and NumPy are enough, and
    tokenizers for the renders. Writes the results to a file after every part."""
    out, seconds = Path(arguments[0]), float(arguments[1]) if arguments[1:] else SECONDS
    recall_kernels()
    for name, data in measure_all(pick_device(), seconds=seconds):
        out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        sys.stderr.write(f"{name}: {summary(data['parts'][name])}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
