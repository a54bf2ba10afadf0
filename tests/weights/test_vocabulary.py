"""The line about a model that knows little."""

from __future__ import annotations

import json

import pytest

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.layout import set_own
from helios_cli.weights.vocabulary import introduction


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), SPECS["tiny"])


@pytest.fixture
def of(folder):
    def line(*texts: str, **own: object) -> str | None:
        set_own(folder, **{"words": None, "things": None, **own})
        return introduction(Checkpoint.open(folder), "tiny", texts)

    return line


def test_an_untrained_model_says_so(of):
    line = of("a red ball", trained=False, knows="nothing")
    assert line == "tiny is untrained; it knows nothing"


def test_a_prompt_of_its_world_needs_no_line(of):
    assert of("A red ball rolls LEFT, over green hills.", "", trained=True, knows="shapes") is None


def test_words_that_it_spells_are_named_once_and_the_first_three_only(of):
    line = of("a Dragon rolls", "a dragon, a café, two sheep and a wizard", trained=True, knows="shapes")
    assert line.startswith("tiny knows shapes, but not: dragon, café, sheep ...") and "models pull" in line


def test_what_training_showed_counts_where_it_is_written_down(of):
    shown = {"trained": True, "knows": "shapes", "words": ["a", "red", "blue", "ball", "star", "and"]}
    assert of("A red ball and a BLUE star!", **shown) is None
    assert "not: camera, pans." in of("a red ball, a camera pans", **shown)


def test_several_things_in_one_prompt_are_beyond_a_model_of_one(of):
    alone = {"trained": True, "knows": "shapes", "things": ["ball", "star"]}
    assert of("a red ball", "a blue ball and stars", **alone) is None
    line = of("a red ball with a green ball", "a dragon, a star and a ball", **alone)
    assert "not: dragon, ball and ball together, star and ball together." in line
    assert "not: ball and star and ball ... together." in of("ball star " * 300, **alone)


def test_a_model_of_anything_says_nothing(of):
    assert of("a dragon", trained=True, knows="") is None


def test_a_tokenizer_of_pieces_of_words_knows_every_word(folder, of):
    path = folder / "tokenizer/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    try:
        path.write_text(json.dumps({**tokenizer, "model": {"type": "Unigram", "vocab": [["a", 0.0]]}}))
        assert of("a dragon", trained=True, knows="shapes") is None
    finally:
        path.write_text(json.dumps(tokenizer))
