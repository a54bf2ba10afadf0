"""The VAE and the text encoder on a device of their own.

`cpu:0` is to PyTorch another device than `cpu` and computes on the same processor: a film on the two is whole, bit for
bit. Tensors of two devices that would not mix are followed by `support.two_devices`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import backend_registration

from helios_cli.cli import main
from helios_cli.engine import gpu, session
from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.events import ChunkDone, ChunksReused, FilmDone, StepDone
from helios_cli.engine.gpu import sent_to
from helios_cli.engine.models import Models
from helios_cli.film.cache import Cache
from helios_cli.film.writer import open_writer
from helios_cli.model.vae import WanVAE
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.placement import RESIDENT, Placement
from support import reruns
from support.queues import Mark, Queue
from support.renders import Case, plan_of
from support.waiting import LONGEST

CPU, SECOND = torch.device("cpu"), torch.device("cpu", 0)
CASE = Case("distilled", (64, 64), (1, 1, 1), chunks=3)


def models_of(folder, vae_device=None, placement=RESIDENT) -> Models:
    return Models(Checkpoint.open(folder), CPU, torch.float32, vae_device=vae_device, placement=placement)


def pictures(models: Models, plan, out) -> tuple[list[bytes], list]:
    events = list(render_chunks(plan, models, open_writer(f"{out}/", size=plan.size, fps=plan.fps)))
    return [file.read_bytes() for file in sorted(out.glob("*.png"))], events


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    picture = tmp_path_factory.mktemp("start") / "start.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)).save(picture)
    return picture


@pytest.mark.slow
def test_a_film_on_two_devices_is_the_film_on_one(checkpoints, tmp_path, start):
    """With a picture at its start and at a cut, which is encoded next to the chunk before."""
    plan = plan_of(replace(CASE, image=start))
    cut = replace(plan.chunks[2], fresh=True, seed=5, image=start)
    plan = replace(plan, chunks=(*plan.chunks[:2], cut))
    one, events = pictures(models_of(checkpoints("distilled")), plan, tmp_path / "one")
    two, others = pictures(models_of(checkpoints("distilled"), SECOND), plan, tmp_path / "two")
    assert len(one) == 99 and one == two
    orders = [
        [type(event) for event in film if isinstance(event, StepDone | ChunkDone | FilmDone)]
        for film in (events, others)
    ]
    first, second, third = [StepDone] * 6, [StepDone] * 3, [StepDone] * 6
    assert orders[0] == [*first, ChunkDone, *second, ChunkDone, *third, ChunkDone, FilmDone]
    assert orders[1] == [*first, *second, ChunkDone, *third, ChunkDone, ChunkDone, FilmDone]


@pytest.mark.parametrize(
    "placement", [Placement(text_beside=False), Placement("stream", resident=1)], ids=lambda one: one.mode
)
def test_each_part_is_loaded_on_its_device(checkpoints, placement, monkeypatch):
    """Streamed layers of the text encoder, too; and only the VAE makes room for it."""
    from helios_cli.engine import parts as module

    loaded, streamed = {}, []
    load, stream = module.load_component, module.BlockStream

    def noting(part, component, *, device, **how):
        loaded[type(part).__name__] = device
        return load(part, component, device=device, **how)

    monkeypatch.setattr(module, "load_component", noting)
    monkeypatch.setattr(module, "BlockStream", lambda *args, **how: streamed.append(args[4]) or stream(*args, **how))
    models = models_of(checkpoints("distilled"), SECOND, placement)
    dit, vae = models.dit, models.vae
    with torch.inference_mode():
        models.encode(["a red ball"])
    assert loaded == {"HeliosDiT": CPU, "WanVAE": SECOND, "UMT5Encoder": SECOND}
    assert streamed == ([CPU, CPU, SECOND] if placement.mode == "stream" else [])
    assert not dit.proj_out.weight.is_meta and next(vae.parameters()).is_meta
    assert not next(models.vae.parameters()).is_meta
    models.unload()
    assert not models.is_loaded


def test_the_vae_s_work_is_done_in_a_thread_that_computes_as_the_model_does(checkpoints, tmp_path, monkeypatch):
    """The number of a CPU's threads is set in each thread that calls them, and decides how sums are rounded."""
    seen, models = set(), models_of(checkpoints("distilled"), SECOND)
    monkeypatch.setattr(models, "use_threads", lambda: seen.add(threading.current_thread().name[:10]))
    threads, decode = set(), WanVAE.decode
    monkeypatch.setattr(WanVAE, "decode", lambda *of: threads.add(threading.current_thread().name[:10]) or decode(*of))
    plan = plan_of(replace(CASE, chunks=1))
    pictures(models, plan, tmp_path / "film")
    assert threads == {"background"} and seen == {threading.current_thread().name[:10], "background"}


