"""`helios plan`, through the real entry point: what it says, what it leaves alone, how fast it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from rich.cells import cell_len

from helios_cli import machine
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.cli import main
from helios_cli.machine import CPU_FEATURES
from support.programs import program
from support.waiting import LONGEST

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

LOADED = """
import json, sys
from helios_cli.cli import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "numpy", "diffusers", "transformers"} & set(sys.modules))
sys.stderr.write("\\n" + json.dumps([code, heavy]))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: write_checkpoint(root / kind, SPECS["tiny"], kind=kind) for kind in ("base", "mid", "distilled")}


@pytest.fixture
def helios(tmp_path, monkeypatch, capsys):
    """Run `helios plan ...` in an empty folder, on a machine that has no model and no measurement."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HELIOS_MODEL", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))

    def run(*arguments: object, code: int = 0) -> Said:
        capsys.readouterr()
        assert main(["plan", *map(str, arguments)]) == code, capsys.readouterr().err
        return Said(*capsys.readouterr())

    return run


class Said(NamedTuple):
    out: str
    err: str


def loaded(tmp_path: Path, *arguments: object) -> tuple[int, list[str]]:
    """Exit code of a process of its own and the heavy modules that it imported."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HELIOS_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOADED, "plan", *map(str, arguments)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LONGEST)
    return tuple(json.loads(run.stderr.splitlines()[-1]))


def film(said: Said) -> dict:
    return json.loads(said.out)["films"][0]


def test_a_published_model_is_planned_without_it(helios):
    done = helios(RECIPES / "three_minutes.toml", "-m", "distilled", "--on", "H100", "--price", 2.5)
    assert "is not downloaded: planned with its published shape" in done.err
    for part in (
        "4320 frames",
        "132 chunks",
        "80.5 GB to download",
        "810 model calls",
        "stated: 40%",
        "2.5 a GPU-hour",
    ):
        assert part in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "fingerprint" not in done.out


@pytest.mark.process
@pytest.mark.parametrize("model", ["distilled", "a checkpoint"])
def test_it_needs_no_torch(tmp_path, checkpoints, model):
    name = checkpoints["distilled"] if model == "a checkpoint" else model
    assert loaded(tmp_path, RECIPES / "three_minutes.toml", "-m", name) == (0, [])


def test_json_has_what_the_film_is_made_of(helios, checkpoints):
    report = film(helios(RECIPES / "cut.toml", "-m", checkpoints["distilled"], "--json", "--device", "cpu"))
    assert report["frames"] == 216 and report["seconds"] == 9 and report["chunks_total"] == len(report["chunks"]) == 8
    assert [chunk["frames"] for chunk in report["chunks"]] == [33, 33, 6, 33, 33, 33, 33, 12]
    assert [chunk["start_frame"] for chunk in report["chunks"] if chunk["fresh"]] == [0, 72]
    assert [chunk["calls"] for chunk in report["chunks"]] == [12, 6, 6, 12, 6, 6, 6, 6]
    assert sum(stage["calls"] for stage in report["stages"]) == report["calls"] == 60
    assert [shot["seed"] for shot in report["shots"]] == [42, 8, None]
    assert report["roundings"] == [{"shot": 2, "asked_frame": 144, "actual_frame": 138}]
    assert report["settings"]["guidance"] == {"value": 1.0, "from": "model"}
    assert report["settings"]["seed"] == {"value": 42, "from": "default"}
    assert report["settings"]["model"]["from"] == "flag"
    prompts = [entry["text"] for entry in report["prompts"]]
    assert prompts[report["chunks"][3]["prompts"][0][0]] == report["shots"][1]["prompt"]
    assert report["tokens_counted"] and all(entry["tokens"] > 5 for entry in report["prompts"])
    assert len({chunk["fingerprint"] for chunk in report["chunks"]}) == 8 and report["fingerprint"]
    assert report["flops"]["total"] == sum(value for key, value in report["flops"].items() if key != "total")
    assert report["flops"]["denoise"] > sum(stage["flops"]["total"] for stage in report["stages"])
    assert not report["time"]["measured"] and report["cost"] is None
    mode, *others = report["memory"]
    assert [other["mode"] for other in others] == ["model", "stream"]
    assert (
        mode["mode"] == "none"
        and mode["chosen"]
        and mode["fits"]
        and [p["phase"] for p in mode["phases"]] == [*("text", "denoise", "decode")]
    )
    assert report["model"]["downloaded"] and report["disk"]["download_bytes"] == 0


