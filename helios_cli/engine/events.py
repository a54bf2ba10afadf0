"""What the engine tells while it renders. The engine yields events, the command line shows them.

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
    """First event of a film. `film` is its title. `steps` is the number of solver steps of the whole film, `stages` the
    pyramid's.

    `frames`, `chunks` and `steps` are None where nobody knows them yet: in a film whose prompts are still to come.
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
    """In a live film: `prompt` is in force from chunk `chunk` (from 0) on. `transition` as in a recipe; "cut" at 0."""

    prompt: str
    chunk: int
    transition: str


@dataclass(frozen=True)
class PhaseStarted(Event):
    """`phase` is one of "load", "text", "conditioning", "denoise", "decode", "finish"."""

    phase: str


@dataclass(frozen=True)
class StepDone(Event):
    """One solver step of chunk `chunk` (from 0), stage `stage` (0 is the coarsest), is done."""

    chunk: int
    stage: int
    step: int
    steps_in_stage: int


@dataclass(frozen=True)
class ChunkDone(Event):
    """A chunk's frames went to the writer. `frames` counts the film's frames so far, `seconds` this chunk's time: since
    it was begun, or since the chunk before was done where that was later; `chunks` as in FilmStarted.
    """

    chunk: int
    chunks: int | None
    frames: int
    seconds: float


@dataclass(frozen=True)
class ChunksReused(Event):
    """`count` chunks up to `chunk` came into the film without the model: they were rendered before.

    `source` is "journal" (this film's unfinished run, one event for all) or "cache" (kept pieces of any film, one event
    for each); `frames` counts the film's frames so far, `chunks` as in FilmStarted.
    """

    chunk: int
    chunks: int | None
    frames: int
    count: int
    source: str


@dataclass(frozen=True)
class Notice(Event):
    """Something the user should know that stops nothing."""

    message: str


@dataclass(frozen=True)
class FilmDone(Event):
    """Last event of a film that succeeded. `phases` maps to seconds, summed over chunks: "text", "load",
    "conditioning", "stage 0" (the coarsest) and so on, "decode", "write", "finish", as far as the film had them.

    `peak_host_bytes` has the encoders in it, where the system tells (Linux). `frames_reused` of the `frames` were
    rendered before; `frames_per_second` counts the others.
    """

    output: str
    frames: int
    seconds: float
    frames_per_second: float
    peak_host_bytes: int
    peak_device_bytes: int | None
    phases: dict[str, float] = field(default_factory=dict)
    frames_reused: int = 0
