"""Trial of every product and convolution of the three networks against float64: processor libraries can be wrong.

Each is called as the networks call it, at the widths that their layers have, for the rows and cells of a film scaled
down. What comes out is compared with a plain formulation on the CPU in float64, where PyTorch calls its own loops and
BLAS, of the same rounded values. What is wrong is computed in a wider type from then on (`ops.WIDER`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_cli.architecture import DiTConfig, UMT5Config, VAEConfig
from helios_cli.model import attention, ops
from helios_cli.model.causal import PAST, CausalConv3d
from helios_cli.model.convolution import channels_last, convolve, convolve_pictures, pointwise, upsample_conv
from helios_cli.model.dit import HeliosDiT
from helios_cli.model.fp8 import Fp8, product
from helios_cli.model.umt5 import UMT5Encoder
from helios_cli.model.vae import Downsample, Upsample, WanVAE
from helios_cli.units import (
    LATENTS_PER_CHUNK,
    MAX_TEXT_TOKENS,
    PIXELS_PER_CELL,
)

BOUND = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-4}
"""Largest error of what is right, as a share of the value and the root mean square together. Measured on processors
that are right: at most a third of it, for attention, whose weights are rounded as well; sums in float32 a tenth."""

TF32_BOUND = 0.02
"""Bound for float32 on a GPU, whose convolutions have the ten bits of TF32 by default."""

MOST_ROWS, MOST_KEYS, MOST_HEADS = 128, 512, 2
MOST_CELLS = (6, 12)
MOST_PRODUCTS = 2**25
"""Multiplications of one case. A layer that has more is tried with fewer of its outputs, never of its inputs."""

SPOKEN_TOKENS = 18
"""Tokens of a prompt whose rows, padding included, are neither a multiple of eight nor of sixteen."""


@dataclass(frozen=True)
class Case:
    """`call` and `exact` are given the same tensors, of these shapes: the first on the device in the type that is
    tried, the second on the CPU in float64. The second input is divided by the root of `sums`, how many products are
    added up, so that results are of size 1. An `optional` case that cannot run is left out: others can."""

    operation: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    sums: int
    call: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    optional: bool = False


@dataclass(frozen=True)
class Tried:
    """The result of one operation in one type: the worst of its cases. `computed_in` is a type that is right."""

    operation: str
    dtype: str
    cases: int
    error: float
    worst: str
    computed_in: str

    @property
    def is_right(self) -> bool:
        return self.computed_in == self.dtype

    @property
    def runs(self) -> bool:
        """Return whether there was a result at all; without one, nothing can be wrong unnoticed."""
        return self.error != math.inf


@torch.inference_mode()
def try_products(
    cases: Iterable[Case], dtypes: Iterable[torch.dtype], device: torch.device, seed: int = 0
) -> list[Tried]:
    """Try all cases in each of the types and in float32. A wrong operation is computed in float32 if that is right,
    else in float64. Earlier results do not count, and new ones take effect only through `take`."""
    cases, found = list(cases), list[Tried]()
    with _as_if_right():
        for dtype in dict.fromkeys((torch.float32, *dtypes)):
            worst: dict[str, tuple[float, str, int]] = {}
            for case in cases:
                error = _error(case, dtype, device, seed)
                if error is None:
                    continue
                before, name, count = worst.get(case.operation, (-1.0, "", 0))
                worse = not error <= before  # one that is not finite is the worst
                worst[case.operation] = (error if worse else before, case.name if worse else name, count + 1)
            bound = TF32_BOUND if device.type == "cuda" and dtype == torch.float32 else BOUND[dtype]
            for operation, (error, name, count) in worst.items():
                right = error <= bound
                float32 = next((one for one in found if one.operation == operation and one.dtype == "float32"), None)
                wide = "float32" if float32 and float32.is_right else "float64"
                name_of = str(dtype).removeprefix("torch.")
                found.append(Tried(operation, name_of, count, error, name, name_of if right else wide))
    return found


@contextlib.contextmanager
def _as_if_right() -> Iterator[None]:
    known = dict(ops.WIDER)
    ops.WIDER.clear()
    try:
        yield
    finally:
        ops.WIDER.update(known)


def take(found: Iterable[Tried], device: torch.device) -> None:
    """From now on, compute on `device` what was found wrong as it is right; nothing that was taken before counts."""
    for key in [key for key in ops.WIDER if key[0] == device.type]:
        del ops.WIDER[key]
    for one in found:
        if not one.is_right and not (device.type == "mps" and one.computed_in == "float64"):  # it has none
            ops.WIDER[device.type, one.operation, getattr(torch, one.dtype)] = getattr(torch, one.computed_in)


def cases(
    dit: DiTConfig, vae: VAEConfig, text: UMT5Config, size: tuple[int, int], device: torch.device, *, fp8: bool = False
) -> list[Case]:
    """The cases of a model's three networks at its native `size`, (width, height), each shape once."""
    with torch.device("meta"):
        networks = [
            HeliosDiT(replace(dit, num_layers=1)),
            UMT5Encoder(replace(text, num_layers=1, vocab_size=1)),
            WanVAE(vae),
        ]
    history = dit.history_tokens(size).total
    noisy = [max(LATENTS_PER_CHUNK, rows) for rows in dit.noisy_tokens(size, 3)]
    rows = {_cut(history + count, MOST_ROWS): None for count in noisy}
    found = [*_attentions(dit, history, noisy, device), *_prompt_matmuls(text)]
    for network in networks[:2]:
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                found += [_linear(count, layer.in_features, layer.out_features) for count in (1, SPOKEN_TOKENS, *rows)]
            elif isinstance(layer, nn.Conv3d):
                found += [_linear(count, layer.weight[0].numel(), layer.out_channels) for count in rows]
    found.append(_linear(MOST_ROWS, dit.width, dit.ffn_dim, gelu=True))
    found.append(_linear(SPOKEN_TOKENS, dit.text_dim, dit.width, gelu=True))
    if fp8:
        found += [_fp8(MOST_ROWS, *sizes) for sizes in ((dit.width, dit.ffn_dim), (dit.ffn_dim, dit.width))]
    for layer in networks[2].modules():
        found += _of_vae(layer, size)
    found.append(_picture_attention(vae, size))
    return list({(case.operation, case.name): case for case in found}.values())


