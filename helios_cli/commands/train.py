"""`helios train`: the phases of the method's training, one config file each."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from helios_cli import options
from helios_cli.console import console
from helios_cli.progress import ProgressKind
from helios_cli.train_view import open_view


def train(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="TOML files, trained one after another.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="In place of the file's: optimizer.lr=1e-4."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Same as --set steps=N.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Same as --set max_minutes=M.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Same as --set out=FOLDER.")] = None,
    device: options.Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. (default: PyTorch's)")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only read the files and say what is wrong in them.")] = False,
    progress: Annotated[ProgressKind, typer.Option(help="How to show it.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Same as --progress none.")] = False,
) -> None:
    """Train a model: helios train recipes/train/vae.toml

    A run that was stopped goes on with the same command. On several processes: torchrun --nproc-per-node 2 -m
    helios_cli train CONFIG.
    """
    from helios_cli.train.config import load

    given = list(overrides or ())
    flags = {"steps": steps, "max_minutes": max_minutes, "out": out and f'"{out}"'}
    given += [f"{key}={value}" for key, value in flags.items() if value is not None]
    jobs = [load(path, given) for path in configs]
    if check:
        for path in configs:
            console.line(f"{path}: ok")
        return

    import torch

    from helios_cli import machine
    from helios_cli.train.loop import perform

    stop = _Stopper()
    if threads:
        torch.set_num_threads(threads)
    with open_view("none" if quiet or _follows() else progress) as view:
        for job in jobs:
            for event in perform(job, machine.pick_device(device), stop):
                view.show(event)


def _follows() -> bool:
    """Whether another process of the same run shows it."""
    return os.environ.get("RANK", "0") != "0"


class _Stopper:
    """Becomes true when the process is asked to stop. A second Ctrl-C stops it at once."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: object) -> None:
        if self._asked and number == signal.SIGINT:  # torchrun follows a Ctrl-C up with a SIGTERM
            raise KeyboardInterrupt
        self._asked = True
