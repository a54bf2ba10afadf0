"""A worker: holds a model and renders segments of films, for a driver that sends messages (`farm.pool`)."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from helios_cli import __version__
from helios_cli.engine.segment import render_segment
from helios_cli.engine.session import Session
from helios_cli.errors import HeliosError
from helios_cli.farm.pool import Message
from helios_cli.farm.serving import hello, serve
from helios_cli.farm.task import Task, from_plain
from helios_cli.film import ffmpeg
from helios_cli.film.parts import ChunkStore, Parts, piece_keys
from helios_cli.film.target import Target
from helios_cli.machine import temporary_folder
from helios_cli.recipe.fingerprint import Fingerprints, Identity
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan
from helios_cli.stop import stop_at_once

__all__ = ["Worker", "hello"]


class Worker:
    """Answers messages of a driver, one after the other; the model stays loaded between them.

    Args:
        is_stopped: whether the user has stopped this process; asked after each step of a render.
        share: number of workers that share this machine's memory.
    """

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False, share: int = 1) -> None:
        self.session = Session(is_stopped=is_stopped, share=share)

    def answer(self, message: Message) -> Iterator[Message]:
        """Yield the replies to a message; the last one says what came of it. Errors are replies too."""
        try:
            if "identify" in message:
                yield from self._identify(message["identify"])
            else:
                yield from self._render(Task.of(message["render"]))
            return
        except HeliosError as error:
            failed = error.to_dict()
        except Exception as error:  # a bug, which must not end the worker
            self.session.close()
            failed = HeliosError(f"bug: {type(error).__name__}: {error}").to_dict()
            failed["log"] = "".join(traceback.format_exception(error))
        yield {"failed": failed}

    def _identify(self, body: Message) -> Iterator[Message]:
        options = from_plain(RenderOptions, body["options"])
        for event in self.session.open(body["model"], options):
            yield event.to_dict()
        kind = self._kind(self.session.identity(tuple(body["size"]), body["guidance"]))
        yield {"identity": {"kind": kind, "device": str(self.session.models.device)}}

    def _render(self, task: Task) -> Iterator[Message]:
        options = task.options
        assert options.model is not None and options.output is not None, "the driver gives both"
        with contextlib.ExitStack() as stack:
            target, plan = Target(Path(options.output), task.film_kind), task.plan
            if not task.shared:
                folder = Path(stack.enter_context(temporary_folder()))
                target, plan = Target(folder / target.path.name, target.kind), _with_files(plan, task, folder)
            for notice in self.session.open(options.model, options):
                yield notice.to_dict()
            identity = self.session.identity(plan.size, plan.guidance)
            fingerprints = Fingerprints(identity.weights, identity.arithmetic, reanchor=options.reanchor)
            keys = piece_keys(plan, target, options)
            store: ChunkStore = Parts(target).chunks if task.shared else _Outbox(task, fingerprints.of(plan), keys)
            events = stack.enter_context(
                contextlib.closing(render_segment(plan, options, self.session, target, store, fingerprints.of))
            )
            for event in events:
                yield from _drained(store)
                yield event.to_dict()
            yield from _drained(store)
            yield {"done": {"kind": self._kind(identity), "fingerprints": fingerprints.of(plan), "keys": keys}}

    def _kind(self, identity: Identity) -> Message:
        """Return everything that decides the bytes of a film's pieces except its plan and options."""
        versions = {"helios": __version__, "ffmpeg": ffmpeg.program().version}
        return {**asdict(identity), **versions}


class _Outbox:
    """Finished chunks as messages to the driver, which has the first chunks of the segment already."""

    def __init__(self, task: Task, fingerprints: list[str], keys: list[str]) -> None:
        self._there = set(zip(fingerprints[: task.kept], keys, strict=False))
        self._states = dict.fromkeys(fingerprints[: task.kept], task.state)
        self.messages: deque[Message] = deque()

    def state(self, fingerprint: str) -> bytes | None:
        return self._states.get(fingerprint)

    def piece(self, fingerprint: str, key: str) -> bytes | None:
        """Return nothing but whether the driver has the piece: it is not needed here."""
        return b"" if (fingerprint, key) in self._there else None

    def put(self, fingerprint: str, state: bytes, key: str, piece: bytes) -> None:
        self.messages.append({"chunk": {"fingerprint": fingerprint, "state": state, "key": key, "piece": piece}})


def _drained(store: ChunkStore) -> Iterator[Message]:
    while isinstance(store, _Outbox) and store.messages:
        yield store.messages.popleft()


def _with_files(plan: Plan, task: Task, folder: Path) -> Plan:
    """Return the plan with pictures and clips that came with the task."""
    places: dict[str, Path] = {}
    for number, (name, data) in enumerate((task.files or {}).items()):
        places[name] = folder / f"{number}{Path(name).suffix}"
        places[name].write_bytes(data)
    chunks = [
        replace(
            chunk,
            image=places.get(str(chunk.image), chunk.image),
            video=places.get(str(chunk.video), chunk.video),
        )
        for chunk in plan.chunks
    ]
    return replace(plan, chunks=tuple(chunks))


def main() -> None:
    """Serve as a child process of a driver."""
    with stop_at_once() as is_stopped, contextlib.suppress(KeyboardInterrupt):
        worker = Worker(is_stopped, share=int(sys.argv[1]))
        with worker.session:
            serve(worker.answer)


if __name__ == "__main__":
    main()
