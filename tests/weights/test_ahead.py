"""Reading ahead reads what would be read when needed, within its room, and ends when it is not needed."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helios_cli.errors import CheckpointError
from helios_cli.weights import ahead, reader
from helios_cli.weights.ahead import Ahead
from helios_cli.weights.checkpoint import Component
from helios_cli.weights.files import read_tensors
from helios_cli.weights.load import load_component, tensors_to_load
from helios_cli.weights.reader import WeightFiles
from support.queues import Mark, Queue

CPU = torch.device("cpu")
HOW = {"dtype": torch.bfloat16, "keep_fp32": lambda name: name == "1.weight", "leave": frozenset(), "check": True}
"""Settings for `three`, stored in float32: one of its matrices stays in float32."""


def three() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(16, 40, bias=False) for _ in range(3)))


@pytest.fixture
def component(tmp_path) -> Component:
    save_file(three().state_dict(), tmp_path / "model.safetensors")
    return Component("part", tmp_path, {}, read_tensors(tmp_path, "model"))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(reader, "PIECE_BYTES", 7 * 64)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return three()


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read ahead"]


NARROW, WIDE = 40 * 16 * 2, 40 * 16 * 4


@pytest.mark.parametrize(
    ("most", "names"),
    [
        (0, []),
        (NARROW - 1, []),
        (NARROW, ["0.weight"]),
        (NARROW + WIDE, ["0.weight", "1.weight"]),
        (2**40, ["0.weight", "1.weight", "2.weight"]),
    ],
)
def test_tensors_come_in_order_as_far_as_there_is_room(most, names, component):
    files = WeightFiles()
    reading = Ahead(files, CPU)
    reading.begin("part", tensors_to_load(on_meta(), component, **HOW), most)
    assert reading.take("another") == {}
    tensors = reading.take("part")
    assert list(tensors) == names
    assert files.bytes_read == WIDE * len(names)
    loaded = load_component(on_meta(), component, device=CPU, files=files, ahead=tensors, **HOW)
    expected = load_component(on_meta(), component, device=CPU, **HOW)
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value) and loaded.state_dict()[name].dtype == value.dtype
    assert files.bytes_read == 3 * WIDE  # each once
    assert reading.take("part") == {}


def test_what_cannot_be_read_is_said_where_the_part_is_taken(component):
    reading = Ahead(WeightFiles(), CPU)
    wanted = list(tensors_to_load(on_meta(), component, **HOW))
    os.truncate(component.folder / "model.safetensors", 1000)
    reading.begin("part", wanted, 2**40)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        reading.take("part")
    assert not readers()
    assert reading.take("part") == {}  # and whoever needs it reads it anew


def test_a_disk_that_fails_is_said_where_the_part_is_taken(component, monkeypatch):
    files = WeightFiles()
    reading, reads, preadv = Ahead(files, CPU), [], os.preadv

    def fails(*how):
        reads.append(how)
        if len(reads) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(*how)

    monkeypatch.setattr(os, "preadv", fails)
    reading.begin("part", tensors_to_load(on_meta(), component, **HOW), 2**40)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 0\.weight cannot be read: Input/output error"):
        reading.take("part")
    assert len(reads) == 3


def test_readers_end_with_whoever_began_them(component, monkeypatch):
    """Dropped, followed by another part, or forgotten: after the piece that they are at."""
    at, go, count = threading.Event(), threading.Event(), []

    def slow(self, place, out, rows=None, *, check=True):
        count.append(place)
        at.set()
        assert go.wait(10)

    monkeypatch.setattr(WeightFiles, "read", slow)

    def begun() -> Ahead:
        at.clear(), go.clear(), count.clear()
        reading = Ahead(WeightFiles(), CPU)
        reading.begin("part", tensors_to_load(on_meta(), component, **HOW), 2**40)
        assert at.wait(10)
        threading.Timer(0.05, go.set).start()
        return reading

    reading = begun()
    reading.drop()
    assert len(count) == 1 and not readers()
    reading = begun()
    reading.begin("another", (), 0)
    assert len(count) == 1 and not readers() and reading.part == "another"
    reading = begun()
    del reading
    gc.collect()
    assert len(count) == 1 and not readers()


def test_the_order_of_a_gpu_s_copies(component, monkeypatch):
    """The copies being made at once: they begin behind what is queued, a piece is written when its last copy has been
    made, and whoever takes the tensors computes behind all copies."""
    log: list = []
    computing, copying = Queue("computing", log), Queue("copying", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copying)
    monkeypatch.setattr(torch.cuda, "Event", lambda: Mark(log))
    monkeypatch.setattr(torch.cuda, "stream", lambda queue: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(ahead._OnCuda, "pinned", False)
    reading = Ahead(WeightFiles(), CPU)
    reading._on = ahead._OnCuda(CPU)
    reading.begin("part", tensors_to_load(on_meta(), component, **HOW), 2**40)
    tensors = reading.take("part")
    expected = load_component(on_meta(), component, device=CPU, **HOW).state_dict()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    first, start, *pieces, last = log
    assert first == ("copying", "ends", None)  # there were no pieces before
    assert start == ("copying", "waits for", "computing") and last == ("computing", "waits for", "copying")
    assert [entry[:2] for entry in pieces] == [("host", "waits for"), ("copying", "marks")] * 3 * 6
    assert len({entry[2] for entry in pieces}) == 1  # one reader, one piece
    reading.close()
    assert log[-1] == ("copying", "ends", None) and not reading._on._pieces
