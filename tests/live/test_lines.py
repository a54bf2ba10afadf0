"""Prompts as lines: what each says, and how they come through a pipe."""

from __future__ import annotations

import os
import threading
import time

import pytest

from helios_cli.live.clock import Playhead
from helios_cli.live.lines import MAX_WAITING, Full, Lines, read_line
from helios_cli.recipe.files import MAX_BYTES
from helios_cli.recipe.problems import Problems, RecipeError
from helios_cli.recipe.schema import Shot


@pytest.mark.parametrize(
    ("line", "prompt", "seconds", "transition"),
    [
        (b"a boat\r", "a boat", None, "blend"),
        (b"  a boat [at sea]", "a boat [at sea]", None, "blend"),
        (b"[12s] a boat", "a boat", 12, "blend"),
        (b"[0:05] a boat", "a boat", 5, "blend"),
        (b"[cut] a boat", "a boat", None, "cut"),
        (b"[Switch 1m30s] a boat", "a boat", 90, "switch"),
        (b"[5s] [cut] a boat", "a boat", 5, "cut"),
        (b"[/duration=5s,/new_shot] a boat", "a boat", 5, "cut"),
        ("\ufeffein Bär".encode(), "ein Bär", None, "blend"),
    ],
)
def test_a_line_is_a_prompt(line, prompt, seconds, transition):
    shot = read_line(line, Problems("standard input"))
    assert (shot.prompt, shot.seconds, shot.transition) == (prompt, seconds, transition)
    assert ("transition" in shot.model_fields_set) == (transition != "blend")


@pytest.mark.parametrize("line", [b"", b"  \r", b"# a note", b"  # [cut] a note"])
def test_empty_lines_and_comments_are_none(line):
    assert read_line(line, Problems("standard input")) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"[cutt] a boat", "[cutt] is neither a length nor a transition"),
        (b"[12x] a boat", "[12x] is neither"),
        (b"[12s a boat", "[12s a boat: the bracket is not closed"),
        (b"[cut a storm", "[cut a storm: the bracket is not closed"),
        (b"[-3s] a boat", "not a time"),
        (b"[0s] a boat", "more than 0 seconds"),
        (b"[cut]", "is empty"),
        (b"[12s]  ", "is empty"),
        (b"[0:05-0:10] a boat", "says when it begins"),
        (b"a boat [3s: a sea]", "says when it begins"),
        (b"a \xff boat", "is not UTF-8: byte 0xff at offset 2"),
        (b"a \x1b[2J boat", "control character U+001B"),
        (b"a" * 20_001, "20,001 characters long"),
        (b"a" * (MAX_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_a_line_that_is_no_prompt_says_why(line, says):
    with pytest.raises(RecipeError) as caught:
        read_line(line, Problems("standard input"))
    assert says in str(caught.value)


@pytest.fixture
def piped():
    """Return the lines, the file that they come from, and the notices."""
    reading, writing = os.pipe()
    said: list[str] = []
    lines = Lines(said.append, Playhead(24, None))
    lines.read(reading)
    with os.fdopen(writing, "wb", buffering=0) as writer:
        yield lines, writer, said
    while lines.wait():  # until the thread has seen the end, the number is not another file's
        pass
    os.close(reading)


def test_lines_come_in_order_as_they_are_written(piped):
    lines, writer, said = piped
    assert lines.take() is None and not lines.ended
    writer.write(b"# first\na boat\n[cutt] a ")
    assert lines.wait().shot.prompt == "a boat"
    assert lines.take() is None
    writer.write(b"sea\n\na storm")
    writer.close()
    assert lines.wait().shot.prompt == "a storm"
    assert lines.wait() is None and lines.ended
    assert said == [
        "standard input:3: [cutt] is neither a length nor a transition; "
        "write [12s], [cut], [switch], [blend], or both: [cut 12s]"
    ]


def test_a_line_without_end_takes_no_memory_and_those_behind_it_are_read(piped):
    lines, writer, said = piped
    for _ in range(64):
        writer.write(b"a" * (MAX_BYTES // 16))
    writer.write(b"\na boat\n")
    assert lines.wait().shot.prompt == "a boat"
    assert len(said) == 1 and "1 MiB" in said[0]


def test_whoever_writes_too_far_ahead_waits(piped):
    lines, writer, _ = piped
    writer.write(b"a\n" * (MAX_WAITING + 10))
    writer.close()
    while len(lines.waiting) < MAX_WAITING:
        time.sleep(0.002)
    time.sleep(0.01)
    assert len(lines.waiting) == MAX_WAITING
    assert sum(1 for _ in iter(lines.wait, None)) == MAX_WAITING + 10


def test_no_input_at_all_is_an_end():
    lines = Lines(print, Playhead(24, None))
    lines.read(None)
    assert lines.ended and lines.wait() is None


def test_doors_share_the_order_the_rules_and_the_end(piped):
    lines, writer, said = piped
    page, other = lines.door("the page"), lines.door("another page")
    assert page.say(b"[cut] a boat").transition == "cut"
    assert page.say(b"# a note") is None and page.say(b"") is None
    other.put(Shot(prompt="a sea"))
    with pytest.raises(RecipeError, match=r"the page: .cutt. is neither a length nor a transition"):
        page.say(b"[cutt] a boat")
    assert [shot.prompt for shot in lines.waiting] == ["a boat", "a sea"]
    writer.close()
    page.close()
    assert [lines.wait().shot.prompt for _ in range(2)] == ["a boat", "a sea"]
    assert lines.take() is None and not lines.ended
    other.close()
    assert lines.wait() is None and lines.ended and not said


def test_a_door_other_than_a_pipe_does_not_wait():
    lines = Lines(print, Playhead(24, None))
    page = lines.door("the page")
    for _ in range(MAX_WAITING):
        page.put(Shot(prompt="a"))
    for take in (lambda: page.say(b"a"), lambda: page.put(Shot(prompt="a"))):
        with pytest.raises(Full, match="1,000 prompts wait already"):
            take()
    assert page.say(b"[pause]") is None
    lines.end()
    assert len(lines.waiting) == MAX_WAITING


def test_commands_pause_until_another_or_until_nobody_is_left_to_give_it():
    playhead = Playhead(24, 3.0)
    lines = Lines(print, playhead)
    page = lines.door("the page")
    for line, is_paused in ((b"[pause]", True), (b" [Play]\r", False), (b"[PAUSE]", True), (b"a boat", True)):
        page.say(line)
        assert playhead.is_paused == is_paused
    page.close()
    assert not playhead.is_paused
    playhead.pause()
    assert not playhead.is_paused


def test_a_prompt_remembers_where_the_playhead_was():
    now = [0.0]
    playhead = Playhead(24, 3.0, lambda: now[0])
    page = Lines(print, playhead).door("the page")
    playhead.show(240)
    now[0] = 2.5
    page.say(b"a boat")
    assert page._lines.take().position == 2.5


def test_the_end_of_a_terminal_is_the_end_of_all_doors_and_that_of_a_pipe_is_not():
    """Ctrl-D ends the film even where a page takes prompts too."""
    lines = Lines(print, Playhead(24, None))
    lines.door("the page")
    reading, writing = os.pipe()
    lines.read(reading)
    os.close(writing)
    while any(thread.name == "prompts" for thread in threading.enumerate()):
        time.sleep(0.002)
    os.close(reading)
    assert lines.are_open
    master, terminal = os.openpty()
    lines.read(terminal)
    os.write(master, b"a boat\n\x04")
    assert lines.wait().shot.prompt == "a boat"
    assert lines.wait() is None and not lines.are_open
    os.close(master)
    os.close(terminal)
