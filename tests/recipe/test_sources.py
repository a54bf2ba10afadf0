"""Every form of SOURCE, as files, words and standard input."""

import io
import json

import pytest

from helios_cli.errors import InputError
from helios_cli.recipe.files import SUFFIXES
from helios_cli.recipe.lists import READERS
from helios_cli.recipe.problems import RecipeError
from helios_cli.recipe.sources import read_films


def film(path, data: str | bytes):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    (found,) = read_films([str(path)])
    return found


def shots(found) -> list[tuple]:
    return [(shot.prompt, shot.seconds, shot.transition) for shot in found.recipe.shots]


def problems(source, data: str | bytes | None = None):
    if data is not None:
        source.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(RecipeError) as raised:
        read_films([str(source)])
    return raised.value.problems


def test_words_are_one_shot():
    (found,) = read_films(["A fishing boat leaves the harbour.\n\nIt meets the sea."])
    assert shots(found) == [("A fishing boat leaves the harbour.\n\nIt meets the sea.", None, "blend")]
    assert found.name == "a-fishing-boat-leaves-the-harbour-it-meets-the-sea"
    assert read_films(["[3s] a boat"])[0].notices
    assert read_films(["¿?"])[0].name == "film"
    assert len(read_films(["é" * 5000])[0].name.encode()) <= 60


@pytest.mark.parametrize(
    "words",
    [
        "boat.toml",
        "my film.txt",
        "my picture.png",
        "my clip.MOV",
        "films/boat",
        "boat.csv",
        "./x",
        "a.png",
        "clip.mp4",
        "film.md",
        "script.docx",
        "\0/0",
    ],
)
def test_words_that_look_like_a_path_are_a_missing_file(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert problems(words)[0].message == "no such file"


def test_a_path_longer_than_any_is_no_prompt(tmp_path):
    assert problems("d/" * 3000 + "film.toml")[0].message == "File name too long"
    words = "a boat, " * 1000 + "and/or film.toml"
    assert shots(read_films([words])[0])[0][0] == words


@pytest.mark.parametrize(
    "words", ["a boat.", "Wait...boats", "Pi=3.14", "夜.星", "either/or is a question", "version 2.0", "and so on..."]
)
def test_words_that_only_hold_a_dot_or_slash_are_words(words):
    assert shots(read_films([words])[0])[0][0] == words


def test_a_missing_file_is_answered_with_its_neighbour(tmp_path):
    (tmp_path / "harbour.toml").touch()
    (tmp_path / "notes.md").touch()
    assert problems(tmp_path / "harbuor.toml")[0].suggestion == "did you mean harbour.toml?"
    assert problems(tmp_path / "harbour.yaml")[0].suggestion == "did you mean harbour.toml?"
    (tmp_path / "k.toml").touch()
    assert "did you mean" not in problems(tmp_path / "film.toml")[0].suggestion  # a suffix in common is no likeness


def test_folders_and_unknown_files_are_refused(tmp_path):
    assert problems(tmp_path)[0].message == "is a folder"
    assert "unknown kind" in problems(tmp_path / "film.md", "x")[0].message
    assert "--image" in problems(tmp_path / "film.png", b"\x89PNG")[0].suggestion


def test_standard_input_is_read_as_text():
    (found,) = read_films(["-"], stdin=io.BytesIO(b"[2s] a\n\nb\n"))
    assert shots(found) == [("a", 2, "blend"), ("b", None, "blend")]
    assert found.name == "stdin"
    with pytest.raises(RecipeError, match="only once"):
        read_films(["-", "-"], stdin=io.BytesIO(b"a"))


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_byte_order_marks_and_line_ends_make_no_difference(tmp_path, head, end):
    text = "# a comment\nfirst line\nschön\n\n[2s] second\n".encode().replace(b"\n", end)
    found = film(tmp_path / "shots.txt", head + text)
    assert shots(found) == [("first line\nschön", None, "blend"), ("second", 2, "blend")]
    assert found.line("shot", 1) == 5
    recipe = b'title = "t"\n[[shot]]\nprompt = "x"\n'.replace(b"\n", end if end != b"\r" else b"\n")
    assert film(tmp_path / "film.toml", head + recipe).recipe.title == "t"


def test_what_is_not_utf8_is_named_by_its_byte(tmp_path):
    (found,) = problems(tmp_path / "a.txt", b"\xef\xbb\xbfok\nsch\xf6n\n")
    assert "0xf6 at offset 9" in found.message and found.line == 2
    assert "UTF-16" in problems(tmp_path / "b.txt", b"\xff\xfex\0y")[0].message


def test_control_characters_are_named_by_line(tmp_path):
    found = problems(tmp_path / "a.txt", "a\x1b[31m\n\nb\x07\x1b\n")
    said = [(p.line, p.message.removeprefix("contains the control character ")) for p in found]
    assert said == [(1, "U+001B (also in line 3)"), (3, "U+0007")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_what_windows_saves_is_read(tmp_path, encoding):
    assert shots(film(tmp_path / "a.txt", "[2s] Grüße\r\n\r\n\ufeff[3s] \u200bein Boot".encode(encoding))) == [
        ("Grüße", 2, "blend"),
        ("ein Boot", 3, "blend"),
    ]


FENCED = "\n```%s\n%s\n```\n"


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "[2s] a\n\n[3s] b"),
        (".toml", '[[shot]]\nprompt = "a"\nseconds = 2\n[[shot]]\nprompt = "b"\nseconds = 3'),
        (".yaml", "shot:\n- prompt: a\n  seconds: 2\n- prompt: b\n  seconds: 3"),
        (".json", '{"shot": [{"prompt": "a", "seconds": 2}, {"prompt": "b", "seconds": 3}]}'),
        (".csv", "id,prompt_index,prompt,seconds\n1,0,a,2\n1,1,b,3"),
    ],
)
def test_the_fence_of_a_chat_is_no_part_of_the_list(tmp_path, suffix, text):
    found = film(tmp_path / f"a{suffix}", FENCED % (suffix[1:], text))
    assert shots(found) == [("a", 2, "blend"), ("b", 3, "blend")]
    assert found.line("shot", 0) >= 3


