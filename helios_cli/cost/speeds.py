"""The time a film takes: from speeds measured on this machine, else from what its kind of device can do at best.

`helios bench` and finished films write the speeds of this machine to `speeds.json` in HELIOS_HOME:

    {"version": 1, "speeds": [{"device": "NVIDIA H200", "dtype": "bfloat16", "parameters": 14312427584,
                               "dit_flops": 4.1e14, "vae_flops": 1.2e14, "encode_pixels": 1.5e7,
                               "measured": "2026-11-20"}],
     "bandwidths": {"NVIDIA H200": {"disk": 2.1e9, "cache": 3.1e10, "upload": 5.2e10}},
     "after": {"9f86d081884c7d65": 2.4e6}}

`device` is `Device.name`. `dtype` and `parameters` are the transformer's; with products in fp8 `dtype` is "bfloat16,
fp8". `dit_flops` and `vae_flops` are operations a second, as `cost.work` and `cost.vae` count them, `encode_pixels`
pixels a second of frames, of the default .mp4. A rate or the date may be missing: it was not measured. `bandwidths` are
the bytes a second at which weights come from the disk and out of the page cache, and over the bus to a GPU. `after` has
the rendered pixels a second that a program and filters take (`After.key`), encoding included.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from helios_cli import machine
from helios_cli.cost.gpus import KnownGpu, known_gpu
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.files import replacing, turns
from helios_cli.weights.fp8 import Quant

if TYPE_CHECKING:
    from helios_cli.film.after import After

VERSION = 1
BANDWIDTHS = ("disk", "cache", "upload")
RATES = ("dit_flops", "vae_flops", "encode_pixels")

NEAR = 4
"""Times larger or smaller that another model may be for a speed to hold: a small one waits for launches and memory."""

DIT_UTILISATION, FP8_UTILISATION = 0.4, 0.28
"""Share of the peak that products and attention of these sizes reach in PyTorch, and products in fp8. Stated."""

VAE_UTILISATION = 0.2
"""Share for convolutions with few channels and many element-wise passes. On an A100, a third is reported. Stated."""

BALANCE = 989e12 / 3.35e12
"""Peak operations a byte of memory bandwidth up to which those shares hold: an H100's. The passes between products take
as long as memory does, so a card with more operations a byte reaches less of its peak. Stated."""

SMALL = {"bfloat16": (47e9, 117e9), "float32": (24e9, 59e9)}
"""Operations a second of the transformer and the VAE of the embedded model, on one thread of an AMD EPYC with AVX-512
(2026-11-21; in float32 half of what was measured in bfloat16): the estimate for a CPU that was not measured."""

SMALL_PARAMETERS = 2_380_608
"""Parameters of the embedded model's transformer."""

ENCODE_PIXELS = 14e6
"""Pixels a second of x264 medium on one core: 58 frames of 640x384."""

LEAST_CHUNKS = 3
"""Chunks that a film on a GPU needs to be measured: the first may have compiled and recorded, two more did not."""

MOST_AFTER = 50
"""Programs and filters whose speeds are kept, the newest."""

BENCH = "helios bench render"


# What was measured


class MeasuredSpeed(NamedTuple):
    """The speed of one device and dtype with a transformer of `parameters`; None for what was not measured."""

    device: str
    dtype: str
    parameters: int
    dit_flops: float | None = None
    vae_flops: float | None = None
    encode_pixels: float | None = None
    measured: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.device, self.dtype, self.parameters


