"""Products with their GELU, where it is part of them; CUDA's part is stood in for by what a CPU computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helios_cli.model import ops

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew():
    forget = ops.has_tanh_epilogue.cache_clear
    forget()
    yield
    forget()


def tanh_epilogue(bias, x, weight, *, use_gelu):
    """Compute the epilogue as cuBLASLt documents its own."""
    return F.gelu(torch.addmm(bias, x, weight), approximate="tanh")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_only_the_tanh_gelu_is_taken(dtype, monkeypatch):
    assert not ops.has_tanh_epilogue(CPU, dtype)  # a CPU's is the exact one
    ops.has_tanh_epilogue.cache_clear()
    monkeypatch.setattr(torch, "_addmm_activation", tanh_epilogue)
    assert ops.has_tanh_epilogue(CPU, dtype)


def test_a_pytorch_without_it_does_without(monkeypatch):
    monkeypatch.delattr(torch, "_addmm_activation")
    assert not ops.has_tanh_epilogue(CPU, torch.bfloat16)


def test_the_epilogue_is_declined_where_it_is_slower(monkeypatch):
    """On consumer Blackwell, without asking PyTorch for a product there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert not ops.has_tanh_epilogue(torch.device("cuda"), torch.bfloat16)


@torch.no_grad()
def test_a_fused_gelu_is_the_same_gelu(monkeypatch):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape) for shape in ((2, 5, 8), (24, 8), (24,)))
    apart = ops.linear(x, weight, bias, gelu=True)
    called = []
    monkeypatch.setattr(ops, "onednn_runs", lambda x: False)
    monkeypatch.setattr(ops, "gelu_is_fused", lambda x: True)
    monkeypatch.setattr(torch, "_addmm_activation", lambda *a, **k: called.append(1) or tanh_epilogue(*a, **k))
    torch.testing.assert_close(ops.linear(x, weight, bias, gelu=True), apart)
    ops.linear(x, weight, bias)
    assert called == [1]
