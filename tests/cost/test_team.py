"""The numbers of ranks that can make a film's calls together."""

from __future__ import annotations

import pytest

from helios_cli.cost.team import Team
from helios_cli.errors import InputError


@pytest.mark.parametrize(
    ("ranks", "guidance", "size"),
    [(1, 5.0, 1), (2, 1.0, 2), (8, 1.0, 8), (2, 5.0, 1), (4, 5.0, 2), (5, 5.0, 5), (16, 5.0, 8)],
)
def test_ranks_of_a_team(ranks, guidance, size):
    assert Team.of(ranks, guidance, 40, "base").size == size


@pytest.mark.parametrize(
    ("ranks", "guidance", "choices"),
    [
        (3, 1.0, "use 2, 4, 5, 8, 10, 20 or 40"),
        (16, 1.0, "use 2, 4, 5, 8, 10, 20 or 40"),
        (3, 5.0, "use 2, 4, 5, 8, 10, 16, 20 or 40"),
        (6, 5.0, "use 2, 4, 5, 8, 10, 16, 20 or 40"),
        (64, 5.0, "use 2, 4, 5, 8, 10, 16, 20 or 40"),
    ],
)
def test_heads_that_do_not_divide_are_an_error_that_names_the_choices(ranks, guidance, choices):
    with pytest.raises(InputError, match=f"--gpus-per-film {ranks}: the 40 attention heads of base") as caught:
        Team.of(ranks, guidance, 40, "base")
    assert caught.value.hint == choices


def test_a_model_of_one_head_is_never_shared():
    with pytest.raises(InputError) as caught:
        Team.of(2, 1.0, 1, "base")
    assert caught.value.hint == "leave it out"
    assert Team.of(2, 5.0, 1, "base").size == 1


def test_an_odd_number_says_that_branches_are_made_one_after_the_other():
    notice = Team.of(5, 5.0, 40, "base").notice
    assert notice.startswith("--gpus-per-film 5 is odd") and "; 4 or 8 ranks would" in notice
    assert Team.of(4, 5.0, 40, "base").notice is None
    assert Team.of(5, 1.0, 40, "base").notice is None
    assert Team.of(1, 5.0, 40, "base").notice is None


@pytest.mark.parametrize(
    ("ranks", "guidance", "height", "decoders"),
    [(1, 1.0, 384, 1), (2, 1.0, 384, 2), (8, 1.0, 384, 8), (2, 5.0, 384, 1), (4, 5.0, 384, 1), (5, 5.0, 384, 5)],
)
def test_ranks_that_decode_a_chunk_together(ranks, guidance, height, decoders):
    """All of them, where all of them make every call."""
    team = Team.of(ranks, guidance, 40, "base")
    assert team.decoders((640, height), is_apart=False) == decoders
    assert team.decoders((640, height), is_apart=True) == 1


def test_no_rank_decodes_without_a_row():
    team = Team.of(10, 1.0, 40, "base")
    assert team.decoders((640, 80), is_apart=False) == 10
    assert team.decoders((640, 64), is_apart=False) == 1