class _Stored(NamedTuple):
    """The content of the file; what is missing, damaged or of another version is left out: it can be made again."""

    speeds: dict[tuple[str, str, int], MeasuredSpeed]
    bandwidths: dict[str, dict[str, float]]
    after: dict[str, float]

    @classmethod
    def read(cls) -> _Stored:
        try:
            stored = json.loads(speeds_file().read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict) or stored.get("version") != VERSION:
            stored = {}
        entries, devices, after = (stored.get(key) for key in ("speeds", "bandwidths", "after"))
        speeds = [speed for entry in entries if (speed := _speed(entry))] if isinstance(entries, list) else []
        bandwidths = {
            device: {key: rates[key] for key in BANDWIDTHS if _is_positive(rates.get(key))}
            for device, rates in (devices.items() if isinstance(devices, dict) else ())
            if isinstance(rates, dict)
        }
        rates = after.items() if isinstance(after, dict) else ()
        behind = {key: rate for key, rate in rates if _is_positive(rate)}
        return cls({speed.key: speed for speed in speeds}, bandwidths, behind)

    def write(self) -> None:
        speeds = [
            {name: value for name, value in speed._asdict().items() if value is not None}
            for speed in self.speeds.values()
        ]
        after = dict(list(self.after.items())[-MOST_AFTER:])
        content = {"version": VERSION, "speeds": speeds, "bandwidths": self.bandwidths, "after": after}
        with replacing(speeds_file()) as new:
            new.write_text(json.dumps(content, indent=2), encoding="utf-8")


def speeds_file() -> Path:
    return machine.home() / "speeds.json"


def read_speeds() -> list[MeasuredSpeed]:
    return list(_Stored.read().speeds.values())


def read_bandwidths() -> dict[str, dict[str, float]]:
    """Read the bandwidths by device."""
    return _Stored.read().bandwidths


def read_after() -> dict[str, float]:
    """Read the rendered pixels a second of what came behind films, by `After.key`."""
    return _Stored.read().after


def _speed(entry: object) -> MeasuredSpeed | None:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("device", "dtype")):
        return None
    parameters, measured = entry.get("parameters"), entry.get("measured")
    if not isinstance(parameters, int) or not _is_positive(parameters):
        return None
    rates = {name: entry[name] for name in RATES if _is_positive(entry.get(name))}
    date = measured if isinstance(measured, str) else None
    return MeasuredSpeed(entry["device"], entry["dtype"], parameters, **rates, measured=date)


def _is_positive(value: object) -> bool:
    """Return whether `value` is a number over 0 that a float can hold, which a number in JSON need not be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def find_speed(device: str, dtype: str, parameters: int) -> MeasuredSpeed | None:
    """Return the speed with the model nearest in size to `parameters`; None if each is more than NEAR times off."""
    speeds = [speed for speed in read_speeds() if (speed.device, speed.dtype) == (device, dtype)]
    near = (speed for speed in speeds if is_near(speed.parameters, parameters))
    return min(near, key=lambda speed: _ratio(speed.parameters, parameters), default=None)


def is_near(measured: int, parameters: int) -> bool:
    """Return whether a speed measured with a transformer of `measured` parameters holds for one of `parameters`."""
    return _ratio(measured, parameters) <= NEAR


def _ratio(a: int, b: int) -> float:
    return max(a, b) / min(a, b)


def record_speed(speed: MeasuredSpeed) -> None:
    """Store `speed` for its device, dtype and size; rates that it leaves out stay as they were."""
    given = {name: value for name, value in speed._asdict().items() if value is not None}
    with _changing() as stored:
        stored.speeds[speed.key] = stored.speeds.get(speed.key, speed)._replace(**given)


def record_bandwidths(device: str, rates: Mapping[str, float]) -> None:
    """Store bytes a second for `device`; those that are left out stay as they were."""
    with _changing() as stored:
        stored.bandwidths[device] = {**stored.bandwidths.get(device, {}), **rates}


def record_after(key: str, rate: float) -> None:
    """Store the rendered pixels a second of what came after a film."""
    with _changing() as stored:
        stored.after.pop(key, None)
        stored.after[key] = rate


@contextlib.contextmanager
def _changing() -> Iterator[_Stored]:
    """Yield the file's content, to be changed in place, and write it; other processes wait for their turn."""
    folder = speeds_file().parent
    folder.mkdir(parents=True, exist_ok=True)
    with turns(folder):
        stored = _Stored.read()
        yield stored
        stored.write()


