"""Films made again from what they record: through the command, in this process, with ffmpeg's own decode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios_cli.check.examine import examine
from helios_cli.check.layout import read_sidecar
from helios_cli.cli import main
from helios_cli.engine import choices
from helios_cli.engine.finish import Finish
from helios_cli.engine.script import Planned
from helios_cli.errors import InputError
from helios_cli.film.again import Again, read_again
from helios_cli.film.record import KEY, Record, chapters
from helios_cli.film.sidecar import sidecar_path
from helios_cli.film.target import Target, sidecar_of
from helios_cli.model.attention import choose
from helios_cli.recipe.fingerprint import Arithmetic, Identity, chunk_fingerprints
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.settings import ModelDefaults, resolve_settings
from helios_cli.recipe.sources import read_films
from helios_cli.weights.names import KNOWN
from support.reruns import FFMPEG, decoded
from support.tiers import examples

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = ("--size", "64x64", "--steps", "1,1,1", "--dtype", "float32", "--no-cache", "-q")
BOAT = """
title = "A boat; = # \\\\ Łódź"
[[shot]]
prompt = "a red circle"
seconds = 1.5
[[shot]]
prompt = "a green square = a; #sea"
transition = "cut"
seed = 9
seconds = 0.5
"""


@pytest.fixture
def helios(tmp_path, monkeypatch, distilled):
    """Runs a command in an empty folder with its own home; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    Path("boat.toml").write_text(BOAT)
    return lambda *arguments: main([*map(str, arguments)])


def described(film: str) -> str:
    return subprocess.run([FFMPEG, "-hide_banner", "-i", film], capture_output=True, text=True).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "source", "again"),
    [
        ("boat.mp4", "boat.mp4", "boat-again.mp4"),
        ("boat.mkv", "boat.mkv", "boat-again.mkv"),
        ("boat.mkv", "boat.json", "boat-again.mkv"),
        ("boat/", "boat/", "boat-again"),
    ],
)
def test_a_film_is_made_again_bit_for_bit(helios, output, source, again):
    assert helios("render", "boat.toml", *SMALL, "--seed", 5, "--crf", 30, "--reanchor", "-o", output) == 0
    assert helios("render", "--from", source, "--no-cache", "-q") == 0
    first, second = Path(output), Path(again)
    assert len(decoded(first)) == 48
    assert (decoded(first) == decoded(second)).all()
    if first.suffix == ".mp4":  # a Matroska file has a random number in it
        assert first.read_bytes() == second.read_bytes()
    elif first.is_file():
        assert read_again(first).record == read_again(second).record


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("reuse_history", True), ("reuse_steps", 2)])
def test_what_is_reused_is_made_again_as_it_is_recorded(helios, key, value):
    small = *SMALL, "--seed", 5, "--steps", "4,1,1"
    flag = [f"--{key.replace('_', '-')}", *([] if value is True else [value])]
    assert helios("render", "boat.toml", *small) == 0
    assert helios("render", "boat.toml", *small, *flag, "-o", "reused.mp4") == 0
    assert helios("render", "--from", "reused.mp4", "--no-cache", "-q", "-o", "again.mp4") == 0
    exact, reused, again = (decoded(Path(name)) for name in ("boat.mp4", "reused.mp4", "again.mp4"))
    assert (reused == again).all() and (reused != exact).any()
    records = [read_again(Path(name)).record for name in ("boat.mp4", "reused.mp4", "again.mp4")]
    assert [getattr(record, key) for record in records] == [None, value, value]
    assert records[0].differences(records[1]) == [key] and not records[1].differences(records[2])


def test_a_rung_goes_before_the_record(helios):
    """Nothing that a rung names comes from the record, whether the rung has it or not."""
    assert helios("render", "boat.toml", *SMALL, "--frames", 9, "--reuse-history", "-o", "reused.mp4") == 0
    again = read_again(Path("reused.mp4"))
    assert again.options(RenderOptions(), set()).reuse_history
    assert again.options(RenderOptions(speed="exact"), {"speed"}).reuse_history is None


