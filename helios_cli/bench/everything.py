"""All that there is to measure of a chip, in one go: `helios bench all`.

Every part is measured in a process of its own. One that fails or hangs says so, with what it has, and the others go
on; one that the time does not suffice for is left out and says that. On a CPU the same parts run at small shapes, which
shows that they run and nothing else.
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

import torch

import helios_kernels
from helios_cli import machine
from helios_cli.bench.fidelity import distances
from helios_cli.bench.floors import against_floors
from helios_cli.bench.job import STEADY_CHUNKS, Job, plan_of, run
from helios_cli.bench.offload import measure, placements, subject_of
from helios_cli.bench.report import environment, side
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.child import ChildError, ask
from helios_cli.device import pick_device
from helios_cli.engine.gpu import recall_kernels
from helios_cli.errors import HeliosError
from helios_cli.recipe.settings import ModelDefaults
from helios_cli.units import FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import FP8_CAPABILITY
from helios_kernels.check import OPS
from helios_kernels.tuning import TUNABLES

SECONDS = 480.0
"""After which no part goes on."""

PART_SECONDS = 150.0
"""Of one process: a kernel that hangs costs no more."""

NOISE_DB = 3.0
"""By which kernels may be further from float32 than PyTorch: twice its squared error."""

LEAST_SECONDS = 5.0
"""In which a process can at least begin."""


@dataclass(frozen=True)
class Shapes:
    """What is measured where.

    Attributes:
        size: of the synthetic model that is rendered; `compared`: of the one rendered with kernels on and off.
        attention: (queries, keys, heads, head size, with a bias).
        products: (rows, inputs, outputs).
        chunks: of every film but those compared.
        budgets: bytes in which the compared one streams.
    """

    size: str
    compared: str
    attention: tuple[tuple[int, int, int, int, bool], ...]
    products: tuple[tuple[int, int, int], ...]
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
    chunks=STEADY_CHUNKS,
    budgets=(3 * 10**9, 5 * 10**9),
)
CPU = Shapes("tiny", "tiny", ((300, 300, 4, 32, False), (200, 20, 4, 32, True)), ((256, 128, 512),), 2, (10**9,))


def shapes_of(device: torch.device) -> Shapes:
    return GPU if device.type == "cuda" else CPU


Results = dict[str, dict]
"""By the name of the part: "seconds", and "result" or "failed" or "left_out"."""


@dataclass(frozen=True)
class Part:
    """`measure` is told how many seconds it may take, at most `seconds`, and what other parts found before it."""

    name: str
    measure: Callable[[float, Results], object]
    needs_gpu: bool = False
    needs_fp8: bool = False
    seconds: float = PART_SECONDS


def parts(device: torch.device, folder: str) -> list[Part]:
    """In the order of what would be missed most."""
    shapes, is_gpu = shapes_of(device), device.type == "cuda"
    job = Job(
        folder=None,
        synthetic=shapes.size,
        size=SPECS[shapes.size].native_size,
        num_frames=shapes.chunks * FRAMES_PER_CHUNK,
        steps=(1, 1, 1),
        dtype="bfloat16",
        device=str(device),
        threads=0 if is_gpu else 1,
        film="",
        kernels=_kernels_wanted(device),
    )
    plain, twice, fp8 = replace(job, kernels="reference"), replace(job, steps=(2, 2, 2)), {"quant": "fp8"}
    child, film = partial(_child, device), f"render {shapes.size}"
    return [
        Part("ceiling", lambda seconds, known: child("ceiling", seconds)[0]),
        Part(f"{film} 1,1,1", partial(_render, job)),
        Part("attention", lambda seconds, known: child("attention", seconds)),
        Part("fp8 products", lambda seconds, known: child("fp8 products", seconds), needs_fp8=True),
        Part(f"{film} 1,1,1 fp8", partial(_render, replace(job, **fp8)), needs_fp8=True),
        Part("kernels", partial(_kernels, device, compiled=False), needs_gpu=True),
        Part("kernels on and off", partial(_on_and_off, device, shapes.compared, folder)),
        Part(f"{film} 1,1,1 without kernels", partial(_render, plain)),
        Part(f"{film} 2,2,2", partial(_render, twice)),
        Part(f"{film} 2,2,2 fp8", partial(_render, replace(twice, **fp8)), needs_fp8=True),
        Part("fp8 quality", lambda seconds, known: child("fp8 quality", seconds), needs_fp8=True),
        Part("synchronisations", partial(_synchronisations, device, shapes.compared), needs_gpu=True),
        Part("offload", partial(_offload, device, shapes, folder), seconds=90.0),
        Part("kernels against torch.compile", partial(_kernels, device, compiled=True), needs_gpu=True),
        Part("tuning", partial(_tuning, device), needs_gpu=True, seconds=SECONDS),  # whatever is left
    ]


def results(device: torch.device, *, seconds: float = SECONDS) -> Iterator[tuple[str, dict]]:
    """Yields each part's name with all results so far, as it ends."""
    data = {**environment(), **heading(device), "parts": {}}
    with machine.temporary_folder() as work:
        for name, said in measure_all(device, work, seconds=seconds):
            data["parts"][name] = said
            yield name, data


