"""LoRA files from the command line: flags, recipes, records, plans, copies, workers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import helios_cli as helios
from helios_cli.cli import main
from helios_cli.film.again import read_again
from helios_cli.film.jobs import find_jobs
from helios_cli.recipe.lora import choose_loras
from helios_cli.recipe.options import RenderOptions
from support import loras
from support.reruns import decoded

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--size", "64x64", "--steps", "1,1,1", "--frames", "40", "--dtype", "float32", "--device", "cpu", "--no-cache"]
PROMPT = "a red circle"


@pytest.fixture
def folder(tmp_path, monkeypatch, distilled) -> Path:
    """The current folder, with a LoRA file for the small random model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))
    loras.write(Path("style.safetensors"), loras.weights_of(distilled))
    return tmp_path


def render(output: str, *arguments: str, source: str = PROMPT) -> np.ndarray:
    """Render a film, and return its frames."""
    assert main(["render", source, "-o", output, *FLAGS, "-q", *arguments]) == 0
    return decoded(Path(output))


def recipe(*entries: str) -> None:
    lora = f"lora = [{', '.join(entries)}]\n" if entries else ""
    Path("film.toml").write_text(f'version = 1\n{lora}[[shot]]\nprompt = "{PROMPT}"\n')


@pytest.mark.slow
def test_a_file_changes_the_film_and_a_weight_of_zero_does_not(folder):
    without = render("without.mkv")
    assert not np.array_equal(render("with.mkv", "--lora", "style.safetensors"), without)
    assert np.array_equal(render("zero.mkv", "--lora", "style.safetensors:0"), without)


@pytest.mark.slow
def test_a_recipe_s_files_are_those_of_the_flag_which_replaces_them(folder):
    by_flag = render("flag.mkv", "--lora", "style.safetensors:0.5")
    recipe('{ path = "style.safetensors", weight = 0.5 }')
    assert np.array_equal(render("recipe.mkv", source="film.toml"), by_flag)
    assert np.array_equal(render("none.mkv", "--lora", "none", source="film.toml"), render("without.mkv"))
    recipe('{ path = "style.safetensors", weight = 3 }')
    assert np.array_equal(render("over.mkv", "--lora", "style.safetensors:0.5", source="film.toml"), by_flag)


def test_a_file_on_the_hub_stays_there_whatever_is_in_the_current_folder(tmp_path, monkeypatch):
    """A recipe's `owner/style` is looked for next to the recipe, and not again where the command runs."""
    monkeypatch.chdir(tmp_path)
    recipe('{ path = "owner/style" }')
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "owner" / "style").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    (job,) = find_jobs(["../film.toml"], RenderOptions())
    for options in (job.options, replace(job.options, lora=None)):
        ((lora,), _) = choose_loras(job.film, options)
        assert lora.path == "owner/style" and lora.is_on_hub


@pytest.mark.slow
def test_files_of_a_recipe_are_found_from_its_folder(folder, monkeypatch):
    recipe('{ path = "style.safetensors" }')
    here = render("here.mkv", source="film.toml")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert np.array_equal(render("there.mkv", source="../film.toml"), here)


def test_a_film_is_made_again_from_its_record(folder):
    film = render("film.mkv", "--lora", "style.safetensors:0.5")
    record = read_again(Path("film.mkv")).record
    assert [(one.name, one.weight) for one in record.lora] == [("style.safetensors", 0.5)]
    assert main(["render", "--from", "film.mkv", "-o", "again.mkv", "--device", "cpu", "--no-cache", "-q"]) == 0
    assert np.array_equal(decoded(Path("again.mkv")), film)
    assert read_again(Path("again.mkv")).record.fingerprint == record.fingerprint


@pytest.mark.slow
def test_another_file_under_the_same_name_is_noticed(folder, distilled, capsys):
    render("film.mkv", "--lora", "style.safetensors")
    loras.write(Path("style.safetensors"), loras.weights_of(distilled), rank=2)
    capsys.readouterr()
    how = ["--device", "cpu", "--no-cache", "--progress", "plain"]
    assert main(["render", "--from", "film.mkv", "-o", "again.mkv", *how]) == 0
    assert "will not be bit-identical to film.mkv: it differs in lora" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_chunks_of_another_weight_are_not_taken_from_the_cache(folder):
    flags = [flag for flag in FLAGS if flag != "--no-cache"]
    for weight in ("1", "0.5", "1"):
        output = f"film{weight}.mkv"
        assert (
            main(["render", PROMPT, "-o", output, *flags, "-q", "--force", "--lora", f"style.safetensors:{weight}"])
            == 0
        )
    assert not np.array_equal(decoded(Path("film1.mkv")), decoded(Path("film0.5.mkv")))


