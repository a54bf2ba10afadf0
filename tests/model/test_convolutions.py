"""Columns that a CPU convolves together, and the choice of what convolves on a GPU, by measurements that are there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from helios_cli.architecture import VAEConfig
from helios_cli.bench.specs import VAE
from helios_cli.cost.arithmetic import convolution_shapes
from helios_cli.engine.choices import measure_convolutions
from helios_cli.measured import Measured, Measurements
from helios_cli.model.convolution import CUDNN, FUSED, RUN, TRITON, Convolutions, convolve
from helios_cli.model.vae import WanVAE
from helios_kernels.dispatch import compiling_for
from support.meta_networks import on_meta
from support.waiting import LONGEST

META, SIZE = torch.device("meta"), (640, 384)
CONFIG = VAEConfig.from_json(VAE)
SHAPES = convolution_shapes(CONFIG, SIZE, "bfloat16")


def settled(chip: str, **ms: dict[str, float]) -> Convolutions:
    """Choose for a film, of whose two finest levels these times are known."""
    memory = Measurements()
    for shape, times in zip(SHAPES[-2:], ms.values(), strict=True):
        memory.known[shape] = Measured("", times, {name: "differs" for name in RUN if name not in times})
    choice = Convolutions(memory)
    with compiling_for(chip):
        measure_convolutions(choice, CONFIG, SIZE, torch.bfloat16, META)
    return choice


@pytest.mark.parametrize(
    ("chip", "ms", "expected"),
    [
        ("sm_90", {"a": {CUDNN: 2.0, TRITON: 1.0}, "b": {CUDNN: 1.0, TRITON: 2.0}}, [TRITON, CUDNN]),
        ("sm_100", {"a": {CUDNN: 1.0}, "b": {TRITON: 1.0}}, [CUDNN, TRITON]),
        ("sm_90", {"a": {CUDNN: 3.0, TRITON: 2.0, FUSED: 1.0}, "b": {TRITON: 1.0, FUSED: 2.0}}, [FUSED, TRITON]),
        ("sm_90", {"a": {}, "b": {}}, [CUDNN, CUDNN]),
        ("sm_89", {"a": {TRITON: 1.0}, "b": {TRITON: 1.0}}, []),  # no boxes there
    ],
)
def test_the_faster_one_is_taken(chip, ms, expected):
    choice = settled(chip, **ms)
    assert list(choice.taken.values()) == expected
    assert list(choice.taken) == (SHAPES[-2:] if expected else [])


def test_a_network_follows_the_choice_at_its_shapes():
    """One piece of a chunk, whatever its number of frames; other sizes, types and layouts are cuDNN's."""
    choice = settled("sm_90", a={TRITON: 1.0}, b={TRITON: 1.0})
    vae = on_meta(lambda: WanVAE(CONFIG).bfloat16())
    vae.use_convolutions(choice)
    conv = vae.decoder.up_blocks[-1].resnets[0].conv1
    assert conv.choice is choice and vae.decoder.conv_in.choice is choice

    def taken(rows: int, frames: int, dtype: torch.dtype = torch.bfloat16, layout=torch.channels_last_3d) -> str:
        x = torch.empty(1, 2 + frames, rows, 640, 96, device=META, dtype=dtype)
        weight = torch.empty(96, 96, 3, 3, 3, device=META, dtype=dtype).contiguous(memory_format=layout)
        with compiling_for("sm_90"):
            return conv.choice.of(x, weight)

    assert taken(384, 1) == taken(384, 7) == TRITON
    assert taken(320, 1) == taken(384, 1, torch.float32) == CUDNN
    assert taken(384, 1, layout=torch.contiguous_format) == CUDNN


DECODES = """
import os
import torch
import helios_kernels as kernels
from helios_cli.model.convolution import CUDNN, FUSED, TRITON, Convolutions
from helios_cli.model.causal import CausalConv3d
from model.test_vae import WAN, chunk, make_ours, our_decode
from support.interpreter import quicken

class Always(Convolutions):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def of(self, x, weight):
        return self.name if kernels.causal_conv.takes(x, weight) else CUDNN

quicken()
normed, conv = [], kernels.causal_conv_norm

def seeing(*args):
    normed.append(args[3] is not None)
    return conv(*args)

kernels.causal_conv_norm = seeing
vae, latents = make_ours(**{**WAN, "base_dim": 96, "num_res_blocks": 1}), chunk(2, height=1, width=2)
vae.piece_elements = 8 * 16 * 96 * 3
os.environ["HELIOS_KERNELS"] = "reference"
plain = our_decode(vae, latents)
os.environ["HELIOS_KERNELS"] = "triton"
for layer in vae.modules():
    if isinstance(layer, CausalConv3d):
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)
for name in (TRITON, FUSED):
    vae.use_convolutions(Always(name))
    print((our_decode(vae, latents) - plain).abs().max().item())
print(sum(normed), len(normed) - sum(normed))
"""


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.process
def test_the_kernels_decode_the_same_frames():
    """Through the interpreter, two levels of 192 and 96 channels of two blocks each, in pieces of few frames: with the
    norm in the convolution every first convolution of a block writes what the second reads, and every second one what
    the next block's or the last convolution reads."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", DECODES],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert run.returncode == 0, run.stderr
    apart, fused, counts = run.stdout.splitlines()
    assert float(apart) < 1e-4 and float(fused) < 1e-4  # float32 sums in another order, through some twenty layers
    with_sum, without = map(int, counts.split())
    assert without > with_sum > 0


@torch.inference_mode()
@pytest.mark.parametrize("instructions", ["AVX512", "AVX2", "DEFAULT"])
@pytest.mark.parametrize("channels", [3, 8, 16])
@pytest.mark.parametrize("columns", [7, 10, 12])
def test_columns_together_are_the_columns_one_by_one(instructions, channels, columns, monkeypatch):
    """In rows with zeros around them, and in rows that bring their own edges."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(5, channels, 3)
    x_BTHWC = torch.randn(2, 4, 6, columns, 5)
    for padding in ((0, 1, 1), (0, 0, 1), (0, 0, 0)):
        exact = F.conv3d(x_BTHWC.movedim(-1, 1).double(), conv.weight.double(), conv.bias.double(), padding=padding)
        torch.testing.assert_close(convolve(conv, x_BTHWC, padding), exact.movedim(1, -1).float())
        plain = convolve(conv, x_BTHWC, padding, with_bias=False) + conv.bias
        torch.testing.assert_close(plain, exact.movedim(1, -1).float())