def measure_all(device: torch.device, folder: str, *, seconds: float = SECONDS) -> Iterator[tuple[str, dict]]:
    """(name, what came of it as in `Results`) of each part, as it ends."""
    began, known = time.perf_counter(), {}
    for part in parts(device, folder):
        start = time.perf_counter()
        left = seconds - (start - began)
        why = f"{seconds:g} seconds were over" if left < LEAST_SECONDS else _why_not(part, device)
        said = {"left_out": why} if why else _measured(part, min(left, part.seconds), known)
        known[part.name] = {"seconds": 0.0 if why else time.perf_counter() - start, **said}
        yield part.name, known[part.name]


def _why_not(part: Part, device: torch.device) -> str | None:
    """Why there is nothing to measure on `device`."""
    if part.needs_gpu and device.type != "cuda":
        return "timed on a GPU"
    if part.needs_fp8 and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return "this GPU has no fp8"
    return None


def _measured(part: Part, seconds: float, known: Results) -> dict:
    try:
        return {"result": part.measure(seconds, known)}
    except Exception as error:  # whatever it is, the other parts are worth having
        said = {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc(limit=-3)}
        return {**said, **({"result": error.answers} if isinstance(error, ChildError) and error.answers else {})}


def _kernels_wanted(device: torch.device) -> str:
    """HELIOS_KERNELS for a chip that `auto` has not been allowed yet."""
    return "triton" if device.type == "cuda" and helios_kernels.find_triton().chip else ""


def _child(device: torch.device, part: str, seconds: float, *, kernels: str | None = None, **arguments) -> list[dict]:
    """The rows of a part of `chip`, with HELIOS_KERNELS as it is wanted here unless `kernels` says otherwise."""
    kernels = _kernels_wanted(device) if kernels is None else kernels
    question = {"part": part, "device": str(device), **arguments}
    return ask(
        "helios_cli.bench.chip", question, environment={"HELIOS_KERNELS": kernels} if kernels else None, timeout=seconds
    )


def _kernels(device: torch.device, seconds: float, known: Results, *, compiled: bool) -> list[dict]:
    """All operations, timed."""
    names = sorted(OPS, key=lambda name: name.startswith("attention"))  # what is most likely to hang is last
    ceiling = known.get("ceiling", {}).get("result")
    return _one_by_one(device, "kernels", names, seconds, compiled=compiled, ceiling=ceiling)


def _tuning(device: torch.device, seconds: float, known: Results) -> list[dict]:
    """As `helios bench kernels --tune`: what is found better is kept at once, and stays if time runs out."""
    names = list(dict.fromkeys(one.op for one in TUNABLES))
    return _one_by_one(device, "tuning", names, seconds, kernels="triton")


def _one_by_one(device: torch.device, part: str, names: list[str], seconds: float, **arguments) -> list[dict]:
    """All operations; one that takes its process down costs its own rows, and the next process goes on behind it."""
    end, rows = time.perf_counter() + seconds, []
    while names:
        try:
            said = _child(device, part, end - time.perf_counter(), names=names, **arguments)
            names = []
        except ChildError as error:
            said = error.answers
            begun = [row["begun"] for row in said if "begun" in row]
            if not begun:
                raise
            said.append({"op": begun[-1], "case": "the one after", "fault": error.message})
            names = names[names.index(begun[-1]) + 1 :] if end - time.perf_counter() > LEAST_SECONDS else []
        rows += [row for row in said if "begun" not in row]
    return rows


