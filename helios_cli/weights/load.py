"""A component's tensors into a module that was built on the meta device.

All names and shapes are compared before anything is allocated. Then tensors come one by one through a memory map into
their final type and device, so host memory peaks at the module (if it stays on the host) plus one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, groupby

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from helios_cli.errors import CheckpointError
from helios_cli.weights.checkpoint import Component
from helios_cli.weights.files import TensorInfo, damaged, some_of

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

ALIASES = {
    # Wan's name of the output modulation.
    "transformer": {"scale_shift_table": "norm_out.scale_shift_table"},
    # One embedding under two names, which some writers store twice.
    "text_encoder": {"encoder.embed_tokens.weight": "shared.weight"},
}
"""Stored name -> our name. Where both are stored, ours is read."""

UNUSED = {"transformer": "norm_added_q"}
"""Tensors whose names contain this belong to an image branch that Helios does not have."""


def load_component(
    module: nn.Module,
    component: Component,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    keep_fp32: Callable[[str], bool] = lambda name: False,
) -> nn.Module:
    """Fill `module`, built on the meta device, from `component` and return it, frozen.

    Parameters for whose name `keep_fp32` is true are float32, the others `dtype`. Raises `CheckpointError` naming every
    missing, surplus and mis-shaped tensor before it allocates, and the file and tensor of damage found later.
    """
    stored = _by_our_names(component)
    _require_match(module, component, stored)
    state = {}
    for name, info, tensor in _read(stored):
        kept = torch.float32 if keep_fp32(name) else dtype
        state[name] = tensor.to(device, kept, copy=True)  # a copy: a view would keep the file mapped, and other types
        _require_finite(name, info, tensor, state[name])
    module.load_state_dict(state, assign=True)
    left = [name for name, value in chain(module.named_parameters(), module.named_buffers()) if value.is_meta]
    if left:
        raise RuntimeError(f"{type(module).__name__} has tensors that no checkpoint holds: {some_of(left)}")
    return module.requires_grad_(False)


def _by_our_names(component: Component) -> dict[str, TensorInfo]:
    unused = UNUSED.get(component.name)
    stored = {name: info for name, info in component.tensors.items() if not (unused and unused in name)}
    for theirs, ours in ALIASES.get(component.name, {}).items():
        if theirs in stored:
            info = stored.pop(theirs)
            stored.setdefault(ours, info)
    return stored


def _require_match(module: nn.Module, component: Component, stored: dict[str, TensorInfo]) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    faults = {
        "missing": [name for name in wanted if name not in stored],
        "surplus": sorted(name for name in stored if name not in wanted),
        "mis-shaped": [
            f"{name} ({list(info.shape)}, expected {list(wanted[name])})"
            for name, info in sorted(stored.items())
            if name in wanted and info.shape != wanted[name]
        ],
        "of a type that is not read": [
            f"{name} ({info.dtype})" for name, info in sorted(stored.items()) if info.dtype not in FLOAT_DTYPES
        ],
    }
    found = [f"{len(names)} {fault}: {some_of(names)}" for fault, names in faults.items() if names]
    if found:
        raise CheckpointError(
            f"the tensors of {component.folder} do not fit its config.json; {'; '.join(found)}",
            hint="the config and the weights have to come from the same save_pretrained",
        )


def _read(stored: dict[str, TensorInfo]) -> Iterator[tuple[str, TensorInfo, torch.Tensor]]:
    """(our name, place, tensor as stored), file by file in the order of the bytes."""
    ordered = sorted(stored.items(), key=lambda item: (item[1].file, item[1].begin))
    for file, entries in groupby(ordered, key=lambda item: item[1].file):
        name = "header"
        try:
            with safe_open(file, framework="pt", device="cpu") as tensors:
                for name, info in entries:
                    yield name, info, tensors.get_tensor(info.name)
        except (SafetensorError, OSError) as error:
            raise damaged(file, f"{name} cannot be read ({error})") from error


def _require_finite(name: str, info: TensorInfo, stored: torch.Tensor, used: torch.Tensor) -> None:
    if used.numel() == 0 or all(bound.isfinite() for bound in torch.aminmax(used)):
        return
    if all(bound.isfinite() for bound in torch.aminmax(stored)):
        raise CheckpointError(
            f"{info.file}: tensor {name} has values that {used.dtype} cannot hold", hint="use --dtype bfloat16"
        )
    raise damaged(info.file, f"tensor {name} has values that are not finite")
