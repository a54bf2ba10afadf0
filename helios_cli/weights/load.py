"""Loads the tensors of a component into a module that was built on the meta device.

All names and shapes are compared before anything is allocated. Then each tensor is read, a few megabytes at a time
(`reader`), in its final type and device, so host memory peaks at the module (if it stays on the host) plus one tensor.
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
from helios_cli.weights.files import TensorInfo, misfits, some_of
from helios_cli.weights.fit import ALIASES, FIT_HINT
from helios_cli.weights.fp8 import SCALE_SUFFIX, is_scale, quantize_weight
from helios_cli.weights.reader import FLOAT_DTYPES, SCALED_DTYPES, StoredTensor, WeightFiles, reading_threads

UNUSED = {"transformer": "norm_added_q"}
"""A part of names: such tensors belong to an image branch that Helios does not have."""


@dataclass(frozen=True)
class TensorToLoad:
    """A tensor to load: its name in our module, its place, and its type there. `check` refuses values not finite."""

    name: str
    place: StoredTensor
    dtype: torch.dtype
    check: bool

    @property
    def is_rounded(self) -> bool:
        """True if it is rounded to fp8 and scales here: it is stored in a wider type, or a LoRA is folded into it."""
        return self.dtype == torch.float8_e4m3fn and (self.place.scale is None or bool(self.place.terms))


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

    Parameters get `dtype`, except float32 where `keep_fp32(name)` is true and e4m3 where `module` has e4m3; those in
    `leave` stay on the meta device. `ahead` has tensors that were read before (`weights.ahead`). Raises CheckpointError
    with all missing, surplus and mis-shaped tensors before it allocates, and for values not finite with `check`.
    """
    state = dict(ahead or {})
    with contextlib.nullcontext(files) if files else contextlib.closing(WeightFiles()) as files:
        for tensor in tensors_to_load(module, component, dtype=dtype, keep_fp32=keep_fp32, leave=leave, check=check):
            if tensor.is_rounded:
                state |= _rounded(files, tensor, device)
            elif tensor.name not in state:
                state[tensor.name] = _read(files, tensor, torch.device(device))
    module.load_state_dict(state, assign=True, strict=False)
    values = chain(module.named_parameters(), module.named_buffers())
    left = [name for name, value in values if value.is_meta and name not in leave]
    if left:
        raise RuntimeError(f"{type(module).__name__} has tensors that no checkpoint holds: {some_of(left)}")
    return module.requires_grad_(False)


def tensors_to_load(
    module: nn.Module,
    component: Component,
    *,
    dtype: torch.dtype,
    keep_fp32: Callable[[str], bool],
    leave: frozenset[str],
    check: bool,
) -> Iterator[TensorToLoad]:
    """Yield what `load_component` reads, in the order of the files; of weights in `leave` only their fp8 scales."""
    stored = stored_tensors(module, component)
    kept = {name: one.dtype for name, one in module.named_parameters() if one.dtype in SCALED_DTYPES.values()}
    for name, place in sorted(stored.items(), key=lambda item: (item[1].info.file, item[1].info.begin)):
        scale = None if place.terms else place.scale  # with a LoRA values and scales are rounded anew
        if name in kept and scale is not None:
            yield TensorToLoad(name + SCALE_SUFFIX, StoredTensor(scale), torch.float32, check)
        elif name in kept and name in leave:
            raise RuntimeError(f"{name} is not stored as fp8, and a weight that is streamed is not rounded each time")
        if name in leave:
            continue
        if name in kept:
            # StoredTensor e4m3 values are not checked: PyTorch has no aminmax for them, and `convert` wrote no NaN.
            yield TensorToLoad(name, place, kept[name], check and scale is None)
        else:
            yield TensorToLoad(name, place, torch.float32 if keep_fp32(name) else dtype, check)


def _read(files: WeightFiles, tensor: TensorToLoad, device: torch.device) -> torch.Tensor:
    """Read a tensor to its device; for a GPU several threads copy a few megabytes at a time."""
    place, dtype, check = tensor.place, tensor.dtype, tensor.check
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


def _rounded(files: WeightFiles, tensor: TensorToLoad, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Read a wider weight and round it on the device to e4m3 values and float32 scales."""
    wide = torch.empty(tensor.place.info.shape)
    files.read(tensor.place, wide, check=tensor.check)
    values, scales = quantize_weight(wide.to(device))
    return {tensor.name: values, tensor.name + SCALE_SUFFIX: scales}


def stored_tensors(module: nn.Module, component: Component) -> dict[str, StoredTensor]:
    """Return the place of each parameter of `module`, by our names. CheckpointError if a name or shape does not fit."""
    stored = stored_of(component)
    found = {name: place.info for name, place in stored.items()}
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    expected = {name: shape for name, shape in own.items() if not is_scale(name)}
    for name, place in stored.items():
        if place.scale is not None and name in expected:
            scale = name + SCALE_SUFFIX
            found[scale], expected[scale] = place.scale, own.get(scale, expected[name][:1])

    def is_read(name: str, info: TensorInfo) -> bool:
        scale = found.get(name + SCALE_SUFFIX)
        return info.dtype in FLOAT_DTYPES or (scale is not None and scale.dtype == "F32")

    if faults := misfits(expected, found, is_read):
        what = f"the tensors of {component.folder} do not fit its config.json; {faults}"
        raise CheckpointError(what, hint=FIT_HINT)
    return stored


def stored_of(component: Component) -> dict[str, StoredTensor]:
    """Return the places of a component's tensors by our names, each fp8 weight with its scales."""
    unused = UNUSED.get(component.name)
    infos = {name: info for name, info in component.tensors.items() if not (unused and unused in name)}
    for theirs, ours in ALIASES.get(component.name, {}).items():
        if theirs in infos:
            infos.setdefault(ours, infos.pop(theirs))
    scaled = {name for name, info in infos.items() if info.dtype in SCALED_DTYPES and name + SCALE_SUFFIX in infos}
    scales = {name: infos.pop(name + SCALE_SUFFIX) for name in scaled}
    return {name: StoredTensor(info, scales.get(name), component.terms.get(name, ())) for name, info in infos.items()}
