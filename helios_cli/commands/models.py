"""`helios models`: list, describe, download, convert and check models."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from helios_cli import machine
from helios_cli.console import JsonFlag, console
from helios_cli.errors import CheckpointError
from helios_cli.recipe.files import check_loras
from helios_cli.recipe.flags import read_flag
from helios_cli.recipe.lora import located, parse_loras
from helios_cli.units import format_bytes
from helios_cli.weights import hub
from helios_cli.weights.adapters import AdapterFile, fold
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.files import some_of
from helios_cli.weights.names import EMBEDDED, KNOWN, WEIGHT_BYTES, KnownModel
from helios_cli.weights.report import bytes_to_read, describe, inventory, verify
from helios_cli.weights.source import Source, shadow_of, source_of, spoken

app = typer.Typer(help="List, inspect, download, convert and verify models.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="Model: tiny, distilled, mid, base, a Hub id or a folder.")]
Revision = Annotated[str | None, typer.Option(help="Hub revision. Known models have a pinned commit.")]


@app.command("list")
def list_models(json: JsonFlag = False) -> None:
    """List the known models and those in the Hub cache."""
    models = inventory()
    rows = [
        [item["name"], item["repo"] or "in the package", item["state"], _size(item["bytes"]), item["kind"] or ""]
        for item in models
    ]
    console.table(["name", "from", "state", "on disk", "kind"], rows, data=models)
    if not any(item["state"] == "ready" for item in models if item["name"] != EMBEDDED):
        console.hint(f"helios models pull distilled ({format_bytes(WEIGHT_BYTES)})")


@app.command()
def info(
    model: Annotated[
        str,
        typer.Argument(help="Model: tiny, distilled, mid, base, a Hub id or a folder; or a LoRA's .safetensors file."),
    ],
    revision: Revision = None,
    json: JsonFlag = False,
) -> None:
    """Show a model's kind, sizes and shapes, from its JSON files and weight headers; or those of a LoRA file."""
    if Path(model).is_file():
        return _show_lora(Path(model))
    source = _source(model, revision)
    folder = hub.find(source)
    known = KNOWN.get(model)
    if folder is None and known is not None:
        return _show_known(known, source)
    if folder is None:
        raise _absent(source)
    report = describe(Checkpoint.open(folder), source)
    console.result(report)
    for key in ("path", "repo", "revision", "kind", "scheduler", "trained", "knows", "native_size", "fingerprint"):
        if report[key] not in (None, ""):
            console.prose(_plain(report[key]), label=key.replace("_", " "))
    console.prose(", ".join(f"{key} {_plain(value)}" for key, value in report["preset"].items()), label="preset")
    for part in report["components"]:
        console.prose(part["shape"], label=part["name"])
    columns = ["component", "parameters", "size", "stored as", "tensors", "files"]
    console.table(columns, [_row(part) for part in report["components"]])


@app.command()
def pull(model: Model, revision: Revision = None, json: JsonFlag = False) -> None:
    """Download the missing files of a model, and print its folder."""
    source = _source(model, revision)
    folder = hub.download(source, progress=console.progress_bytes)
    console.result({"model": model, "repo": source.repo or None, "path": folder})
    console.line(str(folder))


@app.command()
def convert(
    model: Model,
    dtype: Annotated[
        Literal["bfloat16", "float8", "int8", "nf4"],
        typer.Option(
            help="Data type of the copy. bfloat16: same pictures; float8: smaller, for --quant fp8; int8, nf4: in 8 or "
            "4 bits in memory as well, computed in bfloat16."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="New folder for the copy. (default: in models/ of HELIOS_HOME)")
    ] = None,
    revision: Revision = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="LoRA file to fold into the copy, or one on the Hub; repeatable."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write a smaller copy that streams block by block, check its tensors, and print its folder."""

    source = _source(model, revision)
    folder = hub.find(source)
    if folder is None:
        raise _absent(source)
    checkpoint, names = _with_loras(Checkpoint.open(folder), lora or [])
    out = out or machine.home() / "models" / "-".join([Path(os.path.abspath(model)).name, *names, dtype])
    from helios_cli.engine.convert import bytes_to_write, convert

    with console.progress_bytes(f"converting {model}", bytes_to_write(checkpoint, dtype)) as advance:
        done = convert(checkpoint, out, dtype, advance)
    console.result({"model": model, "dtype": dtype, **vars(done)})
    console.line(str(done.path))
    console.hint(f"helios render ... -m {done.path}")


@app.command("verify")
def verify_model(model: Model, revision: Revision = None, json: JsonFlag = False) -> None:
    """Check the files of a model: sizes, headers, indexes, and the Hub's digests.

    Exits with 4 if a file is bad.
    """
    source = _source(model, revision)
    folder = source.folder or hub.snapshot_of(source)
    if folder is None:
        raise _absent(source)
    size = bytes_to_read(folder)
    with console.progress_bytes(f"reading {model}", size) if size else nullcontext(hub.unseen) as advance:
        checks = list(verify(folder, advance))
    console.result([vars(check) for check in checks])
    rows = [[check.name, format_bytes(check.bytes), check.method, check.problem or "ok"] for check in checks]
    console.table(["file", "size", "checked by", "result"], rows)
    bad = [check for check in checks if check.problem]
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(checks)} files of {folder} are bad: {some_of([check.name for check in bad])}",
            hint=hub.refetch(source, folder, bad[0].name),
        )
    Checkpoint.open(folder)  # good files may still not fit each other


def _source(model: str, revision: str | None) -> Source:
    if line := shadow_of(model):
        console.notice(line)
    return source_of(model, revision)


def _with_loras(checkpoint: Checkpoint, written: list[str]) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint with the LoRA files that --lora names, and their names."""
    loras = [located(lora, Path.cwd()) for lora in read_flag("--lora", parse_loras, written)]
    check_loras(loras, "flag")
    files = [(hub.lora_file(lora.path, progress=console.progress_bytes), lora.weight) for lora in loras]
    checkpoint, notices = fold(checkpoint, files)
    for notice in notices:
        console.notice(notice)
    return checkpoint, [f"{path.stem}-{weight:g}" for path, weight in files]


def _show_lora(path: Path) -> None:
    report = AdapterFile.open(path).describe()
    console.result(report)
    for key in ("path", "kind", "family", "modules", "ranks", "alphas", "dtypes", "tensors", "sha256"):
        console.prose(_plain(report[key]) or "none", label=key)
    console.prose(format_bytes(report["bytes"]), label="size")
    if report["others"]:
        console.prose(some_of(report["others"]), label="not of a LoRA")


def _absent(source: Source) -> CheckpointError:
    return CheckpointError(f"{source.repo} is not in the cache", hint=f"helios models pull {spoken(source)}")


def _show_known(known: KnownModel, source: Source) -> None:
    facts = {"name": known.name, "repo": source.repo, "revision": source.revision, "about": known.about}
    console.result({**facts, "state": "not downloaded", "bytes": WEIGHT_BYTES})
    for key, value in facts.items():
        console.prose(value, label=key)
    console.prose(format_bytes(WEIGHT_BYTES), label="download")
    console.hint(f"helios models pull {known.name}")


def _row(part: dict) -> list:
    size, dtypes = format_bytes(part["bytes"]), "+".join(part["dtypes"])
    return [part["name"], part["parameters"], size, dtypes, part["tensors"], part["files"]]


def _size(count: int | None) -> str:
    return format_bytes(count) if count else ""


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
