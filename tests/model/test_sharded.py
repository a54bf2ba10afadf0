"""A model call that ranks share is the call that one process makes."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest
import torch

from helios_cli.architecture import DiTConfig
from helios_cli.model import attention as attention_module
from helios_cli.model import sharded
from helios_cli.model.dit import FP32_ISLANDS, Call, HeliosDiT
from helios_cli.model.fp8 import use_fp8
from helios_cli.model.sharded import Exchange, Share, forward_all, shares
from helios_cli.weights.fp8 import is_fp8
from support import meta_networks
from support.checkpoints import transformer
from support.teams import as_ranks

NARROW = {"num_attention_heads": 4, "attention_head_dim": 8, "rope_dim": [2, 2, 4]}


def a_call(dit: HeliosDiT, height: int, width: int, shrink: int = 1, seed: int = 0, prompt: int = 5) -> Call:
    """Inputs of a call at a size in latent cells; `shrink` as in the stages of a pyramid."""
    g = torch.Generator().manual_seed(seed)

    def latents(frames: int, by: int = 1) -> torch.Tensor:
        return torch.randn(1, 16, frames, height // by, width // by, generator=g)

    with torch.no_grad():
        text = dit.embed_text(torch.randn(1, prompt, dit.config.text_dim, generator=g))
        history = dit.embed_history(latents(16), latents(2), latents(2))
        fine, coarse = (height // 2, width // 2), (height // 2 // shrink, width // 2 // shrink)
        mods, rope = dit.modulation(torch.tensor([437])), dit.rope(fine, coarse)
    return Call(latents(9, shrink), history, mods, rope, text)


def shared_flows(dit: HeliosDiT, calls: list[Call], ranks: int) -> list[torch.Tensor]:
    parts = as_ranks(ranks, lambda exchange: forward_all(dit, calls, exchange))
    return [dit.flow(call, torch.cat(own, dim=1)) for call, own in zip(calls, zip(*parts, strict=True), strict=True)]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("height", "width", "shrink"),
    [(8, 16, 1), (16, 8, 4), (12, 20, 1), (6, 14, 1), (2, 2, 1)],
    ids=["wide", "9 noisy rows and more history", "uneven", "not of 4", "fewer rows of a term than ranks"],
)
def test_ranks_make_the_flow_of_one_process(ranks, height, width, shrink):
    dit = transformer(**NARROW)
    call = a_call(dit, height, width, shrink)
    with torch.no_grad():
        expected = dit(*call)
    (flow,) = shared_flows(dit, [call], ranks)
    assert flow.shape == expected.shape
    assert torch.allclose(flow, expected, atol=1e-5, rtol=0)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize(
    "config",
    [
        {"is_amplify_history": True},
        {"is_amplify_history": True, "history_scale_mode": "scalar"},
        {"guidance_cross_attn": False},
        {"cross_attn_norm": False},
        {"num_layers": 1},
    ],
    ids=str,
)
def test_every_architecture_can_be_shared(config):
    dit = transformer(**NARROW, **config)
    call = a_call(dit, 12, 20)
    with torch.no_grad():
        expected = dit(*call)
    (flow,) = shared_flows(dit, [call], 4)
    assert torch.allclose(flow, expected, atol=1e-5, rtol=0)


def test_several_calls_go_through_the_blocks_together():
    """Calls of different sizes, history lengths and prompts, as lanes make them."""
    dit = transformer(**NARROW)
    calls = [a_call(dit, 8, 16), a_call(dit, 16, 8, 2, seed=1), a_call(dit, 12, 20, seed=2, prompt=9)]
    calls[1] = calls[1]._replace(history_BME=calls[1].history_BME[:, :0], rope=calls[1].rope[-72:])
    with torch.no_grad():
        expected = [dit(*call) for call in calls]
    for flow, wanted in zip(shared_flows(dit, calls, 2), expected, strict=True):
        assert torch.allclose(flow, wanted, atol=1e-5, rtol=0)


def test_fp8_products_are_shared():
    """Rows are rounded one by one, so that their rank does not matter; float32 sums of the rounded values do."""
    dit = use_fp8(transformer(**NARROW), is_fp8)
    values = torch.Generator().manual_seed(1)
    for name, parameter in dit.named_parameters():
        if parameter.dtype == torch.float8_e4m3fn:
            parameter.data = torch.randn(parameter.shape, generator=values).to(parameter.dtype)
        elif name.endswith(("weight_scale", "bias")) and is_fp8(name.rpartition(".")[0] + ".weight"):
            parameter.data = torch.full(parameter.shape, 0.02)
    call = a_call(dit, 12, 20)
    with torch.no_grad():
        expected = dit(*call)
    (flow,) = shared_flows(dit, [call], 2)
    # A last bit of attention's sum may round to the next of 8 values.
    assert (flow - expected).square().mean().sqrt() < 0.02 * expected.std()


def test_bfloat16_is_shared():
    dit = transformer(**NARROW)
    for name, parameter in dit.named_parameters():
        if FP32_ISLANDS.isdisjoint(name.split(".")):
            parameter.data = parameter.data.bfloat16()
    call = a_call(dit, 12, 20)
    with torch.no_grad():
        expected = dit(*call)
    (flow,) = shared_flows(dit, [call], 2)
    assert flow.dtype == torch.bfloat16
    assert (flow.float() - expected.float()).square().mean().sqrt() < 0.02 * expected.float().std()


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_block_exchanges_rows_twice_and_the_last_one_three_times(ranks, monkeypatch):
    """Queries, keys and values in one exchange, the output in another; at the end noisy rows alone ask."""
    dit = transformer(num_attention_heads=12, attention_head_dim=8, rope_dim=[2, 2, 4], num_layers=3)
    call, moved = a_call(dit, 12, 20), []
    swap = Exchange.swap

    def counted(self, rows, given, taken):
        out = swap(self, rows, given, taken)
        if self.rank == 0:
            moved.append(out.numel())
        return out

    monkeypatch.setattr(Exchange, "swap", counted)
    shared_flows(dit, [call], ranks)
    history, noisy, width = call.history_BME.shape[1], 9 * 6 * 10, 96
    rows, own = history + noisy, shares(history, ranks)[0] + shares(noisy, ranks)[0]
    block = [3 * rows * width // ranks, own * width]
    last = [noisy * width // ranks, 2 * rows * width // ranks, shares(noisy, ranks)[0] * width]
    assert moved == [*block, *block, *last]


def test_rows_that_do_not_divide_are_spread():
    assert shares(9, 4) == (3, 2, 2, 2)
    assert shares(2, 4) == (1, 1, 0, 0)
    assert shares(8, 1) == (8,)


def test_every_rank_attends_over_all_rows_of_its_heads(monkeypatch):
    """By the shapes that reach the attention, one call of the last block and one of each other."""
    dit, seen = transformer(**NARROW), []
    run = attention_module.attention

    def noted(q, k, v, bias=None, choice=None):
        seen.append((q.shape[1:3], k.shape[1:3]))
        return run(q, k, v, bias, choice)

    monkeypatch.setattr("helios_cli.model.sharded.attention", noted)
    call = a_call(dit, 12, 20)
    shared_flows(dit, [call], 2)
    rows, noisy = len(call.rope), 540
    assert sorted(seen) == sorted(2 * [((rows, 2), (rows, 2)), ((noisy, 2), (rows, 2))])


def test_a_share_knows_its_own_split():
    """No rank has history alone."""
    dit = transformer(**NARROW)
    call = a_call(dit, 4, 4)
    found = as_ranks(4, lambda exchange: Share.of(dit, call, exchange).call(call).history_BME.shape[1])
    assert sum(found) == call.history_BME.shape[1] and min(found) > 0
    noisy = as_ranks(4, lambda exchange: len(range(36)[Share.of(dit, call, exchange).noisy_rows]))
    assert noisy == [9, 9, 9, 9]


# The page sharded.md

PAGE = (Path(sharded.__file__).parent / "sharded.md").read_text()
STAGES = {2940: 2, 4560: 1, 11040: 0}
"""Rows of a call at 640x384: halvings of the stage."""

LINKS = {"NVLink": 300e9, "PCIe": 40e9}


def rows_of_the_page(after: str) -> list[list[str]]:
    """Return the cells of the first table behind a heading or text."""
    table = re.search(r"\n\|[^\n]*\|\n\|[-|]+\|\n((?:\|[^\n]*\|\n)+)", PAGE[PAGE.index(after) :])[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


@pytest.fixture(scope="module")
def received():
    """Gigabytes that a rank of the 14B model receives in a call, by ranks and rows: counted on its real shapes, in two
    blocks and in three."""
    found = {}
    fused = mock.patch("torch.nn.functional.scaled_dot_product_attention", lambda q, k, v, attn_mask=None: q)
    with fused, torch.no_grad():
        for layers in (2, 3):
            config = DiTConfig.from_json({"num_layers": layers})
            dit = meta_networks.on_meta(lambda config=config: HeliosDiT(config)).to(torch.bfloat16)
            for rows, halvings in STAGES.items():
                work = meta_networks.call(dit, (640, 384), halvings, 120)
                work["history"](), work["text"]()
                inputs = work["inputs"]()
                assert len(inputs.rope) == rows
                for ranks in (2, 4, 8):
                    counted = meta_networks.Counted(ranks)
                    forward_all(dit, [inputs], counted)
                    found[layers, ranks, rows] = counted.received / 1e9
    more = DiTConfig().num_layers - 2
    return {
        key: found[2, *key] + more * (found[3, *key] - found[2, *key])
        for key in ((ranks, rows) for _, ranks, rows in found)
    }


@pytest.mark.slow
def test_the_page_s_bytes_are_those_that_are_exchanged(received):
    width, layers, history = 5120, 40, 2400
    for ranks, rows, here, theirs in rows_of_the_page("## What moves"):
        n, s = int(ranks), int(rows)
        assert float(here) == pytest.approx(received[n, s], abs=0.006)
        gathered, exchanged = (2 * s + s - history) * (n - 1) / n, 4 * s * (n - 1) / n**2
        assert float(theirs) == pytest.approx(2 * layers * width * (gathered + exchanged) / 1e9, abs=0.006)


@pytest.mark.slow
def test_the_page_s_estimates_follow_from_its_own_numbers(received):
    def denoise_ms(ranks: int, link: str) -> float:
        moved = sum(received[ranks, rows] for rows in STAGES) if ranks > 1 else 0.0
        return 894 / ranks + 4 + moved * 1e12 / LINKS.get(link, 1)

    for ranks, link, denoise, beside, apart in rows_of_the_page("## What it should bring"):
        took = denoise_ms(int(ranks), link)
        assert float(denoise.removesuffix(" ms")) == pytest.approx(took, abs=0.51)
        alone = 0.95 if ranks == "1" else 1.0
        assert float(beside) == pytest.approx(33e3 / (alone * (took + 288 / int(ranks))), abs=0.51)
        assert float(apart) == pytest.approx(33e3 / max(took, 288), abs=0.51)
    for ranks, *seconds in rows_of_the_page("A guided film of Base"):
        for link, took in zip(LINKS, seconds, strict=True):
            team = max(1, int(ranks) // 2)
            moved = received[team, 11040] * 1e9 / LINKS[link] if team > 1 else 0.0
            calls = 100 if int(ranks) == 1 else 50
            assert float(took) == pytest.approx(calls * (0.584 / team + moved), abs=0.51)
