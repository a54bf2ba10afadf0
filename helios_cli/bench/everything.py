"""All that there is to measure of a chip, in one go: `helios bench all`.

A part that fails says so and the others go on; a part that the time does not suffice for is left out and says that. On
a CPU the same parts run at small shapes, which shows that they run and nothing else.
"""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import torch

import helios_kernels
from helios_cli.bench.fidelity import distances, film
from helios_cli.bench.floors import floors
from helios_cli.bench.job import Job, run
from helios_cli.bench.report import agreement_db, side
from helios_cli.bench.synthetic import RandomModels
from helios_cli.model import attention, backends
from helios_cli.model.fp8 import Fp8
from helios_cli.units import FRAMES_PER_CHUNK
from helios_cli.weights.fp8 import quantize_weight
from helios_cli.weights.specs import SPECS
from helios_kernels import bench as kernel_bench

SECONDS = 480.0
"""After which no part is begun."""


@dataclass(frozen=True)
class Shapes:
    """What is measured where.

    Attributes:
        size: of the synthetic model that is rendered; `compared`: of the one rendered with kernels on and off.
        attention: (queries, keys, heads, head size, with a bias).
        products: (rows, inputs, outputs).
        chunks: of every film but those compared.
    """

    size: str
    compared: str
    attention: tuple[tuple[int, int, int, int, bool], ...]
    products: tuple[tuple[int, int, int], ...]
    chunks: int


GPU = Shapes(
    size="14b",
    compared="1.3b",
    attention=(
        *((rows, rows, 40, 128, False) for rows in (2940, 4560, 11040)),
        (8640, 11040, 40, 128, False),
        *((rows, 122, 40, 128, True) for rows in (540, 2160, 8640)),
    ),
    products=((11040, 5120, 15360), (11040, 5120, 13824), (11040, 13824, 5120), (2940, 5120, 13824)),
    chunks=3,
)
CPU = Shapes("tiny", "tiny", ((300, 300, 4, 32, False), (200, 20, 4, 32, True)), ((256, 128, 512),), 2)


@dataclass(frozen=True)
class Part:
    name: str
    measure: Callable[[], object]
    needs_gpu: bool = False


def parts(device: torch.device, shapes: Shapes, folder: str) -> Iterator[Part]:
    """In the order of what would be missed most."""
    job = Job(
        folder=None,
        synthetic=shapes.size,
        size=SPECS[shapes.size].native_size,
        num_frames=shapes.chunks * FRAMES_PER_CHUNK,
        steps=(1, 1, 1),
        dtype="bfloat16",
        device=str(device),
        threads=0 if device.type == "cuda" else 1,
        film=f"{folder}/film.mp4",
        kernels="triton" if device.type == "cuda" else "",
    )
    yield Part("ceiling", lambda: asdict(_ceiling(device)))
    yield Part("kernels", lambda: _kernels(compiled=False), needs_gpu=True)
    yield Part("attention", lambda: _attention(device, shapes))
    yield Part("fp8 products", lambda: _products(device, shapes))
    for steps in ((1, 1, 1), (2, 2, 2)):
        for quant in ("none", "fp8"):
            name = f"render {shapes.size} {','.join(map(str, steps))}{' fp8' if quant == 'fp8' else ''}"
            yield Part(name, lambda steps=steps, quant=quant: _render(replace(job, steps=steps, quant=quant), device))
    yield Part("kernels on and off", lambda: _on_and_off(job, shapes, folder))
    yield Part("fp8 quality", lambda: _quality(device, shapes))
    yield Part("kernels against torch.compile", lambda: _kernels(compiled=True), needs_gpu=True)


def measure_all(
    device: torch.device, shapes: Shapes, folder: str, *, seconds: float = SECONDS
) -> Iterator[tuple[str, dict]]:
    """(name, {"seconds", and "result" or "failed" or "left_out"}) of each part, as it ends."""
    began = time.perf_counter()
    for part in parts(device, shapes, folder):
        start = time.perf_counter()
        why = f"{seconds:g} seconds were over" if start - began > seconds else None
        if part.needs_gpu and device.type != "cuda":
            why = "timed on a GPU"
        if why:
            yield part.name, {"seconds": 0.0, "left_out": why}
            continue
        try:
            said = {"result": part.measure()}
        except Exception as error:  # whatever it is, the other parts are worth having
            said = {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc(limit=-3)}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield part.name, {"seconds": time.perf_counter() - start, **said}


def _ceiling(device: torch.device) -> kernel_bench.Ceiling:
    """Of the device: what a copy and a product reach, the product of 1024 rows and columns on a CPU."""
    if device.type == "cuda":
        return kernel_bench.measure_ceiling()
    x, y = torch.empty(2**24, dtype=torch.int8), torch.randn(1024, 1024).bfloat16()
    copy, product = seconds_of(lambda: x.clone(), device), seconds_of(lambda: y @ y, device)
    return kernel_bench.Ceiling(copy=2 * x.numel() / copy, product=2 * 1024**3 / product)


