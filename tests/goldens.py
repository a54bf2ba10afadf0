"""Makes the goldens again that the package and the tests hold: `python tests/goldens.py` in the root of the tree.

Pictures are diffusers' in float32, so that `helios doctor --test` compares with somebody else's arithmetic.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]


def golden_frames():
    """The golden film as diffusers makes it, uint8 [frames, height, width, 3]."""
    import diffusers
    import oracle
    import torch

    from helios_cli.bench import selftest
    from helios_cli.weights.names import EMBEDDED_FOLDER

    pipeline = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    golden = selftest.read_golden()
    case = oracle.Case("distilled", (128, 64), (1, 1, 1), selftest.CHUNKS, golden.prompt, seed=golden.seed)
    return oracle.reference(case, pipeline)


def write_pictures() -> None:
    from PIL import Image

    from helios_cli.bench import selftest

    told = json.loads(selftest.PROVENANCE.read_text())
    versions = {name: metadata.version(name) for name in ("diffusers", "transformers", "torch")}
    told |= {"made_by": "diffusers, float32, `python tests/goldens.py`", "versions": versions}
    told |= {"processor": platform.processor() or platform.machine()}
    selftest.PROVENANCE.write_text(json.dumps(told, indent=2) + "\n")
    Image.fromarray(selftest.sheet(selftest.chosen(golden_frames()))).save(selftest.PICTURES, optimize=True)


if __name__ == "__main__":
    write_pictures()
