"""A film that is killed at any step that makes something last, and gone on with. No model: a chunk is seeded noise.

The noise of a chunk depends on the state that the chunk before it left, as a chunk's latents do, so that a run which
continues with a wrong state, or at a wrong place, makes other frames.
tests/film/test_resume.py does the same with a model.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from helios_cli.film.after import After
from helios_cli.film.cache import Cache
from helios_cli.film.resume import Wanted
from helios_cli.film.target import Target
from helios_cli.film.writer import Safe, open_writer
from helios_cli.recipe.options import RenderOptions
from support.reruns import KillAt, decoded, in_child, journaled, plan

SIZE = (32, 32)
FILM = plan(("a", 5, 1), ("a", 3, None), ("b", 4, 2), size=SIZE)
"""Three chunks; the last is a cut."""
FINGERPRINTS = [f"{index:x}" * 64 for index in range(3)]


def noise(state: bytes, frames: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(state).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 256, (frames, SIZE[1], SIZE[0], 3), np.uint8)


def make(out: Path, kept: Cache | None = None, through: str | None = None) -> list[int]:
    """Run the film to its end, from where an earlier run left it. Returns the chunks that were made."""
    made = []
    after = After.of(RenderOptions(through=through), SIZE, 24, Target.of(out).kind)
    with open_writer(out, size=SIZE, fps=24, after=after) as writer:
        resumed = writer.resume(Wanted(FILM.chunks, FINGERPRINTS, {}), kept)
        state = resumed.state
        for chunk in FILM.chunks[resumed.chunks :]:
            fingerprint = FINGERPRINTS[chunk.index]
            state = b"cut" if chunk.fresh else state
            frames = noise(state, chunk.num_frames)
            state = hashlib.sha256(state + frames.tobytes()).digest()
            safe = Safe(fingerprint, lambda state=state: state)
            if not (kept and kept.state(fingerprint) == state and writer.take_kept(safe, chunk.num_frames)):
                made.append(chunk.index)
                writer.write(frames)
                writer.end_piece(safe)
    return made


def contents(path: Path) -> list[bytes]:
    """The bytes of a film, or of the pictures in a folder; the frames of an .mkv, which has an identity of its own."""
    if path.suffix == ".mkv":
        return [decoded(path, SIZE).tobytes()]
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


@pytest.mark.parametrize(
    ("suffix", "torn", "cached"),
    [
        pytest.param(".mp4", True, True, id="mp4, torn, with a cache", marks=pytest.mark.slow),
        pytest.param(".mkv", False, False, id="mkv", marks=pytest.mark.slow),
        pytest.param("", True, False, id="pictures, torn"),
        pytest.param(".mp4", False, False, id="mp4", marks=pytest.mark.slow),
        pytest.param(".mkv", True, True, id="mkv, torn, with a cache", marks=pytest.mark.slow),
        pytest.param("", False, True, id="pictures, with a cache", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_step_that_makes_something_last(suffix, torn, cached, tmp_path):
    """SIGKILL at the n-th fsync, rename or unlink, for every n; `torn` cuts the file off that was being synced."""
    make(tmp_path / f"whole{suffix}")
    whole, film = decoded(tmp_path / f"whole{suffix}", SIZE), contents(tmp_path / f"whole{suffix}")
    assert len(whole) == FILM.num_frames
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        folder.mkdir()
        out, kept = Path(f"{folder}/film{suffix}"), Cache(folder / "cache") if cached else None
        if not in_child(lambda n=step, out=out, kept=kept: (KillAt(n, torn=torn), make(out, kept))):
            break
        safe, finished = journaled(out), out.exists()
        partial = out if finished else Target.of(out).partial
        frames = FILM.num_frames if finished else sum(record["frames"] for record in safe)
        if frames:
            assert np.array_equal(decoded(partial, SIZE)[:frames], whole[:frames])
        made = make(out, kept)
        assert finished or not set(made) & set(range(len(safe))), "a chunk that was safe was made again"
        assert contents(out) == film
        assert sorted(os.listdir(folder)) == ["cache", out.name][not cached :]
    assert step > 20, "the steps were not met"


@pytest.mark.slow
def test_killed_at_any_step_of_a_film_that_goes_through_a_program(tmp_path):
    """As above; the growing film is lossless, so that another program makes no chunk again."""
    through = "tr '\\000-\\377' '\\377\\000-\\376'"  # 1 less, around 0
    make(tmp_path / "plain.mkv")
    plain = decoded(tmp_path / "plain.mkv", SIZE)
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        folder.mkdir()
        out, kept = folder / "film.mkv", Cache(folder / "cache")
        if not in_child(lambda n=step, out=out, kept=kept: (KillAt(n, torn=True), make(out, kept, "cat"))):
            break
        safe, finished = journaled(out), out.exists()
        made = make(out, kept, through)
        assert not set(made) & set(range(len(FILM.chunks) if finished else len(safe)))
        assert np.array_equal(decoded(out, SIZE), plain - np.uint8(1))
        assert sorted(os.listdir(folder)) == ["cache", out.name]
    assert step > 20, "the steps were not met"
