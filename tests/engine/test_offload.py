"""Where the weights are changes no frame: every mode of every kind against a model that stays in memory."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.convert import convert
from helios_cli.engine.events import ChunkDone
from helios_cli.engine.models import Models
from helios_cli.errors import CheckpointError
from helios_cli.film.writer import open_writer
from helios_cli.weights.ahead import Ahead
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.placement import HOST_SLOTS, PROMPT_MATRICES, Placement
from helios_cli.weights.reader import WeightFiles
from support.renders import Case, ended_early, plan_of
from support.tiers import some

CPU = torch.device("cpu")
LAYERS = 4
STEPS = {"base": (2,), "mid": (1, 1, 1), "distilled": (1, 1, 1)}

PLACEMENTS = {
    "half of it stays": Placement("stream", resident=2),
    "in turns": Placement("stream", resident=1, turns=True),
    "model, some read ahead": Placement("model", transformer_ahead_bytes=2**18, vae_ahead_bytes=2**14),
    "model": Placement("model"),
    "model, all read ahead": Placement("model", transformer_ahead_bytes=2**40, vae_ahead_bytes=2**40),
    "stream": Placement("stream"),
    "all of it stays": Placement("stream", resident=LAYERS),
    "all but what prompts need": Placement(prompt_matrices=False),
    "model, without what prompts need": Placement("model", 0, False, None, 2**18, 2**18, prompt_matrices=False),
    "little is cached": Placement("stream", cached_bytes=0),
}


@pytest.fixture
def folder_of(checkpoints):
    return lambda kind: checkpoints(kind, num_layers=LAYERS)


def case_of(kind: str, **changes) -> Case:
    return replace(Case(kind, (64, 64), STEPS[kind], chunks=2), **changes)


def models_at(folder: Path, placement: Placement, dtype: torch.dtype = torch.float32) -> Models:
    return Models(Checkpoint.open(folder), CPU, dtype, placement=placement)


def frames_of(case: Case, models: Models, out: Path, *, beside: int = 0) -> np.ndarray:
    plan = ended_early(plan_of(case))
    writer = open_writer(f"{out}/", size=plan.size, fps=plan.fps)
    for _ in render_chunks(plan, models, writer, chunks_beside=beside):
        pass
    return np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    """Frames of a model that is in memory, by case and dtype."""
    made = {}

    def get(case: Case, folder: Path, dtype: torch.dtype) -> np.ndarray:
        key = (repr(case), dtype)
        if key not in made:
            made[key] = frames_of(case, models_at(folder, Placement(), dtype), tmp_path_factory.mktemp("resident"))
        return made[key]

    return get


@pytest.mark.parametrize("placement", some(3, PLACEMENTS.values()), ids=PLACEMENTS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "distilled" else [pytest.mark.slow]) for kind in STEPS]
)
def test_every_mode_gives_the_frames_of_the_resident_model(kind, placement, folder_of, resident, tmp_path):
    case = case_of(kind)
    frames = frames_of(case, models_at(folder_of(kind), placement), tmp_path / "film")
    assert np.array_equal(frames, resident(case, folder_of(kind), torch.float32))


@pytest.mark.slow
def test_blocks_stream_while_a_chunk_is_decoded(folder_of, resident, tmp_path):
    """The decoding thread walks through no blocks, as on a GPU."""
    case = case_of("distilled", chunks=3)
    models = models_at(folder_of("distilled"), PLACEMENTS["half of it stays"])
    frames = frames_of(case, models, tmp_path / "film", beside=1)
    assert np.array_equal(frames, resident(case, folder_of("distilled"), torch.float32))


@pytest.mark.parametrize("placement", [PLACEMENTS["half of it stays"], PLACEMENTS["in turns"]], ids=["stream", "turns"])
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", some(1, ["a copy in bfloat16", "in several files"]))
def test_streams_of_every_layout(kind, placement, folder_of, tmp_path):
    """Blocks of a converted copy lie one after the other; those of published files may be spread over several
    files."""
    original = folder_of("distilled")
    if kind == "a copy in bfloat16":
        folder = convert(Checkpoint.open(original), tmp_path / "copy", "bfloat16", lambda count: None).path
    else:
        folder = in_several_files(original, tmp_path / "copy")
    case, frames = case_of("distilled", chunks=1), []
    for way in (placement, Placement()):
        models = models_at(folder, way)
        frames.append(frames_of(case, models, tmp_path / way.mode))
        assert models.stream is None or sum(models.stream.blocks_read) > LAYERS
    assert np.array_equal(*frames)


def in_several_files(original: Path, folder: Path) -> Path:
    """The same checkpoint, each tensor of the transformer in one of three files in turn, with an index."""
    shutil.copytree(original, folder)
    whole = folder / WEIGHTS
    tensors = load_file(whole)
    whole.unlink()
    names = [f"diffusion_pytorch_model-0000{place + 1}-of-00003.safetensors" for place in range(3)]
    for place, name in enumerate(names):
        part = dict(list(tensors.items())[place::3])
        save_file(part, whole.parent / name)
    index = {"weight_map": {tensor: names[place % 3] for place, tensor in enumerate(tensors)}}
    (whole.parent / f"{whole.name}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("dtype", some(1, [torch.bfloat16, torch.float16]), ids=str)
def test_weights_are_rounded_on_the_way_as_they_are_when_loaded(dtype, folder_of, resident, tmp_path):
    case = case_of("distilled", chunks=1)
    models = models_at(folder_of("distilled"), PLACEMENTS["half of it stays"], dtype)
    frames = frames_of(case, models, tmp_path / "film")
    assert np.array_equal(frames, resident(case, folder_of("distilled"), dtype))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "model, all read ahead", "stream", "all but what prompts need"])
def test_fp8_weights_stream_from_a_copy_that_holds_them(name, folder_of, tmp_path):
    original = Checkpoint.open(folder_of("distilled"))
    copy = Checkpoint.open(convert(original, tmp_path / "copy", "float8", lambda count: None).path)
    case, frames = case_of("distilled", chunks=1), []
    for placement in (PLACEMENTS[name], Placement()):
        models = Models(copy, CPU, torch.bfloat16, placement=placement, quant="fp8")
        frames.append(frames_of(case, models, tmp_path / placement.mode))
    assert np.array_equal(*frames)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "model, all read ahead", "in turns"])
def test_a_picture_to_start_from_when_parts_take_turns(name, folder_of, resident, tmp_path):
    picture = tmp_path / "start.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)).save(picture)
    case = case_of("distilled", image=picture)
    frames = frames_of(case, models_at(folder_of("distilled"), PLACEMENTS[name]), tmp_path / "film")
    assert np.array_equal(frames, resident(case, folder_of("distilled"), torch.float32))


@pytest.mark.parametrize("name", some(1, ["model, some read ahead", "model", "model, all read ahead"]))
def test_what_was_read_ahead_is_not_read_again(name, folder_of, tmp_path, monkeypatch):
    """Each part of a film of two chunks, and how much of it was there when it was taken."""
    taken, take = [], Ahead.take
    monkeypatch.setattr(Ahead, "take", lambda self, part: (taken.append((part, take(self, part))), taken[-1][1])[1])
    models = models_at(folder_of("distilled"), PLACEMENTS[name])
    frames_of(case_of("distilled"), models, tmp_path / "film")
    assert [part for part, _ in taken] == ["text_encoder", *["transformer", "vae"] * 2]
    whole = {"transformer": len(models._dit.state_dict()), "vae": len(models._vae.state_dict())}
    for part, tensors in taken[1:]:
        least, most = {"model": (0, 0), "model, all read ahead": (whole[part], whole[part])}.get(
            name, (1, whole[part] - 1)
        )
        assert least <= len(tensors) <= most, part
    models.unload()
    one_of_each = sum(models.checkpoint.component(part).bytes for part in ("text_encoder", "transformer", "vae"))
    twice = sum(models.checkpoint.component(part).bytes for part in ("transformer", "vae"))
    again = models.parts.files.bytes_read - one_of_each - twice  # begun for a third chunk that did not come
    assert 0 <= again <= models.checkpoint.component("transformer").bytes


@pytest.mark.parametrize("kind", ["distilled", "base"])
@pytest.mark.parametrize("kept", some(1, [1, 0, 3]))
def test_each_block_is_read_once_a_pass(kind, kept, folder_of, tmp_path):
    """A pass is a solver step: with guidance both of its calls are made in one. What is read for the pass after the
    last is all that is read in vain."""
    models = models_at(folder_of(kind), Placement("stream", resident=kept))
    case = case_of(kind)
    frames_of(case, models, tmp_path / "film")
    amplified = sum(case.steps) if kind == "distilled" else 0  # the first chunk's steps are doubled
    passes = case.chunks * sum(case.steps) + amplified
    streamed = models.stream.streamed
    assert len(streamed) == LAYERS - kept
    in_vain = [sum(index == streamed[place % len(streamed)] for place in range(HOST_SLOTS)) for index in range(LAYERS)]
    expected = [passes * (index in streamed) for index in range(LAYERS)]
    surplus = [read - wanted for read, wanted in zip(models.stream.blocks_read, expected, strict=True)]
    assert all(0 <= more <= most for more, most in zip(surplus, in_vain, strict=True)), models.stream.blocks_read
    assert sum(surplus) <= HOST_SLOTS


def test_a_block_has_its_weights_only_while_it_is_at_hand(folder_of):
    models = models_at(folder_of("distilled"), Placement("stream", resident=1))
    names = absent(models.dit)
    assert names > models.stream.names and len(models.stream.names) == 3 * 8
    assert len(names - models.stream.names) == LAYERS * len(PROMPT_MATRICES)
    for walk in (models.dit.visit, models.dit.visit_for_prompts):
        for index, block in enumerate(walk()):
            assert not lacks(block, for_prompts=walk != models.dit.visit)
            others = [other for place, other in enumerate(models.dit.blocks) if place != index]
            assert sum(not lacks(other, for_prompts=walk != models.dit.visit) for other in others) <= 1
    assert absent(models.dit) == names


def absent(module: torch.nn.Module) -> set[str]:
    """Return the names of parameters that are not there; blocks share what stands in for them."""
    return {name for name, value in module.named_parameters(remove_duplicate=False) if value.is_meta}


def lacks(block: torch.nn.Module, *, for_prompts: bool) -> set[str]:
    """Return the names of the matrices of `block` that are not there, of those that its walk should bring."""
    return {name for name in absent(block) if (name in PROMPT_MATRICES) == for_prompts}


@pytest.mark.parametrize("placement", [Placement(prompt_matrices=False), Placement("stream")], ids=lambda one: one.mode)
def test_matrices_for_prompts_are_gone_once_a_prompt_is_embedded(placement, folder_of):
    """With the slots that they come through, and the threads that read them. A walk that is given up leaves nothing
    behind either, and each embedding gives the bits of a model in memory."""
    models, whole = (models_at(folder_of("distilled"), way) for way in (placement, Placement()))
    text, again, shorter = (("a red circle", 1.0),), (("a red circle", 0.5), ("blue", 0.5)), (("blue", 1.0),)
    for one in (models, whole):
        with torch.inference_mode():
            one.encode(["a red circle", "blue"])
    stream = models.dit.walk_for_prompts.__self__
    for weighted in (text, again, shorter, text):
        with torch.inference_mode():
            found, expected = models.embed_text(weighted), whole.embed_text(weighted)
        assert torch.equal(found.keys, expected.keys) and torch.equal(found.values, expected.values)
        assert not stream._slots and not stream._loads and not stream._readers._threads
        assert all(lacks(block, for_prompts=True) == set(PROMPT_MATRICES) for block in models.dit.blocks)
    walk = models.dit.visit_for_prompts()
    next(walk)
    assert stream._slots and stream._readers._threads
    walk.close()
    assert not stream._slots and not stream._readers._threads
    assert stream.blocks_read[-1] == 4 and stream.blocks_read[0] == 5


def test_a_part_that_comes_finds_no_slots_of_the_one_that_goes(folder_of):
    """VAE or text encoder: their plan is made without the transformer's blocks."""
    models = models_at(folder_of("distilled"), PLACEMENTS["in turns"])
    for come in (lambda: models.vae, lambda: models.encode(["a red circle"])):
        list(models.dit.visit())
        assert models.stream._slots and models.stream._loads
        with torch.inference_mode():
            come()
        assert not models.stream._slots and not models.stream._loads


