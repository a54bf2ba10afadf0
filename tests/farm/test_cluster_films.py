"""Films by workers in a Ray cluster equal those of one process, whatever the cluster loses on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import helios_cli as helios
from helios_cli.engine.events import ChunkDone, ChunksReused, Event, FilmDone, SegmentStarted, WorkerLost
from helios_cli.farm.cluster import ClusterPool
from support.ray_nodes import descendants, ray_nodes, without_folder
from support.reruns import decoded
from support.waiting import LONGEST, alive, wait_for_safe_chunk, wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

SIZE = (64, 64)
HOW = {"model": "tiny", "dtype": "float32", "cache": False}
RECIPE = """
version = 1
size = "64x64"
steps = [1, 1, 1]
[[shot]]
image = "start.png"
prompt = "a white star moves to the right at night"
seconds = 8.2
[[shot]]
prompt = "a red ball rolls to the left"
seconds = 9.6
transition = "cut"
seed = 3
[[shot]]
prompt = "a blue square moves up over hills"
seconds = 2
transition = "cut"
[[shot]]
prompt = "a red ball rolls to the left"
seconds = 0.7
"""
"""Four shots and two cuts: segments of 6, 7 and 2 chunks."""


def write_film(folder: Path) -> Path:
    """Write a recipe that begins with a picture, in a folder of its own."""
    folder.mkdir()
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[20:40, 10:30] = 255
    Image.fromarray(picture).save(folder / "start.png")
    (folder / "film.toml").write_text(RECIPE)
    return folder / "film.toml"


@pytest.fixture
def film(with_ray, tmp_path) -> Path:
    return write_film(tmp_path / "films")


@pytest.fixture(scope="session")
def whole(once, tmp_path_factory) -> np.ndarray:
    """The frames of the film as one process renders them."""

    def make() -> str:
        film = write_film(tmp_path_factory.mktemp("whole") / "films")
        for _ in helios.render(film, output=film.with_suffix(".mp4"), **HOW):
            pass
        return str(film.with_suffix(".mp4"))

    return decoded(Path(once("film of one process for clusters", make)), SIZE)


def kinds(events: list[Event], kind: type[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def left(film: Path) -> set[str]:
    """The files in the film's folder except those that were there."""
    return {path.name for path in film.parent.iterdir()} - {"film.toml", "start.png"}


def test_a_private_ray(film, whole):
    out = film.with_name("film.mp4")
    events = list(helios.render(film, output=out, cluster="local", workers=2, **HOW))
    assert len({event.worker.name for event in kinds(events, SegmentStarted)}) == 2
    assert len(kinds(events, ChunkDone)) == 15 and isinstance(events[-1], FilmDone)
    assert np.array_equal(decoded(out, SIZE), whole)
    assert left(film) == {"film.mp4", "film.json"}


def test_a_node_that_is_lost_in_the_middle(film, whole):
    """The other node's worker continues its segment after the last safe chunk."""
    out, events, lost = film.with_name("film.mp4"), [], False
    with ray_nodes({"num_cpus": 1}, {"num_cpus": 1}) as nodes, nodes.entered():
        for event in helios.render(film, output=out, cluster=nodes.address, **HOW):
            events.append(event)
            if not lost and len({chunk.worker.name for chunk in kinds(events, ChunkDone)}) == 2:
                nodes.do("lose 1")
                lost = True
    assert [event.reason for event in kinds(events, WorkerLost)] == ["its node was lost"]
    assert np.array_equal(decoded(out, SIZE), whole)
    assert left(film) == {"film.mp4", "film.json"}


