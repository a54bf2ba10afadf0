"""The twins compute what the program's own PyTorch path does: a kernel that equals its twin can take its place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from helios_cli.model import ops
from helios_cli.model.attention import attention
from helios_cli.model.causal import Unsummed, summed
from helios_cli.model.channel_norm import ChannelNorm
from helios_cli.model.convolution import convolve
from helios_cli.sampling.schedule import Stage
from helios_cli.sampling.solvers import DMD
from helios_kernels.check import OPS


def modulated_norm(x_BSE, scale, shift, split, eps):
    return ops.modulated_norm(x_BSE, scale, shift, split, eps)


def gated_residual(x_BSE, y_BSE, gate, split):
    """Add the gated residual as `Block` does: gated on all rows, or a plain sum on the noisy rows for
    cross-attention."""
    x = x_BSE.clone()
    if gate is not None and y_BSE.shape == x.shape:
        return ops.gated_residual(x, y_BSE, gate, split)
    guided = x[:, split:]
    if gate is None:
        guided += y_BSE
    else:
        guided.copy_(ops.gated_residual(guided.clone(), y_BSE, gate, 0))
    return x


def gated_residual_modulated_norm(x_BSE, y_BSE, gate, scale, shift, split, eps):
    x = gated_residual(x_BSE, y_BSE, gate, split)
    return ops.modulated_norm(x, scale, shift, split, eps), x


def gated_residual_layer_norm(x_BSE, y_BSE, gate, weight_E, bias_E, split, eps):
    x = gated_residual(x_BSE, y_BSE, gate, split)
    return ops.layer_norm(x[:, split:], weight_E, bias_E, eps), x


def qk_norm_rope(x_BSWE, weight_WE, rope_SD2, heads, eps):
    pieces = zip(x_BSWE.unbind(2), weight_WE, strict=True)
    return torch.stack([ops.rms_norm_rope(x, w, rope_SD2, heads, eps).flatten(2) for x, w in pieces], dim=2)


def plain_attention(q_BQND, k_BKND, v_BKND, bias_K):
    return attention(q_BQND, k_BKND, v_BKND, bias_K).unflatten(-1, q_BQND.shape[2:])


def attention_8bit(q_BQND, k_BKND, v_BKND, kind):
    """Compute what it approximates: how near, the quality of films shows."""
    return plain_attention(q_BQND, k_BKND, v_BKND, None)


def channel_extremes(x_BSND):
    return x_BSND.sum(1), x_BSND.amin(1), x_BSND.amax(1)


def round_heads(x_BSND, dtype, over, centred, columns):
    """Return what is rounded, as the program has no other path for it."""
    x = x_BSND - x_BSND.mean(1, keepdim=True) if centred else x_BSND
    axes = {"row": (3,), "channel": (1,), "head": (1, 3)}[over]
    scales = x.abs().amax(axes, keepdim=True) / (127 if dtype == torch.int8 else 448)
    return tuple(one.movedim(1, -1) if columns else one for one in (x, scales))


def quantize(x, gelu):
    y = F.gelu(x.float(), approximate="tanh") if gelu else x.float()
    return y, y.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 448


def modulated_norm_fp8(x_BSE, scale, shift, split, eps):
    return quantize(ops.modulated_norm(x_BSE, scale, shift, split, eps), gelu=False)


def gated_residual_modulated_norm_fp8(x_BSE, y_BSE, gate, scale, shift, split, eps):
    normed, x = gated_residual_modulated_norm(x_BSE, y_BSE, gate, scale, shift, split, eps)
    return *quantize(normed, gelu=False), x


def renoise(x_BCTHW, noise, alpha, beta):
    frames = F.interpolate(x_BCTHW[0].transpose(0, 1), scale_factor=2, mode="nearest")
    return alpha * frames.transpose(0, 1)[None] + beta * noise


def dmd_step(x, flow, start_point, sigma, sigma_next):
    return DMD(Stage((0.0,), (sigma, sigma_next)), start_point).step(0, x, flow)


def vae_norm_silu(x_BTHWC, gamma_C, out_BTHWC, silu=True):
    norm = ChannelNorm(len(gamma_C))
    norm.gamma.data = gamma_C.view(-1, 1, 1, 1)
    return norm.into(torch.empty(x_BTHWC.shape), x_BTHWC.contiguous(), silu=silu)


def causal_pad(x_BTHWC, past_BPHWC, out_BTHWC, gamma_C):
    buffer = torch.zeros(out_BTHWC.shape)
    past = buffer.shape[1] - x_BTHWC.shape[1]
    if past_BPHWC is not None:
        buffer[:, :past] = past_BPHWC
    buffer[:, past:] = vae_norm_silu(x_BTHWC, gamma_C, None)
    return buffer


def causal_sum_pad(x_BTHWC, bias_C, shortcut_BTHWC, past_BPHWC, out_BTHWC, gamma_C):
    total = summed(Unsummed(x_BTHWC.clone(), bias_C, shortcut_BTHWC))
    padded = causal_pad(total, past_BPHWC, out_BTHWC, gamma_C)
    return padded, x_BTHWC if shortcut_BTHWC is None else total


def causal_conv(x_BTHWC, weight_NCTHW, bias_N, shortcut_BTHWN):
    """Convolve as the VAE does, whose norm behind it adds bias and shortcut."""
    conv = SimpleNamespace(weight=weight_NCTHW, bias=bias_N, stride=(1, 1, 1), dilation=(1, 1, 1))
    y = convolve(conv, x_BTHWC, (0, 1, 1))
    return y if shortcut_BTHWN is None else y + shortcut_BTHWN


def causal_conv_norm(x_BTHWC, weight_NCTHW, bias_N, shortcut_BTHWN, gamma_N, out_BTHWN):
    total = causal_conv(x_BTHWC, weight_NCTHW, bias_N, shortcut_BTHWN)
    normed = vae_norm_silu(total, gamma_N, out_BTHWN)
    return (normed,) if shortcut_BTHWN is None else (normed, total)


OURS = {
    "modulated_norm": modulated_norm,
    "modulated_norm_fp8": modulated_norm_fp8,
    "gated_residual": gated_residual,
    "gated_residual_modulated_norm": gated_residual_modulated_norm,
    "gated_residual_modulated_norm_fp8": gated_residual_modulated_norm_fp8,
    "gated_residual_layer_norm": gated_residual_layer_norm,
    "qk_norm_rope": qk_norm_rope,
    "attention": plain_attention,
    "attention_8bit": attention_8bit,
    "channel_extremes": channel_extremes,
    "round_heads": round_heads,
    "quantize": quantize,
    "renoise": renoise,
    "dmd_step": dmd_step,
    "vae_norm_silu": vae_norm_silu,
    "causal_pad": causal_pad,
    "causal_sum_pad": causal_sum_pad,
    "causal_conv": causal_conv,
    "causal_conv_norm": causal_conv_norm,
}
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.id}")
    for op in OPS.values()
    for case in op.cases
    if case.interpreted and op.name != "attention_pointers"
]


def test_no_operation_is_left_out():
    assert OURS.keys() == OPS.keys() - {"attention_pointers"}


@torch.no_grad()
@pytest.mark.parametrize(("op", "case"), CASES)
def test_twin_is_the_programs_own_path(op, case):
    torch.manual_seed(0)
    inputs = op.inputs(case, torch.float32, torch.device("cpu"))
    written = {name: inputs[name].clone() for name in op.written if inputs[name] is not None}
    ours = OURS[op.name](**{**inputs, **written})
    twin = op.results(op.exact or op.reference, inputs)
    ours = ours if isinstance(ours, tuple) else (ours,)
    torch.testing.assert_close(twin, ours, rtol=1e-4, atol=1e-4)  # float32 sums in another order
