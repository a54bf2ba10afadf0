"""The engine's models from networks that are in memory, as they are while one is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from helios_cli.engine.models import Models
from helios_cli.weights.checkpoint import Checkpoint


class HeldModels(Models):
    """A checkpoint's models, of which some may have their weights from memory; what has been loaded stays.

    Weights from memory are copied, in the types that sampling uses. Unlike the engine's own models, these leave the
    process's threads as they are.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, device, dtype)
        self._states: dict[str, Mapping[str, Tensor]] = {}
        self._held: dict[str, nn.Module] = {}

    def use_threads(self) -> None:
        """Leave them as training has them."""

    def hold(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Have a component's weights come from `state` when it is used next."""
        self.release(name)
        self._states[name] = state

    def release(self, name: str) -> None:
        """Free a component and forget where its weights came from."""
        self._states.pop(name, None)
        self._held.pop(name, None)
        self._dit, self._vae = None, None  # the engine's own handles; `_load` gives the others back

    def _load(
        self, name: str, build: Callable[[], nn.Module], dtype: torch.dtype, fp32_islands: frozenset[str]
    ) -> nn.Module:
        if name not in self._held:
            if name in self._states:
                self._held[name] = _copied(self._states[name], build, self.device, dtype, fp32_islands)
            else:
                self._held[name] = super()._load(name, build, dtype, fp32_islands)
        return self._held[name]


def _copied(
    state: Mapping[str, Tensor],
    build: Callable[[], nn.Module],
    device: torch.device,
    dtype: torch.dtype,
    fp32_islands: frozenset[str],
) -> nn.Module:
    with torch.device("meta"):
        module = build()
    copies = {
        name: value.detach().to(
            device, torch.float32 if not fp32_islands.isdisjoint(name.split(".")) else dtype, copy=True
        )
        for name, value in state.items()
    }
    module.load_state_dict(copies, assign=True)
    return module.eval().requires_grad_(False)