def _render(job: Job, seconds: float, known: Results) -> dict:
    """Measures a film, its phases, and how long each would take at the rate that a large product reaches here. If
    untried kernels crash it, it is measured without them, and the result says so."""
    end, lost = time.perf_counter() + seconds, {}
    try:
        result = run("ours", job, timeout=seconds)
    except HeliosError as error:
        left = end - time.perf_counter()
        if job.kernels != "triton" or left < LEAST_SECONDS:
            raise
        lost = {"kernels_failed": error.message}
        result = run("ours", replace(job, kernels="reference"), timeout=left)
    ceiling = known.get("ceiling", {}).get("result")
    return {**side(result), **lost, **({} if ceiling is None else against_floors(job, result, ceiling))}


def _synchronisations(device: torch.device, size: str, seconds: float, known: Results) -> dict:
    return _child(device, "synchronisations", seconds, size=size)[0]


def _offload(device: torch.device, shapes: Shapes, folder: str, seconds: float, known: Results) -> dict:
    """A chunk of a model that is read from the disk, in each way of placing it."""
    end, spec = time.perf_counter() + seconds, SPECS[shapes.compared]
    checkpoint = Checkpoint.open(write_checkpoint(Path(folder, "model"), spec, dtype=torch.bfloat16))
    (rates,) = _child(device, "bandwidths", end - time.perf_counter(), folder=str(checkpoint.path))
    preset = checkpoint.preset
    defaults = ModelDefaults(spec.native_size, preset.steps, preset.guidance)
    plan = plan_of(defaults, size=spec.native_size, steps=(1, 1, 1), frames=FRAMES_PER_CHUNK, seed=0)
    subject = subject_of(shapes.compared, checkpoint, plan, device, torch.bfloat16)
    placed, small = placements(subject, shapes.budgets)
    modes = []
    for mode, said in measure(checkpoint, subject, placed, rates, device, seconds=end - time.perf_counter()):
        modes.append(said if isinstance(said, dict) else {"mode": mode.name, "failed": said.message})
    return {"model": shapes.compared, "bandwidths": rates, "modes": modes, "nothing_streams_in": small}


def _on_and_off(device: torch.device, compared: str, folder: str, seconds: float, known: Results) -> dict:
    """A chunk with kernels and without, each held against the same in float32: kernels are to be as near as PyTorch."""
    ways = {
        "on": (_kernels_wanted(device), "bfloat16"),
        "off": ("reference", "bfloat16"),
        "float32": ("reference", "float32"),
    }
    films, found = {}, {}
    for name, (kernels, dtype) in ways.items():
        file = f"{folder}/{name}.pt"
        try:
            _child(device, "one chunk", seconds / len(ways), kernels=kernels, size=compared, dtype=dtype, file=file)
            films[name] = torch.load(file)
        except HeliosError as error:
            found[name] = {"failed": error.message}
    for ours, other in (("on", "float32"), ("off", "float32"), ("on", "off")):
        if ours in films and other in films:
            (distance,) = distances(films[ours], films[other])
            found[f"{ours} against {other}"] = {"latents_db": distance.latents_db, "frames_db": distance.frames_db}
    return {**found, "verdict": verdict(found)}


def verdict(found: dict[str, dict]) -> str:
    """Whether kernels are right: within `NOISE_DB` as near float32 as PyTorch is without them."""
    on, off = found.get("on against float32"), found.get("off against float32")
    if not (on and off):
        return "; ".join(f"not compared, {name}: {said['failed']}" for name, said in found.items() if "failed" in said)
    good = all(on[measure] >= off[measure] - NOISE_DB for measure in on)
    told = ", ".join(f"{on[key]:.1f} and {off[key]:.1f} dB ({key.removesuffix('_db')})" for key in on)
    return f"{'right' if good else 'WRONG'}: with kernels and without {told} from float32"


def told(said: dict) -> str:
    """What came of a part, in a line."""
    verdict = said["result"].get("verdict") if isinstance(said.get("result"), dict) else None
    return said.get("failed") or said.get("left_out") or verdict or "done"  # a failure may have half a result


def heading(device: torch.device) -> dict:
    """What was measured on, and what with."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "kernels": asdict(helios_kernels.find_triton()),
        "note": None if device.type == "cuda" else "a CPU: small shapes, which show that all parts run, not how fast",
    }


def main(arguments: list[str]) -> None:
    """`helios bench all` where the packages of the command line are not installed: PyTorch, Triton and NumPy are
    enough, and tokenizers for what renders. Writes the results to a file, after every part."""
    out, seconds = Path(arguments[0]), float((arguments[1:] or [SECONDS])[0])
    recall_kernels()
    for name, data in results(pick_device(), seconds=seconds):
        out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        sys.stderr.write(f"{name}: {told(data['parts'][name])}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
