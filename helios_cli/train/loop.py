"""The training loop: a phase's gradients, summed over the processes, move its players; what happens is told as events.

A step gives each player of the phase its turns. A run that was stopped goes on where its last state was saved, and
comes to the same parameters, bit for bit, as one that never stopped (unless its end or its rates depend on the clock).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from torch import Tensor

from helios_cli.engine.memory import memory_errors
from helios_cli.errors import Interrupted, PictureError
from helios_cli.train.config import Config, Job
from helios_cli.train.dtype import dtype_name
from helios_cli.train.events import Event, Notice, Probed, RunDone, RunStarted, Sampled, Saved
from helios_cli.train.optim import Mean, Mover, rate_scale
from helios_cli.train.phase import Phase
from helios_cli.train.plot import plot_log
from helios_cli.train.record import PLOT, Record
from helios_cli.train.spread import Spread, own_device, spread
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

HOLD_LESS = "lower `batch` or `size`, or see [memory] for what holds less; what is saved is gone on with"
"""What to do when memory runs out."""

MOST_SKIPPED = 20
"""Updates in a row that may not be finite; a run that goes on so will not recover."""


def perform(job: Job, device: torch.device, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Do what the phase of `job` does: train, or, for a phase with nothing to train, what its `run` does.

    Such a phase can be stopped after each of its events. Errors as `train`.
    """
    module = import_module(f"helios_cli.train.phases.{job.phase}")
    if not hasattr(module, "run"):
        yield from train(job, device, stop)
        return
    job, start = _settled(job, device), None if job.start is None else open_start(job.start)
    with memory_errors(HOLD_LESS):
        for event in module.run(job, start, own_device(device)):
            yield event
            if stop():
                raise Interrupted(f"{job.out}: stopped", hint="the same command goes on")


