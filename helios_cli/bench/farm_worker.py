"""A worker without a model, by which `bench.farm` measures a farm: it sleeps for each chunk, and keeps seeded noise.

It answers the messages of a driver as `farm.worker` does, and puts its chunks into the film's folder of parts. The
pieces are one real piece of video again and again, so that the films can be joined. It does not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from helios_cli import __version__
from helios_cli.engine.events import ChunkDone, ChunksReused, Event, FilmDone, PhaseStarted, StepDone
from helios_cli.farm.pool import Message
from helios_cli.farm.serving import serve
from helios_cli.farm.task import Task
from helios_cli.film.parts import Parts, stored
from helios_cli.film.target import Target
from helios_cli.recipe.fingerprint import Arithmetic, Fingerprints, Identity
from helios_cli.stop import stop_at_once

VARIABLE = "HELIOS_BENCH_FARM"
"""The environment variable with the fields of `HowToSleep`, as JSON."""

STAGES = 3
"""Steps of a chunk: one a stage, as with --steps 1,1,1."""

DEVICE = "sleeper"
IDENTITY = Identity("no weights", Arithmetic(DEVICE, "float32", "no torch"))


@dataclass(frozen=True)
class HowToSleep:
    """The chunks of a worker without a model.

    Attributes:
        seconds: time of a chunk.
        state_bytes: size of the state after a chunk.
        piece: file of the piece of every chunk.
        key: key of the encoding of that piece.
    """

    seconds: float
    state_bytes: int
    piece: str
    key: str

    def environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}


class Sleeper:
    """Answers messages of a driver, one after the other."""

    def __init__(self, how: HowToSleep) -> None:
        self._how = how
        self._piece = Path(how.piece).read_bytes()

    def answer(self, message: Message) -> Iterator[Message]:
        if "identify" in message:
            yield {"identity": {"kind": {**asdict(IDENTITY), "helios": __version__}, "device": DEVICE}}
            return
        task = Task.of(message["render"])
        fingerprints = Fingerprints(IDENTITY.weights, IDENTITY.arithmetic).of(task.plan)
        keys = [f"{self._how.key}-{chunk.num_frames}" for chunk in task.plan.chunks]
        for event in self._render(task, fingerprints, keys):
            yield event.to_dict()
        kind = {**asdict(IDENTITY), "helios": __version__}
        yield {"done": {"kind": kind, "fingerprints": fingerprints, "keys": keys}}

    def _render(self, task: Task, fingerprints: list[str], keys: list[str]) -> Iterator[Event]:
        """Yield the events of a render; chunks that are there are not made again."""
        assert task.options.output is not None, "the driver gives it"
        began, chunks = time.monotonic(), task.plan.chunks
        store = Parts(Target(Path(task.options.output), task.film_kind)).chunks
        kept, _ = stored(store, fingerprints, keys)
        frames = sum(chunk.num_frames for chunk in chunks[:kept])
        if kept:
            yield ChunksReused(kept - 1, len(chunks), frames, kept, "journal")
        for chunk in chunks[kept:]:
            yield PhaseStarted("denoise")
            for stage in range(STAGES):
                time.sleep(self._how.seconds / STAGES)
                yield StepDone(chunk.index, stage, 0, 1)
            yield PhaseStarted("decode")
            fingerprint = fingerprints[chunk.index]
            state = random.Random(fingerprint).randbytes(self._how.state_bytes)
            store.put(fingerprint, state, keys[chunk.index], self._piece)
            frames += chunk.num_frames
            yield ChunkDone(chunk.index, len(chunks), frames, self._how.seconds)
        yield PhaseStarted("finish")
        seconds = time.monotonic() - began
        yield FilmDone(task.options.output, frames, seconds, frames / seconds, 0, None)


def main() -> None:
    """Serve as a child process of a driver."""
    with stop_at_once(), contextlib.suppress(KeyboardInterrupt):
        serve(Sleeper(HowToSleep(**json.loads(os.environ[VARIABLE]))).answer)


if __name__ == "__main__":
    main()
