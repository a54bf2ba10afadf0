"""`helios recipe`, through the real entry point."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings

from helios_cli.cli import main
from helios_cli.recipe.export import write_recipe
from helios_cli.recipe.sources import read_films
from support.recipes import recipe_keys
from support.tiers import examples

SHOTS = '[2s] a red circle\n\na “green” square: with \\ and "quotes"\n'


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(40))
@given(keys=recipe_keys())
@example(keys={"version": 1, "shot": [{"prompt": "0\ufeff1\u200b2\u2060"}]})
def test_a_recipe_survives_all_forms(tmp_path, keys):
    source = tmp_path / "film.json"
    source.write_text(json.dumps(keys))
    films = read_films([str(source)])
    for form in ("toml", "yaml", "json"):
        out = tmp_path / form / f"film.{form}"
        out.parent.mkdir(exist_ok=True)
        out.write_text(write_recipe(films[-1], form, out.parent), encoding="utf-8", newline="\n")
        films += read_films([str(out)])
    pictures = [[film.picture(shot.image) for shot in film.recipe.shots if shot.image] for film in films]
    assert pictures == [pictures[0]] * 4
    recipes = [film.recipe.to_dict() for film in films]
    for recipe in recipes:
        for shot in recipe["shot"]:
            shot.pop("image", None)
    assert recipes == [recipes[0]] * 4


def test_convert_keeps_pictures_and_odd_text(tmp_path):
    """The command writes what `write_recipe` returns, byte by byte."""
    keys = {"title": "ü\u2028\U0001f600", "shot": [{"prompt": "a\r\nb", "image": "../sea.jpg", "seed": 2**63 - 1}]}
    source = tmp_path / "film.json"
    source.write_text(json.dumps(keys))
    picture = read_films([str(source)])[0].picture("../sea.jpg")
    for form in ("toml", "yaml", "json"):
        (film,) = read_films([str(source)])
        out = tmp_path / form / f"film.{form}"
        out.parent.mkdir()
        assert main(["recipe", "convert", str(source), str(out)]) == 0
        assert out.read_bytes() == write_recipe(film, form, out.parent).encode()
        (written,) = read_films([str(out)])
        assert written.recipe.shots[0].prompt == film.recipe.shots[0].prompt
        assert written.picture(written.recipe.shots[0].image) == picture
        source = out


def test_convert_writes_any_form(tmp_path, capsys):
    (tmp_path / "shots.txt").write_text(SHOTS)
    expected = {"version": 1, "shot": [{"prompt": "a red circle", "seconds": 2}, {"prompt": SHOTS.split("\n")[2]}]}
    for suffix, load in ((".toml", tomllib.loads), (".yaml", yaml.safe_load), (".json", json.loads)):
        out = tmp_path / f"film{suffix}"
        assert main(["recipe", "convert", str(tmp_path / "shots.txt"), str(out)]) == 0
        assert load(out.read_text()) == expected
        assert main(["recipe", "convert", str(tmp_path / "shots.txt"), "-", "--to", suffix[1:]]) == 0
        assert capsys.readouterr().out == out.read_text()


def test_convert_overwrites_only_when_told(tmp_path, capsys):
    out = tmp_path / "film.toml"
    out.write_text("kept")
    assert main(["recipe", "convert", "a red circle", str(out)]) == 2
    assert out.read_text() == "kept" and "--force" in capsys.readouterr().err
    assert main(["recipe", "convert", "a red circle", str(tmp_path / "film.mp4")]) == 2
    assert main(["recipe", "convert", "a red circle", str(tmp_path / "no" / "film.toml")]) == 2
    assert main(["recipe", "convert", "a red circle", "-", "--to", "xml"]) == 2
    capsys.readouterr()
    assert main(["recipe", "convert", "a red circle", str(tmp_path / "new.yaml"), "--to", "json"]) == 2
    assert "--to json" in capsys.readouterr().err and not (tmp_path / "new.yaml").exists()
    assert main(["recipe", "convert", "a red circle", str(tmp_path / "new.yml"), "--to", "yaml"]) == 0


def test_convert_takes_one_film_of_several(tmp_path, capsys):
    source = tmp_path / "list.csv"
    source.write_text("id,prompt_index,prompt\n1,1,a\n2,0,b\n")
    assert main(["recipe", "convert", str(source), "-"]) == 2
    assert "list-1, list-2" in capsys.readouterr().err
    assert main(["recipe", "convert", str(source), "-", "--film", "list-2"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["shot"] == [{"prompt": "b"}]
    assert main(["recipe", "convert", str(source), "-", "--film", "list-3"]) == 2


def test_check_reports_all_errors_of_all_files(tmp_path, capsys):
    good, bad, worse = (tmp_path / name for name in ("good.toml", "bad.yaml", "worse.json"))
    good.write_text("seconds = 3600\n[[shot]]\nprompt = 'x'\n")
    bad.write_text("shot:\n- prompt: x\n  image: gone.png\n  secnds: 3\n")
    worse.write_text('{"seconds": 1, "shot": [\n{"prompt": "x", "seconds": 9}]}')
    names = [str(path) for path in (good, bad, worse)]
    assert main(["recipe", "check", *names]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}: 1 shot, 86400 frames (1:00:00 h")
    assert f"{bad}:4: shot 1, `secnds`: unknown key; write `seconds`" in err and f"{worse}:1: `seconds`" in err
    assert main(["recipe", "check", *names, "--json"]) == 2
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [(p["file"], p["line"], p["key"]) for p in report["problems"]] == [
        (str(bad), 4, "secnds"),
        (str(worse), 1, "seconds"),
    ]
    assert [film["frames"] for film in report["films"]] == [86400] and not err
    assert main(["recipe", "check", str(good)]) == 0


def test_check_names_the_films_of_a_list(tmp_path, capsys):
    source = tmp_path / "list.csv"
    source.write_text("id,prompt_index,prompt\n1,0,a\n2,0,b\n")
    assert main(["recipe", "check", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{source}, list-1", f"{source}, list-2"]


def test_the_schema_is_json_on_standard_output(capsys):
    assert main(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "helios recipe"


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["schema"], ["check", "recipes/hello.toml"]])
def test_recipes_need_no_torch(arguments):
    code = f"""
import sys
from helios_cli.cli import main
code = main(["recipe", *{arguments!r}])
heavy = {{"torch", "transformers", "diffusers"}} & set(sys.modules)
sys.exit(code or (f"imported {{heavy}}" if heavy else 0))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
