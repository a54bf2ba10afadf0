"""The cache of latents: against diffusers and transformers, across processes, and through kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.engine.history import History
from helios_cli.errors import InputError
from helios_cli.train.config import load
from helios_cli.train.data.cache import CacheNote, EncodedClip, LatentClips, open_cache, shard_path, shards, write_shard
from helios_cli.train.data.encode import ClipEncoder, encoder_identity, require_same_encoder
from helios_cli.train.data.toy import CLIPS_PER_SHARD, draw_clip, encode_world, mixed
from helios_cli.train.events import FillDone, FillStarted
from helios_cli.train.loop import perform
from helios_cli.train.settings.encoders import WorldClips
from helios_cli.train.world.captions import attributes, labels
from helios_cli.train.world.draw import render
from helios_cli.weights.checkpoint import Checkpoint
from support.waiting import LONGEST, wait_until

pytestmark = pytest.mark.slow

SIZE = (32, 16)
CPU = torch.device("cpu")
WORLD = WorldClips(clips=2 * CLIPS_PER_SHARD, long=0.25)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), SPECS["tiny"])


def encoder_of(model: Path, dtype: torch.dtype = torch.float32) -> ClipEncoder:
    return ClipEncoder(Checkpoint.open(model), CPU, dtype, SIZE)


def chunks_of(clips: LatentClips, index: int) -> torch.Tensor:
    """Return the latents of a clip's chunks, [n, C, 9, h, w]."""
    return clips.batch([(index, chunk) for chunk in range(clips.lengths[index])]).latents


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory) -> Path:
    """Two shards, float32."""
    folder = tmp_path_factory.mktemp("cache")
    events = list(encode_world(folder, WORLD, 5, encoder_of(model)))
    assert [event.done for event in events] == [64, 128]
    return folder


