"""What runs on a GPU alone, with the parts that are CUDA's replaced by what a CPU can do; the logic is the same."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from films import models_of, plan_of
from oracle import Case

from helios_cli.bench.synthetic import RandomModels
from helios_cli.cost.arithmetic import attention_shapes
from helios_cli.cost.shapes import DiTShape
from helios_cli.engine import gpu
from helios_cli.engine.denoise import grid_of
from helios_cli.engine.events import ChunkDone, FilmDone, StepDone
from helios_cli.engine.gpu import GRAPHS, Beside, CallGraphs, on_host, require_quant
from helios_cli.engine.render import render
from helios_cli.engine.writer import open_writer
from helios_cli.errors import MachineError, PictureError
from helios_cli.model.backends import shape_key
from helios_cli.model.dit import Call, DiTConfig
from helios_cli.weights.placement import Placement
from helios_cli.weights.specs import SPECS

CPU = torch.device("cpu")
CASE = Case("distilled", (128, 64), (1, 1, 1), chunks=3)


@pytest.fixture(scope="module")
def dit():
    return RandomModels(SPECS["tiny"], CPU, torch.float32, name="tiny").dit


class Replays:
    """A recorder whose graphs are the work itself, done over the same tensors and into the same result."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, work: Callable[[], torch.Tensor]):
        self.recorded += 1
        result = work()
        return lambda: result.copy_(work()), result

    def forget(self) -> None: ...


class Refuses(Replays):
    def __call__(self, work: Callable[[], torch.Tensor]):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@torch.inference_mode()
def calls(dit, *tokens: int, seed: int = 0) -> list[Call]:
    """A call for each number of prompt tokens, with inputs of its own."""
    torch.manual_seed(seed)
    made = []
    for count in tokens:
        history = dit.embed_history(*(torch.randn(1, 16, frames, 8, 16) for frames in (16, 2, 2)))
        text, mods = dit.embed_text(torch.randn(1, count, 64)), dit.modulation(torch.rand(1) * 1000)
        made.append(Call(torch.randn(1, 16, 9, 8, 16), history, mods, dit.rope((4, 8), (4, 8)), text))
    return made


@torch.inference_mode()
def test_replayed_calls_are_the_calls_themselves(dit):
    """Each with other tensors than the one recorded, interleaved over two shapes, some inputs shared."""
    graphs = CallGraphs(Replays())
    made = calls(dit, 5, 9, 5, 9, 5, 5, 9)
    made.append(made[-2]._replace(noisy_BCTHW=made[0].noisy_BCTHW))
    results = [graphs(dit, call) for call in made]  # all held: a replay must not write over an earlier result
    for result, call in zip(results, made, strict=True):
        assert torch.equal(result, dit(*call))
    assert graphs.record.recorded == 2
    assert graphs.replayed == len(made) - 2


@torch.inference_mode()
def test_moved_weights_are_recorded_anew(dit):
    graphs = CallGraphs(Replays())
    (call,) = calls(dit, 5)
    before = [graphs(dit, call) for _ in range(2)][-1]
    dit.proj_out.weight = torch.nn.Parameter(dit.proj_out.weight.clone(), requires_grad=False)
    after = [graphs(dit, call) for _ in range(2)][-1]
    assert graphs.record.recorded == 2
    assert torch.equal(before, after)


@torch.inference_mode()
def test_work_that_cannot_be_recorded_is_done_plainly_and_said(dit):
    graphs = CallGraphs(Refuses())
    (call,) = calls(dit, 5)
    results = [graphs(dit, call) for _ in range(3)]
    assert all(torch.equal(result, dit(*call)) for result in results)
    assert graphs.problem == (
        "model calls are not replayed as graphs: operation not permitted when stream is capturing"
    )


def test_where_there_is_no_room_for_graphs_none_are_recorded():
    """And those of films before go when the next one is placed: they hold memory by their shapes."""
    models = RandomModels(SPECS["tiny"], CPU, torch.float32, name="tiny")
    models.graphs = CallGraphs(Replays())
    for placement, recorded in ((Placement(), 1), (Placement(), 2), (Placement(graphs=False), 2)):
        models.place(placement)
        assert not models.graphs._graphs
        with torch.inference_mode():
            for _ in range(3):
                models.answer(calls(models.dit, 5))
        assert models.graphs.record.recorded == recorded


