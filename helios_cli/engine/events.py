"""Events of a render: the engine yields them, the command line shows them.

Every event is a frozen dataclass of plain values; `to_dict` gives the JSON object of the event stream
(`--progress json`), whose `version` is `STREAM_VERSION`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

STREAM_VERSION = 1


@dataclass(frozen=True)
class Worker:
    """A process that renders films for another one: its name there, its host, and its device once that is known."""

    name: str
    host: str
    device: str = ""


@dataclass(frozen=True)
class Event:
    """An event of a render. `worker` and `pid` name the process that it comes from where several render."""

    worker: Worker | None = field(default=None, kw_only=True)
    pid: int | None = field(default=None, kw_only=True)

    def to_dict(self) -> dict:
        values = asdict(self)
        for key in ("worker", "pid"):
            if values[key] is None:
                del values[key]
        return {"version": STREAM_VERSION, "event": _name(type(self)), **values}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Event:
        """Return the event that `to_dict` gave."""
        fields = {key: value for key, value in values.items() if key not in ("version", "event")}
        if "worker" in fields:
            fields["worker"] = Worker(**fields["worker"])
        return _kinds()[values["event"]](**fields)


@cache
def _kinds() -> dict[str, type[Event]]:
    return {_name(kind): kind for kind in Event.__subclasses__()}


def _name(kind: type[Event]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


@dataclass(frozen=True)
class FilmStarted(Event):
    """The first event of a film. `film` is its title, `steps` the number of solver steps of the whole film, `stages`
    the number of pyramid stages.

    `frames`, `chunks` and `steps` are None if they are not known yet: in a film whose prompts are still to come.
    `preview` is the name of the preview decoder that makes the frames in place of the VAE, or None.
    """

    film: str
    output: str
    model: str
    device: str
    dtype: str
    width: int
    height: int
    fps: float
    frames: int | None
    chunks: int | None
    stages: int
    steps: int | None
    preview: str | None = None


@dataclass(frozen=True)
class PromptTaken(Event):
    """A prompt of a live film takes effect with chunk `chunk` (from 0). `transition` is as in a recipe, "cut" at 0.

    `delay` is the time, in seconds of film, from where the playhead was when the prompt came to where it shows.
    """

    prompt: str
    chunk: int
    transition: str
    delay: float | None = None


@dataclass(frozen=True)
class Playback(Event):
    """The playhead of a live film, before each chunk is decided and where `state` changes; times in seconds of film.

    `state` is "playing", "waiting" (rendering is far enough ahead), "paused", or "late" (whoever watches waits for
    frames). `in_front` is what is out and not watched yet, `delay` the time until a prompt would show that comes now.
    """

    state: str
    position: float
    in_front: float
    delay: float


@dataclass(frozen=True)
class PhaseStarted(Event):
    """A phase begins: "load", "text", "conditioning", "denoise", "decode", "after" or "finish"."""

    phase: str


@dataclass(frozen=True)
class StepDone(Event):
    """A solver step of chunk `chunk` (from 0), stage `stage` (0 is the coarsest), is done."""

    chunk: int
    stage: int
    step: int
    steps_in_stage: int


@dataclass(frozen=True)
class ChunkDone(Event):
    """A chunk's frames were passed to the writer. `frames` counts the film's frames so far.

    `seconds` is the time since the chunk began, or since the previous chunk was done if that was later; `chunks` is as
    in FilmStarted.
    """

    chunk: int
    chunks: int | None
    frames: int
    seconds: float


@dataclass(frozen=True)
class ChunksReused(Event):
    """Chunks that had been rendered before were reused: `count` of them, up to chunk `chunk`.

    `source` is "journal" (an interrupted run of this film, one event for all) or "cache" (pieces kept from any film,
    one event each); `frames` counts the film's frames so far, `chunks` is as in FilmStarted.
    """

    chunk: int
    chunks: int | None
    frames: int
    count: int
    source: str


@dataclass(frozen=True)
class FramesDone(Event):
    """Frames of the finished film that a program or filters have made so far, of all: the phase "after"."""

    frames: int
    all_frames: int


@dataclass(frozen=True)
class Notice(Event):
    """A message for the user; the render goes on."""

    message: str


@dataclass(frozen=True)
class WorkerReady(Event):
    """A worker may be given films to render; its model is not in memory yet."""


@dataclass(frozen=True)
class WorkerLost(Event):
    """A worker ended, or was given up: `reason`. What it was rendering goes to another one."""

    reason: str


@dataclass(frozen=True)
class SegmentStarted(Event):
    """A worker begins segment `segment` (from 0) of the film's `segments`, the parts between cuts.

    Its first chunk is the film's chunk `chunk` (from 0); it has `chunks` of them.
    """

    segment: int
    segments: int
    chunk: int
    chunks: int


@dataclass(frozen=True)
class SegmentDone(Event):
    """A worker finished a segment: all its chunks are safe. `seconds` is the time since it was given to the worker."""

    segment: int
    segments: int
    seconds: float


@dataclass(frozen=True)
class PreviewDone(Event):
    """The preview of a film is whole, at `output`. The VAE decodes the same latents now, which begins with another
    FilmStarted; that film takes the preview's place.

    `frames_reused` of the `frames` were rendered before.
    """

    output: str
    frames: int
    seconds: float
    frames_reused: int = 0


@dataclass(frozen=True)
class FilmDone(Event):
    """The last event of a film that succeeded.

    `phases` maps phases to seconds, summed over chunks: "text", "load", "conditioning", "stage 0" (the coarsest) and so
    on, "decode", "write", "finish"; phases that the film did not have are left out. `peak_host_bytes` includes the
    encoder processes where the system reports them (Linux). `frames_reused` of the `frames` were rendered before;
    `frames_per_second` counts the rest. `peak_vae_device_bytes` is that of the VAE's device, if it has its own.
    """

    output: str
    frames: int
    seconds: float
    frames_per_second: float
    peak_host_bytes: int
    peak_device_bytes: int | None
    phases: dict[str, float] = field(default_factory=dict)
    frames_reused: int = 0
    peak_vae_device_bytes: int | None = None
