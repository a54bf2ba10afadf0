"""What a benchmark renders, what it measures, and the process of its own that does it.

Each side is a module of this package that `child.ask` runs, so that neither pays for the other's imports, memory or
thread pools, and peak memory is one side's alone. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace

from helios_cli.child import ask, serve
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Chunk, Plan, PlannedShot
from helios_cli.recipe.settings import ModelDefaults, resolve
from helios_cli.units import FRAMES_PER_CHUNK
from helios_cli.weights.fp8 import dtype_with

PROMPT = "a red circle moves slowly to the left over a blue background"

STEADY_CHUNKS = 6
"""Chunks from which a film has a steady rate."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One film on one side.

    Attributes:
        folder: checkpoint in the diffusers layout, or None.
        synthetic: name of a size whose weights each side makes on the device, in place of `folder`.
        size: width and height in pixels.
        num_frames: length of the film.
        steps: solver steps, a count a stage.
        dtype: "float32", "bfloat16", or "default" for what each side does unless told.
        device: as in --device.
        threads: of the CPU; 0 leaves them to PyTorch.
        film: file that the film is written to, .mp4 or .mkv; "" for one that is rendered and not encoded, on our side
            only.
        seed: of the film, and of synthetic weights.
        placement: fields of `weights.placement.Placement`, on our side only; () leaves the model on the device.
        vram: bytes of a GPU that our side may take, as in --vram: its allocator is held to that.
        quant, attention: as in --quant and --attention; on our side only, as `kernels`, which is HELIOS_KERNELS.
    """

    folder: str | None
    synthetic: str | None
    size: tuple[int, int]
    num_frames: int
    steps: tuple[int, ...]
    dtype: str
    device: str
    threads: int
    film: str
    seed: int = 0
    quant: str = "none"
    attention: str = "auto"
    placement: tuple = ()
    vram: int | None = None
    kernels: str = ""

    @classmethod
    def of(cls, values: dict) -> Job:
        """From its fields as JSON has them."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclass(frozen=True)
class Result:
    """What one side took.

    Attributes:
        side: "helios" or "diffusers"; `version` is its own.
        device: what it ran on, in words.
        dtypes: of transformer, vae and text_encoder.
        load_seconds: from nothing to weights on the device.
        seconds: the whole film, from the prompt to the closed file, without `load_seconds`.
        phases: seconds by phase: "text", "stage 0" and on, "decode", "write". What is left of `seconds` is everything
            between them. On a GPU, where phases overlap in `seconds`, they are those of another run, one after another.
        num_frames: frames of the film.
        threads: of the CPU that PyTorch used.
        peak_host_bytes: largest resident size of the process, without the encoder's.
        peak_device_bytes: most that was allocated on a GPU, or None; `peak_reserved_bytes`: most that the allocator
            held for it, on our side.
        steady_frames_per_second: from the end of the first chunk, its frames on the host, to the end of the last but
            one: without the prompt, the first chunk and a decoding that no other chunk covers; None for a film of fewer
            than STEADY_CHUNKS, and on the side that makes all chunks in one call.
        notes: what else is to be known: kernels, graphs.
    """

    side: str
    version: str
    device: str
    dtypes: dict[str, str]
    load_seconds: float
    seconds: float
    phases: dict[str, float]
    num_frames: int
    threads: int
    peak_host_bytes: int
    peak_device_bytes: int | None
    peak_reserved_bytes: int | None = None
    steady_frames_per_second: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def frames_per_second(self) -> float:
        return self.num_frames / self.seconds

    @property
    def dit_seconds(self) -> float:
        """All stages: on our side with the solver's steps and the noise between stages, on the other without."""
        return sum(seconds for phase, seconds in self.phases.items() if phase.startswith("stage "))

    @property
    def other_seconds(self) -> float:
        """Outside of all phases."""
        return self.seconds - sum(self.phases.values())


def plan_of(defaults: ModelDefaults, *, frames: int, **flags) -> Plan:
    """The plan of a film of PROMPT as `helios render` makes it. InputError if the model cannot do what is asked.

    Made without what reads recipes: a machine that is only to be measured needs none of those packages.
    """
    settings = resolve(_NOTHING, RenderOptions(frames=frames, **flags), defaults)
    starts = range(0, frames, FRAMES_PER_CHUNK)
    chunks = tuple(
        Chunk(
            index=index,
            shot=0,
            start_frame=start,
            num_frames=min(FRAMES_PER_CHUNK, frames - start),
            prompts=((PROMPT, 1.0),),
            fresh=start == 0,
            seed=settings.seed if start == 0 else None,
        )
        for index, start in enumerate(starts)
    )
    return Plan(
        title=PROMPT,
        chunks=chunks,
        num_frames=frames,
        fps=settings.fps,
        size=settings.size,
        negative=settings.negative,
        steps=settings.steps,
        guidance=settings.guidance,
        shots=(PlannedShot(0, PROMPT, 0, frames, "cut", 0),),
        origins=settings.origins,
    )


_NOTHING = SimpleNamespace(
    **{flag.name: None for flag in fields(RenderOptions)}, shots=[SimpleNamespace(image=None, video=None)]
)
"""A recipe that says nothing."""


def job_plan(job: Job, defaults: ModelDefaults, *, warm_up: bool = False) -> Plan:
    """The plan of the job's film, or of its warm-up: one chunk of the same size and steps."""
    frames = FRAMES_PER_CHUNK if warm_up else job.num_frames
    return plan_of(defaults, size=job.size, steps=job.steps, frames=frames, seed=job.seed)


def run(side: str, job: Job, *, timeout: float | None = None) -> Result:
    """Measure `job` in a process of its own. `side` is the module of this package that does it.

    Raises what `child.ask` raises.
    """
    (answer,) = ask(f"{__package__}.{side}", asdict(job), environment=_environment(job), timeout=timeout)
    return Result(**{**answer, "notes": tuple(answer["notes"])})


def ceiling(job: Job) -> dict[str, float | None]:
    """What a copy and products of the job's dtype reach on its device, by `chip.ceiling` in a process of its own.

    Raises what `child.ask` raises.
    """
    dtype = dtype_with(job.quant, "auto" if job.dtype == "default" else job.dtype)
    question = {"part": "ceiling", "device": job.device, "dtype": dtype}
    (answer,) = ask(f"{__package__}.chip", question, environment=_environment(job))
    return answer


def _environment(job: Job) -> dict[str, str]:
    threads = dict.fromkeys(THREAD_VARIABLES, str(job.threads)) if job.threads else {}
    return {**threads, **({"HELIOS_KERNELS": job.kernels} if job.kernels else {})}


def serve_job(measure: Callable[[Job], Result]) -> None:
    """The main program of a side."""
    serve(lambda question: [asdict(measure(Job.of(question)))])
