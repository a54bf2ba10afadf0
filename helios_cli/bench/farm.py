"""A farm measured by itself: the driver, its queue, claims, parts, joins and view, with workers that have no model.

Each measurement runs in a process of its own (`child.ask`), so that its processor time and its peak memory are the
driver's. Importing this does not import torch.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from helios_cli import machine
from helios_cli.bench.farm_worker import DEVICE, HowToSleep, Sleeper
from helios_cli.child import Child, Inbox, ask, serve
from helios_cli.engine.events import ChunkDone, ChunksReused, Event, FilmDone, SegmentStarted, WorkerLost, WorkerReady
from helios_cli.errors import HeliosError
from helios_cli.farm.driver import WAIT_SECONDS, Driver
from helios_cli.farm.film import FarmFilm
from helios_cli.farm.pool import Message
from helios_cli.farm.processes import Processes
from helios_cli.farm.start import plan_films
from helios_cli.farm.task import Task
from helios_cli.farm_track import FarmTrack
from helios_cli.farm_view import PlainFarmView, worker_rows
from helios_cli.film.claims import Claims, Owner
from helios_cli.film.compression import Encoding
from helios_cli.film.growing import growing_film
from helios_cli.film.jobs import Job, find_jobs
from helios_cli.film.parts import DoneSegment
from helios_cli.film.target import Target
from helios_cli.recipe.options import RenderOptions
from helios_cli.units import FRAMES_PER_CHUNK

MODULE, WORKER = "helios_cli.bench.farm", "helios_cli.bench.farm_worker"

SIZE = (64, 64)
"""Size of the films: their pieces are real, and small."""

FILE_EVENTS = {
    "open",
    "os.listdir",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.utime",
}
"""Python's audit events of operations on files; `stat` and `fsync` have none."""

ROWS, COLUMNS = 24, 80
"""Size of the terminal for which the view's lines are made."""

FEW = 20
"""Repetitions of what is measured by itself."""

SHORT_EXPIRY = 2.0
"""Seconds after which a claim of another machine expires here, where a farm waits for EXPIRY_SECONDS."""

LONG_SEGMENT = 400
"""Chunks of a segment that is not done before its worker is killed."""

LONGEST_SECONDS = 300.0
"""Seconds in which workers start on any machine."""


@dataclass(frozen=True)
class Films:
    """The films that a farm is measured with.

    Attributes:
        number: films; `segments` of each, and `chunks` of each segment.
        chunk_seconds: time of a chunk.
        state_bytes: size of the state after a chunk.
    """

    number: int
    segments: int
    chunks: int
    chunk_seconds: float
    state_bytes: int

    @property
    def chunks_of_film(self) -> int:
        return self.segments * self.chunks


# What the command asks, each in a process of its own


def measure(films: Films, workers: int, seconds: float) -> dict[str, Any]:
    """Measure a farm of so many workers, for at most `seconds`: `_measure`."""
    return _answer("measure", films, workers=workers, seconds=seconds)


def measure_parts(films: Films) -> dict[str, Any]:
    """Measure what a farm does by the film or the chunk, one after the other: `_measure_parts`."""
    return _answer("parts", films)


def measure_faults(films: Films) -> dict[str, Any]:
    """Measure how long a farm takes to go on after a kill: `_measure_faults`."""
    return _answer("faults", replace(films, number=1, segments=1, chunks=LONG_SEGMENT))


def _answer(what: str, films: Films, **more: Any) -> dict[str, Any]:
    return ask(MODULE, {"what": what, "films": asdict(films), **more})[-1]


