"""The part of a test that is for the quick tier: some of its cases, a few of the examples that hypothesis draws."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import settings


def some(quick: int, cases: Iterable) -> list:
    """Return `cases` for `parametrize`: the first `quick` of them as they are, the others marked `slow`."""
    cases = list(cases)
    rest = (case if isinstance(case, tuple) else (case,) for case in cases[quick:])
    return [*cases[:quick], *(pytest.param(*case, marks=pytest.mark.slow) for case in rest)]


def examples(full: int) -> int:
    """Return how many examples a test draws in this tier that draws `full` of them outside of the quick one."""
    return full * settings().max_examples // 100
