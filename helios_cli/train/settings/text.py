"""Settings of the phase that trains the text encoder."""

from __future__ import annotations

from typing import Literal

from helios_cli.train.config import Config, Optimizer, Table


class Data(Table):
    """Where captions come from: the training part of the toy world."""

    world: Literal["plain", "rich"] = "plain"


class Settings(Config):
    batch: int = 32
    dtype: Literal["bfloat16", "float32"] = "float32"
    optimizer: Optimizer = Optimizer(lr=3e-3, warmup=20, decay=0.5)
    data: Data = Data()