# How long a film takes


class Rates(NamedTuple):
    """Operations and pixels a second; None if unknown. `measured` says whether they were measured on this machine."""

    dit_flops: float | None
    vae_flops: float | None
    encode_pixels: float
    measured: bool
    basis: str


class Duration(NamedTuple):
    """Seconds of a film by phase, without downloading and loading the model; None if unknown. Encoding overlaps with
    rendering: a film takes the longer of the two."""

    rates: Rates
    text: float | None
    conditioning: float | None
    denoise: float | None
    decode: float | None
    encode: float
    final: float | None = 0.0
    """The decoding by the VAE that follows a preview."""

    @property
    def total(self) -> float | None:
        parts = total([self.text, self.conditioning, self.denoise, self.decode, self.final])
        return None if parts is None else max(parts, self.encode)


def total(values: Sequence[float | None]) -> float | None:
    """Return the sum, or None if one of the values is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def duration_of(load: Workload) -> Duration:
    work, plan = load.work, load.plan
    # The share of the transformer's operations that --quant fp8 rounds (`weights.fp8.LAYERS`).
    rounded = sum(stage.film.projections + stage.film.feed_forward for stage in work.stages)
    fp8_share = rounded / work.denoise if load.quant != "none" and work.denoise else 0.0
    parameters = load.model.parameters["transformer"]
    rates = other = rates_of(load.device, load.dtype, parameters, fp8_share=fp8_share)
    if load.vae_device is not None:
        other = rates_of(load.vae_device, load.dtype, parameters)
        basis = rates.basis if load.vae_device.name == load.device.name else f"{rates.basis}; VAE: {other.basis}"
        measured = rates.measured and other.measured
        rates = rates._replace(vae_flops=other.vae_flops, measured=measured, basis=basis)
    return Duration(
        rates=rates,
        text=_seconds(work.text, other.dit_flops),
        conditioning=_seconds(work.conditioning, rates.vae_flops),
        denoise=_seconds(work.denoise, rates.dit_flops),
        decode=_seconds(work.decode, rates.vae_flops),
        encode=prod(plan.size) * plan.num_frames / rates.encode_pixels,
        final=_seconds(work.final, rates.vae_flops),
    )


def _seconds(flops: int, rate: float | None) -> float | None:
    if flops == 0:
        return 0.0
    return None if rate is None else flops / rate


def rates_of(device: Device, dtype: str, parameters: int, *, fp8_share: float = 0.0) -> Rates:
    """Return the rates of a transformer of `parameters`, a share of whose operations are products in fp8."""
    speed = find_speed(device.name, measured_dtype(dtype, "fp8" if fp8_share else "none"), parameters)
    pixels = (speed and speed.encode_pixels) or ENCODE_PIXELS
    if speed and speed.dit_flops and speed.vae_flops:
        when = f" on {speed.measured}" if speed.measured else ""
        basis = f"measured here{when} with a model of {speed.parameters / 1e6:,.1f} M parameters"
        return Rates(speed.dit_flops, speed.vae_flops, pixels, True, basis)
    if known := known_gpu(device.name):
        dit, vae, peak = _stated(known[1], dtype, fp8_share)
        shares = f"{dit / peak:.0%} (transformer), {vae / peak:.0%} (VAE)"
        return Rates(dit, vae, pixels, False, f"stated: {shares} of a peak of {peak / 1e12:.0f} TFLOP/s")
    if device.kind == "cpu" and dtype in SMALL and not fp8_share and is_near(SMALL_PARAMETERS, parameters):
        return Rates(*SMALL[dtype], pixels, False, "roughly, as on an AMD EPYC with AVX-512; a film here measures it")
    return Rates(None, None, pixels, False, f"unmeasured at this model size: `{BENCH}`, or --on a GPU")


def measured_dtype(dtype: str, quant: Quant) -> str:
    """Return the `MeasuredSpeed.dtype` of a film: products in fp8 have a speed of their own."""
    return dtype if quant == "none" else f"{dtype}, {quant}"


def _stated(gpu: KnownGpu, dtype: str, fp8_share: float) -> tuple[float, float, float]:
    """Return the transformer's, the VAE's and the peak operations a second."""
    peak = gpu.float32_flops if dtype == "float32" else gpu.bfloat16_flops
    fed = min(peak, BALANCE * gpu.bandwidth)
    dit = DIT_UTILISATION * fed
    if fp8_share and gpu.fp8_flops:
        fp8 = FP8_UTILISATION * min(gpu.fp8_flops, 2 * BALANCE * gpu.bandwidth)
        dit = 1 / (fp8_share / fp8 + (1 - fp8_share) / dit)
    return dit, VAE_UTILISATION * fed, peak


# What a finished film measures


def keep_speed(load: Workload, phases: Mapping[str, float], chunks: Sequence[float]) -> None:
    """Record the speed of a film that was rendered alone, as a whole and without waiting for weights.

    `phases` are `FilmDone.phases`, `chunks` the seconds of each chunk. The highest speed counts: other programs make
    films slower, never faster. A home that cannot be written records nothing.
    """
    speed = rendered_speed(load, phases, chunks)
    if speed is None:
        return
    before = find_speed(*speed.key)
    seconds = _film_seconds(load, before) if before is not None and before.key == speed.key else None
    if seconds is None or (_film_seconds(load, speed) or 0.0) < seconds:
        with contextlib.suppress(OSError):
            record_speed(speed)


def after_seconds(after: After, rendered: int) -> float | None:
    """Return the seconds of what comes after a film of so many rendered frames, if another film here had the same."""
    rate = read_after().get(after.key)
    return None if rate is None else prod(after.rendered.size) * rendered / rate


def keep_after(after: After, rendered: int, seconds: float) -> None:
    """Record the speed of what came after a film of so many rendered frames; the highest, as in `keep_speed`."""
    rate = prod(after.rendered.size) * rendered / seconds
    if rate > read_after().get(after.key, 0.0):
        with contextlib.suppress(OSError):
            record_after(after.key, rate)


def rendered_speed(load: Workload, phases: Mapping[str, float], chunks: Sequence[float]) -> MeasuredSpeed | None:
    """Return the speed that a film's seconds show; None if they show none."""
    if load.device.kind == "cpu":
        denoise = sum(seconds for phase, seconds in phases.items() if phase.startswith("stage "))
        decode = phases.get("decode", 0.0)
        if not denoise or not decode:
            return None
        dit, vae = load.work.denoise / denoise, load.work.decode / decode
    else:
        if len(chunks) < LEAST_CHUNKS:
            return None
        # Python runs ahead of a GPU, which decodes while it denoises: only the seconds of whole chunks are known.
        rest = replace(load.plan, chunks=load.plan.chunks[1:])
        work, slower = replace(load, plan=rest, prompts=load.work.prompts).work, DIT_UTILISATION / VAE_UTILISATION
        dit = (work.denoise + slower * work.decode) / sum(chunks[1:])
        vae = dit / slower
    return MeasuredSpeed(
        device=load.device.name,
        dtype=measured_dtype(load.dtype, load.quant),
        parameters=load.model.parameters["transformer"],
        dit_flops=dit,
        vae_flops=vae,
        measured=datetime.now(UTC).date().isoformat(),
    )


def _film_seconds(load: Workload, speed: MeasuredSpeed) -> float | None:
    if not speed.dit_flops or not speed.vae_flops:
        return None
    return load.work.denoise / speed.dit_flops + load.work.decode / speed.vae_flops
