"""The parts of `helios bench all`, each measured by a process of its own that is given the part's name."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from helios_cli import machine
from helios_cli.bench.everything import shapes_of
from helios_cli.bench.fidelity import distances, film
from helios_cli.bench.offload import bandwidths
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import RandomModels
from helios_cli.bench.task import plan_of, synthetic_defaults
from helios_cli.child import serve
from helios_cli.cost.vae import decode_flops
from helios_cli.device import pick_device, torch_dtype
from helios_cli.engine.choices import compare_sums
from helios_cli.engine.chunks import render_chunks
from helios_cli.film.screen import Screen
from helios_cli.model import attention, backends, fp8
from helios_cli.model.causal import PAST, CausalConv3d
from helios_cli.model.convolution import convolve
from helios_cli.model.ops import linear
from helios_cli.recipe.plan import Plan
from helios_cli.units import FRAMES_PER_CHUNK, IN_8_BITS, LATENTS_PER_CHUNK
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import EXACT, FAST
from helios_kernels import bench as kernel_bench
from helios_kernels import tuning as kernel_tuning
from helios_kernels.dispatch import backend
from helios_kernels.timing import Sustained, gpu_seconds, sustained

Rows = Iterator[dict[str, Any]]

SUSTAINED_SECONDS = 1.0
"""Seconds for each product of `sustained_products`, by whose end a chip has found the clock that its power allows."""


def rows_of(question: dict[str, Any]) -> Rows:
    """Yield the rows of `question["part"]` on `question["device"]`, as they come; other keys are its arguments."""
    part, device = question.pop("part"), pick_device(question.pop("device"))
    kernel_tuning.use(machine.home() / machine.TUNED)
    yield from PARTS[part](device, **question)


@torch.no_grad()
def ceiling(device: torch.device, dtype: str = "bfloat16") -> Rows:
    """Measure a copy and products; on a CPU the product of 1024 rows and columns, as renders compute it."""
    kind = torch_dtype(dtype, device)
    if device.type == "cuda":
        yield asdict(kernel_bench.measure_ceiling(kind))
        return
    x, y = torch.empty(2**24, dtype=torch.int8, device=device), torch.randn(1024, 1024, device=device).to(kind)
    copy, product = seconds_of(lambda: x.clone(), device), seconds_of(lambda: linear(y, y), device)
    yield asdict(kernel_bench.Ceiling(copy=2 * x.numel() / copy, product=2 * 1024**3 / product))


@torch.no_grad()
def sustained_products(device: torch.device) -> Rows:
    """Measure what the products of a film sustain, in the time in which a chip has reached its power limit."""
    for rows, inner, outer in shapes_of(device).sustained:
        x, weight = (
            torch.randn(rows, inner, device=device).bfloat16(),
            torch.randn(outer, inner, device=device).bfloat16(),
        )
        if device.type == "cuda":
            found = sustained(partial(linear, x, weight), seconds=SUSTAINED_SECONDS)
        else:
            found = Sustained(seconds_of(partial(linear, x, weight), device), None, None)
        teraflops = 2 * rows * inner * outer / found.seconds / 1e12
        yield {"shape": f"{rows}x{inner}x{outer}", "teraflops": teraflops, "clock": found.clock, "watts": found.watts}


@torch.no_grad()
def decoding(device: torch.device) -> Rows:
    """Time the decoding of a chunk by the size of its pieces, with cuDNN's first choice and with its fastest, then the
    convolutions one by one, and the addition of a bias."""
    shapes = shapes_of(device)
    models, size = (
        RandomModels(SPECS[shapes.size], device, torch.bfloat16, name=shapes.size),
        SPECS[shapes.size].native_size,
    )
    vae = models.vae
    latents = torch.randn(1, vae.config.z_dim, LATENTS_PER_CHUNK, size[1] // 8, size[0] // 8, device=device).bfloat16()
    flops = decode_flops(models.vae_config, size)
    tries = (False, True) if device.type == "cuda" else (False,)
    for exponent in shapes.pieces:
        vae.piece_elements = 2**exponent
        for torch.backends.cudnn.benchmark in tries:
            row = {"piece": f"2^{exponent}", "benchmark": torch.backends.cudnn.benchmark}
            try:
                seconds = seconds_of(lambda: deque(vae.decode(latents), maxlen=0), device)
            except torch.OutOfMemoryError as error:
                yield {**row, "refused": backends.first_line(error)}
                torch.cuda.empty_cache()
                continue
            yield {**row, "ms": 1e3 * seconds, "teraflops": flops / seconds / 1e12}
    models.unload()
    for frames, height, width, inner, outer in shapes.convolutions:
        conv = CausalConv3d(inner, outer).to(device, torch.bfloat16)
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
        x = torch.randn(1, frames + PAST, height, width, inner, device=device).bfloat16()
        row = {"convolution": f"{frames}x{height}x{width}, {inner} to {outer}"}
        for torch.backends.cudnn.benchmark in tries:
            seconds = seconds_of(partial(convolve, conv, x, with_bias=False), device)
            teraflops = 2 * frames * height * width * inner * outer * 27 / seconds / 1e12
            yield {**row, "benchmark": torch.backends.cudnn.benchmark, "ms": 1e3 * seconds, "teraflops": teraflops}
    y, bias = torch.randn_like(x), torch.randn(inner, device=device).bfloat16()
    seconds = seconds_of(lambda: y.add_(bias), device)
    yield {"adding a bias, GB/s": 2 * y.nbytes / seconds / 1e9}


def kernels(device: torch.device, names: list[str], compiled: bool, ceiling: dict[str, Any] | None) -> Rows:
    """Time operations. Each is announced, so that one that never comes back is known."""
    kernel_bench.require(tuple(names))
    rates = kernel_bench.Ceiling(**ceiling) if ceiling else kernel_bench.measure_ceiling()
    for name in names:
        yield {"begun": name}
        for timing in kernel_bench.bench(rates, (name,), compiled=compiled):
            yield asdict(timing)


def tuning(device: torch.device, names: list[str]) -> Rows:
    """Look for every kernel's best configuration, and keep each as it is found."""
    like = kernel_tuning.begin()
    for name in names:
        yield {"begun": name}
        for outcome in kernel_tuning.tune(gpu_seconds, device=device, like=like, names=(name,)):
            kernel_tuning.keep(outcome, machine.home() / machine.TUNED)
            yield asdict(outcome)