@pytest.mark.oracle
def test_latents_are_those_of_diffusers(model, cache):
    """The chunks of a shard, which at this size are encoded together: each a clip of its own to the VAE."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(model / "vae")
    clips = LatentClips(cache)
    ours, pixels = [], []
    for number in range(CLIPS_PER_SHARD):
        clip = draw_clip(WORLD, 5, number)
        film = render(clip.scene, 33 * len(clip.captions), 0, *SIZE)
        pixels += list(torch.from_numpy(film).float().view(-1, 33, *film.shape[1:]) / 127.5 - 1)
        ours += list(chunks_of(clips, number))
    frames = torch.stack(pixels).movedim(-1, 1)
    with torch.inference_mode():
        posterior = vae.encode(frames).latent_dist
        theirs = posterior.sample(generator=torch.Generator().manual_seed(mixed(5, 0)))
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    expected = (theirs - mean) / std
    assert len(pixels) > CLIPS_PER_SHARD  # some of the clips have more than one chunk
    # Half a unit in the last place of float16 at the size of the values, plus the float32 difference of the VAEs.
    torch.testing.assert_close(torch.stack(ours), expected, rtol=2**-11, atol=1e-4)


@pytest.mark.oracle
def test_rows_are_those_of_transformers(model, cache):
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

    encoder = UMT5EncoderModel.from_pretrained(model / "text_encoder")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model / "tokenizer")
    clips = LatentClips(cache)
    batch = clips.batch([(0, 0), (1, 0)])
    for rows, caption in [*zip(batch.rows, batch.captions, strict=True), (clips.empty_rows(), "")]:
        with torch.inference_mode():
            expected = encoder(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(rows[: len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert not rows[len(expected) :].any()


def test_a_batch_holds_what_the_engine_would_remember(cache):
    clips = LatentClips(cache)
    long = clips.lengths.index(3)
    history = History.empty(16, 2, 4, CPU)
    for number, chunk in enumerate(chunks_of(clips, long)[:, None]):
        batch = clips.batch([(0, 0), (long, number)])
        assert torch.equal(batch.latents[1], chunk[0])
        assert torch.equal(batch.past[1], history.latents[0])
        anchor = torch.zeros(16, 1, 2, 4) if history.anchor is None else history.anchor[0]
        assert torch.equal(batch.anchor[1], anchor)
        history.remember(chunk)


def test_any_beginning_is_a_mixture(cache):
    lengths = LatentClips(cache).lengths
    for first in (0, 32, 64, 96):
        part = lengths[first : first + 32]
        assert set(part) == {1, 3}
        # 8 expected; less than 1 in 1000 shards of 32 is outside.
        assert 1 <= part.count(3) <= 17


@pytest.mark.slow
def test_more_clips_are_added_and_nothing_else_is_touched(model, cache, tmp_path):
    """The first of the two shards alone, then both: the same bytes."""
    for clips in (1, 65):
        made = list(encode_world(tmp_path, WorldClips(clips=clips, long=0.25), 5, encoder_of(model)))
        assert len(made) == 1
    assert [path.read_bytes() for path in shards(tmp_path)] == [path.read_bytes() for path in shards(cache)]


CONFIG = """
phase = "latents"
start = "{start}"
out = "{out}"
seed = 5
dtype = "float32"
size = [32, 16]
[world]
clips = {clips}
long = 0.25
"""


def test_several_processes_share_the_shards(model, cache, tmp_path, monkeypatch):
    """The second of two makes the second shard, as one process alone does, and says how far they are together."""
    config = tmp_path / "latents.toml"
    config.write_text(CONFIG.format(start=model, out=tmp_path / "cache", clips=2 * CLIPS_PER_SHARD))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    started, written, done = perform(load(config), CPU)
    assert isinstance(started, FillStarted) and "on cpu in float32 in 2 processes" in started.text
    assert (written.done, written.total) == (CLIPS_PER_SHARD, 2 * CLIPS_PER_SHARD)
    assert isinstance(done, FillDone)
    (path,) = shards(tmp_path / "cache")
    assert path.read_bytes() == shards(cache)[1].read_bytes()


@pytest.mark.process
def test_a_reader_sees_whole_shards_while_they_are_written_and_a_kill_costs_one(model, cache, tmp_path):
    out, config = tmp_path / "cache", tmp_path / "latents.toml"
    config.write_text(CONFIG.format(start=model, out=out, clips=2 * CLIPS_PER_SHARD))
    command = [sys.executable, "-m", "helios_cli", "train", str(config), "--quiet", "--device", "cpu"]
    writer = subprocess.Popen(command)
    try:
        wait_until(lambda: shards(out) or writer.poll() is not None)
        reader = LatentClips(out)
        assert len(reader) % CLIPS_PER_SHARD == 0
        first = chunks_of(reader, 3)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    subprocess.run(command, check=True, timeout=LONGEST)
    reader.refresh()
    assert len(reader) == 2 * CLIPS_PER_SHARD
    assert torch.equal(chunks_of(reader, 3), first)
    # Same as in a process that nobody killed, to the last bit.
    assert [path.read_bytes() for path in shards(out)] == [path.read_bytes() for path in shards(cache)]


def test_other_settings_are_refused_by_name(model, cache):
    before = sorted(path.name for path in cache.iterdir())
    with pytest.raises(InputError, match=r"rich was 0\.0, is 0\.5"):
        next(encode_world(cache, WORLD.model_copy(update={"rich": 0.5}), 5, encoder_of(model)))
    with pytest.raises(InputError, match=r"dtype was torch\.float32, is torch\.bfloat16"):
        next(encode_world(cache, WORLD, 5, encoder_of(model, torch.bfloat16)))
    assert sorted(path.name for path in cache.iterdir()) == before


@pytest.mark.parametrize(
    ("component", "tensor", "same"),
    [
        ("vae", "encoder.conv_in.weight", False),
        ("vae", "quant_conv.bias", False),
        ("vae", "decoder.conv_in.weight", True),
        ("text_encoder", "shared.weight", False),
        ("transformer", "proj_out.weight", True),
    ],
)
def test_a_cache_belongs_to_what_encoded_it(model, cache, tmp_path, component, tensor, same):
    """One number of one tensor is changed, with its size and names left."""
    other = write_checkpoint(tmp_path, SPECS["tiny"])
    file = next((other / component).glob("*.safetensors"))
    state = load_file(file)
    state[tensor].view(-1)[0] += 0.5
    save_file(state, file, metadata={"format": "pt"})
    if same:
        require_same_encoder(LatentClips(cache), Checkpoint.open(other))
        return
    with pytest.raises(InputError, match="another VAE or text encoder"):
        require_same_encoder(LatentClips(cache), Checkpoint.open(other))
    with pytest.raises(InputError, match="another"):
        next(encode_world(cache, WORLD, 5, encoder_of(other)))


def test_the_scale_of_latents_is_part_of_the_identity(model):
    checkpoint = Checkpoint.open(model)
    vae = checkpoint.component("vae")
    config = {**vae.config, "latents_std": [std / 2 for std in vae.config["latents_std"]]}
    other = replace(checkpoint, components={**checkpoint.components, "vae": replace(vae, config=config)})
    assert encoder_identity(other) != encoder_identity(checkpoint)


NOTE = CacheNote(encoder="x", source={}, latent_shape=(16, 8, 16), text_dim=4)
ROWS = {"a": torch.ones(3, 4), "b": torch.full((2, 4), 2.0)}


def test_each_chunk_keeps_its_own_caption(tmp_path):
    open_cache(tmp_path, NOTE, torch.zeros(1, 4))
    latents = torch.randn(3, 16, 9, 8, 16)
    write_shard(shard_path(tmp_path, "one"), [EncodedClip(latents, ("a", "b", "a"))], ROWS)
    batch = LatentClips(tmp_path, text_rows=3).batch([(0, 0), (0, 1), (0, 2)])
    assert batch.captions == ["a", "b", "a"]
    expected = torch.stack([ROWS["a"], torch.cat([ROWS["b"], torch.zeros(1, 4)]), ROWS["a"]])
    assert torch.equal(batch.rows, expected)
    with pytest.raises(InputError, match="room for 2") as error:
        LatentClips(tmp_path, text_rows=2)
    assert "text_rows" in error.value.hint


def test_values_that_float16_cannot_hold_are_an_error(tmp_path):
    for value in (1e5, float("nan")):
        with pytest.raises(InputError, match="not finite"):
            clip = EncodedClip(torch.full((1, 16, 9, 8, 16), value), ("a",))
            write_shard(shard_path(tmp_path, "one"), [clip], ROWS)
    assert not list(tmp_path.iterdir())


def test_what_is_no_cache_or_damaged_is_named(tmp_path):
    with pytest.raises(InputError, match="is not a cache") as error:
        LatentClips(tmp_path)
    assert "helios train" in error.value.hint
    open_cache(tmp_path, NOTE, torch.zeros(1, 4))
    path = shard_path(tmp_path, "one")
    write_shard(path, [EncodedClip(torch.zeros(1, 16, 9, 8, 16), ("a",))], ROWS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"one\.shard\.safetensors cannot be read"):
        LatentClips(tmp_path)
    path.unlink()
    # What a killed writer leaves is no shard.
    (tmp_path / f"{path.name}.123.new").write_bytes(b"half of it")
    assert len(LatentClips(tmp_path)) == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux what is in memory")
def test_reading_keeps_nothing_in_memory(tmp_path):
    """A shard of 30 MB: its bytes stay the file's, and only those of a batch become ours."""

    def own_megabytes() -> float:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1000

    open_cache(tmp_path, NOTE, torch.zeros(1, 4))
    clips = [EncodedClip(torch.zeros(1, 16, 9, 8, 16).half(), ("a",))] * 800
    write_shard(shard_path(tmp_path, "large"), clips, ROWS)
    del clips
    reader = LatentClips(tmp_path)
    reader.batch([(0, 0)])
    before = own_megabytes()
    for first in range(0, 800, 8):
        reader.batch([(i, 0) for i in range(first, first + 8)])
    assert own_megabytes() - before < 10


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "one of"),
        ('[world]\n[clips]\npath = "x"', "one of"),
        ("size = [100, 64]\n[world]", "multiple"),
        ("[world]\nlong = 2.0", "less than or equal to 1"),
    ],
)
def test_settings_say_what_is_wrong(tmp_path, lines, said):
    path = tmp_path / "latents.toml"
    path.write_text(f'phase = "latents"\nstart = "a"\nout = "b"\n{lines}\n')
    with pytest.raises(InputError, match=said):
        load(path)


def test_a_chunk_is_captioned_by_what_it_shows():
    """With a change at every border the captions name what the scene's segments are, each for its own 33 frames."""
    world = WorldClips(clips=1, long=1.0, changes=1.0)
    for number in range(20):
        clip = draw_clip(world, 5, number)
        assert [segment.start for segment in clip.scene.segments] == [0, 33, 66]
        for segment, caption in zip(clip.scene.segments, clip.captions, strict=True):
            assert attributes(caption) == labels(segment)


def test_scenes_change_with_the_number_and_not_otherwise():
    drawn = [draw_clip(WORLD, 5, number) for number in range(20)]
    assert drawn == [draw_clip(WORLD, 5, number) for number in range(20)]
    assert len({clip.scene for clip in drawn}) == 20
    pixels = np.concatenate([chunk for clip in drawn for chunk in clip.chunks(SIZE)])
    assert pixels.min() >= -1 and pixels.max() <= 1
