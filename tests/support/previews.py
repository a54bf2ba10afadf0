"""Files of preview decoders with random weights, the same on every machine, in the published shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from helios_cli.architecture import TAEHVConfig

GAIN = 3.3
"""The spread of a weight, in units of one over the root of its inputs: pictures neither fade nor saturate."""


def random_weights(config: TAEHVConfig | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the decoder. The last bias puts the pictures into the middle of their range."""
    rng = np.random.default_rng(seed)
    config, weights = config or TAEHVConfig(), {}
    for name, shape in config.shapes().items():
        values = rng.random(shape, dtype=np.float32) - np.float32(0.5)
        spread = GAIN / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.2
        weights[name] = torch.from_numpy(values * np.float32(spread))
    weights[list(weights)[-1]] += 0.5
    return weights


def write(path: Path, *, seed: int = 0, dtype: torch.dtype = torch.float16, **changed: torch.Tensor | None) -> Path:
    """Write a file as the published one is, with the beginning of an encoder. `changed` tensors replace those of the
    decoder; None leaves one out."""
    weights = {name: value.to(dtype) for name, value in random_weights(seed=seed).items()}
    weights["encoder.0.weight"] = torch.zeros(64, 3, 3, 3, dtype=dtype)
    kept = {name: value for name, value in {**weights, **changed}.items() if value is not None}
    save_file(kept, path)
    return path
