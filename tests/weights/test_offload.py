"""Reading into memory that is there, and the ring of slots that blocks stream through."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helios_cli.errors import CheckpointError, OutOfMemory
from helios_cli.weights import offload, reader
from helios_cli.weights.files import read_header
from helios_cli.weights.offload import ALIGNMENT, BlockStream, StoredRows, layout_of
from helios_cli.weights.placement import DEVICE_SLOTS, HOST_SLOTS, Placement, streamed_blocks
from helios_cli.weights.reader import StoredTensor, WeightFiles
from support.queues import Mark, Queue

CPU = torch.device("cpu")


@pytest.fixture
def stored(tmp_path):
    """Writes tensors, returns where they are."""

    def write(**tensors: torch.Tensor) -> dict[str, StoredTensor]:
        save_file(tensors, tmp_path / "weights.safetensors")
        return {name: StoredTensor(info) for name, info in read_header(tmp_path / "weights.safetensors").items()}

    return write


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (1, 6, 4), (2, 3, 1, 4, 2), (0, 4)])
@pytest.mark.parametrize("piece", [1, 64, 2**23])
def test_any_shape_is_read_in_pieces_of_any_size(shape, piece, stored, monkeypatch):
    monkeypatch.setattr(reader, "PIECE_BYTES", piece)
    value = torch.randn(shape)
    place, files = stored(a=value)["a"], WeightFiles()
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.full(shape, 7, dtype=dtype)
        files.read(place, out)
        assert torch.equal(out, value.to(dtype))
    assert files.bytes_read == 2 * value.nbytes
    if len(shape) > 1 and shape[0] > 2:
        out = torch.empty(2, *shape[1:])
        files.read(place, out, (1, 3))
        assert torch.equal(out, value[1:3])


def test_without_preadv_the_bytes_are_the_same(stored, monkeypatch):
    value = torch.randn(100, 30)
    place = stored(a=value)["a"]
    monkeypatch.delattr(os, "preadv")
    out = torch.empty_like(value)
    WeightFiles().read(place, out)
    assert torch.equal(out, value)


def test_values_times_their_row_s_scale(stored):
    values, scales = torch.randn(40, 16).to(torch.float8_e4m3fn), torch.rand(40)
    places = stored(a=values, s=scales)
    out = torch.empty(40, 16)
    WeightFiles().read(StoredTensor(places["a"].info, places["s"].info), out)
    assert torch.equal(out, values.float() * scales[:, None])
    raw = torch.empty(40, 16, dtype=torch.float8_e4m3fn)
    WeightFiles().read(StoredTensor(places["a"].info, places["s"].info), raw, check=False)
    assert torch.equal(raw.view(torch.uint8), values.view(torch.uint8))


@pytest.mark.parametrize(("count", "kept"), [(4, 0), (4, 1), (5, 2), (40, 13), (3, 3), (3, 5), (1, 0)])
def test_blocks_that_come_and_go_are_spread_evenly(count, kept):
    streamed = streamed_blocks(count, kept)
    assert len(streamed) == max(0, count - kept) == len(set(streamed))
    gaps = [b - a for a, b in zip(streamed, [*streamed[1:], streamed[0] + count if streamed else 0], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def blocks_of(count: int) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Sequential(nn.Linear(24, 8), nn.Linear(8, 24, bias=False)) for _ in range(count))


@pytest.fixture
def stream(stored):
    """Blocks on the meta device whose matrices come from a file, and the blocks that were written to it."""
    made = []

    def make(count: int, **how) -> tuple[BlockStream, nn.ModuleList]:
        blocks = blocks_of(count)
        places = stored(**{f"b.{name}": value.detach() for name, value in blocks.named_parameters()})
        copies = blocks_of(count)
        resident = how.get("resident", 0)
        for index in streamed_blocks(count, resident):
            for layer in copies[index]:
                layer.weight = nn.Parameter(layer.weight.to("meta"))
        made.append(BlockStream(copies, "b.", places, WeightFiles(), CPU, lambda name: torch.float32, **how))
        return made[-1], blocks

    yield make
    for one in made:
        one.close()


def test_matrices_lie_one_behind_the_other():
    layout = layout_of(blocks_of(1)[0], lambda name: torch.bfloat16)
    assert [matrix.name for matrix in layout] == ["0.weight", "1.weight"]
    assert layout[0].end - layout[0].begin == 2 * 24 * 8 and layout[1].begin % ALIGNMENT == 0


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("resident", [0, 1, 2])
@pytest.mark.parametrize("again", [True, False])
def test_walks_bring_every_block(count, resident, again, stream):
    """This includes fewer blocks than slots."""
    ring, blocks = stream(count, resident=resident, again=again)
    for _ in range(4):
        for index, block in enumerate(ring.walk()):
            for name, value in block.named_parameters():
                assert torch.equal(value, blocks[index].get_parameter(name))
    streamed = len(ring.streamed)
    ahead = HOST_SLOTS if again and streamed else 0
    assert 4 * streamed <= sum(ring.blocks_read) <= 4 * streamed + ahead


def test_two_blocks_are_read_ahead(stream):
    ring, _ = stream(9)
    walk = ring.walk()
    next(walk)
    assert ring.blocks_read == [1] * HOST_SLOTS + [0] * (9 - HOST_SLOTS)


def test_on_a_cpu_nothing_is_kept_until_the_next_walk(stream):
    """Neither the slots nor what was read ahead into them: another network has their memory."""
    ring, blocks = stream(6)
    for _ in range(2):
        for index, block in enumerate(ring.walk()):
            assert torch.equal(block[0].weight, blocks[index][0].weight)
        slots = [weakref.ref(slot) for slot in ring._slots]
        assert len(slots) == HOST_SLOTS
        del block
        ring.leave()
        assert [slot() for slot in slots] == [None] * HOST_SLOTS


def test_a_reading_thread_s_error_ends_the_walk_and_not_the_ring(stream, monkeypatch):
    ring, blocks = stream(6)
    read, broken = WeightFiles.read, [True]

    def fails(self, place, *rest, **how):
        if broken[0] and ".4." in place.info.name:
            raise CheckpointError("the disk is gone")
        return read(self, place, *rest, **how)

    monkeypatch.setattr(WeightFiles, "read", fails)
    reached = []
    with pytest.raises(CheckpointError, match="the disk is gone"):
        reached.extend(index for index, _ in enumerate(ring.walk()))
    broken[0] = False
    assert [torch.equal(block[0].weight, blocks[index][0].weight) for index, block in enumerate(ring.walk())] == [
        True
    ] * 6


def test_what_has_no_room_in_the_page_cache_is_forgotten(stream, monkeypatch):
    ring, _ = stream(6, cached_bytes=2 * 2 * 4 * 24 * 8)
    forgotten = []
    monkeypatch.setattr(WeightFiles, "forget", lambda self, place: forgotten.append(place.info.name))
    for _ in ring.walk():
        pass
    ring.close()
    assert {name.split(".")[1] for name in forgotten} == {"2", "3", "4", "5"}


def test_an_embedding_reads_the_rows_that_it_is_asked_for(stored):
    table = torch.randn(1000, 16)
    files = WeightFiles()
    rows = StoredRows(stored(a=table)["a"], files, CPU, torch.bfloat16)
    tokens = torch.tensor([3, 999, 3, 0])
    assert torch.equal(rows(tokens), nn.functional.embedding(tokens, table.bfloat16()))
    assert files.bytes_read == len(tokens) * 64


def test_host_memory_that_cannot_be_pinned_has_run_out(monkeypatch):
    """So that a film is tried again with less of the model in memory."""
    refuses = SimpleNamespace(cudaHostRegister=lambda place, size, flags: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: refuses)
    with pytest.raises(OutOfMemory, match=r"of host memory could not be pinned \(CUDA error 2\)"):
        offload.pinned_memory(2000)


def test_turns_and_wishes():
    assert Placement("model").takes_turns and Placement("stream", turns=True).takes_turns
    assert not Placement("none").takes_turns and not Placement("stream").takes_turns

    def beside(kind: str, *place, is_apart: bool = False, **how) -> int:
        return Placement(*place, **how).chunks_beside(kind, is_apart=is_apart, on_cores=2)

    assert (beside("cuda", "none"), beside("cuda", "stream"), beside("mps", is_apart=True)) == (1, 1, 1)
    assert (beside("cpu"), beside("mps")) == (2, 0)
    assert not any(beside(kind, *way) for kind in ("cuda", "cpu") for way in (("model",), ("stream", 0, True)))
    assert not any(beside(kind, "stream", decode_beside=False) for kind in ("cuda", "cpu"))


PEAK = """
import sys, torch
from pathlib import Path
from support.renders import models_of, plan_of
from support.renders import Case
from helios_cli.engine.chunks import render_chunks
from helios_cli.film.writer import open_writer
from helios_cli.machine import peak_host_bytes
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.engine.models import Models
from helios_cli.weights.placement import Placement
folder, mode, out = sys.argv[1:]
models = Models(Checkpoint.open(Path(folder)), torch.device("cpu"), torch.bfloat16, placement=Placement(mode))
before = peak_host_bytes()
plan = plan_of(Case("distilled", (64, 64), (1, 1, 1), chunks=1, prompt="a red circle"))
for _ in render_chunks(plan, models, open_writer(out, size=plan.size, fps=plan.fps)):
    pass
