"""Makes the golden frames of the preview decoder: `python tests/golden/make_taehv.py REFERENCE COMMIT`.

REFERENCE is the file taehv.py of https://github.com/madebyollin/taehv at that commit, whose code is not part of this
tree; it imports tqdm. Its decoder gets the random weights of `support.previews` and decodes a chunk, in float32.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from support.previews import random_weights  # noqa: E402

FRAMES = ROOT / "tests" / "golden" / "taehv.npy"
SOURCE = "https://github.com/madebyollin/taehv"


def latents() -> torch.Tensor:
    """The latents that are decoded, [1, 16, 9, 2, 3]; some values are beyond the network's limit."""
    values = np.random.default_rng(1).random((1, 16, 9, 2, 3), dtype=np.float32)
    return torch.from_numpy((values - np.float32(0.5)) * 8)


def write(reference: Path, commit: str) -> None:
    spec = importlib.util.spec_from_file_location("reference", reference)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = module.TAEHV(None)  # without a file: the shapes of Wan 2.1
    unread = theirs.load_state_dict(random_weights(), strict=False)
    assert not unread.unexpected_keys and all(name.startswith("encoder.") for name in unread.missing_keys)
    with torch.no_grad():
        frames = theirs.decode_video(latents().movedim(1, 2), parallel=True, show_progress_bar=False)
    np.save(FRAMES, frames.numpy())
    made = {
        "made_by": f"{SOURCE}, float32, `python tests/golden/make_taehv.py taehv.py {commit}`",
        "commit": commit,
        "sha256": hashlib.sha256(reference.read_bytes()).hexdigest(),
        "versions": {"torch": torch.__version__},
        "weights": "tests/support/previews.py, seed 0",
        "frames": "[1, 33, 3, 16, 24] in [0, 1]",
    }
    FRAMES.with_suffix(".json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2])
