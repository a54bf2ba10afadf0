"""Every error that helios raises on purpose, and the exit code it ends a command with.

A message says what is wrong and where; a hint says what to do next. `cli.main` is the only place that catches them.
"""

from __future__ import annotations


class HeliosError(Exception):
    """Something failed that should not have. `message`: what and where, no full stop; `hint`: the next step."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(HeliosError):
    """The user's words are wrong: a flag, a recipe, a picture."""

    exit_code = 2


class MachineError(HeliosError):
    """This machine cannot: memory, disk, device, ffmpeg."""

    exit_code = 3


class OutOfMemory(MachineError):
    """Memory ran out while something was computed: with less of the model in it, the same may succeed."""


class CheckpointError(HeliosError):
    """Model files are missing, denied, damaged or of an unknown kind."""

    exit_code = 4


class PictureError(HeliosError):
    """The model produced latents or frames that are not finite numbers."""

    exit_code = 5


class Interrupted(HeliosError):
    """Stopped by SIGINT or SIGTERM."""

    exit_code = 130


def in_our_words(message: str) -> str:
    """A message of pydantic or Typer in the wording of helios."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message


_WORDS = {
    "Value error, ": "",
    "Input should be": "must be",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    ", unable to interpret input": "",
    "a valid string": "text",
    "a valid number": "a number",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
}