@pytest.mark.parametrize(
    ("name", "text", "line", "says"),
    [
        ("a.toml", "# x\n[[shot]]\nprompt = “A boat”", 3, "contains “ (U+201C), a quote of another kind"),
        ("a.toml", '[[shot]]\n\xa0\xa0prompt = "A boat"', 2, "contains U+00A0, a space of another kind"),
        ("a.json", "{“shot”: []}", 1, "contains “ (U+201C)"),
        ("a.yaml", "shot:\n- prompt: a\n\xa0 seconds: 3\n  seed: 3", 3, "contains U+00A0"),
        ("a.yaml", "shot:\n\t- prompt: a", 2, "not valid YAML"),
        ("a.toml", "fps = 24\n```\n[[shot]]", 2, "contains ``` (U+0060), a code fence"),
    ],
)
def test_one_character_is_one_problem_with_its_line_and_its_cure(tmp_path, name, text, line, says):
    (found,) = problems(tmp_path / name, text)
    assert found.line == line and says in found.message and found.suggestion


def test_one_cause_is_said_once(tmp_path):
    text = "id,prompt_index,prompt\n" + "".join(f"1,{n},a boat, a sea\n" for n in range(9))
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(RecipeError) as raised:
        read_films([str(tmp_path / "a.csv")])
    assert len(raised.value.problems) == 9  # to a program each with its line
    assert "a.csv:2: has 4 cells, but the header has 3 columns (also in lines 3, 4, 5, 6, 7, …)" in raised.value.message
    assert "\n" not in raised.value.message and raised.value.hint


def test_every_list_that_has_a_reader_is_a_source():
    assert set(READERS) < set(SUFFIXES)


def test_a_file_without_prompts_is_refused(tmp_path):
    for suffix in SUFFIXES:
        assert problems(tmp_path / f"empty{suffix}", "")
    assert problems(tmp_path / "comments.txt", "# one\n\n# two\n")[0].message == "contains no prompt"


def test_a_time_without_a_prompt_is_named_once(tmp_path):
    (found,) = problems(tmp_path / "a.txt", "# x\n\n[12s][/new_shot]\n\nB")
    assert (found.line, found.shot, found.key) == (3, 1, "prompt")


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate(1 << 40)  # sparse
    assert "larger than 1 MiB" in problems(tmp_path / "large.txt")[0].message
    assert "the limit is 10,000" in problems(tmp_path / "many.txt", "a\n\n" * 10_001)[0].message


