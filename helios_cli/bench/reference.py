"""The diffusers side of a benchmark: its own pipeline, called as its documentation does.

The only module of helios that imports diffusers and transformers, when it measures; they come with the `dev` extra.
Phases are timed around the calls of the pipeline's parts. The frames go through the same encoder as ours, but only when
the last of them is ready: the pipeline returns them all at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helios_cli import machine
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import describe, random_state
from helios_cli.bench.task import PROMPT, Result, Task, serve_task
from helios_cli.device import pick_device
from helios_cli.engine.clock import Clock
from helios_cli.film.writer import open_writer
from helios_cli.model.dit import FP32_ISLANDS
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK, PIXELS_PER_CELL
from helios_cli.versions import version_of
from helios_cli.weights.checkpoint import Checkpoint


def time_film(task: Task) -> Result:
    """Render a warm-up of one chunk, then the film."""
    if task.threads:
        torch.set_num_threads(task.threads)
    torch.linalg.cholesky = exact_block_noise_factor(torch.linalg.cholesky)
    _import_all()
    device = pick_device(task.device)
    loading = Clock(device, exact=True)
    with loading("load"):
        pipeline, checkpoint = _load(task, device)
    clock = Clock(device, exact=True)
    _time_parts(pipeline, task, clock)
    _film(pipeline, checkpoint, task, FRAMES_PER_CHUNK, clock)
    clock.seconds.clear()
    began = time.perf_counter()
    num_frames = _film(pipeline, checkpoint, task, task.num_frames, clock)
    seconds = time.perf_counter() - began
    parts = {"transformer": pipeline.transformer, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
    order = ["text", *sorted(phase for phase in clock.seconds if phase.startswith("stage ")), "decode", "write"]
    return Result(
        side="diffusers",
        version=version_of("diffusers"),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtypes={name: str(part.dtype).removeprefix("torch.") for name, part in parts.items()},
        load_seconds=loading.seconds["load"],
        seconds=seconds,
        phases={phase: clock.seconds[phase] for phase in order},
        num_frames=num_frames,
        threads=torch.get_num_threads(),
        peak_host_bytes=machine.peak_host_bytes(),
        peak_device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def _import_all() -> None:
    """Import everything that loading needs, which takes seconds: our side's imports are not measured either."""
    from diffusers import AutoencoderKLWan, HeliosPipeline, HeliosPyramidPipeline, HeliosTransformer3DModel
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

    _ = (AutoencoderKLWan, HeliosPipeline, HeliosPyramidPipeline, HeliosTransformer3DModel)
    _ = (PreTrainedTokenizerFast, UMT5EncoderModel)


def exact_block_noise_factor(cholesky: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the intended result of the pipeline's `torch.linalg.cholesky` of its block noise, on every processor.

    At gamma = 1/3 that matrix is singular except for 1e-8, which its float32 drops. The last pivot is then a rounding
    error, and where that is negative (seen on AMD's processors) the pipeline fails. In float64 it is right.
    """

    def factor(covariance: Tensor) -> Tensor:
        gamma = float(Fraction(-covariance[0, 1].item()).limit_denominator(1000))
        cells = len(covariance)
        ones = torch.ones(cells, cells, dtype=torch.float64)
        exact = (1 + gamma + 1e-8) * torch.eye(cells, dtype=torch.float64) - gamma * ones
        return cholesky(exact).to(covariance)

    return factor


def _load(task: Task, device: torch.device) -> tuple[Any, Checkpoint]:
    import diffusers

    dtype = None if task.dtype == "default" else getattr(torch, task.dtype)
    if task.synthetic:
        pipeline, checkpoint = _random_pipeline(task, device, dtype or torch.float32)
    else:
        checkpoint = Checkpoint.open(Path(task.folder or ""))
        chosen: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        pipeline = diffusers.DiffusionPipeline.from_pretrained(task.folder, **chosen).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, checkpoint


def _random_pipeline(task: Task, device: torch.device, dtype: torch.dtype) -> tuple[Any, Checkpoint]:
    """Return the pipeline of a synthetic size, with the same weights made on the device as on our side."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    spec = SPECS[task.synthetic or ""]
    with machine.temporary_folder() as folder:
        checkpoint = describe(Path(folder), spec, dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder, "tokenizer"))
    with init_empty_weights():  # buffers are made: some are not weights
        parts = {
            "transformer": diffusers.HeliosTransformer3DModel.from_config(spec.transformer),
            "vae": diffusers.AutoencoderKLWan.from_config(spec.vae),
            "text_encoder": transformers.UMT5EncoderModel(transformers.UMT5Config(**spec.text_encoder)),
        }
    for name, part in parts.items():
        islands = FP32_ISLANDS if name == "transformer" else frozenset()
        state = random_state(name, part, dtype, seed=task.seed, device=device, fp32_islands=islands)
        part.load_state_dict(state, assign=True, strict=name != "text_encoder")  # it has its embedding twice
    parts["text_encoder"].tie_weights()
    pipeline = diffusers.HeliosPyramidPipeline(
        scheduler=diffusers.HeliosDMDScheduler.from_config(checkpoint.scheduler),
        tokenizer=tokenizer,
        is_distilled=True,
        **{name: part.to(device).eval() for name, part in parts.items()},
    )
    return pipeline, checkpoint


def _time_parts(pipeline: Any, task: Task, clock: Clock) -> None:
    """Let the clock run while a part of the pipeline runs."""

    def timed(function: Callable, phase_of: Callable[[dict], str]) -> Callable:
        def call(*args, **kwargs):
            with clock(phase_of(kwargs)):
                return function(*args, **kwargs)

        return call

    def stage(kwargs: dict) -> str:
        times_smaller = task.size[0] // PIXELS_PER_CELL // kwargs["hidden_states"].shape[-1]
        return f"stage {len(task.steps) - times_smaller.bit_length()}"

    pipeline.encode_prompt = timed(pipeline.encode_prompt, lambda _: "text")
    pipeline.transformer.forward = timed(pipeline.transformer.forward, stage)
    pipeline.vae.decode = timed(pipeline.vae.decode, lambda _: "decode")


def _film(pipeline: Any, checkpoint: Checkpoint, task: Task, num_frames: int, clock: Clock) -> int:
    """Render and write a film; return its number of frames, 4k + 1: up to three fewer than `num_frames`."""
    preset = checkpoint.preset
    if checkpoint.kind == "base":
        steps: dict[str, Any] = {"num_inference_steps": task.steps[0]}
    else:
        steps = {
            "pyramid_num_inference_steps_list": list(task.steps),
            "is_amplify_first_chunk": preset.amplify_first_chunk,
        }
    frames = pipeline(
        prompt=PROMPT,
        width=task.size[0],
        height=task.size[1],
        num_frames=num_frames,
        guidance_scale=preset.guidance,
        generator=torch.Generator().manual_seed(task.seed),
        **steps,
    ).frames[0][:num_frames]
    with clock("write"), open_writer(task.film, size=task.size, fps=DEFAULT_FPS) as writer:
        for first in range(0, len(frames), FRAMES_PER_CHUNK):
            pictures = (frames[first : first + FRAMES_PER_CHUNK] * 255).round()
            writer.write(np.ascontiguousarray(pictures, dtype=np.uint8))
    return len(frames)


if __name__ == "__main__":
    serve_task(time_film)
