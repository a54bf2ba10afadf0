"""The engine's models, with weights of networks in memory, as they are during training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from helios_cli.engine.models import Models
from helios_cli.engine.parts import Part
from helios_cli.weights.checkpoint import Checkpoint


class InMemoryModels(Models):
    """A checkpoint's models, some with weights from memory; loaded components stay loaded.

    Weights from memory are copied, in the types that sampling uses. Unlike the engine's own models, these leave the
    process's threads unchanged.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, device, dtype)
        self._states: dict[str, Mapping[str, Tensor]] = {}
        self._loaded: dict[str, nn.Module] = {}

    def use_threads(self) -> None:
        """Leave the number of threads as training set it."""

    def hold(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Take a component's weights from `state` when it is used next."""
        self.release(name)
        self._states[name] = state

    def release(self, name: str) -> None:
        """Free a component and forget where its weights came from."""
        self._states.pop(name, None)
        self._loaded.pop(name, None)
        self._dit, self._vae = None, None  # the engine's own handles; `_load` returns the other components again

    def _load(self, part: Part) -> nn.Module:
        name = part.name
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._states:
            module = super()._load(part)
        else:
            module, state = part.on_meta(), self._states[name]
            copies = {
                key: value.detach().to(self.device, part.dtype_of(key), copy=True) for key, value in state.items()
            }
            module.load_state_dict(copies, assign=True)
            module.eval().requires_grad_(False)
        self._loaded[name] = module
        return module
