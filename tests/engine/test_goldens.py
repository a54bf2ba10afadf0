"""Whole renders of every kind against what diffusers made of them, which is kept: `python tests/golden/make.py`.

tests/engine/test_parity.py shows that they are still diffusers', and has the bounds' reasons.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from golden import make as golden
from support.renders import differing, latents_of, rendered


@pytest.mark.parametrize("name", golden.FILMS)
def test_latents_and_frames_are_those_of_diffusers(name, checkpoints, tmp_path):
    expected, case = golden.kept(name), golden.case_in(tmp_path, name)
    with latents_of() as latents:
        frames = rendered(case, checkpoints(case.kind), tmp_path / "f")
    torch.testing.assert_close(torch.cat(latents, dim=2), torch.from_numpy(expected["latents"]), atol=1e-3, rtol=0)
    assert expected["frames"].std() > 20, "the picture is flat: the test would see nothing"
    assert differing(frames[list(golden.SHOWN)], expected["frames"]) <= 1e-3


@pytest.mark.parametrize("change", [{"prompt": "the green square"}, {"seed": 8}], ids=["prompt", "seed"])
def test_another_film_is_another(change, checkpoints, tmp_path):
    case = replace(golden.FILMS["distilled"], chunks=1, **change)
    frames = rendered(case, checkpoints("distilled"), tmp_path / "f")
    assert differing(frames[:1], golden.kept("distilled")["frames"][:1]) > 0.1
