"""What moves parameters: Muon for matrices and kernels, AdamW for the rest, the rates over a run, and the running mean.

Parameters, gradients and all that is kept of them are float32, whatever the networks compute in.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim import Optimizer as TorchOptimizer

from helios_cli.errors import InputError
from helios_cli.train.config import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of the step s -> a s + b s^3 + c s^5 on singular values: five of them bring all to between 0.7 and 1.2, the
steepest way to lift small ones (https://kellerjordan.github.io/posts/muon/)."""

NEWTON_SCHULZ_STEPS = 5

EMA_WARMUP = 10
"""The mean's decay after n updates is at most (1 + n) / (10 + n), so that the first values are soon forgotten."""


class Muon(TorchOptimizer):
    """Momentum whose change of each matrix is made orthogonal: all its directions move by about the same length.

    Kernels of convolutions are taken as matrices [out, in * k * k...]. A change is longer by sqrt(rows / columns) where
    there are more rows. `dtype` is what the orthogonalisation multiplies in.
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
        """Parameters of one shape."""
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
    """About U V^T of each matrix U S V^T in [n, rows, columns], by Newton-Schulz steps.

    Singular values come out between 0.7 and 1.2, whatever they were.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Mover:
    """The optimizers of one player. `dtype` is what Muon multiplies in.

    InputError for a name in `settings.muon` that no parameter has.
    """

    def __init__(self, player: nn.Module, settings: Optimizer, dtype: torch.dtype) -> None:
        self.settings = settings
        self.params = trained(player)
        if any(p.dtype != torch.float32 for p in self.params):
            raise TypeError(f"{type(player).__name__}: trained parameters are float32; a phase casts what it computes")
        require_known(player, settings.muon)
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
        """The norm of all gradients together, which are made shorter if it is over the limit."""
        limit = self.settings.clip or float("inf")
        return float(nn.utils.clip_grad_norm_(self.params, limit))

    def step(self, scale: float) -> float:
        """Move the parameters, at rates times `scale`; returns AdamW's rate, or Muon's where AdamW moves nothing."""
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
        return self.rates[-1] * scale

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state: list[dict]) -> None:
        for optimizer, held in zip(self.optimizers, state, strict=True):
            optimizer.load_state_dict(held)


def trained(player: nn.Module) -> list[nn.Parameter]:
    return [p for p in player.parameters() if p.requires_grad]


def require_known(player: nn.Module, globs: Iterable[str]) -> None:
    """InputError for a glob that is no parameter's, trained or not: Muon would move less than was asked for."""
    names = [name for name, _ in player.named_parameters()]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            few = ", ".join(names[:: max(1, len(names) // 3)][:3])
            raise InputError(f"muon says {glob!r}, and no parameter is called so", hint=f"names are such as {few}")


def split(player: nn.Module, globs: Iterable[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters that Muon moves, and the others. A matrix of one row or column has nothing to make
    orthogonal."""
    globs = tuple(globs)
    muon, rest = [], []
    for name, p in player.named_parameters():
        if p.requires_grad:
            matrix = p.ndim >= 2 and min(p.shape[0], p.numel() // p.shape[0]) > 1
            (muon if matrix and any(fnmatchcase(name, glob) for glob in globs) else rest).append(p)
    return muon, rest


def rate_scale(settings: Optimizer, step: int, fraction: float) -> float:
    """What the rates are multiplied by at a step (from 0) that begins when `fraction` of the run is over."""
    rise = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    fall = min(1.0, (1 - fraction) / settings.decay) if settings.decay else 1.0
    return rise * fall


class Mean:
    """A running mean of a network's trained parameters, in float32."""

    def __init__(self, player: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._params = trained(player)
        self._values = [p.detach().clone() for p in self._params]

    @torch.no_grad()
    def follow(self) -> None:
        """Be the parameters as they are: the mean has not begun."""
        torch._foreach_copy_(self._values, self._params)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are."""
        decay = min(self.decay, (1 + self.updates) / (EMA_WARMUP + self.updates))
        torch._foreach_lerp_(self._values, self._params, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Let the network have the mean; the next call gives it its own parameters back."""
        for p, value in zip(self._params, self._values, strict=True):
            held = p.detach().clone()
            p.copy_(value)
            value.copy_(held)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "values": self._values}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for value, held in zip(self._values, state["values"], strict=True):
            value.copy_(held)