def test_guidance_doubles_and_zero_init_skips(helios, checkpoints):
    mid = film(helios("a ball", "--json", "-m", checkpoints["mid"], "--steps", "20,20,20"))
    assert [stage["calls_chunk"] for stage in mid["stages"]] == [36, 40, 40]
    unguided = film(helios("a ball", "--json", "-m", checkpoints["mid"], "--guidance", "1"))
    assert [stage["calls_chunk"] for stage in unguided["stages"]] == [20, 20, 20]
    base = film(helios("a ball", "--json", "-m", checkpoints["base"]))
    assert [stage["calls_chunk"] for stage in base["stages"]] == [100]
    first = film(helios("a ball", "--json", "-m", checkpoints["distilled"], "--steps", "1,2,3"))
    assert [stage["calls"] for stage in first["stages"]] == [2, 4, 6]


@pytest.mark.slow
def test_the_calls_are_those_that_a_render_makes(checkpoints, helios, monkeypatch, tmp_path):
    """Counted on real renders of every kind."""
    import torch

    from helios_cli.engine.chunks import render_chunks
    from helios_cli.engine.models import Models
    from helios_cli.film.writer import open_writer
    from helios_cli.model.dit import HeliosDiT
    from helios_cli.recipe.options import RenderOptions
    from helios_cli.recipe.plan import plan_film
    from helios_cli.recipe.settings import ModelDefaults, resolve_settings
    from helios_cli.recipe.sources import read_films
    from helios_cli.weights.checkpoint import Checkpoint

    rows = []
    forward = HeliosDiT.forward
    monkeypatch.setattr(
        HeliosDiT, "forward", lambda self, x, history, *rest: rows.append(x) or forward(self, x, history, *rest)
    )
    for kind, steps in (("base", "2"), ("mid", "3,1,1"), ("distilled", "1,1,2")):
        report = film(
            helios("a ball", "-m", checkpoints[kind], "--frames", 34, "--steps", steps, "--size", "64x64", "--json")
        )
        (source,) = read_films(["a ball"])
        preset = Checkpoint.open(checkpoints[kind]).preset
        flags = RenderOptions(frames=34, size=(64, 64), steps=tuple(map(int, steps.split(","))))
        defaults = ModelDefaults((128, 64), preset.steps, preset.guidance)
        plan = plan_film(source, resolve_settings(source.recipe, flags, defaults))
        models = Models(Checkpoint.open(checkpoints[kind]), torch.device("cpu"), torch.float32)
        rows.clear()
        for _ in render_chunks(plan, models, open_writer(f"{tmp_path}/{kind}/", size=plan.size, fps=24)):
            pass
        assert len(rows) == report["calls"]
        noisy = [x[0, 0].numel() // 4 for x in rows]
        assert [noisy.count(stage["noisy_tokens"]) for stage in report["stages"]] == [
            stage["calls"] for stage in report["stages"]
        ]


def test_the_plan_names_the_fingerprints_that_a_render_uses(helios, checkpoints):
    """The fingerprints are those for this machine's device, dtype and threads, as torch reports them."""
    import torch

    from helios_cli.device import device_of, pick_dtype
    from helios_cli.recipe.fingerprint import Arithmetic, chunk_fingerprints
    from helios_cli.recipe.options import RenderOptions
    from helios_cli.recipe.plan import plan_film
    from helios_cli.recipe.settings import ModelDefaults, resolve_settings
    from helios_cli.recipe.sources import read_films
    from helios_cli.weights.checkpoint import Checkpoint, weights_identity

    checkpoint = Checkpoint.open(checkpoints["distilled"])
    (source,) = read_films(["a ball"])
    defaults = ModelDefaults((128, 64), checkpoint.preset.steps, checkpoint.preset.guidance)
    plan = plan_film(source, resolve_settings(source.recipe, RenderOptions(), defaults))
    device = device_of(torch.device("cpu"))
    here = Arithmetic(device.name, pick_dtype("auto", device)[0], torch.__version__)
    expected = chunk_fingerprints(plan, weights_identity(checkpoint), here)
    report = film(helios("a ball", "-m", checkpoint.path, "--device", "cpu", "--json"))
    assert [chunk["fingerprint"] for chunk in report["chunks"]] == expected


def test_several_films_have_one_sum(helios, checkpoints):
    done = helios("a ball", RECIPES / "hello.toml", "-m", checkpoints["distilled"])
    assert "all 2 films:" in done.out
    report = json.loads(helios("a ball", "a box", "-m", checkpoints["mid"], "--json", "--on", "h200").out)
    assert report["version"] == 1 and report["total"]["frames"] == 66
    assert report["total"]["seconds"] == sum(each["time"]["total"] for each in report["films"])


def test_a_shot_begins_in_a_minute_that_is_full(helios, tmp_path):
    """59.998 s are 1:00, not 0:60."""
    recipe = tmp_path / "film.toml"
    recipe.write_text('fps = 100.103\n[[shot]]\nprompt = "a"\nseconds = 60\n[[shot]]\nprompt = "b"\nseconds = 1\n')
    out = helios(recipe, "-m", "tiny", "--device", "cpu").out
    assert re.search(r"^ *2 +1:00 ", out, re.MULTILINE), out


def test_a_start_from_a_picture_is_encoded(helios, checkpoints, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    plain = film(helios("a ball", "-m", checkpoints["mid"], "--json"))
    started = film(helios("a ball", "-m", checkpoints["mid"], "--json", "--image", tmp_path / "a.png"))
    assert plain["flops"]["conditioning"] == 0 < started["flops"]["conditioning"]
    assert [phase["phase"] for phase in started["memory"][0]["phases"]][1] == "conditioning"
    assert plain["fingerprint"] != started["fingerprint"]
    assert started["settings"]["image"]["value"] == str(tmp_path / "a.png")


def test_speeds_that_were_measured_are_used(helios, checkpoints, tmp_path):
    report = film(helios("a ball", "-m", checkpoints["distilled"], "--json", "--device", "cpu"))
    measured = {"parameters": report["model"]["parameters"]["transformer"], "dit_flops": 1e9, "vae_flops": 1e9}
    speed = {"device": report["device"]["name"], "dtype": report["dtype"]["value"], **measured}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "speeds.json").write_text(json.dumps({"version": 1, "speeds": [speed]}))
    report = film(helios("a ball", "-m", checkpoints["distilled"], "--json", "--device", "cpu", "--price", 36))
    assert report["time"]["measured"]
    assert report["time"]["total"] == pytest.approx(report["flops"]["total"] / 1e9)
    assert report["cost"]["total"] == pytest.approx(report["time"]["total"] / 100)


@pytest.mark.slow
def test_the_embedded_model_has_times_from_the_start_and_a_film_leaves_its_own(helios, tmp_path):
    """Another machine's until a film was made here; a film that is taken from the cache, or of which memory was short,
    says nothing of how fast this machine computes."""
    words = ("a red circle", "-m", "tiny", "--device", "cpu", "--dtype", "float32", "--json")
    at_first = film(helios(*words))["time"]
    assert 0 < at_first["total"] < 60 and not at_first["measured"] and "AMD EPYC" in at_first["basis"]
    flags = ("-m", "tiny", "--device", "cpu", "--dtype", "float32", "-q", "--size", "64x64", "--steps", "1,1,1")
    speeds = tmp_path / "home" / "speeds.json"
    assert main(["render", "a red circle", *flags, "-o", "a.mp4", "--offload", "stream"]) == 0
    assert main(["render", "a red circle", *flags, "-o", "b.mp4"]) == 0  # from the cache
    assert not speeds.exists()
    assert main(["render", "a blue square", *flags, "-o", "c.mp4"]) == 0
    (kept,) = json.loads(speeds.read_text())["speeds"]
    planned = film(helios(*words))["time"]
    assert planned["measured"] and "measured here" in planned["basis"]
    report = film(helios(*words))
    expected = report["flops"]["denoise"] / kept["dit_flops"] + report["flops"]["decode"] / kept["vae_flops"]
    assert planned["denoise"] + planned["decode"] == pytest.approx(expected)


def test_the_time_of_a_streamed_film_is_that_of_its_weights(helios):
    """On a card that computes faster than blocks arrive, a film takes as long as they do."""
    arguments = ("a ball", "-m", "distilled", "--on", "4090", "--json", "--minutes", 1)
    report = film(helios(*arguments, "--vram", "12G", "--ram", "8G"))
    (mode,) = (mode for mode in report["memory"] if mode["chosen"])
    assert mode["mode"] == "stream"
    waited = report["time"]["decode"] + report["time"]["text"]  # nothing is read ahead in so little memory
    assert report["time"]["total"] == pytest.approx(mode["transfer_seconds"] * len(report["chunks"]) + waited)
    assert report["time"]["total"] > 5 * sum(report["time"][phase] for phase in ("text", "denoise", "decode"))


def test_lanes_share_what_is_waited_for(helios):
    """Films render together as `render` puts them; each takes its share of the pass that they share."""
    sources = ("a ball", "a box", "a cube", "-m", "distilled", "--on", "4090", "--vram", "12G")
    alone = json.loads(helios(*sources, "--json").out)
    together = json.loads(helios(*sources, "--lanes", 2, "--json").out)
    assert [each["lanes"] for each in together["films"]] == [2, 2, 1]
    pairs = list(zip(together["films"], alone["films"], strict=True))
    assert all(2 * shared["time"]["total"] < 1.3 * each["time"]["total"] for shared, each in pairs[:2])
    assert pairs[2][0] == pairs[2][1]
    kept = [each["memory"][1]["phases"][1]["kept"] for each in pairs[0]]
    assert kept[0] == 2 * kept[1]
    assert "for 2 films in lockstep" in helios(*sources, "--lanes", 2).out


def test_a_chunk_takes_no_less_than_its_weights(helios):
    """A time that was not measured is bounded by its weights; where it was measured, both are printed."""
    unknown = helios("a ball", "-m", "distilled", "--device", "cpu", "--dtype", "float32", "--ram", "8G").out
    known = helios("a ball", "-m", "distilled", "--on", "H100", "--vram", "12G").out
    assert re.search(r" 57\.8 s +>= 57\.8 s +no", unknown)
    assert re.search(r" 14\.4 s +20\.2 s +no", known)  # what comes whole is waited for
    assert max(map(len, [*unknown.splitlines(), *known.splitlines()])) <= 80


@pytest.mark.parametrize("columns", [40, 80])
def test_no_name_makes_it_wider(helios, checkpoints, monkeypatch, tmp_path, columns):
    """A long title, path of the model, name of the processor, size, seed and prompt, each without a place to break."""
    cpu = machine.cpu()
    monkeypatch.setattr(machine, "cpu", lambda: cpu._replace(model="Xeon" * 20, features=CPU_FEATURES))
    monkeypatch.setenv("COLUMNS", str(columns))
    model = tmp_path / ("model" * 30)
    shutil.copytree(checkpoints["mid"], model)
    shot = {"prompt": "球" * 200, "seconds": 1, "seed": 2**62}
    recipe = tmp_path / "film.json"
    recipe.write_text(json.dumps({"version": 1, "title": "T" * 200, "shot": [shot, {**shot, "transition": "cut"}]}))
    out = helios(recipe, "-m", model, "--device", "cpu", "--price", 1e5).out
    assert max(map(cell_len, out.splitlines())) <= columns
    whole = "".join(out.split())
    assert "T" * 200 in whole and "fingerprint" in whole
    assert out.count("Xeon") > 10


def test_segments_are_shared_out(helios):
    """The plan of a farm follows that of the film; `--json` has its schedule."""
    words = (RECIPES / "cut.toml", "-m", "distilled", "--on", "H100", "--price", 2)
    plain, shared = helios(*words).out, helios(*words, "--workers", 2).out
    assert shared.startswith(plain[: plain.index("workers ")]) and plain.splitlines()[-1].startswith("workers ")
    unwrapped = " ".join(shared.split())
    for part in (
        "segments 2 between cuts; the longest takes",
        "shot 2 of Three shapes",
        "workers 2, each on 1 GPU",
        "times as fast as one worker",
        "with 2 workers: nothing ends before",
        "80.5 s from the disk, once for each worker; part of these times",
    ):
        assert part in unwrapped
    assert re.search(r"^2 \* +\S+ (s|min) +1\.\d+ +0\.\d\d$", shared, re.MULTILINE)
    assert max(map(len, shared.splitlines())) <= 80
    report = json.loads(helios(*words, "--workers", 2, "--json").out)
    farm, (alone,) = report["farm"], report["films"]
    parts = [(part["first_chunk"], part["chunks"], part["frames"]) for part in alone["segments"]]
    assert parts == [(0, 3, 72), (3, 5, 144)]
    assert (farm["segments"], farm["workers"], farm["useful_workers"]) == (2, 2, 2)
    assert farm["longest"] == {"film": 0, "segment": 1}
    longest = max(part["seconds"] for part in alone["segments"])
    assert farm["seconds"] == farm["bound_seconds"] == pytest.approx(farm["load_seconds"] + longest)
    assert sum(part["seconds"] for part in alone["segments"]) == pytest.approx(alone["time"]["total"])
    assert farm["table"][0]["seconds"] == pytest.approx(farm["load_seconds"] + alone["time"]["total"])
    assert farm["speedup"] == pytest.approx(farm["table"][0]["seconds"] / farm["seconds"])
    assert farm["cost"] == pytest.approx(2 * 2 * farm["seconds"] / 3600)


@pytest.mark.parametrize("flags", [["--workers", "3"], ["--share"], ["--cluster", "auto"], ["--workers", "auto"]])
def test_workers_cannot_speed_up_a_film_without_cuts(helios, checkpoints, flags):
    said = " ".join(helios("a ball", "-m", checkpoints["distilled"], "--device", "cpu", *flags).out.split())
    assert "the film has no cuts, so that more workers do not make it faster; `--gpus-per-film` and cuts" in said


def test_films_without_cuts_are_shared_out(helios, checkpoints):
    words = ("a ball", "a box", "-m", checkpoints["distilled"], "--device", "cpu")
    said = helios(*words, "--workers", 2).out
    assert "2 films without cuts: each has one worker at a time" in said and "at best " in said
    assert "segments " not in helios(*words).out


def test_workers_that_others_decide_on_are_in_a_table(helios):
    said = helios(RECIPES / "cut.toml", "-m", "distilled", "--on", "H100", "--share").out
    assert "workers      as many as there will be, each taken to be as fast" in said
    assert re.search(r"^2  +\S+ (s|min) +1\.", said, re.MULTILINE)
    assert json.loads(helios("a ball", "-m", "distilled", "--cluster", "auto", "--json").out)["farm"]["workers"] is None


def test_a_film_on_several_gpus_is_estimated(helios):
    words = (RECIPES / "three_minutes.toml", "-m", "distilled")
    known = helios(*words, "--on", "H100", "--gpus-per-film", 4).out
    assert re.search(r"a film is 3\.\d+ times as fast as on one \(estimate\)", known)
    assert "data moves at 300 GB/s" in known
    unknown = helios(*words, "--device", "cpu", "--gpus-per-film", 2).out
    assert "the gain is unknown: on a CPU, the processes share its cores" in " ".join(unknown.split())
    refused = helios(*words, "--gpus-per-film", 3, code=2).err
    assert "40 attention heads of distilled cannot be divided so" in refused and "use 2, 4, 5, 8" in refused


def test_gpus_of_two_kinds_are_named(helios, tmp_path, monkeypatch):
    """The kinds of a machine, as its driver names them: a film is rendered by one of them."""
    program(tmp_path / "nvidia-smi", 'printf "NVIDIA H200, 9.0, 143771, 143000\\nNVIDIA L4, 8.9, 23034, 20000\\n"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("helios_cli.device._torch_has", lambda library: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    done = helios(RECIPES / "cut.toml", "-m", "distilled", "--workers", "auto", "--device", "cuda")
    notes = " ".join(done.err.split())
    assert "the workers differ: 1 on NVIDIA H200, 1 on NVIDIA L4; a film is rendered by one kind of them" in notes
    assert "workers      2, each on 1 GPU: 1 on NVIDIA H200, 1 on NVIDIA L4" in done.out
    assert "workers differ" not in helios(RECIPES / "cut.toml", "-m", "distilled", "--device", "cuda").err


def test_a_dry_run_shows_the_farm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(RECIPES / "cut.toml"), "-m", "tiny", "--workers", "2", "-o", "film.mp4", "--device", "cpu"]
    farms = []
    for command in (["plan"], ["render", "--dry-run"]):
        assert main([*command, *words]) == 0
        farms.append(capsys.readouterr().out.partition("\nsegments     2 between cuts")[2])  # free memory is before it
    assert farms[0] == farms[1] != ""


def test_a_budget_that_is_not_there_is_said_to_be_none(helios):
    said = helios("a ball", "-m", "distilled", "--device", "cpu", "--ram", "900T")
    assert "--ram 900 TB: only" in said.err and "everything fits" not in said.err


def test_a_prompt_that_is_too_long_is_shown(helios, checkpoints, tmp_path):
    (tmp_path / "long.txt").write_text("a ball\n\n" + "red " * 500 + "and so on " * 600)
    done = helios("long.txt", "-m", checkpoints["distilled"])
    assert "long, shot 2: the prompt is longer than 512 tokens" in done.err and "so on" in done.err
    assert len(done.err) < 800
    refused = helios("long.txt", "-m", checkpoints["distilled"], "--strict", code=2).err
    assert "long, shot 2: the prompt is longer than 512" in " ".join(refused.split())


def test_disk_follows_the_kind_of_file(helios, checkpoints):
    def size(*flags: object) -> int:
        return film(helios("a ball", "-m", checkpoints["distilled"], "--json", *flags))["disk"]["film_bytes"]

    raw = 3 * 128 * 64 * 33
    assert raw < size("-o", "frames/") < size("-o", "film.mkv") < 1.2 * raw
    assert size("--crf", 23) == pytest.approx(size() / 2, abs=1) and size() < raw / 5
    assert size("--codec", "hevc") < size()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a ball", "-m", "acme/unknown"], 4, "helios models pull acme/unknown"),
        (["a ball", "-m", "distiled"], 2, "did you mean distilled?"),
        (["a ball", "--price", "-1"], 2, "--price"),
        (["a ball", "-m", "mid", "--on", "8088"], 2, "the nearest are RTX"),
        (["a ball", "-m", "mid", "--device", "gpu"], 2, "write auto"),
        (["a ball", "-m", "distilled", "--size", "100x100"], 2, "64"),
        (["a ball", "--workers", "2", "--lanes", "2"], 2, "leave one of them out"),
        (["a ball", "--workers", "auto", "--on", "H100"], 2, "such as --workers 8"),
        (["a ball", "--workers", "0"], 2, "is not a number of workers"),
        (["missing.toml"], 2, "no such file"),
        (["a ball", "-m", "distilled", "--image", "missing.png"], 2, "no such file"),
    ],
)
def test_what_cannot_be_planned(arguments, code, says, helios):
    assert says in helios(*arguments, code=code).err


