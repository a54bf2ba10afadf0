"""Run by test_tune.py in a process of its own: a kernel tuned through Triton's interpreter, by a clock made up here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.update(TRITON_INTERPRET="1", HELIOS_KERNELS="triton")

import torch

from helios_kernels import tuning
from helios_kernels.tuning import Config

FAST = Config(num_warps=1, tile=512)
CANDIDATES = (Config(num_warps=1, tile=2048), FAST, Config(num_warps=1, tile=1000))  # the last: no power of two


def main(file: Path) -> None:
    tuning.use(file)
    before = tuning.config("renoise").tile

    def seconds(call) -> float:
        call()
        return 1.0 if tuning.config("renoise") == FAST else 2.0

    tunable = tuning.Tunable("renoise", "renoise", ("into-stage1",), ("odd",), CANDIDATES)
    (found,) = tuning.tune(seconds, device=torch.device("cpu"), like=tuning.begin(), tunables=(tunable,))
    untouched = tuning.config("renoise").tile
    tuning.keep(found, file)
    print(
        json.dumps(
            {
                "best": str(found.best),
                "refused": found.refused,
                "seconds": [found.before, found.seconds],
                "tiles": [before, untouched, tuning.config("renoise").tile],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
