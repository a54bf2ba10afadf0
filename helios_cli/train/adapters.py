"""Several networks in the memory of one: a frozen backbone, and adapters of which one at a time is active.

An adapter is all that a fine-tuned network has of its own: for each matrix of the blocks a product of two narrow ones
that is added to the backbone's (LoRA, Hu et al. 2021), for every other parameter (biases, norms, tables, patches) a
whole one in its place. Merged with the backbone it is a plain network again.

Matrices are added up where they are used, so with block checkpointing one block's are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from helios_cli.model.dit import HeliosDiT


class Adapter(nn.Module):
    """The parameters of one network; names are the backbone's with `/` for `.`.

    Attributes:
        down, up: [rank, in] and [out, rank] of each matrix; what is added is `up @ down`.
        whole: the other parameters.
    """

    def __init__(self, matrices: Mapping[str, Tensor], others: Mapping[str, Tensor], rank: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up, self.whole = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, matrix in matrices.items():
            rows, columns = matrix.shape
            narrow = torch.randn(rank, columns, generator=generator) * columns**-0.5
            self.down[name] = nn.Parameter(narrow.to(matrix))
            self.up[name] = nn.Parameter(matrix.new_zeros(rows, rank))
        for name, value in others.items():
            self.whole[name] = nn.Parameter(value.detach().clone())

    def added(self, name: str) -> Tensor:
        return self.up[name] @ self.down[name]


class AdaptedLinear(nn.Linear):
    """A linear layer whose `weight` is the backbone's plus what the active adapter adds."""

    def __init__(self, layer: nn.Linear, name: str, switch: Switch) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.backbone = nn.Parameter(layer.weight.detach(), requires_grad=False)
        self.bias = layer.bias
        self.name, self._switch = name, switch

    @property
    def weight(self) -> Tensor:
        adapter = self._switch.active
        return self.backbone if adapter is None else self.backbone + adapter.added(self.name)


class Switch:
    """Says which adapter is active."""

    active: Adapter | None = None


class SharedBackbone:
    """A transformer that is several: `with shared.using("student"): dit(...)`. Without an adapter it is the backbone.

    The linear layers of `dit.blocks` are replaced, so `dit` has to be used through this from then on.
    """

    def __init__(self, dit: HeliosDiT, names: tuple[str, ...], rank: int) -> None:
        self.dit, self._switch = dit.requires_grad_(False), Switch()
        layers = {name: layer for name, layer in dit.blocks.named_modules() if isinstance(layer, nn.Linear)}
        matrices = {_key(f"blocks.{name}.weight"): layer.weight for name, layer in layers.items()}
        self._own = {_key(n): p for n, p in dit.named_parameters() if _key(n) not in matrices}
        self.adapters = {name: Adapter(matrices, self._own, rank, seed) for seed, name in enumerate(names)}
        for name, layer in layers.items():
            parent, _, attribute = name.rpartition(".")
            adapted = AdaptedLinear(layer, _key(f"blocks.{name}.weight"), self._switch)
            setattr(dit.blocks.get_submodule(parent), attribute, adapted)
        self._matrices = {_key(f"blocks.{name}.weight"): dit.blocks.get_submodule(name) for name in layers}
        self._places = {key: _place(dit, key) for key in self._own}

    @contextmanager
    def using(self, name: str | None) -> Iterator[HeliosDiT]:
        """Within, the transformer is the one of the adapter `name`, or the backbone."""
        before = self._switch.active
        self._activate(None if name is None else self.adapters[name])
        try:
            yield self.dit
        finally:
            self._activate(before)

    def _activate(self, adapter: Adapter | None) -> None:
        self._switch.active = adapter
        for key, (module, attribute) in self._places.items():
            module._parameters[attribute] = self._own[key] if adapter is None else adapter.whole[key]

    @torch.no_grad()
    def merged(self, name: str) -> dict[str, Tensor]:
        """The network of an adapter as a plain state dict with the published names."""
        adapter = self.adapters[name]
        sums = {key: layer.backbone + adapter.added(key) for key, layer in self._matrices.items()}
        return {key.replace("/", "."): value.detach() for key, value in {**sums, **adapter.whole}.items()}

    @torch.no_grad()
    def fit(self, name: str, state: Mapping[str, Tensor]) -> float:
        """Sets an adapter to a network as near as its rank allows: the largest singular parts of each difference.

        Returns the share of the differences' squared norm that was left out; 0 where the rank suffices.
        """
        adapter, left, total = self.adapters[name], 0.0, 0.0
        rank = next(iter(adapter.down.values())).shape[0]
        for key, layer in self._matrices.items():
            other = state[key.replace("/", ".")].to(layer.backbone)
            difference = (other - layer.backbone).double()
            u, s, v = torch.linalg.svd(difference, full_matrices=False)
            root = s[:rank].sqrt()
            adapter.up[key].zero_()[:, : len(root)] = u[:, :rank] * root
            adapter.down[key][: len(root)] = root[:, None] * v[:rank]
            left, total = left + s[rank:].square().sum().item(), total + s.square().sum().item()
        for key, value in adapter.whole.items():
            value.copy_(state[key.replace("/", ".")])
        return left / total if total else 0.0


def _key(name: str) -> str:
    """A parameter's name as one that a ParameterDict takes."""
    return name.replace(".", "/")


def _place(dit: HeliosDiT, key: str) -> tuple[nn.Module, str]:
    """The module and attribute of a parameter."""
    path, _, attribute = key.replace("/", ".").rpartition(".")
    return dit.get_submodule(path), attribute