@pytest.mark.parametrize("beside", [False, True])
def test_the_text_encoder_comes_beside_the_others_where_that_is_planned(beside, folder_of):
    models = models_at(folder_of("distilled"), Placement(text_beside=beside))
    weight = models.dit.proj_out.weight
    with torch.inference_mode():
        models.encode(["a red circle"])
    assert (models.dit.proj_out.weight is weight) == beside
    assert not models.dit.proj_out.weight.is_meta


def test_a_next_film_needs_no_other_weights_for_a_word_about_the_text_encoder(folder_of):
    models = models_at(folder_of("distilled"), Placement())
    dit = models.dit
    models.place(Placement(text_beside=True))
    assert models.dit is dit
    models.place(Placement("model"))
    assert models.dit is not dit


def test_an_abandoned_walk_does_not_disturb_the_next(folder_of):
    models = models_at(folder_of("distilled"), Placement("stream"))
    whole = Checkpoint.open(folder_of("distilled"))
    resident = Models(whole, CPU, torch.float32).dit
    for stop in (0, 1, 3, None, 2, None):
        for walk in (models.dit.visit, models.dit.visit_for_prompts):
            for index, block in enumerate(walk()):
                for name, value in block.named_parameters():
                    if not value.is_meta:
                        assert torch.equal(value, resident.blocks[index].get_parameter(name)), (stop, index, name)
                assert block.attn2.to_k.weight.is_meta == (walk == models.dit.visit) != block.attn2.to_q.weight.is_meta
                if index == stop:
                    break


