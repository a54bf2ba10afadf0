"""A live film of many hours, with a viewer who sees every frame as soon as it is out: does memory grow?

    python tests/soak_live.py --hours 6 [--every 10] [--fps 24] [--words 5]

The embedded model renders 64x64 pixels, a new prompt comes every few seconds of film (with --words 100 encoded prompts
reach their limit after two hours and a half at 2 frames a second, and the oldest go). Resident memory, encoded prompts,
threads and open files are printed for each half hour of film. The first hour warms up. It fails if memory then grows by
more than entries of plan, journal and recipe take for each chunk and short prompt, the encoded prompts that may stay,
and a little slack; or if more of those stay.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from helios_cli.engine.events import ChunkDone, FilmDone
from helios_cli.engine.models import PROMPTS_KEPT
from helios_cli.engine.session import Session
from helios_cli.film.jobs import find_jobs
from helios_cli.live.film import LiveJob, LiveSetup, film_to_be, render_live
from helios_cli.live.recipe_file import RecipeFile
from helios_cli.live.script import PromptDefaults
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.schema import Shot
from helios_cli.units import FRAMES_PER_CHUNK

WARM_SECONDS = 1800
BYTES_PER_CHUNK, BYTES_PER_PROMPT, SLACK_BYTES = 1500, 8000, 10_000_000
COLOURS, SHAPES = ("red", "blue", "green", "yellow", "white"), ("ball", "square", "star", "triangle")


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def prompt(number: int, words: int = 5) -> Shot:
    things = [f"a {COLOURS[(number + n) % 5]} {SHAPES[(number + n // 5) % 4]}" for n in range(max(1, words // 3))]
    text = f"{', '.join(things)}, scene {number}"
    return Shot(prompt=text, transition=("blend", "switch", "cut")[number % 3], seconds=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=6)
    parser.add_argument("--every", type=float, default=10, help="seconds of film between prompts")
    parser.add_argument("--fps", type=float, default=24, help="fewer make fewer chunks of the same time")
    parser.add_argument("--words", type=int, default=5, help="words of a prompt")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        grown, allowed = soak(Path(folder), asked.hours * 3600, asked.every, asked.fps, asked.words)
    print(f"memory grew by {grown / 1e6:.1f} MB after the first hour; up to {allowed / 1e6:.1f} MB are allowed")
    sys.exit(grown > allowed)


def soak(folder: Path, seconds: float, every: float, fps: float, words: int) -> tuple[int, int]:
    """Render the film, and return the bytes by which memory grew after the first hour, and how many it may."""
    options = RenderOptions.parse(
        **{"model": "tiny", "size": "64x64", "steps": "1,1,1", "preset": "ultrafast", "crf": 40, "cache": False},
        **{"output": str(folder / "film.mp4"), "fps": fps},
    )
    setup = LiveSetup.of(fps, 3.0, PromptDefaults("blend", 1.0), print)
    door, feed = setup.lines.door("the soak"), setup.feed
    feed.listen(lambda: setup.playhead.report("viewer", feed.num_frames / fps))
    first = prompt(0, words)
    (job,) = find_jobs([], options, [film_to_be(folder / "film.toml", first)], is_live=True)
    recipe = RecipeFile(folder / "film.toml", "helios render film.toml")
    began, prompts, marks = time.monotonic(), 1, []
    print("film h, wall min, chunks, RSS MB, prompts taken, rows kept, MB of rows, threads, files, recipe KB")
    with Session() as session:
        live = LiveJob(job, recipe, first)
        for event in render_live(live, lambda: None, setup, session):
            if not isinstance(event, ChunkDone):
                if isinstance(event, FilmDone):
                    print(f"wrote {event.frames} frames, {event.frames / fps / 3600:.2f} h")
                continue
            played = event.frames / fps
            if played >= seconds:
                door.close()
            elif played >= prompts * every:
                door.put(prompt(prompts, words))
                prompts += 1
            if played // WARM_SECONDS > (event.frames - FRAMES_PER_CHUNK) / fps // WARM_SECONDS:
                rows = [one.rows.nbytes for one in session.models.prompts.values()]
                assert sum(rows) <= PROMPTS_KEPT + 2 * max(rows)  # two prompts are in use
                marks.append((event.chunk + 1, resident_bytes(), prompts, sum(rows)))
                print(
                    f"{played / 3600:.1f}, {(time.monotonic() - began) / 60:.1f}, {event.chunk + 1}, "
                    f"{marks[-1][1] / 1e6:.0f}, {prompts}, {len(rows)}, "
                    f"{sum(rows) / 1e6:.2f}, {threading.active_count()}, "
                    f"{len(os.listdir('/proc/self/fd'))}, {recipe.path.stat().st_size / 1e3:.0f}",
                    flush=True,
                )
    (begin, before, few, kept), (end, after, many, _) = marks[1], marks[-1]
    entries = (end - begin) * BYTES_PER_CHUNK + (many - few) * BYTES_PER_PROMPT
    return after - before, entries + PROMPTS_KEPT - kept + SLACK_BYTES


if __name__ == "__main__":
    main()
