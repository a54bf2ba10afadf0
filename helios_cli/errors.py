"""The errors that helios raises on purpose, and the exit code of each.

A message says what is wrong and where; a hint says what to do next. `cli.main` alone prints them.
"""

from __future__ import annotations

from typing import Any


class HeliosError(Exception):
    """A failure that should not happen. `message`: what and where, without a full stop; `hint`: the next step."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, Any]:
        """Return the error as values of JSON, for another process."""
        kind = next(kind.__name__ for kind in type(self).__mro__ if kind in KINDS.values())
        return {"error": kind, "message": self.message, "hint": self.hint}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> HeliosError:
        """Return the error of `to_dict`, of the nearest class that this module has."""
        return KINDS[values["error"]](values["message"], hint=values["hint"])


class InputError(HeliosError):
    """A wrong flag, recipe or picture of the user."""

    exit_code = 2


class MachineError(HeliosError):
    """A limit of this machine: memory, disk, device, ffmpeg."""

    exit_code = 3


class OutOfMemory(MachineError):
    """The device ran out of memory. With less of the model on it, the same work may succeed."""


class CheckpointError(HeliosError):
    """Model files that are missing, denied, damaged or of an unknown kind."""

    exit_code = 4


class PictureError(HeliosError):
    """Latents or frames of the model that are not finite numbers."""

    exit_code = 5


class ReaderGone(HeliosError):
    """The reader of a stream has closed it, which ends the film: nothing failed."""

    exit_code = 0

    def __init__(self, message: str = "whoever read the stream has closed it", *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)


class Interrupted(HeliosError):
    """A stop by SIGINT or SIGTERM."""

    exit_code = 130


KINDS = {name: kind for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, HeliosError)}
"""The classes by name, for errors of another process."""


def in_our_words(message: str) -> str:
    """Return a message of pydantic or Typer in the wording of helios."""
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
