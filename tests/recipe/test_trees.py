"""Errors planted in recipes are found where they stand, in each of the three syntaxes, all at once."""

import json
import tomllib
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given

from helios_cli.recipe.export import write_recipe
from helios_cli.recipe.film import Film
from helios_cli.recipe.problems import Problems, RecipeError
from helios_cli.recipe.schema import Recipe
from helios_cli.recipe.sources import read_films
from helios_cli.recipe.trees import read_tree
from helios_cli.visible import visible
from support.recipes import recipe_keys

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

PLANTED_TOML = '''\
version = 2
title = """
two
lines"""
sise = "640x384"   # [not, a, table] = "1"
fps = true
seconds = "abc"
minutes = 3
guidance = nan

[[shot]]
promt = "a boat [[shot]]"
seconds = -3

[[ shot ]]
prompt = """
"""
transition = 'cutt'

[[shot]] # third
prompt = "escape \\u001b"
fps = 24
"image" = "http://example.com/y.png"
transition = "switch"
blend_seconds = [
  1,
]
'''

PLANTED_YAML = """\
version: 2
title: |
  two
  lines
sise: 640x384   # not: a key
fps: true
seconds: abc
minutes: 3
guidance: .nan
shot:
- promt: "a boat: - prompt: x"
  seconds: -3

- prompt: ""
  transition: cutt

- prompt: "escape \\e"
  fps: 24
  "image": http://example.com/y.png
  transition: switch
  blend_seconds: [
    1]
"""

PLANTED_JSON = """\
{
  "version": 2,
  "title": "t",
  "sise": "{ \\"fps\\": [",
  "fps": true,
  "seconds": "abc", "minutes": 3,
  "guidance": 1000,
  "shot": [
    {"promt": "a boat",
     "seconds": -3},
    {
      "prompt": "",
      "transition": "cutt"
    }, {
      "prompt": "escape \\u001b",
      "fps": 24,
      "image": "http://example.com/y.png", "transition": "switch",
      "blend_seconds": [
        1]
    }
  ]
}
"""

EXPECTED = {  # (shot, key): lines in TOML, YAML, JSON
    (None, "version"): (1, 1, 2),
    (None, "sise"): (5, 5, 4),
    (None, "fps"): (6, 6, 5),
    (None, "seconds"): (7, 7, 6),
    (None, "minutes"): (8, 8, 6),
    (None, "guidance"): (9, 9, 7),
    (1, "prompt"): (11, 11, 9),
    (1, "promt"): (12, 11, 9),
    (1, "seconds"): (13, 12, 10),
    (2, "prompt"): (16, 14, 12),
    (2, "transition"): (18, 15, 13),
    (3, "prompt"): (21, 17, 15),
    (3, "fps"): (22, 18, 16),
    (3, "image"): (23, 19, 17),
    (3, "blend_seconds"): (25, 21, 18),
}


@pytest.mark.parametrize(
    ("column", "suffix", "text"), [(0, ".toml", PLANTED_TOML), (1, ".yaml", PLANTED_YAML), (2, ".json", PLANTED_JSON)]
)
def test_all_planted_errors_are_found_at_their_lines(tmp_path, column, suffix, text):
    path = tmp_path / f"film{suffix}"
    path.write_text(text)
    with pytest.raises(RecipeError) as raised:
        read_films([str(path)])
    found = {(problem.shot, problem.key): problem.line for problem in raised.value.problems}
    assert found == {place: lines[column] for place, lines in EXPECTED.items()}
    for problem in raised.value.problems:
        assert str(path) in raised.value.message and problem.message in raised.value.message
    suggestions = {problem.key: problem.suggestion for problem in raised.value.problems if problem.key == "sise"}
    assert suggestions == {"sise": "write `size`"}


@given(recipe_keys())
def test_every_key_of_a_written_recipe_is_found_at_its_line(keys):
    film = Film("film", "film", Recipe.model_validate(keys), Path("/"))
    loaders = {"toml": tomllib.loads, "yaml": partial(yaml.load, Loader=YAML_LOADER), "json": json.loads}
    for form, load in loaders.items():
        text = write_recipe(film, form, film.folder)
        tree, lines = read_tree(text, f".{form}", Problems("film"))
        assert tree == load(text)
        written = text.split("\n")
        places = [(key,) for key in tree] + [("shot", i, key) for i, shot in enumerate(tree["shot"]) for key in shot]
        for place in places:
            assert place[-1] in written[lines[place] - 1]