def _kernels(*, compiled: bool) -> list[dict]:
    return [asdict(timing) for timing in kernel_bench.bench(compiled=compiled)]


@torch.no_grad()
def _attention(device: torch.device, shapes: Shapes) -> list[dict]:
    """Every attention at every shape; what `auto` would take is first among the names."""
    found = []
    for queries, keys, heads, head, biased in shapes.attention:
        q = torch.randn(1, queries, heads, head, device=device).bfloat16()
        k, v = torch.randn(2, 1, keys, heads, head, device=device).bfloat16()
        bias = torch.zeros(keys, device=device) if biased else None
        names = attention.ON_GPU if device.type == "cuda" else ("math", "flash", "sdpa", "blocked")
        candidates = {name: attention.RUN[name] for name in names if not (biased and name == "flash")}
        timed = backends.measure(candidates, q, k, v, bias, lambda call: 1e3 * seconds_of(call, device))
        flops = 4 * queries * keys * heads * head
        teraflops = {name: flops / ms / 1e9 for name, ms in timed.ms.items()}
        found.append({"shape": backends.shape_key(q, k, bias), **asdict(timed), "teraflops": teraflops})
    return found


@torch.no_grad()
def _products(device: torch.device, shapes: Shapes) -> list[dict]:
    """bfloat16 against fp8, with the sums in float32 and, as Hopper does it faster, in fewer bits."""
    found = []
    for rows, inner, outer in shapes.products:
        x = torch.randn(rows, inner, device=device).bfloat16()
        weight = torch.randn(outer, inner, device=device).bfloat16()
        values, scale = quantize_weight(weight)
        rounded = Fp8.of(x)

        def product(fast: bool, a=rounded, b=values, s=scale) -> torch.Tensor:
            return torch._scaled_mm(
                a.values, b.T, scale_a=a.scales, scale_b=s[None], out_dtype=torch.bfloat16, use_fast_accum=fast
            )

        exact = x.float() @ weight.float().T
        times = {
            "bfloat16": seconds_of(lambda x=x, weight=weight: x @ weight.T, device),
            "fp8": seconds_of(lambda: product(False), device),
            "fp8 with fewer bits": seconds_of(lambda: product(True), device),
            "rounding the rows": seconds_of(lambda x=x: Fp8.of(x), device),
        }
        found.append(
            {
                "rows": rows,
                "inner": inner,
                "outer": outer,
                "milliseconds": {name: 1e3 * value for name, value in times.items()},
                "relative_error": {
                    "fp8": _relative(product(False), exact),
                    "fp8 with fewer bits": _relative(product(True), exact),
                },
            }
        )
    return found


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b).norm() / b.norm()).item()


def _render(job: Job, device: torch.device) -> dict:
    """A film, its phases, and how long each would take at the rate that a large product reaches here."""
    result = run("ours", job, timeout=SECONDS / 2)
    floor = floors(job, "bfloat16", _ceiling(device).product)
    return {
        **side(result),
        "steady_frames_per_second": result.steady_frames_per_second,
        "floors": floor,
        "share_of_floor": {phase: floor[phase] / result.phases[phase] for phase in floor},
    }


def _on_and_off(job: Job, shapes: Shapes, folder: str) -> dict:
    """The same film with and without kernels: times, and how alike the pictures are."""
    spec = SPECS[shapes.compared]
    results, films = {}, []
    for kernels in (job.kernels, "reference"):
        films.append(f"{folder}/{kernels or 'as-it-is'}.mkv")
        one = replace(
            job,
            synthetic=shapes.compared,
            size=spec.native_size,
            num_frames=FRAMES_PER_CHUNK,
            film=films[-1],
            kernels=kernels,
        )
        results[kernels or "auto"] = side(run("ours", one, timeout=SECONDS / 4))
    return {"agreement_db": agreement_db(*films), **results}


def _quality(device: torch.device, shapes: Shapes) -> list[dict]:
    """The distance of an fp8 film from a bfloat16 one with random weights, whose errors nothing trained holds down."""
    from helios_cli.bench.job import job_plan
    from helios_cli.recipe.settings import ModelDefaults
    from helios_cli.weights.checkpoint import PRESETS

    spec, preset = SPECS[shapes.size], PRESETS["distilled"]
    job = Job(None, shapes.size, spec.native_size, 2 * FRAMES_PER_CHUNK, (1, 1, 1), "bfloat16", str(device), 0, "")
    plan = job_plan(job, ModelDefaults(spec.native_size, preset.steps, preset.guidance))
    films = []
    for quant in ("none", "fp8"):
        models = RandomModels(spec, device, torch.bfloat16, name=shapes.size, quant=quant)
        films.append(film(models, plan))
        models.unload()
    return [asdict(distance) for distance in distances(films[1], films[0])]


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Median of a few calls, after one."""
    call()
    if device.type == "cuda":
        return backends.gpu_milliseconds(call) / 1e3
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def heading(device: torch.device) -> dict:
    """What was measured on, and what with."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "kernels": asdict(helios_kernels.backend()),
        "note": None if device.type == "cuda" else "a CPU: small shapes, which show that all parts run, not how fast",
    }