@torch.no_grad()
def attentions(device: torch.device) -> Rows:
    """Time every attention at every shape, with the choice that `auto` would make."""
    for queries, keys, heads, head, biased in shapes_of(device).attention:
        q = torch.randn(1, queries, heads, head, device=device).bfloat16()
        k, v = torch.randn(2, 1, keys, heads, head, device=device).bfloat16()
        bias = torch.zeros(keys, device=device) if biased else None
        names = attention.ON_GPU if device.type == "cuda" else ("math", "flash", "sdpa", "blocked")
        candidates = {name: attention.RUN[name] for name in names if not (biased and name in attention.WITHOUT_BIAS)}
        timed = backends.measure(candidates, q, k, v, bias, partial(seconds_of, device=device))
        flops = 4 * queries * keys * heads * head
        teraflops = {name: flops / ms / 1e9 for name, ms in timed.ms.items()}
        shape = f"{queries}x{keys} {heads}x{head}{' bias' if biased else ''}"
        yield {"shape": shape, **asdict(timed), "teraflops": teraflops}
        if not biased:
            best = timed.name if timed.name in attention.RUN else "sdpa"
            candidates = {best: attention.RUN[best], **attention.RUN_8BIT}
            timing = partial(seconds_of, device=device)
            timed = backends.measure(candidates, q, k, v, None, timing, backends.AGREES_IN_8_BITS)
            timed = replace(timed, name=attention.nearest_of_the_faster(timed, list(candidates)))
            teraflops = {name: flops / ms / 1e9 for name, ms in timed.ms.items()}
            yield {"shape": shape + IN_8_BITS, **asdict(timed), "teraflops": teraflops}


