"""The model that a film would be rendered with, as far as its headers, or the table of published models, tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from helios_cli.cost.shapes import DiTShape, TextShape, VAEShape
from helios_cli.errors import CheckpointError
from helios_cli.recipe.settings import DEFAULT_MODEL, ModelDefaults
from helios_cli.weights import hub
from helios_cli.weights.checkpoint import PRESETS, PUBLISHED_SIZE, Checkpoint, Preset, files_of
from helios_cli.weights.names import WEIGHT_BYTES, known_repo

PUBLISHED_PARAMETERS = {"transformer": 14_312_427_584, "text_encoder": 5_680_910_336, "vae": 126_892_531}


@dataclass(frozen=True)
class Model:
    """What planning needs of a model.

    Attributes:
        name: what the user calls it.
        parameters: by component.
        checkpoint: the opened folder, or None if the model is published and not downloaded.
        download_bytes: what is still to be fetched.
    """

    name: str
    source: hub.Source
    kind: str
    preset: Preset
    native_size: tuple[int, int]
    dit: DiTShape
    text: TextShape
    vae: VAEShape
    parameters: Mapping[str, int]
    checkpoint: Checkpoint | None
    download_bytes: int

    @property
    def defaults(self) -> ModelDefaults:
        return ModelDefaults(self.native_size, self.preset.steps, self.preset.guidance)

    @property
    def stages(self) -> int:
        return len(self.preset.steps)

    @property
    def trained(self) -> bool:
        return self.checkpoint is None or self.checkpoint.trained


def find_model(name: str, revision: str | None = None) -> Model:
    """The model called `name`, nothing being downloaded.

    CheckpointError if it is damaged, or unknown and not here, so that there is nothing to plan with.
    """
    source = hub.source_of(name, revision)
    folder = hub.find(source)
    if folder is not None:
        return opened(name, source, Checkpoint.open(folder))
    known = known_repo(source.repo)
    if known is None:
        raise CheckpointError(
            f"{source.repo} is not downloaded, so its shape is not known",
            hint=f"helios models pull {hub.spoken(source)}",
        )
    return _published(name, source, known.name)


def is_auto(name: str) -> bool:
    return name == DEFAULT_MODEL


def opened(name: str, source: hub.Source, checkpoint: Checkpoint) -> Model:
    """The model in an opened folder."""
    configs = {component: part.config for component, part in checkpoint.components.items()}
    return Model(
        name=name,
        source=source,
        kind=checkpoint.kind,
        preset=checkpoint.preset,
        native_size=checkpoint.native_size,
        dit=DiTShape.from_json(configs["transformer"]),
        text=TextShape.from_json(configs["text_encoder"]),
        vae=VAEShape.from_json(configs["vae"]),
        parameters={key: part.parameters for key, part in checkpoint.components.items()},
        checkpoint=checkpoint,
        download_bytes=0,
    )


def _published(name: str, source: hub.Source, kind: str) -> Model:
    """A known model by its published shape; files of a download that broke off are taken off what is to come."""
    preset = PRESETS[kind]
    zero_star = kind == "mid"
    snapshot = hub.snapshot_of(source)
    here = sum((snapshot / file).stat().st_size for file in files_of(snapshot)) if snapshot else 0
    return Model(
        name=name,
        source=source,
        kind=kind,
        preset=replace(preset, cfg_zero_star=zero_star, zero_init=zero_star),
        native_size=PUBLISHED_SIZE,
        dit=DiTShape(),
        text=TextShape(),
        vae=VAEShape(),
        parameters=PUBLISHED_PARAMETERS,
        checkpoint=None,
        download_bytes=max(0, WEIGHT_BYTES - here),
    )
