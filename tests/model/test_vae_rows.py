"""A chunk that ranks decode together is the chunk that one process decodes.

Convolutions of some of the rows add up the same products; where a library adds them in another order for another number
of rows, frames differ by rounding (7.7e-7 of values from -1 to 1, on the processor that this was measured on).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helios_cli.architecture import VAEConfig
from helios_cli.bench import specs
from helios_cli.model import causal, sharded
from helios_cli.model.vae import WanVAE, frames_to_uint8
from helios_cli.model.vae_rows import Rows, decode_rows, pictures
from model.test_vae import CONFIGS, WAN, chunk, make_ours, our_decode
from support import meta_networks
from support.teams import as_ranks
from support.tiers import some
from support.waiting import LONGEST

ROUNDING = 5e-6


def decoded(vae, latents: torch.Tensor, ranks: int) -> torch.Tensor:
    parts = as_ranks(ranks, lambda exchange: our_pieces(decode_rows(vae, latents, exchange)))
    return torch.cat(parts, dim=3)


def our_pieces(frames) -> torch.Tensor:
    return torch.cat(list(frames), dim=2).float()


@pytest.fixture(scope="module")
def ours():
    return make_ours(**WAN)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_arrangement_of_layers_can_be_shared(config):
    vae, latents = make_ours(**CONFIGS[config]), chunk(3, height=4, width=6)
    torch.testing.assert_close(decoded(vae, latents, 2), our_decode(vae, latents), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(("ranks", "height"), some(1, [(2, 7), (4, 11), (3, 8), (4, 4), (8, 9)]))
def test_rows_need_not_divide(ours, ranks, height):
    """Ranks with a single row of latents, too."""
    latents = chunk(3, height=height, width=3)
    torch.testing.assert_close(decoded(ours, latents, ranks), our_decode(ours, latents), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("height", [5, 4])
@pytest.mark.slow
def test_ranks_take_the_same_pieces(ours, height, monkeypatch):
    """With a limit at which two ranks of three rows and two would split some layer's frames differently."""
    latents = chunk(5, height=height, width=4)
    whole = our_decode(ours, latents)
    monkeypatch.setattr(causal, "PIECE_ELEMENTS", {"cpu": 4 * 16 * 32 * 8})
    torch.testing.assert_close(decoded(ours, latents, 2), whole, atol=ROUNDING, rtol=0)
    counts = as_ranks(2, lambda exchange: len(list(decode_rows(ours, latents, exchange))))
    assert counts[0] == counts[1] > 2


def test_bfloat16_is_shared(ours):
    vae, latents = make_ours(**WAN).bfloat16(), chunk(3, height=5, width=6)
    difference = decoded(vae, latents, 2) - our_decode(vae, latents)
    assert difference.abs().mean() < 0.1 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("frames", [1, 7, 9])
def test_rank_0_has_the_pictures_and_the_others_nothing(ours, frames):
    """No more than are wanted, within a level of those of one process."""
    latents = chunk(3, height=5, width=6)
    whole = frames_to_uint8(our_decode(ours, latents))[0, :frames]
    groups = as_ranks(2, lambda exchange: list(pictures(ours, latents, frames, exchange)))
    joined = torch.cat([group for group, _ in groups[0]])
    assert joined.shape == whole.shape and joined.is_contiguous()
    assert (joined.int() - whole.int()).abs().max() <= 1
    assert all(finite for _, finite in groups[0])
    assert [len(group.transpose(0, 1)) for group, _ in groups[1]] == [0] * len(groups[0])


@pytest.mark.parametrize("row", [0, 4])
def test_a_fault_in_any_rank_s_rows_reaches_rank_0(ours, row):
    latents = chunk(1, height=5, width=6)
    latents[:, :, :, row] = torch.nan
    groups = as_ranks(2, lambda exchange: list(pictures(ours, latents, 1, exchange)))
    assert not groups[0][0][1]


def test_a_rank_without_rows_is_refused(ours):
    with pytest.raises(ValueError, match="2 rows of latents cannot be decoded by 3 ranks"):
        as_ranks(3, lambda exchange: next(pictures(ours, chunk(1, height=2), 1, exchange)))


PAGE = Path(sharded.__file__).with_name("sharded.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_page_s_exchanges_are_those_of_a_decode(ranks, monkeypatch):
    """Exchanges of a middle rank are counted on the published shape, without values."""
    vae = meta_networks.on_meta(lambda: WanVAE(VAEConfig.from_json(specs.VAE))).to(torch.bfloat16)
    counted, copied, with_edges = meta_networks.Counted(ranks, rank=ranks // 2), [], Rows.with_edges

    def copying(self, x):
        padded = with_edges(self, x)
        copied.append(x.nbytes + padded.nbytes)
        return padded

    monkeypatch.setattr(Rows, "with_edges", copying)
    with torch.inference_mode():
        for _ in decode_rows(vae, torch.empty(1, 16, 9, 48, 80, device="meta"), counted):
            pass
    table = PAGE[PAGE.index("To decode a chunk") : PAGE.index("## What is exact")]
    (line,) = re.findall(rf"^\| {ranks} \| (\d+) \| (\d+) \| (\d+) \|$", table, re.MULTILINE)
    assert line == (str(counted.exchanges), f"{counted.received / 1e6:.0f}", f"{sum(copied) / 1e9:.0f}")


WITH_KERNELS = """
import threading
import helios_kernels as kernels
from helios_kernels import launch
from model.test_vae import WAN, chunk, make_ours, our_decode
from model.test_vae_rows import decoded
from support.interpreter import quicken

quicken()
turn, start, seen, pad = threading.Lock(), launch.start, [], kernels.causal_pad

def alone(*args, **how):  # the interpreter is not made for threads
    with turn:
        return start(*args, **how)

def seeing(x, *rest, **how):
    seen.append(x.shape[2])
    return pad(x, *rest, **how)

launch.start, kernels.causal_pad = alone, seeing
vae, latents = make_ours(**{**WAN, "num_res_blocks": 1}), chunk(2, height=5, width=3)
print((decoded(vae, latents, 2) - our_decode(vae, latents)).abs().max().item(), sorted(set(seen))[:2])
"""


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.process
def test_kernels_pad_the_rows_of_neighbours_too():
    """Through the interpreter; ranks of three rows and two have four and five in the first convolution."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HELIOS_KERNELS": "triton"}
    run = subprocess.run(
        [sys.executable, "-c", WITH_KERNELS],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert run.returncode == 0, run.stderr
    difference, _, heights = run.stdout.partition(" ")
    assert float(difference) < ROUNDING and heights.strip() == "[4, 5]"
