"""Flags of films: what the fields of `RenderOptions` say about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple, TypeVar

from helios_cli.errors import InputError

T = TypeVar("T")


class Flag(NamedTuple):
    """The flag of a field.

    Attributes:
        panel: part of the help; None is its first part.
        short: short form.
        read: reads the text after the flag, and values from Python; without it the field's type says what is taken.
        repeats: the flag can be given several times, and `read` takes a list.
        least, most: limits of a number.
        shows_limits: the command line checks the limits itself, and its help shows them.
    """

    help: str
    panel: str | None = None
    short: str | None = None
    metavar: str | None = None
    read: Callable[[Any], Any] | None = None
    repeats: bool = False
    least: float | None = None
    most: float | None = None
    shows_limits: bool = False


def flag(help: str, panel: str | None = None, *, default: Any = None, **more: Any) -> Any:
    """Return a field with a flag, of which `more` are attributes; one that is True by default has a flag --no-NAME."""
    return field(default=default, metadata={"flag": Flag(help, panel, **more)})


def flag_of(key: str) -> str:
    """Return the name of a field's flag."""
    return f"--{key.replace('_', '-')}"


def read_flag(flag: str, read: Callable[[Any], T], text: Any) -> T:
    """The value of a flag. InputError that names it."""
    try:
        return read(text)
    except InputError as error:
        raise InputError(f"{flag}: {error.message}", hint=error.hint) from error
