"""Whole renders against diffusers: the same checkpoint, settings and seed give the same frames in float32.

Bound: at most 0.1 % of the 8-bit samples are off by more than one level, latents within 1e-3. Both sides multiply in
float32 but sum in another order, which moves a value by some 1e-5 and now and then over a rounding threshold.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from golden import make as golden
from helios_cli.engine import history as history_module
from helios_cli.film.writer import open_writer
from support import oracle
from support.renders import Case, differing, latents_of, rendered, smooth_frames

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

STEPS = {"base": (3,), "mid": (3, 3, 3), "distilled": (2, 2, 2)}


@pytest.fixture(scope="module")
def references(pipelines):
    """Return a function that renders a case with diffusers, once."""
    known = {}

    def made(case: Case, solver: str = "unipc") -> np.ndarray:
        if (case, solver) not in known:
            known[case, solver] = oracle.reference(case, pipelines(case.kind, solver))
        return known[case, solver]

    return made


TEXT_CASES = [
    ("base", (128, 64), "unipc"),
    ("base", (64, 128), "euler"),
    ("base", (80, 48), "unipc"),
    ("base", (48, 112), "unipc"),
    ("mid", (128, 64), "unipc"),
    ("mid", (128, 192), "unipc"),
    ("mid", (128, 128), "euler"),
    ("distilled", (64, 128), "unipc"),
    ("distilled", (128, 64), "unipc"),
    ("distilled", (128, 192), "unipc"),
]


@pytest.mark.parametrize(
    ("kind", "size", "solver"), TEXT_CASES, ids=lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else v
)
def test_text_to_video(kind, size, solver, checkpoints, references, tmp_path):
    """Four chunks fill the history; of the large pictures two show that sizes are no matter."""
    case = Case(kind, size, STEPS[kind], chunks=2 if min(size) >= 128 else 4)
    folder = checkpoints(kind, solver)
    expected = references(case, solver)
    assert expected.std() > 20, "the picture is flat: the test would see nothing"
    assert differing(rendered(case, folder, tmp_path / "f"), expected) <= 1e-3


@pytest.mark.parametrize("kind", ["base", "mid", "distilled"])
def test_image_to_video(kind, checkpoints, pipelines, tmp_path):
    size = (128, 64)
    picture = Image.fromarray(smooth_frames(1, size, 3)[0])
    picture.save(tmp_path / "start.png")
    case = Case(kind, size, STEPS[kind], chunks=4 if kind == "distilled" else 2, image=tmp_path / "start.png")
    pipeline, folder = pipelines(kind), checkpoints(kind)
    expected = oracle.reference(case, pipeline, image=picture)
    frames = rendered(case, folder, tmp_path / "f")
    assert differing(frames, expected) <= 1e-3
    without = rendered(replace(case, image=None, chunks=1), folder, tmp_path / "g")
    assert differing(without, expected[:33]) > 0.1, "the picture does not matter"


@pytest.mark.parametrize(
    ("kind", "num_frames"), [("base", 38), ("mid", 70), ("distilled", 139)], ids=["base-1", "mid-2", "distilled-4"]
)
def test_video_continuation(kind, num_frames, checkpoints, pipelines, tmp_path):
    """Clips of one, two and four chunks: less history than 19 latents, and more. The last chunk of each film has a full
    history of clip and film."""
    size = (128, 128) if kind == "mid" else (64, 128)
    clip = smooth_frames(num_frames, size, 5)
    with open_writer(tmp_path / "clip.mkv", size=size, fps=24) as writer:
        writer.write(clip)
    case = Case(kind, size, STEPS[kind], chunks=3 if kind == "base" else 2, video=tmp_path / "clip.mkv")
    pipeline, folder = pipelines(kind), checkpoints(kind)
    expected = oracle.reference(case, pipeline, video=[Image.fromarray(frame) for frame in clip])
    assert differing(rendered(case, folder, tmp_path / "f"), expected) <= 1e-3


def test_reanchoring(checkpoints, pipelines, tmp_path):
    case = Case("distilled", (64, 64), (1, 1, 1), reanchor=True)
    pipeline, folder = pipelines("distilled"), checkpoints("distilled")
    expected = oracle.reference(case, pipeline)
    assert differing(rendered(case, folder, tmp_path / "f"), expected) <= 1e-3
    assert differing(rendered(replace(case, reanchor=False), folder, tmp_path / "g"), expected) > 1e-2


def test_history_amplification(checkpoints, pipelines, tmp_path):
    case = Case("distilled", (64, 64), (1, 1, 1))
    pipeline, folder = (made("distilled", is_amplify_history=True) for made in (pipelines, checkpoints))
    assert differing(rendered(case, folder, tmp_path / "f"), oracle.reference(case, pipeline)) <= 1e-3


@pytest.mark.parametrize("kind", ["base", "distilled"])
def test_latents(kind, checkpoints, pipelines, tmp_path):
    """All latents of the film within 1e-3, before any VAE or rounding."""
    case = Case(kind, (64, 64), STEPS[kind])
    pipeline, folder = pipelines(kind), checkpoints(kind)
    expected = oracle.reference_latents(case, pipeline)
    with latents_of() as latents:
        rendered(case, folder, tmp_path / "f")
    torch.testing.assert_close(torch.cat(latents, dim=2), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("cut", ["prompt", "history", "anchor", "seed"])
def test_parity_sees_every_input(cut, checkpoints, references, monkeypatch, tmp_path):
    """The comparison above fails as soon as one of the model's inputs is cut off."""
    case = Case("distilled", (128, 64), STEPS["distilled"])
    folder = checkpoints("distilled")
    expected = references(case)
    terms = history_module.History.terms

    def cut_terms(self):
        long, mid, short = terms(self)
        anchor, newest = short.split(1, dim=2)
        if cut == "history":
            long, mid, newest = torch.zeros_like(long), torch.zeros_like(mid), torch.zeros_like(newest)
        if cut == "anchor":
            anchor = torch.zeros_like(anchor)
        return long, mid, torch.cat([anchor, newest], dim=2)

    monkeypatch.setattr(history_module.History, "terms", cut_terms)
    if cut == "prompt":
        case = replace(case, prompt="the green square")
    if cut == "seed":
        case = replace(case, seed=8)
    frames = rendered(case, folder, tmp_path / "f")
    assert differing(frames, expected) > 0.1
    levels = np.abs(frames[: len(expected)].astype(int) - expected.astype(int)).mean()
    assert levels > 2, f"cutting the {cut} moves the picture by {levels:.2f} levels only"


@pytest.mark.parametrize("name", golden.FILMS)
def test_goldens_are_still_those_of_diffusers(name, pipelines, tmp_path):
    """The goldens that the default tier compares with are diffusers' output, up to the rounding of another
    processor."""
    kept = golden.kept(name)
    latents, frames = golden.their_film(name, pipelines, tmp_path)
    torch.testing.assert_close(latents, torch.from_numpy(kept["latents"]), atol=1e-4, rtol=0)
    assert differing(frames, kept["frames"]) <= 1e-4
