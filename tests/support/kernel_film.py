"""Run by test_model.py in a process of its own: a small film's latents and frames, with kernels and without, to a file.

kernel_film.py OUT none|fp8 float32|bfloat16 CHUNKS
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from interpreter import quicken, round_to_nearest

from helios_cli.bench.fidelity import film
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import RandomModels
from helios_cli.bench.task import plan_of
from helios_cli.model import attention
from helios_cli.recipe.settings import ModelDefaults
from helios_cli.units import FRAMES_PER_CHUNK

round_to_nearest()
quicken()
attention.onednn_runs = lambda x: False  # a matter of CPUs, where kernels do not run by themselves

tiny = SPECS["tiny"]
spec = replace(tiny, transformer={**tiny.transformer, "num_layers": 2}, native_size=(64, 64))
defaults = ModelDefaults(spec.native_size, (1, 1, 1), 1.0)
plan = plan_of(defaults, frames=int(sys.argv[4]) * FRAMES_PER_CHUNK, seed=0)
films = {}
for kernels in ("reference", "triton"):
    os.environ["HELIOS_KERNELS"] = kernels
    torch.manual_seed(0)
    models = RandomModels(spec, torch.device("cpu"), getattr(torch, sys.argv[3]), name="small", quant=sys.argv[2])
    films[kernels] = film(models, plan)
torch.save(films, Path(sys.argv[1]))