@pytest.mark.slow
def test_latents_that_are_kept_are_decoded_where_the_vae_is(checkpoints, tmp_path):
    """The chunks of a film, for one that is stored in another way."""
    models, cache, film = models_of(checkpoints("distilled"), SECOND), Cache(tmp_path / "cache"), plan_of(CASE)
    reruns.run(film, models, tmp_path / "film.mkv", cache)
    events = reruns.run(film, models, f"{tmp_path}/pictures/", cache)
    assert [event.chunk for event in events if isinstance(event, ChunksReused)] == [0, 1, 2]
    assert np.array_equal(reruns.decoded(tmp_path / "pictures"), reruns.decoded(tmp_path / "film.mkv"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--offload", "stream"), ("--lanes", "2")], ids=str)
def test_helios_render_on_two_devices(flags, tmp_path, monkeypatch):
    """Through the session, which plans for both; the record is that of one device, as they round alike."""
    words = ["a red circle", "a green square"] if flags[:1] == ("--lanes",) else ["a red circle"]
    film = ["render", *words, "-m", "tiny", "--size", "64x64", "--frames", "40", "--no-cache", "-q", *flags]
    records, frames = [], []
    for name in ("one", "two"):
        if name == "two":
            monkeypatch.setattr(session, "pick_vae_device", lambda *_: SECOND)
        (tmp_path / name).mkdir()
        output = f"{tmp_path}/{name}/{'film.mp4' if len(words) == 1 else ''}"
        assert main([*film, "-o", output, "--device", "cpu"]) == 0
        first = sorted((tmp_path / name).glob("*.mp4"))[-1]
        frames.append(reruns.decoded(first))
        records.append(json.loads(first.with_suffix(".json").read_text()))
    assert len(frames[0]) == 40 and np.array_equal(*frames)
    assert records[0]["fingerprint"] == records[1]["fingerprint"] and "vae" not in records[1]


# By the rules of a GPU


@pytest.fixture
def queues(monkeypatch):
    """Record the calls that a GPU's queue receives; host tensors count as its own."""
    log: list = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: Mark(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Queue(f"queue of {device}", log))
    monkeypatch.setattr(gpu, "_pinned_like", torch.empty_like)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return log


def test_latents_are_copied_behind_what_makes_them_and_waited_for_where_they_are_used(queues):
    latents, finite = torch.rand(4), torch.ones((), dtype=torch.bool)
    arrive = sent_to(SECOND, latents, finite)
    assert [entry[:2] for entry in queues] == [("queue of cpu", "marks")]  # the caller goes on
    found = arrive()
    assert queues[1:] == [("host", "waits for", queues[0][2])]
    assert torch.equal(found[0], latents) and found[1]
    assert sent_to(CPU, latents, finite)() == (latents, finite) and len(queues) == 2


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no way to pretend a second kind of device",
)
def test_tensors_of_two_devices_never_meet():
    run = subprocess.run(
        [sys.executable, "-m", "support.two_devices"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert run.stdout == "right\n", run.stderr