@torch.no_grad()
def products(device: torch.device) -> Rows:
    """Time bfloat16 against fp8, with sums in float32 and with fast ones, and say which a film takes."""
    for rows, inner, outer in shapes_of(device).products:
        x = torch.randn(rows, inner, device=device).bfloat16()
        weight = torch.randn(outer, inner, device=device).bfloat16()
        row: dict[str, Any] = {"milliseconds": {}, "relative_error": {}, "refused": {}}
        row["milliseconds"]["bfloat16"] = 1e3 * seconds_of(partial(linear, x, weight), device)
        row["milliseconds"]["rounding the rows"] = 1e3 * seconds_of(partial(fp8.Fp8.of, x), device)
        try:
            found = compare_sums(rows, inner, outer, device, partial(seconds_of, device=device))
            names = {EXACT: "fp8", FAST: "fp8 with fast sums"}
            row["milliseconds"] |= {names[sums]: ms for sums, ms in found.ms.items()}
            row["relative_error"] = {names[sums]: apart for sums, apart in found.apart.items()}
            row["fast_sums"] = found.name == FAST
        except (RuntimeError, ValueError) as error:  # a product that the chip's library does not have
            row["refused"]["fp8"] = backends.first_line(error)
        yield {"rows": rows, "inner": inner, "outer": outer, **row}


def quality(device: torch.device) -> Rows:
    """Compare an fp8 film with a bfloat16 one, with random weights, whose errors are not held down by training."""
    size, films = shapes_of(device).size, []
    for quant in ("none", "fp8"):
        models = RandomModels(SPECS[size], device, torch.bfloat16, name=size, quant=quant)
        plan = _plan(size, 2)
        models.choices.settle(plan.size)
        films.append(film(models, plan))
        models.unload()
    yield from (asdict(distance) for distance in distances(films[1], films[0]))


def one_chunk(device: torch.device, size: str, dtype: str, file: str) -> Rows:
    """Write latents and frames of a chunk with random weights to `file`, to be compared."""
    torch.backends.cudnn.allow_tf32 = False  # float32 has to be float32
    models = RandomModels(SPECS[size], device, getattr(torch, dtype), name=size)
    torch.save(film(models, _plan(size, 1)), file)
    yield {"kernels": backend().name}


def synchronisations(device: torch.device, size: str) -> Rows:
    """Count where the host waits for the GPU in a chunk whose graphs are recorded. PyTorch does not count waits for an
    event, as the copies of frames do."""
    models = RandomModels(SPECS[size], device, torch.bfloat16, name=size)

    def chunk() -> None:
        writer: Any = Screen(lambda frames: None)
        for _ in render_chunks(_plan(size, 1), models, writer):
            pass

    for _ in range(2):
        chunk()
    torch.cuda.set_sync_debug_mode("warn")
    where = waits(chunk)
    torch.cuda.set_sync_debug_mode("default")
    yield {"count": sum(where.values()), "where": where}


def weight_rates(device: torch.device, folder: str) -> Rows:
    """Measure how fast a checkpoint's weights come."""
    yield bandwidths(Checkpoint.open(Path(folder)), device, torch.bfloat16)


def waits(work: Callable[[], None]) -> dict[str, int]:
    """Count PyTorch's warnings of synchronisations by file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    places = (f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message))
    return dict(Counter(places).most_common())


def _plan(size: str, chunks: int) -> Plan:
    return plan_of(synthetic_defaults(size), frames=chunks * FRAMES_PER_CHUNK, steps=(1, 1, 1), seed=0)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the median of a few calls, after one that is not counted."""
    if device.type == "cuda":
        return gpu_seconds(call)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        if device.type == "mps":
            torch.mps.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


PARTS: dict[str, Callable[..., Rows]] = {
    "ceiling": ceiling,
    "kernels": kernels,
    "tuning": tuning,
    "attention": attentions,
    "sustained products": sustained_products,
    "decoding": decoding,
    "fp8 products": products,
    "fp8 quality": quality,
    "one chunk": one_chunk,
    "synchronisations": synchronisations,
    "bandwidths": weight_rates,
}

if __name__ == "__main__":
    serve(rows_of)
