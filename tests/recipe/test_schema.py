import re

import pytest
from hypothesis import given
from pydantic import ValidationError

from helios_cli.recipe.schema import Recipe, Shot, json_schema
from helios_cli.recipe.sound import SOUND_KEYS
from support.recipes import recipe_keys

CONTRACT = {"version", "title", "style", "model", "fps", "size", "seconds", "seed", "negative", "shot"}


def test_the_contracts_keys_are_there_and_the_others_are_flags():
    keys = set(json_schema()["properties"])
    assert keys == CONTRACT | {"minutes", "frames", "steps", "guidance", "lora"} | set(SOUND_KEYS)
    assert set(Shot.model_fields) == {"prompt", "seconds", "transition", "blend_seconds", "seed", "image", "video"}


def test_the_schema_describes_every_key_and_allows_no_other():
    schema = json_schema()
    for table in (schema, schema["$defs"]["Shot"]):
        assert table["additionalProperties"] is False
        assert all(key.get("description") and key.get("title") for key in table["properties"].values())
    assert schema["required"] == ["shot"] and schema["$defs"]["Shot"]["required"] == ["prompt"]
    assert "null" not in str(schema)


def test_the_schemas_patterns_take_what_the_recipe_takes():
    properties = json_schema()["properties"]
    assert re.search(properties["size"]["pattern"], "640x384")
    assert not re.search(properties["size"]["pattern"], "640")


@given(recipe_keys())
def test_a_recipe_survives_its_own_dictionary(keys):
    recipe = Recipe.model_validate(keys)
    assert Recipe.model_validate(recipe.to_dict()) == recipe


def _one(**shot):
    return {"shot": [{"prompt": "x", **shot}]}


def _two(**shot):
    return {"shot": [{"prompt": "x"}, {"prompt": "y", **shot}]}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"shot": []},
        {"shot": {"prompt": "x"}},
        {"shot": ["x"]},
        {"shot": [{"prompt": "x"}] * 10_001},
        {"version": 2, **_one()},
        {"seed": True, **_one()},
        {"seed": 1.0, **_one()},
        {"seed": -1, **_one()},
        {"seed": 2**63, **_one()},
        {"fps": "24", **_one()},
        {"fps": float("inf"), **_one()},
        {"title": 3, **_one()},
        {"title": None, **_one()},
        {"seconds": 3, "frames": 72, **_one()},
        {"shots": [], **_one()},
        _one(prompt="x" * 20_001),
        _one(prompt="\ud800"),
        _one(image="concat:a.png|b.png"),
        _one(image="file:///etc/passwd"),
        _one(image=""),
        _one(image="a.png", video="b.mp4"),
        _one(transition="cut", blend_seconds=3),
        _two(seed=3),
        _two(image="a.png"),
        _two(video="a.mp4", transition="cut"),
        _two(transition="switch", blend_seconds=3),
    ],
)
def test_what_no_recipe_may_say(keys):
    with pytest.raises(ValidationError):
        Recipe.model_validate(keys)


@pytest.mark.parametrize(
    "keys",
    [
        _one(seed=3, image="a.png"),
        _one(video="a.mp4"),
        _one(image="C:/pictures/a.png"),
        _two(seed=3, image="-i.png", transition="cut"),
        {"steps": [2, 2, 2], "size": "640x384", "minutes": 3, **_two(blend_seconds="1.5s")},
    ],
)
def test_what_a_recipe_may_say(keys):
    Recipe.model_validate(keys)
