"""Encoded prompts go when no film needs them any more, and are encoded once as long as one does."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from PIL import Image

from helios_cli.engine import models as models_module
from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.models import Models
from helios_cli.film.writer import open_writer
from helios_cli.weights.checkpoint import Checkpoint
from support.reruns import plan


@pytest.fixture
def models(checkpoints, monkeypatch) -> Models:
    """With `visits`, of the text encoder."""
    found = Models(Checkpoint.open(checkpoints("distilled")), torch.device("cpu"), torch.float32)
    found.visits = 0
    enter = found._text_encoder

    @contextlib.contextmanager
    def counted():
        found.visits += 1
        with enter() as encoder:
            yield encoder

    monkeypatch.setattr(found, "_text_encoder", counted)
    return found


class Film:
    pass


def test_what_no_film_needs_goes(models, monkeypatch):
    monkeypatch.setattr(models_module, "PROMPTS_KEPT", 0)
    first, second = Film(), Film()
    models.encode("abcde")
    models.want(first, "ab")
    assert set(models.prompts) == set("ab")
    models.encode("bcd")
    models.want(second, "bc")
    assert set(models.prompts) == set("abc")
    del first
    models.want(second, "c")
    assert set(models.prompts) == {"c"}


def test_some_stay_for_a_film_that_may_come(models, monkeypatch):
    """The prompts encoded last stay: the takes of a shot share its prompt."""
    models.encode("abc")
    monkeypatch.setattr(models_module, "PROMPTS_KEPT", 2 * models.prompts["a"].rows.nbytes)
    models.want(Film(), "")
    assert set(models.prompts) == set("bc")


@pytest.mark.slow
def test_a_film_of_many_prompts_ends_with_the_last(models, tmp_path, monkeypatch):
    """Each is encoded with the others before the first chunk, and gone behind its own last one."""
    shots = [("a red circle", 33, 1), ("a blue square", 33, None), ("a star", 33, None), ("a red circle", 20, None)]
    film = plan(*shots)
    frames = {}
    for kept in (2**30, 0):
        monkeypatch.setattr(models_module, "PROMPTS_KEPT", kept)
        out, visits = tmp_path / f"{kept}", models.visits
        for _ in render_chunks(film, models, open_writer(f"{out}/", size=film.size, fps=film.fps)):
            pass
        assert models.visits - visits == (1 if kept else 0)  # the second film finds them
        frames[kept] = np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])
    assert set(models.prompts) == {text for text, _ in film.chunks[-1].prompts}
    assert np.array_equal(frames[0], frames[2**30])