def test_the_problems_of_all_sources_come_together(tmp_path):
    (tmp_path / "a.toml").write_text("fsp = 24\n[[shot]]\nprompt = 'x'\nlength = 3\n")
    (tmp_path / "b.txt").write_text("fine")
    with pytest.raises(RecipeError) as raised:
        read_films([str(tmp_path / "a.toml"), str(tmp_path / "b.txt"), str(tmp_path / "c.txt")])
    assert [(p.file[-6:], p.line) for p in raised.value.problems] == [("a.toml", 1), ("a.toml", 4), ("/c.txt", None)]
    assert isinstance(raised.value, InputError) and raised.value.exit_code == 2


CSV = """id,prompt_index,prompt,refined_prompt,seconds,transition
7,2,third,,,cut
7,0,first,"better, first",5,
7,1,"second
line",,1m,switch
"""


def test_the_official_interactive_list(tmp_path):
    found = film(tmp_path / "list.csv", CSV)
    assert shots(found) == [("better, first", 5, "blend"), ("second\nline", 60, "switch"), ("third", None, "cut")]
    assert [found.line("shot", i) for i in range(3)] == [3, 4, 2]


@pytest.mark.parametrize(
    "text",
    [
        "id;prompt_index;prompt;seconds\n1;0;a, b;2,5\n1;1;c;3",
        "sep=;\nid;prompt_index;prompt;seconds\n1;0;a, b;2.5\n1;1;c;3",
        'ID\tPrompt Index\tPrompt\tSeconds\n1\t0\ta, b\t"2,5"\n1\t1\tc\t3',
        'prompt,seconds\n"a, b",2.5\nc,3',
        '"prompt","seconds"\n"a, b","2,5"\n"c","3"',
    ],
)
def test_lists_of_spreadsheets(tmp_path, text):
    assert shots(film(tmp_path / "a.csv", text)) == [("a, b", 2.5, "blend"), ("c", 3, "blend")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,0,a boat\n1,1,b", "a.csv:1: the first line has no column names"),
        ("id,prompt_index,promt\n1,0,a", "a.csv:1: `promt`: unknown or repeated column"),
        ("id,prompt\n1,a\n1,b", "a.csv:1: `prompt_index`: the column is missing"),
        ("prompt\n“A boat, at dawn”\n“B, c”", "a.csv:2: has 2 cells, but the header has 1 column (also in line 3)"),
    ],
)
def test_one_fault_of_a_spreadsheet_is_one_problem(tmp_path, text, says):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(RecipeError) as raised:
        read_films([str(tmp_path / "a.csv")])
    assert raised.value.message.endswith(says.removeprefix("a.csv")) and raised.value.hint


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f'title = "{"x" * 300}"', "`title`: is 300 characters long; the limit is 200"),
        (f'model = "{"x" * 600}"', "`model`: is 600 characters long; the limit is 500"),
        ("seconds = 1e308", "`seconds`: 1e+308 is longer than 24 hours"),
        ("fps = 1e308", "`fps`: must be less than or equal to 120, not 1e+308"),
        ("frames = 99999999999999999999999", "`frames`: must be less than or equal to 10368000"),
        ("seed = 99999999999999999999999", "`seed`: must be less than or equal to 9223372036854775807"),
        ("seconds = 2026-11-28T10:00:00", "`seconds`: a date is not a time"),
        ("seconds = '2,5'", '`seconds`: "2,5" is not a time: write decimals with a point: 2.5'),
    ],
)
def test_a_limit_names_what_is_over_it(tmp_path, line, says):
    (found,) = problems(tmp_path / "a.toml", f"{line}\n[[shot]]\nprompt = 'x'\n")
    assert says in str(found) and found.line == 1


def test_a_time_of_toml_is_a_length(tmp_path):
    assert film(tmp_path / "a.toml", "seconds = 00:01:30.5\n[[shot]]\nprompt = 'x'\n").recipe.seconds == 90.5


