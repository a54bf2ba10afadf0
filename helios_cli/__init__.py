"""helios: long video from a prompt.

The command is `helios`; the same from Python:

    import helios_cli as helios

    for event in helios.render("a red ball rolls left", seconds=10, output="ball.mp4"):
        print(event)

`render`, `plan`, `Session`, `RenderOptions`, `Recipe`, `Shot`, `Film`, `events` and `errors` are the public interface.
Importing this package imports neither torch nor anything else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helios_cli import errors
    from helios_cli.api import plan, render
    from helios_cli.engine import events
    from helios_cli.engine.session import Session
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.options import RenderOptions
    from helios_cli.recipe.schema import Recipe, Shot

__version__ = "0.2.0"

__all__ = ["Film", "Recipe", "RenderOptions", "Session", "Shot", "errors", "events", "plan", "render"]

_HOMES = {
    "render": "helios_cli.api",
    "plan": "helios_cli.api",
    "Session": "helios_cli.engine.session",
    "RenderOptions": "helios_cli.recipe.options",
    "Recipe": "helios_cli.recipe.schema",
    "Shot": "helios_cli.recipe.schema",
    "Film": "helios_cli.recipe.film",
    "events": "helios_cli.engine",
    "errors": "helios_cli",
}
"""The module that each public name is imported from when it is first used."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("events", "errors"):
        return importlib.import_module(f"{_HOMES[name]}.{name}")
    return getattr(importlib.import_module(_HOMES[name]), name)
