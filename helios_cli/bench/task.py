"""A film that a benchmark renders in a process of its own, the result, and the least time that it could take.

Each side is a module of this package that `child.ask` runs, so that neither pays for the other's imports, memory or
thread pools, and the peak memory is one side's alone. Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helios_cli import machine
from helios_cli.bench.specs import SPECS
from helios_cli.child import ask, serve
from helios_cli.cost.model import Model, find_model, model_of
from helios_cli.cost.work import CallFlops, Work, work_of
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Chunk, Plan, PlannedShot
from helios_cli.recipe.settings import ModelDefaults, resolve_settings
from helios_cli.units import FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import PRESETS
from helios_cli.weights.fp8 import Quant, dtype_with

PROMPT = "a red circle moves slowly to the left over a blue background"

STEADY_CHUNKS = 6
"""Chunks from which a film has a steady rate."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One film on one side.

    Attributes:
        size: width and height in pixels.
        num_frames: length of the film.
        steps: solver steps, a count a stage.
        dtype: "float32", "bfloat16", or "default" for each side's own default.
        device: as in --device.
        folder: checkpoint in the diffusers layout, or None.
        synthetic: name of a size whose weights each side makes on the device, in place of `folder`.
        threads: of the CPU; 0 leaves them to PyTorch.
        film: file that the film is written to, .mp4 or .mkv; "" for one that is rendered and not encoded, on our side
            only.
        seed: of the film, and of synthetic weights.
        quant, attention: as in --quant and --attention; on our side only, as `kernels`, which is HELIOS_KERNELS.
        placement: fields of `weights.placement.Placement`, on our side only; () leaves the model on the device.
        vram: bytes of a GPU that our side may take, as in --vram: its allocator is held to that.
    """

    size: tuple[int, int]
    num_frames: int
    steps: tuple[int, ...]
    dtype: str
    device: str
    folder: str | None = None
    synthetic: str | None = None
    threads: int = 0
    film: str = ""
    seed: int = 0
    quant: Quant = "none"
    attention: str = "auto"
    placement: tuple[Any, ...] = ()
    vram: int | None = None
    kernels: str = ""

    @classmethod
    def for_plan(cls, plan: Plan, dtype: str, device: str, **more: Any) -> Task:
        return cls(plan.size, plan.num_frames, plan.steps, dtype, device, **more)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Task:
        """Make a task of its fields as JSON has them."""
        own: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**own)

    def plan(self, defaults: ModelDefaults, *, warm_up: bool = False) -> Plan:
        """Return the plan of the film, or of its warm-up: one chunk of the same size and steps."""
        frames = FRAMES_PER_CHUNK if warm_up else self.num_frames
        return plan_of(defaults, size=self.size, steps=self.steps, frames=frames, seed=self.seed)


@dataclass(frozen=True)
class Result:
    """The times and the memory of one side.

    Attributes:
        side: "helios" or "diffusers"; `version` is its own.
        device: what it ran on, in words.
        dtypes: of transformer, vae and text_encoder.
        load_seconds: from nothing to weights on the device.
        seconds: the whole film, from the prompt to the closed file, without `load_seconds`.
        phases: seconds by phase: "text", "stage 0" and on, "decode", "write". The rest of `seconds` is everything
            between them. Where phases overlap in `seconds`, they are those of another run without overlap.
        num_frames: frames of the film.
        threads: of the CPU that PyTorch used.
        peak_host_bytes: largest resident size of the process, without the encoder's.
        peak_device_bytes: largest amount that was allocated on a GPU, or None; `peak_reserved_bytes`: largest amount
            that the allocator held for it, on our side.
        steady_frames_per_second: from the end of the first chunk, its frames on the host, to the end of the last but
            one: without the prompt, the first chunk and a decoding that no other chunk covers; None for a film of fewer
            than STEADY_CHUNKS, and on the side that makes all chunks in one call.
        notes: kernels and graphs that were in use.
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
    def dtype(self) -> str:
        """The dtype of the film: bfloat16 also where only its VAE computes in it (`device.latent_dtype`)."""
        return "bfloat16" if self.dtypes["vae"] == "bfloat16" else self.dtypes["transformer"]

    @property
    def frames_per_second(self) -> float:
        return self.num_frames / self.seconds

    @property
    def dit_seconds(self) -> float:
        """The seconds of all stages: on our side with the solver's steps and the noise between stages."""
        return sum(seconds for phase, seconds in self.phases.items() if phase.startswith("stage "))

    @property
    def other_seconds(self) -> float:
        """The seconds outside of all phases."""
        return self.seconds - sum(self.phases.values())


_NO_RECIPE: Any = SimpleNamespace(
    **{flag.name: None for flag in fields(RenderOptions)}, shots=[SimpleNamespace(image=None, video=None, seconds=None)]
)


