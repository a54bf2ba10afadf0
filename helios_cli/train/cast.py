"""Who plays student, real score and fake score: three transformers, or one with adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helios_cli.model.dit import HeliosDiT
from helios_cli.train.adapters import SharedBackbone
from helios_cli.train.forward import Run, checkpointed, plain
from helios_cli.train.memory import placed

Role = Literal["student", "real", "fake"]


class Cast(Protocol):
    """The networks by role. `student` and `fake` hold what is trained of them."""

    student: nn.Module
    fake: nn.Module

    def using(self, role: Role) -> AbstractContextManager[HeliosDiT]:
        """Within, the transformer that plays `role`, where it is to compute."""

    def run(self, role: Role) -> Run:
        """How the blocks of `role` are called."""

    def state(self) -> dict[str, Tensor]:
        """The student as a plain state dict."""


class ThreeNetworks:
    """A transformer for each role. Those that rest are on the host with `rest_on_host`."""

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

    def run(self, role: Role) -> Run:
        return self._run

    def state(self) -> dict[str, Tensor]:
        return self.student.state_dict()


class OneBackbone:
    """The real score is the backbone; student and fake score are adapters of it.

    The student begins as near to the state dict `student` as the rank allows, or as the backbone. `left_out` is the
    share of the difference that the rank does not hold.
    """

    def __init__(
        self,
        backbone: HeliosDiT,
        student: dict[str, Tensor] | None,
        rank: int,
        device: torch.device,
        *,
        checkpoint_blocks: bool = False,
    ) -> None:
        self.shared = SharedBackbone(backbone.to(device), ("student", "fake"), rank)
        self.left_out = 0.0 if student is None else self.shared.fit("student", student)
        self.student, self.fake = (self.shared.adapters[name] for name in ("student", "fake"))
        self.checkpoint_blocks = checkpoint_blocks

    def using(self, role: Role) -> AbstractContextManager[HeliosDiT]:
        return self.shared.using(None if role == "real" else role)

    def run(self, role: Role) -> Run:
        """A block that is computed again in the backward pass is computed with the adapter it had."""
        if not self.checkpoint_blocks:
            return plain

        def again(block, *args, **kwargs) -> Tensor:
            contexts = lambda: (nullcontext(), self.using(role))  # noqa: E731
            return checkpoint(block, *args, use_reentrant=False, context_fn=contexts, **kwargs)

        return again

    def state(self) -> dict[str, Tensor]:
        return self.shared.merged("student")