def test_a_list_of_several_films(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("id,prompt_index,prompt\n1,1,a\n2,0,b\n1,2,c\n")
    films = read_films([str(path)])
    assert [(f.name, [s.prompt for s in f.recipe.shots]) for f in films] == [("list-1", ["a", "c"]), ("list-2", ["b"])]


BENCH = 'id,prompt,duration\n7,"A kite, over a beach.",81\n12,A lighthouse at night.,1440\n3,Rain on a window.,240\n'


def test_the_list_of_heliosbench(tmp_path):
    """The scripts find films by `*_*_ori*.mp4`, and take the number before the first `_` for the id."""
    path = tmp_path / "list.csv"
    path.write_text(BENCH)
    films = read_films([str(path)])
    assert [found.name for found in films] == ["7_81_ori81", "12_1440_ori1440", "3_240_ori240"]
    assert [found.recipe.frames for found in films] == [81, 1440, 240]
    assert shots(films[0]) == [("A kite, over a beach.", None, "blend")]
    assert [found.line("shot", 0) for found in films] == [2, 3, 4]
    assert [len(found.notices) for found in films] == [1, 0, 0] and "frames" in films[0].notices[0]
    assert film(tmp_path / "one.csv", "id;prompt;duration\n0007;a, b;120\n").name == "0007_120_ori120"


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("id,prompt,duration\n1,a,10s", 2, "duration"),
        ("id,prompt,duration\n1,a,0", 2, "duration"),
        ("id,prompt,duration\n1,a,", 2, "duration"),
        ("id,prompt,duration\n1,a,99999999", 2, "frames"),
        ("id,prompt,duration\n1,a,81\n1,b,81", 3, "id"),
        ("id,prompt,duration\nkite,a,81", 2, "id"),
        ("id,prompt,duration\n1,,81", 2, "prompt"),
        ("id,prompt,duration,seconds\n1,a,81,3", 1, "seconds"),
        ("id,promt,duration\n1,a,81", 1, "promt"),
        ("id,duration\n1,81", 1, "prompt"),
        ("prompt,duration\na,81", 1, "duration"),
        ("id,prompt_index,prompt,duration\n1,0,a,81", 1, "duration"),
    ],
)
def test_errors_in_a_list_of_heliosbench_have_lines(tmp_path, text, line, key):
    found = problems(tmp_path / "list.csv", text)
    assert (line, key) in [(p.line, p.key) for p in found]


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("id,prompt\n1,a", 1, "prompt_index"),
        ("id,prompt_index,promt\n1,0,a", 1, "promt"),
        ("id,prompt_index,prompt\n1,one,a", 2, "prompt_index"),
        ("id,prompt_index,prompt\n1,0,a\n1,0,b", 3, "prompt_index"),
        ("id,prompt_index,prompt\n1,0,a, boat", 2, None),
        ("id,prompt_index,prompt\n1,0,", 2, "prompt"),
        ("id,prompt_index,prompt,seconds\n1,0,a,x", 2, "seconds"),
        ('id,prompt_index,prompt\n1,0,"a"b', 2, None),
    ],
)
def test_errors_in_a_list_have_lines(tmp_path, text, line, key):
    found = problems(tmp_path / "list.csv", text)
    assert (line, key) in [(p.line, p.key) for p in found]


def test_all_errors_of_a_list_come_together(tmp_path):
    found = problems(tmp_path / "list.csv", "id,prompt_index,prompt\n1,0,a, boat\n1,one,b\n1,2,c\n1,2,\n")
    assert [(p.line, p.key) for p in found] == [(2, None), (3, "prompt_index"), (5, "prompt_index"), (5, "prompt")]


def test_longlive_lists(tmp_path):
    found = film(tmp_path / "a.jsonl", '{"prompts": ["a", "b", "c"], "switch_frames": [48, 96]}\n')
    assert shots(found) == [("a", 2, "switch"), ("b", 2, "switch"), ("c", None, "switch")]
    assert shots(film(tmp_path / "b.jsonl", '\n{"prompts": ["a"]}\n')) == [("a", None, "switch")]
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompts": ["a"]}\n{"prompts": ["b"]}')
    assert [f.name for f in read_films([str(path)])] == ["c-1", "c-2"]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        "{}",
        '{"prompts": "a"}',
        '{"prompts": []}',
        '{"prompts": [3]}',
        '{"prompts": ["a", " "]}',
        '{"prompts": ["a", "b"], "switch_frames": [0]}',
        '{"prompts": ["a", "b"], "switch_frames": [3, 4]}',
        '{"prompts": ["a", "b"], "switch_frames": [true]}',
        '{"prompts": ["a", "b"], "switch_frame_indices": [3]}',
        "[" * 5000,
    ],
)
def test_errors_in_longlive_lists_have_lines(tmp_path, line):
    found = problems(tmp_path / "a.jsonl", '{"prompts": ["a"]}\n\n' + line)
    assert [p.line for p in found] == [3]


@pytest.mark.parametrize("line", ['{"prompts": [], "switch_frames": []}', '{"prompts": ["a"], "switch_frames": [9]}'])
def test_a_longlive_list_switches_between_two_prompts_at_least(tmp_path, line):
    (found,) = problems(tmp_path / "a.jsonl", line)
    assert (found.key, found.message[:26]) == ("switch_frames", "needs at least two prompts")


