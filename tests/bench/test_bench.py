"""`helios bench` through its command line, with real processes on both sides. No speed is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helios_cli import __version__
from helios_cli.bench import ours, report
from helios_cli.bench.ours import steady_rate
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.bench.task import PROMPT, Result, Task, counted_model, floors, plan_of, run
from helios_cli.cli import main
from helios_cli.commands import bench
from helios_cli.cost.model import find_model
from helios_cli.cost.speeds import read_speeds, speeds_file
from helios_cli.cost.work import PromptTokens, work_of
from helios_cli.errors import CheckpointError, InputError, MachineError
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import plan_film
from helios_cli.recipe.settings import ModelDefaults, resolve_settings
from helios_cli.recipe.sources import read_films

DEFAULTS = ModelDefaults((128, 64), (2, 2, 2), 1.0)
SMALL = ["--size", "64x64", "--steps", "1,1,1", "--threads", "1"]
TASK = Task(
    folder=None,
    synthetic=None,
    size=(64, 64),
    num_frames=33,
    steps=(1, 1, 1),
    dtype="float32",
    device="cpu",
    threads=1,
    film="film.mp4",
)


def check_side(side: dict, frames: int) -> None:
    """Check what every measurement must satisfy."""
    assert side["num_frames"] == frames and side["threads"] == 1 and side["device"] == "cpu"
    assert list(side["phases"]) == ["text", "stage 0", "stage 1", "stage 2", "decode", "write"]
    assert all(seconds > 0 for seconds in side["phases"].values())
    assert sum(side["phases"].values()) <= side["seconds"]
    assert side["other_seconds"] == pytest.approx(side["seconds"] - sum(side["phases"].values()))
    assert side["frames_per_second"] == pytest.approx(frames / side["seconds"])
    assert side["load_seconds"] > 0
    assert 100e6 < side["peak_host_bytes"] < 8e9 and side["peak_device_bytes"] is None


@pytest.mark.oracle
@pytest.mark.process
@pytest.mark.slow
def test_side_by_side(tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--synthetic", "tiny", "--chunks", "1", "--against", "diffusers", "--dtype", "float32", *SMALL]
    assert main(["bench", "render", *arguments, "--device", "cpu", "--json", "--out", str(out)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(out.read_text())
    ours, theirs = data["sides"]
    assert (ours["side"], ours["version"], theirs["side"]) == ("helios", __version__, "diffusers")
    for side in (ours, theirs):
        check_side(side, frames=33)
        assert set(side["dtypes"].values()) == {"float32"}
    assert data["ratios"]["total"] == pytest.approx(ours["seconds"] / theirs["seconds"])
    assert data["ratios"]["decode"] == pytest.approx(ours["phases"]["decode"] / theirs["phases"]["decode"])
    assert data["agreement_db"] > report.SAME_FILM_DB
    assert data["ceiling"]["product"] > 1e9 < data["ceiling"]["copy"] and data["ceiling"]["fp8_product"] is None
    assert list(data["floors"]) == ["stage 0", "stage 1", "stage 2", "decode"]
    for phase, floor in data["floors"].items():
        assert data["share_of_floor"][phase] == pytest.approx(floor / ours["phases"][phase])
    assert ours["steady_frames_per_second"] is None  # of one chunk
    assert data["film"]["size"] == [64, 64] and data["film"]["chunks"] == 1 and data["film"]["steps"] == [1, 1, 1]
    assert data["versions"]["torch"] and data["machine"]["model"] and data["date"].endswith("+00:00")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    folder = write_checkpoint(tmp_path_factory.mktemp("task") / "tiny", SPECS["tiny"], dtype=torch.bfloat16)
    return replace(TASK, folder=str(folder), film=str(folder.parent / "film.mp4"))


@pytest.fixture(scope="module")
def film(task) -> tuple[str, Result]:
    """The task's film, measured by a process whose parent holds a gigabyte."""
    ballast = bytearray(b"x") * 2**30
    result = run("ours", task)
    del ballast
    return task.film, result


