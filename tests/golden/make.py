"""Makes the goldens that the package and the tests hold: `python tests/golden/make.py` in the root of the tree.

Pictures and latents are diffusers' in float32, so that what is compared with them is compared with somebody else's
arithmetic. Digests are of our own float32: of every bit that a film's latents and frames have, where the libraries are
held to instructions that all x86 processors of the last ten years have.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from helios_cli import machine  # noqa: E402
from helios_cli.bench import selftest  # noqa: E402
from helios_cli.film.writer import open_writer  # noqa: E402
from helios_cli.recipe.fingerprint import NUMERICS_VERSION  # noqa: E402
from helios_cli.weights.names import EMBEDDED_FOLDER  # noqa: E402
from support.renders import Case, smooth_frames  # noqa: E402

LATENTS = ROOT / "tests" / "golden" / "latents.npy"
FILM_LATENTS = LATENTS.with_name("films.npz")
DIGESTS = LATENTS.with_name("digests.json")

CHUNKS = 2
"""Chunks of the film whose latents are kept. Only the last chunk's latents are kept: they depend on all chunks
before."""

PLAIN = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
}


FILMS = {
    "distilled": Case("distilled", (128, 64), (1, 1, 1), chunks=3),
    "mid": Case("mid", (128, 64), (2, 2, 2), chunks=2),
    "base": Case("base", (64, 64), (3,), chunks=2),
    "distilled from a picture": Case("distilled", (64, 64), (1, 1, 1), chunks=2, image=Path("start.png")),
    "base from a clip": Case("base", (64, 64), (2,), chunks=2, video=Path("clip.mkv")),
}
"""The films of random checkpoints (`support.checkpoints`) whose latents and some frames are kept."""

SHOWN = (0, 40, 64)
"""The frames that are kept of a film."""


def case_in(folder: Path, name: str) -> Case:
    """One of FILMS, with the picture or clip that it starts from written to `folder`."""
    case = FILMS[name]
    if case.image:
        Image.fromarray(smooth_frames(1, case.size, 3)[0]).save(folder / case.image)
        return replace(case, image=folder / case.image)
    if case.video:
        with open_writer(folder / case.video, size=case.size, fps=24) as writer:
            writer.write(smooth_frames(70, case.size, 5))
        return replace(case, video=folder / case.video)
    return case


def their_film(name: str, pipelines, folder: Path) -> tuple[torch.Tensor, np.ndarray]:
    """One of FILMS as diffusers makes it: the latents of its chunks, and the frames that are SHOWN."""
    from support import oracle

    case = case_in(folder, name)
    start = {}
    if case.image:
        start["image"] = Image.open(case.image)
    if case.video:
        start["video"] = [Image.fromarray(frame) for frame in smooth_frames(70, case.size, 5)]
    latents, frames = oracle.reference_both(case, pipelines(case.kind), **start)
    return latents[:, :, -9 * case.chunks :], frames[list(SHOWN)]  # those of the start come first


def kept(name: str) -> dict[str, np.ndarray]:
    """The golden `latents` and `frames` of one of FILMS."""
    with np.load(FILM_LATENTS) as arrays:
        return {part: arrays[f"{name}: {part}"] for part in ("latents", "frames")}


def write_films(provenance: dict) -> None:
    import tempfile

    from support import checkpoints, oracle

    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in FILMS.items():
            model = checkpoints.write(Path(folder, name), case.kind)
            latents, frames = their_film(name, lambda kind, model=model: oracle.load(model), Path(folder))
            arrays |= {f"{name}: latents": latents.numpy(), f"{name}: frames": frames}
    np.savez_compressed(FILM_LATENTS, **arrays)
    films = {name: asdict(case) for name, case in FILMS.items()}
    described = {**provenance, "checkpoints": "tests/support/checkpoints.py, seed 0", "frames": SHOWN, "films": films}
    FILM_LATENTS.with_suffix(".json").write_text(json.dumps(described, indent=2, default=str) + "\n")


def golden_film(chunks: int) -> tuple[torch.Tensor, np.ndarray]:
    """The golden film as diffusers makes it: latents, and frames, uint8 [frames, height, width, 3]."""

    from support import oracle

    golden = selftest.provenance()
    case = Case("distilled", (128, 64), (1, 1, 1), chunks, golden["prompt"], seed=golden["seed"])
    return oracle.reference_both(case, oracle.load(EMBEDDED_FOLDER))


def plain_film(folder: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Our golden film by a process that is held to PLAIN: the last chunk's latents, and digests of all."""
    command = [sys.executable, __file__, "film", str(folder / "latents.npy")]
    done = subprocess.run(command, env={**os.environ, **PLAIN}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "latents.npy"), json.loads(done.stdout)


def film(file: str) -> None:
    from helios_cli.bench.screening import Showing, films
    from helios_cli.engine.history import History
    from helios_cli.engine.models import Models
    from helios_cli.weights.checkpoint import Checkpoint

    latents, remember = [], History.remember

    def noting(self, chunk, **how):
        latents.append(chunk.numpy().copy())
        return remember(self, chunk, **how)

    History.remember = noting
    golden = selftest.provenance()
    models = Models(Checkpoint.open(EMBEDDED_FOLDER), torch.device("cpu"), torch.float32)
    (frames,) = films(models, [golden["prompt"]], 33 * CHUNKS, Showing(seed=golden["seed"]))
    np.save(file, latents[-1])
    parts = {"latents": np.concatenate(latents), "frames": frames}
    print(json.dumps({name: hashlib.sha256(part.tobytes()).hexdigest() for name, part in parts.items()}))


def processor() -> str:
    """Return the name that digests are stored under: on another processor, bits may differ for good reasons."""
    cpu = machine.cpu()
    return ", ".join((cpu.model, *cpu.features, f"torch {torch.__version__}"))


def write() -> None:
    import tempfile

    versions = {name: metadata.version(name) for name in ("diffusers", "transformers", "torch")}
    made = {"made_by": "diffusers, float32, `python tests/golden/make.py`", "versions": versions}
    selftest.PROVENANCE.write_text(json.dumps({**selftest.provenance(), **made}, indent=2) + "\n")
    Image.fromarray(selftest.sheet(selftest.chosen(golden_film(selftest.CHUNKS)[1]))).save(
        selftest.PICTURES, optimize=True
    )
    write_films(made)
    np.save(LATENTS, golden_film(CHUNKS)[0][:, :, -9:].numpy())
    known = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {"numerics": None}
    digests = known["digests"] if known["numerics"] == NUMERICS_VERSION else {}
    with tempfile.TemporaryDirectory() as folder:
        digests[processor()] = plain_film(Path(folder))[1]
    told = {**made, "held_to": PLAIN, "numerics": NUMERICS_VERSION, "digests": digests}
    DIGESTS.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    film(sys.argv[2]) if sys.argv[1:2] == ["film"] else write()
