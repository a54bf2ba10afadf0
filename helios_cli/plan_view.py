"""Prints the plans of `helios plan`: estimates as tables and text wrapped to the page, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from helios_cli.console import Prose, Table, console
from helios_cli.units import FRAMES_PER_CHUNK, at_least, counted, format_bytes, format_figure, format_seconds

if TYPE_CHECKING:
    from helios_cli.cost.estimate import Estimate
    from helios_cli.cost.farm import Farm, Outcome
    from helios_cli.cost.work import StageWork

Part = Prose | Table
Row = list[object]

SHOWN_SHOTS = 20
"""Rows of a long list that are printed; `--json` has all of them."""

UNTIMED = "its time is not in the one below; a film with it measures it"

PROMPT_WIDTH = 28
"""Characters of a prompt in the list of shots, so that its lines fit into 80 columns."""


def show_plans(estimates: list[Estimate], farm: Farm) -> None:
    """Print the plan of each film, the totals and, if the flags ask for several workers, what those make of them."""
    from helios_cli.cost.report import report

    console.result(report(estimates, farm))
    for number, estimate in enumerate(estimates):
        for notice in estimate.notices:
            console.notice(notice)
        if number:
            console.line()
        console.show(_film(estimate))
    for notice in farm.notices if farm.is_asked_for else ():
        console.notice(notice)
    console.show(_together(estimates, farm))


def _film(estimate: Estimate) -> Iterator[Part]:
    """Yield the plan of a film."""
    yield Prose(_headline(estimate))
    yield Table(["setting", "value", "from"], _settings(estimate))
    if estimate.taken:
        yield Table(["speed", "value", "from", "expected", "PSNR, tiny"], _ladder(estimate))
    yield from _shots(estimate)
    yield from _stages(estimate)
    yield Table(["phase", "work", "time", "weights", "kept", "working", "memory"], _phases(estimate))
    yield Table(["offload", "blocks stay", "device", "host", "moved", "transfer", "a chunk", "fits"], _modes(estimate))
    if estimate.lanes > 1:
        yield Prose(f"for {estimate.lanes} films in lockstep; a chunk is one of each")
    yield Prose()
    yield from _totals(estimate)


def _together(estimates: list[Estimate], farm: Farm) -> Iterator[Part]:
    """Yield the totals of several films, and what several workers make of them."""
    if len(estimates) > 1:
        yield Prose()
        yield Prose(f"all {len(estimates)} films: {_sum_line(estimates)}")
    if farm.is_asked_for:
        yield Prose()
        yield from _farm(estimates, farm)
    elif len(farm.all_costs) > len(estimates) and farm.useful > 1 and estimates[0].preview is None:
        segments = counted(len(farm.all_costs), "segment")
        yield Prose(f"up to {farm.useful} could share out {segments} (--workers)", label="workers")


def _headline(estimate: Estimate) -> str:
    plan = estimate.plan
    width, height = plan.size
    last = plan.chunks[-1].num_frames
    trimmed = f"; of the last, {last} are in the film" if last < FRAMES_PER_CHUNK else ""
    chunks = f"{counted(len(plan.chunks), 'chunk')} of {FRAMES_PER_CHUNK} frames{trimmed}"
    length = f"{counted(plan.num_frames, 'frame')}, {format_seconds(plan.num_frames / plan.fps)}"
    return f"{plan.title}: {length}, {width}x{height}\n{chunks}"


def _settings(estimate: Estimate) -> list[Row]:
    from helios_cli.cost.report import settings_of

    rows: list[Row] = [
        [key.replace("_", " "), _plain(key, value["value"]), value["from"]]
        for key, value in settings_of(estimate).items()
        if value["value"] not in (None, "")
    ]
    rows.append(["device", f"{estimate.device.kind}: {estimate.device.name}", estimate.device_origin])
    if estimate.vae_device is not None:
        rows.append(["vae device", f"{estimate.vae_device.kind}: {estimate.vae_device.name}", "flag"])
    if estimate.preview is not None:
        afterwards = ", then the VAE" if estimate.final else ""
        rows.append(["preview decoder", _cut(estimate.preview.name, PROMPT_WIDTH) + afterwards, "flag"])
    return [*rows, ["dtype", estimate.dtype, estimate.dtype_origin]]


def _ladder(estimate: Estimate) -> list[Row]:
    """Return what --speed comes to; how fast is by the plan's own rates."""
    return [
        [
            taken.key.replace("_", " "),
            str(taken.value) if taken.is_taken or taken.origin == "flag" else "of no use here",
            taken.origin,
            f"{taken.times:.2f}x" if taken.times else "?" if taken.is_taken else "",
            taken.loss if taken.is_taken else "",
        ]
        for taken in estimate.taken
    ]