def test_prompt_updates(tmp_path):
    updates = [
        {"at": 0, "prompt": "a"},
        {"at": 4.5, "prompt": "b", "transition_chunks": 2},
        {"at": 8, "prompt": "c", "transition_chunks": 0},
    ]
    found = film(tmp_path / "updates.json", json.dumps(updates, indent=1))
    assert shots(found) == [("a", 4.5, "blend"), ("b", 3.5, "blend"), ("c", None, "switch")]
    assert found.recipe.shots[1].blend_seconds == 2 * 33 / 24
    assert found.notices


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ('{"at": "4", "prompt": "b"}', "at"),
        ('{"prompt": "b"}', "at"),
        ('{"at": 4, "prompt": "b", "chunks": 2}', "chunks"),
        ('{"at": 4, "prompt": "b", "transition_chunks": -1}', "transition_chunks"),
        ('{"at": 4, "prompt": 5}', "prompt"),
        ('{"at": 0, "prompt": "b"}', None),
        ("3", None),
    ],
)
def test_errors_in_prompt_updates_have_lines(tmp_path, entry, key):
    found = problems(tmp_path / "updates.json", f'[\n{{"at": 0, "prompt": "a"}},\n{entry}\n]')
    assert (3, key) in [(p.line, p.key) for p in found]
    assert "before 4 s" in problems(tmp_path / "late.json", '[{"at": 4, "prompt": "a"}]')[0].message


SRT = """1
00:00:01,000 --> 00:00:03,500
<i>A boat</i>
leaves.

2
00:00:03,500 --> 00:00:05,000 X1:10 X2:20 Y1:1 Y2:2
The sea.
3
00:00:07.000 --> 00:00:09.000
A storm.
"""


def test_subtitles(tmp_path):
    found = film(tmp_path / "a.srt", SRT)
    assert shots(found) == [("A boat\nleaves.", 3.5, "blend"), ("The sea.", 3.5, "blend"), ("A storm.", 2, "blend")]
    assert len(found.notices) == 2


TWO, THREE = "00:00:00,000 --> 00:00:02,000\n", "00:00:02,000 --> 00:00:03,000\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # as srt 3.5 and pysubs2 1.8 read them, and ffmpeg's decoder
        (f"1\n{TWO}A boat\n\nleaves.\n\n2\n{THREE}B", [("A boat\nleaves.", 2), ("B", 1)]),
        (f"1\n{TWO}{{\\pos(1,2)}}A {{\\i1}}b{{\\i0}}\\Nc &amp; <b>d</b> <c.red>e</c>", [("A b c & d e", 2)]),
        (f"1\n{TWO}in\n2024\n\n2\n{THREE}A --> B", [("in\n2024", 2), ("A --> B", 1)]),
        (f"{TWO}A\n00:00:02,000 -> 00:00:04,000\nB", [("A", 2), ("B", 2)]),
        ("1\n00:00:00 --> 0:00:02.5\nA\n\n2\n00:02.500 --> 00:04,0\nB", [("A", 2.5), ("B", 1.5)]),
        # a timeline that begins at an hour, as editors write them, and cues out of order
        ("1\n01:00:00,000 --> 01:00:02,000\nA\n\n2\n01:00:02,000 --> 01:00:05,000\nB", [("A", 2), ("B", 3)]),
        ("1\n00:00:02,000 --> 00:00:04,000\nB\n\n2\n00:00:00,000 --> 00:00:02,000\nA", [("A", 2), ("B", 2)]),
    ],
)
def test_subtitles_are_read_as_players_do(tmp_path, text, expected):
    found = film(tmp_path / "a.srt", text)
    assert [(shot.prompt, shot.seconds) for shot in found.recipe.shots] == expected
    assert len(found.notices) == ("01:00:00" in text or text.endswith("A"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1\n00:00:01 --> three\nA", 2),
        ("1\n00:00:03,000 --> 00:00:02,000\nA", 2),
        ("1\n00:00:00,000 --> 00:00:02,000\nA\n\n2\n00:00:01,000 --> 00:00:03,000\nB", 6),
        ("1\n00:00:00,000 --> 00:00:02,000\n\n", 2),
        ("just words", 1),
    ],
)
def test_errors_in_subtitles_have_lines(tmp_path, text, line):
    assert [p.line for p in problems(tmp_path / "a.srt", text)] == [line]
