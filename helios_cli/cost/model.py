"""The model of a film, as far as its headers or the table of published models describe it; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helios_cli.architecture import DiTConfig, ModelDefaults, UMT5Config, VAEConfig
from helios_cli.errors import CheckpointError
from helios_cli.weights import hub
from helios_cli.weights.checkpoint import PRESETS, PUBLISHED_SIZE, Checkpoint, Preset, files_of
from helios_cli.weights.names import WEIGHT_BYTES, known_repo
from helios_cli.weights.source import Source, source_of, spoken

if TYPE_CHECKING:
    from helios_cli.weights.low_bit import LowBit

PUBLISHED_PARAMETERS = {"transformer": 14_312_427_584, "text_encoder": 5_680_910_336, "vae": 126_892_531}


@dataclass(frozen=True)
class Model:
    """A model as planning needs it.

    Attributes:
        name: As the user writes it.
        parameters: By component.
        checkpoint: The opened folder, or None for a published model that is not downloaded.
        download_bytes: What is still to be downloaded.
    """

    name: str
    source: Source
    kind: str
    preset: Preset
    native_size: tuple[int, int]
    dit: DiTConfig
    text: UMT5Config
    vae: VAEConfig
    parameters: Mapping[str, int]
    checkpoint: Checkpoint | None = None
    download_bytes: int = 0

    @property
    def defaults(self) -> ModelDefaults:
        return self.preset.defaults(self.native_size)

    @property
    def stages(self) -> int:
        return len(self.preset.steps)

    @property
    def low_bit(self) -> LowBit | None:
        """The kind in which the transformer's files, and memory, hold its blocks."""
        return None if self.checkpoint is None else self.checkpoint.low_bit

    @property
    def trained(self) -> bool:
        return self.checkpoint is None or self.checkpoint.trained


def find_model(name: str, revision: str | None = None) -> Model:
    """Return the model called `name`. Raises CheckpointError if it is damaged, or unknown and not downloaded."""
    source = source_of(name, revision)
    folder = hub.find(source)
    if folder is not None:
        return model_of(name, Checkpoint.open(folder), source)
    known = known_repo(source.repo)
    if known is None:
        raise CheckpointError(
            f"{source.repo} is not downloaded, so its shape is not known",
            hint=f"helios models pull {spoken(source)}",
        )
    return _published(name, source, known.name)


def model_of(name: str, checkpoint: Checkpoint, source: Source | None = None) -> Model:
    """Return the model in an opened folder."""
    configs = checkpoint.architecture
    return Model(
        name=name,
        source=source or Source(folder=checkpoint.path),
        kind=checkpoint.kind,
        preset=checkpoint.preset,
        native_size=checkpoint.native_size,
        dit=configs.dit,
        text=configs.text,
        vae=configs.vae,
        parameters=checkpoint.parameters,
        checkpoint=checkpoint,
    )


def _published(name: str, source: Source, kind: str) -> Model:
    """Return a published model by its configs. A download that was interrupted leaves less to download."""
    zero_star = kind == "mid"
    snapshot = hub.snapshot_of(source)
    here = sum((snapshot / file).stat().st_size for file in files_of(snapshot)) if snapshot else 0
    return Model(
        name=name,
        source=source,
        kind=kind,
        preset=replace(PRESETS[kind], cfg_zero_star=zero_star, zero_init=zero_star),
        native_size=PUBLISHED_SIZE,
        dit=DiTConfig(),
        text=UMT5Config(),
        vae=VAEConfig(),
        parameters=PUBLISHED_PARAMETERS,
        download_bytes=max(0, WEIGHT_BYTES - here),
    )
