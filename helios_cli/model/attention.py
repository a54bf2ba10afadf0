"""One attention: softmax(q k^T / sqrt(D) + bias) v, full and unmasked. Each network has its `Choice` of a back end.

Shapes: B batch, Q query tokens, K key tokens, N heads, D head size.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import helios_kernels as kernels
from helios_cli.errors import MachineError
from helios_cli.measured import Measured, Measurements
from helios_cli.model import backends
from helios_cli.model.backends import AUTO
from helios_cli.model.ops import linear, onednn_runs, product_dtype, right_dtype
from helios_cli.units import IN_8_BITS
from helios_kernels.timing import gpu_seconds

_QUERY_BLOCK = 128
"""Query rows at a time on a CPU: their scores against some thousand keys stay in its cache. Against 4416 keys a third
less time than with 256 (AMD EPYC, other processes in the same cache); 64 and 32 are slower again."""


@dataclass(frozen=True)
class Backend:
    name: str
    reason: str


@functools.cache
def cpu_backend() -> Backend:
    """Return the back end for a CPU without gradients: blocked oneDNN products, or SDPA with bfloat16 tiles."""
    if not torch.backends.mkldnn.is_available():
        return Backend("sdpa", "this PyTorch was built without oneDNN")
    if torch.cpu._is_amx_tile_supported():
        return Backend("sdpa", "the CPU has AMX tiles, which PyTorch's attention uses")
    return Backend("blocked", "oneDNN products by query block: about twice as fast as SDPA on a CPU without AMX")


_SCORES_KEPT = 2**20
"""Scores of one head up to which a CPU keeps all of them for the gradient: 1024 queries by 1024 keys."""


def attention(
    q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None = None, choice: Choice | None = None
) -> Tensor:
    """Compute attention over all keys. `bias_K` is added to every query's logits. Returns [B, Q, N * D]."""
    if q_BQND.device.type == "cpu" and torch.is_grad_enabled() and q_BQND.shape[1] * k_BKND.shape[1] <= _SCORES_KEPT:
        return _plain(q_BQND, k_BKND, v_BKND, bias_K).flatten(2)
    if torch.is_grad_enabled():
        return _sdpa(q_BQND, k_BKND, v_BKND, bias_K).flatten(2)
    name = (choice or USUAL).of(q_BQND, k_BKND, v_BKND, bias_K)
    return (RUN.get(name) or RUN_8BIT[name])(q_BQND, k_BKND, v_BKND, bias_K).flatten(2)


def _plain(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None) -> Tensor:
    """Compute plain products of all heads, for few scores on a CPU: in training, with gradients, 2 to 7 times as fast
    as PyTorch's attention."""
    heads, scale, wide = q_BQND.shape[2], q_BQND.shape[-1] ** -0.5, product_dtype(q_BQND, "matmul")
    q, k, v = (x.to(wide).transpose(1, 2).flatten(0, 1) for x in (q_BQND * scale, k_BKND, v_BKND))
    logits = q @ k.transpose(1, 2)
    if bias_K is not None:
        logits = logits + bias_K.to(logits.dtype)
    out = torch.softmax(logits, dim=-1) @ v
    return out.unflatten(0, (-1, heads)).transpose(1, 2).to(q_BQND.dtype)


def _sdpa(
    q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None, only: SDPBackend | None = None
) -> Tensor:
    """Compute PyTorch's attention, [B, Q, N, D], by the back end that it takes or by `only` one."""
    mask = None if bias_K is None else bias_K.to(q_BQND.dtype)[None, None, None]
    q, k, v = (x.transpose(1, 2) for x in (q_BQND, k_BKND, v_BKND))
    if only is None:
        return scaled_dot_product(q, k, v, mask).transpose(1, 2)
    with _switches, sdpa_kernel([only]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


_switches = threading.Lock()
"""Guards PyTorch's back-end switches, which are global: the VAE may decode while the transformer runs."""


def scaled_dot_product(q_BNQD: Tensor, k_BNKD: Tensor, v_BNKD: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute PyTorch's attention, by whichever back end it takes."""
    wide = right_dtype(q_BNQD.device, "attention sdpa", q_BNQD.dtype)
    q, k, v = (x.to(wide) for x in (q_BNQD, k_BNKD, v_BNKD))
    with _switches:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(wide))
    return y.to(q_BNQD.dtype)


FEW_SCORES = 2**21
"""Scores of all heads up to which a CPU has them all at once: 8 MiB. Those of `tiny` then take a third of the time that
single calls for each head take, and have the same bits (an Intel Xeon)."""


def _blocked(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None) -> Tensor:
    few = q_BQND.shape[:3].numel() * k_BKND.shape[1] <= FEW_SCORES
    compute = _plain if few and q_BQND.dtype == torch.float32 else by_query_blocks
    return compute(q_BQND, k_BKND, v_BKND, bias_K)


def by_query_blocks(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None) -> Tensor:
    """Compute by blocks of queries, so that no Q x K matrix is held. Logits and softmax are float32 in every dtype."""
    out = torch.empty_like(q_BQND)
    scale = q_BQND.shape[-1] ** -0.5
    for batch in range(q_BQND.shape[0]):
        for head in range(q_BQND.shape[2]):
            q, o = q_BQND[batch, :, head], out[batch, :, head]
            k = k_BKND[batch, :, head].float().contiguous()
            v_t = v_BKND[batch, :, head].T.contiguous()
            for start in range(0, q.shape[0], _QUERY_BLOCK):
                rows = slice(start, start + _QUERY_BLOCK)
                logits = linear(q[rows].float() * scale, k, bias_K)
                o[rows] = linear(torch.softmax(logits, dim=-1).to(v_t.dtype), v_t)
    return out


@functools.cache
def has_fa3(device: torch.device) -> bool:
    """Return whether FlashAttention-3 (extra `fa3`) is installed, and `device` is the Hopper GPU that it is for."""
    hopper = device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) == (9, 0)
    return hopper and importlib.util.find_spec(_FA3) is not None


