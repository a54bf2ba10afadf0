"""Fingerprints of random films: which changes alter a chunk's fingerprint, and that equal fingerprints mean equal
pictures."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helios_cli import machine
from helios_cli.architecture import VAEConfig
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.cost.arithmetic import (
    arithmetic_of,
    convolution_shapes,
    measured_attention,
    measured_convolutions,
)
from helios_cli.cost.vae import piece_elements_on
from helios_cli.device import Device
from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.models import Models
from helios_cli.errors import InputError
from helios_cli.film.writer import open_writer
from helios_cli.measured import ATTENTION, CONVOLUTIONS
from helios_cli.recipe.fingerprint import Arithmetic, chunk_fingerprints, film_fingerprint
from helios_cli.recipe.plan import Plan
from helios_cli.weights.checkpoint import Checkpoint, weights_identity
from helios_kernels import devices
from support.recipes import plan_of, timed_keys

HERE = Arithmetic("CPU, 1 thread", "float32", "2.13.0")
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fingerprints(plan: Plan, weights: str = "weights", arithmetic: Arithmetic = HERE, **options) -> list[str]:
    return chunk_fingerprints(plan, weights, arithmetic, **options)


def decides(plan: Plan, index: int) -> tuple:
    """Everything that the latents of a chunk depend on, written out: its segment up to it."""
    first = max(chunk.index for chunk in plan.chunks[: index + 1] if chunk.fresh)
    segment = plan.chunks[first : index + 1]
    guidance = (plan.guidance, plan.negative) if plan.guidance > 1 else None
    return plan.size, plan.steps, guidance, segment[0].seed, tuple(chunk.prompts for chunk in segment)


@QUICK
@given(timed_keys(), timed_keys(), st.integers(0, 2), st.sampled_from([1.0, 0.5, 5.0]))
def test_a_fingerprint_is_what_decides_the_chunk(first, second, seed, guidance):
    """Over all pairs of chunks of two films: equal exactly where everything that decides them is."""
    meanings: dict[str, tuple] = {}
    for plan in (plan_of(first), plan_of(second, seed=seed, guidance=guidance)):
        for index, fingerprint in enumerate(fingerprints(plan)):
            assert meanings.setdefault(fingerprint, decides(plan, index)) == decides(plan, index)
    assert len(set(meanings.values())) == len(meanings)


@QUICK
@given(timed_keys(), st.integers(1, 4000))
def test_a_longer_film_shares_the_shorter_one(keys, frames):
    """All of it: the last chunk too, of which only fewer frames are kept."""
    long = plan_of(keys)
    short = plan_of(keys, frames=min(frames, long.num_frames))
    assert fingerprints(short) == fingerprints(long)[: len(short.chunks)]


@QUICK
@given(timed_keys(), timed_keys())
def test_what_stands_behind_a_cut_depends_on_nothing_before_it(before, after):
    opening, *rest = after["shot"]
    opening = {"prompt": opening["prompt"], "seconds": opening["seconds"], "transition": "cut"}
    # A further cut may fall a frame earlier or later, and the segment before it have one chunk more or less.
    tail = [opening, *(shot | {"transition": "switch"} if shot.get("transition") == "cut" else shot for shot in rest)]
    alone = fingerprints(plan_of({"shot": tail}))
    whole = plan_of({"shot": [*before["shot"], *tail]})
    start = whole.shots[len(before["shot"])].start_frame
    behind = [f for chunk, f in zip(whole.chunks, fingerprints(whole), strict=True) if chunk.start_frame >= start]
    common = min(len(alone), len(behind))  # so may the film's last
    assert behind[:common] == alone[:common] and abs(len(alone) - len(behind)) <= 1


@QUICK
@given(timed_keys(), st.data())
def test_a_changed_shot_changes_only_what_depends_on_it(keys, data):
    edited = data.draw(st.integers(0, len(keys["shot"]) - 1))
    shots = [dict(shot) for shot in keys["shot"]]
    shots[edited]["prompt"] = "something else"
    old, new = plan_of(keys), plan_of({"shot": shots})
    changed = {chunk.index for chunk in new.chunks if any(text == "something else" for text, _ in chunk.prompts)}
    touched = False
    for chunk, a, b in zip(new.chunks, fingerprints(old), fingerprints(new), strict=True):
        touched = chunk.index in changed or (touched and not chunk.fresh)
        assert (a != b) == touched


def test_everything_that_decides_pixels_counts():
    plan = plan_of({"shot": [{"prompt": "a", "seconds": 3}, {"prompt": "b", "seconds": 3, "transition": "switch"}]})
    base = fingerprints(plan)
    different = [
        fingerprints(plan, weights="others"),
        fingerprints(plan, arithmetic=replace(HERE, device="CPU, 2 threads")),
        fingerprints(plan, arithmetic=replace(HERE, dtype="bfloat16")),
        fingerprints(plan, arithmetic=replace(HERE, torch="2.14.0")),
        fingerprints(replace(plan, size=(64, 128))),
        fingerprints(replace(plan, steps=(2, 2, 1))),
        fingerprints(replace(plan, guidance=3.0)),
        fingerprints(replace(plan, guidance=3.0, negative="grey")),
        fingerprints(replace(plan, guidance=3.0000000000000004)),
        fingerprints(plan_of({"seed": 43, "shot": [{"prompt": "a", "seconds": 3}]})),
    ]
    for i in range(2):
        assert len({base[i], *(found[i] for found in different)}) == len(different) + 1
    for same in ({"fps": 30.0}, {"title": "other"}, {"negative": "grey"}, {"guidance": 0.0}, {"num_frames": 7}):
        assert fingerprints(replace(plan, **same)) == base


def test_kept_frames_count_for_the_film_alone():
    plan = plan_of({"shot": [{"prompt": "a"}]}, frames=60)
    shorter = replace(plan, chunks=(plan.chunks[0], replace(plan.chunks[1], num_frames=5)))
    assert fingerprints(plan) == fingerprints(shorter)
    assert film_fingerprint(plan, fingerprints(plan)) != film_fingerprint(shorter, fingerprints(shorter))


def test_a_new_anchor_counts_from_the_chunk_that_leaves_it():
    """The second chunk looks the same, but what is kept of it to go on from is not."""
    plan = plan_of({"shot": [{"prompt": "a", "seconds": 6}, {"prompt": "b", "seconds": 1, "transition": "cut"}]})
    pairs = list(zip(fingerprints(plan), fingerprints(plan, reanchor=True), strict=True))
    assert [a == b for a, b in pairs] == [True, False, False, False, False, True]


@pytest.mark.parametrize("reuse", [{"reuse_history": True}, {"reuse_steps": 2}], ids=str)
def test_what_is_reused_counts_from_the_first_chunk(reuse):
    plan = plan_of({"shot": [{"prompt": "a", "seconds": 6}]})
    pairs = zip(fingerprints(plan), fingerprints(replace(plan, **reuse)), strict=True)
    assert not any(a == b for a, b in pairs)


def test_pictures_count_by_what_is_in_them(tmp_path):
    for name, content in (("a.png", b"one"), ("same.png", b"one"), ("b.png", b"two"), ("c.mp4", b"one")):
        (tmp_path / name).write_bytes(content)
    bare = plan_of({"shot": [{"prompt": "a", "seconds": 3}]})

    def starting(fps: float = 24.0, **start) -> list[str]:
        chunks = (replace(bare.chunks[0], **start), *bare.chunks[1:])
        return fingerprints(replace(bare, chunks=chunks, fps=fps))

    a, b, clip = (tmp_path / name for name in ("a.png", "b.png", "c.mp4"))
    assert starting(image=a) == starting(image=tmp_path / "same.png") == starting(image=a, fps=30.0)
    kinds = [fingerprints(bare), starting(image=a), starting(image=b), starting(video=clip), starting(30.0, video=clip)]
    for i in range(len(bare.chunks)):
        assert len({found[i] for found in kinds}) == len(kinds)
    with pytest.raises(InputError, match=r"gone\.png"):
        starting(image=tmp_path / "gone.png")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), SPECS["tiny"])


def test_weights_are_known_by_their_values(checkpoint, tmp_path):
    whole = weights_identity(Checkpoint.open(checkpoint))
    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    assert weights_identity(Checkpoint.open(copied)) == whole
    weights = next((copied / "vae").glob("*.safetensors"))
    status, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights_identity(Checkpoint.open(copied)) != whole
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert weights_identity(Checkpoint.open(copied)) == whole
    (copied / "scheduler/scheduler_config.json").write_text(
        json.dumps({**json.loads((checkpoint / "scheduler/scheduler_config.json").read_text()), "shift": 2.0})
    )
    assert weights_identity(Checkpoint.open(copied)) != whole


def test_large_weights_are_known_by_place_size_and_time(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("helios_cli.weights.checkpoint.READ_WHOLE", 0)
    whole = weights_identity(Checkpoint.open(checkpoint))
    assert weights_identity(Checkpoint.open(checkpoint)) == whole
    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    other = weights_identity(Checkpoint.open(copied))
    assert other != whole
    os.utime(next((copied / "vae").glob("*.safetensors")), ns=(1, 1))
    assert weights_identity(Checkpoint.open(copied)) != other


def test_a_snapshot_is_known_by_its_commit(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("helios_cli.weights.checkpoint.READ_WHOLE", 0)
    found = []
    for cache, commit in (("one", "a" * 40), ("two", "a" * 40), ("one", "b" * 40)):
        folder = tmp_path / cache / "models--acme--helios" / "snapshots" / commit
        found.append(weights_identity(Checkpoint.open(shutil.copytree(checkpoint, folder))))
    assert found[0] == found[1] != found[2]


FILMS = {
    "first": [("a red ball", 1.5, "cut"), ("a green box", 1.5, "cut"), ("two stars", 1.4, "switch")],
    "shot 1 edited": [("a blue sky", 1.5, "cut"), ("a green box", 1.5, "cut"), ("two stars", 1.4, "switch")],
    "shot 3 edited": [("a red ball", 1.5, "cut"), ("a green box", 1.5, "cut"), ("one dot", 1.4, "switch")],
    "longer, in another order": [("a green box", 1.5, "cut"), ("two stars", 4.2, "switch"), ("a red ball", 1.5, "cut")],
}


def rendered(plan: Plan, checkpoint: Path, out: Path) -> np.ndarray:
    """Frames [T, H, W, 3], every chunk computed anew."""
    models = Models(Checkpoint.open(checkpoint), torch.device("cpu"), torch.float32)
    for _ in render_chunks(plan, models, open_writer(f"{out}/", size=plan.size, fps=plan.fps)):
        pass
    return np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])


@pytest.mark.slow
def test_equal_fingerprints_are_equal_pictures(checkpoint, tmp_path):
    """Real renders of films that share chunks: one fingerprint, one picture, bit for bit; another, another picture."""
    seen: dict[str, np.ndarray] = {}
    reused = 0
    for name, shots in FILMS.items():
        keys = {"shot": [{"prompt": text, "seconds": length, "transition": how} for text, length, how in shots]}
        plan = plan_of(keys, size=(64, 64), steps=(1, 1, 1))
        frames = rendered(plan, checkpoint, tmp_path / name)
        for chunk, fingerprint in zip(plan.chunks, fingerprints(plan), strict=True):
            pictures = frames[chunk.start_frame : chunk.start_frame + chunk.num_frames]
            reused += fingerprint in seen
            known = seen.setdefault(fingerprint, pictures)
            kept = min(len(known), len(pictures))
            assert np.array_equal(known[:kept], pictures[:kept]), f"{name}, chunk {chunk.index}"
    assert reused >= 8 and torch.get_num_threads() == 1
    whole = [pictures for pictures in seen.values() if len(pictures) == 33]
    assert not any(np.array_equal(a, b) for i, a in enumerate(whole) for b in whole[:i])


def test_the_attention_of_each_shape_counts(tmp_path, monkeypatch):
    """A kernel repeats its results bit for bit whenever it was measured, and another kernel makes another film."""
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    monkeypatch.delenv("HELIOS_KERNELS", raising=False)
    shapes = ("64x64 2x32 bfloat16", "64x128 2x32 bfloat16 bias")
    gpu = Device("cuda", "a GPU", 2**34, 2**34)

    def times(*fastest: str) -> dict:
        by_name = [{"cudnn": 2.0, "triton": 3.0, "flash": 4.0, name: 1.0} for name in fastest]
        return {shape: {"name": "", "ms": ms, "refused": {}} for shape, ms in zip(shapes, by_name, strict=False)}

    def told(**how) -> str:
        taken = measured_attention(gpu.name, shapes)
        return arithmetic_of(gpu, "bfloat16", taken, **{"quant": "none", "attention": "auto", **how}).kernels

    def measured(*fastest: str, key: str | None = None) -> str:
        devices.write(key or ATTENTION.key(gpu.name), times(*fastest), machine.home() / ATTENTION.file)
        return told()

    unknown, forced = told(), told(attention="cudnn")
    assert "--attention=cudnn" in forced and "--attention" not in unknown
    found = [measured("cudnn"), measured("cudnn", "cudnn"), measured("cudnn", "triton"), measured("flash", "triton")]
    assert len({unknown, forced, *found}) == 6
    assert measured("cudnn", "cudnn") == found[1]
    assert measured("flash", "flash", key="a GPU, torch 2.0.0") == found[1]  # of other versions: says nothing here
    assert told(attention="cudnn") == forced
    devices.write(ATTENTION.key(gpu.name), {shapes[0]: {"ms": 1}}, machine.home() / ATTENTION.file)
    assert told() == unknown
    measured("triton", "triton")
    monkeypatch.setenv("HELIOS_KERNELS", "reference")
    assert measured_attention(gpu.name, shapes) == dict.fromkeys(shapes, "cudnn")


def test_kernels_that_were_tried_count_where_they_may_run(tmp_path, monkeypatch):
    """Kernels round otherwise than PyTorch: whether `auto` takes them is part of what decides the pixels."""
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))

    def told(choice: str | None) -> str:
        monkeypatch.delenv("HELIOS_KERNELS", raising=False)
        if choice:
            monkeypatch.setenv("HELIOS_KERNELS", choice)
        return arithmetic_of(
            Device("cuda", "a GPU", 2**34, 2**34), "bfloat16", {}, quant="none", attention="auto"
        ).kernels

    before = {choice: told(choice) for choice in (None, "reference")}
    devices.write("a GPU", {"made_with": "torch 2.13.0", "faults": []}, tmp_path / "trials.json")
    assert told(None) != before[None] and told("reference") == before["reference"]


def test_a_vae_on_another_kind_of_device_counts():
    """Two GPUs of one kind round alike; what has no second device has the fingerprints that it always had."""
    gpu, other = Device("cuda", "NVIDIA H100", 80, 80), Device("cuda", "NVIDIA L4", 24, 24)
    cpu = Device("cpu", "AMD EPYC, avx2, 2 threads", 64, 64)
    how = {"quant": "none", "attention": "auto"}
    one, same, beside, host = (
        arithmetic_of(gpu, "bfloat16", {}, vae_device=second, **how) for second in (None, gpu, other, cpu)
    )
    assert one == same and "vae" not in one.without_defaults()
    assert beside.vae.startswith("NVIDIA L4") and host.vae == cpu.name
    plan = plan_of({"shot": [{"prompt": "a ball"}]})
    found = [tuple(fingerprints(plan, arithmetic=arithmetic)) for arithmetic in (one, beside, host)]
    assert len(set(found)) == 3


def test_the_size_of_pieces_counts_where_it_is_not_the_usual_one():
    """A GPU may convolve them by another algorithm. It follows from all memory and --vram, not from what is free."""
    large, small = Device("cuda", "a GPU", 80 * 10**9, 10**9), Device("cuda", "a GPU", 24 * 10**9, 24 * 10**9)
    cases = [(large, None), (replace(large, free_bytes=79 * 10**9), None), (large, 6 * 10**9), (small, None)]
    elements = [piece_elements_on(device, vram) for device, vram in cases]
    assert elements == [2**28, 2**28, 2**26, 2**26]
    assert piece_elements_on(Device("cpu", "a CPU", 80 * 10**9, 80 * 10**9), None) == 2**23

    def told(elements: int | None, second: Device | None = None):
        how = {"quant": "none", "attention": "auto", "vae_device": second, "piece_elements": elements}
        return arithmetic_of(large, "bfloat16", {}, **how)

    assert told(2**26) == told(None) != told(2**28) == told(2**28, large)
    apart = told(2**28, Device("cuda", "another GPU", 80 * 10**9, 0))
    assert "pieces" in apart.vae and "pieces" not in apart.kernels


def test_convolutions_of_the_kernel_count_where_they_were_faster(tmp_path, monkeypatch):
    """Where cuDNN is left with all of them, fingerprints are as they always were."""
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    monkeypatch.delenv("HELIOS_KERNELS", raising=False)
    gpu = Device("cuda", "a GPU", 24 * 10**9, 24 * 10**9)
    shapes = convolution_shapes(VAEConfig(), (640, 384), "bfloat16")
    assert shapes[-2:] == ["192x320 192 bfloat16", "384x640 96 bfloat16"]

    def told(key: str = CONVOLUTIONS.key(gpu.name), **fastest: str) -> str:
        pairs = zip(shapes[-2:], fastest.values(), strict=False)
        times = {shape: {"cudnn": 2.0, "triton": 3.0, name: 1.0} for shape, name in pairs}
        entry = {shape: {"name": "", "ms": ms, "refused": {}} for shape, ms in times.items()}
        devices.write(key, entry, tmp_path / CONVOLUTIONS.file)
        taken = measured_convolutions(gpu.name, shapes)
        return arithmetic_of(gpu, "bfloat16", {}, quant="none", attention="auto", convolutions=taken).kernels

    none = arithmetic_of(gpu, "bfloat16", {}, quant="none", attention="auto").kernels
    assert told(a="cudnn", b="cudnn") == none
    found = [told(a="triton", b="cudnn"), told(a="cudnn", b="triton"), told(a="triton", b="triton")]
    assert len({none, *found}) == 4
    assert told("another GPU", a="cudnn") == found[-1]
    devices.write(CONVOLUTIONS.key(gpu.name), {shapes[-1]: {"ms": 1}}, tmp_path / CONVOLUTIONS.file)
    assert measured_convolutions(gpu.name, shapes) == {}
    told(a="triton", b="triton")
    monkeypatch.setenv("HELIOS_KERNELS", "reference")
    assert measured_convolutions(gpu.name, shapes) == {}


def test_latents_in_another_dtype_count():
    """Nothing kept of small bfloat16 films before they had latents in float32 is taken; all else stays valid."""
    cpu = Device("cpu", "AMD EPYC, avx2, 2 threads", 64, 64)
    before, same, wide = (
        arithmetic_of(cpu, "bfloat16", {}, quant="none", attention="auto", latents=latents)
        for latents in ("", "bfloat16", "float32")
    )
    assert before == same and wide.without_defaults() == before.without_defaults() | {"latents": "float32"}