def test_no_more_than_some_graphs_are_kept():
    class Last(torch.nn.Module):
        """The least of a transformer that graphs look at."""

        def __init__(self) -> None:
            super().__init__()
            self.proj_out, self.blocks = torch.nn.Linear(1, 1), torch.nn.ModuleList([torch.nn.Linear(1, 1)])

        def forward(self, noisy, *_):
            return noisy * 2

    graphs, dit = CallGraphs(Replays()), Last()
    context = calls(RandomModels(SPECS["tiny"], CPU, torch.float32, name="tiny").dit, 1)[0]
    for size in range(1, GRAPHS + 4):
        for _ in range(2):
            with torch.inference_mode():
                assert graphs(dit, context._replace(noisy_BCTHW=torch.ones(size))).sum() == 2 * size
    assert len(graphs._graphs) == GRAPHS


def film(models, out, **options):
    plan = plan_of(CASE)
    return list(render(plan, models, open_writer(out, size=plan.size, fps=plan.fps), **options))


def test_decoding_beside_the_next_chunk_changes_no_byte(checkpoints, tmp_path):
    folder = checkpoints("distilled")[1]
    films, orders = [], []
    for overlap in (False, True):
        out = tmp_path / f"{overlap}"
        events = film(models_of(folder), f"{out}/", overlap=overlap)
        films.append([file.read_bytes() for file in sorted(out.glob("*.png"))])
        orders.append([type(event) for event in events if isinstance(event, StepDone | ChunkDone | FilmDone)])
        assert [event.frames for event in events if isinstance(event, ChunkDone)] == [33, 66, 99]
    assert films[0] == films[1]
    assert orders[0] == [StepDone] * 6 + [ChunkDone, *[StepDone] * 3] * 2 + [ChunkDone, FilmDone]
    assert orders[1] == [StepDone] * 9 + [ChunkDone, *[StepDone] * 3, ChunkDone, ChunkDone, FilmDone]


def test_what_fails_beside_is_raised_by_the_film(checkpoints, tmp_path):
    models = models_of(checkpoints("distilled")[1])
    models.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(PictureError, match="frames of chunk 1"):
        film(models, tmp_path / "f.mkv", overlap=True)
    assert not list(tmp_path.iterdir())
    assert "beside" not in "".join(thread.name for thread in threading.enumerate())


def test_beside_hands_over_one_result_and_its_thread_records_no_gradient():
    beside = Beside(CPU, overlaps=True)
    beside.start(torch.is_inference_mode_enabled)
    assert list(beside.take()) == [True]
    assert list(beside.take()) == []
    beside.close()


def test_tensors_of_the_host_are_handed_on_as_they_are():
    made = [torch.arange(3), torch.arange(5)]
    assert all(a is b for a, b in zip(on_host(iter(made)), made, strict=True))
    assert np.shares_memory(next(on_host(iter(made))).numpy(), made[0].numpy())


def test_fp8_is_refused_where_no_chip_has_it():
    require_quant("fp8", CPU)
    require_quant("none", torch.device("mps"))
    with pytest.raises(MachineError, match="needs an NVIDIA GPU or a CPU, not mps"):
        require_quant("fp8", torch.device("mps"))


@pytest.mark.parametrize("guided", [True, False])
def test_what_is_timed_before_a_film_is_what_its_fingerprints_look_at(guided, monkeypatch):
    """Here with tensors that hold nothing: only shapes count."""
    config = {**SPECS["14b"].transformer, "guidance_cross_attn": guided}
    timed, size, dtype = [], (640, 384), torch.bfloat16
    monkeypatch.setattr(gpu, "attention", lambda q, k, v, bias=None: timed.append(shape_key(q, k, bias)))
    grids = [grid_of(size, (1, 2, 2), halvings) for halvings in (2, 1, 0)]
    gpu.measure_attention(DiTConfig.from_json(config), grids, dtype, torch.device("meta"))
    assert timed == list(attention_shapes(DiTShape.from_config(config), size, 3, "bfloat16"))
