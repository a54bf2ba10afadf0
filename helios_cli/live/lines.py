"""Reads prompts from lines, in a thread, while the film renders."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from helios_cli.recipe.cues import shots_from
from helios_cli.recipe.files import MAX_BYTES, decode
from helios_cli.recipe.habits import as_shot_list
from helios_cli.recipe.problems import Problems, RecipeError
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
        bracket = printable(cues[0].prompt.partition("]")[0], 30)
        suggestion = "write [12s], [cut], [switch], [blend], or both: [cut 12s]"
        problems.add(f"{bracket}] is neither a length nor a transition", suggestion=suggestion)
    problems.stop()
    return recipe_from(shots_from(cues, problems)[0], {}, problems).shots[0]


class Lines:
    """The prompts of a file descriptor; None has none.

    `warn` gets a message about each line that is not a prompt, in the thread that reads.
    """

    def __init__(self, descriptor: int | None, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._changed = threading.Condition()
        self._waiting: deque[Shot] = deque()
        self._closed = descriptor is None
        if descriptor is not None:
            threading.Thread(target=self._read, args=(descriptor,), name="prompts", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Return whether no prompt is waiting and none will come."""
        with self._changed:
            return self._closed and not self._waiting

    @property
    def num_waiting(self) -> int:
        """The number of prompts that are read and not taken yet."""
        return len(self._waiting)

    def take(self) -> Shot | None:
        """Return the next prompt, if one is waiting."""
        with self._changed:
            shot = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return shot

    def wait(self) -> Shot | None:
        """Wait for the next prompt; None at the end of the input."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
        return self.take()

    def _read(self, descriptor: int) -> None:
        for number, data in enumerate(_lines(descriptor), 1):
            try:
                shot = read_line(data, Problems("standard input"))
            except RecipeError as error:
                problem = replace(error.problems[0], line=number, shot=None)
                self._warn(f"{problem}; {problem.suggestion}" if problem.suggestion else str(problem))
                continue
            if shot is not None:
                self._put(shot)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, shot: Shot) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < MAX_WAITING)
            self._waiting.append(shot)
            self._changed.notify_all()


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
