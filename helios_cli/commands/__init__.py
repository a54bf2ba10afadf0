"""The commands of `helios`: their names and one-line helps. The module of a command is imported when it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

COMMANDS = {
    "render": 'Render films from prompts: helios render "a red ball rolls left" --seconds 20',
    "live": (
        'Render while prompts arrive, one per line of standard input: helios live "a red ball rolls left" -o film.mp4'
    ),
    "plan": "Show what films consist of and cost: helios plan film.toml --price 2.5",
    "check": "Find black, frozen, flickering, drifting and repeating chunks in a film.",
    "train": "Train a model, or a LoRA of one: helios train recipes/train/tiny-vae.toml",
    "doctor": "Show what this machine has, and which models fit on it.",
    "models": "List, inspect, download, convert and verify models.",
    "recipe": "Check recipes, convert between their forms, and print their schema.",
    "cache": "List or clear the cached chunks that later films reuse.",
    "bench": "Measure speed and memory.",
}
"""The first line of each command's own help, in the order of `helios --help`. The module `commands/NAME.py` holds the
command: a function called NAME, or for a group of commands a Typer called `app`."""

BENCHES = {
    "kernels": ("bench_chip", "kernels"),
    "offload": ("bench_offload", "offload"),
    "quality": ("bench_quality", "quality"),
    "farm": ("bench_farm", "farm"),
    "all": ("bench_chip", "everything"),
}
"""Commands of `helios bench` that are in other modules than bench.py."""


class LazyGroup(TyperGroup):
    """A group that lists its commands without importing them."""

    commands: Any

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Loaded()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Return the name and the help of a command, which is all that help and completion need."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and self.commands[name], rest


class _Loaded(Mapping[str, Any]):
    """The commands themselves, by name; each is imported when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@cache
def _load(name: str) -> Any:
    module: Any = import_module(f"{__name__}.{name}")
    app = typer.Typer(add_completion=False)
    if not hasattr(module, "app"):
        app.command(name)(getattr(module, name))
        return get_command(app)
    for command, (room, function) in BENCHES.items() if name == "bench" else ():
        module.app.command(command)(getattr(import_module(f"{__name__}.{room}"), function))
    app.add_typer(module.app, name=name)
    group: Any = get_command(app)
    return group.commands[name]
