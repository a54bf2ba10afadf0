"""The choice of what computes the VAE's convolutions on a GPU, without one: from measurements that are there."""

from __future__ import annotations

import pytest
import torch

from helios_cli.bench.specs import VAE
from helios_cli.cost.arithmetic import convolution_shapes
from helios_cli.engine.choices import measure_convolutions
from helios_cli.measured import Measured, Measurements
from helios_cli.model.convolution import CUDNN, TRITON, Convolutions
from helios_cli.model.vae import VAEConfig, WanVAE
from helios_kernels.dispatch import compiling_for
from support.meta_networks import on_meta

META, SIZE = torch.device("meta"), (640, 384)
CONFIG = VAEConfig.from_json(VAE)
SHAPES = convolution_shapes(CONFIG, SIZE, "bfloat16")


def settled(chip: str, **ms: dict[str, float]) -> Convolutions:
    """Choose for a film, of whose two finest levels these times are known."""
    memory = Measurements()
    for shape, times in zip(SHAPES[-2:], ms.values(), strict=True):
        memory.known[shape] = Measured("", times, {name: "differs" for name in (CUDNN, TRITON) if name not in times})
    choice = Convolutions(memory)
    with compiling_for(chip):
        measure_convolutions(choice, CONFIG, SIZE, torch.bfloat16, META)
    return choice


@pytest.mark.parametrize(
    ("chip", "ms", "expected"),
    [
        ("sm_90", {"a": {CUDNN: 2.0, TRITON: 1.0}, "b": {CUDNN: 1.0, TRITON: 2.0}}, [TRITON, CUDNN]),
        ("sm_100", {"a": {CUDNN: 1.0}, "b": {TRITON: 1.0}}, [CUDNN, TRITON]),
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