@pytest.mark.slow
def test_flags_go_before_the_record(helios):
    assert helios("render", "boat.toml", *SMALL, "--seed", 5, "--frames", 40) == 0
    assert helios("render", "boat.toml", *SMALL, "--seed", 6, "--seconds", 1, "-o", "six.mp4") == 0
    assert helios("render", "--from", "boat.mp4", "--seed", 6, "--seconds", 1, "--no-cache", "-q") == 0
    assert (decoded(Path("six.mp4")) == decoded(Path("boat-again.mp4"))).all()
    assert helios("render", "--from", "boat.mp4", "--crf", 40, "-q", "-o", "small.mp4") == 0
    assert read_again(Path("small.mp4")).record.encoding.crf == 40
    assert len(decoded(Path("small.mp4"))) == 40


@pytest.mark.slow
def test_a_film_made_again_can_be_planned_first(helios, capsys):
    """With what it records: its chunks are those kept from it. Another seed changes all before the cut with its own."""
    kept = [flag for flag in SMALL if flag != "--no-cache"]
    assert helios("render", "boat.toml", *kept, "--seed", 5, "--frames", 40) == 0
    capsys.readouterr()
    assert helios("render", "--from", "boat.mp4", "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)["films"][0]
    assert [chunk["kept"] for chunk in planned["chunks"]] == [True, True, True]
    assert helios("render", "--from", "boat.mp4", "--dry-run", "--json", "--seed", 6) == 0
    changed = json.loads(capsys.readouterr().out)["films"][0]
    assert [chunk["kept"] for chunk in changed["chunks"]] == [False, False, True]
    assert not Path("boat-again.mp4").exists()


@pytest.mark.slow
def test_another_dtype_is_said_to_make_another_film(helios, capsys):
    assert helios("render", "boat.toml", *SMALL) == 0
    arguments = ("render", "--from", "boat.mp4", "--no-cache", "--progress", "plain", "--force")
    assert helios(*arguments) == 0
    assert "bit-identical" not in capsys.readouterr().err
    assert helios(*arguments, "--dtype", "bfloat16") == 0
    assert "not be bit-identical to boat.mp4: it differs in dtype" in capsys.readouterr().err


@pytest.mark.slow
def test_another_attention_makes_another_film(helios, capsys, monkeypatch):
    """An attention backend repeats its results bit for bit. A repeated film requests the same setting, and takes
    for each shape what `auto` took."""
    assert helios("render", "boat.toml", *SMALL, "--attention", "math") == 0
    assert helios("render", "boat.toml", *SMALL, "--attention", "sdpa", "-o", "other.mp4") == 0
    arguments = ("render", "--from", "boat.mp4", "--no-cache", "--progress", "plain", "--force")
    assert helios(*arguments) == 0
    assert "bit-identical" not in capsys.readouterr().err
    assert (decoded(Path("boat.mp4")) == decoded(Path("boat-again.mp4"))).all()
    assert helios(*arguments, "--attention", "sdpa") == 0
    assert "not be bit-identical to boat.mp4: it differs in attention" in capsys.readouterr().err
    monkeypatch.setenv("HELIOS_KERNELS", "reference")
    assert helios(*arguments) == 0
    assert "not be bit-identical to boat.mp4: it differs in kernels\n" in capsys.readouterr().err


@pytest.mark.slow
def test_what_auto_took_of_each_shape_is_wanted_again(helios, monkeypatch):
    asked = []
    monkeypatch.setattr(choices, "choose", lambda *words, **how: asked.append(how["wanted"]) or choose(*words, **how))
    assert helios("render", "boat.toml", *SMALL) == 0
    record = json.loads(Path("boat.json").read_text())
    assert "attention_taken" not in record  # of a CPU it follows from processor and versions
    taken = {"4096x128 40x128 bfloat16 bias": "cudnn"}
    Path("boat.json").write_text(json.dumps({**record, "attention_taken": taken}))
    assert helios("render", "--from", "boat.json", "--no-cache", "-q", "--frames", 1) == 0
    assert asked == [{}, taken]


@pytest.mark.slow
def test_pictures_and_model_folders_are_found_from_the_film(helios, tmp_path):
    """Relative to the film: all three move together."""
    Path("a").mkdir()
    shutil.copy(RECIPES / "first_frame.png", "a/sea.png")
    shutil.copytree(Path(__file__).resolve().parents[2] / "helios_cli" / "tiny", "a/weights")
    small = ("-m", "a/weights", *SMALL)
    assert helios("render", "a boat", *small, "--image", "a/sea.png", "-o", "a/boat.mkv", "--frames", 9) == 0
    text = Path("a/boat.json").read_text()
    assert str(tmp_path) not in text
    Path("a").rename("b")
    assert helios("render", "--from", "b/boat.mkv", "--no-cache", "-q") == 0
    assert str(tmp_path) not in Path("boat-again.json").read_text()
    assert (decoded(Path("b/boat.mkv")) == decoded(Path("boat-again.mkv"))).all()


def test_the_sidecar_says_how_the_film_was_made(helios):
    assert helios("render", "boat.toml", *SMALL, "--seed", 5) == 0
    sidecar = json.loads(Path("boat.json").read_text())
    assert (sidecar["format"], sidecar["version"], sidecar["film"]) == ("helios film", 1, "boat.mp4")
    assert (sidecar["seed"], sidecar["size"], sidecar["frames"], sidecar["steps"]) == (5, "64x64", 48, [1, 1, 1])
    assert set(sidecar["versions"]) == {"helios", "torch", "ffmpeg"}
    spans = [(chunk["start_frame"], chunk["num_frames"], chunk["fresh"], chunk["shot"]) for chunk in sidecar["chunks"]]
    assert spans == [(0, 33, True, 0), (33, 3, False, 0), (36, 12, True, 1)]
    assert len({chunk["fingerprint"] for chunk in sidecar["chunks"]}) == 3
    assert [span.cut for span in read_sidecar(Path("boat.mp4")).spans] == [True, False, True]
    assert not list(Path().glob("*.partial*"))


@pytest.mark.slow
def test_no_metadata_leaves_nothing(helios):
    assert helios("render", "boat.toml", *SMALL, "--no-metadata") == 0
    assert sorted(path.name for path in Path().iterdir() if path.name != "home") == ["boat.mp4", "boat.toml"]
    said = described("boat.mp4")
    assert "Chapter" not in said and KEY not in said and "title" not in said
    with pytest.raises(InputError, match="does not say how it was made"):
        read_again(Path("boat.mp4"))


@pytest.mark.slow
def test_chapters_are_the_shots(helios):
    assert helios("render", "boat.toml", *SMALL) == 0
    said = described("boat.mp4")
    assert "Chapter #0:0: start 0.000000, end 1.500000" in said
    assert "Chapter #0:1: start 1.500000, end 2.000000" in said
    assert "a green square = a; #sea" in said
    assert helios("render", "one", *SMALL, "--frames", 9) == 0
    assert "Chapter" not in described("one.mp4")


def test_the_title_of_a_chapter_is_short(tmp_path):
    film, plan = planned(tmp_path, f'[[shot]]\nprompt = "{"boat " * 99}"\n[[shot]]\nprompt = "sea"\n')
    titles = [chapter.title for chapter in chapters(film, plan)]
    assert titles[1] == "sea" and len(titles[0]) <= 80 and titles[0].endswith("boat…")


@pytest.mark.slow
def test_check_and_strict(helios, capsys):
    assert helios("render", "boat.toml", *SMALL[:-1], "--progress", "plain", "--check") == 0
    told = capsys.readouterr().err
    findings = examine("boat.mp4").findings
    assert told.count("check: ") == max(1, len(findings))
    assert all(finding.message in told for finding in findings)
    code = helios("render", "boat.toml", *SMALL, "--check", "--strict", "--force")
    assert code == (1 if findings else 0)
    assert Path("boat.mp4").exists()


@pytest.mark.slow
def test_exports_stand_beside_the_film(helios):
    assert helios("render", "boat.toml", *SMALL, "--export", "otio,edl") == 0
    assert Path("boat.otio").exists() and Path("boat.edl").exists()
    Path("boat.mp4").unlink()
    assert helios("render", "boat.toml", *SMALL, "--export", "edl") == 2
    assert not Path("boat.mp4").exists()


# Names


@pytest.mark.slow
def test_a_sidecar_replaces_no_other_file(helios):
    Path("boat.json").write_text(json.dumps({"version": 1, "shot": [{"prompt": "a red circle"}]}))
    recipe = Path("boat.json").read_text()
    assert helios("render", "boat.json", *SMALL, "--frames", 9) == 0
    assert Path("boat.json").read_text() == recipe
    assert sidecar_of(Path("boat.mp4")).name == "boat.mp4.json"
    assert read_again(Path("boat.mp4.json")).suffix == ".mp4"
    assert helios("render", "boat.json", *SMALL, "--frames", 9, "-o", "boat/") == 0
    assert sidecar_of(Path("boat")).name == "boat.png.json"
    assert [span.num_frames for span in read_sidecar(Path("boat")).spans] == [9]


@pytest.mark.slow
def test_two_films_of_one_stem_have_two_sidecars(helios):
    for name in ("boat.mp4", "boat.mkv"):
        assert helios("render", "boat.toml", *SMALL, "-o", name) == 0
    assert json.loads(Path("boat.json").read_text())["film"] == "boat.mp4"
    assert json.loads(Path("boat.mkv.json").read_text())["film"] == "boat.mkv"
    Path("boat.mkv.json").write_text("mine")
    assert sidecar_path(Target.of("boat.mkv"), "boat.toml") is None


@pytest.mark.slow
def test_names_that_are_not_utf_8(helios):
    """Bytes that an old disk left: kept as they are, in every file that names them."""
    source, film = os.fsdecode(b"b\xe9.txt"), os.fsdecode(b"caf\xe9.mkv")
    Path(source).write_text("a red circle\n")
    kept = [flag for flag in SMALL if flag != "--no-cache"]
    assert helios("render", source, *kept, "--frames", 9, "-o", film, "--export", "otio,edl", "--check") == 0
    for path in (Path(film), Path(film).with_suffix(".json")):
        assert read_again(path).record.title == "b\\udce9"
    timeline = Path(film).with_suffix(".otio").read_text()
    assert '"target_url": "caf%E9.mkv"' in timeline
    assert helios("render", "--from", Path(film).with_suffix(".json"), "-q") == 0
    assert Path(os.fsdecode(b"caf\xe9-again.mkv")).exists()
    assert helios("cache", "list") == 0
    assert helios("check", film, "--report", os.fsdecode(b"p\xe9ge.html")) in (0, 1)


# What --from takes


def test_one_of_source_and_from(helios):
    assert helios("render") == 2
    assert helios("render", "a boat", "--from", "boat.mp4") == 2
    assert helios("render", "--from", "no-such.mp4") == 2
    Path("junk.mp4").write_bytes(b"junk")
    assert helios("render", "--from", "junk.mp4") == 2


def test_a_folder_of_pictures_is_known_by_its_own_sidecar(tmp_path):
    (tmp_path / "boat").mkdir()
    with pytest.raises(InputError, match=r"boat: the file does not say .* \(there is no boat\.json next to it\)"):
        read_again(tmp_path / "boat")
    film, plan = planned(tmp_path, '[[shot]]\nprompt = "a boat"\n')
    content = record_of(film, plan, RenderOptions(), tmp_path).model_dump(mode="json") | {"film": "boat.mp4"}
    (tmp_path / "boat.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"boat\.json describes boat\.mp4"):
        read_again(tmp_path / "boat")
    (tmp_path / "boat.png.json").write_text(json.dumps(content | {"film": "boat"}))
    assert read_again(tmp_path / "boat").suffix == "/"


@pytest.mark.slow
@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_other_file_is_bad_input(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(InputError):
        read_again(tmp_path / "x.json")


def record_of(film, plan: Plan, flags: RenderOptions, folder: Path, **rounding) -> Record:
    arithmetic = Arithmetic("cpu", "float32", "2", **rounding)
    finish = Finish(
        Planned(plan, film),
        "film.mp4",
        flags,
        "base",
        Path("c" * 40),
        (),
        None,
        "cpu",
        Target.of(folder / "film.mp4"),
        Identity("0", arithmetic),
        lambda plan: chunk_fingerprints(plan, "weights", arithmetic),
    )
    return finish.record()


def planned(folder: Path, text: str, flags: RenderOptions | None = None):
    (folder / "x.toml").write_text(text)
    return planned_film(read_films([str(folder / "x.toml")])[0], flags or RenderOptions())


def planned_film(film, flags: RenderOptions):
    return film, plan_film(film, resolve_settings(film.recipe, flags, ModelDefaults((128, 64), (2, 2, 2), 1.0)))


def test_several_devices_of_a_film_are_recorded_where_they_round_differently(tmp_path):
    film, plan = planned(tmp_path, 'version = 1\n[[shot]]\nprompt = "a boat"\nseconds = 1\n')
    one, ranks, apart = (
        record_of(film, plan, RenderOptions(), tmp_path, **rounding)
        for rounding in ({}, {"team": 2, "decoders": 2}, {"vae": "NVIDIA L4, triton 3.9.0"})
    )
    assert not {"team", "decoders", "vae"} & set(json.loads(one.metadata()[KEY]))
    assert one.differences(ranks) == ["team", "decoders"] and one.differences(apart) == ["vae"]
    assert Record.model_validate(json.loads(apart.metadata()[KEY])) == apart
    assert len({record.fingerprint for record in (one, ranks, apart)}) == 3


@pytest.mark.parametrize(
    "flags",
    [RenderOptions(), RenderOptions(frames=700, seed=3, fps=12.5), RenderOptions(image=RECIPES / "first_frame.png")],
)
@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.t*")), ids=lambda path: path.name)
def test_the_plan_from_a_record_is_the_plan(tmp_path, recipe, flags):
    """Every recipe of the package, as it is and under flags: the chunks to the last number."""
    film, plan = planned_film(read_films([str(recipe)])[0], flags)
    content = record_of(film, plan, flags, tmp_path).model_dump(mode="json") | {"film": "film.mkv"}
    (tmp_path / "film.json").write_text(json.dumps(content))
    again = read_again(tmp_path / "film.json")
    _, second = planned_film(again.film, again.options(RenderOptions(), ()))
    keys = ("chunks", "num_frames", "fps", "size", "negative", "steps", "guidance", "title")
    assert [getattr(second, key) for key in keys] == [getattr(plan, key) for key in keys]


def test_the_model_comes_with_its_commit_unless_another_is_asked_for(tmp_path):
    film, plan = planned(tmp_path, '[[shot]]\nprompt = "sea"\n')
    again, base = (
        Again(tmp_path / "x.mp4", record_of(film, plan, RenderOptions(), tmp_path), film, ".mp4"),
        KNOWN["base"].repo,
    )
    for asked, expected in ((None, (base, "c" * 40)), ("mid", ("mid", None)), (base, (base, "c" * 40))):
        options = again.options(RenderOptions(model=asked), ())
        assert (options.model, options.revision) == expected


@pytest.fixture
def sidecar(helios, tmp_path):
    """Write `boat.json`, a valid sidecar except for the `changes`."""
    film, plan = planned(tmp_path, '[[shot]]\nprompt = "a red circle"\n')
    whole = record_of(film, plan, RenderOptions(), tmp_path).model_dump(mode="json", exclude_none=True)
    whole |= {"film": "boat.mp4", "model": {"name": "tiny", "identity": "0"}}

    def write(**changes) -> dict:
        content = whole | changes
        Path("boat.json").write_text(json.dumps(content))
        return content

    return write


def test_a_model_that_nobody_here_has_named_is_asked_for(helios, sidecar, capsys, monkeypatch):
    sidecar(model={"name": "x", "identity": "0", "repo": "stranger/weights", "revision": "main"})
    assert helios("render", "--from", "boat.json", "--dry-run") == 2
    said = capsys.readouterr().err
    assert "`model.repo` is stranger/weights" in said and "add -m stranger/weights" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert helios("render", "--from", "boat.json", "--dry-run", "-m", "stranger/weights") == 4
    assert "stranger/weights" in capsys.readouterr().err
    assert helios("render", "--from", "boat.json", "--dry-run", "-m", "tiny") == 0


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        *(("film", {"film": film}) for film in ("a\0b", "\ud800", "x" * 300, "", "/", ".", "..", "a/b", 5, "a\x1b")),
        *(("model.folder", {"model": {"folder": folder}}) for folder in ("/dev/zero", "/dev/stdin", "fifo", "x" * 300)),
        *(("model.folder", {"model": {"folder": folder}}) for folder in ("a\0b", "x" * 5000, "\x1b[31m", "boat.json")),
        *(("model.repo", {"model": {"repo": repo}}) for repo in ("x/" + "y" * 300, "a", "../x", "a/b\x1b", "\ud800/a")),
        *(
            ("model.revision", {"model": {"repo": "a/b", "revision": text}})
            for text in ("y" * 300, "-x", "\x1b[31m", "a\nb")
        ),
        *(("title", {"title": text}) for text in ("x" * 2000, "\x1b]0;x\x07", "\u202e", 3)),
        *(("frames", {"frames": number}) for number in (0, -1, 10**400, 1e308, "x", None)),
        *(("device", {"device": text}) for text in ("\x1b", "x" * 99, "")),
        *(("encoding.crf", {"encoding": {"codec": "h264", "preset": "slow", "crf": crf}}) for crf in (-1, 10**9, "x")),
        ("encoding.preset", {"encoding": {"codec": "h264", "preset": "-f lavfi", "crf": 17}}),
        ("versions", {"versions": {f"a{n}": "1" for n in range(1000)}}),
        ("prompt", {"recipe": {"shot": [{"prompt": "\x1b"}]}}),
        ("seconds", {"recipe": {"shot": [{"prompt": "x", "seconds": 1e308}]}}),
    ],
)
def test_a_strangers_record_is_input(helios, sidecar, capsys, key, changes):
    """Each key has a length and a set of characters; the one that is wrong is named."""
    os.mkfifo("fifo")
    if "model" in changes:
        changes = {"model": {"name": "x", "identity": "0", **changes["model"]}}
    sidecar(**changes)
    before = Path("boat.json").read_bytes()
    assert helios("render", "--from", "boat.json", "--dry-run") == 2
    said = capsys.readouterr().err
    assert f"`{key}`" in said and "\x1b" not in said
    if key == "film":  # nor does a film fail on the file next to it
        assert sidecar_path(Target.of("boat.mp4"), "x") == Path("boat.mp4.json").absolute()
    assert Path("boat.json").read_bytes() == before


FIELDS = st.sampled_from(sorted(Record.model_fields))
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2),
)


@pytest.mark.slow
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    changes=st.dictionaries(FIELDS, ANY, max_size=2),
    model=st.dictionaries(st.sampled_from(["name", "repo", "revision", "folder", "identity"]), ANY, max_size=2),
    recipe=st.dictionaries(
        st.sampled_from(["fps", "size", "seed", "steps", "shot", "negative", "title"]), ANY, max_size=2
    ),
)
def test_no_record_is_a_bug(helios, sidecar, changes, model, recipe):
    content = sidecar()
    sidecar(**{"model": content["model"] | model, "recipe": content["recipe"] | recipe} | changes)
    assert helios("render", "--from", "boat.json", "--dry-run", "--json") in (0, 2, 3, 4)
