"""Using less memory while several networks of one size are trained against each other.

None of this changes a gradient: a loss behind a network that is not trained now is reduced to its gradient right away
(`cached_loss`), that network's parameters get no gradient (`frozen`), and idle networks stay in host memory (`placed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def cached_loss(x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `loss_of(x)`, a number, whose gradient for `x` is computed right away, inside the forward pass.

    The activations of `loss_of` are freed when this returns, before the backward pass through the graph that made `x`.
    Only `x` gets a gradient, none of the parameters that `loss_of` uses.
    """
    return _CachedLoss.apply(x, loss_of)


class _CachedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            loss = loss_of(leaf)
            (gradient,) = torch.autograd.grad(loss, leaf)
        ctx.save_for_backward(gradient)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within, no parameter of `modules` requires a gradient."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within, `module` is on `device`; afterwards it is back on the host.

    Parameters stay the same objects, so an optimizer keeps them; their gradients move with them.
    """
    try:
        _move(module, device)
        yield
    finally:
        _move(module, torch.device("cpu"))


def _move(module: nn.Module, device: torch.device) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.to(device)
        if tensor.grad is not None:
            tensor.grad.data = tensor.grad.data.to(device)
