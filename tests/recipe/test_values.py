import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_cli.errors import InputError
from helios_cli.recipe.values import check_size, parse_duration, parse_size, parse_steps, parse_time


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (90, 90),
        (1.5, 1.5),
        ("90", 90),
        ("90s", 90),
        ("1m30s", 90),
        ("1m 30s", 90),
        ("1m30", 90),
        ("1.5m", 90),
        ("1h", 3600),
        ("1h2m3s", 3723),
        ("0:05", 5),
        ("90:00", 5400),
        ("1:02:03.5", 3723.5),
        (" 2s ", 2),
    ],
)
def test_durations_are_read_in_every_usual_form(written, seconds):
    assert parse_duration(written) == seconds


NO_DURATIONS = [0, "0s", -1, "-1", math.nan, math.inf, "nan", "inf", "1e5", True, None, [3], "", "s", "0:60", "1:60:00"]
NO_DURATIONS += ["5 apples", "1s1m", "٣", 10**400, "9" * 500, 86401, "25h"]


@pytest.mark.parametrize("written", NO_DURATIONS)
def test_a_duration_that_is_none_is_refused(written):
    with pytest.raises(InputError):
        parse_duration(written)


def test_a_point_in_time_may_be_zero():
    assert parse_time("0:00") == parse_time(0) == parse_time("0s") == 0


def test_a_day_is_the_most():
    assert parse_duration("24h") == 86400


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.binary(), st.lists(st.integers())))
def test_no_value_makes_the_parsers_fail_otherwise(value):
    for parse in (parse_time, parse_duration, parse_size, parse_steps):
        try:
            parse(value)
        except InputError as error:
            assert len(error.message) < 200


def test_sizes():
    assert parse_size("640x384") == parse_size(" 640 X 384 ") == parse_size("640×384") == (640, 384)
    for bad in ("640", "640x", "0x64", "-64x64", "640x384x3", "99999x64", 640, None, "6e2x384"):
        with pytest.raises(InputError):
            parse_size(bad)


def test_steps():
    assert parse_steps("2,2,2") == parse_steps([2, 2, 2]) == parse_steps(" 2, 2 ,2") == (2, 2, 2)
    assert parse_steps(50) == parse_steps("50") == (50,)
    for bad in ("", "2,,2", "0", 0, -1, True, [], [2.0], "2.5", 10**6, ["a"], [[2]], None, 2.0, "1," * 40):
        with pytest.raises(InputError):
            parse_steps(bad)


@pytest.mark.parametrize(
    ("size", "stages", "nearest"),
    [
        ((832, 480), 3, {"832x448", "832x512"}),  # 480p, which crashes the pyramid of the reference
        ((1280, 720), 3, {"1280x704", "1280x768"}),
        ((640, 392), 1, {"640x384", "640x400"}),
        ((10, 64), 3, {"64x64"}),
    ],
)
def test_a_size_off_the_grid_is_refused_with_the_nearest_two(size, stages, nearest):
    with pytest.raises(InputError) as raised:
        check_size(size, stages)
    assert set(re.findall(r"\d+x\d+", raised.value.hint)) == nearest


@pytest.mark.parametrize(
    ("size", "stages"), [((640, 384), 3), ((640, 400), 1), ((832, 480), 1), ((1280, 704), 3), ((128, 64), 3)]
)
def test_a_size_on_the_grid_passes(size, stages):
    check_size(size, stages)
