"""How long a film takes: from speeds measured on this machine, else from what its kind of device can do at best."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from helios_cli.cost.gpus import KnownGpu, known_gpu
from helios_cli.cost.speeds import find_speed, is_near
from helios_cli.cost.work import Work
from helios_cli.device import Device
from helios_cli.recipe.plan import Plan
from helios_cli.weights.fp8 import Quant

DIT_UTILISATION, FP8_UTILISATION = 0.4, 0.28
"""Share of the peak that products and attention of these sizes reach in PyTorch, and products in fp8. Stated."""

VAE_UTILISATION = 0.2
"""Convolutions with few channels, and many element-wise passes. On an A100, others report a third. Stated."""

BALANCE = 989e12 / 3.35e12
"""Peak operations a byte of memory bandwidth up to which those shares hold: an H100's. What is between products is as
long as memory takes, so a card with more operations a byte reaches less of its peak. Stated."""

SMALL = {"bfloat16": (47e9, 117e9), "float32": (24e9, 59e9)}
"""Operations a second of the transformer and the VAE of the embedded model, on one thread of an AMD EPYC with AVX-512
(2026-11-21; in float32 half of what was measured in bfloat16): what a CPU is taken to do until it was measured."""

SMALL_PARAMETERS = 2_380_608
"""Parameters of the embedded model's transformer."""

ENCODE_PIXELS = 14e6
"""Of x264 medium on one core: 58 frames of 640x384 a second."""

BENCH = "helios bench render"


@dataclass(frozen=True)
class Rates:
    """Operations and pixels a second; None if nothing is known. `measured` says whether this machine was."""

    dit_flops: float | None
    vae_flops: float | None
    encode_pixels: float
    measured: bool
    basis: str


@dataclass(frozen=True)
class Duration:
    """Seconds by phase, of the whole film, without downloading and loading the model; None if unknown.

    Encoding overlaps with rendering: the film takes the longer of the two.
    """

    rates: Rates
    text: float | None
    conditioning: float | None
    denoise: float | None
    decode: float | None
    encode: float

    @property
    def total(self) -> float | None:
        parts = (self.text, self.conditioning, self.denoise, self.decode)
        return None if None in parts else max(sum(parts), self.encode)


def duration_of(plan: Plan, work: Work, device: Device, dtype: str, parameters: int, quant: Quant = "none") -> Duration:
    """`parameters` are the transformer's."""
    rates = rates_of(device, dtype, parameters, fp8_share=_fp8_share(work) if quant == "fp8" else 0.0)
    dit, vae = rates.dit_flops, rates.vae_flops
    return Duration(
        rates=rates,
        text=_seconds(work.text, dit),
        conditioning=_seconds(work.conditioning, vae),
        denoise=_seconds(work.denoise, dit),
        decode=_seconds(work.decode, vae),
        encode=prod(plan.size) * plan.num_frames / rates.encode_pixels,
    )


def rates_of(device: Device, dtype: str, parameters: int, *, fp8_share: float = 0.0) -> Rates:
    """For a transformer of so many parameters, of whose operations a share is of products in fp8."""
    speed = find_speed(device.name, measured_dtype(dtype, "fp8" if fp8_share else "none"), parameters)
    pixels = (speed and speed.encode_pixels) or ENCODE_PIXELS
    if speed and speed.dit_flops and speed.vae_flops:
        when = f" on {speed.measured}" if speed.measured else ""
        basis = f"measured here{when} with a model of {speed.parameters / 1e6:,.1f} M parameters"
        return Rates(speed.dit_flops, speed.vae_flops, pixels, True, basis)
    if found := known_gpu(device.name):
        dit, vae, peak = _stated(found[1], dtype, fp8_share)
        shares = f"{dit / peak:.0%} (transformer), {vae / peak:.0%} (VAE)"
        return Rates(dit, vae, pixels, False, f"stated: {shares} of a peak of {peak / 1e12:.0f} TFLOP/s")
    if device.kind == "cpu" and dtype in SMALL and not fp8_share and is_near(SMALL_PARAMETERS, parameters):
        return Rates(*SMALL[dtype], pixels, False, "roughly, as on an AMD EPYC with AVX-512; a film here measures it")
    return Rates(None, None, pixels, False, f"unmeasured at this model size: `{BENCH}`, or --on a GPU")


def measured_dtype(dtype: str, quant: Quant) -> str:
    """`Speed.dtype` of a film: products in fp8 have a speed of their own."""
    return dtype if quant == "none" else f"{dtype}, {quant}"


def _stated(gpu: KnownGpu, dtype: str, fp8_share: float) -> tuple[float, float, float]:
    """(transformer's, VAE's, peak) operations a second."""
    peak = gpu.float32_flops if dtype == "float32" else gpu.bfloat16_flops
    fed = min(peak, BALANCE * gpu.bandwidth)
    dit = DIT_UTILISATION * fed
    if fp8_share and gpu.fp8_flops:
        fp8 = FP8_UTILISATION * min(gpu.fp8_flops, 2 * BALANCE * gpu.bandwidth)
        dit = 1 / (fp8_share / fp8 + (1 - fp8_share) / dit)
    return dit, VAE_UTILISATION * fed, peak


def _fp8_share(work: Work) -> float:
    """The share of the transformer's operations that are products `--quant fp8` rounds (`weights.fp8`)."""
    rounded = sum(stage.film.projections + stage.film.feed_forward for stage in work.stages)
    return rounded / work.denoise if work.denoise else 0.0


def _seconds(flops: int, rate: float | None) -> float | None:
    if flops == 0:
        return 0.0
    return None if rate is None else flops / rate
