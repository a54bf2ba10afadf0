"""A farm without a model: workers in this process that answer like real ones, with chunks of noise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from helios_cli.engine.events import ChunkDone, FilmDone
from helios_cli.farm.driver import Driver
from helios_cli.farm.film import FarmFilm, Kind, identity_of
from helios_cli.farm.pool import Message
from helios_cli.farm.start import plan_films
from helios_cli.farm.task import Task
from helios_cli.film.compression import Encoding
from helios_cli.film.growing import growing_film
from helios_cli.film.jobs import find_jobs
from helios_cli.film.parts import Parts
from helios_cli.film.target import Target
from helios_cli.recipe.fingerprint import Fingerprints
from helios_cli.recipe.options import RenderOptions

KIND = {
    "weights": "noise",
    "arithmetic": {"device": "a cpu", "dtype": "float32", "torch": "2", "quant": "none", "kernels": ""},
    "attention_taken": {},
    "helios": "1",
    "ffmpeg": "1",
}
SIZE = (64, 64)

Answer = Callable[[Message], Iterator[Message]]


@cache
def piece(kind: str, num_frames: int) -> bytes:
    """So many frames of noise, encoded as a film of `kind` is."""
    film = growing_film(Target(Path("film"), kind), SIZE, 24, Encoding())
    encoder = film.encoder()
    encoder.write(np.random.default_rng(num_frames).integers(0, 255, (num_frames, 64, 64, 3), np.uint8))
    return encoder.finish(num_frames)


def noise(message: Message, kind: Kind = KIND) -> Iterator[Message]:
    """The replies of a worker that works."""
    if "identify" in message:
        yield {"identity": {"kind": kind, "device": "cpu"}}
        return
    task = Task.of(message["render"])
    target = Target(Path(task.options.output), task.film_kind)
    film = growing_film(target, SIZE, 24, Encoding())
    identity = identity_of(kind)
    fingerprints = Fingerprints(identity.weights, identity.arithmetic).of(task.plan)
    keys = [film.piece_key(chunk.num_frames) for chunk in task.plan.chunks]
    frames = 0
    for chunk, fingerprint, key in zip(task.plan.chunks, fingerprints, keys, strict=True):
        Parts(target).chunks.put(fingerprint, b"state", key, piece(target.kind, chunk.num_frames))
        frames += chunk.num_frames
        yield ChunkDone(chunk.index, len(task.plan.chunks), frames, 1.0).to_dict()
    yield FilmDone("", frames, 1.0, 33.0, 1, None).to_dict()
    yield {"done": {"kind": kind, "fingerprints": fingerprints, "keys": keys}}


class FakePool:
    """Workers whose answers are given: by name, else noise. `sent` are the segments that each was given."""

    def __init__(self, names: Sequence[str] = ("a", "b"), answers: dict[str, Answer] | None = None) -> None:
        self.names = list(names)
        self.answers = answers or {}
        self.waiting: deque[tuple[str, Message]] = deque()
        self.sent: list[tuple[str, str]] = []
        self.renewed: list[str] = []
        self.ended: list[str] = []
        self.is_closed = False
        for name in names:
            self._hello(name)

    def sees(self, name: str, path: Path) -> bool:
        return True

    def send(self, name: str, message: Message) -> None:
        if "render" in message:
            self.sent.append((name, Task.of(message["render"]).plan.chunks[0].prompts[0][0]))
        for reply in self.answers.get(name, noise)(message):
            self.waiting.append((name, reply))

    def receive(self, timeout: float) -> list[tuple[str, Message]]:
        return [self.waiting.popleft()] if self.waiting else []

    def renew(self, name: str) -> None:
        self.renewed.append(name)
        self._hello(name)

    def end(self, name: str) -> None:
        self.ended.append(name)
        self.waiting = deque((other, reply) for other, reply in self.waiting if other != name)

    def close(self) -> None:
        self.is_closed = True

    def _hello(self, name: str) -> None:
        self.waiting.append((name, {"hello": {"host": "here", "pid": 1, "versions": {}}}))


def films(folder: Path, sources: Sequence[str], **options) -> tuple[list[FarmFilm], RenderOptions]:
    """Films of the tiny model, planned for a farm."""
    given = RenderOptions(model="tiny", size=SIZE, output=str(folder), workers=2, cache=False, **options)
    return plan_films(find_jobs(list(sources), given), given, None), given


def driver_of(films: Sequence[FarmFilm], options: RenderOptions, pool: FakePool, **how) -> Driver:
    return Driver(films, pool, options, **how)
