import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helios_cli.recipe.cues import shots_from
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.text import read_cues


def shots_of(text: str) -> list[tuple]:
    """(prompt, seconds, transition) of each shot; fails on any problem."""
    problems = Problems("shots.txt")
    tree, _ = shots_from(read_cues(text, problems), problems)
    problems.stop()
    return [(shot["prompt"], shot.get("seconds"), shot.get("transition")) for shot in tree["shot"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A boat.", [("A boat.", None, None)]),
        ("# note\nA boat\n# more\nleaves.\n\n \n\nA sea.\n", [("A boat\nleaves.", None, None), ("A sea.", None, None)]),
        ("[12s] A boat.\n\n[1m30s]\nA sea.", [("A boat.", 12, None), ("A sea.", 90, None)]),
        ("[0:00-0:05] A\n[0:05-0:12] B", [("A", 5, None), ("B", 7, None)]),
        ("[0s–5s] A\n\nB\n\n[0:07 - 0:12] C", [("A", 5, None), ("B", 2, None), ("C", 5, None)]),
        ("[0s: A] [3s: B] [5s-9s: C]", [("A", 3, None), ("B", 2, None), ("C", 4, None)]),
        ("First [3s: B]", [("First", 3, None), ("B", None, None)]),
        ("A\n\nB\n\n[3s-5s: C]", [("A", 1.5, None), ("B", 1.5, None), ("C", 2, None)]),
        ("A\n\n[2s] B\n\n[5s: C]", [("A", 3, None), ("B", 2, None), ("C", None, None)]),
        ("[0s: a [red] ball]", [("a [red] ball", None, None)]),
        ("[/duration=5s,/new_shot] A\n\n[/new_shot][3s] B", [("A", 5, "cut"), ("B", 3, "cut")]),
        ("[/new_shot] [0s: A]", [("A", None, "cut")]),
        ("[cut] A\n[switch 8s] B\n\n[Blend] [3s]\nC", [("A", None, "cut"), ("B", 8, "switch"), ("C", 3, "blend")]),
        ("[cut] [0s: A]", [("A", None, "cut")]),
        ("A [cut] B [cutting] C", [("A [cut] B [cutting] C", None, None)]),
        ("[cutting] A", [("[cutting] A", None, None)]),
        ("[Verse] A boat [12s] sails, [35mm film]", [("[Verse] A boat [12s] sails, [35mm film]", None, None)]),
        ("(at 3 seconds: he turns)", [("(at 3 seconds: he turns)", None, None)]),
    ],
)
def test_shot_lists(text, expected):
    assert shots_of(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("A\n\n[12sec] B", 3, "not a time"),
        ("[1:75] A", 1, "not a time"),
        ("[-3s] A", 1, "not a time"),
        ("[cut 0s] A", 1, "more than 0 seconds"),
        ("[0:05-0:12] A", 1, "the film begins at 0 s"),
        ("[0s-5s] A\n[0:07-0:09] B", 2, "ends at 5 s"),
        ("[0s-5s] A\n[0:03-0:09] B", 2, "lasts until 5 s"),
        ("[5s-5s] A", 1, "not after its start"),
        ("[3s: A] [2s: B]", 1, "leaves no time"),
        ("[3s: A\n\nB", 1, "not closed"),
        ("[0s: A] and more", 1, "text after"),
        ("A\n\n[/duration=5s,/overlap=9] B", 3, "unknown command /overlap"),
        ("[/duraton=5s] B", 1, "unknown command /duraton"),
        ("[/duration=121] B", 1, "no unit"),
        ("[/duration=soon] B", 1, "not a time"),
    ],
)
def test_what_is_wrong_with_a_shot_list(text, line, says):
    problems = Problems("shots.txt")
    shots_from(read_cues(text, problems), problems)
    assert any(problem.line == line and says in problem.message for problem in problems.all), problems.all


@given(st.text(alphabet="[]/:-# \n\taA0125sm,=\u2013durationc"))
@example("[" * 2000 + "1s: x")
@example("[1s: " * 2000)
def test_no_text_breaks_the_reader_and_no_word_is_lost(text):
    problems = Problems("shots.txt")
    cues = read_cues(text, problems)
    if not problems.all:
        kept = "".join("".join(cue.prompt.split()) for cue in cues)
        for line in text.split("\n"):
            if not line.lstrip().startswith("#") and "[" not in text:
                assert "".join(line.split()) in kept
