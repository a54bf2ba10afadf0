"""The diffusers side of a benchmark: its own pipeline, called as its documentation does.

The only module of helios that imports diffusers and transformers, which it does when it measures; both come with the
`dev` extra. Phases are timed around the calls of the pipeline's parts; its frames go through the same encoder as ours,
after the last of them is there, as it hands them out.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from helios_cli import machine
from helios_cli.bench.job import PROMPT, Job, Result, peak_host_bytes, serve
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import describe, random_state
from helios_cli.engine.clock import Clock
from helios_cli.engine.writer import open_writer
from helios_cli.errors import MachineError
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import WEIGHT_STEMS, Checkpoint, Preset

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

REQUIRED = ("diffusers", "transformers", "accelerate")