def test_a_damaged_config_is_named(helios, checkpoints, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoints["distilled"], tmp_path / "damaged")
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps({**config, "dim_mult": "1,2"}))
    assert "vae/config.json: `dim_mult`" in helios("a ball", "-m", folder, code=4).err


@pytest.mark.slow
def test_a_day_of_film_is_planned(helios, checkpoints, tmp_path):
    shots = "\n".join(f'[[shot]]\nprompt = "shape {i}"\nseconds = 86.4' for i in range(1000))
    (tmp_path / "day.toml").write_text(f"version = 1\n{shots}\n")
    said = helios(tmp_path / "day.toml", "-m", checkpoints["distilled"])
    assert "62837 chunks" in said.out and "and 980 more shots" in said.out


def test_chunks_that_are_kept_are_told(tmp_path, monkeypatch, capsys):
    """A film of two chunks is rendered; a longer one of the same shot is then planned to reuse both."""
    monkeypatch.chdir(tmp_path)
    film = ("a red ball", "-m", "tiny", "--size", "64x64")
    assert main(["render", *film, "--frames", "66", "-q"]) == 0
    capsys.readouterr()
    assert main(["plan", *film, "--frames", "99", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["films"][0]
    assert [chunk["kept"] for chunk in planned["chunks"]] == [True, True, False]
    assert main(["render", *film, "--frames", "99", "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 chunks are kept from earlier films, which saves 9 of 12 model calls" in told
    assert main(["plan", *film, "--frames", "99", "--seed", "1"]) == 0
    assert "kept from earlier films" not in capsys.readouterr().out
    assert main(["render", *film, "--frames", "99", "--dry-run", "--no-cache"]) == 0
    assert "kept from earlier films" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "film.avi"], "cannot be written as .avi"),
        (["-o", "nowhere/film.mp4"], "does not exist"),
        (["--crf", "9999"], "crf 9999 is out of range"),
        (["--size", "12"], '--size: "12" is not a size'),
        (["--seconds", "-3"], '--seconds: "-3" is not a time'),
        (["--seed", "-1"], "must be 0 to 9,223,372,036,854,775,807"),
    ],
)
@pytest.mark.parametrize("command", [["plan"], ["render", "--dry-run"]])
def test_what_a_render_refuses_is_not_planned(tmp_path, monkeypatch, capsys, command, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "a red ball", "-m", "tiny", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a boat", "a train", "-o", "x.mp4"], "2 films need a folder that exists hint: name a folder"),
        (["a boat", "a train", "-o", "now here"], "2 films need a folder that exists hint: mkdir -p 'now here'"),
        (["a boat", "a boat"], "several films would be called a-boat.mp4"),
        (["a boat", "-o", "films/"], "holds other files"),
    ],
)
@pytest.mark.parametrize("command", [["plan"], ["render", "--dry-run"]])
def test_films_that_have_no_place_are_not_planned(tmp_path, monkeypatch, capsys, command, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "notes.txt").touch()
    assert main([*command, *arguments, "-m", "tiny"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_reads_what_is_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["render", "--dry-run", "a boat", "-m", "tiny", "--export", "foo"]) == 2
    assert "unknown timeline format 'foo'" in capsys.readouterr().err
    (tmp_path / "a-boat.mp4").touch()
    (tmp_path / "a-boat.otio").touch()
    assert main(["render", "--dry-run", "a boat", "-m", "tiny", "--export", "otio"]) == 0


@pytest.mark.parametrize("command", ["plan", "render"])
def test_a_wrong_name_in_the_environment_is_said_to_be_from_there(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", "distiled")
    assert main([command, "a boat"]) == 2
    assert "HELIOS_MODEL: distiled is neither a folder" in " ".join(capsys.readouterr().err.split())


def test_one_frame_is_no_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "a red ball", "-m", "tiny", "--frames", "1"]) == 0
    assert "1 frame," in capsys.readouterr().out
    assert main(["render", "a red ball", "-m", "tiny", "--frames", "1", "--check", "--progress", "plain"]) == 0
    said = capsys.readouterr().err
    assert "a-red-ball: 1 frame," in said and "mp4: 1 frame," in said and "found in 1 chunk\n" in said


def test_an_empty_prompt_is_said_to_be_empty(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "", "-m", "tiny"]) == 2
    assert "is empty: say what the shot shows" in capsys.readouterr().err


def test_a_second_gpu_for_the_vae(helios):
    arguments = ("a ball", "-m", "distilled", "--on", "H100", "--vae-device")
    done = helios(*arguments, "cuda:1").out
    assert "vae device" in done and "on the VAE's device" in done
    film = json.loads(helios(*arguments, "cuda:1", "--json").out)["films"][0]
    assert film["vae_device"]["name"] == film["device"]["name"] == "H100"
    (mode,) = [mode for mode in film["memory"] if mode["chosen"]]
    assert mode["vae_device_bytes"] == 500_000_000 + max(
        phase["total"] for phase in mode["phases"] if phase["on_vae_device"]
    )
    assert mode["seconds"] == pytest.approx(max(film["time"]["denoise"], film["time"]["decode"]) / film["chunks_total"])
    alone = json.loads(helios(*arguments, "cuda:0", "--json").out)["films"][0]
    assert alone["vae_device"] is None
    assert "only a second GPU of that kind" in helios(*arguments, "cpu", code=2).err
