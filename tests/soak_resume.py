"""Kill renders until it hurts: `python tests/soak_resume.py --kills 100`. Not a test of the suite; run by hand.

Random films are rendered by child processes which are killed by SIGKILL, at random moments or at a random step that
makes something last (half of those with the write torn), and run again until they are finished. Every film is then
compared with a render of it that nothing disturbed and that knew no cache.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.models import Models
from helios_cli.film.cache import Cache
from helios_cli.film.target import Target
from helios_cli.film.writer import open_writer
from support import checkpoints
from support.renders import models_of
from support.reruns import PROMPTS, KillAt, decoded, in_child, plan, run


def random_film(draw: random.Random):
    """2 to 6 chunks with cuts, changes of prompt and trimmed chunks."""
    parts = []
    for index in range(draw.randint(2, 6)):
        cut = index == 0 or draw.random() < 0.3
        if cut and parts and draw.random() < 0.5:
            parts[-1] = (parts[-1][0], draw.randint(1, 33), parts[-1][2])
        parts.append((draw.choice(PROMPTS), 33, draw.randint(1, 3) if cut else None))
    parts[-1] = (parts[-1][0], draw.randint(1, 33), parts[-1][2])
    return plan(*parts)


def soak(film, models: Models, out: str, cache: Cache | None, draw: random.Random, count: Counter) -> np.ndarray:
    """One film, killed now and then, as it stands at the end."""
    while True:
        began = time.monotonic()
        status = disturbed(film, models, out, cache, draw, count)
        count["runs"] += 1
        if status == 0:
            return decoded(Path(out))
        if status != -signal.SIGKILL or time.monotonic() - began > 60:
            sys.exit(f"a run of {out} ended with {status} after {time.monotonic() - began:.0f} s")
        count["kills"] += 1
        journal = Target.of(out).journal
        count["kills with chunks safe"] += journal.exists() and b'"chunk"' in journal.read_bytes()


def disturbed(film, models: Models, out: str, cache: Cache | None, draw: random.Random, count: Counter) -> int:
    """One run that is killed, if it is not finished before. Returns its status."""
    if draw.random() < 0.5:
        step, torn = draw.randint(1, 8 + 5 * len(film.chunks)), draw.random() < 0.5
        status = in_child(lambda: (KillAt(step, torn=torn), run(film, models, out, cache)))
        count["kills at a step"] += status != 0
    else:
        seconds = 0.12 * len(film.chunks) + 0.1  # what one run takes, about
        status = in_child(lambda: run(film, models, out, cache), kill_after=draw.uniform(0, 1.2 * seconds))
        count["kills at a random moment"] += status != 0
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, count = random.Random(asked.seed), Counter()
    folder = Path(tempfile.mkdtemp(prefix="helios-soak-"))
    checkpoints.write(folder / "checkpoint", "distilled")
    models = models_of(folder / "checkpoint")
    models.encode(PROMPTS)
    shared = Cache(folder / "cache", limit=3_000_000)
    began = time.monotonic()
    while count["kills"] < asked.kills:
        film, suffix = random_film(draw), draw.choice([".mp4", ".mp4", ".mkv", "/"])
        cache = shared if draw.random() < 0.5 else None
        name = f"{folder}/film{count['films']}"
        frames = soak(film, models, f"{name}{suffix}", cache, draw, count)
        for _ in render_chunks(film, models, open_writer(f"{name}-whole{suffix}", size=film.size, fps=film.fps)):
            pass
        whole = decoded(Path(f"{name}-whole{suffix}"))
        count["films"] += 1
        count["frames"] += len(whole)
        same = frames.shape == whole.shape
        count["differing frames"] += int((frames != whole).any(axis=1).sum()) if same else len(whole)
        for path in folder.glob("film*"):
            count["files left over"] += path.suffix not in (".mp4", ".mkv", "") or ".partial" in path.name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    count["resumes"] = count["runs"] - count["films"]
    for key in sorted(count):
        print(f"{key}: {count[key]}")
    print(f"seconds: {time.monotonic() - began:.0f}")
    shutil.rmtree(folder)
    sys.exit(bool(count["differing frames"]))


if __name__ == "__main__":
    main()