@pytest.mark.parametrize(
    ("suffix", "text", "line", "says"),
    [
        (".toml", 'title = "x"\n\nshot = [', 3, "not valid TOML"),
        (".toml", "a = 1\na = 2", 2, "not valid TOML"),
        (".toml", "title: hello", 1, "not valid TOML"),
        (".yaml", "title: x\nshot: [", 2, "not valid YAML"),
        (".yaml", "title: x\ntitle: y", 2, "given twice"),
        (".yaml", "title: x\n---\ntitle: y", 2, "second document"),
        (".yaml", "title: !!python/name:os.system x", 1, "tag"),
        (".yaml", "title: x\nshot: !mine [1]", 2, "tag"),
        (".json", '{"title": "x",\n "title": "y"}', 2, "given twice"),
        (".json", '{"title": "x"\n "fps": 24}', 2, "not valid JSON"),
        (".json", '{"fps": NaN}', None, "NaN"),
        (".json", '{"fps": ' + "9" * 5000 + "}", None, "not valid JSON"),
    ],
)
def test_what_is_no_toml_yaml_or_json(tmp_path, suffix, text, line, says):
    path = tmp_path / f"film{suffix}"
    path.write_text(text)
    with pytest.raises(RecipeError, match=says) as raised:
        read_films([str(path)])
    assert line is None or raised.value.problems[0].line in (line, line + 1)  # an open bracket is missed at the end


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".yaml", BOMB),
        (".yaml", "a: &a [*a]"),
        (".yaml", "[" * 100_000),
        (".yaml", "- " * 10_000),
        (".json", "[" * 100_000),
        (".json", '{"a":' * 100_000),
        (".toml", "a = " + "[" * 100_000),
        (".toml", "a" + ".a" * 50_000 + " = 1"),
        (".toml", 'a = """' + '\\"' * 300_000),
        (".toml", '"' * 300_000),
        (".toml", "seed = 0x" + "f" * 10_000 + "\n[[shot]]\nprompt='x'"),
        (".yaml", "seed: 0x" + "f" * 10_000 + "\nshot: [{prompt: x}]"),
    ],
)
def test_hostile_documents_are_refused(tmp_path, suffix, text):
    path = tmp_path / f"film{suffix}"
    path.write_text(text)
    with pytest.raises(RecipeError):
        read_films([str(path)])


def test_an_alias_may_stand_for_one_value(tmp_path):
    path = tmp_path / "film.yaml"
    path.write_text("style: &s soft light\nnegative: *s\nshot:\n- prompt: x\n  seconds: 1:30\n")
    recipe = read_films([str(path)])[0].recipe
    assert recipe.negative == "soft light" and recipe.shots[0].seconds == 90


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("No", "No"),
        ("on", "on"),
        ("y", "y"),
        ("True", True),
        ("~", None),
        ("2026-11-28", "2026-11-28"),
        ("=", "="),
        ("'010'", "010"),
        ("!!str 010", "010"),
        ("!!int '7'", 7),
    ],
)
def test_plain_words_of_yaml_are_those_of_version_1_2(written, value):
    tree, _ = read_tree(f"title: {written}\n", ".yaml", Problems("film"))
    assert tree == {"title": value} and type(tree["title"]) is type(value)


def test_what_people_write_in_yaml_is_read_as_meant(tmp_path):
    path = tmp_path / "film.yaml"
    path.write_text("title: No\nseed: 007\nshot:\n- {prompt: 12:30, seconds: 1:30}\n- {prompt: on, seconds: 0:05}\n")
    (film,) = read_films([str(path)])
    assert (film.recipe.title, film.recipe.seed) == ("No", 7)
    assert [(shot.prompt, shot.seconds) for shot in film.recipe.shots] == [("12:30", 90), ("on", 5)]


@pytest.mark.parametrize(
    "title", ["1e3", "0o17", "No", "010", "1:30", "~", ".nan", "=", "a\u202eb", "\U000e0041", "2026-11-28"]
)
@pytest.mark.parametrize("form", ["toml", "yaml", "json"])
def test_written_text_is_read_as_text(tmp_path, form, title):
    recipe = Recipe.model_validate({"title": title, "shot": [{"prompt": title + " x"}]})
    text = write_recipe(Film("film", "film", recipe, tmp_path), form, tmp_path)
    assert read_tree(text, f".{form}", Problems("film"))[0]["title"] == title
    others = {"toml": tomllib.loads, "yaml": yaml.safe_load, "json": json.loads}
    assert others[form](text)["title"] == title
    printed = visible(text)  # as `helios recipe convert film.txt -` prints it
    assert read_tree(printed, f".{form}", Problems("film"))[0]["title"] == title
