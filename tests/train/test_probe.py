"""The probe swaps one thing in a caption for another, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from helios_cli.train.probe import ATTRIBUTES, VALUES, Probe, caption_of, swap
from helios_cli.train.world.captions import Attributes, attributes
from helios_cli.train.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from support.lessons import CONFIG, ROWS, cache


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_a_plain_caption_says_what_it_is_to(background, motion):
    """Read by the world's own grammar."""
    for colour in COLOURS:
        for shape in SHAPES:
            said = Attributes(background, colour, shape, motion)
            assert attributes(caption_of(said)) == said


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_swap_changes_one_thing(name):
    for i in range(len(COLOURS)):
        values = {key: list(VALUES[key])[(i + place) % len(VALUES[key])] for place, key in enumerate(ATTRIBUTES)}
        said = Attributes(**values)
        found = swap(said, name)
        changed = [key for key in ATTRIBUTES if getattr(found, key) != getattr(said, key)]
        assert changed == [name]
        assert found.colour != found.background
        assert attributes(caption_of(found)) == found


def test_a_caption_that_leaves_something_open_is_not_asked_about():
    assert caption_of(attributes("a circle moves left")) is None


class Words:
    """In place of the text encoder: each text its own number in its rows."""

    def __init__(self) -> None:
        self.prompts: dict[str, SimpleNamespace] = {}

    def encode(self, texts) -> None:
        for text in dict.fromkeys(texts):
            rows = torch.full((3, CONFIG.text_dim), 1.0 + len(self.prompts))
            self.prompts[text] = SimpleNamespace(rows=rows, said=attributes(text))


def test_the_figures_are_the_rise_of_the_loss(tmp_path):
    """A model that follows colours fully, motions by half, and nothing else."""
    captions = [
        "a red circle moves left over a blue background",
        "a white star rises over green hills",
        "nothing at all",
    ]
    clips = cache(tmp_path, (1, 2, 1, 1))
    clips.batch = _with_captions(clips.batch, captions)
    words, asked = Words(), []
    probe = Probe(clips, 3, words, ROWS)
    truth = [attributes(caption) for caption in captions]

    def errors(lesson, stage, generators):
        asked.append([g.initial_seed() for g in generators])
        if lesson.chunks[0] == 1:
            return torch.full((len(lesson.rows),), 7.0)
        found = []
        for said, rows in zip(truth, lesson.rows, strict=True):
            heard = next((p.said for p in words.prompts.values() if p.rows[0, 0] == rows[0, 0]), said)
            loss = 2.0 + 2.0 * (heard.colour != said.colour) + 1.0 * (heard.motion != said.motion)
            found.append(loss * (stage + 1))
        return torch.tensor(found)

    figures = probe.figures(errors, range(2))
    for stage in range(2):
        assert figures[f"loss_later_{stage}"] == 7
        risen = {name: figures[f"swap_{name}_{stage}"] for name in ATTRIBUTES}
        assert risen == {"background": 0, "colour": pytest.approx(1), "shape": 0, "motion": pytest.approx(0.5)}
    assert len({tuple(seeds[:1]) for seeds in asked}) == 1, "noise differs from one question to the other"


@pytest.mark.parametrize("anchor", [True, False])
def test_a_model_is_asked_with_the_history_that_it_is_taught_with(tmp_path, anchor):
    asked = []

    def errors(lesson, stage, generators):
        asked.append(lesson)
        return torch.ones(len(lesson.rows))

    Probe(cache(tmp_path, (2, 2)), 2, Words(), ROWS, anchor=anchor).figures(errors, range(1))
    (later,) = (lesson for lesson in asked if lesson.chunks[0] == 1)
    assert later.anchor.any() == anchor
    assert later.past.any()


def _with_captions(batch, captions):
    def asked(picks):
        found = batch(picks)
        return found._replace(captions=[captions[clip] for clip, _ in picks])

    return asked
