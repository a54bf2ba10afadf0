"""The GPU-only logic on a CPU, with stand-ins for CUDA."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import helios_kernels
from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import RandomModels
from helios_cli.cost.arithmetic import attention_shapes
from helios_cli.engine import choices, gpu
from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.events import ChunkDone, FilmDone, StepDone
from helios_cli.engine.gpu import GRAPHS, Background, CallGraphs, FirstUse, on_host, require_quant
from helios_cli.engine.history import History
from helios_cli.engine.state import State
from helios_cli.errors import InputError, MachineError, PictureError
from helios_cli.film.journal import recorded_chunks
from helios_cli.film.target import Target
from helios_cli.film.writer import open_writer
from helios_cli.model import block as block_module
from helios_cli.model import sharded
from helios_cli.model.attention import Choice
from helios_cli.model.backends import shape_key
from helios_cli.model.block import Rows
from helios_cli.model.dit import Call, HeliosDiT
from helios_cli.model.vae import WanVAE
from helios_cli.recipe.fingerprint import Arithmetic, Fingerprints
from helios_cli.units import PROMPT_KEYS, grid_of
from helios_cli.weights.placement import Placement
from helios_kernels.dispatch import INTERPRETER, Backend
from support import meta_networks
from support.queues import Mark, Queue
from support.renders import Case, models_of, plan_of
from support.waiting import LONGEST

CPU = torch.device("cpu")
CASE = Case("distilled", (64, 64), (1, 1, 1), chunks=3)
FINGERPRINTS = Fingerprints("weights", Arithmetic("cpu", "float32", "2"))
A_GPU = Backend("sm_90", "found", "a GPU")


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


@pytest.mark.slow
@torch.inference_mode()
def test_a_film_of_many_prompts_is_recorded_for_few_lengths(dit, monkeypatch):
    """Prompts as a GPU embeds them: the tensors claim to be on one, and three stages have room."""
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(torch.Tensor, "is_cuda", True)
        made = calls(dit, *range(5, 500, 45)) * 2
    graphs = CallGraphs(Replays())
    for call in made:
        assert torch.equal(graphs(dit, call), dit(*call))
    assert graphs.record.recorded == len(PROMPT_KEYS) == GRAPHS // 3


@torch.inference_mode()
def test_graphs_keep_copies_of_inputs_and_not_the_inputs(dit):
    """The memory of a prompt that no later chunk needs is free; the next one's keys and values, which may come to the
    same address, are copied."""
    graphs = CallGraphs(Replays())
    for seed in range(3):
        (call,) = calls(dit, 5, seed=seed)
        for _ in range(3):
            assert torch.equal(graphs(dit, call), dit(*call))
        gone = [weakref.ref(call.text.keys), weakref.ref(call.text.values), weakref.ref(call.history_BME)]
        del call
        assert [each() for each in gone] == [None] * 3
    assert graphs.record.recorded == 1


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


@pytest.mark.slow
def test_where_there_is_no_room_for_graphs_none_are_recorded():
    """The graphs of earlier films are dropped when the next film is placed: they hold memory by their shapes."""
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
    return list(render_chunks(plan, models, open_writer(out, size=plan.size, fps=plan.fps), **options))


@pytest.mark.slow
def test_decoding_beside_the_next_chunk_changes_no_byte(checkpoints, tmp_path):
    folder = checkpoints("distilled")
    films, orders = [], []
    for beside in (0, 1, 3):
        out = tmp_path / f"{beside}"
        events = film(models_of(folder), f"{out}/", chunks_beside=beside)
        films.append([file.read_bytes() for file in sorted(out.glob("*.png"))])
        orders.append([type(event) for event in events if isinstance(event, StepDone | ChunkDone | FilmDone)])
        assert [event.frames for event in events if isinstance(event, ChunkDone)] == [33, 66, 99]
        assert sum(event.seconds for event in events if isinstance(event, ChunkDone)) <= events[-1].seconds
    assert films[0] == films[1] == films[2]
    assert orders[0] == [StepDone] * 6 + [ChunkDone, *[StepDone] * 3] * 2 + [ChunkDone, FilmDone]
    assert orders[1] == [StepDone] * 9 + [ChunkDone, *[StepDone] * 3, ChunkDone, ChunkDone, FilmDone]


def test_frames_of_chunks_that_are_decoded_at_once_are_written_in_order(checkpoints, tmp_path, monkeypatch):
    """The first chunk is decoded last: the others, in threads of their own, wait for it with their frames."""
    models, ends = models_of(checkpoints("distilled")), []
    others, decode = threading.Semaphore(0), WanVAE.decode

    def late(vae, latents):
        first = not ends
        ends.append(threading.current_thread().name)
        for _ in range(2 if first else 0):
            assert others.acquire(timeout=LONGEST)
        with contextlib.closing(decode(vae, latents)) as pieces:
            yield next(pieces)
            others.release()
            yield from pieces

    expected, out = tmp_path / "expected", tmp_path / "film"
    film(models, f"{expected}/")
    monkeypatch.setattr(WanVAE, "decode", late)
    events = film(models, f"{out}/", chunks_beside=3)
    assert [event.chunk for event in events if isinstance(event, ChunkDone)] == [0, 1, 2]
    assert len(set(ends)) == 3
    assert [path.read_bytes() for path in sorted(out.iterdir())] == [
        path.read_bytes() for path in sorted(expected.iterdir())
    ]


def test_a_chunk_that_fails_ends_the_film_behind_those_before_it(checkpoints, tmp_path, monkeypatch):
    """Though the chunks behind it are decoded at the same time; what is before it is safe."""
    models, count, decode = models_of(checkpoints("distilled")), itertools.count(), WanVAE.decode

    def failing(vae, latents):
        yield from decode(vae, latents * torch.nan if next(count) == 1 else latents)

    monkeypatch.setattr(WanVAE, "decode", failing)
    done = []
    plan = plan_of(CASE)
    writer = open_writer(tmp_path / "film.mkv", size=plan.size, fps=plan.fps)
    with pytest.raises(PictureError, match="frames of chunk 2"):
        for event in render_chunks(plan, models, writer, chunks_beside=3, fingerprints=FINGERPRINTS.of):
            done += [event.chunk] if isinstance(event, ChunkDone) else []
    assert done == [0]
    assert recorded_chunks(Target.of(str(tmp_path / "film.mkv"))) == 1


def test_what_fails_beside_is_raised_by_the_film(checkpoints, tmp_path):
    models = models_of(checkpoints("distilled"))
    models.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(PictureError, match="frames of chunk 1"):
        film(models, tmp_path / "f.mkv", chunks_beside=1)
    assert not list(tmp_path.iterdir())
    assert "beside" not in "".join(thread.name for thread in threading.enumerate())


def test_what_is_done_beside_comes_in_order_and_records_no_gradient():
    beside, began = Background(CPU, threads=1), []
    for place in "abc":
        beside.start(partial(began.append, place))
    assert beside.start(torch.is_inference_mode_enabled).result()
    beside.close()
    assert began == ["a", "b", "c"]


def cut_to(picture: Path, clip: Path):
    """A film of three chunks, each a cut: to words, to a picture, to a clip."""
    plan = plan_of(replace(CASE, size=(64, 64)))
    starts = ({}, {"image": picture}, {"video": clip})
    chunks = zip(plan.chunks, starts, strict=True)
    return replace(plan, chunks=tuple(replace(c, fresh=True, seed=7 + c.index, **start) for c, start in chunks))


@pytest.mark.slow
def test_a_start_that_is_encoded_beside_the_chunk_before_changes_no_byte(checkpoints, tmp_path, monkeypatch):
    picture = tmp_path / "start.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)).save(picture)
    models, plan = models_of(checkpoints("distilled")), cut_to(picture, tmp_path / "clip.mkv")
    words = replace(plan, chunks=plan.chunks[:1], num_frames=33)
    list(render_chunks(words, models, open_writer(tmp_path / "clip.mkv", size=plan.size, fps=plan.fps)))
    threads, films = [], []
    encode = WanVAE.encode
    monkeypatch.setattr(WanVAE, "encode", lambda *of: (threads.append(threading.current_thread().name), encode(*of))[1])
    for beside in (0, 1, 3):
        out = tmp_path / f"{beside}"
        list(render_chunks(plan, models, open_writer(f"{out}/", size=plan.size, fps=plan.fps), chunks_beside=beside))
        films.append([file.read_bytes() for file in sorted(out.glob("*.png"))])
    assert len(films[0]) == 3 * 33 and films[0] == films[1] == films[2]
    inline, beside = threads[: len(threads) // 3], threads[len(threads) // 3 :]
    assert set(inline) == {threading.current_thread().name} and {name[:10] for name in beside} == {"background"}


def test_a_picture_that_cannot_be_read_ends_the_film_behind_the_chunks_before_it(checkpoints, tmp_path):
    plan, models = cut_to(tmp_path / "none.png", tmp_path / "none.mkv"), models_of(checkpoints("distilled"))
    done = []
    with pytest.raises(InputError, match=r"none\.png"):
        for event in render_chunks(
            plan, models, open_writer(tmp_path / "f.mkv", size=plan.size, fps=plan.fps), chunks_beside=1
        ):
            done.append(type(event))
    assert done.count(StepDone) == 6


def test_tensors_made_beside_are_held_for_the_stream_that_uses_them(queues, monkeypatch):
    beside = Background(CPU, threads=1)
    monkeypatch.setattr(Queue, "device", CPU, raising=False)
    monkeypatch.setattr(beside, "_stream", Queue("beside", queues))
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, queue: queues.append((queue.name, "uses", len(tensor)))
    )
    beside.hand_over(beside.start(lambda: torch.ones(3)).result())
    beside.close()
    assert queues == [("beside", "waits for", "computing"), ("beside", "ends", None), ("computing", "uses", 3)]


def test_tensors_of_the_host_are_handed_on_as_they_are():
    made = [(torch.arange(3), torch.ones(())), (torch.arange(5), torch.zeros(()))]
    for piece, of in zip(on_host(iter(made)), made, strict=True):
        assert all(a is b for a, b in zip(piece, of, strict=True))
    assert np.shares_memory(next(on_host(iter(made)))[0].numpy(), made[0][0].numpy())


@pytest.fixture
def queues(monkeypatch):
    """Record the calls that the queues of a GPU receive, in order, on a machine without one: host tensors count as
    its own."""
    log: list = []
    computing = Queue("computing", log)
    current = [computing]

    @contextlib.contextmanager
    def on(queue):
        current.append(queue)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Event", lambda: Mark(log))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(gpu, "_stream_for", lambda use, device: Queue(use, log))
    monkeypatch.setattr(gpu, "_pinned_like", torch.empty_like)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return log


def test_a_piece_is_copied_beside_the_computing_and_read_once_it_has_come(queues):
    def pieces():
        for number in range(3):
            queues.append(("computing", "computes", number))
            yield torch.full((4,), number), torch.ones((), dtype=torch.bool)

    for number, (values, flag) in enumerate(on_host(pieces())):
        queues.append(("host", "reads", number))
        assert flag and torch.equal(values, torch.full((4,), number))
    said = [entry[:2] if isinstance(entry[2], Mark) else entry for entry in queues]
    arrives = [("copies", "waits for", "computing"), ("copies", "marks")]
    comes = [("host", "waits for")]
    assert said == [
        *[("computing", "computes", 0), *arrives],
        *[("computing", "computes", 1), *arrives, *comes, ("host", "reads", 0)],
        *[("computing", "computes", 2), *arrives, *comes, ("host", "reads", 1)],
        *[*comes, ("host", "reads", 2)],
    ]
    marks = [entry[2] for entry in queues if isinstance(entry[2], Mark)]
    assert [marks.index(mark) for mark in marks] == [0, 1, 0, 3, 1, 3]  # each piece waits for its own copy


def test_a_state_is_waited_for_where_its_bytes_are_wanted(queues):
    history = History(torch.rand(1, 2, 19, 4, 4), torch.rand(1, 2, 1, 4, 4))
    state = State.of(history, torch.Generator().manual_seed(1), 1)
    assert [entry[:2] for entry in queues] == [("computing", "marks")]
    found = State.from_bytes(state.to_bytes())
    assert queues[1:] == [("host", "waits for", queues[0][2])]
    assert torch.equal(found.latents, history.latents) and torch.equal(found.anchor, history.anchor)


def test_fp8_is_refused_where_no_chip_has_it():
    require_quant("fp8", CPU)
    require_quant("none", torch.device("mps"))
    with pytest.raises(MachineError, match="needs an NVIDIA GPU or a CPU, not mps"):
        require_quant("fp8", torch.device("mps"))


@pytest.mark.parametrize(("capability", "said"), [((8, 6), "cannot multiply in fp8"), ((8, 9), None), ((12, 0), None)])
def test_fp8_is_for_capability_8_9_and_newer(capability, said, monkeypatch):
    """The product that is tried there is computed here, and is right."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an RTX")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(gpu, "fp8_fault", lambda device, of=gpu.fp8_fault: of(CPU))
    with pytest.raises(MachineError, match=said) if said else contextlib.nullcontext():
        require_quant("fp8", torch.device("cuda"))


