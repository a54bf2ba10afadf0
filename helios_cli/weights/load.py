"""A component's tensors into a module that was built on the meta device.

All names and shapes are compared before anything is allocated. Then tensors come one by one, a few megabytes at a time
(`reader`), into their final type and device, so host memory peaks at the module (if it stays on the host) plus one
tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from helios_cli.errors import CheckpointError
from helios_cli.weights.checkpoint import Component
from helios_cli.weights.files import TensorInfo, some_of
from helios_cli.weights.fit import ALIASES, FIT_HINT
from helios_cli.weights.fp8 import SCALE_SUFFIX, is_scale, quantize_weight
from helios_cli.weights.reader import FLOAT_DTYPES, SCALED_DTYPES, Stored, WeightFiles, reading_threads

UNUSED = {"transformer": "norm_added_q"}
"""Tensors whose names contain this belong to an image branch that Helios does not have."""


@dataclass(frozen=True)
class Wanted:
    """A tensor of a module: by our name, where it is stored, and as what it is wanted. Its values are looked at with
    `check`."""

    name: str
    place: Stored
    dtype: torch.dtype
    check: bool

    @property
    def is_rounded(self) -> bool:
        """To fp8 and scales when it comes, as it is stored without."""
        return self.dtype == torch.float8_e4m3fn and self.place.scale is None


def load_component(
    module: nn.Module,
    component: Component,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    keep_fp32: Callable[[str], bool] = lambda name: False,
    leave: frozenset[str] = frozenset(),
    files: WeightFiles | None = None,
    check: bool = True,
    ahead: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """Fill `module`, built on the meta device, from `component` and return it, frozen.

    Parameters for whose name `keep_fp32` is true are float32, those that `module` has as e4m3 stay that, the others are
    `dtype`; those in `leave` stay on the meta device. Raises `CheckpointError` naming every missing, surplus and
    mis-shaped tensor before it allocates, and the file and tensor of damage found later; values are looked at with
    `check`. `ahead` are tensors that were read before (`weights.ahead`).
    """
    state = dict(ahead or {})
    with contextlib.nullcontext(files) if files else contextlib.closing(WeightFiles()) as files:
        for one in wanted_tensors(module, component, dtype=dtype, keep_fp32=keep_fp32, leave=leave, check=check):
            if one.is_rounded:
                state |= _rounded(files, one, device)
            elif one.name not in state:
                state[one.name] = _read(files, one, torch.device(device))
    module.load_state_dict(state, assign=True, strict=False)
    values = chain(module.named_parameters(), module.named_buffers())
    left = [name for name, value in values if value.is_meta and name not in leave]
    if left:
        raise RuntimeError(f"{type(module).__name__} has tensors that no checkpoint holds: {some_of(left)}")
    return module.requires_grad_(False)


def wanted_tensors(
    module: nn.Module,
    component: Component,
    *,
    dtype: torch.dtype,
    keep_fp32: Callable[[str], bool],
    leave: frozenset[str],
    check: bool,
) -> Iterator[Wanted]:
    """What `load_component` reads, in the order of the files, the scales of fp8 weights before what they scale. Of
    those that are left only the scales."""
    stored = stored_tensors(module, component)
    fp8 = {name for name, parameter in module.named_parameters() if parameter.dtype == torch.float8_e4m3fn}
    for name, place in sorted(stored.items(), key=lambda item: (item[1].info.file, item[1].info.begin)):
        if name in fp8 and place.scale is not None:
            yield Wanted(name + SCALE_SUFFIX, Stored(place.scale), torch.float32, check)
        elif name in fp8 and name in leave:
            raise RuntimeError(f"{name} is not stored as fp8, and a weight that is streamed is not rounded each time")
        if name in leave:
            continue
        if name in fp8:
            # PyTorch finds no largest among stored e4m3 values, and no NaN was written.
            yield Wanted(name, place, torch.float8_e4m3fn, check and place.scale is None)
        else:
            yield Wanted(name, place, torch.float32 if keep_fp32(name) else dtype, check)


def _read(files: WeightFiles, wanted: Wanted, device: torch.device) -> torch.Tensor:
    """A tensor on its device; to a GPU it goes a few megabytes at a time, by several threads."""
    place, dtype, check = wanted.place, wanted.dtype, wanted.check
    value = torch.empty(place.info.shape, dtype=dtype, device=device)
    if device.type == "cpu" or not place.info.shape:
        host = value if device.type == "cpu" else torch.empty(place.info.shape, dtype=dtype)
        files.read(place, host, check=check)
        return value.copy_(host)

    def bring(rows: tuple[int, int]) -> None:
        host = torch.empty((rows[1] - rows[0], *place.info.shape[1:]), dtype=dtype)
        files.read(place, host, rows, check=check)
        with torch.inference_mode():
            value[slice(*rows)].copy_(host)

    with ThreadPoolExecutor(reading_threads(device)) as readers:
        list(readers.map(bring, place.pieces()))
    return value


def _rounded(files: WeightFiles, wanted: Wanted, device: torch.device | str) -> dict[str, torch.Tensor]:
    """e4m3 values and float32 scales of a weight that is stored without, rounded on the device."""
    wide = torch.empty(wanted.place.info.shape)
    files.read(wanted.place, wide, check=wanted.check)
    values, scales = quantize_weight(wide.to(device))
    return {wanted.name: values, wanted.name + SCALE_SUFFIX: scales}


def stored_tensors(module: nn.Module, component: Component) -> dict[str, Stored]:
    """Where each parameter of `module` is stored, by our names. CheckpointError if anything does not fit."""
    found = stored_of(component)
    scales = {name: place.scale for name, place in found.items() if place.scale is not None}
    _require_match(module, component, {name: place.info for name, place in found.items()}, scales)
    return found


def stored_of(component: Component) -> dict[str, Stored]:
    """Where the tensors of a component are, by our names; factors of rows beside what they scale."""
    found = _by_our_names(component)
    scaled = {name for name, info in found.items() if info.dtype in SCALED_DTYPES and name + SCALE_SUFFIX in found}
    scales = {name: found.pop(name + SCALE_SUFFIX) for name in scaled}
    return {name: Stored(info, scales.get(name)) for name, info in found.items()}


def _by_our_names(component: Component) -> dict[str, TensorInfo]:
    unused = UNUSED.get(component.name)
    stored = {name: info for name, info in component.tensors.items() if not (unused and unused in name)}
    for theirs, ours in ALIASES.get(component.name, {}).items():
        if theirs in stored:
            info = stored.pop(theirs)
            stored.setdefault(ours, info)
    return stored


def _require_match(
    module: nn.Module, component: Component, stored: dict[str, TensorInfo], scales: dict[str, TensorInfo]
) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items() if not is_scale(name)}
    expected = wanted | {name + SCALE_SUFFIX: wanted[name][:1] for name in scales if name in wanted}
    shapes = stored | {name + SCALE_SUFFIX: info for name, info in scales.items()}
    faults = {
        "missing": [name for name in wanted if name not in stored],
        "surplus": sorted(name for name in stored if name not in wanted),
        "mis-shaped": [
            f"{name} ({list(info.shape)}, expected {list(expected[name])})"
            for name, info in sorted(shapes.items())
            if name in expected and info.shape != expected[name]
        ],
        "of a type that is not read": [
            f"{name} ({info.dtype})" for name, info in sorted(stored.items()) if not _is_read(name, info, scales)
        ],
    }
    found = [f"{len(names)} {fault}: {some_of(names)}" for fault, names in faults.items() if names]
    if found:
        raise CheckpointError(
            f"the tensors of {component.folder} do not fit its config.json; {'; '.join(found)}",
            hint=FIT_HINT,
        )


def _is_read(name: str, info: TensorInfo, scales: dict[str, TensorInfo]) -> bool:
    return info.dtype in FLOAT_DTYPES or (name in scales and scales[name].dtype == "F32")
