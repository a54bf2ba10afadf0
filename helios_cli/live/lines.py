"""Prompts as lines: what a line says, and a thread that reads them while the film renders."""

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
"""Prompts that are read ahead of the film; whoever writes more of them waits."""


def read_line(data: bytes, problems: Problems) -> Shot | None:
    """The shot of one line, `seconds` being how long it stays at least; None for an empty line or a comment.

    Raises RecipeError for a line that is no prompt.
    """
    if len(data) > MAX_BYTES:
        problems.add("the line is larger than 1 MiB", suggestion=f"a prompt has at most {MAX_PROMPT:,} characters")
        problems.stop()
    text = decode(data, problems).strip().replace("\n", " ")  # what is left are carriage returns of its own
    cues = read_cues(as_shot_list(text, problems)[0], problems)
    problems.stop()
    if not cues:
        return None
    if len(cues) > 1 or cues[0].start is not None:
        problems.add(
            "says when it begins", suggestion="a line begins when it is read: write [5s] for how long it stays"
        )
    elif cues[0].prompt.startswith("["):
        bracket = printable(cues[0].prompt.partition("]")[0], 30)
        suggestion = "write [12s], [cut], [switch], [blend], or both: [cut 12s]"
        problems.add(f"{bracket}] is neither a length nor a transition", suggestion=suggestion)
    problems.stop()
    return recipe_from(shots_from(cues, problems)[0], {}, problems).shots[0]


class Lines:
    """The prompts that come through a file descriptor; None is one that is at its end.

    `tell` is given a sentence for each line that is no prompt, in the thread that reads.
    """

    def __init__(self, descriptor: int | None, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._changed = threading.Condition()
        self._waiting: deque[Shot] = deque()
        self._closed = descriptor is None
        if descriptor is not None:
            threading.Thread(target=self._read, args=(descriptor,), name="prompts", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether no prompt waits and none will come."""
        with self._changed:
            return self._closed and not self._waiting

    @property
    def num_waiting(self) -> int:
        """Prompts that are read and not taken yet."""
        return len(self._waiting)

    def take(self) -> Shot | None:
        """The next prompt, if one waits."""
        with self._changed:
            shot = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return shot

    def wait(self) -> Shot | None:
        """The next prompt, however long it takes to come; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
        return self.take()

    def _read(self, descriptor: int) -> None:
        for number, data in enumerate(_lines(descriptor), 1):
            try:
                shot = read_line(data, Problems("standard input"))
            except RecipeError as error:
                problem = replace(error.problems[0], line=number, shot=None)
                self._tell(f"{problem}; {problem.suggestion}" if problem.suggestion else str(problem))
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
    except OSError:  # a terminal that is gone
        return b""
