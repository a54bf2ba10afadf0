"""Errors of a config file are reported with their lines, all at once, with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

import support.toy  # noqa: F401
from helios_cli.errors import InputError
from helios_cli.train.config import load
from helios_cli.train.settings import SETTINGS
from helios_cli.train.settings.run import TrainingSettings

GOOD = 'phase = "toy"\nout = "runs/toy"\nsteps = 10\n'
RECIPES = Path(__file__).resolve().parents[2] / "recipes/train"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(text)
    return path


def said(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(written(tmp_path, text), overrides)
    return f"{caught.value.message}; {caught.value.hint}"


def test_a_file_is_its_phases_settings(tmp_path):
    text = GOOD + 'start = "runs/before"\nseed = 7\n[optimizer]\nlr = 1\nbetas = [0.5, 0.9]\n[log]\nevery = 3\n'
    config = load(written(tmp_path, text))
    assert type(config) is SETTINGS["toy"]
    assert (config.phase, config.steps, config.seed, config.folder) == ("toy", 10, 7, Path("runs/toy"))
    assert (config.optimizer.lr, config.optimizer.betas, config.log.every) == (1.0, (0.5, 0.9), 3)
    assert (config.optimizer.muon, config.optimizer.muon_lr) == (("conv.*",), 1e-2)  # the phase's, which the file keeps


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("step = 10\n" + GOOD, [":1: `step`", "unknown key", "write `steps`"]),
        (GOOD + "[optimizer]\nlearning_rate = 1\n", [":5: `optimizer.learning_rate`", "the keys here are lr, betas"]),
        (GOOD + "[optimiser]\nlr = 1\n", [":4: `optimiser`", "write `optimizer`"]),
        (GOOD + "lr = 0.1\n", [":4: `lr`", "`lr` belongs into [optimizer]"]),
        (GOOD + "[log]\nbatch = 3\n", ["`log.batch`", "belongs above the first table"]),
        (GOOD + 'batch = "8"\n', [":4: `batch`", "must be a whole number, not '8'", "the default is 16"]),
        (GOOD + "batch = 0\n", ["`batch`", "greater than or equal to 1"]),
        (
            GOOD + 'dtype = "bfloat"\n',
            ["`dtype`", "must be 'auto', 'bfloat16' or 'float32'", 'write `dtype = "bfloat16"`'],
        ),
        (GOOD + '[critic]\nlr = "x"\n', ["`critic.lr`", "a number, not 'x'", "the default is 0.005"]),
        (GOOD + "log = 3\n", ["`log`", "must be a table, not 3"]),
        (GOOD + "[optimizer]\nlr = nan\n", ["`optimizer.lr`", "finite number"]),
        ('phase = "toy"\nsteps = 1\n', ["`out`", "is missing"]),
        ('phase = "toy"\nout = "x"\n', ["the run has no end", "max_minutes = 30"]),
        ('out = "x"\nsteps = 1\n', ["`phase`", "is missing", "toy"]),
        ('phase = "toyy"\n', [":1: `phase`", "there is no phase 'toyy'", 'write `phase = "toy"`']),
        ("phase = 3\n", ["there is no phase 3", "write one of"]),
        ("phase = toy\n", [":1: not valid TOML"]),
    ],
    ids=lambda value: value[-30:] if isinstance(value, str) else "",
)
def test_each_problem_names_file_line_key_and_remedy(tmp_path, text, parts):
    message = said(tmp_path, text)
    for part in ("toy.toml", *parts):
        assert part in message


def test_all_problems_come_together_in_the_order_of_lines(tmp_path):
    message = said(tmp_path, GOOD + "seeds = 1\n[optimizer]\nlr = -1\n[loss]\nweigth = 2\n")
    assert message.startswith("3 problems")
    places = [message.index(key) for key in ("`seeds`", "`optimizer.lr`", "`loss.weigth`")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("loss.weight=2", lambda config: config.loss.weight == 2),
        ("steps=20", lambda config: config.steps == 20),
        ("out=/else where", lambda config: config.out == "/else where"),
        ('out="quoted"', lambda config: config.out == "quoted"),
        ('optimizer.muon=["a.*"]', lambda config: config.optimizer.muon == ("a.*",)),
        ("log.every = 5", lambda config: config.log.every == 5),
    ],
)
def test_overrides_take_the_place_of_what_the_file_says(tmp_path, override, value):
    assert value(load(written(tmp_path, GOOD + "[loss]\nweight = 1\n"), [override]))


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("steps", "--set steps: it is not KEY=VALUE"),
        ("=3", "it is not KEY=VALUE"),
        ("phase.x=3", "`phase` is no table"),
        ("loss.weigth=2", "`loss.weigth`: --set loss.weigth=2: unknown key; write `weight`"),
        ("steps=many", "must be a whole number, not 'many'"),
    ],
)
def test_an_override_that_cannot_be_is_named(tmp_path, override, part):
    assert part in said(tmp_path, GOOD, override)


def test_settings_do_not_change(tmp_path):
    config = load(written(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 5


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_the_configs_of_the_repository_are_valid(path):
    assert load(path).phase in SETTINGS


def test_runs_that_train_a_transformer_can_be_watched():
    """Contact sheets before the run is over, and figures of clips that are kept back where the phase has them."""
    jobs = [job for path in RECIPES.glob("*.toml") if isinstance(job := load(path), TrainingSettings)]
    watched = [job for job in jobs if hasattr(job, "samples")]
    assert {job.phase for job in watched} == {"base", "mid", "ode", "distill"}
    for job in watched:
        assert 0 < job.log.samples_every <= 1000, job.out
        assert job.log.probe_every or job.phase in ("ode", "distill"), job.out
