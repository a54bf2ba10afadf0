"""The playhead, with a clock that the test turns."""

from __future__ import annotations

import threading

import pytest

from helios_cli.live.clock import REPORT_SECONDS, Playhead


class Hands:
    """A clock on the wall."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def turn(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def head(hands) -> Playhead:
    """A playhead at 33 frames a second: a chunk is a second."""
    return Playhead(33, 3.0, hands)


def test_it_starts_with_the_first_frames_and_stops_where_they_end(head, hands):
    hands.turn(50)
    assert head.position == 0
    head.show(66)
    hands.turn(1.5)
    assert (head.position, head.in_front, head.was_late()) == (1.5, 0.5, False)
    hands.turn(10)
    head.show(99)
    assert (head.position, head.in_front, head.was_late()) == (2, 1, True)
    assert not head.was_late()
    hands.turn(0.25)
    assert head.position == 2.25


def test_chunks_are_decided_no_earlier_than_ahead_allows(head, hands):
    assert [head.seconds_until(start) for start in (0, 3, 4)] == [0, 0, 1]
    head.show(33 * 4)
    hands.turn(0.75)
    assert head.seconds_until(4) == 0.25
    hands.turn(0.25)
    assert head.seconds_until(4) == 0


@pytest.mark.parametrize(("ahead", "used"), [(None, None), (0.1, 1.0), (1.0, 1.0), (2.5, 2.5)])
def test_ahead_is_a_chunk_at_least(ahead, used):
    head = Playhead(33, ahead)
    assert head.ahead == used
    assert (head.seconds_until(1e6) == 0) == (ahead is None)


def test_a_prompt_shows_within_ahead_and_a_chunk(hands):
    """At any moment of a film that is rendered faster than it plays, whatever the rate and `ahead`."""
    for fps, ahead in ((24, 3.0), (8.25, 4.0), (60, 0.1)):
        head = Playhead(fps, ahead, hands)
        chunk, worst = 33 / fps, 0.0
        for index in range(200):
            while head.seconds_until(index * chunk):
                hands.turn(0.01)
            head.decided = (index + 1) * chunk
            worst = max(worst, head.delay)
            hands.turn(chunk / 3)
            head.show((index + 1) * 33)
        assert chunk < worst <= head.ahead + chunk + 1e-6


def test_the_viewer_who_is_furthest_counts_and_nobody_else_does(head, hands):
    head.show(330)
    hands.turn(1)
    head.report("a", 0.5)
    assert head.position == 0.5
    head.report("b", 4.0)
    hands.turn(REPORT_SECONDS - 1)
    assert head.position == 4.0
    head.report("a", 0.5)
    hands.turn(1)  # nothing came from b
    assert head.position == 0.5
    head.report("b", 99.0)  # a number of theirs is no more than what is out
    assert head.position == 10.0
    head.leave("b")
    assert head.position == 0.5
    head.leave("a")
    hands.turn(2)
    assert head.position == 2.5


def test_a_film_that_goes_on_begins_where_it_ended(head, hands):
    head.show(33 * 7)
    head.begin_at(7)
    hands.turn(9)
    assert (head.position, head.delay, head.seconds_until(10)) == (7, 0, 0)


def test_time_in_which_the_process_stood_still_does_not_count(head, hands):
    head.show(330)
    hands.turn(1)
    hands.turn(60)
    head.skip(60)
    assert head.position == 1


def test_a_pause_holds_every_chunk_back_and_ends_at_once(head):
    head.pause()
    assert head.seconds_until(0) == float("inf")
    waiting = threading.Thread(target=lambda: [head.wait(60) for _ in range(9) if head.seconds_until(0)])
    waiting.start()
    head.resume()
    waiting.join()
    head.pause()
    head.never_pause()
    head.pause()
    assert not head.is_paused and head.seconds_until(0) == 0


def test_without_ahead_a_pause_holds_chunks_back_too():
    head = Playhead(24, None)
    head.pause()
    assert head.seconds_until(0) == float("inf")


def test_a_viewer_who_has_seen_everything_waits(head, hands):
    head.show(99)
    head.report("a", 1.0)
    hands.turn(1)
    assert not head.was_late()
    head.report("a", 2.99)
    hands.turn(1)
    assert head.was_late()