print(peak_host_bytes() - before)
"""


@pytest.mark.process
@pytest.mark.slow
def test_memory_of_a_streamed_model_is_that_of_a_few_blocks(tmp_path):
    """By the kernel's own count, each mode in a process of its own: 12 blocks of 8 MB, of which three are there."""
    from dataclasses import replace

    from helios_cli.bench.specs import SPECS
    from helios_cli.bench.synthetic import write_checkpoint

    spec, layers = SPECS["215m"], 12
    transformer = {**spec.transformer, "num_layers": layers, "num_attention_heads": 4, "ffn_dim": 2048}
    vae = {**spec.vae, "base_dim": 8}
    folder = write_checkpoint(tmp_path / "model", replace(spec, transformer=transformer, vae=vae), dtype=torch.bfloat16)
    block = 2 * (8 * 512**2 + 2 * 512 * 2048)
    peaks = {}
    for mode in ("none", "stream"):
        command = [sys.executable, "-c", PEAK, str(folder), mode, str(tmp_path / f"{mode}.mkv")]
        run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        peaks[mode] = int(run.stdout.splitlines()[-1])
    assert peaks["none"] - peaks["stream"] > (layers - HOST_SLOTS - 3) * block


def test_the_order_of_a_gpu_s_copies(stream, monkeypatch):
    """The calls that two queues receive, with copies made at once: no slot is written while it may still be read.

    A copy waits for the mark that was set when the block before in that slot had been launched; the computing waits for
    the copy; and a thread that fills a host slot waits for the copy out of it.
    """
    log: list = []
    computing, copying = Queue("computing", log), Queue("copying", log)
    freeing: list = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copying)
    monkeypatch.setattr(torch.cuda, "Event", lambda: Mark(freeing))
    monkeypatch.setattr(torch.cuda, "stream", lambda queue: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(offload, "pinned_memory", lambda size: torch.empty(size, dtype=torch.uint8))
    ring, blocks = stream(7, resident=2)
    ring._on = offload._OnCuda(ring.layout, CPU)
    for _ in range(3):
        for index, block in enumerate(ring.walk()):
            for name, value in block.named_parameters():
                assert torch.equal(value, blocks[index].get_parameter(name))
            if index in ring.streamed:
                log.append(("computing", "runs", index))
    assert log.pop(0) == ("copying", "waits for", "computing")
    assert len(log) == 5 * 3 * 5
    freed: dict[Mark, int] = {}
    for place in range(0, len(log), 5):
        free, copied, arrived, runs, launched = log[place : place + 5]
        assert free[:2] == ("copying", "waits for") and copied[:2] == ("copying", "marks")
        assert arrived == ("computing", "waits for", copied[2])
        assert runs[:2] == ("computing", "runs")
        assert launched == ("computing", "marks", free[2])  # the mark that the next copy into this slot waits for
        assert place - freed.get(free[2], place - 5 * DEVICE_SLOTS) == 5 * DEVICE_SLOTS
        freed[free[2]] = place
    assert {entry[2] for entry in freeing} == {entry[2] for entry in log if entry[:2] == ("copying", "marks")}
    ring.leave()
    assert log[-1] == ("copying", "ends", None)  # before host memory goes that it may be copying from
    assert not ring._on._slots and len(ring._slots) == HOST_SLOTS  # pinning them again would take long
    ring.leave(host=True)
    assert not ring._slots
