"""The model that the films of one program share: loaded once, and placed where there is memory for it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from helios_cli import machine
from helios_cli.cost.arithmetic import arithmetic_of, attention_shapes, convolution_shapes, taken_for
from helios_cli.cost.auto import auto_model
from helios_cli.cost.ladder import quant_of
from helios_cli.cost.memory import MemoryBudget, plan_memory
from helios_cli.cost.model import model_of
from helios_cli.cost.placing import (
    allocator_share,
    budget_notices,
    budget_of,
    choose_deeper,
    notices_of,
    plan_placement,
)
from helios_cli.cost.speeds import keep_after, keep_speed
from helios_cli.cost.vae import piece_elements_on
from helios_cli.cost.workload import Workload
from helios_cli.device import Device, device_of, dtype_name, pick_device, pick_vae_device, torch_dtype
from helios_cli.engine import arithmetic, trial
from helios_cli.engine.clock import Clock
from helios_cli.engine.events import FilmDone, Notice
from helios_cli.engine.gpu import require_quant
from helios_cli.engine.models import Models
from helios_cli.engine.preview import Preview
from helios_cli.engine.ranks import Ranks
from helios_cli.engine.script import Planned, Script
from helios_cli.engine.teams import devices_of
from helios_cli.errors import Interrupted, MachineError
from helios_cli.film.after import After
from helios_cli.film.stream import StreamWriter
from helios_cli.film.writer import FilmWriter
from helios_cli.recipe.film import Film
from helios_cli.recipe.fingerprint import Identity
from helios_cli.recipe.lora import choose_loras
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.settings import DEFAULT_MODEL, Settings, choose_model, resolve_settings
from helios_cli.units import counted
from helios_cli.weights import hub
from helios_cli.weights.adapters import fold
from helios_cli.weights.checkpoint import Checkpoint, weights_identity
from helios_cli.weights.fp8 import dtype_with
from helios_cli.weights.placement import RESIDENT
from helios_cli.weights.preview import PreviewFile
from helios_cli.weights.source import shadow_of
from helios_cli.weights.vocabulary import introduction

if TYPE_CHECKING:
    from helios_cli.model.dit import Call

LOADED_BY = (
    *("revision", "device", "vae_device", "dtype", "vram", "speed", "quant", "attention"),
    *("gpus_per_film", "worker_timeout"),
)
"""The fields of `RenderOptions`, apart from LoRA files and `attention_taken`, for which a model is opened anew."""

Writer = TypeVar("Writer", FilmWriter, StreamWriter)


class Session:
    """Loads the model that a film asks for, places it, and makes its calls; films that follow use it again.

    A session prints nothing: `notices` returns what the user should know. Close it, or use it as a context manager.

    Args:
        is_stopped: whether the user has stopped the program; asked after each step of a film.
        progress: shows the progress of a download.
        share: number of sessions, in processes of their own, that share the host's memory and cores.

    Attributes:
        chunks_beside: how many chunks are decoded at a time while the next one is denoised; None leaves it to device
            and placement.
        keeps_speed: whether the speed of its films says something about this machine.
    """

    chunks_beside: int | None = None
    keeps_speed = True

    def __init__(
        self,
        *,
        is_stopped: Callable[[], bool] = lambda: False,
        progress: hub.Progress | None = None,
        share: int = 1,
    ) -> None:
        self.is_stopped, self.progress, self._share = is_stopped, progress, share
        self._models: Models | None = None
        self._loaded: tuple[object, ...] = ()  # the options that the models were loaded for
        self._budget: MemoryBudget | None = None
        self._placed_for: tuple[object, ...] = ()  # the options that the budget and the placement follow
        self._notices: list[Notice] = []
        self._begun: dict[FilmWriter | StreamWriter, tuple[str, Script]] = {}  # films that are being written
        self._preview: Preview | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def models(self) -> Models:
        """The model that was loaded last."""
        assert self._models is not None, "load comes first"
        return self._models

    def note(self, message: str) -> None:
        self._notices.append(Notice(message))

    def notices(self) -> list[Notice]:
        """Return the notices since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def load(self, film: Film, options: RenderOptions) -> Iterator[Notice]:
        """Open the model of the film, unless it is open already; its weights are read when they are needed.

        Yields notices as they come: a download or a trial of kernels takes minutes. Raises CheckpointError for missing
        or damaged files, MachineError for a device that cannot be used.
        """
        name, _ = choose_model(film.recipe, options)
        loras, _ = choose_loras(film, options)
        yield from self.open(name, replace(options, lora=loras))
        if preview := self.preview(options):
            yield from map(Notice, preview.file.doubts(self.models.vae_config, self.models.name))

    def open(self, name: str, options: RenderOptions) -> Iterator[Notice]:
        """Open the model called `name`, as `load` does."""
        taken = tuple(sorted(options.attention_taken.items()))
        wanted = (name, options.lora or (), taken, *(getattr(options, key) for key in LOADED_BY))
        if self._models is None or wanted != self._loaded:
            self.close()  # one model in memory at a time
            yield from self._open(name, options)
            self._loaded = wanted
        self.models.use_threads()

    def _open(self, name: str, options: RenderOptions) -> Iterator[Notice]:
        device = pick_device(options.device)
        vae_device = pick_vae_device(options.vae_device, device)
        ranks = devices_of(device, options.gpus_per_film)
        quant = quant_of(options, device_of(device))
        if options.quant is None:
            try:
                require_quant(quant, device)
            except MachineError as error:  # which a plan cannot know
                yield Notice(f"--speed {options.speed} does without fp8; {error.message}")
                quant = "none"
        dtype = torch_dtype(dtype_with(quant, options.dtype), device)
        if name == DEFAULT_MODEL:
            second = device_of(vae_device) if vae_device != device else None
            name, line = auto_model(device_of(device), dtype_name(dtype), options, second)
            yield Notice(line)
        checkpoint = yield from self._checkpoint(name, options)
        if options.quant is None and checkpoint.low_bit:
            quant = "none"  # its weights are rounded already
        yield from map(Notice, trial.settle(device))
        threads = machine.cpu_threads(checkpoint.component("transformer").parameters)
        threads = max(1, threads // options.gpus_per_film)  # ranks on a CPU share its cores
        models = Models(
            checkpoint,
            device,
            dtype,
            name=name,
            vae_device=vae_device,
            quant=quant,
            attention=options.attention,
            attention_wanted=options.attention_taken,
            piece_elements=piece_elements_on(device_of(vae_device), options.vram),
            threads=threads,
            processes=self._share,
        )
        if len(ranks) > 1:
            models.ranks = Ranks(ranks, models, options.worker_timeout)
        yield from map(Notice, arithmetic.settle(models))
        self._models = models

    def _checkpoint(self, name: str, options: RenderOptions) -> Generator[Notice, None, Checkpoint]:
        """Find or download a model and its LoRA files, and return it with them folded in."""
        if shadow := shadow_of(name):
            yield Notice(shadow)
        folder = hub.resolve(name, options.revision, progress=self.progress)
        files = [(hub.lora_file(lora.path, progress=self.progress), lora.weight) for lora in options.lora or ()]
        checkpoint, lines = fold(Checkpoint.open(folder), files)
        yield from map(Notice, lines)
        return checkpoint

    def preview(self, options: RenderOptions) -> Preview | None:
        """Return the decoder that `options` name in place of the VAE; films that follow use it again. CheckpointError
        for a file that is none."""
        path, models = options.preview_decoder, self.models
        if path is None:
            return None
        file, where = PreviewFile.open(path), (models.vae_device, models.vae_dtype)
        known = self._preview
        if known is None or (known.file, known.device, known.dtype) != (file, *where):
            self._preview = known = Preview(file, *where)
        return known

    def close(self) -> None:
        """Free the model. Reading ahead for a chunk that will not come is cancelled."""
        self._preview = None
        if self._models is not None:
            self._models.close()
            self._models = None
        self._begun.clear()

    def settings(self, film: Film, options: RenderOptions) -> Settings:
        """The values that the film is planned with. InputError for those that the model cannot do."""
        return resolve_settings(film.recipe, options, self.models.checkpoint.defaults)

    def plan(self, film: Film, options: RenderOptions) -> Plan:
        """The film as chunks. InputError for everything that stands against it."""
        settings = self.settings(film, options)
        plan = plan_film(film, settings, strict=options.strict)
        self.introduce(plan.texts)
        for notice in plan.notices:
            self.note(notice)
        return plan

    def introduce(self, texts: Sequence[str]) -> None:
        """Note what the model can show, if `texts` are about something else."""
        if line := introduction(self.models.checkpoint, self.models.name, texts):
            self.note(line)

    def identity(self, size: tuple[int, int], guidance: float) -> Identity:
        """Return what decides the pixels of films of this size and guidance, measured where it has to be."""
        models = self.models
        team = models.team(guidance)
        choices = models.choices
        choices.settle(size, team.size)
        dtype = dtype_name(models.dtype)
        shapes = attention_shapes(models.dit_config, size, models.scheduler.stages, dtype, team.size, models.quant)
        taken = taken_for(shapes, choices.attention_taken)
        convolutions = convolution_shapes(models.vae_config, size, dtype_name(models.vae_dtype))
        rounding = arithmetic_of(
            device_of(models.device),
            dtype,
            taken,
            quant=models.quant,
            attention=models.attention,
            fast_sums=choices.fast_sums,
            vae_device=self._vae_device(),
            team=team.size,
            decoders=models.decoders(size, guidance),
            piece_elements=models.piece_elements,
            convolutions=taken_for(convolutions, choices.convolutions.taken),
            latents=dtype_name(models.latent_dtype),
        )
        return Identity(weights_identity(models.checkpoint), rounding, taken)

    def place(self, plans: Sequence[Plan], options: RenderOptions, *, prompts_come: bool = False) -> None:
        """Decide where the weights are while these films render together. MachineError if they fit nowhere.

        Where `prompts_come` during the film, nothing makes room for the text encoder if there is memory for all parts.
        """
        models = self.models
        for notice in dict.fromkeys(notice for plan in plans if (notice := models.team(plan.guidance).notice)):
            self.note(notice)
        memory = (options.device, options.vae_device, options.offload, options.vram, options.ram)
        if memory != self._placed_for:
            models.unload()  # what is free is measured without it
            self._budget, self._placed_for = None, memory
        load = self._workload(plans, options)
        budget = self._find_budget(load, options)
        if models.is_loaded:
            for beside in (True, False) if models.placement.mode == "none" else (False,):
                mode = plan_memory(load, budget, replace(models.placement, text_beside=beside))
                if mode.fits:
                    models.place(mode.placement)
                    return
        try:
            mode, modes = plan_placement(load, options, budget)
        except MachineError as error:
            if self._share > 1:
                error.hint = f"start fewer workers: {self._share} share this machine's memory; or {error.hint}"
            raise
        if prompts_come and mode.name == "none":
            roomier = plan_memory(load, budget, replace(mode.placement, text_beside=True))
            mode = roomier if roomier.fits else mode
        models.place(mode.placement)
        for notice in notices_of(mode, modes, options, budget, load):
            self.note(notice)

    def place_deeper(self, plans: Sequence[Plan], options: RenderOptions) -> bool:
        """After memory ran out, place the model in less of it. False if there is no way, or the user chose this one."""
        if options.offload != "auto":
            return False
        models, load = self.models, self._workload(plans, options)
        budget = self._find_budget(load, options)
        mode = choose_deeper(load, plan_memory(load, budget, models.placement), budget)
        models.unload()
        if mode is None:
            return False
        models.place(mode.placement)
        self.note(f"memory ran out; the rest is rendered with --offload {mode.name}")
        return True

    def _workload(self, plans: Sequence[Plan], options: RenderOptions) -> Workload:
        """Return the film that takes the most memory, with as many lanes as there are films."""
        models, preview = self.models, self.preview(options)
        model = model_of(models.name, models.checkpoint)
        how = device_of(models.device), dtype_name(models.dtype), models.quant
        beside = self._vae_device(), preview.file if preview else None
        films = (Workload.of(plan, model, options, *how, len(plans), *beside) for plan in plans)
        loads = [replace(film, processes=self._share) for film in films]
        return max(loads, key=lambda load: plan_memory(load, MemoryBudget(), RESIDENT).device_bytes)

    def _vae_device(self) -> Device | None:
        """Describe the device that the VAE and the text encoder have for themselves; None if they have none."""
        return device_of(self.models.vae_device) if self.models.is_apart else None

    def _find_budget(self, load: Workload, options: RenderOptions) -> MemoryBudget:
        """The memory that films may take: decided before the first model is loaded."""
        if self._budget is None:
            budget = budget_of(options, load.device, load.vae_device)
            if self._share > 1 and budget.host_bytes is not None:
                budget = budget._replace(host_bytes=budget.host_bytes // self._share)
            self._budget = budget
            for notice in budget_notices(options, self._budget):
                self.note(notice)
            for device in self.models.devices:
                total = (device_of(device).total_bytes or 0) if device.type == "cuda" else 0
                if total and (share := allocator_share(options.vram, total)):
                    torch.cuda.set_per_process_memory_fraction(share, device)
                    if self.models.ranks is not None:
                        self.models.ranks.share = share
        return self._budget

    def answer(self, calls: Sequence[Call]) -> list[Tensor]:
        """The flows of model calls that do not depend on each other."""
        return self.models.answer(calls)

    def clock(self) -> Clock:
        return Clock(self.models.device)

    @contextmanager
    def writing(self, writer: Writer, output: str, script: Script) -> Iterator[Writer]:
        """While the block runs, count this film among those that `stopped` reports; an interruption leaves it there."""
        self._begun[writer] = output, script
        try:
            yield writer
        except Exception:
            del self._begun[writer]
            raise
        del self._begun[writer]

    def require_not_stopped(self) -> None:
        """Raise KeyboardInterrupt if the user stopped the program: Python loses one that is raised in a destructor."""
        if self.is_stopped():
            raise KeyboardInterrupt

    def keep_speed(
        self,
        script: Script,
        options: RenderOptions,
        done: FilmDone,
        chunk_seconds: Sequence[float],
        after: After | None,
    ) -> None:
        """Remember how fast a film was, and what came `after` it, for the plans of later ones, if that says something
        about this machine.

        A preview does not: the VAE's speed is remembered."""
        if not self.keeps_speed:
            return
        if after is not None:
            keep_after(after, script.plan.num_frames, done.phases["after"])
        models = self.models
        is_whole = models.placement.mode == "none" and not models.is_apart and models.ranks is None
        is_whole = is_whole and options.preview_decoder is None
        if isinstance(script, Planned) and not done.frames_reused and is_whole:
            keep_speed(self._workload([script.plan], options), done.phases, chunk_seconds)

    def stopped(self) -> Interrupted:
        """The error of a command that is interrupted: how much of its films is safe."""
        safe = [
            f"{writer.safe_chunks} of the {counted(len(script.plan.chunks), 'chunk')} of {output}"
            for writer, (output, script) in self._begun.items()
        ]
        what = f"stopped: {' and '.join(safe)} are safe" if safe else "stopped before a chunk was begun"
        if any(isinstance(writer, StreamWriter) for writer in self._begun):
            hint = "the same command begins the stream again, with the chunks that are kept"
            return Interrupted(what, hint=hint)
        return Interrupted(what, hint="run the same command again to continue from there")
