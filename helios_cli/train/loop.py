"""The training loop: a phase's gradients, summed over the processes, update its players; events report what happens.

In each step every player of the phase gets its turns. A stopped run continues from its last saved state, and ends with
the same parameters, bit for bit, as one that never stopped (unless its end or its rates depend on the clock).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from helios_cli.device import torch_dtype
from helios_cli.engine.memory import memory_errors
from helios_cli.errors import Interrupted, PictureError
from helios_cli.train.events import Event, Notice, Probed, RunDone, RunStarted, Sampled, Saved
from helios_cli.train.log import RunLog
from helios_cli.train.optim import PlayerOptimizer, RunningMean, rate_scale
from helios_cli.train.phase import Phase
from helios_cli.train.processes import Processes, own_device, process_group
from helios_cli.train.settings.run import PhaseSettings, TrainingSettings
from helios_cli.train.state import (
    CHECKPOINT,
    check_same,
    load_state,
    open_folder,
    open_start,
    prepare_checkpoint,
    save_state,
    trained_state,
)
from helios_cli.weights.checkpoint import Checkpoint

HOLD_LESS = "lower `batch` or `size`, or set an option of [memory]; the same command then continues the run"
"""The hint when memory runs out."""

MOST_SKIPPED = 20
"""Number of updates in a row that may be not finite; after that a run will not recover."""

MODULES = {"base": "flow", "mid": "flow"}
"""The modules of phases that are not named after their phase."""


def perform(settings: PhaseSettings, device: torch.device, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Run a phase: train, or, for a phase that trains nothing, call its `run`.

    Such a phase can be stopped after each of its events. Errors as in `train`.
    """
    module = _module(settings)
    if not hasattr(module, "run"):
        yield from train(settings, device, stop)
        return
    settings = _with_dtype(settings, device)
    start = None if settings.start is None else open_start(settings.start)
    with memory_errors(HOLD_LESS):
        for event in module.run(settings, start, own_device(device)):
            yield event
            if stop():
                raise Interrupted(f"{settings.out}: stopped", hint="run the same command to continue")