def _cut(size: int, most: int) -> int:
    """`size`, or one of at most `most` that leaves as much over when it is divided by a power of two up to 64."""
    return size if size <= most else most - 64 + size % 64


def _linear(rows: int, inner: int, outer: int, *, gelu: bool = False) -> Case:
    outer = min(outer, max(64, MOST_PRODUCTS // (max(rows, 64) * inner)))
    activate = "tanh-GELU of " if gelu else ""

    def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = x @ weight.T + bias
        return F.gelu(y, approximate="tanh") if gelu else y

    return Case(
        "linear",
        f"{activate}{rows} rows, {inner} to {outer}",
        ((1, rows, inner), (outer, inner), (outer,)),
        inner,
        lambda x, weight, bias: ops.linear(x, weight, bias, gelu=gelu),
        exact,
    )


def _fp8(rows: int, inner: int, outer: int) -> Case:
    """Round the values to e4m3 on both sides; their product is exact except for its sum."""
    outer = min(outer, max(64, MOST_PRODUCTS // (rows * inner) // 16 * 16))

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values, scales = x.to(torch.float8_e4m3fn), torch.ones(*x.shape[:-1], 1, device=x.device)
        weight = weight.to(torch.float8_e4m3fn)
        return product(Fp8(values, scales), weight, torch.full((outer,), inner**-0.5, device=x.device), bias)

    def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values, weight = (one.to(torch.float8_e4m3fn).double() for one in (x, weight))
        return values @ weight.T * inner**-0.5 + bias

    shapes = ((1, rows, inner), (outer, inner), (outer,))
    return Case("fp8", f"{rows} rows, {inner} to {outer}", shapes, 1, call, exact, optional=True)


def _prompt_matmuls(text: UMT5Config) -> Iterator[Case]:
    heads = min(text.num_heads, MOST_HEADS)
    for tokens in (SPOKEN_TOKENS, MAX_TEXT_TOKENS):
        for shapes in (
            ((heads, tokens, text.d_kv), (heads, text.d_kv, tokens)),
            ((heads, tokens, tokens), (heads, tokens, text.d_kv)),
        ):
            name = " by ".join("x".join(map(str, shape)) for shape in shapes)
            yield Case("matmul", name, shapes, shapes[0][-1], ops.matmul, torch.matmul)


def _attentions(dit: DiTConfig, history: int, noisy: list[int], device: torch.device) -> Iterator[Case]:
    heads, size = min(dit.num_attention_heads, MOST_HEADS), dit.attention_head_dim
    names = {"sdpa", *({"blocked"} if device.type == "cpu" and torch.backends.mkldnn.is_available() else ())}
    if device.type == "cuda":
        names |= {
            name for name in attention.ON_GPU if name != "triton" and (name != "fa3" or attention.has_fa3(device))
        }
    counts = [(_cut(few, MOST_KEYS), _cut(history + few, MOST_KEYS)) for few in noisy]
    for name in sorted(names):
        for few, rows in counts:
            for queries, keys in ((rows, rows), (few, rows)):
                yield _attention(name, queries, keys, heads, size)
                if name == "blocked":  # which so few scores are not computed by
                    yield _attention(name, queries, keys, heads, size, run=attention.by_query_blocks)
        for keys in (SPOKEN_TOKENS, MAX_TEXT_TOKENS):
            biased = keys < MAX_TEXT_TOKENS
            if not (biased and name in attention.WITHOUT_BIAS):
                yield _attention(name, counts[-1][0], keys, heads, size, bias=biased)


def _attention(
    name: str, queries: int, keys: int, heads: int, size: int, *, bias: bool = False, run: Any = None
) -> Case:
    def biases(like: Tensor) -> Tensor | None:
        return torch.cat([torch.zeros(keys - 1), torch.tensor([6.0])]).to(like) if bias else None

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (run or attention.RUN[name])(q, k, v, biases(q.new_empty(0, dtype=torch.float32)))

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = torch.einsum("bqnd,bknd->bnqk", q, k) * size**-0.5
        weights = torch.softmax(logits if not bias else logits + biases(logits), dim=-1)
        return torch.einsum("bnqk,bknd->bqnd", weights, v)

    shapes = ((1, queries, heads, size), (1, keys, heads, size), (1, keys, heads, size))
    return Case(
        f"attention {name}",
        f"{queries} by {keys}, {heads} heads of {size}{', biased' if bias else ''}{', in blocks' if run else ''}",
        shapes,
        1,
        call,
        exact,
        optional=name not in ("sdpa", "blocked"),
    )


def _picture_attention(vae: VAEConfig, size: tuple[int, int]) -> Case:
    channels = vae.base_dim * vae.dim_mult[-1]
    cells = _cut(size[0] * size[1] // PIXELS_PER_CELL**2, MOST_KEYS)
    case = _attention("sdpa", cells, cells, 1, channels)
    return replace(case, name=f"{case.name}, of a picture")


def _of_vae(layer: Any, size: tuple[int, int]) -> Iterator[Case]:
    """Yield the cases of one layer of the VAE, without those of the layers in it."""
    cells = (pixels // PIXELS_PER_CELL for pixels in reversed(size))
    height, width = (min(most, count) for most, count in zip(MOST_CELLS, cells, strict=True))
    if isinstance(layer, Upsample):
        yield _convolution("upsample", layer.resample["1"], (2, height, width))
    elif isinstance(layer, Downsample):
        yield _convolution("pictures", layer.resample["1"], (2, 2 * height + 1, 2 * width + 1))
        if layer.time_conv is not None:
            yield _convolution("frames", layer.time_conv, (5, height, width))
    elif isinstance(layer, CausalConv3d):
        for frames in (1, 2):
            yield _convolution("frames", layer, (PAST + frames, height, width))
    elif isinstance(layer, nn.Conv2d | nn.Conv3d) and math.prod(layer.kernel_size) == 1:
        yield _convolution("pointwise", layer, (2, height, width))


def _convolution(kind: str, layer: Any, clip: tuple[int, int, int]) -> Case:
    """`kind` names the function that the VAE has it computed by, on a clip of frames, rows and columns."""
    inner, kernel = layer.in_channels, layer.kernel_size
    sums = inner * math.prod(kernel)
    outer = min(layer.out_channels, max(16, MOST_PRODUCTS // (sums * math.prod(clip))))
    how = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}

    def like(weight: Tensor, bias: Tensor) -> SimpleNamespace:
        return SimpleNamespace(weight=weight, bias=bias, out_channels=outer, **how)

    def pictures(x: Tensor) -> Tensor:
        return x.flatten(0, 1).movedim(-1, 1)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if weight.dim() == 5:
            return channels_last(F.conv3d(x.movedim(-1, 1), weight, bias, layer.stride, layer.padding))
        return channels_last(F.conv2d(pictures(x), weight, bias, layer.stride)).unflatten(0, x.shape[:2])

    def doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        large = F.interpolate(pictures(x), scale_factor=2, mode="nearest")
        return channels_last(F.conv2d(large, weight, bias, padding=1)).unflatten(0, x.shape[:2])

    operation, call, exact = {
        "frames": ("convolve", lambda x, w, b: convolve(like(w, b), x), plain),
        "pointwise": ("pointwise", lambda x, w, b: pointwise(like(w, b), x), plain),
        "upsample": ("convolve_pictures", lambda x, w, b: upsample_conv(like(w, b), x), doubled),
        "pictures": (
            "convolve_pictures",
            lambda x, w, b: channels_last(convolve_pictures(pictures(x), w, b, stride=2)).unflatten(0, x.shape[:2]),
            plain,
        ),
    }[kind]
    sizes = ("x".join(map(str, sides)) for sides in (kernel, clip))
    name = f"{kind} {' of '.join(sizes)}, {inner} to {outer}"
    return Case(operation, name, ((1, *clip, inner), (outer, inner, *kernel), (outer,)), sums, call, exact)


def _error(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> float | None:
    """Return the largest error of a case, as in `BOUND`; infinite where it does not run, None if that is no fault."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in case.shapes]
    tensors[1] /= case.sums**0.5
    tensors = [tensor.to(dtype) for tensor in tensors]
    exact = case.exact(*(tensor.double() for tensor in tensors))
    try:
        result = case.call(*(tensor.to(device) for tensor in tensors)).double().cpu()
    except torch.OutOfMemoryError:  # no fault of the product
        raise
    except RuntimeError:  # a library that has no such product for this type
        return None if case.optional else math.inf
    return ((result - exact).abs() / (exact.abs() + exact.square().mean().sqrt())).max().item()
