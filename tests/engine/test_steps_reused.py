"""Steps whose flow is extrapolated: which they are, that the plan counts the others, and that one film repeats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helios_cli.cost import work
from helios_cli.cost.model import model_of
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.denoise import Flows
from helios_cli.errors import InputError
from helios_cli.film.writer import open_writer
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import has_calls
from helios_cli.recipe.settings import resolve_settings
from helios_cli.recipe.sources import read_films
from helios_cli.weights.checkpoint import Checkpoint
from support.renders import Case, models_of, plan_of

SIZE = (64, 64)


def plan_with(kind: str, steps: tuple[int, ...], every: int, chunks: int = 2):
    return replace(plan_of(Case(kind, SIZE, steps, chunks=chunks)), reuse_steps=every)


def rendered(plan, models, out, **how) -> np.ndarray:
    list(render_chunks(plan, models, open_writer(f"{out}/", size=plan.size, fps=plan.fps), **how))
    return np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(8, 1, "CCCCCCCC"), (8, 2, "CC.C.C.C"), (8, 3, "CC..C..C"), (4, 2, "CC.C"), (3, 8, "CCC"), (2, 2, "CC")],
)
def test_the_first_two_steps_and_the_last_make_calls(steps, every, expected):
    assert "".join("C" if has_calls(step, steps, every) else "." for step in range(steps)) == expected


@pytest.mark.parametrize(
    ("kind", "steps", "every", "made"),
    [
        ("base", (8,), 2, 5),
        # The first two of stage 0 are zero-init: five are left.
        pytest.param("mid", (7, 4, 3), 2, 4 + 3 + 3, marks=pytest.mark.slow),
        pytest.param("mid", (7, 4, 3), 3, 3 + 3 + 3, marks=pytest.mark.slow),
    ],
)
def test_the_plan_counts_the_calls_that_are_made(kind, steps, every, made, checkpoints, tmp_path):
    """Nothing passes to the next chunk, or to the next stage, whose flows are of another size."""
    models, calls = models_of(checkpoints(kind)), []

    def noting(asked):
        if asked:  # a placement is made ready without any
            calls.append(len(asked))
        return models.answer(asked)

    plan = plan_with(kind, steps, every)
    frames = rendered(plan, models, tmp_path / "some", answer=noting)
    branches = 2 if plan.guidance > 1 else 1
    assert calls == [branches] * made * 2
    load = Workload(plan, model_of(kind, models.checkpoint), Device("cpu", "CPU", None, None), "float32")
    assert load.work.calls == sum(calls)
    exact = replace(plan, reuse_steps=1)
    assert load.work.denoise < work.work_of(exact, load.model, "float32").denoise
    assert np.array_equal(frames, rendered(plan, models, tmp_path / "again"))
    assert not np.array_equal(frames, rendered(exact, models, tmp_path / "exact"))


def test_a_flow_that_is_a_line_is_extrapolated_exactly():
    """Only the last two count."""
    torch.manual_seed(0)
    start, slope = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    flows = Flows()
    flows.keep(1.0, torch.full_like(start, 7).bfloat16())
    for sigma in (0.9, 0.75):
        flows.keep(sigma, (start + sigma * slope).float())
    for sigma in (0.7, 0.3):
        torch.testing.assert_close(flows.at(sigma).double(), start + sigma * slope, rtol=0, atol=2e-6)


def test_steps_of_which_none_is_saved_are_refused(checkpoints):
    recipe = read_films(["a red ball"])[0].recipe
    defaults = {kind: Checkpoint.open(checkpoints(kind)).defaults for kind in ("mid", "distilled")}
    assert resolve_settings(recipe, RenderOptions(reuse_steps=2), defaults["mid"]).reuse_steps == 2
    with pytest.raises(InputError, match="--reuse-steps: with steps 2,2,2 each one makes model calls"):
        resolve_settings(recipe, RenderOptions(reuse_steps=2), defaults["distilled"])
    with pytest.raises(InputError, match="--reuse-steps 9: must be 1 to 8"):
        resolve_settings(recipe, RenderOptions(reuse_steps=9), defaults["mid"])
