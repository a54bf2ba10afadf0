"""`helios train`: runs the phases of the method's training, one config file each."""

from __future__ import annotations

import os
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from helios_cli import options
from helios_cli.console import console
from helios_cli.device import pick_device
from helios_cli.errors import InputError
from helios_cli.progress import open_view
from helios_cli.stop import stop_after_step
from helios_cli.train_view import PlainView, RichView


def train(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG", help="TOML files, run one after another.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the files, such as optimizer.lr=1e-4."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Same as --set steps=N.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Same as --set max_minutes=M.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Same as --set out=FOLDER.")] = None,
    device: options.Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. (default: PyTorch's)")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the files and report their problems.")] = False,
    progress: options.Progress = "auto",
    quiet: options.Quiet = False,
    json: options.Events = False,
) -> None:
    """Train a model, or a LoRA of one: helios train recipes/train/tiny-vae.toml

    Run the same command again to continue a stopped run. With several processes:
    torchrun --nproc-per-node 2 -m helios_cli train CONFIG
    """
    from helios_cli.train.config import load

    if out and len(configs) > 1:
        raise InputError("--output names one folder, for one config", hint="leave it out, or run one config at a time")
    flags = {"steps": steps, "max_minutes": max_minutes, "out": out and dumps(str(out))}
    given = [*(overrides or ()), *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    phases = [load(path, given) for path in configs]
    if check:
        for path in configs:
            console.line(f"{path}: ok")
        return

    import torch

    from helios_cli.train.loop import perform

    if threads:
        torch.set_num_threads(threads)
    kind = options.progress_kind(progress, quiet=quiet or _follows(), json=json)
    with open_view(kind, PlainView, RichView) as view, stop_after_step() as is_stopped:
        for settings in phases:
            for event in perform(settings, pick_device(device), is_stopped):
                view.show(event)


def _follows() -> bool:
    """Return whether another process of the same run shows its progress."""
    return os.environ.get("RANK", "0") != "0"
