"""The weights of the transformer that `helios models convert --dtype int8` and `nf4` round.

All matrices of the blocks are, except for those of a prompt's keys and values, which are needed once a prompt and leave
the device.
Values lie under the weight's own name, float32 scales under that name with SCALE_SUFFIX, as of fp8 (`weights.fp8`);
products are those of the widened weights (`model.low_bit`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from helios_cli.weights.fp8 import LAYERS as FP8_LAYERS

LAYERS = (*FP8_LAYERS, "attn2.to_q", "attn2.to_out.0")

_WEIGHT = re.compile(rf"blocks\.\d+\.({'|'.join(map(re.escape, LAYERS))})\.weight")

LowBit = Literal["int8", "nf4"]

STORED_AS: dict[str, LowBit] = {"I8": "int8", "U8": "nf4"}
"""Kinds by the type of the values in a file."""

BYTES: dict[str, float] = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a weight; those of int8's scales, one a row, are less than 0.1 %."""


def is_low_bit(name: str) -> bool:
    """Return whether the transformer's parameter `name` is a weight that is rounded."""
    return _WEIGHT.fullmatch(name) is not None


def kind_of(dtypes: Iterable[str]) -> LowBit | None:
    """Return the kind in which a transformer with tensors of these stored types is, None for another one."""
    return next((STORED_AS[dtype] for dtype in dtypes if dtype in STORED_AS), None)
