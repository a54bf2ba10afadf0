"""Model calls that a film asks for and somebody else makes, so that films can share one walk over the weights.

A film's generator yields events and `ModelCalls`; it goes on when it is sent the answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from helios_cli.engine.events import Event
from helios_cli.errors import OutOfMemory
from helios_cli.model.dit import Call

T = TypeVar("T")


@dataclass
class ModelCalls:
    """Calls that do not depend on each other, answered by their flows. None at all asks only that the transformer be
    at hand: what other networks are needed for by films beside this one comes first.

    `seconds` is their share of the time, told by who answers calls of several films together.
    """

    calls: tuple[Call, ...] = ()
    seconds: float | None = None


Answer = Callable[[Sequence[Call]], list[Tensor]]
Steps = Generator[Event | ModelCalls, list[Tensor] | None, T]


def answered(film: Steps[T], answer: Answer) -> Generator[Event, None, T]:
    """The events of a film alone: its calls are answered as they come. Returns what the film returns."""
    reply = None
    with contextlib.closing(film):
        while True:
            try:
                said = film.send(reply)
            except StopIteration as done:
                return done.value
            reply = None
            if isinstance(said, ModelCalls):
                with memory_told():
                    reply = answer(said.calls)
            else:
                yield said


@dataclass
class Lane:
    """A film among several. `result`: what it returned; `error`: what it ended with if it did not come to its end."""

    steps: Generator[ModelCalls, list[Tensor] | None, object]
    result: object = None
    error: Exception | None = None


def lockstep(lanes: Sequence[Lane], answer: Answer) -> None:
    """Runs several films to their ends, the calls that they wait for being made together. An error of one ends that
    one alone; an error of a call ends those that wait, which is all. Others than Exceptions end them all and go on."""
    with contextlib.ExitStack() as stack:
        for lane in lanes:
            stack.enter_context(contextlib.closing(lane.steps))
        waiting = {}
        replies: dict[int, list[Tensor] | None] = dict.fromkeys(range(len(lanes)))
        while replies:
            waiting = {place: said for place, reply in replies.items() if (said := _send(lanes[place], reply))}
            replies = _answers(waiting, lanes, answer)


def _send(lane: Lane, reply: list[Tensor] | None) -> ModelCalls | None:
    """What the lane waits for next; None at its end."""
    try:
        return lane.steps.send(reply)
    except StopIteration as done:
        lane.result = done.value
    except Exception as error:
        lane.error = error
    return None


def _answers(waiting: dict[int, ModelCalls], lanes: Sequence[Lane], answer: Answer) -> dict[int, list[Tensor]]:
    if not waiting:
        return {}
    together = [call for said in waiting.values() for call in said.calls]
    begun = time.perf_counter()
    try:
        with memory_told():
            flows = iter(answer(together))
    except Exception as error:
        for place in waiting:
            lanes[place].error = error
            lanes[place].steps.close()
        return {}
    seconds = time.perf_counter() - begun
    if len(lanes) > 1:
        for said in waiting.values():
            said.seconds = seconds * len(said.calls) / max(1, len(together))
    return {place: [next(flows) for _ in said.calls] for place, said in waiting.items()}


RENDER_LESS = "take --offload stream, a smaller --size, or a smaller --vram so that more is kept away"


@contextlib.contextmanager
def memory_told(hint: str = RENDER_LESS) -> Iterator[None]:
    """OutOfMemory in place of what PyTorch and its libraries raise when a device, or the host, has no more."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(words in said for words in DEVICE_SAYS):
            first = said.strip().splitlines()[0].partition(". ")[0].rstrip(".")
            raise OutOfMemory(f"the device ran out of memory: {first}", hint=hint) from error
        if isinstance(error, MemoryError) or "can't allocate memory" in said:
            raise OutOfMemory("this machine ran out of memory", hint=hint) from error
        raise


DEVICE_SAYS = ("error: out of memory", "[CUDA]: out of memory", "BLAS_STATUS_ALLOC_FAILED", "DNN_STATUS_ALLOC_FAILED")
"""The CUDA runtime, which pins host memory too; Triton; cuBLAS and cuDNN. PyTorch raises RuntimeErrors for these."""
