"""Films that render side by side, so that weights which are streamed are read once for all of them.

Each film runs in a thread of its own, but only one thread works at a time. A lane that needs the model waits; when all
lanes wait, their calls are made together, and the lanes take turns again. A film's frames do not depend on the films
next to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from helios_cli.engine.clock import Clock
from helios_cli.engine.events import Event, Notice
from helios_cli.engine.memory import memory_errors, without_frames
from helios_cli.engine.models import Models
from helios_cli.engine.preview import Preview
from helios_cli.engine.render import render
from helios_cli.engine.session import Session
from helios_cli.errors import HeliosError
from helios_cli.film.jobs import Job
from helios_cli.model.dit import Call
from helios_cli.recipe.film import Film
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan


@dataclass(frozen=True)
class _Calls:
    """A lane waits for the flows of its model calls."""

    calls: tuple[Call, ...]


@dataclass(frozen=True)
class _Placing:
    """A lane waits for the model's place; `deeper` after it ran out of memory."""

    plan: Plan
    options: RenderOptions
    deeper: bool = False


@dataclass(frozen=True)
class _End:
    """A lane's last word: the error that ended its film, or None."""

    error: BaseException | None


Request = _Calls | _Placing


class Lane(Session):
    """The session of one film among several: it shares the model of `session`, and waits where all must be heard.

    `film` renders with it, in a thread that works only between `turn` and its next step.
    """

    chunks_beside, keeps_speed = 0, False  # lanes share the time

    def __init__(self, session: Session, film: Callable[[Session], Iterator[Event]]) -> None:
        super().__init__(is_stopped=session.is_stopped)
        self._session, self._film = session, film
        self._begun = session._begun
        self._replies: SimpleQueue[object] = SimpleQueue()
        self._steps: SimpleQueue[Event | Request | _End] = SimpleQueue()
        self._clock = Clock(torch.device("cpu"))
        self._waits = False  # for a reply: the thread has begun, and has not ended
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)

    @property
    def models(self) -> Models:
        return self._session.models

    def preview(self, options: RenderOptions) -> Preview | None:
        return self._session.preview(options)

    def load(self, film: Film, options: RenderOptions) -> Iterator[Notice]:
        """Use the model, which is loaded before the lanes begin."""
        self.models.use_threads()
        return iter(())

    def place(self, plans: Sequence[Plan], options: RenderOptions, *, prompts_come: bool = False) -> None:
        (plan,) = plans
        self._wait_for(_Placing(plan, options))

    def place_deeper(self, plans: Sequence[Plan], options: RenderOptions) -> bool:
        (plan,) = plans
        return self._wait_for(_Placing(plan, options, deeper=True))

    def answer(self, calls: Sequence[Call]) -> list[Tensor]:
        begun = time.perf_counter()
        flows, seconds = self._wait_for(_Calls(tuple(calls)))
        self._clock.idle += time.perf_counter() - begun - seconds
        return flows

    def clock(self) -> Clock:
        self._clock = super().clock()
        return self._clock

    def turn(self, reply: object) -> Iterator[Event | Request | _End]:
        """Let the film go on with `reply`; yield its events, and then its next request or its end."""
        if self._thread.ident is None:
            self._thread.start()
            self._waits = True
        self._replies.put(reply)
        while isinstance(step := self._steps.get(), Event):
            yield step
            self._replies.put(None)
        self._waits = not isinstance(step, _End)
        yield step

    def stop(self) -> None:
        """End the film where it waits, unless it has ended; its finished chunks are safe once it is joined."""
        if self._waits:
            self._replies.put(KeyboardInterrupt())

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _wait_for(self, step: Event | Request) -> Any:
        self._steps.put(step)
        return self._next_reply()

    def _next_reply(self) -> object:
        reply = self._replies.get()
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def _run(self) -> None:
        try:
            self._next_reply()  # the first turn
            for event in self._film(self):
                self._wait_for(event)
        except BaseException as error:
            self._steps.put(_End(error))
        else:
            self._steps.put(_End(None))


def render_together(
    jobs: Sequence[Job], session: Session
) -> Generator[tuple[Job | None, Event | HeliosError], None, None]:
    """Render films of one model side by side; yield each event with its job, and the error of a film that fails.

    Events without a job are about all films. An error of a model call ends all films that wait for one.
    """
    failed: HeliosError | None = None
    try:
        for notice in session.load(jobs[0].film, jobs[0].options):
            yield None, notice
    except HeliosError as error:
        failed = without_frames(error)
    if failed is not None:
        for job in jobs:
            yield job, failed
        return
    lanes = [Lane(session, partial(render, job.film, job.options)) for job in jobs]
    job_of = dict(zip(lanes, jobs, strict=True))
    with closing(lockstep(lanes, session)) as steps:
        for lane, step in steps:
            yield (None if lane is None else job_of[lane]), step


@torch.inference_mode()
def lockstep(lanes: Sequence[Lane], session: Session) -> Generator[tuple[Lane | None, Event | HeliosError], None, None]:
    """Let lanes take turns until all films have ended, their model calls being made together.

    Raises what is no HeliosError, when all other films have ended; Ctrl-C ends them all.
    """
    bug: BaseException | None = None
    try:
        replies: dict[Lane, object] = dict.fromkeys(lanes)
        waiting: dict[Lane, Request] = {}
        while replies:
            for lane, reply in replies.items():
                for step in lane.turn(reply):
                    if isinstance(step, Event):
                        yield lane, step
                    elif not isinstance(step, _End):
                        waiting[lane] = step
                    elif isinstance(step.error, HeliosError):
                        yield lane, without_frames(step.error)
                    elif isinstance(step.error, KeyboardInterrupt):
                        raise step.error
                    else:
                        bug = bug or step.error
            replies = _replies(waiting, session)
            for notice in session.notices():
                yield None, notice
    finally:
        for lane in lanes:
            lane.stop()
        for lane in lanes:
            lane.join()
    if bug is not None:
        raise bug


def _replies(waiting: dict[Lane, Request], session: Session) -> dict[Lane, object]:
    """Replies to some of the lanes that wait, which are no longer `waiting` then.

    Model calls come first; the model is placed anew when no lane needs its old place.
    """
    calls = {lane: request for lane, request in waiting.items() if isinstance(request, _Calls)}
    placings = {lane: request for lane, request in waiting.items() if isinstance(request, _Placing)}
    chosen = calls or placings
    for lane in chosen:
        del waiting[lane]
    try:
        with memory_errors():
            return _answered(calls, session) if calls else _placed(placings, session)
    except Exception as error:
        return dict.fromkeys(chosen, error)


def _answered(waiting: Mapping[Lane, _Calls], session: Session) -> dict[Lane, object]:
    """Each lane's flows, and its share of the seconds."""
    together = [call for request in waiting.values() for call in request.calls]
    begun = time.perf_counter()
    flows = iter(session.answer(together))
    each = (time.perf_counter() - begun) / max(1, len(together))
    return {
        lane: ([next(flows) for _ in request.calls], each * len(request.calls)) for lane, request in waiting.items()
    }


def _placed(waiting: Mapping[Lane, _Placing], session: Session) -> dict[Lane, object]:
    """Place the model for all films that wait, and encode their prompts, so that the text encoder is read once."""
    if not waiting:
        return {}
    first, plans = next(iter(waiting.values())), [request.plan for request in waiting.values()]
    if first.deeper:
        return dict.fromkeys(waiting, session.place_deeper(plans, first.options))
    session.place(plans, first.options)
    if len(plans) > 1:
        session.models.encode(text for plan in plans for text in plan.texts)
    return dict.fromkeys(waiting)