def test_nodes_that_do_not_see_the_film_s_folder(film, whole):
    """The picture goes to the workers, finished chunks come back, and a segment that loses its node continues with
    the chunks that had come."""
    out, events, lost = film.with_name("film.mp4"), [], ""
    hidden = without_folder(film.parent)
    blind = mock.patch.object(ClusterPool, "sees", lambda *_: False)  # where the system allows no mounts
    with ray_nodes({"num_cpus": 1}, {"num_cpus": 1}, command=hidden) as nodes, nodes.entered():
        if not hidden:
            blind.start()
        for event in helios.render(film, output=out, cluster=nodes.address, **HOW):
            events.append(event)
            if not lost and isinstance(event, ChunkDone):
                lost = event.worker.name
                os.kill(event.pid, signal.SIGKILL)
                nodes.do("add")
        if not hidden:
            blind.stop()
    assert [event.worker.name for event in kinds(events, WorkerLost)] == [lost]
    assert len(kinds(events, ChunkDone)) == 15
    assert np.array_equal(decoded(out, SIZE), whole)
    assert left(film) == {"film.mp4", "film.json"}


def test_a_head_that_is_lost_and_the_same_command_again(film, whole):
    """The worker stands still: left alone, it could finish the film before the loss is certain."""
    out, still = film.with_name("film.mp4"), 0
    with ray_nodes({"num_cpus": 1}) as nodes, nodes.entered():
        with pytest.raises(helios.errors.MachineError, match="its head does not answer") as error:
            for event in helios.render(film, output=out, cluster=nodes.address, **HOW):
                if isinstance(event, ChunkDone) and not still:
                    still = event.pid
                    wait_for_safe_chunk(film.with_name("film.mp4.parts"))
                    os.kill(still, signal.SIGSTOP)
                    nodes.do("lose head")
        assert "run the same command again" in error.value.hint
        os.kill(still, signal.SIGKILL)
    events = list(helios.render(film, output=out, cluster="local", workers=2, **HOW))
    assert kinds(events, ChunksReused)
    assert np.array_equal(decoded(out, SIZE), whole)
    assert left(film) == {"film.mp4", "film.json"}


def test_a_command_that_is_stopped_or_killed_leaves_no_process_and_continues(film, whole):
    command = [sys.executable, "-m", "helios_cli", "render", str(film), "-m", "tiny", "--no-cache", "--json"]
    command += ["--dtype", "float32", "--cluster", "local", "--workers", "2", "-o", str(film.with_name("film.mp4"))]
    pieces = film.with_name("film.mp4.parts").glob
    for stop in (signal.SIGINT, signal.SIGKILL):
        before = len(list(pieces("chunks/*/*.piece")))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        events, pids = set(), set()
        for line in process.stdout:
            event = json.loads(line)
            events.add(event["event"])
            if "pid" in event:
                pids.add(event["pid"])
            if event["event"] == "chunk_done" and len(pids) == 2 and (not before or "chunks_reused" in events):
                break
        wait_until(lambda before=before: len(list(pieces("chunks/*/*.piece"))) > before)
        process.send_signal(stop)
        said = process.communicate(timeout=LONGEST)[1]
        assert len(pids) == 2
        wait_until(lambda pids=pids: not any(map(alive, pids)))
        if stop == signal.SIGINT:
            assert process.returncode == 130 and "chunks of" in said, said
    again = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stdout.splitlines()]  # Ray's own words do not get into it
    assert "chunks_reused" in {event["event"] for event in events}
    assert np.array_equal(decoded(film.with_name("film.mp4"), SIZE), whole)
    assert left(film) == {"film.mp4", "film.json"}


def test_a_film_on_the_ranks_of_each_actor(film):
    """--gpus-per-film 2 on CPUs: the frames are those of two ranks without Ray, and the ranks end with their actor."""
    out, alone = film.with_name("film.mp4"), film.with_name("alone.mp4")
    film.write_text(RECIPE.partition("[[shot]]\nprompt")[0].replace("8.2", "2.7"))  # the first shot, shorter
    how = {**HOW, "device": "cpu", "gpus_per_film": 2}
    family: set[int] = set()
    for event in helios.render(film, output=out, cluster="local", workers=1, **how):
        if isinstance(event, ChunkDone):
            family |= descendants(event.pid)
    assert len(family) >= 2
    wait_until(lambda: not any(map(alive, family)))
    for _ in helios.render(film, output=alone, **how):
        pass
    assert np.array_equal(decoded(out, SIZE), decoded(alone, SIZE))
