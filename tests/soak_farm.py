"""Kill farms until it hurts: `python tests/soak_farm.py --kills 50`.

Films with cuts are rendered by `helios render --workers 2`, or by two `helios render --share` at once. Workers and
drivers are killed at random moments and at random events, by SIGKILL, by SIGSTOP with SIGKILL after it, by SIGINT and
by SIGTERM; drivers that ended are started again until all of them exit with 0. Then each film is compared with a render
of it by one process that nothing disturbed, and nothing else may be left: no files, no temporary files, no processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from support.reruns import PROMPTS, decoded

HELIOS = [sys.executable, "-m", "helios_cli", "render"]
HOW = ["--model", "tiny", "--dtype", "float32"]

SUFFIXES = (".mp4", ".mkv", "")
"""Films of each kind, the last a folder of pictures."""

WAYS = ("SIGKILL", "SIGSTOP, SIGKILL", "SIGINT", "SIGTERM")

ENDS = {0, 130, 143, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM}
"""The ways in which a driver may end. It also fails where its workers were killed so often that it gave up a film."""

LONGEST_RUN = 300.0
"""Seconds of a run after which it counts as hung."""

LONGEST_END = 40.0
"""Seconds in which workers end by themselves after their driver was killed, and then a margin."""


def write_recipe(path: Path, draw: random.Random) -> None:
    """Write a film of 2 to 4 shots of 1 to 3 chunks, most of which begin with a cut."""
    lines = ['size = "64x64"', "steps = [1, 1, 1]", f"seed = {draw.randint(1, 999)}"]
    for shot in range(draw.randint(2, 4)):
        lines += ["[[shot]]", f'prompt = "{draw.choice(PROMPTS)}"', f"seconds = {draw.uniform(0.5, 4):.2f}"]
        if shot and draw.random() < 0.8:
            lines += ['transition = "cut"']
    path.write_text("\n".join(["version = 1", *lines]) + "\n")


@dataclass
class Driver:
    """A `helios render` that is running, and what it has said."""

    process: subprocess.Popen[str]
    began: float = field(default_factory=time.monotonic)
    events: list[dict] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    kills: int = 0

    @classmethod
    def start(cls, command: list[str], environment: dict[str, str]) -> Driver:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        driver = cls(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
        for stream, keep in (
            (driver.process.stdout, lambda line: driver.events.append(json.loads(line))),
            (driver.process.stderr, driver.errors.append),
        ):
            threading.Thread(target=_read, args=(stream, keep), daemon=True).start()
        return driver

    def workers(self) -> list[int]:
        """The worker processes that it has."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return [int(pid) for pid in children if b"helios_cli.farm.worker" in _command_of(int(pid))]
        return []


def _read(stream, keep) -> None:
    for line in stream:
        with contextlib.suppress(ValueError):  # the line that a killed process was writing
            keep(line)