@pytest.fixture
def copy(folder_of, tmp_path):
    shutil.copytree(folder_of("distilled"), tmp_path / "model")
    return tmp_path / "model"


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def first_chunk(models: Models, out: Path):
    """A render of three chunks that has done its first one, and the writer."""
    plan = ended_early(plan_of(case_of("distilled", chunks=3)))
    events = render_chunks(plan, models, open_writer(f"{out}/", size=plan.size, fps=plan.fps))
    for event in events:
        if isinstance(event, ChunkDone):
            return events
    raise AssertionError


@pytest.mark.slow
def test_a_file_that_is_removed_is_read_to_the_end(copy, folder_of, resident, tmp_path):
    events = first_chunk(models_at(copy, Placement("stream")), tmp_path / "film")
    shutil.rmtree(copy)
    list(events)
    frames = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "film").glob("*.png"))])
    assert np.array_equal(frames, resident(case_of("distilled", chunks=3), folder_of("distilled"), torch.float32))


@pytest.mark.parametrize("name", some(2, ["stream", "model, all read ahead", "model"]))
@pytest.mark.parametrize("kept", some(1, [0.5, 0]))
def test_a_file_that_is_cut_short_ends_the_film_with_its_name(name, kept, copy, tmp_path):
    events = first_chunk(models_at(copy, PLACEMENTS[name]), tmp_path / "film")
    os.truncate(copy / WEIGHTS, int(kept * (copy / WEIGHTS).stat().st_size))
    with pytest.raises(CheckpointError, match=r"transformer.diffusion_pytorch_model\.safetensors: (truncated|changed)"):
        list(events)


