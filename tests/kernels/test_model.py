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
import sys, torch
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from interpreter import quicken
from helios_cli.model import attention
from helios_cli.architecture import DiTConfig
from helios_cli.model.dit import HeliosDiT

quicken()
attention.onednn_runs = lambda x: False  # a matter of CPUs, where kernels do not run by themselves
torch.manual_seed(0)
sizes = dict(num_attention_heads=2, attention_head_dim=16, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2)
model = HeliosDiT(DiTConfig(**sizes, rope_dim=(4, 6, 6))).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    if "join" in sys.argv:
        for block in model.blocks:
            block.attn1.join()
    history = model.embed_history(*(torch.randn(1, 16, frames, 8, 8) for frames in (16, 2, 2)))
    text, mods = model.embed_text(torch.randn(1, 7, 32)), model.modulation(torch.tensor([500.0]))
    flow = model(torch.randn(1, 16, 9, 8, 8), history, mods, model.rope((4, 4), (4, 4)), text)
torch.save(flow, sys.argv[1])
"""


def flow(path, kernels: str, *arguments: str) -> torch.Tensor:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HELIOS_KERNELS": kernels}
    subprocess.run([sys.executable, "-c", MODEL, str(path), *arguments], check=True, env=environment, timeout=LONGEST)
    return torch.load(path)


def test_kernels_make_the_same_flow(tmp_path):
    plain = flow(tmp_path / "plain.pt", "reference")
    for arguments in ((), ("join",)):  # three products for queries, keys and values, or one
        fused = flow(tmp_path / "fused.pt", "triton", *arguments)
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


FILM = Path(__file__).parents[1] / "support/kernel_film.py"


def film(
    path: Path, kernels: str, *, quant: str = "none", dtype: str = "float32", chunks: int = 2
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HELIOS_KERNELS": kernels}
    command = [sys.executable, str(FILM), str(path), quant, dtype, str(chunks)]
    subprocess.run(command, check=True, env=environment, timeout=LONGEST)
    return torch.load(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The film in float32, without kernels."""
    return film(tmp_path_factory.mktemp("film") / "plain.pt", "reference")


def test_kernels_make_the_same_film(plain, tmp_path):
    """Sampler, transformer and decoder, two chunks."""
    for distance in distances(film(tmp_path / "fused.pt", "triton"), plain):
        assert distance.latents_db > 90 and distance.frames_db > 60, distance


def test_kernels_make_the_same_film_in_fp8(tmp_path):
    """A sum in another order can fall on the other side of a rounding, which is a step of 1/16."""
    ours, other = (film(tmp_path / f"{kernels}.pt", kernels, quant="fp8") for kernels in ("triton", "reference"))
    for distance in distances(ours, other):
        assert distance.latents_db > 50 and distance.frames_db > 40, distance


def test_kernels_make_as_good_a_film_in_bfloat16(plain, tmp_path):
    """The first chunk is as far from that in float32 as PyTorch's is; bfloat16 cut off would be 1.3 dB further."""
    on, off = (
        distances(film(tmp_path / f"{kernels}.pt", kernels, dtype="bfloat16", chunks=1), plain[:1])
        for kernels in ("triton", "reference")
    )
    for ours, native in zip(on, off, strict=True):
        assert ours.latents_db >= native.latents_db - 1 and ours.frames_db >= native.frames_db - 1, (ours, native)
