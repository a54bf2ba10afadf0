"""`helios plan`: what a film will be made of and cost, before anything is loaded. The JSON is that of `cost.report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli import options
from helios_cli.console import JsonFlag, console
from helios_cli.errors import InputError
from helios_cli.units import FRAMES_PER_CHUNK, format_bytes

if TYPE_CHECKING:
    from helios_cli.cost.estimate import Estimate
    from helios_cli.cost.work import StageWork

SHOWN_SHOTS = 20
"""Rows of a long list that are printed; `--json` has all of them."""

PROMPT_WIDTH = 28
"""Characters of a prompt in the list of shots, so that its lines fit into 80 columns."""


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
    on: Annotated[str | None, typer.Option(help="Plan for a GPU that is not here: H100, H200, A100, 4090.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a GPU-hour, to say what the film costs.")] = None,
    strict: options.Strict = False,
    json: JsonFlag = False,
) -> None:
    """Say what films are made of and cost: helios plan film.toml --price 2.5"""
    from helios_cli.cost.estimate import Terms, estimate_films
    from helios_cli.cost.report import report
    from helios_cli.recipe.plan import check_film
    from helios_cli.recipe.sources import read_films

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
    films = read_films(source)
    for film in films:
        check_film(film, flags)
    terms = Terms(
        flags, revision, device, dtype, output, codec, crf, reanchor=reanchor, strict=strict, on=on, price=price
    )
    estimates = estimate_films(films, terms)
    console.result(report(estimates))
    for number, estimate in enumerate(estimates):
        console.line("\n" * bool(number) + _headline(estimate))
        _show(estimate)
    if len(estimates) > 1:
        console.line(f"\nall {len(estimates)} films: {_sum_line(estimates)}")


def _show(estimate: Estimate) -> None:
    for notice in estimate.notices:
        console.notice(notice)
    _settings(estimate)
    _shots(estimate)
    _stages(estimate)
    _phases(estimate)
    _totals(estimate)


def _headline(estimate: Estimate) -> str:
    plan = estimate.plan
    width, height = plan.size
    last = plan.chunks[-1].num_frames
    kept = f", {last} kept of the last" if last < FRAMES_PER_CHUNK else ""
    chunks = f"{len(plan.chunks)} chunk{'s' * (len(plan.chunks) != 1)} of {FRAMES_PER_CHUNK}{kept}"
    return f"{plan.title}: {plan.num_frames} frames, {_time(plan.num_frames / plan.fps)}, {width}x{height}\n{chunks}"


def _settings(estimate: Estimate) -> None:
    from helios_cli.cost.report import settings_of

    rows = [
        [key.replace("_", " "), _plain(value["value"]), value["from"]]
        for key, value in settings_of(estimate).items()
        if value["value"] not in (None, "")
    ]
    device = f"{estimate.device.name} ({estimate.device.kind}), {estimate.dtype}"
    console.line()
    console.table(["setting", "value", "from"], [*rows, ["device", device, estimate.device_origin]])


def _shots(estimate: Estimate) -> None:
    plan = estimate.plan
    seeds = {chunk.start_frame: chunk.seed for chunk in plan.chunks if chunk.fresh}
    rows = []
    for shot in plan.shots[:SHOWN_SHOTS]:
        seed = seeds.get(shot.start_frame, "") if shot.transition == "cut" else ""
        how = shot.transition if not shot.blend_frames else f"blend {shot.blend_frames / plan.fps:.3g} s"
        start = _clock(shot.start_frame / plan.fps)
        rows.append([shot.index + 1, start, shot.num_frames, how, seed, _cut(shot.prompt, PROMPT_WIDTH)])
    console.line()
    console.table(["shot", "begins", "frames", "begins with", "seed", "prompt"], rows)
    if len(plan.shots) > SHOWN_SHOTS:
        console.line(f"and {len(plan.shots) - SHOWN_SHOTS} more shots")
    for rounding in plan.roundings[:SHOWN_SHOTS]:
        asked, actual = (frame / plan.fps for frame in (rounding.asked_frame, rounding.actual_frame))
        console.line(
            f"shot {rounding.shot + 1} comes in with the chunk at {_clock(actual)}, {abs(actual - asked):.2f} s "
            f"{'earlier' if actual < asked else 'later'} than asked"
        )


def _stages(estimate: Estimate) -> None:
    work = estimate.work
    amplified = any(stage.first_calls != stage.calls for stage in work.stages)
    columns = ["stage", "grid", "noisy", "tokens", "calls a chunk", "calls", "TFLOP a call", "PFLOP"]
    console.line()
    console.table(columns, [_stage_row(stage) for stage in work.stages])
    history = work.history
    console.line(
        f"history: {history.long} long + {history.mid} mid + {history.short} anchor and newest = {history.total} "
        "tokens in every call"
    )
    counted = "" if estimate.prompts.counted else "about "
    console.line(f"text: {counted}{work.text_rows} rows, padding counted once; {work.calls} model calls in all")
    if amplified:
        first, other = (sum(getattr(stage, key) for stage in work.stages) for key in ("first_calls", "calls"))
        console.line(f"the first chunk after each cut takes {first} calls in place of {other}")
    if estimate.plan.guidance > 1:
        console.line("with guidance every step is two calls: one for the prompt, one for the negative")


def _stage_row(stage: StageWork) -> list:
    rows, columns = stage.grid
    tokens = stage.noisy + stage.history
    return [
        stage.index,
        f"{rows}x{columns}",
        stage.noisy,
        tokens,
        stage.calls,
        stage.film_calls,
        _three(stage.call.total / 1e12),
        _three(stage.film.total / 1e15),
    ]


def _phases(estimate: Estimate) -> None:
    work, duration, mode = estimate.work, estimate.duration, estimate.memory[0]
    memory = {phase.phase: phase for phase in mode.phases}
    rows = []
    for phase in ("text", "conditioning", "denoise", "decode"):
        if phase in memory:
            held, seconds = memory[phase], getattr(duration, phase)
            rows.append(
                [
                    phase,
                    _three(getattr(work, phase) / 1e15),
                    "?" if seconds is None else _time(seconds),
                    *(format_bytes(count) for count in (held.weights, held.kept, held.working, held.total)),
                ]
            )
    console.line()
    console.table(["phase", "PFLOP", "time", "weights", "kept", "working", "memory"], rows)


def _totals(estimate: Estimate) -> None:
    duration, mode, model = estimate.duration, estimate.memory[0], estimate.model
    device, money = estimate.device, estimate.money
    fits = {True: "fits", False: "does not fit", None: "free memory unknown"}[mode.fits]
    free = "" if device.free_bytes is None else f" into the {format_bytes(device.free_bytes)} that are free"
    if device.kind == "cpu":
        memory = f"{format_bytes(mode.host_bytes)}; {fits}{free}"
    else:
        host = f"{format_bytes(mode.host_bytes)} on the host"
        memory = f"{format_bytes(mode.device_bytes)} on the device; {fits}{free}\n{'':12} {host}"
    download = f"; {format_bytes(model.download_bytes)} to download" if model.download_bytes else ""
    console.line()
    console.line(f"{'memory':12} {memory}")
    console.line(f"{'disk':12} film at most {format_bytes(estimate.film_bytes)} (estimate){download}")
    console.line(f"{'time':12} {'unknown' if duration.total is None else _time(duration.total)}, without loading")
    console.line(f"{'':12} {duration.rates.basis}")
    if estimate.price is not None:
        cost = "unknown" if money is None else f"{money:.2f}"
        console.line(f"{'cost':12} {cost} at {estimate.price:g} a GPU-hour")
    if estimate.fingerprint:
        console.line(f"{'fingerprint':12} {estimate.fingerprint[:16]}")


def _sum_line(estimates: list[Estimate]) -> str:
    from helios_cli.cost.report import total

    frames = sum(estimate.plan.num_frames for estimate in estimates)
    seconds = total([estimate.duration.total for estimate in estimates])
    money = total([estimate.money for estimate in estimates])
    cost = "" if money is None else f", cost {money:.2f}"
    return f"{frames} frames, time {'unknown' if seconds is None else _time(seconds)}{cost}"


def _time(seconds: float) -> str:
    """`< 0.1 s`, `75 s`, `3:05 min`, `2:00:00 h`."""
    if 0 < seconds < 0.1:
        return "< 0.1 s"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def _clock(seconds: float) -> str:
    """A time in the film: `1:05` or `1:05.75`."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:05.2f}".removesuffix(".00")


def _three(value: float) -> float:
    """Three digits, as a number, so that its column is right-aligned."""
    short = float(f"{value:.3g}")
    return int(short) if short >= 100 else short


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return _cut(str(value), PROMPT_WIDTH * 2)