def test_a_file_that_is_written_over_ends_the_film(copy, tmp_path):
    events = first_chunk(models_at(copy, Placement("stream")), tmp_path / "film")
    with (copy / WEIGHTS).open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        list(events)


@pytest.mark.parametrize("cached", [None, 10**9])
def test_a_text_encoder_does_not_stay_in_a_page_cache_that_is_too_small(cached, folder_of, monkeypatch):
    """It is read once; the transformer, of which so much stays, at each step."""
    forgotten = []
    monkeypatch.setattr(WeightFiles, "forget", lambda self, place: forgotten.append(place.info.name))
    models = models_at(folder_of("distilled"), Placement("stream", cached_bytes=cached))
    with torch.inference_mode():
        models.encode(["a red circle"])
    list(models.dit.visit())
    layers = {name.split(".")[2] for name in forgotten if name.startswith("encoder.block.")}
    assert len(layers) == (0 if cached is None else models.text_config.num_layers)
    assert all(name.startswith("encoder.") for name in forgotten)


def test_several_prompts_are_read_in_one_walk(folder_of):
    """Each prompt gives the rows that it gives alone."""
    texts = ["a red circle", "the green square moves slowly left", "blue"]
    streamed, whole = (models_at(folder_of("distilled"), Placement(mode)) for mode in ("stream", "none"))
    with torch.inference_mode():
        streamed.encode(texts)
        whole.encode(texts)
    for text in texts:
        assert torch.equal(streamed.prompts[text].rows, whole.prompts[text].rows)


@pytest.mark.slow
@pytest.mark.parametrize("placement", [Placement(), *PLACEMENTS.values()], ids=["none", *PLACEMENTS])
def test_models_that_nobody_holds_are_gone_at_once(placement, folder_of, tmp_path):
    """Not when the garbage collector comes by: the next ones need the memory."""
    models = models_at(folder_of("distilled"), placement)
    frames_of(case_of("distilled", chunks=1), models, tmp_path / "film")
    gone = weakref.ref(models.dit)
    del models
    assert gone() is None