_FA3 = "fa3_fwd_interface"
"""The module of the package fa3-fwd."""


def _fa3(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None, **scales: Tensor) -> Tensor:
    if bias_K is not None:
        raise MachineError("FlashAttention-3 takes no bias")
    return importlib.import_module(_FA3).flash_attn_func(q_BQND, k_BKND, v_BKND, **scales)


def _fa3_e4m3(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None) -> Tensor:
    """Compute attention of e4m3 factors with one scale a head."""
    (q, q_scale), (k, k_scale), (v, v_scale) = (
        kernels.round_heads(x, torch.float8_e4m3fn, "head") for x in (q_BQND, k_BKND, v_BKND)
    )
    scales = {"q_descale": q_scale, "k_descale": k_scale, "v_descale": v_scale}
    out = _fa3(q, k, v, bias_K, **{name: scale[:, 0, :, 0] for name, scale in scales.items()})
    return out.to(q_BQND.dtype)


def _8bit(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None, kind: kernels.Kind) -> Tensor:
    assert bias_K is None, "self-attention has none"
    return kernels.attention_8bit(q_BQND, k_BKND, v_BKND, kind)


def _kernel(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None) -> Tensor:
    """Run the kernel, whatever HELIOS_KERNELS is."""
    return kernels.attention.kernel(q_BQND, k_BKND, v_BKND, bias_K)


# Which one


RUN: dict[str, backends.Attention] = {
    "triton": _kernel,
    "sdpa": _sdpa,
    "flash": functools.partial(_sdpa, only=SDPBackend.FLASH_ATTENTION),
    "cudnn": functools.partial(_sdpa, only=SDPBackend.CUDNN_ATTENTION),
    "fa3": _fa3,
    "efficient": functools.partial(_sdpa, only=SDPBackend.EFFICIENT_ATTENTION),
    "math": functools.partial(_sdpa, only=SDPBackend.MATH),
    "blocked": _blocked,
}
"""By the names of --attention. "sdpa" leaves the choice to PyTorch."""

NAMES = (AUTO, *RUN)

RUN_8BIT: dict[str, backends.Attention] = {
    "int8": functools.partial(_8bit, kind="int8"),
    "e4m3": functools.partial(_8bit, kind="e4m3"),
    "fa3-e4m3": _fa3_e4m3,
}
"""Self-attention of --quant fp8+attention."""

ON_GPU = ("efficient", "flash", "cudnn", "fa3", "triton")
"""The kinds of attention that `auto` times on a GPU, those first that the others are compared with."""


WITHOUT_BIAS = {"flash", "fa3"}

SECONDS_PER_CANDIDATE = 0.03
"""Time for each attention at each of a film's twenty shapes, which the first film of a size waits for."""


