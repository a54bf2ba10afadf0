"""Opens a Helios checkpoint in the published diffusers layout: its kind, sampling preset, configs and tensors.

Only its JSON files and the headers of its weights are read, which takes milliseconds and no torch.

    model_index.json            the pipeline: base, mid or distilled
    helios.json                 ours, optional: native size, whether it is trained, what it knows, its steps
    scheduler/ text_encoder/ tokenizer/ transformer/ vae/
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_cli.architecture import MAX_STAGES, ModelDefaults
from helios_cli.errors import CheckpointError, MachineError
from helios_cli.files import sha256_of
from helios_cli.weights.client import COMMIT
from helios_cli.weights.files import (
    INDEX_SUFFIX,
    TensorInfo,
    read_json,
    read_tensors,
    require_file,
    shown,
    weight_files,
)
from helios_cli.weights.fit import Architecture, read_architecture
from helios_cli.weights.fp8 import Quant, is_scale
from helios_cli.weights.low_bit import kind_of
from helios_cli.weights.tokenizer import MAX_TOKENIZER_BYTES

if TYPE_CHECKING:
    from helios_cli.weights.adapters import Adapter, Term
    from helios_cli.weights.low_bit import LowBit

PUBLISHED_SIZE = (640, 384)
"""The width and height in pixels of the published models' training."""

MAX_SIDE, MAX_STEPS, MAX_KNOWS = 4096, 1000, 500
"""The limits in `helios.json`: pixels of a side, steps of a stage, characters of what the model knows."""

MODEL_INDEX = "model_index.json"
OWN_FILE = "helios.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
TOKENIZER = "tokenizer/tokenizer.json"

WEIGHT_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}
"""The components with weights, and the beginning of their files' names."""

COMPONENT_CLASSES = {
    "transformer": "HeliosTransformer3DModel",
    "text_encoder": "UMT5EncoderModel",
    "vae": "AutoencoderKLWan",
}


@dataclass(frozen=True)
class Preset:
    """The default sampling of a kind. `steps` are the solver steps of each stage."""

    steps: tuple[int, ...]
    guidance: float
    amplify_first_chunk: bool = False
    cfg_zero_star: bool = False
    zero_init: bool = False
    zero_steps: int = 1
    """With `zero_init` the flow of steps 0 to `zero_steps` (inclusive) of the first stage is zero."""

    def defaults(self, size: tuple[int, int]) -> ModelDefaults:
        """Return the settings of a model whose native size is `size`."""
        return ModelDefaults(size, self.steps, self.guidance)


PRESETS = {
    "base": Preset(steps=(50,), guidance=5.0),
    "mid": Preset(steps=(20, 20, 20), guidance=5.0),
    "distilled": Preset(steps=(2, 2, 2), guidance=1.0, amplify_first_chunk=True),
}
"""The presets of the published models. A pyramid of another height takes the last count for all of its stages."""

PYRAMID_STAGES = 3
"""The stages of a pyramid whose scheduler config does not have `stages`."""

SCHEDULERS = {"base": "HeliosScheduler", "mid": "HeliosScheduler", "distilled": "HeliosDMDScheduler"}


