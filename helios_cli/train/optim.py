"""Updating parameters: Muon for matrices and kernels, AdamW for the rest, learning rates, and the running mean.

Parameters, gradients and optimizer state are float32, whatever type the networks compute in.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim import Optimizer as TorchOptimizer

from helios_cli.errors import InputError
from helios_cli.train.settings.run import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of the step s -> a s + b s^3 + c s^5 on singular values. Five steps bring all of them to between 0.7 and 1.2,
and lift small ones as steeply as possible (https://kellerjordan.github.io/posts/muon/)."""

NEWTON_SCHULZ_STEPS = 5

EMA_WARMUP = 10
"""The mean's decay after n updates is at most (1 + n) / (10 + n), so that the first values are forgotten soon."""


class Muon(TorchOptimizer):
    """Momentum with orthogonalised updates: all directions of a matrix move by about the same length.

    Convolution kernels are treated as matrices [out, in * k * k...]. An update is longer by sqrt(rows / columns) if
    there are more rows. `dtype` is the type of the orthogonalisation's products.

    `torch.optim.Muon` has the same formula, but takes matrices only, always multiplies in bfloat16, and
    orthogonalises one matrix at a time; here those of one shape are batched.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, momentum: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for shape in dict.fromkeys(p.shape for p in group["params"]):
                alike = [p for p in group["params"] if p.shape == shape and p.grad is not None]
                if alike:
                    self._step(alike, group["lr"], group["momentum"])

    def _step(self, params: list[nn.Parameter], lr: float, momentum: float) -> None:
        """Update parameters of one shape."""
        changes = []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
            changes.append(p.grad.lerp(buffer, momentum).flatten(1))  # Nesterov's
        rows, columns = changes[0].shape
        for p, change in zip(params, orthogonal(torch.stack(changes).to(self._dtype)), strict=True):
            p.add_(change.view_as(p), alpha=-lr * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return about U V^T for each matrix U S V^T in [n, rows, columns], by Newton-Schulz steps.

    All singular values of the result are between 0.7 and 1.2.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class PlayerOptimizer:
    """Muon and AdamW for one player. `dtype` is the type of Muon's products.

    InputError for a glob in `settings.muon` that matches no parameter.
    """

    def __init__(self, player: nn.Module, settings: Optimizer, dtype: torch.dtype) -> None:
        self.settings = settings
        self.params = trained(player)
        if any(p.dtype != torch.float32 for p in self.params):
            raise TypeError(f"{type(player).__name__}: trained parameters must be float32; a phase casts to its dtype")
        require_matches(player, settings.muon)
        muon, rest = split(player, settings.muon)
        self.optimizers: list[TorchOptimizer] = []
        if muon:
            self.optimizers.append(Muon(muon, lr=settings.muon_lr, momentum=settings.muon_momentum, dtype=dtype))
        if rest:
            betas, eps, decay = settings.betas, settings.eps, settings.weight_decay
            self.optimizers.append(AdamW(rest, lr=settings.lr, betas=betas, eps=eps, weight_decay=decay, fused=True))
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def clear(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def clip(self) -> float:
        """Scale the gradients down if their joint norm is over the limit; return the norm before that."""
        limit = self.settings.clip or float("inf")
        return float(nn.utils.clip_grad_norm_(self.params, limit))

    def step(self, scale: float) -> float:
        """Update the parameters with rates times `scale`; return AdamW's rate, or Muon's if there is no AdamW."""
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
        return self.rates[-1] * scale

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state: list[dict]) -> None:
        for optimizer, own in zip(self.optimizers, state, strict=True):
            optimizer.load_state_dict(own)


def trained(player: nn.Module) -> list[nn.Parameter]:
    return [p for p in player.parameters() if p.requires_grad]


def require_matches(player: nn.Module, globs: Iterable[str]) -> None:
    """InputError for a glob that matches no parameter, trained or frozen: Muon would update fewer than intended."""
    names = [name for name, _ in player.named_parameters()]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            few = ", ".join(names[:: max(1, len(names) // 3)][:3])
            raise InputError(f"muon has {glob!r}, which matches no parameter", hint=f"names look like {few}")


def split(player: nn.Module, globs: Iterable[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trained parameters for Muon, and the others. A matrix of one row or column is not for Muon."""
    globs = tuple(globs)
    muon: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in player.named_parameters():
        if p.requires_grad:
            matrix = p.ndim >= 2 and min(p.shape[0], p.numel() // p.shape[0]) > 1
            (muon if matrix and any(fnmatchcase(name, glob) for glob in globs) else rest).append(p)
    return muon, rest


def rate_scale(settings: Optimizer, step: int, fraction: float) -> float:
    """Return the factor of the rates at a step (from 0) that begins when `fraction` of the run is over."""
    rise = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    fall = min(1.0, (1 - fraction) / settings.decay) if settings.decay else 1.0
    return rise * fall


class RunningMean:
    """A running mean of a network's trained parameters, in float32.

    `torch.optim.swa_utils.AveragedModel` copies whole networks, frozen parts included, starts without a warm-up, and
    cannot swap the mean into the network, which saving and sampling do.
    """

    def __init__(self, player: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._params = trained(player)
        self._values = [p.detach().clone() for p in self._params]

    @torch.no_grad()
    def follow(self) -> None:
        """Copy the current parameters: the mean has not begun."""
        torch._foreach_copy_(self._values, self._params)

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the mean."""
        decay = min(self.decay, (1 + self.updates) / (EMA_WARMUP + self.updates))
        torch._foreach_lerp_(self._values, self._params, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's parameters and the mean; the next call undoes that."""
        for p, value in zip(self._params, self._values, strict=True):
            own = p.detach().clone()
            p.copy_(value)
            value.copy_(own)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "values": self._values}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for value, saved in zip(self._values, state["values"], strict=True):
            value.copy_(saved)
