"""How long a film takes: from speeds measured on this machine, else from what its kind of device can do at best."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from helios_cli.cost.device import KNOWN_GPUS, Device
from helios_cli.cost.speeds import find_speed
from helios_cli.cost.work import Work
from helios_cli.recipe.plan import Plan

DIT_UTILISATION = 0.4
"""Share of the peak that products and attention of these sizes reach in PyTorch. Stated."""

VAE_UTILISATION = 0.2
"""Convolutions with few channels, and many element-wise passes. On an A100, others report a third. Stated."""

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


def duration_of(plan: Plan, work: Work, device: Device, dtype: str, parameters: int) -> Duration:
    """`parameters` are the transformer's."""
    rates = rates_of(device, dtype, parameters)
    dit, vae = rates.dit_flops, rates.vae_flops
    return Duration(
        rates=rates,
        text=_seconds(work.text, dit),
        conditioning=_seconds(work.conditioning, vae),
        denoise=_seconds(work.denoise, dit),
        decode=_seconds(work.decode, vae),
        encode=prod(plan.size) * plan.num_frames / rates.encode_pixels,
    )


def rates_of(device: Device, dtype: str, parameters: int) -> Rates:
    """For a transformer of so many parameters."""
    speed = find_speed(device.name, dtype, parameters)
    stated = _stated(device, dtype)
    pixels = (speed and speed.encode_pixels) or ENCODE_PIXELS
    if speed and speed.dit_flops and speed.vae_flops:
        when = f" on {speed.measured}" if speed.measured else ""
        basis = f"measured here{when} with a model of {speed.parameters / 1e6:,.1f} M parameters"
        return Rates(speed.dit_flops, speed.vae_flops, pixels, True, basis)
    if stated is None:
        basis = f"unmeasured at this model size: `{BENCH}`, or --on a GPU"
        return Rates(None, None, pixels, False, basis)
    shares = f"{DIT_UTILISATION:.0%} (transformer), {VAE_UTILISATION:.0%} (VAE)"
    sheet = f"{stated / 1e12:.0f} TFLOP/s"
    return Rates(
        stated * DIT_UTILISATION,
        stated * VAE_UTILISATION,
        pixels,
        False,
        f"stated: {shares} of a peak of {sheet}",
    )


def _stated(device: Device, dtype: str) -> float | None:
    known = next((gpu for name, gpu in KNOWN_GPUS.items() if name.lower() in device.name.lower()), None)
    if known is None:
        return None
    return known.float32_flops if dtype == "float32" else known.bfloat16_flops


def _seconds(flops: int, rate: float | None) -> float | None:
    if flops == 0:
        return 0.0
    return None if rate is None else flops / rate
