"""Ranks that make calls together, as threads of one process: what goes to whom, and that it is what one makes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helios_cli.engine import teams
from helios_cli.engine.models import Models
from helios_cli.engine.teams import Round, Teams, devices_of, rounds_of
from helios_cli.errors import MachineError
from helios_cli.model.dit import Call
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.placement import RESIDENT, Placement
from support.teams import in_threads
from support.tiers import some

CPU = torch.device("cpu")
FOUR_HEADS = {"num_attention_heads": 4, "attention_head_dim": 8, "rope_dim": (2, 2, 4)}


def steps_of(models: Models, guided: list[bool]) -> list[Call]:
    """The calls of a step of each film, two where it is guided, at different sizes."""
    g, dit, calls = torch.Generator().manual_seed(0), models.dit, []
    for film, has_branches in enumerate(guided):
        side = 4 + 2 * film

        def latents(frames: int, side: int = side) -> torch.Tensor:
            return torch.randn(1, 16, frames, side, side, generator=g)

        history, noisy = dit.embed_history(latents(16), latents(2), latents(2)), latents(9)
        mods, rope = dit.modulation(torch.tensor([300])), dit.rope((side // 2,) * 2, (side // 2,) * 2)
        for _ in range(1 + has_branches):
            text = dit.embed_text(torch.randn(1, 5, dit.config.text_dim, generator=g))
            calls.append(Call(noisy, history, mods, rope, text))
    return calls


@pytest.fixture
def flows_of(checkpoints, tmp_path):
    """Returns the flows of calls that ranks make, and those of one process."""

    def make(ranks: int, guided: list[bool], placement: Placement = RESIDENT):
        folder = checkpoints("mid", **FOUR_HEADS)

        def models_at() -> Models:
            return Models(Checkpoint.open(folder), CPU, torch.float32, placement=placement)

        with torch.inference_mode():
            alone = models_at()
            calls = steps_of(alone, guided)
            expected = alone.answer(calls)

        def rank(place: int) -> dict[int, torch.Tensor]:
            together = Teams(Path(tmp_path), place, ranks, CPU, patience=60)
            return together.make(models_at(), calls, rounds_of(calls, ranks))

        first, *others = in_threads(ranks, rank)
        assert others == [{}] * (ranks - 1)
        return [first[i] for i in range(len(calls))], expected

    return make


@pytest.mark.parametrize("placement", [Placement(), Placement("stream", 1)], ids=["resident", "stream"])
def test_both_branches_on_two_ranks_are_those_of_one_process_bit_for_bit(placement, flows_of):
    flows, expected = flows_of(2, [True, True], placement)
    assert all(torch.equal(flow, wanted) for flow, wanted in zip(flows, expected, strict=True))


@pytest.mark.parametrize(
    ("ranks", "guided"),
    some(2, [(2, [False]), (4, [False, True, True]), (4, [True]), (2, [True, False, True])]),
    ids=["rows on two", "films of both kinds on four", "two branches on two each", "films of both kinds"],
)
@pytest.mark.parametrize("placement", [Placement(), Placement("stream", 1)], ids=["resident", "stream"])
def test_shared_rows_are_those_of_one_process_up_to_the_order_of_sums(ranks, guided, placement, flows_of):
    flows, expected = flows_of(ranks, guided, placement)
    for flow, wanted in zip(flows, expected, strict=True):
        assert torch.allclose(flow, wanted, atol=1e-5, rtol=0)


def test_branches_go_to_two_teams_and_other_calls_to_all():
    first, second, alone = (torch.zeros(1) for _ in range(3))
    calls = [Call(noisy, None, None, None, None) for noisy in (first, first, alone, second, second)]
    assert rounds_of(calls, 4) == [Round(2, (0, 1, 3, 4)), Round(1, (2,))]
    assert rounds_of(calls[2:3], 4) == [Round(1, (0,))]
    assert rounds_of(calls[:2], 5) == [Round(1, (0, 1))]


def test_gpus_follow_each_other(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(teams.dist, "is_nccl_available", lambda: True)
    assert devices_of(torch.device("cuda", 1), 3) == [torch.device("cuda", index) for index in (1, 2, 3)]
    assert devices_of(torch.device("cuda"), 4) == [torch.device("cuda", index) for index in range(4)]
    assert devices_of(CPU, 3) == [CPU] * 3


@pytest.mark.parametrize(
    ("device", "count", "message"),
    [
        ("cuda:0", 8, r"--gpus-per-film 8: .*there are 4 GPUs"),
        ("cuda:3", 2, r"--gpus-per-film 2: from cuda:3 on there is 1 GPU"),
        ("mps", 2, "CUDA GPUs or a CPU, not mps"),
    ],
)
def test_too_few_gpus_are_named(device, count, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(teams.dist, "is_nccl_available", lambda: True)
    with pytest.raises(MachineError, match=message):
        devices_of(torch.device(device), count)


def test_a_pytorch_without_nccl_is_named(monkeypatch):
    monkeypatch.setattr(teams.dist, "is_nccl_available", lambda: False)
    with pytest.raises(MachineError, match="built without NCCL"):
        devices_of(torch.device("cuda:0"), 2)