@dataclass(frozen=True)
class Component:
    """A sub-model: its folder, its config as written, and its tensors by stored name.

    `terms` are what LoRA files add to tensors (`adapters.fold`)."""

    name: str
    folder: Path
    config: dict
    tensors: dict[str, TensorInfo]
    terms: Mapping[str, tuple[Term, ...]] = field(default_factory=dict)

    @cached_property
    def bytes(self) -> int:
        """The size of the stored tensors."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @cached_property
    def parameters(self) -> int:
        """The number of parameters of the network, without the scales of weights in 8 or 4 bits."""
        return sum(
            tensor.elements * (2 if tensor.dtype == "U8" else 1)  # two in a byte (`weights.low_bit`)
            for name, tensor in self.tensors.items()
            if not is_scale(name)
        )

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The stored types, the one with the most bytes first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
        return tuple(sorted(sizes, key=lambda dtype: -sizes[dtype]))


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint folder.

    Attributes:
        kind: base, mid or distilled.
        native_size: Width and height in pixels.
        knows: The end of the sentence "it knows ..."; empty if the model can show anything.
        words: The words of its training in lower case; empty if they are not listed.
        things: The nouns among them, of which the model can show one at a time.
        adapters: LoRA files that are folded into the transformer as it is read (`adapters.fold`).
    """

    path: Path
    kind: str
    preset: Preset
    native_size: tuple[int, int]
    trained: bool
    knows: str
    words: tuple[str, ...]
    things: tuple[str, ...]
    scheduler: dict
    components: dict[str, Component]
    adapters: tuple[Adapter, ...] = ()

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Read the JSON files and weight headers in `path`.

        Raises CheckpointError, naming the file, for anything missing, damaged or of an unknown kind.
        """
        path = Path(path)
        _require_checkpoint_folder(path)
        index = read_json(path / MODEL_INDEX)
        scheduler = read_json(path / SCHEDULER_CONFIG)
        kind = _kind(path, index, scheduler)
        own = _OwnFile.read(path / OWN_FILE)
        _require_tokenizer(path)
        for name in files_of(path):
            if name.endswith(".json"):  # all are hashed, and copied by `models convert`
                require_file(path / name, MAX_TOKENIZER_BYTES)
        opened = cls(
            path=path,
            kind=kind,
            preset=_preset(path, kind, index, scheduler, own),
            native_size=own.native_size,
            trained=own.trained,
            knows=own.knows,
            words=own.words,
            things=own.things,
            scheduler=scheduler,
            components={name: _component(path / name, stem) for name, stem in WEIGHT_STEMS.items()},
        )
        _ = opened.architecture  # raises for one that is not supported
        return opened

    @cached_property
    def architecture(self) -> Architecture:
        """The configs, checked against each other and the headers of the weights."""
        return read_architecture(self.components, (str(self.path / SCHEDULER_CONFIG), self.scheduler))

    @property
    def defaults(self) -> ModelDefaults:
        return self.preset.defaults(self.native_size)

    def component(self, name: str) -> Component:
        """Return the `transformer`, `text_encoder` or `vae`."""
        return self.components[name]

    @property
    def parameters(self) -> dict[str, int]:
        """The parameters of each component."""
        return {name: part.parameters for name, part in self.components.items()}

    @property
    def low_bit(self) -> LowBit | None:
        """The kind in which the transformer's blocks are stored if that is one of few bits."""
        return kind_of(self.component("transformer").dtypes)

    def require_rounded_once(self, name: str, quant: Quant) -> None:
        """Raise MachineError for weights in few bits that `quant` or LoRA files would have rounded again."""
        if not self.low_bit or (quant == "none" and not self.adapters):
            return
        what = f"--quant {quant}" if quant != "none" else "--lora"
        raise MachineError(
            f"{what}: the weights of {name} are stored in {self.low_bit}, and are not rounded twice",
            hint="use a copy in bfloat16, or name it to `helios models convert`",
        )

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    @property
    def stages(self) -> int:
        """The stages of a chunk; 1 for Base."""
        return len(self.preset.steps)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the JSON files and of the tensors' names, types, shapes and places.

        It is cheap but does not depend on the tensors' values, for which there is `weights_identity`.
        """
        digest = hashlib.sha256()
        for name in files_of(self.path):
            if name.endswith(".json"):
                digest.update(f"{name}\0".encode())
                digest.update(hashlib.sha256((self.path / name).read_bytes()).digest())
        for name, component in self.components.items():
            for key, tensor in sorted(component.tensors.items()):
                place = (name, key, tensor.file.name, tensor.dtype, tensor.shape, tensor.begin, tensor.end)
                digest.update(repr(place).encode())
        return digest.hexdigest()


READ_WHOLE = 64 * 2**20
"""The largest checkpoint, in bytes, that is hashed. The one in the package takes 0.05 s."""


def weights_identity(checkpoint: Checkpoint) -> str:
    """Return a digest that is equal for equal weights and configuration only, without reading large weights.

    The tensors' values are identified by the commit of a Hub snapshot, in a small folder by their hash, and in a large
    one by each file's size and time of change, so a copy of it counts as another model. LoRA files are identified by
    their hash, in the order in which they are added.
    """
    digest = hashlib.sha256(checkpoint.fingerprint().encode())
    files = sorted({tensor.file for part in checkpoint.components.values() for tensor in part.tensors.values()})
    folder = checkpoint.path.absolute()
    in_cache = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    commit = folder.name if in_cache and COMMIT.fullmatch(folder.name) else None
    is_small = sum(file.stat().st_size for file in files) <= READ_WHOLE
    for file in files:
        digest.update(f"{file.relative_to(checkpoint.path).as_posix()}\0".encode())
        digest.update((commit or _state(file, is_small)).encode())
    for adapter in checkpoint.adapters:
        digest.update(f"lora {adapter.digest} {adapter.weight!r}\0".encode())
    return digest.hexdigest()


def _state(file: Path, is_small: bool) -> str:
    if is_small:
        return sha256_of(file)
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class _OwnFile:
    """The values of `helios.json`, all optional."""

    native_size: tuple[int, int] = PUBLISHED_SIZE
    trained: bool = True
    knows: str = ""
    words: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    steps: tuple[int, ...] | None = None

    @classmethod
    def read(cls, path: Path) -> _OwnFile:
        if not path.exists():
            return cls()
        values = read_json(path)
        valid = {
            "native_size": lambda value: _counts(value, MAX_SIDE) and len(value) == 2,
            "trained": lambda value: isinstance(value, bool),
            "knows": lambda value: isinstance(value, str) and len(value) <= MAX_KNOWS,
            "words": _are_words,
            "things": _are_words,
            "steps": lambda value: _counts(value, MAX_STEPS) and len(value) <= MAX_STAGES,
        }
        for key, value in values.items():
            if key not in valid:
                raise CheckpointError(f"{path}: unknown key {shown(key)}", hint=f"known keys: {', '.join(valid)}")
            if not valid[key](value):
                raise CheckpointError(f"{path}: {key} cannot be {shown(value)}")
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in values.items()}
        return cls(**fields)


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and len(item) <= MAX_KNOWS for item in value)


def _counts(value: object, most: int) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and 1 <= item <= most for item in value)


def _require_checkpoint_folder(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, not a checkpoint folder",
            hint=f"a model is the folder that holds {MODEL_INDEX}, scheduler/, transformer/, text_encoder/, vae/",
        )
    if (path / MODEL_INDEX).exists():
        return
    if not any(path.iterdir()):
        raise CheckpointError(
            f"{path} is empty", hint=f"run: helios models pull distilled, or name a folder with {MODEL_INDEX}"
        )
    if (path / "config.json").exists():
        name = read_json(path / "config.json").get("_class_name", "a model")
        raise CheckpointError(
            f"{path} is one component ({name if isinstance(name, str) else shown(name)}), not a whole checkpoint",
            hint=f"name the folder above it, which holds {MODEL_INDEX}",
        )
    raise CheckpointError(
        f"{path} has no {MODEL_INDEX}, so it is not a checkpoint in the diffusers layout",
        hint="save the pipeline with save_pretrained, or use: helios models pull distilled",
    )


def _kind(path: Path, index: dict, scheduler: dict) -> str:
    pipeline = index.get("_class_name")
    if pipeline == "HeliosPipeline":
        kind = "base"
    elif pipeline == "HeliosPyramidPipeline":
        kind = "distilled" if index.get("is_distilled") else "mid"
    else:
        raise CheckpointError(
            f"{path / MODEL_INDEX} names the pipeline {shown(pipeline)}",
            hint="helios runs HeliosPipeline (base) and HeliosPyramidPipeline (mid, distilled)",
        )
    name = scheduler.get("_class_name")
    if name != SCHEDULERS[kind]:
        raise CheckpointError(
            f"{path / SCHEDULER_CONFIG} names the scheduler {shown(name)}; a {kind} model needs {SCHEDULERS[kind]}",
            hint=f"is_distilled in {MODEL_INDEX} decides between the two" if kind != "base" else None,
        )
    return kind


def _preset(path: Path, kind: str, index: dict, scheduler: dict, own: _OwnFile) -> Preset:
    preset = PRESETS[kind]
    stages = scheduler.get("stages", PYRAMID_STAGES)
    most = 1 if kind == "base" else MAX_STAGES
    if not _counts([stages], most):
        raise CheckpointError(f"{path / SCHEDULER_CONFIG}: stages of a {kind} model cannot be {shown(stages)}")
    steps = own.steps or (preset.steps[-1],) * stages
    if len(steps) != stages:
        raise CheckpointError(f"{path / OWN_FILE}: `steps` has {len(steps)} counts, but the model has {stages} stages")
    zero_star = kind == "mid" and bool(index.get("is_cfg_zero_star"))
    return replace(preset, steps=steps, cfg_zero_star=zero_star, zero_init=zero_star)


def _require_tokenizer(path: Path) -> None:
    tokenizer = path / TOKENIZER
    if tokenizer.exists():
        return
    if (tokenizer.parent / "spiece.model").exists():
        raise CheckpointError(
            f"{tokenizer} is missing; there is only spiece.model, which helios does not read",
            hint=f"write it with: AutoTokenizer.from_pretrained({str(tokenizer.parent)!r}).save_pretrained(...)",
        )
    raise CheckpointError(f"{tokenizer} is missing")


def _component(folder: Path, stem: str) -> Component:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: a checkpoint has {', '.join(WEIGHT_STEMS)}")
    config = read_json(folder / "config.json")
    expected = COMPONENT_CLASSES[folder.name]
    names = config.get("architectures")
    name = config.get("_class_name") or (names[0] if isinstance(names, list) and names else names)
    if name != expected:
        raise CheckpointError(f"{folder / 'config.json'} is a {shown(name)}; helios needs {expected} there")
    return Component(folder.name, folder, config, read_tensors(folder, stem))


def needed_files(names: Iterable[str]) -> list[str]:
    """Return the file names of a repository that make the checkpoint: JSON files, and one set of weights per component.

    Training phases (`transformer_init/`, `transformer_ode/`), other precisions, pickles and pictures are left out.
    """
    names = set(names)
    patterns = [re.escape(name) for name in (MODEL_INDEX, OWN_FILE, SCHEDULER_CONFIG)] + [r"tokenizer/\w[\w.-]*\.json"]
    for name, stem in WEIGHT_STEMS.items():
        index = f"{name}/{stem}{INDEX_SUFFIX}"
        weights = r"-\d+-of-\d+\.safetensors" if index in names else r"\.safetensors"
        patterns += [f"{name}/config\\.json", re.escape(index), f"{name}/{stem}{weights}"]
    needed = re.compile("|".join(patterns))
    return sorted(name for name in names if needed.fullmatch(name))


def files_of(path: Path) -> list[str]:
    """Return the `needed_files` of a local folder, like `transformer/config.json`. A dangling link is not a file."""
    folders = (path, *(path / name for name in (*WEIGHT_STEMS, "scheduler", "tokenizer")))
    files = (file for folder in folders for file in folder.glob("*") if file.is_file())
    return needed_files(file.relative_to(path).as_posix() for file in files)


def missing_files(path: Path) -> list[str]:
    """Return the names of missing files, as after an interrupted download."""
    configs = [f"{name}/config.json" for name in WEIGHT_STEMS]
    missing = [name for name in (MODEL_INDEX, SCHEDULER_CONFIG, TOKENIZER, *configs) if not (path / name).is_file()]
    for name, stem in WEIGHT_STEMS.items():
        try:
            shards = weight_files(path / name, stem)
        except CheckpointError:
            missing.append(f"{name}/{stem}.safetensors")
        else:
            missing += [f"{name}/{shard.name}" for shard in shards if not shard.is_file()]
    return missing
