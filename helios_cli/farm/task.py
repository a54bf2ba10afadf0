"""A task of a worker: a segment of a film to render, and how it travels in a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from helios_cli.farm.pool import Message
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan


@dataclass(frozen=True)
class Task:
    """A segment to render.

    Attributes:
        plan: the segment as a plan of its own.
        options: with the film's `model` and `output`.
        film_kind: "mp4", "mkv" or "png", as in `Target`.
        shared: whether chunks go into the folder of parts next to `options.output`; else they are sent back.
        kept: the number of the segment's chunks that the driver has, where they are sent back.
        state: the state after those.
        files: contents of the pictures and clips of the plan, by path, where this machine does not see them.
    """

    plan: Plan
    options: RenderOptions
    film_kind: str
    shared: bool = True
    kept: int = 0
    state: bytes | None = None
    files: Mapping[str, bytes] | None = None

    @property
    def pictures(self) -> set[Path]:
        """The pictures and clips of the plan."""
        return {path for chunk in self.plan.chunks for path in (chunk.image, chunk.video) if path is not None}

    def to_message(self) -> Message:
        """Return the message that asks for it."""
        body = {key: getattr(self, key) for key in ("film_kind", "shared", "kept", "state", "files")}
        return {"render": {"plan": to_plain(Plan, self.plan), "options": to_plain(RenderOptions, self.options), **body}}

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Task:
        """Read the body of the message."""
        plan, options = from_plain(Plan, body["plan"]), from_plain(RenderOptions, body["options"])
        return cls(**{**body, "plan": plan, "options": options})


def to_plain(kind: Any, value: object) -> Any:
    """Return a dataclass as values of JSON."""
    return _adapter(kind).dump_python(value, mode="json")


def from_plain(kind: Any, value: Any) -> Any:
    """Return the dataclass of `to_plain`."""
    return _adapter(kind).validate_python(value)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    """Return pydantic's adapter of a dataclass; to make one takes tens of milliseconds."""
    return TypeAdapter(kind)
