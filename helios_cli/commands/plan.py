"""`helios plan`: what a film will be made of and cost, before anything is loaded. The JSON is that of `cost.report`."""

from __future__ import annotations

from typing import Annotated

import typer

from helios_cli import options
from helios_cli.console import JsonFlag
from helios_cli.errors import InputError
from helios_cli.plan_view import show_plans


def plan(
    source: options.Sources,
    model: options.Model = None,
    revision: options.Revision = None,
    minutes: options.Minutes = None,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    size: options.Size = None,
    seed: options.Seed = None,
    negative: options.Negative = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    image: options.Image = None,
    video: options.Video = None,
    reanchor: options.Reanchor = False,
    output: options.Output = None,
    codec: options.Codec = "h264",
    crf: options.Crf = 17,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    lanes: options.Lanes = 1,
    offload: options.Offload = "auto",
    vram: options.Vram = None,
    ram: options.Ram = None,
    quant: options.Quant = "none",
    attention: options.Attention = "auto",
    on: Annotated[
        str | None, typer.Option(help="Plan for a GPU that is not here: 4090, L40S, A100 40GB, H100.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of a GPU-hour; shows what the film costs.")] = None,
    strict: options.Strict = False,
    json: JsonFlag = False,
) -> None:
    """Say what films are made of and cost: helios plan film.toml --price 2.5"""
    from helios_cli.batch.jobs import find_planned
    from helios_cli.cost.estimate import Terms, estimate_films
    from helios_cli.film.cache import Cache

    flags = options.film_flags(
        model=model,
        minutes=minutes,
        seconds=seconds,
        frames=frames,
        fps=fps,
        size=size,
        seed=seed,
        negative=negative,
        steps=steps,
        guidance=guidance,
        image=image,
        video=video,
    )
    if price is not None and not 0 <= price < 1e6:
        raise InputError(f"--price {price}: must be 0 or more, for an hour of one GPU")
    jobs = find_planned(source, flags, output, codec, crf, strict=strict)
    terms = Terms(
        flags,
        revision,
        device,
        dtype,
        jobs[0].output,
        codec,
        crf,
        reanchor=reanchor,
        strict=strict,
        quant=quant,
        attention=attention,
        wish=options.memory_wish(offload, vram, ram),
        lanes=lanes,
        on=on,
        price=price,
        is_kept=Cache().has,
    )
    show_plans(estimate_films([job.film for job in jobs], terms))
