"""A guard for NUMERICS_VERSION: a change that moves a latent makes kept pieces void, and only that number says so."""

from __future__ import annotations

import json
import platform

import numpy as np
import pytest

from golden.make import DIGESTS, LATENTS, plain_film, processor
from helios_cli.recipe.fingerprint import NUMERICS_VERSION

pytestmark = [pytest.mark.numerics, pytest.mark.process]

RAISE = "raise NUMERICS_VERSION, then `python tests/golden/make.py`"

KNOWN = json.loads(DIGESTS.read_text())


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return plain_film(tmp_path_factory.mktemp("film"))


def test_goldens_are_of_this_version():
    assert KNOWN["numerics"] == NUMERICS_VERSION, "the goldens are of another version: `python tests/golden/make.py`"


def test_latents_are_the_golden_ones(film):
    """The goldens are diffusers' latents in float32. On another processor, sums in another order move them by
    about 2e-5 of their size."""
    golden = np.load(LATENTS)
    error = np.abs(film[0] - golden).max() / np.sqrt(np.square(golden).mean())
    assert error < 1e-4, f"float32 latents moved by {error:.2g}: {RAISE}"


def test_no_bit_of_a_latent_or_frame_moves(film):
    """With libraries held to plain instructions; on processors whose digests were written."""
    if processor() not in KNOWN["digests"]:
        pytest.skip(f"no digest of {processor()} on {platform.machine()}: `python tests/golden/make.py` writes it")
    assert film[1] == KNOWN["digests"][processor()], f"bits of float32 latents or frames moved: {RAISE}"
