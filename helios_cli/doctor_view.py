"""The output of `helios doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from helios_cli.console import console
from helios_cli.units import at_least, counted, format_bytes, format_figure, format_seconds
from helios_cli.weights.names import EMBEDDED

Facts = dict[str, Any]
"""The report as JSON, or a part of it."""


def show(facts: Facts) -> None:
    """Print the report: lines under labels, then a table of the published models."""
    for label, lines in _report(facts).items():
        console.prose("\n".join(lines), label=label)
    _show_modes(facts["models"])


def _report(facts: Facts) -> dict[str, list[str]]:
    """Return the lines of the report under their labels."""
    versions, dtype, triton, kernels = (facts[name] for name in ("versions", "dtype", "triton", "kernels"))
    runs = f"{triton['version']}, {'runs' if triton['runs'] else 'cannot run'}: " if triton["version"] else ""
    could = [f"without HELIOS_KERNELS: {kernels['could']}"] if kernels["asked"] == "reference" else []
    return {
        "helios": [
            f"{versions['helios']}, Python {versions['python']}, PyTorch {versions['torch']}",
            facts["platform"],
        ],
        "processor": [_processor_line(facts["cpu"])],
        "GPU": list(_gpu_lines(facts)) or ["none"],
        "dtype": [f"{dtype['name']} on {facts['device']}: {dtype['reason']}"],
        "memory": list(_memory_lines(facts["memory"])),
        "disk": [_disk_line(disk) for disk in facts["disk"]],
        "ffmpeg": _ffmpeg_lines(facts["ffmpeg"]),
        "Triton": [f"{runs}{triton['reason']}"],
        "kernels": [f"{kernels['backend'] or 'none'}: {kernels['reason']}", *could],
        "arithmetic": _arithmetic_lines(facts["arithmetic"]),
        "attention": list(_attention_lines(facts["attention"])),
        **({"test": [line for result in facts["test"] for line in _test_lines(result)]} if "test" in facts else {}),
        "many GPUs": list(_farm_lines(facts)),
        "models": [
            f"{EMBEDDED} fits; others on {facts['device']} in {dtype['name']}:",
            _bandwidth_line(facts["models"]["bandwidths"]),
        ],
    }


def _processor_line(cpu: Facts) -> str:
    cores = f"{cpu['cores']} cores, " if cpu["cores"] else ""
    features = ", ".join([*cpu["features"], *cpu["limits"]]) or "no AVX2"
    return f"{cpu['model']}, {cores}{cpu['threads']} threads, {features}"


def _gpu_lines(facts: Facts) -> Iterator[str]:
    for gpu in facts["accelerators"]:
        capability = "capability {}.{}, ".format(*gpu["capability"]) if gpu["capability"] else ""
        total, free = format_bytes(gpu["total_bytes"]), format_bytes(gpu["free_bytes"])
        yield f"{gpu['device']}: {gpu['name']}, {capability}{total}, {free} free"
    if facts["links"]:
        yield _links_line(facts["links"])
    if facts["driver"]:
        unused = ", but this PyTorch cannot use it: install a build with CUDA from pytorch.org"
        yield f"NVIDIA driver {facts['driver']}{'' if facts['accelerators'] else unused}"


def _links_line(links: list[Facts]) -> str:
    """Say what joins the GPUs: all of them, or the pairs for each kind of link."""
    kinds: dict[str, list[str]] = {}
    for pair in links:
        kinds.setdefault(pair["link"], []).append("-".join(map(str, pair["gpus"])))
    if len(kinds) == 1:
        return f"joined by {next(iter(kinds))}"
    return "joined by " + "; ".join(f"{link}: {', '.join(pairs)}" for link, pairs in kinds.items())


def _farm_lines(facts: Facts) -> Iterator[str]:
    """Say what the flags of many GPUs would take here."""
    farm, kinds = facts["farm"], {gpu["name"] for gpu in facts["accelerators"]}
    auto, choices = counted(farm["workers_auto"], "worker"), [str(count) for count in farm["gpus_per_film"]]
    if facts["device"] == "cpu":
        yield f"--workers auto: {auto}; --workers N shares the cores among N"
        yield "--gpus-per-film: that many processes, which share the cores"
    else:
        yield f"--workers auto: {auto}, one a GPU"
        yield f"--gpus-per-film: {' or '.join(filter(None, [', '.join(choices[:-1]), choices[-1]]))}"
    if len(kinds) > 1:
        yield "the GPUs differ: a film is rendered by one kind of them, unless --mixed lets it use all"
    ray = farm["ray"]
    version = f"Ray {ray['version']}" if ray["version"] else "needs Ray: pip install 'helios-render[ray]'"
    yield f"--cluster: {version}; RAY_ADDRESS is {ray['address'] or 'not set'}"


def _memory_lines(memory: Facts) -> Iterator[str]:
    yield f"{format_bytes(memory['available_bytes'])} of {format_bytes(memory['total_bytes'])} available"
    for limit in memory["limits"]:
        used, most = format_bytes(limit["used_bytes"]), format_bytes(limit["limit_bytes"])
        yield f"container limit {most}, {used} used without the page cache, {limit['path']}"


def _disk_line(disk: Facts) -> str:
    if disk["free_bytes"] is None:
        return f"nothing can be written for {disk['use']}, {disk['path']}: set it to another folder"
    return f"{format_bytes(disk['free_bytes'])} free for {disk['use']}, {disk['path']}"


def _ffmpeg_lines(ffmpeg: Facts) -> list[str]:
    if ffmpeg["error"]:
        return [ffmpeg["error"]]
    return [f"{ffmpeg['version']}, {ffmpeg['path']}", f"encodes {', '.join(ffmpeg['encoders']) or 'nothing'}"]


def _arithmetic_lines(arithmetic: Facts) -> list[str]:
    if not arithmetic["tried"]:
        return ["not tried yet: the first film of a model does that, or `helios doctor --test`"]
    dtypes = dict.fromkeys(product["dtype"] for product in arithmetic["tried"])
    return arithmetic["faults"] or [f"products are right in {', '.join(dtypes)}, where they were tried"]


def _attention_lines(attention: Facts) -> Iterator[str]:
    yield f"auto is {attention['auto']}: {attention['reason']}"
    yield f"PyTorch has {', '.join(attention['pytorch'])}"
    for shape, measured in attention["measured"].items():
        times = ", ".join(
            f"{name} {format_figure(ms)} ms" for name, ms in sorted(measured["ms"].items(), key=lambda item: item[1])
        )
        refused = "".join(f"; {name} refused: {reason}" for name, reason in measured["refused"].items())
        yield f"{shape}: {measured['name']} ({times}{refused})"


def _test_lines(result: Facts) -> list[str]:
    chunks = " ".join(f"{psnr:.1f}" for psnr in result["chunks_db"])
    count = sum(product["cases"] for product in result["products"] if product["dtype"] == result["dtype"])
    verdict = "right" if result["right"] else "WRONG"
    films = f"PSNR of tiny against golden chunks {chunks} dB, at least {result['least_db']:g} needed"
    return [f"{result['dtype']}: {verdict}; {counted(count, 'product')} tried; {films}", *result["faults"]]


def _show_modes(models: Facts) -> None:
    """Print a row for each mode: peak memory, bytes moved and seconds a chunk. A star marks the mode that is taken.

    Where the time of computing is unknown, a chunk takes at least as long as moving its weights.
    """
    rows = []
    for name, model in models["models"].items():
        for mode in model["modes"]:
            sizes = (format_bytes(mode[key]) for key in ("device_bytes", "host_bytes", "moved_bytes"))
            seconds = mode["seconds"]
            time = at_least(mode["transfer_seconds"]) if seconds is None else format_seconds(seconds)
            stay = mode["resident_blocks"] if mode["mode"] == "stream" else "all"
            fits = {True: "yes", False: "no", None: "?"}[mode["fits"]]
            rows.append([name, f"{mode['mode']} *" if mode["chosen"] else mode["mode"], stay, *sizes, time, fits])
    console.line()
    columns = ["model", "offload", "blocks stay", "device", "host", "moved", "a chunk", "fits"]
    console.table(columns, rows, report=True)


def _bandwidth_line(rates: Facts) -> str:
    names = {"disk": "the disk", "cache": "the page cache", "upload": "the host's memory to the device"}
    measured = [f"{format_bytes(rates[key])}/s from {name}" for key, name in names.items() if rates[key]]
    return f"transfer at {', '.join(measured)} ({rates['basis']})"
