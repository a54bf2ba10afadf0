"""The transformer, and whole films, with kernels on and off: through the interpreter they make the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helios_cli.bench.fidelity import distances
from support.waiting import LONGEST

pytestmark = [pytest.mark.kernels, pytest.mark.process]

MODEL = f"""
import os, sys, torch
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from interpreter import quicken
from helios_cli.model import attention
from helios_cli.architecture import DiTConfig
from helios_cli.model.dit import HeliosDiT

quicken()
attention.onednn_runs = lambda x: False  # a matter of CPUs, where kernels do not run by themselves
sizes = dict(num_attention_heads=2, attention_head_dim=16, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2)

@torch.no_grad()
def flow(kernels, join=False):
    os.environ["HELIOS_KERNELS"] = kernels
    torch.manual_seed(0)
    model = HeliosDiT(DiTConfig(**sizes, rope_dim=(4, 6, 6))).eval()
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    if join:
        for block in model.blocks:
            block.attn1.join()
    history = model.embed_history(*(torch.randn(1, 16, frames, 8, 8) for frames in (16, 2, 2)))
    text, mods = model.embed_text(torch.randn(1, 7, 32)), model.modulation(torch.tensor([500.0]))
    return model(torch.randn(1, 16, 9, 8, 8), history, mods, model.rope((4, 4), (4, 4)), text)

torch.save([flow("reference"), flow("triton"), flow("triton", join=True)], sys.argv[1])
"""


def test_kernels_make_the_same_flow(tmp_path):
    """With three products for queries, keys and values, and with one."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", MODEL, str(tmp_path / "flows.pt")]
    subprocess.run(command, check=True, env=environment, timeout=LONGEST)
    plain, *fused = torch.load(tmp_path / "flows.pt")
    for flow in fused:
        assert not torch.equal(flow, plain)  # kernels ran: their sums have another order
        torch.testing.assert_close(flow, plain, rtol=1e-4, atol=1e-5)


FILM = Path(__file__).parents[1] / "support/kernel_film.py"


Film = list[tuple[torch.Tensor, torch.Tensor]]


def films(path: Path, *, quant: str = "none", dtype: str = "float32", chunks: int = 2) -> dict[str, Film]:
    """Return the film with kernels, `triton`, and without, `reference`."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(FILM), str(path), quant, dtype, str(chunks)]
    subprocess.run(command, check=True, env=environment, timeout=LONGEST)
    return torch.load(path)


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory) -> dict[str, Film]:
    return films(tmp_path_factory.mktemp("film") / "float32.pt")


def test_kernels_make_the_same_film(in_float32):
    """Sampler, transformer and decoder, two chunks."""
    assert not torch.equal(in_float32["triton"][0][0], in_float32["reference"][0][0])  # kernels ran
    for distance in distances(in_float32["triton"], in_float32["reference"]):
        assert distance.latents_db > 90 and distance.frames_db > 60, distance


def test_kernels_make_the_same_film_in_fp8(tmp_path):
    """A sum in another order can fall on the other side of a rounding, which is a step of 1/16."""
    both = films(tmp_path / "fp8.pt", quant="fp8")
    for distance in distances(both["triton"], both["reference"]):
        assert distance.latents_db > 50 and distance.frames_db > 40, distance


def test_kernels_make_as_good_a_film_in_bfloat16(in_float32, tmp_path):
    """The first chunk is as far from that in float32 as PyTorch's is; bfloat16 cut off would be 1.3 dB further."""
    both = films(tmp_path / "bfloat16.pt", dtype="bfloat16", chunks=1)
    on, off = (distances(both[kernels], in_float32["reference"][:1]) for kernels in ("triton", "reference"))
    for ours, native in zip(on, off, strict=True):
        assert ours.latents_db >= native.latents_db - 1 and ours.frames_db >= native.frames_db - 1, (ours, native)
