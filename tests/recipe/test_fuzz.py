"""No bytes in a source make anything but an InputError, whatever the file claims to be."""

import contextlib
import io
import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios_cli.errors import InputError
from helios_cli.recipe.files import SUFFIXES
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import plan_film
from helios_cli.recipe.settings import resolve_settings
from helios_cli.recipe.sources import read_films
from support.recipes import MODEL
from support.tiers import examples

FORMS = sorted(SUFFIXES)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FILM_KEYS = st.sampled_from(
    ["version", "title", "fps", "size", "seconds", "minutes", "frames", "seed", "steps", "shots"]
)
SHOT_KEYS = st.sampled_from(["prompt", "seconds", "transition", "blend_seconds", "seed", "image", "video", "promt"])
trees = st.dictionaries(FILM_KEYS, values) | st.builds(
    lambda film, shots: {**film, "shot": shots},
    st.dictionaries(FILM_KEYS, values, max_size=2),
    st.lists(st.dictionaries(SHOT_KEYS, values, max_size=4) | values, max_size=3) | values,
)
PIECES = {
    ".toml": [
        "[[shot]]\n",
        "prompt = ",
        '"""',
        "'''",
        '"',
        "=",
        "seconds",
        ".",
        "[",
        "]",
        "{",
        "}",
        "\n",
        "#",
        "1",
        ",",
    ],
    ".yaml": [
        "shot:\n",
        "- prompt: x\n",
        "&a ",
        "*a",
        "!!",
        "|\n",
        "? ",
        ": ",
        "- ",
        "\n",
        "[",
        "{",
        "'",
        '"',
        "---\n",
    ],
    ".yml": ["shot:\n- prompt: x\n", "  seconds: ", "1:30", "0x1f", "2020-13-45", ".inf", "<<: ", "\t", "%YAML 9\n"],
    ".json": [
        '{"shot":[{"prompt":"x"}]}',
        "[",
        "]",
        "{",
        "}",
        '"at"',
        ":",
        ",",
        '"prompt"',
        "1",
        "NaN",
        "\\",
        '"',
        "\n",
    ],
    ".txt": [
        *["[", "]", "3s", ":", " ", "-", "0:05", "/duration=", "/new_shot", ",", "\n", "#", "a boat", "0:00 ", "1. "],
        *["- ", "``` ", ".", "to", "&#", "9", "[[shot]]", "\0"],
    ],
    ".csv": [
        *["id,prompt_index,prompt\n", "1,0,a\n", '"', ",", "\n", "seconds", "transition", "1", "\r", ";", "sep=;\n"],
        *["prompt", "\t", "“", "id,prompt,duration\n", "1,a,81\n", "duration"],
    ],
    ".jsonl": ['{"prompts":["a","b"]', ',"switch_frames":[', "48", "]", "}", "\n", "{", '"'],
    ".srt": [
        *[
            "1\n",
            "00:00:01,000",
            " --> ",
            "00:00:02,000",
            "\n",
            "a boat",
            "<i>",
            "99:99:99,999",
            "01:00:00,000",
            "{\\",
        ],
        *["}", "&#", "9", "\\N", "->", "0:1"],
    ],
}


def survives(path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        for film in read_films([str(path)]):
            plan_film(film, resolve_settings(film.recipe, RenderOptions(frames=66), MODEL))
    except InputError as error:
        assert error.message.isprintable() or "\n" in error.message
        assert "\x1b" not in error.message + (error.hint or "")


quiet = settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.parametrize("suffix", FORMS)
@quiet
@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path, suffix, data):
    survives(tmp_path / f"film{suffix}", data)


@pytest.mark.parametrize("suffix", FORMS)
@quiet
@given(data=st.data())
def test_pieces_of_the_syntax_in_any_order(tmp_path, suffix, data):
    pieces = data.draw(st.lists(st.sampled_from(PIECES[suffix]) | st.text(max_size=3), max_size=12))
    survives(tmp_path / f"film{suffix}", "".join(pieces).encode("utf-8", "surrogatepass"))


@quiet
@given(
    tree=trees | st.lists(st.dictionaries(st.sampled_from(["at", "prompt", "transition_chunks"]), values), max_size=3)
)
def test_any_values_under_known_keys(tmp_path, tree):
    survives(tmp_path / "film.json", json.dumps(tree).encode())
    survives(tmp_path / "film.yaml", yaml.safe_dump(tree).encode())
    survives(tmp_path / "film.jsonl", json.dumps(tree).encode())


@quiet
@given(words=st.text())
def test_any_words_and_any_standard_input(words):
    for sources, stdin in (([words], None), (["-"], io.BytesIO(words.encode("utf-8", "surrogatepass")))):
        if words != "-" or stdin:
            with contextlib.suppress(InputError):
                read_films(sources, stdin=stdin)


N = 200_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((f"spaces{end}.txt", begin + " " * N + end) for begin, end in (("[1", "x"), ("[1s", "x"), ("[1s-", "x"))),
        *((f"more{end}.txt", begin + " " * N + end) for begin, end in (("```", "a!"), ("0:00", "b!"), ("[1s ", "1s"))),
        ("lines.txt", "\n" * N + "[[ shot"),
        ("entity.txt", "&#" + "0" * 15_000),
        ("entity.srt", "1\n0:0:0 --> 0:0:2\n&#" + "0" * 15_000),
        ("columns.csv", "id," * N),
        ("rows.csv", "prompt\n" + "x,y\n" * N),
        ("lines.jsonl", "x\n" * N),
        ("digits.yaml", "seed: " + "9" * N),
        ("brackets.yaml", "[" * N),
        ("keys.yaml", "? " * N),
        ("laughs.yaml", "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))),
        ("shots.yaml", "shot:\n" + "- prompt: &a x\n" + "- prompt: *a\n" * 10_000),
    ],
)
def test_nothing_takes_its_length_squared(tmp_path, name, text):
    """Each of these took minutes, gigabytes or a bug where it was read in a simpler way."""
    survives(tmp_path / name, text.encode())
