"""The process of a rank other than the first: commands come as lines of JSON, tensors from rank 0's device.

    {"join": {...}}     open the model, and meet the other ranks
    {"place": {...}}    load the transformer to its place, which follows that of rank 0
    {"unload": {}}      free it
    {"take": {...}}     tensors and prompts for later calls, by numbers, and those that no call needs any more
    {"make": {...}}     make this rank's part of calls
    {"decode": {...}}   make this rank's rows of a chunk's pictures

Each command is answered with {"done": ...}, or with {"failed": ...} at the end of the process (`child`). The process
also ends when rank 0 does, in whatever way.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios_cli.child import Message, end_at_once, serve_lines
from helios_cli.device import device_of, pick_device
from helios_cli.engine import arithmetic
from helios_cli.engine.memory import memory_errors
from helios_cli.engine.models import Models
from helios_cli.engine.teams import Round, Teams
from helios_cli.model.dit import Call, Modulation, TextContext
from helios_cli.model.vae_rows import pictures
from helios_cli.weights.adapters import fold
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.placement import Placement


class Rank:
    """The state of a rank between commands: its model, its exchanges, and tensors and prompts by number."""

    def __init__(self, question: dict[str, Any]) -> None:
        self._question = question
        self.device = pick_device(question["device"])
        self.tensors: dict[int, Tensor] = {}
        self.texts: dict[int, TextContext] = {}
        self.models: Models
        self.teams: Teams

    def obey(self, command: str, value: dict[str, Any]) -> None:
        """Carry out a command."""
        commands: dict[str, Callable[..., None]] = {
            "join": self.join,
            "place": self.place,
            "unload": self.unload,
            "take": self.take,
            "make": self.make,
            "decode": self.decode,
        }
        commands[command](**value)

    def join(self) -> None:
        ask = self._question
        files = [(Path(path), weight) for path, weight in ask["loras"]]
        checkpoint, _ = fold(Checkpoint.open(Path(ask["checkpoint"])), files)  # rank 0 tells the user
        self.models = Models(
            checkpoint,
            self.device,
            getattr(torch, ask["dtype"]),
            name=ask["name"],
            quant=ask["quant"],
            attention=ask["attention"],
            piece_elements=ask["piece_elements"],
            threads=ask["threads"],
        )
        self.models.use_threads()
        for _ in arithmetic.settle(self.models):
            pass  # rank 0 tells the user
        self.teams = Teams(Path(ask["folder"]), ask["rank"], ask["count"], self.device, ask["patience"])

    def place(self, placement: dict[str, Any], share: float | None) -> None:
        """Load the transformer to its place."""
        if share is not None:
            torch.cuda.set_per_process_memory_fraction(share, self.device)
        self.models.place(Placement(**placement))
        _ = self.models.dit

    def unload(self) -> None:
        self.models.unload()

    def take(self, dropped: list[int], tensors: list[list], texts: list[list]) -> None:
        """Take tensors, and prompts' rows, whose keys and values each rank computes by itself."""
        for number in dropped:
            self.tensors.pop(number, None)
            self.texts.pop(number, None)
        for number, *kind in tensors:
            self.tensors[number] = self._received(*kind)
        for number, *kind in texts:
            self.texts[number] = self.models.dit.embed_text(self._received(*kind))

    def _received(self, shape: list[int], dtype: str) -> Tensor:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
        self.teams.all.broadcast(tensor)
        return tensor

    def make(self, calls: list[list[int]], rounds: list[list], attention: dict[str, str], fast_sums: list[int]) -> None:
        self.models.choices.take_over(attention, fast_sums)
        made = [self._call(*numbers) for numbers in calls]
        self.teams.make(self.models, made, [Round(teams, tuple(places)) for teams, places in rounds])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def decode(self, latents: list, frames: int) -> None:
        for _ in pictures(self.models.vae, self._received(*latents), frames, self.teams.all):
            pass  # rank 0 has them
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _call(self, noisy: int, history: int, blocks: int, out: int, rope: int, text: int) -> Call:
        tensors = self.tensors
        mods = Modulation(tensors[blocks], tensors[out])
        return Call(tensors[noisy], tensors[history], mods, tensors[rope], self.texts[text])


@torch.inference_mode()
def talk(question: dict[str, Any], commands: Iterator[Message]) -> Iterator[Message]:
    """Carry out commands until rank 0 ends this process."""
    with memory_errors():
        rank = Rank(question)
        yield {"hello": {"pid": os.getpid(), "device": device_of(rank.device).name, "torch": torch.__version__}}
        for message in commands:
            for command, value in message.items():
                rank.obey(command, value)
                yield {"done": command}


def _end(folder: str) -> None:
    """End this process after rank 0, whatever it is doing, and remove the folder of both."""
    shutil.rmtree(folder, ignore_errors=True)
    end_at_once()


def main() -> None:
    """Serve rank 0, which says on the command line what this rank is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0
    question = json.loads(sys.argv[1])
    serve_lines(partial(talk, question), at_loss=partial(_end, question["folder"]))


if __name__ == "__main__":
    main()
