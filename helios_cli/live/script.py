"""A film that is decided chunk by chunk, by prompts that come while it renders.

What is decided is a recipe: each prompt is a shot that begins with the chunk where it came into force. The chunks are
those of the recipe's plan, so that a render of the recipe makes the same film.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from helios_cli.engine.events import PromptTaken
from helios_cli.errors import InputError
from helios_cli.live.lines import Lines
from helios_cli.recipe.film import Film
from helios_cli.recipe.plan import Plan, longer
from helios_cli.recipe.schema import Shot
from helios_cli.recipe.settings import asked_frames
from helios_cli.recipe.values import DEFAULT_BLEND_SECONDS, MAX_SECONDS, Transition
from helios_cli.units import FRAMES_PER_CHUNK, chunks_for


@dataclass(frozen=True)
class Manner:
    """How prompts come into force, where they do not say: `hold` is the least time of one, in seconds."""

    transition: Transition = "blend"
    hold: float = DEFAULT_BLEND_SECONDS


class LiveScript:
    """The script (`engine.script.Script`) of a live film.

    Every shot takes whole chunks, and a blend no longer than the shot is held: how it goes on cannot change what is
    rendered of it. A shot of a film without a given length is as long, at any time, as it is sure to be.

    Attributes:
        film: what is decided so far, with its settings; its last shot has no length where the film has one.
    """

    def __init__(
        self,
        film: Film,
        fps: float,
        lines: Lines,
        manner: Manner,
        *,
        plan_of: Callable[[Film], Plan],
        keep: Callable[[Film], None],
        tell: Callable[[str], None],
    ) -> None:
        """`film` has the first prompt as its only shot. `keep` is given the film whenever it changes, and raises
        InputError for one that is too large; `tell` is given a sentence about a prompt that is left out for that."""
        self.film = film
        self.num_frames = asked_frames(film.recipe, fps)
        self.num_chunks = None if self.num_frames is None else chunks_for(self.num_frames)
        self._fps, self._lines, self._manner = fps, lines, manner
        self._plan_of, self._keep, self._tell = plan_of, keep, tell
        self._most = self.num_chunks or int(MAX_SECONDS * fps) // FRAMES_PER_CHUNK
        self._taken: dict[int, PromptTaken] = {}
        self._begin(film.recipe.shots[0], 0)

    def decide(self, index: int) -> Iterator[PromptTaken]:
        if index == len(self.plan.chunks) < self._most:
            self._next(index)
        if index in self._taken:
            yield self._taken[index]

    def _next(self, index: int) -> None:
        """The chunk behind what is decided: of a prompt that waits, else of the last one, if the film does not end."""
        while shot := self._lines.take():
            try:
                self._begin(shot, index)
                return
            except InputError as error:
                self._tell(f"{error.message}; the film goes on without {shot.prompt!r}")
        if self.num_chunks is not None:
            self._decide_to(index + 1)
        elif not self._lines.ended:
            *before, last = self.film.recipe.shots
            plan = longer(self.plan)
            film = self._with_shots(*before, self._lasting(last, plan.shots[-1].num_frames))
            self._keep(film)
            self.film, self.plan = film, plan

    def _begin(self, shot: Shot, index: int) -> None:
        """`shot` is in force from chunk `index` on. InputError leaves all as it was."""
        hold = self._manner.hold if shot.seconds is None else shot.seconds
        chunks = min(self._most - index, max(1, math.ceil(hold * self._fps / FRAMES_PER_CHUNK)))
        keys = shot.model_dump(include={"prompt", "image", "video"}, exclude_none=True)
        shots: list[Shot] = []
        if index > 0:
            *before, last = self.film.recipe.shots
            began = self.plan.shots[-1].start_frame
            shots = [*before, self._lasting(last, index * FRAMES_PER_CHUNK - began)]
            keys["transition"] = shot.transition if "transition" in shot.model_fields_set else self._manner.transition
            held = chunks * FRAMES_PER_CHUNK / self._fps
            if keys["transition"] == "blend" and held < DEFAULT_BLEND_SECONDS:
                keys["blend_seconds"] = held
        new = Shot.model_validate(keys)
        if self.num_frames is None:
            new = self._lasting(new, chunks * FRAMES_PER_CHUNK)
        film = self._with_shots(*shots, new)
        whole = self._plan_of(film)
        self._keep(film)
        self.film, self._whole = film, whole
        self._decide_to(index + chunks)
        planned = self.plan.shots[-1]
        self._taken[index] = PromptTaken(planned.prompt, index, planned.transition)

    def _decide_to(self, index: int) -> None:
        self.plan = replace(self._whole, chunks=self._whole.chunks[:index])

    def _with_shots(self, *shots: Shot) -> Film:
        return replace(self.film, recipe=self.film.recipe.model_copy(update={"shots": shots}))

    def _lasting(self, shot: Shot, frames: int) -> Shot:
        return shot.model_copy(update={"seconds": frames / self._fps})
