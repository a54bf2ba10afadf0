"""Plain text as people and programs write lists: read as meant and said, or one problem with its line and its cure."""

import io

import pytest

from helios_cli.recipe.problems import RecipeError
from helios_cli.recipe.sources import read_films


def read(text: str):
    (film,) = read_films(["-"], stdin=io.BytesIO(text.encode()))
    return film


@pytest.mark.parametrize(
    ("text", "expected", "notice"),
    [
        ("0:00 A\n0:05 B\n0:09 C", [("A", 5), ("B", 4), ("C", None)], "starts of shots"),
        ("0:00: A\n\n0:05: B", [("A", 5), ("B", None)], "starts of shots"),
        ("(0:00) A\n(0:05) B", [("A", 5), ("B", None)], "starts of shots"),
        ("00:00:00 - A\n\n00:01:30 - B", [("A", 90), ("B", None)], "starts of shots"),
        ("0s: A\n5s: B", [("A", 5), ("B", None)], "starts of shots"),
        ("0:00-0:05 A\n0:05 – 0:09: B\n(0:09 to 0:12) C", [("A", 5), ("B", 4), ("C", 3)], None),
        ("[0:05]: A\n\n[5s] - B\n\n[cut]: C", [("A", 5), ("B", 5), ("C", None)], None),
        ("[0:00—0:05] A\n\n[5s − 9s] B", [("A", 5), ("B", 4)], None),
        ("[0:00-] A\n\n[0:07-] B", [("A", 7), ("B", None)], None),
        ("1. A\n2. B\n   and waves\n3) C", [("A", None), ("B\n   and waves", None), ("C", None)], "3 items"),
        ("- [5s] A\n- [6s] B", [("A", 5), ("B", 6)], "2 items"),
        ("* A\n\n• B", [("A", None), ("B", None)], "2 items"),
        ("1. 0:00 A\n2. 0:05 B", [("A", 5), ("B", None)], "starts of shots"),
        (
            "A boat leaves.\n# x\nA storm!\n“Calm.”",
            [("A boat leaves.", None), ("A storm!", None), ("“Calm.”", None)],
            "3 lines is a",
        ),
        ("一艘船。\n风暴。", [("一艘船。", None), ("风暴。", None)], "2 lines is a"),
        ("A boat leaves\nthe harbour.", [("A boat leaves\nthe harbour.", None)], "2 lines are one prompt"),
    ],
)
def test_lists_are_read_as_meant(text, expected, notice):
    film = read(text)
    assert [(shot.prompt, shot.seconds) for shot in film.recipe.shots] == expected
    assert any(notice in said for said in film.notices) if notice else not film.notices


@pytest.mark.parametrize(
    "text",
    [
        "4:30 in the morning, a boat",
        "16:9 film of a boat",
        "2024. A space odyssey",
        "- one dash is no list",
        "A boat.\nIt leaves.\n\nThe sea.",
        "9:75 - a score",
        "5 boats - all red",
    ],
)
def test_words_stay_words(text):
    film = read(text)
    assert "\n\n".join(shot.prompt for shot in film.recipe.shots) == text and not film.notices


@pytest.mark.parametrize(
    ("text", "line", "says", "cure"),
    [
        ("# x\n0:05: A boat", 2, "this time has no brackets", "[0:05]"),
        ("5s: A\n\n9s: B", 1, "this time has no brackets (also in line 3)", "[0:05]"),
        ("[[shot]]\nprompt = 'x'", 1, "is a recipe in TOML", ".toml"),
        ("title: x\nshot:\n- prompt: y", 2, "is a recipe in YAML", ".yaml"),
        ('{"prompts": ["a"]}', 1, "is JSON", ".jsonl"),
        ('[{"at": 0, "prompt": "a"}]', 1, "is JSON", ".json"),
        ("1\n00:00:00,000 --> 00:00:02,000\nA", 2, "is a list of subtitles", ".srt"),
        ("id;prompt_index;prompt\n1;0;a", 1, "is a table", ".csv"),
        ("Here is the list:\n\n```\na\n\nb\n```", 3, "a code fence (also in line 7)", "remove"),
        ("[2,5s] A", 1, "is not a time", "[12s]"),
    ],
)
def test_what_has_several_meanings_is_one_problem(text, line, says, cure):
    with pytest.raises(RecipeError) as raised:
        read(text)
    assert raised.value.message.startswith(f"standard input:{line}: ") and "\n" not in raised.value.message
    assert says in raised.value.message and cure in raised.value.hint
