"""Writes checkpoints in the published layout: weights and configs of components, and the files about the whole.

Files are replaced as a whole, so that no reader sees half of one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.files import replacing
from helios_cli.weights.checkpoint import MODEL_INDEX, OWN_FILE, SCHEDULER_CONFIG, SCHEDULERS, WEIGHT_STEMS
from helios_cli.weights.files import INDEX_SUFFIX, read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def write_json(path: Path, value: dict) -> None:
    """Write `value` to `path`; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_weights(folder: Path, name: str, state: dict[str, Tensor], *, shard: str = "") -> None:
    """Write tensors of the component `name` in the checkpoint `folder`, as its only file or as the file `shard`
    (`shard_name`), which an index must list."""
    from safetensors.torch import save_file

    file = folder / name / (shard or f"{WEIGHT_STEMS[name]}.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new:
        save_file(state, new, metadata={"format": "pt"})
        new.chmod(0o644)  # safetensors makes files that only their owner can read


def shard_name(name: str, number: int, count: int) -> str:
    """Return the name of weight file `number` (from 1) of `count` of the component `name`."""
    return f"{WEIGHT_STEMS[name]}-{number:05}-of-{count:05}.safetensors"


def write_index(folder: Path, name: str, weight_map: dict[str, str], size: int) -> None:
    """Write the index of the component `name`: the file of each tensor, and the bytes of all."""
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / name / f"{WEIGHT_STEMS[name]}{INDEX_SUFFIX}", index)


def write_component(
    folder: Path, name: str, module: nn.Module, config: dict | None = None, *, dtype: torch.dtype | None = None
) -> None:
    """Write the parameters of `module` as the component `name` of the checkpoint `folder`, and `config` if given.

    They are stored as `dtype`, or as they are. Removes shards and an index of an earlier component.
    """
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in module.named_parameters()}
    write_weights(folder, name, state)
    stem = WEIGHT_STEMS[name]
    for old in (*(folder / name).glob(f"{stem}-*-of-*.safetensors"), folder / name / f"{stem}{INDEX_SUFFIX}"):
        old.unlink(missing_ok=True)
    if config is not None:
        write_json(folder / name / "config.json", config)


def index_of(kind: str) -> dict:
    """Return `model_index.json` for a kind: base, mid or distilled."""
    return {
        "_class_name": "HeliosPipeline" if kind == "base" else "HeliosPyramidPipeline",
        **({} if kind == "base" else {"is_cfg_zero_star": kind == "mid", "is_distilled": kind == "distilled"}),
        "scheduler": ["diffusers", SCHEDULERS[kind]],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "HeliosTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def set_kind(folder: Path, kind: str, scheduler: dict) -> None:
    """Make `folder` a checkpoint of a kind, with the config of its scheduler."""
    write_json(folder / MODEL_INDEX, index_of(kind))
    write_json(folder / SCHEDULER_CONFIG, scheduler)


def set_own(folder: Path, **values: object) -> None:
    """Set keys of `helios.json`: native_size, trained, knows, words, things, steps. None removes a key."""
    path = folder / OWN_FILE
    own = {**(read_json(path) if path.exists() else {}), **values}
    write_json(path, {key: value for key, value in own.items() if value is not None})


def set_trained(folder: Path, knows: str) -> None:
    """Mark the folder's model as trained, with what it `knows`; removes the words of an earlier model."""
    set_own(folder, trained=True, knows=knows, words=None, things=None)