@pytest.mark.slow
@pytest.mark.usefixtures("large")
def test_a_converted_copy_has_it(folder, distilled):
    """In bfloat16: the copy's weights were rounded after the file was folded in, as those of the render are."""
    command = ["models", "convert", str(distilled), "--lora", "style.safetensors:0.5", "--dtype", "bfloat16"]
    assert main([*command, "--out", "copy"]) == 0
    how = ["--dtype", "bfloat16"]
    with_copy = render("copy.mkv", "-m", "./copy", *how)
    assert np.array_equal(render("folded.mkv", "--lora", "style.safetensors:0.5", *how), with_copy)


def test_the_plan_and_the_description_name_it(folder, capsys):
    assert main(["plan", PROMPT, "--lora", "style.safetensors:0.5", "--json"]) == 0
    (film,) = json.loads(capsys.readouterr().out)["films"]
    (lora,) = film["model"]["lora"]
    assert (lora["weight"], lora["matched"], lora["ranks"]) == (0.5, lora["modules"], [4])
    assert film["settings"]["lora"] == {"value": ["style.safetensors:0.5"], "from": "flag"}
    assert main(["models", "info", "style.safetensors", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["family"], described["sha256"]) == ("PEFT", lora["sha256"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--lora", "stile.safetensors"], 2, "no such file"),
        (["--lora", "style.safetensors:11"], 2, "the weight 11 is not within -10 to 10"),
        (["--lora", "style.safetensors:0,8"], 2, "'0,8' is no weight: write style.safetensors:0.8"),
        (["--lora", "style.pt"], 2, "a pickle can run any program"),
        (["--lora", "."], 2, "a folder, not a LoRA file"),
        (["--lora", ""], 2, "names no LoRA file"),
        (["--lora", "other.safetensors"], 4, "other.safetensors"),
    ],
)
def test_faults_are_found_before_anything_renders(arguments, code, said, folder, capsys):
    Path("style.pt").touch()
    Path("other.safetensors").write_bytes(b"no header")
    assert main(["render", PROMPT, "-o", "film.mkv", *FLAGS, *arguments]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("film.mkv").exists()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (
            '[{ path = "style.safetensors", factor = 1 }]',
            "`lora`: file 1 has the unknown key `factor` hint",
        ),
        ('[{ path = "style.safetensors" }, { weight = 1 }]', "`lora`: file 2 has no `path`"),
        ('[{ path = "style.safetensors", weight = "much" }]', "`lora`: file 1: `weight` must be a number, not"),
        ('["style.safetensors"]', "`lora`: file 1 must hold keys and values, not text"),
        ('"style.safetensors"', "`lora`: must be a list of files, not text"),
        ('[{ path = "stile.safetensors" }]', "no such file"),
    ],
)
def test_a_wrong_entry_of_a_recipe_is_named(lora, said, folder, capsys):
    Path("film.toml").write_text(f'version = 1\nlora = {lora}\n[[shot]]\nprompt = "{PROMPT}"\n')
    assert main(["render", "film.toml", "-o", "film.mkv", *FLAGS]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.process
def test_workers_fold_it_too(folder):
    Path("cuts.txt").write_text(f"[1s] {PROMPT}\n\n[cut] the green square\n")
    alone = render("alone.mkv", "--lora", "style.safetensors:0.5", source="cuts.txt")
    shared = render("shared.mkv", "--lora", "style.safetensors:0.5", "--workers", "2", source="cuts.txt")
    assert np.array_equal(shared, alone)


@pytest.mark.slow
def test_the_shipped_recipe_and_python_make_the_same_film(tmp_path, monkeypatch):
    """The file of the recipe moves colours: there is less green than without it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    how = {"size": "64x64", "steps": "1,1,1", "frames": 20, "dtype": "float32", "device": "cpu", "cache": False}
    films = {}
    for name, lora in (("recipe", None), ("flag", "recipes/dusk.safetensors:0.5"), ("none", "none")):
        for _ in helios.render("recipes/lora.toml", output=f"{name}.mkv", lora=lora, **how):
            pass
        films[name] = decoded(Path(f"{name}.mkv")).reshape(-1, 3).mean(0)
    assert (films["recipe"] == films["flag"]).all()
    assert films["recipe"][1] < films["none"][1] - 20