class Choice:
    """Chooses what computes attention in a network.

    `name` is --attention, `memory` holds what was measured on a GPU. `wanted` names the attention of shapes, as `taken`
    of another film: where it runs and is right here, it is taken in place of the fastest.
    """

    def __init__(
        self, name: str = AUTO, memory: Measurements | None = None, wanted: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.memory = memory or Measurements()
        self.wanted = wanted or {}
        self.taken: dict[str, str] = {}
        """The choices of `auto` on a GPU, by shape."""

    def of(self, q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None) -> str:
        """Return the name of the attention for these tensors. On a GPU a new shape is timed first."""
        if self.name != AUTO:
            # These take no bias: the prompt's few keys, whose padding has one, go to what PyTorch takes.
            return "sdpa" if self.name in WITHOUT_BIAS and bias_K is not None else self.name
        if not q_BQND.is_cuda:
            if onednn_runs(q_BQND) and cpu_backend().name == "blocked" and is_right("blocked", q_BQND):
                return "blocked"
            return "triton" if kernels.runs(q_BQND, "attention") and kernels.attention.takes(q_BQND) else "sdpa"
        shape, names = backends.shape_key(q_BQND, k_BKND, bias_K), self._candidates(q_BQND, bias_K)
        known = self.memory.known.get(shape)
        if known is None or not known.covers(names):
            if torch.cuda.is_current_stream_capturing():
                return "sdpa"  # nothing can be timed in a graph
            candidates = {name: RUN[name] for name in names}
            seconds = functools.partial(gpu_seconds, budget=SECONDS_PER_CANDIDATE)
            known = backends.measure(candidates, q_BQND, k_BKND, v_BKND, bias_K, seconds)
            self.memory.keep(shape, known)
        wanted = self.wanted.get(shape)
        self.taken[shape] = wanted if wanted in names and wanted in known.ms else known.fastest(names)
        return self.taken[shape]

    def _candidates(self, q_BQND: Tensor, bias_K: Tensor | None) -> list[str]:
        without = {name for name in ON_GPU if not is_right(name, q_BQND)}
        if bias_K is not None:
            without |= WITHOUT_BIAS
        if not has_fa3(q_BQND.device):
            without.add("fa3")
        if not (kernels.runs(q_BQND, "attention") and kernels.attention.takes(q_BQND)):
            without.add("triton")
        return [name for name in ON_GPU if name not in without]


class Choice8Bit(Choice):
    """Chooses what computes self-attention in 8 bits.

    On a GPU each shape is timed. Of the candidates that are faster than the choice of `plain`, the one that differs
    least from it is taken; if none is faster, that choice itself. Other devices take int8, the nearer one.
    """

    def __init__(self, plain: Choice, wanted: Mapping[str, str] | None = None) -> None:
        super().__init__(AUTO, plain.memory, wanted)
        self.plain, self.only = plain, ""

    def of(self, q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None) -> str:
        if self.only or not q_BQND.is_cuda:
            return self.only or "int8"
        shape = backends.shape_key(q_BQND, k_BKND, bias_K) + IN_8_BITS
        plain = self.plain.of(q_BQND, k_BKND, v_BKND, bias_K)
        names = [plain, *(name for name in RUN_8BIT if self._runs(name, q_BQND))]
        known = self.memory.known.get(shape)
        if known is None or not known.covers(names):
            if torch.cuda.is_current_stream_capturing():
                return plain  # nothing can be timed in a graph
            candidates = {name: RUN.get(name) or RUN_8BIT[name] for name in names}
            seconds = functools.partial(gpu_seconds, budget=SECONDS_PER_CANDIDATE)
            bound = backends.AGREES_IN_8_BITS
            known = backends.measure(candidates, q_BQND, k_BKND, v_BKND, bias_K, seconds, bound)
            known = replace(known, name=nearest_of_the_faster(known, names))
            self.memory.keep(shape, known)
        wanted = self.wanted.get(shape)
        self.taken[shape] = wanted if wanted in names and wanted in known.ms else nearest_of_the_faster(known, names)
        return self.taken[shape]

    @staticmethod
    def _runs(name: str, q_BQND: Tensor) -> bool:
        return has_fa3(q_BQND.device) if name.startswith("fa3") else kernels.runs(q_BQND, "attention_8bit")


def nearest_of_the_faster(known: Measured, names: Sequence[str]) -> str:
    """Return which of `names` differs least from the first one of those that are faster; the first if none is."""
    plain, *others = names
    faster = [name for name in others if name in known.apart and known.ms[name] < known.ms.get(plain, 0.0)]
    return min(faster, key=known.apart.__getitem__, default=plain)


def is_right(name: str, q_BQND: Tensor) -> bool:
    """Return whether the attention called `name` was not found wrong on the device of these queries."""
    return right_dtype(q_BQND.device, f"attention {name}", q_BQND.dtype) == q_BQND.dtype


USUAL = Choice()
"""The choice of networks that were given none, such as those in training."""


def auto_rule(device: torch.device) -> Backend:
    """Return the rule of `auto` on `device`."""
    if device.type == "cuda":
        return Backend("measured", f"each shape takes the fastest of {', '.join(ON_GPU)} that runs and is right")
    if device.type == "cpu":
        return cpu_backend()
    return Backend("sdpa", f"PyTorch's own is all there is on {device.type}")


def choose(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    head_size: int,
    *,
    memory: Measurements | None = None,
    wanted: Mapping[str, str] | None = None,
) -> Choice:
    """Return the choice called `name`, one of NAMES, for networks with such heads on `device`.

    `memory` and `wanted` are for `auto` on a GPU.

    Raises InputError for another name, MachineError if that attention does not run here for such heads.
    """
    if name not in NAMES:
        raise backends.unknown(name, NAMES)
    if name == "triton" and kernels.find_triton().chip is None:
        raise MachineError(f"--attention triton: {kernels.find_triton().reason}", hint="leave out --attention")
    if name == "blocked" and (device.type != "cpu" or not torch.backends.mkldnn.is_available()):
        raise MachineError(f"--attention blocked is for a CPU with oneDNN, not {device}", hint="leave out --attention")
    if name != AUTO:
        with torch.no_grad():
            backends.require(name, RUN[name], device, dtype, heads, head_size)
    return Choice(name, memory, wanted)