def plan_of(defaults: ModelDefaults, *, frames: int, **flags: Any) -> Plan:
    """Plan a film of PROMPT as `helios render` does, with values or the words of flags. InputError if the model cannot.

    Does not import what reads recipes: a machine that is only measured needs none of those packages.
    """
    settings = resolve_settings(_NO_RECIPE, RenderOptions.parse(frames=frames, **flags), defaults)
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
        for index, start in enumerate(range(0, frames, FRAMES_PER_CHUNK))
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
        reuse_history=settings.reuse_history,
        reuse_steps=settings.reuse_steps,
    )


def synthetic_defaults(size: str) -> ModelDefaults:
    """Return the defaults of the distilled kind of a synthetic size."""
    return PRESETS["distilled"].defaults(SPECS[size].native_size)


def run(side: str, task: Task, *, timeout: float | None = None) -> Result:
    """Measure a task in a process of its own. `side` is the module of this package that does it.

    Raises what `child.ask` raises.
    """
    (answer,) = ask(f"{__package__}.{side}", asdict(task), environment=_environment(task), timeout=timeout)
    return Result(**{**answer, "notes": tuple(answer["notes"])})


def ceiling(task: Task) -> dict[str, float | None]:
    """Measure what a copy and products of the task's dtype reach on its device, in a process of its own.

    Raises what `child.ask` raises.
    """
    dtype = dtype_with(task.quant, "auto" if task.dtype == "default" else task.dtype)
    question = {"part": "ceiling", "device": task.device, "dtype": dtype}
    (answer,) = ask(f"{__package__}.chip", question, environment=_environment(task))
    return answer


def _environment(task: Task) -> dict[str, str]:
    threads = dict.fromkeys(THREAD_VARIABLES, str(task.threads)) if task.threads else {}
    return {**threads, **({"HELIOS_KERNELS": task.kernels} if task.kernels else {})}


def serve_task(time_film: Callable[[Task], Result]) -> None:
    """Run the main program of a side."""
    serve(lambda question: [asdict(time_film(Task.of(question)))])


@contextmanager
def counted_model(task: Task) -> Iterator[Model]:
    """Yield the task's model as `helios plan` has it; of a synthetic size from its configs, without weights."""
    if task.folder:
        yield find_model(task.folder)
        return
    import torch

    from helios_cli.bench.synthetic import describe

    assert task.synthetic
    with machine.temporary_folder() as folder:
        described = describe(Path(folder), SPECS[task.synthetic], torch.float32)
        yield model_of(task.synthetic, described)


def counted_work(task: Task, dtype: str) -> tuple[Work, Model]:
    """Return the operations of the task's film as `helios plan` counts them, and the model."""
    with counted_model(task) as model:
        plan = task.plan(model.defaults)
        return work_of(plan, model, dtype), model


def floors(task: Task, dtype: str, ceiling: Mapping[str, float | None]) -> dict[str, float]:
    """Return the least seconds of each stage and of decoding: if there were only products, at the rates of `ceiling`.

    Those that --quant fp8 computes in fp8 are counted at the rate of fp8 if it is known.
    """
    work, _ = counted_work(task, dtype)
    rate = ceiling["product"]
    assert rate is not None, "only products in fp8 can be unknown"
    in_fp8 = ceiling["fp8_product"] if task.quant != "none" else None

    def seconds(film: CallFlops) -> float:
        quick = film.projections + film.feed_forward if in_fp8 else 0  # `weights.fp8.LAYERS`
        return (film.total - quick) / rate + (quick / in_fp8 if in_fp8 else 0.0)

    return {**{f"stage {stage.index}": seconds(stage.film) for stage in work.stages}, "decode": work.decode / rate}


def gates(task: Task, result: Result) -> dict[str, float]:
    """Return the two things that decide a film's rate: the operations a second of the transformer, measured without
    overlap, and the share of decoding, except for the last chunk's, that is hidden behind later model calls."""
    work, _ = counted_work(task, result.dtypes["transformer"])
    chunks = -(-task.num_frames // FRAMES_PER_CHUNK)
    apart = sum(result.phases.values())
    could_be = result.phases["decode"] * (chunks - 1) / chunks
    hidden = (apart - result.seconds) / could_be if could_be else 0.0
    denoise = sum(stage.film.total for stage in work.stages)
    return {"dit_teraflops": denoise / result.dit_seconds / 1e12, "decode_hidden": min(1.0, max(0.0, hidden))}


def against_floors(task: Task, result: Result, ceiling: Mapping[str, float | None]) -> dict[str, dict[str, float]]:
    """Return the floors of a film that was timed, and each floor's share of its phase's time."""
    floor = floors(task, result.dtypes["transformer"], ceiling)
    return {"floors": floor, "share_of_floor": {phase: floor[phase] / result.phases[phase] for phase in floor}}
