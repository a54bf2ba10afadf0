"""Random recipes, and the little that several test files need."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from helios_cli.recipe.film import Film
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.prompts import has_words
from helios_cli.recipe.schema import CONTROL, Recipe
from helios_cli.recipe.settings import ModelDefaults, resolve_settings

MODEL = ModelDefaults(size=(128, 64), steps=(2, 2, 2), guidance=1.0)

RED, GREEN = "a red circle moves left over a blue background", "a green square moves up over a white background"


def film_of(keys: dict, folder: Path = Path("/films")) -> Film:
    return Film("film", "film.toml", Recipe.model_validate(keys), folder)


def plan_of(keys: dict, *, strict: bool = False, **flags) -> Plan:
    film = film_of(keys)
    return plan_film(film, resolve_settings(film.recipe, RenderOptions(**flags), MODEL), strict=strict)


words = st.text(max_size=60).filter(lambda text: CONTROL.search(text) is None)
prompts = words.filter(has_words)
seconds = st.floats(0.05, 60).map(lambda value: round(value, 3))
seeds = st.integers(0, 2**63 - 1)


@st.composite
def shots(draw, first: bool = False) -> dict:
    shot = {"prompt": draw(prompts)}
    transition = draw(st.sampled_from(["blend", "switch", "cut", None]))
    optional = {"seconds": seconds}
    if first or transition == "cut":
        optional |= {"seed": seeds, "image": st.sampled_from(["sea.png", "../sea.jpg", "a b/ü.webp"])}
    if transition in ("blend", None):
        optional["blend_seconds"] = st.floats(0.1, 10)
    if transition:
        shot["transition"] = transition
    return shot | draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def timed_keys(draw, lengths: st.SearchStrategy[float] = seconds) -> dict:
    """The keys of a recipe whose shots all have lengths, and nothing that the plan does not depend on."""
    shot = st.fixed_dictionaries(
        {"prompt": st.sampled_from("abcd"), "seconds": lengths, "transition": st.sampled_from(["switch", "cut"])}
    )
    blend = st.fixed_dictionaries(
        {"prompt": st.sampled_from("abcd"), "seconds": lengths, "blend_seconds": st.floats(0.1, 10)}
    )
    return {"shot": draw(st.lists(shot | blend, min_size=1, max_size=8))}


@st.composite
def recipe_keys(draw, pictures: bool = True) -> dict:
    """The keys of a valid recipe."""
    optional = {
        "title": words,
        "style": words,
        "model": st.just("tiny"),
        "fps": st.sampled_from([1, 12.5, 24, 29.97, 60]),
        "size": st.just("640x384"),
        "seed": seeds,
        "negative": words,
        "steps": st.sampled_from([[2, 2, 2], "1,1,1"]),
        "guidance": st.floats(0, 100),
    }
    keys = {"version": 1} | draw(st.fixed_dictionaries({}, optional=optional))
    rest = draw(st.lists(shots(), max_size=6))
    keys["shot"] = [draw(shots(first=True)), *rest]
    if not pictures:
        keys["shot"] = [{key: value for key, value in shot.items() if key != "image"} for shot in keys["shot"]]
    return keys