def train(config: Config, device: torch.device, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Train the phase that `config` names, from its beginning or from where it stopped, and write down what happens.

    `stop` is asked after every step; when it says so, the state is saved and Interrupted raised. InputError if the
    folder or the settings do not fit, CheckpointError for what it starts from, PictureError if it diverges.
    """
    open_folder(config)
    config = _settled(config, device)
    start = None if config.start is None else open_start(config.start)
    with spread(device, config.batch) as processes:
        phase = import_module(f"helios_cli.train.phases.{config.phase}").build(config, start, processes.device)
        yield from Run(config, phase, start, processes, stop).events()


def _settled(job: Job, device: torch.device) -> Job:
    """The job with the dtype that it comes to on this device."""
    return job.model_copy(update={"dtype": dtype_name(job.dtype, device)})


class Run:
    """A phase under way."""

    def __init__(
        self, config: Config, phase: Phase, start: Checkpoint | None, processes: Spread, stop: Callable[[], bool]
    ) -> None:
        self.config, self.phase, self.start, self.processes, self.stop = config, phase, start, processes, stop
        dtype = getattr(torch, config.dtype)
        own = getattr(phase, "optimizers", {})
        self.movers = {
            name: Mover(player, own.get(name, config.optimizer), dtype) for name, player in phase.players.items()
        }
        self.first = next(iter(phase.players))
        self.mean = Mean(phase.players[self.first], config.ema.decay) if config.ema.decay else None
        self.record = Record(config.folder, writes=processes.leads)
        self.step = self.skipped = 0
        self.skipped_in_a_row: Counter[str] = Counter()
        self.seconds = 0.0
        self.has_saved = False

    @property
    def fraction(self) -> float:
        """How much of the run is over, 0 to 1, in steps or in time, whichever is more."""
        steps = self.step / self.config.steps if self.config.steps else 0.0
        minutes = self.seconds / 60 / self.config.max_minutes if self.config.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    def events(self) -> Iterator[Event]:
        log = self.config.log
        self._resume()
        yield self._started()
        clock, stopped, saved = _Clock(self.seconds), False, self.seconds
        while self.fraction < 1 and not stopped:
            yield from self._step()
            self.step += 1
            self.seconds, wanted = self.processes.greatest(clock.seconds, self.stop())
            stopped, over = bool(wanted), self.fraction >= 1
            if self.step % log.every == 0 or over or stopped:
                yield from self.record.close(self.step, self.fraction, self.seconds)
            yield from self._extras(over)
            due = self.step % log.save_every == 0 or self.seconds - saved >= 60 * log.save_minutes
            if due or over or stopped:
                yield self._save()
                saved = self.seconds
        if stopped and self.fraction < 1:
            raise Interrupted(
                f"{self.config.out}: stopped after {self.step} steps, which are saved", hint="the same command goes on"
            )
        yield self._done()

    def _step(self) -> Iterator[Event]:
        turns: Counter[str] = Counter()
        for name in self.phase.turns(self.step):
            share = self.processes.share(self.step, self.config.batch, self.config.seed, turns[name])
            turns[name] += 1
            mover = self.movers[name]
            mover.clear()  # of what other players' losses have left there
            with memory_errors(HOLD_LESS):
                gradients = self.phase.backward(name, share)
            losses = self._summed(gradients)
            self.processes.add_gradients(mover.params)
            norm = mover.clip()
            if not all(map(math.isfinite, (norm, *losses.values()))):
                yield self._skip(name, norm, losses)
                continue
            self.skipped_in_a_row[name] = 0
            rate = mover.step(rate_scale(mover.settings, self.step, self.fraction))
            if self.mean and name == self.first:
                if self.step < self.config.ema.start:
                    self.mean.follow()
                else:
                    self.mean.update()
            self.record.add(name, losses, rate, norm, self.config.batch)
            mover.clear()

    def _summed(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """The batch's losses from this process's addends."""
        if not losses:
            return {}
        values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()])
        return dict(zip(losses, self.processes.add(values).tolist(), strict=True))

    def _skip(self, name: str, norm: float, losses: dict[str, float]) -> Event:
        self.skipped += 1
        self.skipped_in_a_row[name] += 1
        found = ", ".join(f"{key} {value:.4g}" for key, value in losses.items())
        what = f"step {self.step}: the update of {name} is not finite (gradient norm {norm:.4g}; {found})"
        if self.skipped_in_a_row[name] == MOST_SKIPPED:
            raise PictureError(
                f"{what}, as were the {MOST_SKIPPED - 1} before it",
                hint="begin again in another `out` with a lower optimizer.lr or clip, or dtype float32; "
                f"what is saved in {self.config.out} is sound",
            )
        return Notice(f"{what}; it is left out")

    def _extras(self, over: bool) -> Iterator[Event]:
        """What the phase has to look at, on the mean of its parameters."""
        log, step = self.config.log, self.step
        probe, samples = getattr(self.phase, "probe", None), getattr(self.phase, "samples", None)
        probing = probe and log.probe_every and (step % log.probe_every == 0 or over)
        sampling = samples and log.samples_every and (step % log.samples_every == 0 or over)
        if not (probing or sampling):
            return
        with self._averaged():
            if probing:
                figures = self._summed_figures(probe)
                self.record.probed(step, figures)
                yield Probed(step, figures)
            if sampling and self.processes.leads:
                path = self.config.folder / "samples" / f"step-{step:08d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                samples(path, step)
                yield Sampled(step, str(path))
        self.processes.wait()

    def _summed_figures(self, probe: Callable) -> dict[str, float]:
        share = self.processes.share(self.step, self.config.batch, self.config.seed)
        figures = {name: torch.as_tensor(value, device=self.processes.device) for name, value in probe(share).items()}
        return self._summed(figures)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The first player with the mean of its parameters, if one is kept."""
        if self.mean:
            self.mean.swap()
        try:
            yield
        finally:
            if self.mean:
                self.mean.swap()

    def _save(self) -> Event:
        folder = self.config.folder
        if self.processes.leads:
            plot_log(self.record.log, folder / PLOT)
            checkpoint = folder / CHECKPOINT
            if not (self.has_saved and checkpoint.exists()):
                prepare_checkpoint(folder, self.start, self.config.seed)
            if hasattr(self.phase, "save"):
                with self._averaged():
                    self.phase.save(checkpoint)
            save_state(folder, self.step, self._state())
        self.has_saved = True
        self.processes.wait()
        return Saved(self.step, str(folder / CHECKPOINT))

    def _state(self) -> dict:
        return {
            "config": self.config.model_dump(mode="json"),
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "players": {name: trained_state(player) for name, player in self.phase.players.items()},
            "movers": {name: mover.state_dict() for name, mover in self.movers.items()},
            "mean": self.mean.state_dict() if self.mean else None,
            "phase": self.phase.state() if hasattr(self.phase, "state") else None,
        }

    def _resume(self) -> None:
        state = load_state(self.config.folder)
        if state is None:
            self.record.begin(0)
            return
        check_same(self.config, state["config"], self.config.folder)
        for name, player in self.phase.players.items():
            player.load_state_dict(state["players"][name], strict=False)  # what is frozen comes from the start
            self.movers[name].load_state_dict(state["movers"][name])
        if self.mean:
            self.mean.load_state_dict(state["mean"])
        if state["phase"] is not None:
            self.phase.restore(state["phase"])
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.has_saved = True
        self.record.begin(self.step)

    def _started(self) -> Event:
        config = self.config
        return RunStarted(
            phase=config.phase,
            out=config.out,
            step=self.step,
            steps=config.steps,
            max_minutes=config.max_minutes,
            batch=config.batch,
            processes=self.processes.count,
            device=str(self.processes.device),
            dtype=config.dtype,
            parameters={name: sum(p.numel() for p in mover.params) for name, mover in self.movers.items()},
        )

    def _done(self) -> Event:
        return RunDone(self.step, self.seconds, self.skipped, str(self.config.folder / CHECKPOINT))


class _Clock:
    """Seconds of training: those of earlier processes, and of this one."""

    def __init__(self, before: float) -> None:
        self._start = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
