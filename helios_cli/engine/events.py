"""Events of a render: the engine yields them, the command line shows them.

Every event is a frozen dataclass of plain values; `to_dict` gives the JSON object of the event stream
(`--progress json`), whose `version` is `STREAM_VERSION`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field

STREAM_VERSION = 1


@dataclass(frozen=True)
class Event:
    def to_dict(self) -> dict:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"version": STREAM_VERSION, "event": name, **asdict(self)}


@dataclass(frozen=True)
class FilmStarted(Event):
    """The first event of a film. `film` is its title, `steps` the number of solver steps of the whole film, `stages`
    the number of pyramid stages.

    `frames`, `chunks` and `steps` are None if they are not known yet: in a film whose prompts are still to come.
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


@dataclass(frozen=True)
class PromptTaken(Event):
    """A prompt of a live film takes effect with chunk `chunk` (from 0). `transition` is as in a recipe, "cut" at 0."""

    prompt: str
    chunk: int
    transition: str


@dataclass(frozen=True)
class PhaseStarted(Event):
    """A phase begins: "load", "text", "conditioning", "denoise", "decode" or "finish"."""

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
class Notice(Event):
    """A message for the user; the render goes on."""

    message: str


@dataclass(frozen=True)
class FilmDone(Event):
    """The last event of a film that succeeded.

    `phases` maps phases to seconds, summed over chunks: "text", "load", "conditioning", "stage 0" (the coarsest) and so
    on, "decode", "write", "finish"; phases that the film did not have are left out. `peak_host_bytes` includes the
    encoder processes where the system reports them (Linux). `frames_reused` of the `frames` were rendered before;
    `frames_per_second` counts the rest.
    """

    output: str
    frames: int
    seconds: float
    frames_per_second: float
    peak_host_bytes: int
    peak_device_bytes: int | None
    phases: dict[str, float] = field(default_factory=dict)
    frames_reused: int = 0