def _shots(estimate: Estimate) -> Iterator[Part]:
    plan = estimate.plan
    seeds = {chunk.start_frame: chunk.seed for chunk in plan.chunks if chunk.fresh}
    rows = []
    for shot in plan.shots[:SHOWN_SHOTS]:
        seed = seeds.get(shot.start_frame, "") if shot.transition == "cut" else ""
        how = shot.transition if not shot.blend_frames else f"blend {format_figure(shot.blend_frames / plan.fps)} s"
        start = _clock(shot.start_frame / plan.fps)
        rows.append([shot.index + 1, start, shot.num_frames, how, seed, _cut(shot.prompt, PROMPT_WIDTH)])
    yield Table(["shot", "begins", "frames", "begins with", "seed", "prompt"], rows)
    if len(plan.shots) > SHOWN_SHOTS:
        yield Prose(f"and {len(plan.shots) - SHOWN_SHOTS} more shots")
    for rounding in plan.roundings[:SHOWN_SHOTS]:
        asked, actual = (frame / plan.fps for frame in (rounding.asked_frame, rounding.actual_frame))
        yield Prose(
            f"shot {rounding.shot + 1} begins with the chunk at {_clock(actual)}, {abs(actual - asked):.2f} s "
            f"{'earlier' if actual < asked else 'later'} than requested"
        )


def _stages(estimate: Estimate) -> Iterator[Part]:
    work = estimate.work
    amplified = any(stage.first_calls != stage.calls for stage in work.stages)
    columns = ["stage", "grid", "noisy", "tokens", "calls/chunk", "calls", "per call", "in all"]
    yield Table(columns, [_stage_row(stage) for stage in work.stages])
    history = work.history
    where, rest = "every call", ""
    if estimate.plan.reuse_history:
        where, rest = "the coarsest stage", "; the others reuse its keys and values"
    yield Prose(
        f"history in {where}: {history.long} long + {history.mid} mid + {history.short} anchor and newest"
        f" = {history.total}{rest}"
    )
    about = "" if estimate.work.prompts.counted else "about "
    yield Prose(f"text: {about}{work.text_rows} rows, padding counted once; {work.calls} model calls in all")
    if amplified:
        first, other = (sum(getattr(stage, key) for stage in work.stages) for key in ("first_calls", "calls"))
        yield Prose(f"the first chunk after each cut takes {first} calls instead of {other}")
    if estimate.plan.guidance > 1:
        yield Prose("with guidance every step is two calls: one for the prompt, one for the negative")
    if (every := estimate.plan.reuse_steps) > 1:
        yield Prose(f"one step in {every} makes calls, and the first two and the last of a stage; others extrapolate")


def _stage_row(stage: StageWork) -> Row:
    rows, columns = stage.grid
    tokens = stage.noisy + stage.history
    return [
        stage.index,
        f"{rows}x{columns}",
        stage.noisy,
        tokens,
        stage.calls,
        stage.film_calls,
        _flops(stage.call.total),
        _flops(stage.film.total),
    ]


def _phases(estimate: Estimate) -> list[Row]:
    work, duration, mode = estimate.work, estimate.duration, estimate.mode
    rows: list[Row] = []
    for held in mode.phases:
        seconds = getattr(duration, held.phase)
        sizes = (format_bytes(count) for count in (held.weights, held.kept, held.working, held.total))
        flops = _flops(getattr(work, held.phase))
        rows.append([held.phase, flops, "?" if seconds is None else format_seconds(seconds), *sizes])
    return rows


def _modes(estimate: Estimate) -> list[Row]:
    """Return the memory, weights moved and seconds per chunk of each mode, with a star at the chosen one.

    Where the compute time is not known, a chunk takes at least the time of moving its weights."""
    fits = {True: "yes", False: "no", None: "?"}
    rows: list[Row] = []
    for mode in estimate.memory:
        transfer = estimate.speed.transfer(mode, estimate.budget)
        seconds = estimate.speed.seconds(mode, estimate.budget)
        sizes = (mode.device_bytes, mode.host_bytes, mode.moved_bytes)
        rows.append(
            [
                f"{mode.name} *" if mode is estimate.mode else mode.name,
                f"{mode.placement.resident}" if mode.name == "stream" else "all",
                *(format_bytes(size) for size in sizes),
                format_seconds(transfer),
                at_least(transfer) if seconds is None else format_seconds(seconds),
                fits[mode.fits],
            ]
        )
    return rows


