"""Contact sheets: films of the weights of the moment, equal to those the engine makes from a checkpoint on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.model.dit import HeliosDiT
from helios_cli.train.samples import Row, Sampler, held_out_prompts, save_sheet
from helios_cli.train.settings.run import Samples
from helios_cli.train.world.captions import attributes
from helios_cli.train.world.palette import held_out
from helios_cli.weights.checkpoint import MODEL_INDEX, Checkpoint
from helios_cli.weights.load import load_component
from support.renders import Case, plan_of, rendered

SIZE = (64, 64)
CPU = torch.device("cpu")
PROMPTS = ("a red circle moves left", "a blue star on green")


def transformer_of(model: Path) -> HeliosDiT:
    """Load the transformer as a trainer does: in float32, with gradients."""
    part = Checkpoint.open(model).component("transformer")
    with torch.device("meta"):
        module = HeliosDiT(DiTConfig.from_json(part.config))
    return load_component(module, part, device="cpu", dtype=torch.float32).requires_grad_(True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps", "guidance", "films"),
    [("base", (2,), 2.0, 1), ("mid", (1, 1, 2), 2.0, 1), ("distilled", (1, 1, 1), 1.0, 2)],
)
def test_pictures_are_those_of_the_engine(tmp_path, kind, steps, guidance, films):
    """The sampler begins with a checkpoint of another kind and another transformer, as a phase of training does."""
    model = write_checkpoint(tmp_path / "model", SPECS["tiny"], kind=kind)
    index = json.loads((model / MODEL_INDEX).read_text())
    (model / MODEL_INDEX).write_text(json.dumps({**index, "is_cfg_zero_star": False}))
    other = write_checkpoint(tmp_path / "other", SPECS["tiny"], kind="mid" if kind == "base" else "base", seed=7)
    for part in ("vae", "text_encoder"):
        for file in (model / part).iterdir():
            (other / part / file.name).write_bytes(file.read_bytes())
    samples = Samples(prompts=PROMPTS[:films], chunks=2, pictures=3, steps=steps, guidance=guidance, seed=3)
    transformer = transformer_of(model)
    sampler = Sampler(Checkpoint.open(other), kind, samples, SIZE, CPU, torch.float32)
    rows = sampler.rows(transformer.state_dict())
    assert len(rows) == films
    for number, row in enumerate(rows):
        case = Case(kind, SIZE, steps, chunks=2, prompt=PROMPTS[number], negative="", seed=3 + number)
        plan = replace(plan_of(case), guidance=guidance)
        film = rendered(case, model, tmp_path / f"film{number}", plan=plan)
        assert (row.caption, row.fault, list(row.pictures)) == (PROMPTS[number], "", [0, 32, 65])
        for moment, picture in row.pictures.items():
            assert np.array_equal(picture, film[moment])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), SPECS["tiny"])


def sampler_of(model: Path, **samples) -> Sampler:
    settings = Samples(prompts=PROMPTS[:1], chunks=1, pictures=2, steps=(1, 1, 1), **samples)
    return Sampler(Checkpoint.open(model), "distilled", settings, SIZE, CPU, torch.bfloat16)


def test_training_is_left_as_it_is(model, tmp_path):
    transformer = transformer_of(model)
    before = {name: value.detach().clone() for name, value in transformer.named_parameters()}
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    threads = torch.get_num_threads()
    sampler_of(model).sheet(tmp_path / "samples/sheet.png", transformer.state_dict())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.get_num_threads() == threads
    for name, value in transformer.named_parameters():
        assert torch.equal(value, before[name]) and value.requires_grad and not value.is_inference()
    assert Image.open(tmp_path / "samples/sheet.png").format == "PNG"


@pytest.mark.slow
def test_each_sheet_shows_the_weights_it_is_given(model):
    sampler, state = sampler_of(model), transformer_of(model).state_dict()
    first = sampler.rows(state)[0].pictures[32]
    changed = {name: value * 1.5 if name == "proj_out.weight" else value for name, value in state.items()}
    second = sampler.rows(changed)[0].pictures[32]
    assert not np.array_equal(first, second)
    assert np.array_equal(sampler.rows(state)[0].pictures[32], first)


def test_a_broken_network_makes_a_sheet_that_says_so(model, tmp_path):
    state = transformer_of(model).state_dict()
    state["proj_out.weight"] = state["proj_out.weight"] * float("nan")
    sampler = sampler_of(model)
    (row,) = sampler.rows(state)
    assert "not finite" in row.fault and not row.pictures
    sampler.sheet(tmp_path / "sheet.png", state)
    assert (tmp_path / "sheet.png").exists()


def test_a_sheet_has_a_row_a_film_and_a_column_a_moment(tmp_path):
    dice = np.random.default_rng(0)
    rows = [Row(f"film {i}", {m: dice.integers(0, 256, (64, 128, 3), np.uint8) for m in (0, 9)}) for i in range(3)]
    save_sheet(tmp_path / "sheet.png", "title", rows, (128, 64), [0, 9])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for row in rows:
        tops, lefts = [], []
        for picture in row.pictures.values():
            at = np.argwhere((sheet[:-63, :-127] == picture[0, 0]).all(axis=2))
            (found,) = [(y, x) for y, x in at if np.array_equal(sheet[y : y + 64, x : x + 128], picture)]
            tops.append(found[0])
            lefts.append(found[1])
        assert tops[0] == tops[1] and lefts[0] < lefts[1]
        beside = sheet[tops[0] : tops[0] + 64, : lefts[0]]
        assert beside.min() < 100  # ink


def test_held_out_prompts_are_never_trained_on():
    prompts = held_out_prompts(32, 0)
    assert len(set(prompts)) == 32
    for prompt in prompts:
        said = attributes(prompt)
        assert held_out(said.colour, said.shape, said.motion), prompt