def test_an_fp8_product_that_is_not_there_or_is_wrong_is_told(monkeypatch):
    assert gpu.fp8_fault(CPU) is None
    monkeypatch.setattr(gpu, "product", lambda *_: torch.full((64, 256), 255.0))
    assert gpu.fp8_fault(CPU) == "ones times ones give 255, not 256"
    monkeypatch.setattr(gpu, "product", lambda *_: torch.zeros(1) @ torch.zeros(2))
    assert "size" in gpu.fp8_fault(CPU)


@pytest.mark.parametrize("team", [1, 4])
@pytest.mark.parametrize("guided", [True, False])
def test_what_is_timed_before_a_film_is_what_its_fingerprints_look_at(guided, team, monkeypatch):
    """Here with tensors that hold nothing: only shapes count."""
    config = {**SPECS["14b"].transformer, "guidance_cross_attn": guided}
    timed, size, dtype = [], (640, 384), torch.bfloat16
    monkeypatch.setattr(choices, "attention", lambda q, k, v, bias, choice: timed.append(shape_key(q, k, bias)))
    grids = [grid_of(size, (1, 2, 2), halvings) for halvings in (2, 1, 0)]
    choices.measure_attention(Choice(), DiTConfig.from_json(config), grids, dtype, torch.device("meta"), team)
    assert timed == list(attention_shapes(DiTConfig.from_json(config), size, 3, "bfloat16", team))


