"""Takes prompts while the film renders: lines of standard input, in a thread, and what comes through other doors."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from helios_cli.live.clock import Playhead
from helios_cli.recipe.cues import shots_from
from helios_cli.recipe.files import MAX_BYTES, decode
from helios_cli.recipe.habits import as_shot_list
from helios_cli.recipe.problems import Problem, Problems, RecipeError
from helios_cli.recipe.schema import MAX_PROMPT, Shot
from helios_cli.recipe.text import read_cues
from helios_cli.recipe.validate import recipe_from
from helios_cli.visible import printable

BLOCK_BYTES = 1 << 16
MAX_WAITING = 1000
"""Prompts that are read ahead of the film; a writer of more has to wait."""


def read_line(data: bytes, problems: Problems) -> Shot | None:
    """Read the shot of one line, whose `seconds` is its least time; None for an empty line or a comment.

    Raises RecipeError for a line that is not a prompt.
    """
    if len(data) > MAX_BYTES:
        problems.add("the line is larger than 1 MiB", suggestion=f"a prompt has at most {MAX_PROMPT:,} characters")
        problems.stop()
    text = decode(data, problems).strip().replace("\n", " ")  # carriage returns inside the line
    cues = read_cues(as_shot_list(text, problems)[0], problems)
    problems.stop()
    if not cues:
        return None
    if len(cues) > 1 or cues[0].start is not None:
        problems.add(
            "the line says when it begins",
            suggestion="a line takes effect when it is read; write [5s] for how long it stays",
        )
    elif cues[0].prompt.startswith("["):
        bracket, end, _ = cues[0].prompt.partition("]")
        what = "] is neither a length nor a transition" if end else ": the bracket is not closed"
        suggestion = "write [12s], [cut], [switch], [blend], or both: [cut 12s]"
        problems.add(f"{printable(bracket, 30)}{what}", suggestion=suggestion)
    problems.stop()
    return recipe_from(shots_from(cues, problems)[0], {}, problems).shots[0]


class Full(RecipeError):
    """A prompt that is not taken, since too many wait."""


@dataclass(frozen=True)
class Line:
    """A prompt that was read when the playhead was at `position`."""

    shot: Shot
    position: float


class Lines:
    """The prompts that come through any number of doors, in the order in which they come.

    `warn` gets a message about each line of a descriptor that is not a prompt, in the thread that reads it.

    Attributes:
        playhead: what the commands pause and resume.
    """

    def __init__(self, warn: Callable[[str], None], playhead: Playhead) -> None:
        self.playhead, self._warn = playhead, warn
        self._changed = threading.Condition()
        self._waiting: deque[Line] = deque()
        self._doors: set[Door] = set()

    @property
    def are_open(self) -> bool:
        """Return whether prompts may still come."""
        return bool(self._doors)

    @property
    def ended(self) -> bool:
        """Return whether no prompt is waiting and none will come."""
        with self._changed:
            return not self._doors and not self._waiting

    @property
    def waiting(self) -> tuple[Shot, ...]:
        """The prompts that are read and not taken yet."""
        with self._changed:
            return tuple(line.shot for line in self._waiting)

    def take(self) -> Line | None:
        """Return the next prompt, if one is waiting."""
        with self._changed:
            line = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return line

    def wait(self) -> Line | None:
        """Wait for the next prompt; None at the end of the input."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._doors)
        return self.take()

    def door(self, name: str) -> Door:
        """Open a door; `name` is what its errors call it."""
        door = Door(name, self)
        with self._changed:
            self._doors.add(door)
        return door

    def read(self, descriptor: int | None) -> None:
        """Take the lines of a descriptor, in a thread, until it ends; None stands for no input.

        The end of a terminal closes all doors, that of another descriptor closes its own.
        """
        if descriptor is not None:
            door = self.door("standard input")
            threading.Thread(target=self._read, args=(descriptor, door), name="prompts", daemon=True).start()

    def put(self, shot: Shot) -> None:
        """Take the prompt of the command itself."""
        self._put(shot, "the command", wait=False)

    def end(self) -> None:
        """Close all doors."""
        with self._changed:
            doors = list(self._doors)
        for door in doors:
            door.close()

    def _read(self, descriptor: int, door: Door) -> None:
        for number, data in enumerate(_lines(descriptor), 1):
            try:
                door.say(data, wait=True)
            except RecipeError as error:
                problem = replace(error.problems[0], line=number, shot=None)
                self._warn(f"{problem}; {problem.suggestion}" if problem.suggestion else str(problem))
        if os.isatty(descriptor):  # Ctrl-D, by whoever began the film
            self.end()
        door.close()

    def _put(self, shot: Shot, name: str, *, wait: bool) -> None:
        line = Line(shot, self.playhead.position)
        with self._changed:
            if not wait and len(self._waiting) >= MAX_WAITING:
                raise Full([Problem(name, f"{MAX_WAITING:,} prompts wait already", suggestion="try again later")])
            self._changed.wait_for(lambda: len(self._waiting) < MAX_WAITING)
            self._waiting.append(line)
            self._changed.notify_all()

    def _leave(self, door: Door) -> None:
        with self._changed:
            self._doors.discard(door)
            is_last = not self._doors
            self._changed.notify_all()
        if is_last:
            self.playhead.never_pause()


class Door:
    """A way in for prompts. The film can end once all are closed."""

    def __init__(self, name: str, lines: Lines) -> None:
        self._name, self._lines = name, lines

    def say(self, data: bytes, *, wait: bool = False) -> Shot | None:
        """Take a line, and return its shot; None for a command, a comment, or an empty line.

        RecipeError for one that is none of these, and Full where too many prompts wait, unless it may `wait` for them.
        """
        command = data.strip().lower()
        if command == b"[pause]":
            self._lines.playhead.pause()
        elif command == b"[play]":
            self._lines.playhead.resume()
        elif (shot := read_line(data, Problems(self._name))) is not None:
            self._lines._put(shot, self._name, wait=wait)
            return shot
        return None

    def put(self, shot: Shot) -> None:
        """Take a shot. Full where too many prompts wait."""
        self._lines._put(shot, self._name, wait=False)

    def close(self) -> None:
        self._lines._leave(self)


def _lines(descriptor: int) -> Iterator[bytes]:
    """Lines without their ends, of one that is too long to be a prompt its beginning.

    Not through a file object: a thread that waits in one holds a lock that Python asks for when it exits.
    """
    rest = b""
    while block := _block(descriptor):
        *lines, last = block.split(b"\n")
        for line in lines:
            yield rest + line
            rest = b""
        if len(rest) <= MAX_BYTES:
            rest += last
    if rest:
        yield rest


def _block(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, BLOCK_BYTES)
    except OSError:  # the terminal is gone
        return b""
