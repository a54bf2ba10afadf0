"""Encoding clips of the toy world, each determined by its number.

Length and variety are drawn clip by clip, so the first clips are the same mixture as all of them: training can begin
as soon as there are some, and more can be added later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helios_cli.train.data.cache import EncodedClip, open_cache, shard_path, write_shard
from helios_cli.train.data.encode import ClipEncoder
from helios_cli.train.events import Filled
from helios_cli.train.settings.encoders import WorldClips
from helios_cli.train.world.captions import describe
from helios_cli.train.world.draw import render
from helios_cli.train.world.scene import Scene, draw_scene
from helios_cli.units import FRAMES_PER_CHUNK

CLIPS_PER_SHARD = 64


@dataclass(frozen=True)
class ShardWritten(Filled):
    """`done` of `total` clips are in the cache; the last shard has `chunks` chunks and took `seconds`."""

    chunks: int
    seconds: float

    @property
    def text(self) -> str:
        return f"{self.done:,} of {self.total:,} clips, {self.seconds / self.chunks:.3f} s a chunk"


def encode_world(
    folder: Path, world: WorldClips, seed: int, encoder: ClipEncoder, part: tuple[int, int] = (0, 1)
) -> Iterator[ShardWritten]:
    """Write the shards that the cache in `folder` lacks. `part`: (rank, count) of the processes that share them."""
    source = {"clips": f"toy world, {world.split}", "seed": str(seed)}
    source |= {name: str(getattr(world, name)) for name in ("long", "chunks", "changes", "rich")}
    open_cache(folder, encoder.note(source), encoder.rows([""])[""])
    paths = [shard_path(folder, f"world-{number:06d}") for number in range(-(-world.clips // CLIPS_PER_SHARD))]
    for number, path in enumerate(paths):
        if path.exists() or number % part[1] != part[0]:
            continue
        first = number * CLIPS_PER_SHARD
        began = time.perf_counter()
        clips = [draw_clip(world, seed, first + i) for i in range(CLIPS_PER_SHARD)]
        chunks = (chunk for clip in clips for chunk in clip.chunks(encoder.size))
        latents = encoder.latents(chunks, mixed(seed, first))
        rows = encoder.rows(caption for clip in clips for caption in clip.captions)
        parts = latents.split([len(clip.captions) for clip in clips])
        encoded = [EncodedClip(part, clip.captions) for part, clip in zip(parts, clips, strict=True)]
        write_shard(path, encoded, rows)
        done = CLIPS_PER_SHARD * sum(path.exists() for path in paths)
        yield ShardWritten(done, CLIPS_PER_SHARD * len(paths), len(latents), time.perf_counter() - began)


@dataclass(frozen=True)
class ToyClip:
    """A scene, and a caption for each of its chunks."""

    scene: Scene
    captions: tuple[str, ...]

    def chunks(self, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Yield each chunk, float32 [3, 33, H, W] in [-1, 1], in `size` (width, height)."""
        for chunk in range(len(self.captions)):
            pixels = render(self.scene, FRAMES_PER_CHUNK, chunk * FRAMES_PER_CHUNK, *size)
            yield (pixels.astype(np.float32) / 255 * 2 - 1).transpose(3, 0, 1, 2)


def draw_clip(world: WorldClips, seed: int, number: int) -> ToyClip:
    """Return clip `number` of a seed."""
    dice = np.random.default_rng([seed, number])
    chunks = world.chunks if dice.random() < world.long else 1
    variety = "rich" if dice.random() < world.rich else "plain"
    words = int(dice.integers(2**31))
    borders = [chunk * FRAMES_PER_CHUNK for chunk in range(1, chunks)]
    changes = tuple(border for border in borders if dice.random() < world.changes)
    scene = draw_scene(mixed(seed, number), split=world.split, variety=variety, changes=changes)
    middles = (chunk * FRAMES_PER_CHUNK + FRAMES_PER_CHUNK // 2 for chunk in range(chunks))
    shown = ([segment for segment in scene.segments if segment.start <= middle][-1] for middle in middles)
    return ToyClip(scene, tuple(describe(segment, words) for segment in shown))


def mixed(seed: int, number: int) -> int:
    """Return a different seed for each number."""
    return (seed * 1_000_003 + number) % 2**31