@pytest.mark.parametrize("guided", [True, False])
def test_what_is_timed_for_a_team_is_what_its_ranks_compute(guided, monkeypatch):
    """The shapes and strides of self-attention in the first and the last block, and those of cross-attention."""
    config = DiTConfig.from_json({**SPECS["tiny"].transformer, "guidance_cross_attn": guided, "num_layers": 2})
    given, timed, grid = [], [], grid_of((128, 64), (1, 2, 2), 0)
    for module, calls in ((block_module, given), (sharded, given), (choices, timed)):

        def noted(q, k, v, bias, choice, calls=calls):
            layout = q.stride()[1:] if k.shape[1] == len(rope) else None  # the prompt's are contiguous
            calls.append((shape_key(q, k, bias), layout))
            return q.flatten(2)

        monkeypatch.setattr(module, "attention", noted)
    with torch.device("meta"), torch.no_grad():
        dit = HeliosDiT(config)
    work = meta_networks.call(dit, (128, 64), 0, 60)
    work["history"](), work["text"]()
    rope = work["inputs"]().rope
    with torch.no_grad():
        sharded.forward_all(dit, [work["inputs"]()], meta_networks.Counted(2))
    choices.measure_attention(Choice(), config, [grid], torch.float32, torch.device("meta"), 2)
    assert set(given) <= set(timed)
    assert len(set(given)) == 3


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("amplified", [True, False])
def test_attention_is_timed_on_what_a_block_gives_it(kernels, amplified, monkeypatch):
    """Queries, keys and values of a block with kernels, against those that are timed: the strides of a stage."""
    config = DiTConfig.from_json({**SPECS["tiny"].transformer, "is_amplify_history": amplified})
    given, timed, grid = [], [], grid_of((128, 64), (1, 2, 2), 0)
    for module, calls in ((block_module, given), (choices, timed)):

        def strides_of(q, k, v, bias, choice, calls=calls):
            calls.append([x.stride() for x in (q, k, v)])
            return q.flatten(2)

        monkeypatch.setattr(module, "attention", strides_of)
    monkeypatch.setattr(helios_kernels, "runs", lambda x, operation: kernels)
    monkeypatch.setattr(helios_kernels, "qk_norm_rope", lambda *_: None)
    with torch.device("meta"), torch.no_grad():
        dit = HeliosDiT(config)
        block, rope = dit.blocks[0], dit.rope(grid, grid)
        if kernels:
            block.attn1.join()
        rows = torch.empty(1, len(rope), config.width)
        block._attend(Rows(rows, rows), rope, len(rope) - 9 * grid[0] * grid[1], noisy_only=False)
    choices.measure_attention(Choice(), config, [grid], torch.float32, torch.device("meta"))
    assert given == timed[:1]
    assert (given[0][2][1] == 3 * config.width) == kernels


