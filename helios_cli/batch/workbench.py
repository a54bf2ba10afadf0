"""What all films of one command share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helios_cli.batch.jobs import Extras, Job
from helios_cli.console import console
from helios_cli.progress import View

if TYPE_CHECKING:
    import torch

    from helios_cli.engine.ffmpeg import Encoding
    from helios_cli.engine.models import Models
    from helios_cli.recipe.plan import Plan
    from helios_cli.recipe.settings import Flags
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
    loaded: dict[str, Models] = field(default_factory=dict)

    def tell(self, message: str) -> None:
        from helios_cli.engine.events import Notice

        self.view.show(Notice(message))

    def device(self) -> tuple[torch.device, torch.dtype]:
        from helios_cli import machine
        from helios_cli.weights.fp8 import dtype_with

        device = machine.pick_device(self.device_name)
        return device, machine.pick_dtype(dtype_with(self.quant, self.dtype_name), device)[0]

    def plan(self, job: Job, models: Models) -> Plan:
        from helios_cli.recipe.plan import plan_film
        from helios_cli.recipe.settings import ModelDefaults, resolve

        checkpoint = models.checkpoint
        defaults = ModelDefaults(checkpoint.native_size, checkpoint.preset.steps, checkpoint.preset.guidance)
        return plan_film(job.film, resolve(job.film.recipe, self.flags, defaults), strict=self.strict)

    def models(self, name: str) -> Models:
        """The loaded model called `name`; several films share it."""
        if name not in self.loaded:
            self.loaded.clear()  # one model in memory at a time
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    def _load(self, name: str) -> Models:
        from helios_cli.engine import preflight
        from helios_cli.engine.models import Models
        from helios_cli.recipe.settings import DEFAULT_MODEL
        from helios_cli.weights import hub
        from helios_cli.weights.checkpoint import Checkpoint

        device, dtype = self.device()
        if name == DEFAULT_MODEL:
            name, line = preflight.auto_model(device, dtype)
            self.tell(line)
        folder = hub.resolve(name, self.revision, progress=console.progress_bytes)
        checkpoint = Checkpoint.open(folder)
        if checkpoint.knows:
            self.tell(f"{name} {'' if checkpoint.trained else 'is untrained; it '}knows {checkpoint.knows}")
        preflight.require_memory(checkpoint, device, dtype)
        return Models(checkpoint, device, dtype, name=name, quant=self.quant, attention=self.attention)
