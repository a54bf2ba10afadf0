"""The results of `helios bench all` as the Markdown tables of kernels/README.md. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PER_SECOND = {
    "copy": (1e9, "GB/s copied"),
    "product": (1e12, "TFLOP/s"),
    "sustained_product": (1e12, "TFLOP/s for two seconds"),
    "clock": (1, "MHz during those"),
    "watts": (1, "W"),
    "fp8_product": (1e12, "TFLOP/s in fp8"),
}
"""Of the ceiling: the unit in which it is told, and its name."""


def markdown(data: dict) -> Iterator[str]:
    """Line by line; parts without a result are named with the reason."""
    parts = data["parts"]
    found = {name: said["result"] for name, said in parts.items() if said.get("result")}
    ceiling = found.get("ceiling") or {}
    rates = [f"{ceiling[key] / unit:.4g} {name}" for key, (unit, name) in PER_SECOND.items() if ceiling.get(key)]
    versions = data["versions"]
    made_with = f"commit {versions['commit']}", f"torch {versions['torch']}"
    yield ", ".join([data["device"], data["date"][:10], *made_with, *rates])
    renders = {name: one for name, one in found.items() if name.startswith("render ")}
    phases = list(dict.fromkeys(phase for one in renders.values() for phase in one.get("floors", {})))
    yield from _table(
        ["", "frames a second", "steady", *(f"{phase}, s (of floor)" for phase in phases)],
        [
            [name, _figure(one["frames_per_second"]), _figure(one["steady_frames_per_second"]), *_phases(one, phases)]
            for name, one in renders.items()
        ],
    )
    yield from _table(
        ["op", "case", "ms", "of the ceiling", "over eager or PyTorch's fastest", "short of"],
        [
            [f"`{row['op']}`", row["case"], *([row["fault"]] * 4 if row.get("fault") else _kernel(row))]
            for row in found.get("kernels", [])
        ],
    )
    shapes = found.get("attention", [])
    names = list(dict.fromkeys(name for row in shapes for name in row["ms"]))
    yield from _table(
        ["attention, ms", *names, "taken"],
        [[row["shape"], *(_figure(row["ms"].get(name)) for name in names), row["name"]] for row in shapes],
    )
    yield ""
    for name in parts:
        told = parts[name].get("failed") or parts[name].get("left_out")
        verdict = found[name].get("verdict") if isinstance(found.get(name), dict) else None
        if told or verdict:
            yield f"- {name}: {told or verdict}"


def _phases(one: dict, phases: Sequence[str]) -> list[str]:
    shares = one.get("share_of_floor", {})
    return [f"{one['phases'][phase]:.3g} ({shares[phase]:.0%})" if phase in shares else "-" for phase in phases]


def _kernel(row: dict) -> list[str]:
    share = f"{row['share']:.0%} of {row['bound']}"
    return [_figure(row["milliseconds"]), share, f"{_figure(row['over_eager'])}x", row["short_of"] or ""]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from ("", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
        yield from (f"| {' | '.join(row)} |" for row in rows)