def test_a_first_use_is_told_until_a_chunk_was_denoised():
    first = FirstUse("a GPU", "triton 3.9.0", "5120")
    assert "about a minute, once" in first.notice
    assert first.notice == FirstUse("a GPU", "triton 3.9.0", "5120").notice  # asking leaves no mark
    first.done()
    assert FirstUse("a GPU", "triton 3.9.0", "5120").notice is None
    assert FirstUse("a GPU", "triton 3.9.1", "5120").notice


def test_a_home_that_cannot_be_written_is_told_again(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "file"))
    first = FirstUse("a GPU")
    first.done()
    assert first.notice


@pytest.mark.parametrize(
    ("found", "told"), [(Backend(None, "no GPU"), False), (Backend(INTERPRETER, "slowly"), False), (A_GPU, True)]
)
def test_kernels_are_compiled_where_they_run_on_a_gpu(found, told, monkeypatch):
    monkeypatch.setattr(helios_kernels, "backend", lambda: found)
    assert (FirstUse.of(5120, torch.bfloat16) is not None) is told


def test_each_width_dtype_and_device_is_compiled_once(monkeypatch):
    monkeypatch.setattr(helios_kernels, "backend", lambda: A_GPU)
    FirstUse.of(5120, torch.bfloat16).done()
    assert FirstUse.of(5120, torch.bfloat16).notice is None
    assert FirstUse.of(1536, torch.bfloat16).notice and FirstUse.of(5120, torch.float16).notice
    monkeypatch.setattr(helios_kernels, "backend", lambda: Backend("sm_90", "found", "another GPU"))
    assert FirstUse.of(5120, torch.bfloat16).notice
