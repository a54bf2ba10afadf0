"""The other ranks of a film's model calls, as rank 0 sees them: child processes that it starts, commands and ends.

No wait is without a bound: a rank that dies, fails or does not answer ends the others, and becomes an error here. The
next film starts them anew. However this process ends, they end too (`engine.rank`).
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from helios_cli import machine
from helios_cli.child import Child, Inbox, Message
from helios_cli.device import device_of, dtype_name
from helios_cli.engine.models import Models
from helios_cli.engine.teams import Teams, rounds_of
from helios_cli.errors import HeliosError, MachineError
from helios_cli.model.dit import Call, TextContext
from helios_cli.model.vae_rows import pictures
from helios_cli.units import format_seconds
from helios_cli.weights.placement import Placement

SAFE = "chunks that are done are safe; run the same command again to continue"

LAST_WORDS_SECONDS = 10.0
"""Time to learn why an exchange failed: the end of the process that caused it may be seen a moment later."""


def _kept(call: Call) -> tuple[Tensor, ...]:
    """Return the inputs of a call that later ones share, and nothing changes."""
    return call.history_BME, call.mods.blocks, call.mods.out, call.rope


def _kind(x: Tensor) -> list:
    """Return the shape and the type of a tensor that is to be received."""
    return [list(x.shape), dtype_name(x.dtype)]


class Ranks:
    """Ranks 1 to N - 1 of a film's model calls; this process is rank 0.

    Args:
        devices: of all ranks, this one's first (`engine.teams.devices_of`).
        models: what they open the model as.
        patience: the longest time in seconds without an answer.
    """

    def __init__(self, devices: Sequence[torch.device], models: Models, patience: float) -> None:
        self.devices, self.count, self._patience = devices, len(devices), patience
        self._how = {
            "checkpoint": str(models.checkpoint.path),
            "loras": [(str(adapter.path), adapter.weight) for adapter in models.checkpoint.adapters],
            "name": models.name,
            "dtype": dtype_name(models.dtype),
            "quant": models.quant,
            "attention": models.attention,
            "threads": models.threads,
            "piece_elements": models.piece_elements,
            "patience": patience,
        }
        self.share: float | None = None
        """The share of each GPU's memory that its rank may take (`--vram`)."""
        self._placement: Placement | None = None
        self._lock = threading.RLock()
        self._inbox = Inbox()
        self._children: list[Child] = []  # rank 1 is the first
        self._done = Counter[Child]()  # commands that each has carried out
        self._folder: Any = None
        self._teams: Teams | None = None
        self._sent = 0
        self._next_number = 0
        self._numbers = WeakIdKeyDictionary()  # tensors that the ranks have -> their numbers
        self._rows = WeakIdKeyDictionary()  # keys of prompts -> the rows that they were computed from
        self._held: set[int] = set()

    # What the model does

    def place(self, placement: Placement) -> None:
        """Have the ranks place the transformer and the VAE as this one does."""
        with self._commanding():
            self._placement = replace(placement, vae_ahead_bytes=0)
            if self._children:
                self._send_place()

    def unload(self) -> None:
        """Have the ranks free their transformers; their memory is free then."""
        with self._commanding():
            if self._children:
                self._send(unload={})
            if self._teams is not None:
                self._settle()

    def begin(self) -> None:
        """Start the processes, unless they run, and let them load the model while this one does."""
        with self._commanding():
            if self._children:
                return
            self._folder = machine.temporary_folder()
            for rank, device in list(enumerate(self.devices))[1:]:
                self._children.append(self._start(rank, device))
            self._send(join={})
            self._send_place()

    def embed_text(self, models: Models, rows_BKE: Tensor) -> TextContext:
        """Return the keys and values of a prompt, which each rank computes for itself at the same time."""
        self.begin()
        with self._commanding():
            self._join()
            number = self._new_number()
            self._take(tensors=[], texts=[(number, rows_BKE)])
            text = models.dit.embed_text(rows_BKE)
            self._numbers[text.keys], self._rows[text.keys] = number, rows_BKE
            self._settle()
        return text

    def answer(self, models: Models, calls: Sequence[Call]) -> list[Tensor]:
        """Return the flows of calls that do not depend on each other, which all ranks make together."""
        self.begin()
        with self._commanding():
            teams = self._join()
            noisy = self._give(calls)
            rounds = rounds_of(calls, self.count)
            self._send(
                make={
                    "calls": [
                        [noisy[id(call.noisy_BCTHW)], *(self._numbers[one] for one in (*_kept(call), call.text.keys))]
                        for call in calls
                    ],
                    "rounds": [[turn.teams, turn.calls] for turn in rounds],
                    "attention": dict(models.choices.attention_taken),
                    "fast_sums": sorted(models.choices.fast_sums),
                }
            )
            flows = teams.make(models, calls, rounds)
            self._settle()
        return [flows[i] for i in range(len(calls))]

    def pictures(self, models: Models, latents_1CTHW: Tensor, frames: int) -> list[tuple[Tensor, Tensor]]:
        """Return `Models.pictures`, which all ranks make together."""
        self.begin()
        with self._commanding():
            teams, vae = self._join(), models.vae
            self._send(decode={"latents": _kind(latents_1CTHW), "frames": frames})
            teams.all.broadcast(latents_1CTHW.contiguous())
            groups = list(pictures(vae, latents_1CTHW, frames, teams.all))
            self._settle()
        return groups

    def close(self) -> None:
        """End the processes."""
        for child in tuple(self._children):
            child.kill()  # so that no other thread waits for one with the lock
        with self._lock:
            for child in self._children:
                child.end()
            if self._teams is not None:
                self._teams.close()
            if self._folder is not None:
                self._folder.cleanup()
            self._children, self._teams, self._folder = [], None, None
            self._inbox.close()
            self._inbox, self._sent = Inbox(), 0
            self._done.clear()
            self._numbers.clear()
            self._held.clear()

    # Tensors

    def _give(self, calls: Sequence[Call]) -> dict[int, int]:
        """Give the ranks what they do not have yet of the inputs of calls; return the numbers of the noisy latents by
        `id`. Solvers may write into those, so that they are given every time."""
        noisy = {id(call.noisy_BCTHW): call.noisy_BCTHW for call in calls}
        numbers = {key: self._new_number() for key in noisy}
        tensors = [(numbers[key], noisy[key]) for key in noisy]
        texts = []
        for call in calls:
            for tensor in _kept(call):
                if tensor not in self._numbers:
                    self._numbers[tensor] = self._new_number()
                    tensors.append((self._numbers[tensor], tensor))
            if (keys := call.text.keys) not in self._numbers:  # given to ranks before these, which were lost
                self._numbers[keys] = self._new_number()
                texts.append((self._numbers[keys], self._rows[keys]))
        self._take(tensors, texts)
        return numbers

    def _take(self, tensors: Sequence[tuple[int, Tensor]], texts: Sequence[tuple[int, Tensor]]) -> None:
        assert self._teams is not None
        dropped = self._held - set(self._numbers.values())
        self._held -= dropped
        self._held |= {number for number, _ in (*tensors, *texts)}

        def described(given: Sequence[tuple[int, Tensor]]) -> list[list]:
            return [[number, *_kind(x)] for number, x in given]

        self._send(take={"dropped": sorted(dropped), "tensors": described(tensors), "texts": described(texts)})
        for _, tensor in (*tensors, *texts):
            self._teams.all.broadcast(tensor.contiguous())

    def _new_number(self) -> int:
        self._next_number += 1
        return self._next_number

    # Processes

    def _start(self, rank: int, device: torch.device) -> Child:
        place = {"rank": rank, "count": self.count, "device": str(device), "folder": self._folder.name}
        question, log = json.dumps({**self._how, **place}), Path(self._folder.name, f"rank{rank}.log")
        return Child(f"rank {rank}", "helios_cli.engine.rank", question, inbox=self._inbox, log=log)

    def _send_place(self) -> None:
        placement = self._placement or Placement()
        self._send(place={"placement": asdict(placement), "share": self.share})

    def _send(self, **command: Any) -> None:
        self._sent += 1
        for child in self._children:
            child.send(command)

    def _join(self) -> Teams:
        """Wait until all ranks have opened the model, and meet them."""
        if self._teams is None:
            here, hellos = device_of(self.devices[0]).name, 0
            while hellos < len(self._children):
                child, answer = self._next_answer()
                if hello := answer.get("hello"):
                    hellos += 1
                    self._require_alike(child, hello, here)
            self._teams = Teams(Path(self._folder.name), 0, self.count, self.devices[0], self._patience, self._finish)
        return self._teams

    def _require_alike(self, child: Child, hello: dict[str, str], here: str) -> None:
        """GPUs of two kinds round differently, and the slower one would be waited for."""
        if self.devices[0].type == "cuda" and hello["device"] != here:
            theirs = f"{self._device(child)} is {hello['device']}"
            what = f"--gpus-per-film {self.count}: {theirs}, and {self.devices[0]} {here}"
            raise MachineError(what, hint="choose GPUs of one kind with CUDA_VISIBLE_DEVICES")

    def _settle(self) -> None:
        """Wait until everything that was sent is done, here and on all ranks."""
        if self.devices[0].type == "cuda":
            here = torch.cuda.Event()
            here.record()
            self._wait_for(here.query)
        while any(self._done[child] < self._sent for child in self._children):
            self._next_answer()

    def _finish(self, work: Any) -> None:
        """Wait for an exchange. One of NCCL is waited for by what follows it on the GPU."""
        if self.devices[0].type != "cuda":
            self._wait_for(work.is_completed)
        work.wait()

    def _wait_for(self, is_done: Callable[[], bool]) -> None:
        """Wait so that Ctrl-C and the loss of a rank are seen at once."""
        end, pause = time.monotonic() + self._patience, 0.0
        while not is_done():
            with contextlib.suppress(Empty):
                self._next_answer(0)
            if time.monotonic() > end:
                raise self._silent()
            time.sleep(pause)
            pause = min(pause + 1e-5, 1e-3)

    def _next_answer(self, seconds: float | None = None) -> tuple[Child, Message]:
        """Return the next answer, and note what is done. Raises the error of a rank that failed or is gone; Empty when
        `seconds` have passed, an error after those that a rank may be silent for."""
        try:
            wait = self._patience if seconds is None else seconds
            child, answer = self._inbox.get(wait)
        except Empty:
            if seconds is not None:
                raise
            raise self._silent() from None
        if answer is None:
            raise self._lost(child)
        if failed := answer.get("failed"):
            raise HeliosError.from_dict({**failed, "message": f"{self._called(child)}: {failed['message']}"})
        self._done[child] += "done" in answer
        return child, answer

    def _device(self, child: Child) -> torch.device:
        return self.devices[1 + self._children.index(child)]

    def _called(self, child: Child) -> str:
        return f"{child.name} of {self.count} ({self._device(child)}, --gpus-per-film {self.count})"

    def _lost(self, child: Child) -> HeliosError:
        """Return the error for a process that is gone, or for the one that was killed: it takes others with it."""
        child = next((other for other in self._children if (other.code(0) or 0) < 0), child)
        code = child.code(LAST_WORDS_SECONDS)
        how = "closed its output" if code is None else child.how_it_ended(code)
        kind = MachineError if (code or 0) < 0 else HeliosError
        return child.noted(kind(f"{self._called(child)} {how}", hint=SAFE))

    def _silent(self) -> HeliosError:
        names = " and ".join(self._called(child) for child in self._children if self._done[child] < self._sent)
        return MachineError(f"{names} did not answer for {format_seconds(self._patience)}", hint=SAFE)

    @contextlib.contextmanager
    def _commanding(self) -> Iterator[None]:
        """Command the ranks in the block. Whatever goes wrong in it ends them: they may wait for what never comes."""
        with self._lock:
            try:
                yield
            except BaseException as error:
                cause = self._cause_of(error)
                self.close()
                if cause is error:
                    raise
                raise cause from error

    def _cause_of(self, error: BaseException) -> BaseException:
        """Return the error of the rank that was lost, if an exchange failed because of it."""
        if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
            return error
        end = time.monotonic() + LAST_WORDS_SECONDS
        with contextlib.suppress(Empty):
            while self._children and (left := end - time.monotonic()) > 0:
                try:
                    self._next_answer(left)
                except HeliosError as known:
                    return known
        return error
