"""The recipes that come with helios: each is valid, teaches something, and stays in the small model's world."""

import re
from pathlib import Path

import pytest
from PIL import Image

from helios_cli.cli import main
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import plan_film
from helios_cli.recipe.settings import resolve_settings
from helios_cli.recipe.sources import read_films
from support.recipes import MODEL

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".toml", ".txt"))
WORLD = r"a (red|green|yellow|white) (circle|square|triangle)( moves (left|right|up|down))? over a \w+ background"


def planned(path: Path):
    (film,) = read_films([str(path)])
    return plan_film(film, resolve_settings(film.recipe, RenderOptions(), MODEL), strict=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_each_recipe_plans_without_a_warning_under_strict(path):
    plan = planned(path)
    assert sum(chunk.num_frames for chunk in plan.chunks) == plan.num_frames
    assert main(["recipe", "check", str(path)]) == 0
    assert path.read_text().startswith("# ")
    (film,) = read_films([str(path)])
    assert all(re.fullmatch(WORLD, " ".join(shot.prompt.split())) for shot in film.recipe.shots)
    assert path.suffix == ".txt" or film.recipe.model == "tiny"


def test_what_the_recipes_show():
    assert len(RECIPES) >= 6
    assert len(planned(FOLDER / "hello.toml").chunks) == 1
    assert any(len(chunk.prompts) == 2 for chunk in planned(FOLDER / "blend.toml").chunks)
    cut = planned(FOLDER / "cut.toml")
    assert [chunk.seed for chunk in cut.chunks if chunk.fresh] == [42, 8]
    assert {shot.transition for shot in cut.shots} == {"cut", "switch"}
    assert planned(FOLDER / "three_minutes.toml").num_frames == 3 * 60 * 24
    assert planned(FOLDER / "smoke.toml").num_frames == 40


def test_the_picture_is_small_and_of_the_small_models_size():
    plan = planned(FOLDER / "image.toml")
    path = plan.chunks[0].image
    assert path.stat().st_size < 20_000
    with Image.open(path) as picture:
        assert picture.size == (128, 64) and picture.mode == "RGB"
