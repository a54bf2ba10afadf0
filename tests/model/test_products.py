"""Products of small types on a CPU that has no instructions for them: float32 ones, rounded once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helios_cli.model import ops
from helios_cli.model.attention import attention
from helios_cli.model.convolution import convolve, convolve_pictures, pointwise
from helios_cli.model.ops import linear, product_dtype

SMALL = [torch.bfloat16, torch.float16]


OPERATIONS = ("linear", "matmul", "convolve", "convolve_pictures", "pointwise")


@pytest.fixture(params=["old", "wrong"])
def old_cpu(request, monkeypatch):
    """A CPU that multiplies float32 alone, and one whose smaller products were found wrong."""
    if request.param == "old":
        monkeypatch.setattr(ops, "_onednn_dtypes", lambda: frozenset({torch.float32}))
    else:
        monkeypatch.setattr(ops, "_onednn_dtypes", lambda: frozenset({torch.float32, *SMALL}))
        wider = {("cpu", name, dtype): torch.float32 for name in OPERATIONS for dtype in SMALL}
        monkeypatch.setattr(ops, "WIDER", wider)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_what_products_compute_in(old_cpu, monkeypatch, dtype):
    x = torch.zeros(1, dtype=dtype)
    assert product_dtype(x, "linear") == torch.float32 and product_dtype(x.float(), "linear") == torch.float32
    assert product_dtype(x.double(), "linear") == torch.float64 and product_dtype(x.to("meta"), "linear") == dtype
    monkeypatch.setattr(ops, "_onednn_dtypes", lambda: frozenset({torch.float32, dtype}))
    monkeypatch.setattr(ops, "WIDER", {})
    assert product_dtype(x, "linear") == dtype


@pytest.mark.parametrize(("avx512", "avx512_bf16", "is_fast"), [(0, 0, True), (1, 0, False), (1, 1, True)])
def test_a_cpu_that_takes_bfloat16_apart_for_a_product_computes_it_in_float32(
    monkeypatch, avx512, avx512_bf16, is_fast
):
    """Where oneDNN says that it multiplies it: other instructions than AVX-512 are believed."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: bool(avx512))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512_bf16))
    assert (torch.bfloat16 in ops._onednn_dtypes.__wrapped__()) == is_fast


def modules(seed: int = 0) -> dict[str, tuple]:
    """Each product by name: the call, its module, and an input."""
    torch.manual_seed(seed)
    conv, flat, point, full = nn.Conv3d(8, 12, 3), nn.Conv2d(8, 12, 3), nn.Conv3d(8, 12, 1), nn.Linear(8, 12)
    clip = torch.randn(1, 4, 6, 6, 8)
    return {
        "linear": (lambda m, x: linear(x, m.weight, m.bias), full, clip),
        "gelu": (lambda m, x: linear(x, m.weight, m.bias, gelu=True), full, clip),
        "convolve": (convolve, conv, clip),
        "pointwise": (pointwise, point, clip),
        "pictures": (lambda m, x: convolve_pictures(x, m.weight, m.bias, stride=2), flat, clip[0].movedim(-1, 1)),
    }


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", list(modules()))
def test_the_result_is_rounded_once(old_cpu, name, gradients, dtype):
    """To the number of the type that is nearest to the product of the rounded factors, and of that type."""
    call, module, x = modules()[name]
    module, x = module.to(dtype), x.to(dtype)
    with torch.set_grad_enabled(gradients):
        y = call(module, x)
        exact = call(module.double(), x.double())
    assert y.dtype == dtype
    # Half a unit in the last place, and what float32 sums and its tanh are off by where a half is near.
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-6)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_gradients_have_the_types_of_what_they_are_of(old_cpu, dtype):
    x, layer = torch.randn(3, 8, dtype=dtype, requires_grad=True), nn.Linear(8, 4)
    linear(x, layer.weight, layer.bias).float().sum().backward()
    assert x.grad.dtype == dtype and layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_attention_with_its_scores_kept(old_cpu, dtype):
    q, k, v = torch.randn(3, 2, 9, 2, 8).to(dtype)
    with torch.enable_grad():
        ours, exact = attention(q, k, v), attention(q.double(), k.double(), v.double())
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=3 * torch.finfo(dtype).eps)
