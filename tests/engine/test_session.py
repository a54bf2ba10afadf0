"""The model that films share: what decides the pixels of one of them."""

from __future__ import annotations

from helios_cli.cost.arithmetic import convolution_shapes
from helios_cli.engine.session import Session
from helios_cli.recipe.options import RenderOptions


def test_films_of_other_sizes_leave_the_identity_of_a_film_alone():
    """Otherwise a film that comes second in its session finds none of its chunks when it is rendered first."""
    size, other = (128, 64), (64, 128)
    with Session() as session:
        list(session.open("tiny", RenderOptions(device="cpu", dtype="float32")))
        alone, taken = session.identity(size, 1.0), session.models.choices.convolutions.taken
        own, foreign = (convolution_shapes(session.models.vae_config, each, "float32")[-1] for each in (size, other))
        taken[foreign] = "triton"
        assert session.identity(size, 1.0) == alone
        taken[own] = "triton"
        assert session.identity(size, 1.0) != alone
