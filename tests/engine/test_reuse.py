"""`--reuse-history`: which calls have history rows, what is kept, and where it cannot go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helios_cli.cost import work
from helios_cli.cost.memory import MemoryBudget, plan_memory
from helios_cli.cost.model import model_of
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.gpu import CallGraphs
from helios_cli.engine.models import Models
from helios_cli.errors import InputError
from helios_cli.film.writer import open_writer
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.settings import resolve_settings
from helios_cli.recipe.sources import read_films
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.placement import Placement
from support.renders import Case, models_of, plan_of
from support.tiers import some

CPU = torch.device("cpu")
SIZE = (64, 64)


def plan_with(kind: str, steps: tuple[int, ...], chunks: int = 2):
    return replace(plan_of(Case(kind, SIZE, steps, chunks=chunks)), reuse_history=True)


def rendered(plan, models, out, **how) -> np.ndarray:
    list(render_chunks(plan, models, open_writer(f"{out}/", size=plan.size, fps=plan.fps), **how))
    return np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])


@pytest.mark.parametrize(
    ("kind", "steps", "chunks"),
    some(
        2,
        [
            ("distilled", (1, 1, 1), ["WWhhhh", "Whh"]),  # the first chunk's steps are doubled
            ("mid", (2, 2, 1), ["Whh", "Whh"]),  # without a call in the coarsest stage the first computes the history
            ("distilled", (2, 1, 1), ["WWWWhhhh", "WWhh"]),
            ("mid", (3, 1, 1), ["Whh", "Whh"]),  # zero-init: a flow of zero is no call
        ],
    ),
)
def test_calls_of_the_coarsest_stage_compute_the_history(kind, steps, chunks, checkpoints, tmp_path):
    """Each branch keeps its own, and nothing passes to the next chunk. The plan counts the same calls, and the bytes
    that are kept."""
    models, made = models_of(checkpoints(kind)), []

    def noting(calls):
        if calls:
            made.append(calls)
        return models.answer(calls)

    plan = plan_with(kind, steps)
    rendered(plan, models, tmp_path, answer=noting)
    whole = models.dit_config.history_tokens(SIZE).total
    letters = "".join({0: "h", whole: "W"}[calls[0].history_BME.shape[1]] for calls in made)
    assert letters == "".join(chunks)
    pasts = [[id(call.past) for call in calls] for calls in made]
    branches = 2 if plan.guidance > 1 else 1
    assert all(len(set(one)) == branches for one in pasts)
    assert len({tuple(one) for one in pasts}) == len(chunks)
    load = Workload(plan, model_of(kind, models.checkpoint), Device("cpu", "CPU", None, None), "float32")
    assert load.work.calls == branches * len(letters)
    kept = sum(one.keys.nbytes + one.values.nbytes for call in made[-1] for one in call.past)
    assert kept == load.past_bytes
    exact = replace(plan, reuse_history=False)
    more, less = (plan_memory(replace(load, plan=one), MemoryBudget(), Placement()).phases[1] for one in (plan, exact))
    assert more.kept - less.kept == kept
    saved = work.work_of(exact, load.model, "float32").denoise - load.work.denoise
    assert 0 < saved < load.work.denoise


@pytest.mark.slow
@pytest.mark.parametrize("placement", [Placement("stream"), Placement("model", prompt_matrices=False)], ids=str)
@pytest.mark.parametrize("kind", ["distilled", pytest.param("mid", marks=pytest.mark.slow)])
def test_it_does_not_depend_on_the_placement(kind, placement, checkpoints, tmp_path):
    folder, plan = checkpoints(kind), plan_with(kind, (2, 1, 1))
    placed = Models(Checkpoint.open(folder), CPU, torch.float32, placement=placement)
    expected = rendered(plan, models_of(folder), tmp_path / "resident")
    assert np.array_equal(rendered(plan, placed, tmp_path / "placed"), expected)
    exact = rendered(replace(plan, reuse_history=False), models_of(folder), tmp_path / "exact")
    assert (exact != expected).any()


@pytest.mark.slow
def test_it_works_with_fp8(checkpoints, tmp_path):
    models = Models(Checkpoint.open(checkpoints("distilled")), CPU, torch.bfloat16, quant="fp8")
    frames = rendered(plan_with("distilled", (1, 1, 1)), models, tmp_path)
    assert frames.shape == (66, 64, 64, 3)


def test_its_calls_are_not_recorded(checkpoints, tmp_path):
    """A recording would write what it keeps to one place, and read it from there."""

    class Never:
        def __call__(self, work):
            raise AssertionError("recorded")

        def forget(self) -> None: ...

    models = models_of(checkpoints("distilled"))
    models.graphs = CallGraphs(Never())
    rendered(plan_with("distilled", (2, 1, 1)), models, tmp_path)
    assert models.graphs.replayed == 0 and models.graphs.problem is None


def test_models_of_one_stage_and_several_gpus_are_refused(checkpoints):
    recipe = read_films(["a red ball"])[0].recipe
    defaults = {kind: Checkpoint.open(checkpoints(kind)).defaults for kind in ("base", "distilled")}
    options = RenderOptions(reuse_history=True)
    assert resolve_settings(recipe, options, defaults["distilled"]).reuse_history
    with pytest.raises(InputError, match="--reuse-history: this model has one stage"):
        resolve_settings(recipe, options, defaults["base"])
    with pytest.raises(InputError, match="--reuse-history does not work with --gpus-per-film 2"):
        resolve_settings(recipe, replace(options, gpus_per_film=2), defaults["distilled"])