def _totals(estimate: Estimate) -> Iterator[Part]:
    duration, mode, model = estimate.duration, estimate.mode, estimate.model
    device, money = estimate.device, estimate.money
    fits = {True: "fits", False: "does not fit", None: "free memory unknown"}[mode.fits]
    budget = estimate.budget.host_bytes if device.kind == "cpu" else estimate.budget.device_bytes
    room = "" if budget is None else f" into {format_bytes(budget)}"
    if device.kind == "cpu":
        memory = f"{format_bytes(mode.host_bytes)}; {fits}{room}"
    else:
        host = f"{format_bytes(mode.host_bytes)} on the host"
        second = "" if mode.vae_device_bytes is None else f"{format_bytes(mode.vae_device_bytes)} on the VAE's device\n"
        memory = f"{format_bytes(mode.device_bytes)} on the device; {fits}{room}\n{second}{host}"
    download = f"; {format_bytes(model.download_bytes)} to download" if model.download_bytes else ""
    yield Prose(memory, label="memory")
    yield Prose(_bandwidths(estimate), label="transfer")
    yield Prose(f"film at most {format_bytes(estimate.film_bytes)} (estimate){download}", label="disk")
    if adapters := model.checkpoint.adapters if model.checkpoint else ():
        size = format_bytes(sum(adapter.bytes for adapter in adapters))
        yield Prose(f"{size} of files, read and folded each time weights are read", label="lora")
    if after := estimate.after:
        frames = counted(after.num_frames(estimate.plan.num_frames), "frame")
        behind = estimate.after_seconds
        time = UNTIMED if behind is None else f"about {format_seconds(behind)}, as behind an earlier film here"
        yield Prose(f"{after}: {frames} of {after.made}\n{time}", label="after")
    time = "unknown" if estimate.seconds is None else format_seconds(estimate.seconds)
    yield Prose(f"{time}, without loading\n{duration.rates.basis}", label="time")
    if estimate.price is not None:
        cost = "unknown" if money is None else f"{money:.2f}"
        yield Prose(f"{cost} at {estimate.price:g} a GPU-hour", label="cost")
    if estimate.kept:
        kept, chunks = len(estimate.kept), len(estimate.plan.chunks)
        saved = f"{estimate.calls_saved} of {sum(stage.film_calls for stage in estimate.work.stages)} model calls"
        yield Prose(f"{kept} of {chunks} chunks are kept from earlier films, which saves {saved}", label="reuse")
    if estimate.fingerprint:
        yield Prose(estimate.fingerprint[:16], label="fingerprint")


def _bandwidths(estimate: Estimate) -> str:
    rates = estimate.speed.bandwidths
    parts = {"disk": rates.disk, "page cache": rates.cache, "to the device": rates.upload}
    said = ", ".join(f"{name} {format_bytes(rate)}/s" for name, rate in parts.items() if rate)
    return f"{said}\n{rates.basis}"


def _sum_line(estimates: list[Estimate]) -> str:
    from helios_cli.cost.speeds import total

    frames = sum(estimate.plan.num_frames for estimate in estimates)
    seconds = total([estimate.seconds for estimate in estimates])
    money = total([estimate.money for estimate in estimates])
    cost = "" if money is None else f", cost {money:.2f}"
    return f"{counted(frames, 'frame')}, time {'unknown' if seconds is None else format_seconds(seconds)}{cost}"


def _farm(estimates: list[Estimate], farm: Farm) -> Iterator[Part]:
    """Yield how the workers share out the films, what bounds their time, and other numbers of workers in a table."""
    yield Prose(_longest(estimates, farm), label="segments")
    yield Prose(_workers(farm), label="workers")
    if farm.split:
        yield Prose(_split(farm), label="GPUs a film")
    if farm.workers is not None:
        yield Prose(_outcome(farm, farm.on(farm.workers)), label="with them")
    if farm.best.speedup is not None and len(farm.all_costs) > 1:
        yield Prose(_best(farm), label="at best")
    included = "part of these times" if farm.timed else "not part of these figures"
    loading = f"{format_seconds(farm.load_seconds)} from the disk, once for each worker; {included}"
    yield Prose(loading, label="loading")
    if farm.best.speedup is None:
        return
    columns = ["workers", *(["GPUs"] if farm.gpus_per_worker > 1 else []), "time", "times as fast"]
    columns += [] if farm.price is None else ["cost"]
    yield Table(columns, [_farm_row(farm, outcome) for outcome in farm.table])