def _answers(question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    films = Films(**question["films"])
    given = question.get("folder")  # of a process that is killed, and would leave one of its own
    with nullcontext(given) if given else machine.temporary_folder() as folder:
        stage = Stage(Path(folder), films)
        if question["what"] == "measure":
            yield _measure(stage, question["workers"], question["seconds"])
        elif question["what"] == "parts":
            yield _measure_parts(stage)
        elif question["what"] == "share":
            for _ in stage.driver(1, share=True).run():
                pass
        else:
            yield _measure_faults(stage)


class _Unjoined(FarmFilm):
    """A film that ends without a join: its parts are removed, and no ffmpeg runs."""

    def join(self) -> Generator[Event, None, None]:
        yield self._film_done(str(self.target.path))
        self.parts.remove()


class _Watched(Processes):
    """A pool that counts messages. Its workers are ready all at once: the first hello waits for the last."""

    def __init__(self, environments: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(environments, module=WORKER)
        self.messages = 0
        self.pids: list[int] = []
        self.ready: Callable[[], None] = lambda: None
        self._hellos: list[tuple[str, Message]] = []

    def receive(self, timeout: float) -> list[tuple[str, Message]]:
        messages = super().receive(timeout)
        self.messages += len(messages)
        if len(self.pids) == len(self.names):
            return messages
        self._hellos += messages
        self.pids = [message["hello"]["pid"] for _, message in self._hellos]
        if len(self.pids) < len(self.names):
            return []
        self.ready()
        return self._hellos


class Stage:
    """The folder, the films and the workers of a measurement."""

    def __init__(self, folder: Path, films: Films) -> None:
        self.folder, self.films = folder, films
        self.options = RenderOptions(
            model="tiny", size=SIZE, steps=(1, 1, 1), device="cpu", dtype="float32", cache=False
        )
        (folder / "films").mkdir(parents=True, exist_ok=True)

    def jobs(self, *, share: bool = False) -> list[Job]:
        """Write the films' recipes, and return the jobs of `helios render` for them."""
        paths = [self.folder / f"film{number:04}.json" for number in range(self.films.number)]
        for path in paths:
            if not path.exists():
                path.write_text(_recipe(self.films))
        several = len(paths) > 1
        output = f"{self.folder}/films/" if several else f"{self.folder}/films/film0000.mp4"
        return find_jobs([str(path) for path in paths], replace(self.options, output=output, share=share, workers=2))

    def workers(self, number: int) -> _Watched:
        how = self.how().environment()
        return _Watched({f"sleeper{index}": how for index in range(number)})

    def driver(self, workers: int, *, share: bool = False) -> Driver:
        jobs = self.jobs(share=share)
        return Driver(plan_films(jobs, jobs[0].options), self.workers(workers), jobs[0].options)

    def how(self) -> HowToSleep:
        """Return how workers sleep. The piece of their chunks is encoded here, once."""
        target, options = Target(self.folder / "piece.mp4", "mp4"), self.options
        film = growing_film(target, SIZE, 24, Encoding.of(options))
        piece = self.folder / "piece"
        if not piece.exists():
            encoder = film.encoder()
            noise = np.random.default_rng(0).integers(0, 256, (FRAMES_PER_CHUNK, SIZE[1], SIZE[0], 3), np.uint8)
            encoder.write(noise)
            piece.write_bytes(encoder.finish(FRAMES_PER_CHUNK))
        return HowToSleep(self.films.chunk_seconds, self.films.state_bytes, str(piece), film.key)


def _recipe(films: Films) -> str:
    """Return a recipe in which each shot is a segment, and each is another one: equal chunks would be made once."""
    seconds = films.chunks * FRAMES_PER_CHUNK / 24
    shots = [{"prompt": f"shot {number}", "seconds": seconds} for number in range(films.segments)]
    return json.dumps(
        {"version": 1, "model": "tiny", "shot": [shots[0], *({**shot, "transition": "cut"} for shot in shots[1:])]}
    )


# The driver


def _measure(stage: Stage, workers: int, seconds: float) -> dict[str, Any]:
    """Measure from the moment when all workers are ready to the last chunk, or to the first after so many seconds.

    Of a chunk are `overhead_seconds`, the workers' time in which they do not sleep; processor seconds of the driver, of
    its view (plain lines) and of all workers; messages to the driver, and its file operations.
    """
    began = time.perf_counter()
    jobs = stage.jobs()
    films = plan_films(jobs, jobs[0].options)
    planned = time.perf_counter()
    pool = stage.workers(workers)
    driver = Driver([_Unjoined(film.job, film.planned) for film in films], pool, jobs[0].options)
    track = FarmTrack([job.film.name for job in jobs])
    view = PlainFarmView(track)
    usage = _Usage(pool)
    pool.ready = usage.begin
    wanted, done = stage.films.number * stage.films.chunks_of_film, Counter[type]()
    with closing(driver.run()) as events:
        for job, event in events:
            before = time.thread_time()
            name = None if job is None else job.film.name
            track.follow(name, event)
            if isinstance(event, HeliosError):
                raise event
            (view if name is None else view.of(name)).show(event)
            usage.view_seconds += time.thread_time() - before
            done[type(event)] += 1
            if isinstance(event, ChunkDone) and (done[ChunkDone] == wanted or usage.seconds > seconds):
                break
        used = usage.end()
    chunks, wall = done[ChunkDone], used.pop("seconds")
    return {
        "workers": workers,
        "films": done[FilmDone],
        "chunks": chunks,
        "seconds": wall,
        "peak_bytes": machine.peak_host_bytes(),
        "plan_seconds": (planned - began) / len(jobs),
        "start_seconds": usage.began - planned,
        "overhead_seconds": wall * workers / chunks - stage.films.chunk_seconds,
        "driver_share": used["driver_seconds"] / wall,
        "messages_per_second": used["messages"] / wall,
        "refresh_seconds": _typical(lambda: (track.totals(), worker_rows(track.workers, COLUMNS, ROWS, 0.0, "~"))),
        **{key: value / chunks for key, value in used.items()},
    }


class _Usage:
    """Counts what a driver and its workers use between `begin` and `end`. The caller adds to `view_seconds`."""

    def __init__(self, pool: _Watched) -> None:
        self._pool, self.view_seconds, self.began = pool, 0.0, 0.0
        self._before: list[float] = []
        self._operations = 0
        sys.addaudithook(self._note)

    def _note(self, event: str, _: object) -> None:
        self._operations += event in FILE_EVENTS

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def begin(self) -> None:
        self.began, self.view_seconds, self._before = time.perf_counter(), 0.0, self._now()

    def end(self) -> dict[str, float]:
        seconds = self.seconds
        used = [after - before for before, after in zip(self._before, self._now(), strict=True)]
        names = ("driver_seconds", "worker_seconds", "messages", "file_operations")
        found = {"seconds": seconds, **dict(zip(names, used, strict=True)), "view_seconds": self.view_seconds}
        return found | {"driver_seconds": found["driver_seconds"] - self.view_seconds}

    def _now(self) -> list[float]:
        workers = sum(map(_processor_seconds, self._pool.pids))
        return [time.process_time(), workers, self._pool.messages, self._operations]


def _processor_seconds(pid: int) -> float:
    """Return the processor time of a process; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _typical(work: Callable[[], object]) -> float:
    """Return the median of the seconds that `work` takes."""
    times = []
    for _ in range(FEW):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


# Parts and joins


def _measure_parts(stage: Stage) -> dict[str, Any]:
    """Measure, one after the other: keeping chunks, noting segments, and joining FEW films."""
    films = replace(stage.films, number=min(FEW, stage.films.number), chunk_seconds=0.0)
    stage = Stage(stage.folder, films)
    jobs = stage.jobs()
    planned = plan_films(jobs, jobs[0].options)
    sleeper = Sleeper(stage.how())
    times = [_render(film, sleeper) for film in planned]
    before, joined = _processor_times(), time.perf_counter()
    for film in planned:
        for _ in film.join():
            pass
    wall, after = time.perf_counter() - joined, _processor_times()
    return {
        "films": films.number,
        "keep_seconds": sum(keep for keep, _ in times) / films.number / films.chunks_of_film,
        "note_seconds": sum(note for _, note in times) / films.number / films.segments,
        "join_seconds": wall / films.number,
        "join_driver_seconds": (after[0] - before[0]) / films.number,
        "join_ffmpeg_seconds": (after[1] - before[1]) / films.number,
    }


def _render(film: FarmFilm, sleeper: Sleeper) -> tuple[float, float]:
    """Render all segments of a film in this process. Returns the seconds of the worker's side and of the driver's."""
    kind = next(iter(sleeper.answer({"identify": {}})))["identity"]["kind"]
    for _ in film.begin(kind, DEVICE):
        pass
    options = replace(film.job.options, output=str(film.target.path))
    keeping = noting = 0.0
    for segment in film.segments:
        began = time.perf_counter()
        *_, last = sleeper.answer(Task(segment.plan, options, film.target.kind).to_message())
        rendered = time.perf_counter()
        film.finish_segment(segment, DoneSegment.of(last["done"]))
        keeping, noting = keeping + rendered - began, noting + time.perf_counter() - rendered
    return keeping, noting


def _processor_times() -> tuple[float, float]:
    """Return the processor time of this process, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time(), children.ru_utime + children.ru_stime


# Faults


def _measure_faults(stage: Stage) -> dict[str, Any]:
    return {**_replaced(stage), **_taken_over(stage), **_expired(stage.folder / "claims")}


def _replaced(stage: Stage) -> dict[str, float]:
    """Kill a worker in the middle of a segment: the seconds until that is known, and until the segment goes on."""
    killed, found = 0.0, {}
    with closing(stage.driver(1).run()) as events:
        for _, event in events:
            seconds = time.perf_counter() - killed
            if not killed and isinstance(event, ChunkDone) and event.pid:
                os.kill(event.pid, signal.SIGKILL)
                killed = time.perf_counter()
            elif isinstance(event, WorkerLost):
                found["lost_seconds"] = seconds
            elif killed and isinstance(event, SegmentStarted):
                return {**found, "replaced_seconds": seconds}
    raise HeliosError("the killed worker was not replaced")


def _taken_over(stage: Stage) -> dict[str, float]:
    """Kill a driver that shares a film, which another one wants: the seconds until that one renders its segment, and
    the chunks that it need not render again."""
    stage = Stage(stage.folder / "shared", stage.films)
    question = {"what": "share", "films": asdict(stage.films), "folder": str(stage.folder)}
    other = Child("another driver", MODULE, inbox=Inbox())
    other.send(question)
    killed: list[float] = []

    def kill() -> None:
        time.sleep(2 * WAIT_SECONDS)  # until this driver has tried in vain
        other.kill()
        killed.append(time.perf_counter())

    try:
        target = Target.of(stage.jobs(share=True)[0].output)
        _wait(lambda: len(list(target.parts.glob("chunks/*"))) > 2)
        started = 0.0
        with closing(stage.driver(1, share=True).run()) as events:
            for _, event in events:
                if isinstance(event, WorkerReady):
                    threading.Thread(target=kill, daemon=True).start()
                elif isinstance(event, SegmentStarted):
                    started = time.perf_counter()
                elif isinstance(event, ChunksReused) and started:
                    return {"taken_over_seconds": started - killed[0], "taken_over_chunks": event.count}
    finally:
        other.end()
    raise HeliosError("the claim of the killed driver was not taken over")


def _expired(folder: Path) -> dict[str, float]:
    """Wait for a claim of another machine as a driver does, with a short expiry: the seconds after its last sign."""
    other = Claims(folder, replace(Owner.here(), machine="another machine"))
    mine = Claims(folder, expiry=SHORT_EXPIRY)
    other.take("segment-0")
    began = time.perf_counter()
    while not mine.take("segment-0"):
        time.sleep(WAIT_SECONDS)
    return {"expiry_seconds": SHORT_EXPIRY, "expired_seconds": time.perf_counter() - began}


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise HeliosError(f"nothing was rendered in {LONGEST_SECONDS:.0f} s")
        time.sleep(0.02)


if __name__ == "__main__":
    serve(_answers)