def _command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Soak:
    """Rounds of films in `folder`, with kills until there are enough."""

    def __init__(self, folder: Path, draw: random.Random, kills: int) -> None:
        self.folder, self.draw, self.kills = folder, draw, kills
        self.count: Counter[str] = Counter()
        self.faults: list[str] = []
        self.whole: dict[tuple[Path, str], np.ndarray] = {}
        (folder / "tmp").mkdir()
        self.environment = {**os.environ, "HELIOS_HOME": f"{folder}/home", "TMPDIR": f"{folder}/tmp"}
        self.environment |= {"OMP_NUM_THREADS": "1"}

    def make_films(self, number: int) -> None:
        """Write the films, and render each undisturbed by one process."""
        for index in range(number):
            recipe = self.folder / f"film{index}.toml"
            write_recipe(recipe, self.draw)
            for suffix in SUFFIXES:
                whole = self.folder / f"whole{index}{suffix}"
                command = [*HELIOS, str(recipe), "-o", str(whole), *HOW, "--no-cache", "--quiet"]
                subprocess.run(command, env=self.environment, check=True)
                self.whole[recipe, suffix] = decoded(whole)

    def round(self) -> None:
        """Render some of the films, disturbed, and look at what is there."""
        recipes = sorted({recipe for recipe, _ in self.whole})
        films = self.draw.sample(recipes, self.draw.randint(1, min(3, len(recipes))))
        out = self.folder / "out"
        out.mkdir()
        shares = self.draw.random() < 0.5
        options = ["--share"] if shares else ["--workers", "2"]
        if self.draw.random() < 0.5:
            options.append("--no-cache")
        places = {recipe: out / f"{recipe.stem}.mp4" for recipe in films}
        if len(films) == 1:
            places[films[0]] = out / f"{films[0].stem}{self.draw.choice(SUFFIXES)}"
        output = f"{out}/" if len(films) > 1 else str(places[films[0]])
        command = [*HELIOS, *map(str, films), "-o", output, *HOW, *options, "--json"]
        self.count["rounds with --share" if shares else "rounds with --workers 2"] += 1
        self.drive(command, 2 if shares else 1)
        self.look(places, out)
        shutil.rmtree(out)
        shutil.rmtree(self.folder / "home", ignore_errors=True)

    def drive(self, command: list[str], number: int) -> None:
        """Run the command in so many processes, kill some, and start those again that failed until none does."""
        drivers = [Driver.start(command, self.environment) for _ in range(number)]
        try:
            while drivers:
                if self.count["kills"] < self.kills and self.draw.random() < 0.8:
                    self.kill(drivers)
                else:
                    time.sleep(0.2)
                drivers = [after for driver in drivers if (after := self.after(driver, command))]
        finally:
            for driver in drivers:
                driver.process.terminate()

    def after(self, driver: Driver, command: list[str]) -> Driver | None:
        """Return the driver while it runs, a new one if it has failed, None after its success."""
        status = driver.process.poll()
        if status is None:
            if time.monotonic() - driver.began > LONGEST_RUN:
                os.killpg(driver.process.pid, signal.SIGABRT)
                self.give_up(f"hung for {LONGEST_RUN:.0f} s", driver)
            return driver
        self.count["runs"] += 1
        if status == 0:
            return None
        if status == 2 and driver.errors and driver.errors[0].endswith(" exists\n"):
            self.count["runs that found the only film finished"] += 1
            return None
        self.count[f"runs that ended with {status}"] += 1
        if status not in ENDS and not driver.kills:
            self.give_up(f"ended with {status} without a kill", driver)
        return Driver.start(command, self.environment)

    def give_up(self, what: str, driver: Driver) -> None:
        events = "\n".join(json.dumps(event) for event in driver.events[-15:])
        sys.exit(f"a run {what}; its last words:\n{events}\n{''.join(driver.errors[-40:])}")

    def kill(self, drivers: list[Driver]) -> None:
        """Kill a driver or a worker, after a random time or a random number of events."""
        driver = self.draw.choice(drivers)
        if self.draw.random() < 0.3:
            time.sleep(self.draw.uniform(0, 6))
        else:
            self.wait_for_events(driver, self.draw.randint(1, 40))
        victims = driver.workers() if self.draw.random() < 0.5 else [driver.process.pid]
        if driver.process.poll() is not None or not victims:
            return
        pid, way = self.draw.choice(victims), self.draw.choice(WAYS)
        try:
            if "SIGSTOP" in way:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.draw.uniform(0, 3))
            os.kill(pid, getattr(signal, way.rpartition(" ")[2]))
        except ProcessLookupError:
            return
        driver.kills += 1
        self.count["kills"] += 1
        self.count[f"kills by {way}"] += 1
        self.count["kills of drivers" if pid == driver.process.pid else "kills of workers"] += 1
        if pid == driver.process.pid:
            driver.process.wait(LONGEST_RUN)

    def wait_for_events(self, driver: Driver, more: int) -> None:
        wanted, end = len(driver.events) + more, time.monotonic() + 20
        while len(driver.events) < wanted and driver.process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)

    def look(self, places: dict[Path, Path], out: Path) -> None:
        """Compare the films with those that nothing disturbed, and note whatever else there is."""
        expected = set()
        for recipe, film in places.items():
            expected |= {film.name, f"{recipe.stem}.json"}
            self.count["films"] += 1
            frames, whole = decoded(film), self.whole[recipe, film.suffix]
            same = frames.shape == whole.shape
            differing = int((frames != whole).any(axis=1).sum()) if same else len(whole)
            self.count["frames"] += len(whole)
            self.count["differing frames"] += differing
            if differing:
                self.faults.append(f"{differing} of {len(whole)} frames of {film} differ ({len(frames)} are there)")
        left = sorted({path.name for path in out.iterdir()} ^ expected)
        self.left_over("files left over, or missing", left)
        end = time.monotonic() + LONGEST_END
        while self.processes() and time.monotonic() < end:
            time.sleep(0.2)
        self.left_over("processes left over", [f"{pid} {_command_of(pid)[-200:]!r}" for pid in self.processes()])
        self.left_over("temporary files left over", sorted(path.name for path in (self.folder / "tmp").iterdir()))
        for path in (self.folder / "tmp").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def left_over(self, what: str, found: list[str]) -> None:
        self.count[what] += len(found)
        self.faults += [f"{what}: {one}" for one in found]

    def processes(self) -> list[int]:
        """The processes that were started with this soak's HELIOS_HOME, whoever started them."""
        mark, found = f"HELIOS_HOME={self.folder}/home\0".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found


def soak(kills: int, seed: int, films: int) -> tuple[Counter[str], list[str]]:
    """Kill so often; return the counts, and what is wrong."""
    with tempfile.TemporaryDirectory(prefix="helios-soak-") as folder:
        one = Soak(Path(folder), random.Random(seed), kills)
        one.make_films(films)
        while one.count["kills"] < kills:
            one.round()
        return one.count, one.faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--films", type=int, default=6)
    asked = parser.parse_args()
    began = time.monotonic()
    count, faults = soak(asked.kills, asked.seed, asked.films)
    for key in sorted(count):
        print(f"{key}: {count[key]}")
    print(f"seconds: {time.monotonic() - began:.0f}")
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main()
