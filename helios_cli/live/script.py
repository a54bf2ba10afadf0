"""Decides a film chunk by chunk, from prompts that come while it renders.

The result is a recipe in which each prompt is a shot that begins with the chunk where it took effect. The chunks are
those of the recipe's plan, so that a render of the recipe makes the same film.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

from helios_cli.engine.events import Event, Notice, Playback, PromptTaken
from helios_cli.errors import InputError
from helios_cli.live.clock import Playhead
from helios_cli.live.lines import Lines
from helios_cli.recipe.film import Film
from helios_cli.recipe.plan import Plan, longer
from helios_cli.recipe.schema import Shot
from helios_cli.recipe.settings import length_in_frames
from helios_cli.recipe.values import DEFAULT_BLEND_SECONDS, MAX_SECONDS, Transition
from helios_cli.units import FRAMES_PER_CHUNK, chunks_for, format_figure

LATE_CHUNKS = 4
"""Chunks in a row that come late before the machine counts as too slow."""


@dataclass(frozen=True)
class PromptDefaults:
    """The defaults for prompts: `hold` is their least time, in seconds."""

    transition: Transition = "blend"
    hold: float = DEFAULT_BLEND_SECONDS


class LiveScript:
    """The script (`engine.script.Script`) of a live film.

    Every shot takes whole chunks, and a blend is no longer than the shot is held, so that later prompts do not change
    chunks that are rendered. In a film without a given length a shot is, at any time, as long as is certain.

    Attributes:
        film: the film as far as it is decided, with its settings; its last shot has no length if the film has one.
    """

    def __init__(
        self,
        film: Film,
        fps: float,
        lines: Lines,
        defaults: PromptDefaults,
        playhead: Playhead,
        *,
        chunks: int = 0,
        plan_of: Callable[[Film], Plan],
        keep: Callable[[Film], None],
        warn: Callable[[str], None],
    ) -> None:
        """Begin with a `film` whose only shot is the first prompt; or go on with one that has `chunks` chunks.

        `keep` gets the film whenever it changes, and raises InputError for one that is too large; `warn` gets a
        message about a prompt that is left out for that reason."""
        self.film = film
        self.num_frames = length_in_frames(film.recipe, fps)
        self.num_chunks = None if self.num_frames is None else chunks_for(self.num_frames)
        self._fps, self._lines, self._defaults, self._playhead = fps, lines, defaults, playhead
        self._plan_of, self._keep, self._warn = plan_of, keep, warn
        self._most = self.num_chunks or int(MAX_SECONDS * fps) // FRAMES_PER_CHUNK
        self._taken: dict[int, PromptTaken] = {}
        self._has_begun = False
        self._goes_on: PromptTaken | None = None
        self._late: list[float] = []
        self._is_slow = False
        self.plan: Plan
        if chunks:
            self._go_on(chunks)
        else:
            self._begin(film.recipe.shots[0], 0, None)

    def is_early(self, index: int) -> bool:
        return self._seconds_until(index) > 0

    def decide(self, index: int) -> Iterator[Event]:
        if not self._has_begun:  # only now does this process alone work on the film
            self._has_begun = True
            self._keep(self.film)
            self._playhead.begin_at(index)
            if self._goes_on:
                yield self._goes_on
        is_late = yield from self._wait(index)
        if index == len(self.plan.chunks) < self._most:
            self._next(index)
        self._playhead.decided = len(self.plan.chunks) * self._playhead.chunk_seconds
        if index in self._taken:
            yield self._taken[index]
        if index < len(self.plan.chunks):
            yield self._playback("late" if is_late else "playing")

    def _wait(self, index: int) -> Generator[Event, None, bool]:
        """Wait until chunk `index` may be decided, as late as possible: the prompt that is there then counts.

        Returns whether it comes too late: nothing had to wait for whoever watches, who had to wait."""
        state = None
        while (seconds := self._seconds_until(index)) > 0:
            before, state = state, "paused" if self._playhead.is_paused else "waiting"
            if state != before:
                yield self._playback(state)
            self._playhead.wait(seconds)
        is_late = self._playhead.was_late() and state is None
        if is_late and self._playhead.ahead is not None:
            yield from self._note_late()
        else:
            self._late.clear()
        return is_late

    def _seconds_until(self, index: int) -> float:
        """Return how long chunk `index` may wait; 0 once no prompt can come that it would wait for."""
        if index == self._most or not self._lines.are_open:
            return 0.0
        return self._playhead.seconds_until(index * self._playhead.chunk_seconds)

    def _playback(self, state: str) -> Playback:
        head = self._playhead
        return Playback(state, round(head.position, 3), round(head.in_front, 3), round(head.delay, 3))

    def _note_late(self) -> Iterator[Event]:
        """Say once that the machine is too slow, when chunk after chunk comes late."""
        self._late = [*self._late, self._playhead.now()][-LATE_CHUNKS:]
        if self._is_slow or len(self._late) < LATE_CHUNKS:
            return
        speed = (LATE_CHUNKS - 1) * FRAMES_PER_CHUNK / max(1e-9, self._late[-1] - self._late[0])
        if speed < self._fps:
            self._is_slow = True
            fewer_frames = f", and so would --fps {int(speed)}" if speed >= 1 else ""
            yield Notice(
                f"this machine makes {format_figure(speed)} frames a second, and the film shows {self._fps:g}: "
                f"whoever watches has to wait; a smaller --size or fewer --steps would help{fewer_frames}"
            )

    def _go_on(self, chunks: int) -> None:
        """Take over the shots of an earlier run. Of a last one without a length, only what was rendered is decided."""
        self._whole = self._plan_of(self.film)
        last = self._whole.shots[-1]
        first = next(chunk.index for chunk in self._whole.chunks if chunk.shot == last.index)
        if self.num_frames is None:
            self.plan = self._whole
        else:
            self._decide_to(max(chunks, first + 1))
        self._goes_on = PromptTaken(last.prompt, first, last.transition)

    def _next(self, index: int) -> None:
        """Decide the next chunk: of a prompt that is waiting, else of the last prompt, unless the film ends."""
        while line := self._lines.take():
            try:
                self._begin(line.shot, index, line.position)
                return
            except InputError as error:
                self._warn(f"{error.message}; the film goes on without {line.shot.prompt!r}")
        if self.num_chunks is not None:
            self._decide_to(index + 1)
        elif not self._lines.ended:
            *before, last = self.film.recipe.shots
            plan = longer(self.plan)
            film = self._with_shots(*before, self._lasting(last, plan.shots[-1].num_frames))
            self._keep(film)
            self.film, self.plan = film, plan

    def _begin(self, shot: Shot, index: int, position: float | None) -> None:
        """Let `shot`, which came at `position`, take effect with chunk `index`.

        InputError leaves the film unchanged."""
        hold = self._defaults.hold if shot.seconds is None else shot.seconds
        chunks = min(self._most - index, max(1, math.ceil(hold * self._fps / FRAMES_PER_CHUNK)))
        keys = shot.model_dump(include={"prompt", "image", "video"}, exclude_none=True)
        shots: list[Shot] = []
        if index > 0:
            *before, last = self.film.recipe.shots
            began = self.plan.shots[-1].start_frame
            shots = [*before, self._lasting(last, index * FRAMES_PER_CHUNK - began)]
            keys["transition"] = shot.transition if "transition" in shot.model_fields_set else self._defaults.transition
            held = chunks * FRAMES_PER_CHUNK / self._fps
            if keys["transition"] == "blend" and held < DEFAULT_BLEND_SECONDS:
                keys["blend_seconds"] = held
        new = Shot.model_validate(keys)
        if self.num_frames is None:
            new = self._lasting(new, chunks * FRAMES_PER_CHUNK)
        film = self._with_shots(*shots, new)
        whole = self._plan_of(film)
        if self._has_begun:
            self._keep(film)
        self.film, self._whole = film, whole
        self._decide_to(index + chunks)
        planned = self.plan.shots[-1]
        delay = None if position is None else round(index * self._playhead.chunk_seconds - position, 3)
        self._taken[index] = PromptTaken(planned.prompt, index, planned.transition, delay)

    def _decide_to(self, index: int) -> None:
        self.plan = replace(self._whole, chunks=self._whole.chunks[:index])

    def _with_shots(self, *shots: Shot) -> Film:
        return replace(self.film, recipe=self.film.recipe.model_copy(update={"shots": shots}))

    def _lasting(self, shot: Shot, frames: int) -> Shot:
        return shot.model_copy(update={"seconds": frames / self._fps})
