"""One small checkpoint of what several runs made."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.cli import main
from helios_cli.train.config import load
from helios_cli.train.data.cache import CacheNote, EncodedClip, open_cache, shard_path, write_shard
from helios_cli.train.loop import perform
from helios_cli.weights.checkpoint import Checkpoint, files_of

CONFIG = 'phase = "package"\nstart = "{start}"\nvae = "{vae}"\nout = "{out}"\nknows = "shapes"\nsteps = [3, 2, 1]\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two checkpoints that differ in every weight, as two runs with the same latents leave them."""
    root = tmp_path_factory.mktemp("runs")
    return [write_checkpoint(root / f"{seed}", SPECS["tiny"], seed=seed) for seed in (1, 2)]


def config_in(folder, one, other):
    path = folder / "package.toml"
    path.write_text(CONFIG.format(start=one, vae=other, out=folder / "out"))
    return path


def test_each_part_is_of_its_run_and_in_the_dtype_asked_for(made, tmp_path):
    list(perform(load(config_in(tmp_path, *made)), torch.device("cpu"), lambda: False))
    packaged = Checkpoint.open(tmp_path / "out")
    assert packaged.knows == "shapes"
    assert packaged.preset.steps == (3, 2, 1)
    assert files_of(packaged.path) == files_of(made[0])
    for name, source in (("transformer", made[0]), ("text_encoder", made[0]), ("vae", made[1])):
        (file,) = (packaged.path / name).glob("*.safetensors")
        found, expected = load_file(file), load_file(source / name / file.name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key].to(torch.bfloat16)) for key in found), name


def test_the_words_of_its_captions_are_written_down(made, tmp_path):
    note = CacheNote("encoder", {}, (16, 8, 16), 64)
    open_cache(tmp_path / "clips", note, torch.zeros(1, 64))
    captions = ("A red ball, over hills.", "the ball rises")
    clip = EncodedClip(torch.zeros(2, 16, 9, 8, 16), captions)
    write_shard(shard_path(tmp_path / "clips", "one"), [clip], dict.fromkeys(captions, torch.zeros(3, 64)))
    given = [f'clips="{tmp_path / "clips"}"', 'things=["ball"]']
    list(perform(load(config_in(tmp_path, *made), given), torch.device("cpu")))
    packaged = Checkpoint.open(tmp_path / "out")
    assert packaged.words == ("a", "ball", "hills", "over", "red", "rises", "the")
    assert packaged.things == ("ball",)


def test_a_vae_of_other_latents_is_refused(made, tmp_path, capsys):
    config = made[1] / "vae/config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "latents_mean": [0.5] * 16}))
    try:
        assert main(["train", str(config_in(tmp_path, *made))]) == 2
    finally:
        config.write_text(before)
    said = capsys.readouterr().err
    assert "does not decode" in said and 'part = "decoder"' in said


def test_a_folder_of_something_else_is_refused_and_what_stands_beside_a_package_stays(made, tmp_path, capsys):
    config = config_in(tmp_path, *made)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    assert main(["train", str(config)]) == 2
    assert "holds other files, but no checkpoint" in capsys.readouterr().err
    (tmp_path / "out/model_index.json").write_text("{}")
    assert main(["train", str(config)]) == 0
    assert (tmp_path / "out/README.md").read_text() == "mine"
    assert files_of(tmp_path / "out") == files_of(made[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "package.toml"]


def test_what_a_package_is_made_of_is_not_written_over(made, tmp_path, capsys):
    path = tmp_path / "package.toml"
    path.write_text(CONFIG.format(start=made[0], vae=made[1], out=made[0]))
    assert main(["train", str(path)]) == 2
    assert "would overwrite its start" in capsys.readouterr().err
