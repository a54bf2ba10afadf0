"""What all films of one command share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from helios_cli.batch.jobs import Extras, Job
from helios_cli.console import console
from helios_cli.progress import View
from helios_cli.stop import IsStopped
from helios_cli.weights.placement import NO_WISH, RESIDENT, Wish

if TYPE_CHECKING:
    import torch

    from helios_cli.cost.memory import Budget, Subject
    from helios_cli.device import Device
    from helios_cli.engine.models import Models
    from helios_cli.film.ffmpeg import Encoding
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.plan import Plan
    from helios_cli.recipe.settings import Flags, Settings
    from helios_cli.weights.fp8 import Quant


@dataclass
class Workbench:
    """What all films of one command share: flags, device, and the model that is loaded."""

    flags: Flags
    revision: str | None
    device_name: str
    dtype_name: str
    encoding: Encoding
    view: View
    strict: bool
    reanchor: bool
    use_cache: bool
    keep: bool
    extras: Extras
    quant: Quant = "none"
    attention: str = "auto"
    wish: Wish = NO_WISH
    is_stopped: IsStopped = lambda: False
    loaded: dict[str, Models] = field(default_factory=dict)
    budget: Budget | None = None

    def tell(self, message: str) -> None:
        from helios_cli.engine.events import Notice

        self.view.show(Notice(message))

    def device(self) -> tuple[torch.device, torch.dtype]:
        from helios_cli.device import pick_device, torch_dtype
        from helios_cli.weights.fp8 import dtype_with

        device = pick_device(self.device_name)
        return device, torch_dtype(dtype_with(self.quant, self.dtype_name), device)

    def plan(self, job: Job, models: Models) -> Plan:
        from helios_cli.cost.work import texts_of
        from helios_cli.recipe.plan import plan_film

        plan = plan_film(job.film, self.settings(job.film, models), strict=self.strict)
        self.introduce(models, texts_of(plan))
        return plan

    def settings(self, film: Film, models: Models) -> Settings:
        from helios_cli.recipe.settings import ModelDefaults, resolve

        preset = models.checkpoint.preset
        return resolve(
            film.recipe, self.flags, ModelDefaults(models.checkpoint.native_size, preset.steps, preset.guidance)
        )

    def introduce(self, models: Models, texts: Iterable[str]) -> None:
        """Tell what the model knows, if that is not what `texts` are about."""
        from helios_cli.weights.vocabulary import introduction

        if line := introduction(models.checkpoint, models.name, texts):
            self.tell(line)

    def models(self, name: str) -> Models:
        """The loaded model called `name`; several films share it."""
        if name not in self.loaded:
            for models in self.loaded.values():
                models.unload()  # one model in memory at a time
            self.loaded.clear()
            self.loaded[name] = self._load(name)
        self.loaded[name].use_threads()
        return self.loaded[name]

    def close(self) -> None:
        """Frees the models; what was being read for a chunk that does not come is given up, not waited for."""
        for models in self.loaded.values():
            models.unload()

    def place(self, plans: list[Plan], models: Models, *, lanes: int = 1, prompts_come: bool = False) -> None:
        """Decides where the weights are while films render together. MachineError if that cannot be here.

        Where `prompts_come` while they do, nothing goes for the text encoder if there is room for all at once.
        """
        from helios_cli.cost.memory import mode_of
        from helios_cli.cost.placing import cache_warning, plan_placement, reason
        from helios_cli.cost.transfer import speed_of

        subject = self.subject(plans, models, lanes)
        budget = self._budget(subject.device, models)
        if models.is_loaded:
            for beside in (True, False) if models.placement.mode == "none" else (False,):
                mode = mode_of(subject, budget, replace(models.placement, text_beside=beside))
                if mode.fits:
                    models.place(mode.placement)
                    return
        mode, modes = plan_placement(subject, self.wish, budget)
        if prompts_come and mode.name == "none":
            beside = mode_of(subject, budget, replace(mode.placement, text_beside=True))
            mode = beside if beside.fits else mode
        models.place(mode.placement)
        if mode.name != "none" or not self.wish.is_default:
            self.tell(reason(mode, modes, self.wish, budget, subject))
        if warning := cache_warning(mode, budget, speed_of(subject)):
            self.tell(warning)

    def place_deeper(self, plans: list[Plan], models: Models, *, lanes: int = 1) -> bool:
        """After memory ran out: places the model in less than it was thought to take. Whether that can be done."""
        from helios_cli.cost.memory import mode_of
        from helios_cli.cost.placing import choose_deeper

        if self.wish.offload != "auto":
            return False
        subject = self.subject(plans, models, lanes)
        budget = self._budget(subject.device, models)
        mode = choose_deeper(subject, mode_of(subject, budget, models.placement), budget)
        models.unload()
        if mode is None:
            return False
        models.place(mode.placement)
        self.tell(f"memory ran out; what is not safe is rendered again with --offload {mode.name}")
        return True

    def subject(self, plans: list[Plan], models: Models, lanes: int = 1) -> Subject:
        """The film of `plans` that takes most, so many at a time."""
        from helios_cli.cost.memory import Budget, Subject, mode_of
        from helios_cli.cost.model import opened
        from helios_cli.cost.tokens import count_tokens
        from helios_cli.cost.work import texts_of, work_of
        from helios_cli.device import device_of
        from helios_cli.weights.hub import Source

        model = opened(models.name, Source(folder=models.checkpoint.path), models.checkpoint)
        device, dtype = device_of(models.device), str(models.dtype).removeprefix("torch.")
        subjects = []
        for plan in plans:
            prompts = count_tokens(model, texts_of(plan))
            work = work_of(plan, model, prompts, dtype)
            subjects.append(Subject(plan, model, work, prompts, device, dtype, models.quant, lanes))
        return max(subjects, key=lambda one: mode_of(one, Budget(None, None), RESIDENT).device_bytes)

    def _budget(self, device: Device, models: Models) -> Budget:
        """What the films of this command may take: decided before the first of them is loaded."""
        from helios_cli.cost.placing import allocator_share, budget_notices, budget_of

        if self.budget is None:
            self.budget = budget_of(self.wish, device)
            for notice in budget_notices(self.wish, self.budget):
                self.tell(notice)
            if device.kind == "cuda" and (share := allocator_share(self.wish, device.total_bytes)):
                import torch

                torch.cuda.set_per_process_memory_fraction(share, models.device)
        return self.budget

    def _load(self, name: str) -> Models:
        from helios_cli.cost.auto import auto_model
        from helios_cli.device import device_of
        from helios_cli.engine import arithmetic, trial
        from helios_cli.engine.models import Models
        from helios_cli.recipe.settings import DEFAULT_MODEL
        from helios_cli.weights import hub
        from helios_cli.weights.checkpoint import Checkpoint

        device, dtype = self.device()
        if name == DEFAULT_MODEL:
            name, line = auto_model(device_of(device), str(dtype).removeprefix("torch."), self.wish, quant=self.quant)
            self.tell(line)
        if line := hub.shadow_of(name):
            self.tell(line)
        folder = hub.resolve(name, self.revision, progress=console.progress_bytes)
        checkpoint = Checkpoint.open(folder)
        for line in trial.settle(device):
            self.tell(line)
        again = self.extras.again
        wanted = again.record.attention_taken if again else None
        how = {"quant": self.quant, "attention": self.attention, "attention_wanted": wanted}
        models = Models(checkpoint, device, dtype, name=name, **how)
        for line in arithmetic.settle(models):
            self.tell(line)
        return models
