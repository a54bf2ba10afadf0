"""Checks that this device computes the products of a model correctly; tried once, before its first film.

    "Intel(R) Xeon(R) Processor, avx2, ..., torch 2.13.0": {"code 5b1f…, model 90ac…": [{"operation": "linear", ...}]}

A verdict holds for one device with its instructions, one set of libraries, one model's layers and this code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from helios_cli import machine
from helios_cli.engine.memory import memory_errors
from helios_cli.engine.models import Models
from helios_cli.errors import OutOfMemory
from helios_cli.model import products
from helios_cli.model.products import Tried
from helios_kernels import devices

_tried: dict[tuple[str, str], list[Tried]] = {}
"""Verdicts of this process by device and model, for homes that cannot be written."""


def settle(models: Models) -> Iterator[str]:
    """Compute operations that are wrong on the model's devices in another data type, in this process from now on.

    Operations without a verdict are tried first. Yields notices for the user."""
    wrong: dict[str, list[Tried]] = {}  # by kind of device: of two GPUs, on either
    for device in {device_key(device): device for device in models.devices}.values():
        try:
            found = tried(models, device)
        except OutOfMemory as error:  # the film reports it if it has no memory either
            yield f"the arithmetic of this device could not be tested: {error.message}"
            continue
        wrong[device.type] = wrong.get(device.type, []) + found
        products.take(wrong[device.type], device)
        yield from faults(found)


def tried(models: Models, where: torch.device | None = None, *, anew: bool = False) -> list[Tried]:
    """Return the verdicts on the products of the model's films on one of its devices, by default the transformer's,
    from the file or by trying them."""
    where = where or models.device
    device, model = device_key(where), _model_key(models, where)
    file = machine.home() / machine.ARITHMETIC
    found = None if anew else _tried.get((device, model)) or _read(devices.read(file), device, model)
    if found is None:
        models.use_threads()
        with memory_errors():
            found = _try(models, where)
        with contextlib.suppress(OSError):  # a home that cannot be written: tried again by the next process
            entry = {model: [asdict(one) for one in found]}
            devices.change(device, file, lambda known: {**_entries(known), **entry})
    _tried[device, model] = found
    return found


def faults(found: Iterable[Tried]) -> list[str]:
    """Return a line for the user for each operation that is wrong."""
    return [_fault(one) for one in found if not one.is_right]


def _fault(one: Tried) -> str:
    what = f"is wrong here (off by {one.error:.2g})" if one.runs else "cannot be computed here"
    return f"{one.operation} in {one.dtype} {what}, as in {one.worst}: it is computed in {one.computed_in}"


def facts(found: Iterable[Tried]) -> list[dict]:
    """Return a verdict as JSON, which has no infinite numbers: an infinite error is null."""
    return [{**asdict(one), "error": one.error if math.isfinite(one.error) else None} for one in found]


def known(device: torch.device) -> list[Tried]:
    """Return the worst verdict on each operation in the file, for `device` and this code, of any model."""
    key = device_key(device)
    entries = _entries(devices.read(machine.home() / machine.ARITHMETIC).get(key))
    found: dict[tuple[str, str], Tried] = {}
    for model in entries:
        for one in (_read({key: entries}, key, model) or []) if model.startswith(_code()) else ():
            before = found.get((one.operation, one.dtype))
            if before is None or one.error > before.error:
                found[one.operation, one.dtype] = one
    return list(found.values())


def device_key(device: torch.device) -> str:
    """Return a key for the device, its instruction set and the libraries that compute on it."""
    if device.type == "cuda":
        libraries = f"cuda {torch.version.cuda or torch.version.hip}", f"cudnn {torch.backends.cudnn.version()}"
        name = ", ".join((torch.cuda.get_device_name(device), *libraries))
    else:
        cpu = machine.cpu()
        name = ", ".join((cpu.model, *cpu.features, *cpu.limits, torch.backends.cpu.get_cpu_capability()))
    return f"{name}, torch {torch.__version__}"


def _model_key(models: Models, device: torch.device) -> str:
    shapes = models.dit_config, models.vae_config, models.text_config, models.checkpoint.native_size
    facts = repr((shapes, models.dtype, device.type, models.quant))
    return f"{_code()}, model {hashlib.sha256(facts.encode()).hexdigest()[:12]}"


@functools.cache
def _code() -> str:
    sources = hashlib.sha256()
    for path in sorted(Path(products.__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    return f"code {sources.hexdigest()[:12]}"


def _try(models: Models, device: torch.device) -> list[Tried]:
    cases = products.cases(
        models.dit_config,
        models.vae_config,
        models.text_config,
        models.checkpoint.native_size,
        device,
        fp8=models.quant != "none",
    )
    return products.try_products(cases, [models.dtype], device)


def _entries(known: object) -> dict:
    return known if isinstance(known, dict) else {}


def _read(known: dict, device: str, model: str) -> list[Tried] | None:
    """Read verdicts; None if this model was not tried there, or the file is damaged."""
    try:
        found = [Tried(**one) for one in known[device][model]]
        types = all(isinstance(getattr(torch, one.computed_in), torch.dtype) for one in found)
        return found if found and types else None
    except (KeyError, TypeError, AttributeError):
        return None