@pytest.mark.process
@pytest.mark.slow
def test_a_peak_is_not_the_parents(film):
    """A process begins with its parent's `ru_maxrss`; what is measured does not."""
    assert film[1].peak_host_bytes < 2**30


@pytest.mark.process
@pytest.mark.slow
def test_a_resident_size_is_made_on_the_other_side_too(task, film, tmp_path):
    """The way of the 14b, at the tiny size: the film is that of the same weights read from a folder by ours."""
    made = str(tmp_path / "made.mp4")
    result = run("reference", replace(task, folder=None, synthetic="tiny", film=made))
    assert result.num_frames == 33 and set(result.dtypes.values()) == {"float32"}
    assert report.agreement_db(made, film[0]) > report.SAME_FILM_DB


@pytest.mark.process
@pytest.mark.slow
def test_another_seed_is_not_the_same_film(task, film, tmp_path):
    other = str(tmp_path / "other.mp4")
    run("ours", replace(task, seed=1, film=other))
    assert report.agreement_db(film[0], film[0]) == 100
    assert report.agreement_db(film[0], other) < report.SAME_FILM_DB


@pytest.mark.process
@pytest.mark.slow
def test_memory_of_two_lengths(capsys):
    arguments = ["--minutes", "0.02,0.05", "--dtype", "bfloat16", "--device", "cpu", *SMALL]
    assert main(["bench", "render", "--memory", *arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    short, long = data["sides"]
    check_side(short, frames=29)
    check_side(long, frames=72)
    assert data["minutes"] == [0.02, 0.05]
    assert data["peak_ratio"] == pytest.approx(long["peak_host_bytes"] / short["peak_host_bytes"])
    assert 0.8 < data["peak_ratio"] < 1.25
    assert "speed" not in data and read_speeds() == []


def planned(capsys, *arguments: str) -> dict:
    """The film that `bench render` times, as `helios plan` has it."""
    capsys.readouterr()
    assert main(["plan", PROMPT, "--device", "cpu", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)["films"][0]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("way", ["embedded", "resident"])
def test_a_plan_takes_its_times_from_a_measurement(way, tmp_path, monkeypatch, capsys):
    """The plan of the film that was timed gives back its seconds; it still has none for models that are not alike.

    A resident size is counted without weights: here the tiny one, which can be planned from a folder as well.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the threads of SMALL, which are part of a CPU's name
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    model, subject = "tiny", ["--model", "tiny"]
    if way == "resident":
        model, subject = str(write_checkpoint(tmp_path / "tiny", SPECS["tiny"])), ["--synthetic", "tiny"]
        monkeypatch.setitem(SPECS, "tiny", replace(SPECS["tiny"], resident=True))
    film = ["--model", model, "--size", "64x64", "--steps", "1,1,1", "--frames", "66", "--dtype", "bfloat16"]
    assert not planned(capsys, *film)["time"]["measured"]

    assert main(["bench", "render", *subject, *SMALL, "--device", "cpu", "--dtype", "bfloat16", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["sides"][0]["steady_frames_per_second"] is None  # of two chunks
    assert sum(str(speeds_file()) in line for line in err.splitlines()) == 1

    plan = planned(capsys, *film)
    phases = data["sides"][0]["phases"]
    stages = sum(phases[f"stage {index}"] for index in range(3))
    assert plan["time"]["measured"] and plan["time"]["total"] > 0
    assert plan["time"]["denoise"] == pytest.approx(stages)
    assert plan["time"]["decode"] == pytest.approx(phases["decode"])
    (kept,) = read_speeds()
    assert data["speed"].items() >= {"file": str(speeds_file()), "dit_flops": kept.dit_flops}.items()
    assert kept.parameters == plan["model"]["parameters"]["transformer"]
    assert kept.measured == data["date"][:10] and kept.encode_pixels is None
    assert not planned(capsys, *film[:-1], "float32")["time"]["measured"]
    assert planned(capsys, "--model", "distilled", "--dtype", "bfloat16")["time"]["total"] is None


def test_the_resident_14b_is_counted_as_the_published_model(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    published = find_model("distilled")
    with counted_model(replace(TASK, folder=None, synthetic="14b")) as model:
        for what in ("preset", "native_size", "dit", "text", "vae", "parameters"):
            assert getattr(model, what) == getattr(published, what)


@pytest.mark.process
@pytest.mark.slow
def test_a_speed_that_cannot_be_kept_is_told(task, film, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "file"))
    said = bench._keep_speed(task, film[1], "2026-11-20T00:00:00+00:00")
    assert said["dit_flops"] > 0 and said["file"] is None and said["problem"]
    assert "could not be saved" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.slow
def test_the_table_has_a_line_for_each_number(capsys):
    assert main(["bench", "render", "--chunks", "6", "--dtype", "bfloat16", "--device", "cpu", *SMALL]) == 0
    out = capsys.readouterr().out
    labels = ("text, s", "stage 2, s", "decode, s", "film, s", "frames a second", "peak memory, MB", "steady frames")
    for label in labels:
        assert label in out
    assert "helios" in out and "cpu, 1 thread:" in out and "ratio" not in out
    assert "floor: all products at the" in out and "helios: kernels: reference" in out


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--synthetic", "huge"], 2, "'huge' is not a size"),
        (["--synthetic", "tiny", "-m", "tiny"], 2, "both name a model"),
        (["--memory", "--against", "diffusers"], 2, "helios alone"),
        (["--memory", "--minutes", "10,1"], 2, "the shorter film must come first"),
        (["--memory", "--minutes", "1"], 2, "not two numbers"),
        (["--size", "100x100"], 2, "100x100"),
        (["--steps", "2,2"], 2, "3 stages"),
        (["-m", "./nowhere"], 2, "nowhere"),
        (["--out", "nowhere/x.json"], 2, "nowhere does not exist"),
        (["--out", "/"], 2, "it is a folder"),
        (["--device", "cuda:99"], 3, "cuda:99"),
    ],
    ids=str,
)
def test_what_cannot_be_measured(arguments, code, said, capsys):
    assert main(["bench", "render", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err


def test_a_missing_reference_is_told_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert main(["bench", "render", "--against", "diffusers"]) == 3
    assert "not installed" in capsys.readouterr().err


def test_a_checkpoint_goes_to_a_new_folder(tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("mine")
    assert main(["bench", "checkpoint", "tiny", str(tmp_path)]) == 2
    assert main(["bench", "checkpoint", "huge", str(tmp_path / "new")]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.process
@pytest.mark.slow
def test_an_error_of_a_side_is_its_own(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist"):
        run("ours", replace(TASK, folder=str(tmp_path / "nowhere")))


def test_ratios_and_rows():
    common = dict(version="1", device="cpu", dtypes={}, num_frames=33, threads=1, peak_device_bytes=None)
    phases = {"text": 0.5, "stage 0": 1.0, "stage 1": 2.0, "decode": 4.0, "write": 0.25}
    ours = Result("helios", load_seconds=1.0, seconds=8.0, phases=phases, peak_host_bytes=500_000_000, **common)
    slower = {phase: 2 * seconds for phase, seconds in phases.items()}
    theirs = Result("diffusers", load_seconds=4.0, seconds=20.0, phases=slower, peak_host_bytes=10**9, **common)
    assert report.ratios(ours, theirs) == {"total": 0.4, "dit": 0.5, "decode": 0.5, "load": 0.25}
    floors = {"stage 0": 0.5, "stage 1": 1.0, "decode": 1.0}
    rows = {label: numbers for label, *numbers in report.rows([ours, theirs], floors)}
    assert rows["stage 0, s"] == [1.0, 2.0, 0.5, 0.5, 0.5] and rows["decode, s"] == [4.0, 8.0, 0.5, 1.0, 0.25]
    assert rows["all stages, s"] == [3.0, 6.0, 0.5, 1.5, 0.5]
    assert rows["other, s"] == [0.25, 4.5, 0.0556, "", ""]
    assert rows["peak memory, MB"] == [500, 1000, 0.5, "", ""]
    assert "steady frames a second" not in rows
    steady = replace(ours, steady_frames_per_second=5.0)
    alone = {label: numbers for label, *numbers in report.rows([steady], floors)}
    assert alone["film, s"] == [8.0, 2.5, 0.312] and alone["steady frames a second"] == [5.0, "", ""]


def test_floors_have_the_rate_of_fp8_for_what_is_computed_in_it(task):
    usual = floors(task, "bfloat16", {"product": 1e12, "fp8_product": 4e12})
    quick = floors(replace(task, quant="fp8"), "bfloat16", {"product": 1e12, "fp8_product": 4e12})
    unknown = floors(replace(task, quant="fp8"), "bfloat16", {"product": 1e12, "fp8_product": None})
    assert unknown == usual and quick["decode"] == usual["decode"]
    with counted_model(task) as model:
        work = work_of(task.plan(model.defaults), model, "bfloat16", PromptTokens({PROMPT: 12}, True, {}))
    film = work.stages[2].film
    assert usual["stage 2"] - quick["stage 2"] == pytest.approx(0.75e-12 * (film.projections + film.feed_forward))


@pytest.mark.parametrize(
    ("done", "expected"),
    [([3.0, 5, 7, 9, 11], None), ([3.0, 5, 7, 9, 11, 99], 33 / 2), ([1.0, 2, 3, 4, 5, 8, 99], 33 * 5 / 7)],
)
def test_a_steady_rate_leaves_out_the_first_and_the_last_chunk(done, expected):
    """A rate is only reported for six chunks or more."""
    assert steady_rate(done) == expected


@pytest.mark.parametrize("flags", [{}, {"size": (128, 64), "steps": (2, 1, 3), "guidance": 3.0, "seed": 7}])
@pytest.mark.parametrize("frames", [1, 33, 100])
def test_the_film_that_is_measured_is_the_one_that_is_rendered(flags, frames):
    film = read_films([PROMPT])[0]
    rendered = plan_film(film, resolve_settings(film.recipe, RenderOptions(frames=frames, **flags), DEFAULTS))
    assert plan_of(DEFAULTS, frames=frames, **flags) == replace(rendered, title=PROMPT)


def test_what_the_model_cannot_do_is_not_measured():
    for flags, said in (
        ({"size": (100, 64)}, "multiples of"),
        ({"steps": (1, 1)}, "3 stages"),
        ({"seed": -1}, "--seed"),
    ):
        with pytest.raises(InputError, match=said):
            plan_of(DEFAULTS, frames=33, **flags)


def test_memory_is_counted_as_the_model_is_held(task, monkeypatch):
    """14 billion parameters in 22 GB: in fp8, and not in bfloat16."""
    monkeypatch.setattr(ours, "device_of", lambda device: SimpleNamespace(free_bytes=22 * 10**9))
    large = replace(task, folder=None, synthetic="14b", size=(64, 64), dtype="bfloat16", device="cpu")
    with pytest.raises(MachineError, match="in bfloat16, but only 22"):
        ours._models(large, torch.device("cpu"))
    assert ours._models(replace(large, quant="fp8"), torch.device("cpu")).quant == "fp8"


def test_the_commit_is_this_checkouts():
    root = Path(report.__file__).parents[2]
    if not (root / ".git").exists():
        assert report.commit() is None
    else:
        assert len(report.commit().removesuffix("+")) == 12
