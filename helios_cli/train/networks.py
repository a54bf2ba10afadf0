"""The networks of distillation: student, real score and fake score as three transformers, or as one with adapters.

An adapter holds the parameters that set a fine-tuned network apart from the frozen backbone: for each matrix of the
blocks a product of two narrow ones that is added to the backbone's (LoRA, Hu et al. 2021), and for every other
parameter (biases, norms, tables, patches) a full replacement. Merged with the backbone it is a plain network again.

Matrices are added up where they are used, so with block checkpointing only one block's sums are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helios_cli.model.dit import HeliosDiT
from helios_cli.train.memory import placed
from helios_cli.train.transformer import RunBlock, checkpointed, plain

Role = Literal["student", "real", "fake"]


class Networks(Protocol):
    """The networks by role. `student` and `fake` hold their trained parameters."""

    @property
    def student(self) -> nn.Module: ...

    @property
    def fake(self) -> nn.Module: ...

    def using(self, role: Role) -> AbstractContextManager[HeliosDiT]:
        """Within, the transformer of `role`, on the device where it computes."""

    def run(self, role: Role) -> RunBlock:
        """Return how the blocks of `role` are called."""

    def state(self) -> dict[str, Tensor]:
        """Return the student as a plain state dict."""


class ThreeNetworks:
    """A transformer for each role. With `rest_on_host`, idle ones are on the host."""

    def __init__(
        self,
        networks: dict[Role, HeliosDiT],
        device: torch.device,
        *,
        checkpoint_blocks: bool = False,
        rest_on_host: bool = False,
    ) -> None:
        self.networks, self.device, self.rest_on_host = networks, device, rest_on_host
        self.student, self.fake = networks["student"].requires_grad_(), networks["fake"].requires_grad_()
        self._run = checkpointed if checkpoint_blocks else plain
        for network in networks.values():
            network.to("cpu" if rest_on_host else device)

    @contextmanager
    def using(self, role: Role) -> Iterator[HeliosDiT]:
        network = self.networks[role]
        with placed(network, self.device) if self.rest_on_host else nullcontext():
            yield network

    def run(self, role: Role) -> RunBlock:
        return self._run

    def state(self) -> dict[str, Tensor]:
        return self.student.state_dict()


class Adapter(nn.Module):
    """The parameters of one network; names are the backbone's with `/` for `.`.

    Attributes:
        down, up: [rank, in] and [out, rank] of each matrix; `up @ down` is added.
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
    """A linear layer whose `weight` is the backbone's plus the product of the active adapter."""

    def __init__(self, layer: nn.Linear, name: str, owner: OneBackbone) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.backbone = nn.Parameter(layer.weight.detach(), requires_grad=False)
        self.bias = layer.bias
        self.name, self._owner = name, owner

    @property
    def weight(self) -> Tensor:
        adapter = self._owner.active
        return self.backbone if adapter is None else self.backbone + adapter.added(self.name)


class OneBackbone:
    """One transformer for all roles: the real score is the backbone; student and fake score are adapters of it.

    The student begins as near to the state dict `student` as the rank allows, or as the backbone. `left_out` is the
    share of the difference that exceeds the rank. The linear layers of `dit.blocks` are replaced, so `dit` must be used
    through this object from then on.
    """

    active: Adapter | None = None

    def __init__(
        self,
        dit: HeliosDiT,
        student: dict[str, Tensor] | None,
        rank: int,
        device: torch.device,
        *,
        checkpoint_blocks: bool = False,
    ) -> None:
        self.dit, self.checkpoint_blocks = dit.to(device).requires_grad_(False), checkpoint_blocks
        layers = {name: layer for name, layer in dit.blocks.named_modules() if isinstance(layer, nn.Linear)}
        matrices = {_key(f"blocks.{name}.weight"): layer.weight for name, layer in layers.items()}
        self._own = {_key(n): p for n, p in dit.named_parameters() if _key(n) not in matrices}
        self.student, self.fake = (Adapter(matrices, self._own, rank, seed) for seed in range(2))
        self._matrices: dict[str, AdaptedLinear] = {}
        for name, layer in layers.items():
            parent, _, attribute = name.rpartition(".")
            key = _key(f"blocks.{name}.weight")
            self._matrices[key] = AdaptedLinear(layer, key, self)
            setattr(dit.blocks.get_submodule(parent), attribute, self._matrices[key])
        self._places = {key: _place(dit, key) for key in self._own}
        self.left_out = 0.0 if student is None else self.fit("student", student)

    def adapter(self, role: Role) -> Adapter | None:
        return {"student": self.student, "fake": self.fake, "real": None}[role]

    @contextmanager
    def using(self, role: Role) -> Iterator[HeliosDiT]:
        before = self.active
        self._activate(self.adapter(role))
        try:
            yield self.dit
        finally:
            self._activate(before)

    def _activate(self, adapter: Adapter | None) -> None:
        self.active = adapter
        for key, (module, attribute) in self._places.items():
            module._parameters[attribute] = self._own[key] if adapter is None else adapter.whole[key]

    def run(self, role: Role) -> RunBlock:
        """A block that is recomputed in the backward pass uses the adapter of the forward pass."""
        if not self.checkpoint_blocks:
            return plain

        def checkpointed_with_adapter(block, *args, **kwargs) -> Tensor:
            contexts = lambda: (nullcontext(), self.using(role))  # noqa: E731
            return checkpoint(block, *args, use_reentrant=False, context_fn=contexts, **kwargs)

        return checkpointed_with_adapter

    @torch.no_grad()
    def state(self, role: Role = "student") -> dict[str, Tensor]:
        """Return the network of an adapter as a plain state dict with the published names."""
        adapter = self.adapter(role)
        sums = {key: layer.backbone + adapter.added(key) for key, layer in self._matrices.items()}
        return {key.replace("/", "."): value.detach() for key, value in {**sums, **adapter.whole}.items()}

    @torch.no_grad()
    def fit(self, role: Role, state: Mapping[str, Tensor]) -> float:
        """Set an adapter to a network as near as its rank allows: the largest singular parts of each difference.

        Return the share of the differences' squared norm that is left out; 0 where the rank suffices.
        """
        adapter, left, total = self.adapter(role), 0.0, 0.0
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
    """Turn a parameter's name into one that a ParameterDict accepts."""
    return name.replace(".", "/")


def _place(dit: HeliosDiT, key: str) -> tuple[nn.Module, str]:
    """Return the module and attribute of a parameter."""
    path, _, attribute = key.replace("/", ".").rpartition(".")
    return dit.get_submodule(path), attribute