def train(
    settings: TrainingSettings, device: torch.device, stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Train a phase, from its beginning or from where it stopped, and write its log, states and checkpoint.

    `stop` is called after every step; if it returns True, the state is saved and Interrupted raised. InputError if the
    folder or the settings do not fit, CheckpointError for `start`, PictureError if the run diverges.
    """
    open_folder(settings)
    settings = _with_dtype(settings, device)
    start = None if settings.start is None else open_start(settings.start)
    with process_group(device, settings.batch) as processes:
        phase = _module(settings).build(settings, start, processes.device)
        yield from TrainingRun(settings, phase, start, processes, stop).events()


def _module(settings: PhaseSettings) -> ModuleType:
    return import_module(f"helios_cli.train.phases.{MODULES.get(settings.phase, settings.phase)}")


def _with_dtype(settings: PhaseSettings, device: torch.device) -> PhaseSettings:
    return settings.model_copy(update={"dtype": dtype_name(settings.dtype, device)})


def dtype_name(name: str, device: torch.device) -> str:
    """Return bfloat16 or float32. `auto` is what is fast on `device`, but never float16, whose gradients vanish."""
    return "bfloat16" if torch_dtype(name, device) == torch.bfloat16 else "float32"


class TrainingRun:
    """One run of a training phase."""

    def __init__(
        self,
        settings: TrainingSettings,
        phase: Phase,
        start: Checkpoint | None,
        processes: Processes,
        stop: Callable[[], bool],
    ) -> None:
        self.settings, self.phase, self.start, self.processes, self.stop = settings, phase, start, processes, stop
        dtype = getattr(torch, settings.dtype)
        self.optimizers = {
            name: PlayerOptimizer(player, phase.optimizers.get(name, settings.optimizer), dtype)
            for name, player in phase.players.items()
        }
        self.first = next(iter(phase.players))
        self.mean = RunningMean(phase.players[self.first], settings.ema.decay) if settings.ema.decay else None
        self.log = RunLog(settings.folder, writes=processes.leads)
        self.step = self.skipped = 0
        self.skipped_in_a_row: Counter[str] = Counter()
        self.seconds = 0.0
        self.has_saved = False

    @property
    def fraction(self) -> float:
        """The share of the run that is over, 0 to 1, in steps or in time, whichever is more."""
        settings = self.settings
        steps = self.step / settings.steps if settings.steps else 0.0
        minutes = self.seconds / 60 / settings.max_minutes if settings.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    def events(self) -> Iterator[Event]:
        log = self.settings.log
        self._resume()
        yield self._started()
        began, stopped, saved = time.monotonic() - self.seconds, False, self.seconds
        while self.fraction < 1 and not stopped:
            yield from self._step()
            self.step += 1
            self.seconds, stop = self.processes.greatest(time.monotonic() - began, self.stop())
            stopped, over = bool(stop), self.fraction >= 1
            if self.step % log.every == 0 or over or stopped:
                yield from self.log.close(self.step, self.fraction, self.seconds)
            yield from self._probe_and_sample(over)
            due = self.step % log.save_every == 0 or self.seconds - saved >= 60 * log.save_minutes
            if due or over or stopped:
                yield self._save()
                saved = self.seconds
        out = self.settings.out
        if stopped and self.fraction < 1:
            message = f"{out}: stopped after {self.step} steps, which are saved"
            raise Interrupted(message, hint="run the same command to continue")
        yield RunDone(self.step, self.seconds, self.skipped, str(self.settings.folder / self.phase.leaves))

    def _step(self) -> Iterator[Event]:
        settings = self.settings
        turns: Counter[str] = Counter()
        for name in self.phase.turns(self.step):
            share = self.processes.share(self.step, settings.batch, settings.seed, turns[name])
            turns[name] += 1
            optimizer = self.optimizers[name]
            optimizer.clear()  # gradients that other players' losses left
            with memory_errors(HOLD_LESS):
                addends = self.phase.backward(name, share)
            losses = self._summed(addends)
            self.processes.add_gradients(optimizer.params)
            norm = optimizer.clip()
            if not all(map(math.isfinite, (norm, *losses.values()))):
                yield self._skip(name, norm, losses)
                continue
            self.skipped_in_a_row[name] = 0
            rate = optimizer.step(rate_scale(optimizer.settings, self.step, self.fraction))
            if self.mean and name == self.first:
                if self.step < settings.ema.start:
                    self.mean.follow()
                else:
                    self.mean.update()
            self.log.add(name, losses, rate, norm, settings.batch)
            optimizer.clear()

    def _summed(self, addends: dict[str, Tensor]) -> dict[str, float]:
        """Return the batch's losses or figures, from this process's addends."""
        if not addends:
            return {}
        values = torch.stack([addend.detach().float().reshape(()) for addend in addends.values()])
        return dict(zip(addends, self.processes.add(values).tolist(), strict=True))

    def _skip(self, name: str, norm: float, losses: dict[str, float]) -> Event:
        self.skipped += 1
        self.skipped_in_a_row[name] += 1
        values = ", ".join(f"{key} {value:.4g}" for key, value in losses.items())
        message = f"step {self.step}: the update of {name} is not finite (gradient norm {norm:.4g}; {values})"
        if self.skipped_in_a_row[name] == MOST_SKIPPED:
            raise PictureError(
                f"{message}, as were the {MOST_SKIPPED - 1} before it",
                hint="start again in another `out` with a lower optimizer.lr or clip, or dtype float32; "
                f"what is saved in {self.settings.out} is sound",
            )
        return Notice(f"{message}; it is left out")

    def _probe_and_sample(self, over: bool) -> Iterator[Event]:
        """Probe the phase and draw samples when they are due, with the mean of its parameters."""
        log, step, settings = self.settings.log, self.step, self.settings
        probe, samples = getattr(self.phase, "probe", None), getattr(self.phase, "samples", None)
        probing = probe and log.probe_every and (step % log.probe_every == 0 or over)
        sampling = samples and log.samples_every and (step % log.samples_every == 0 or over)
        if not (probing or sampling):
            return
        with self._averaged():
            if probing:
                addends = probe(self.processes.share(step, settings.batch, settings.seed))
                device = self.processes.device
                figures = self._summed({key: torch.as_tensor(value, device=device) for key, value in addends.items()})
                self.log.probed(step, figures)
                yield Probed(step, figures)
            if sampling and self.processes.leads:
                path = settings.folder / "samples" / f"step-{step:08d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                samples(path, step)
                yield Sampled(step, str(path))
        self.processes.wait()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within, the first player has the mean of its parameters, if one is kept."""
        if self.mean:
            self.mean.swap()
        try:
            yield
        finally:
            if self.mean:
                self.mean.swap()

    def _save(self) -> Event:
        left = self.settings.folder / self.phase.leaves
        if self.processes.leads:
            self.log.plot()
            if self.phase.leaves == CHECKPOINT and not (self.has_saved and left.exists()):
                prepare_checkpoint(left, self.start, self.settings.seed)
            if hasattr(self.phase, "save"):
                with self._averaged():
                    self.phase.save(left)
            save_state(self.settings.folder, self.step, self._state())
        self.has_saved = True
        self.processes.wait()
        return Saved(self.step, str(left))

    def _state(self) -> dict:
        return {
            "config": self.settings.model_dump(mode="json"),
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "players": {name: trained_state(player) for name, player in self.phase.players.items()},
            "movers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "mean": self.mean.state_dict() if self.mean else None,
            "phase": self.phase.state() if hasattr(self.phase, "state") else None,
        }

    def _resume(self) -> None:
        state = load_state(self.settings.folder)
        if state is not None:
            check_same(self.settings, state["config"])
            for name, player in self.phase.players.items():
                player.load_state_dict(state["players"][name], strict=False)  # frozen parameters come from the start
                self.optimizers[name].load_state_dict(state["movers"][name])
            if self.mean:
                self.mean.load_state_dict(state["mean"])
            if state["phase"] is not None:
                self.phase.restore(state["phase"])
            self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
            self.has_saved = True
        self.log.begin(self.step)

    def _started(self) -> Event:
        settings = self.settings
        return RunStarted(
            phase=settings.phase,
            out=settings.out,
            step=self.step,
            steps=settings.steps,
            max_minutes=settings.max_minutes,
            batch=settings.batch,
            processes=self.processes.count,
            device=str(self.processes.device),
            dtype=settings.dtype,
            parameters={name: sum(p.numel() for p in one.params) for name, one in self.optimizers.items()},
        )