def _longest(estimates: list[Estimate], farm: Farm) -> str:
    count, films = len(farm.all_costs), len(estimates)
    if count == films:
        faster = '`--gpus-per-film` and cuts (transition = "cut") do'
        alone = "1: the film has no cuts, so that more workers do not make it faster"
        return f"{alone}; {faster}" if films == 1 else f"{films} films without cuts: each has one worker at a time"
    film, segment = farm.longest
    plan, cost = estimates[film].plan, farm.costs[film][segment]
    place = " on one GPU" if farm.split and not farm.threads else ""
    size = f"takes {format_seconds(cost)}{place}" if farm.timed else f"is {cost / sum(farm.all_costs):.0%} of the work"
    first = [chunk for chunk in plan.chunks if chunk.fresh][segment]
    among = f"{count} between cuts" + (f" in {films} films" if films > 1 else "")
    return f"{among}; the longest {size}: shot {first.shot + 1} of {plan.title}"


def _workers(farm: Farm) -> str:
    if farm.workers is None or not farm.is_here:
        count = "as many as there will be" if farm.workers is None else f"{farm.workers}"
        return f"{count}, each taken to be as fast as the device above"
    if farm.threads:
        threads, cores = farm.threads
        each = "" if farm.workers == 1 else "each "
        return f"{farm.workers}, {each}with {counted(threads, 'thread')} on a CPU with {counted(cores, 'core')}"
    kinds = ", ".join(f"{count} on {name}" for name, count in farm.kinds.items())
    each = "" if farm.workers == 1 else "each "
    return f"{farm.workers}, {each}on {counted(farm.gpus_per_worker, 'GPU')}{': ' * bool(kinds)}{kinds}"


def _split(farm: Farm) -> str:
    assert farm.split
    share, moved = farm.split.share, farm.split.moved_bytes
    if share is None or moved is None:
        return f"{farm.split.gpus}; the gain is {farm.split.basis}"
    gain = f"a film is {format_figure(1 / share)} times as fast as on one"
    return f"{farm.split.gpus}; {gain} (estimate)\neach receives {format_bytes(moved)} a chunk\n{farm.split.basis}"


def _outcome(farm: Farm, outcome: Outcome) -> str:
    if outcome.speedup is None:
        return "unknown"
    one = "one worker on one GPU" if farm.split else "one worker"
    faster = "" if outcome.workers == outcome.gpus == 1 else f"{format_figure(outcome.speedup)} times as fast as {one}"
    return ", ".join(filter(None, ["" if outcome.seconds is None else format_seconds(outcome.seconds), faster]))


def _best(farm: Farm) -> str:
    """Say what no further worker makes faster, and why."""
    if farm.reaches_bound:
        why = "nothing ends before the longest segment"
    else:
        why = "more would find no core" if farm.threads else "there can be no more"
    return f"{_outcome(farm, farm.best)}, with {counted(farm.useful, 'worker')}: {why}"


def _farm_row(farm: Farm, outcome: Outcome) -> Row:
    chosen = f"{outcome.workers} *" if outcome.workers == farm.workers else f"{outcome.workers}"
    time = "unknown" if outcome.seconds is None else format_seconds(outcome.seconds)
    row = [chosen, *([outcome.gpus] if farm.gpus_per_worker > 1 else []), time]
    row.append("?" if outcome.speedup is None else format_figure(outcome.speedup))
    return row if farm.price is None else [*row, "unknown" if outcome.cost is None else f"{outcome.cost:.2f}"]


def _clock(seconds: float) -> str:
    """Format a time in the film: `1:05` or `1:05.75`."""
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    return f"{minutes}:{hundredths / 100:05.2f}".removesuffix(".00")


def _flops(count: float) -> str:
    """Format operations: `352 TFLOP`."""
    for unit in ("M", "G", "T", "P"):
        count /= 1000 if unit != "M" else 1e6
        if count < 999.5:
            return f"{count:.3g} {unit}FLOP"
    return f"{count / 1000:.3g} EFLOP"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _plain(key: str, value: object) -> str:
    if isinstance(value, list):
        return ("x" if key == "size" else ",").join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else _cut(str(value), 2 * PROMPT_WIDTH)
