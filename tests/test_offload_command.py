"""--offload, --vram, --ram and --lanes through the real entry point; what happens when memory or a file gives out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helios_cli.cli import main
from helios_cli.engine.models import Models
from helios_cli.film.writer import FilmWriter
from helios_cli.model.block import FeedForward
from helios_cli.model.vae import Decoder
from helios_cli.weights.offload import BlockStream
from support.reruns import decoded

SMALL = ["--size", "64x64", "--steps", "1,1,1", "--frames", "99"]


@pytest.fixture(scope="module")
def folder(checkpoints) -> Path:
    return checkpoints("distilled", num_layers=4)


@pytest.fixture
def helios(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main([*map(str, arguments)]) == code, capsys.readouterr().err
        return capsys.readouterr()

    return run


@pytest.fixture
def nothing_stays(monkeypatch) -> list[BlockStream]:
    """Keep no block resident: all blocks of so small a model would fit, and nothing would stream. Returns the
    transformers' streams."""
    streams, place, begin = [], Models.place, BlockStream.__init__

    def placed(models, placement) -> None:
        place(models, replace(placement, resident=0))

    def noted(stream, blocks, prefix, *rest, **how) -> None:
        begin(stream, blocks, prefix, *rest, **how)
        if prefix == "blocks.":
            streams.append(stream)

    monkeypatch.setattr(Models, "place", placed)
    monkeypatch.setattr(BlockStream, "__init__", noted)
    return streams


def passes_over(streams: list[BlockStream]) -> list[int]:
    """Return how often each block was read for model calls; the other streams bring what prompts need."""
    return max((stream.blocks_read for stream in streams), key=sum)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["model", "stream"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_read_behind_the_last_film(helios, nothing_stays, folder, mode, fails, monkeypatch):
    """The read-ahead has begun on the first blocks of a chunk that never comes: its threads end with the films."""
    if fails:
        monkeypatch.setattr(FilmWriter, "close", lambda writer: 1 / 0)
    words = (
        "render",
        "a red circle",
        "-m",
        folder,
        *SMALL,
        "--offload",
        mode,
        "--dtype",
        "float32",
        "-q",
        "--no-cache",
    )
    before = set(threading.enumerate())  # of models that other tests hold
    helios(*words, code=1 if fails else 0)
    begun = set(threading.enumerate()) - before
    assert [thread.name for thread in begun if thread.name.startswith(("weights", "read ahead"))] == []
    assert not any(stream._loads for stream in nothing_stays)


@pytest.mark.slow
def test_every_mode_writes_the_same_film(helios, folder, nothing_stays):
    films = {}
    for mode in ("auto", "none", "model", "stream"):
        said = helios("render", "a red circle", "-m", folder, *SMALL, "--no-cache", "--offload", mode, "-o", f"{mode}/")
        films[mode] = [file.read_bytes() for file in sorted(Path(mode).iterdir())]
        assert ("offload:" in said.err) == (mode != "auto")
    assert len(films["none"]) == 99
    assert films["auto"] == films["none"] == films["model"] == films["stream"]
    assert min(passes_over(nothing_stays)) >= 12


@pytest.mark.slow
def test_a_chunk_kept_in_one_mode_is_taken_in_another(helios, folder):
    helios("render", "a red circle", "-m", folder, *SMALL, "--offload", "none", "-o", "a.mkv")
    said = helios("render", "a red circle", "-m", folder, *SMALL, "--offload", "stream", "-o", "b.mkv")
    assert "3 chunks from earlier renders" in said.err


def test_plan_says_what_render_does(helios, folder):
    report = json.loads(helios("plan", "a red circle", "-m", folder, "--device", "cpu", "--ram", "8G", "--json").out)
    film = report["films"][0]
    budget = {"device_bytes": film["device"]["free_bytes"], "host_bytes": 8_000_000_000, "vae_device_bytes": None}
    assert film["budget"] == budget
    modes = {mode["mode"]: mode for mode in film["memory"]}
    assert [mode for mode in modes if modes[mode]["chosen"]] == ["none"]
    asked = json.loads(
        helios("plan", "a red circle", "-m", folder, "--device", "cpu", "--offload", "model", "--json").out
    )
    assert [mode["mode"] for mode in asked["films"][0]["memory"] if mode["chosen"]] == ["model"]
    assert modes["model"]["moved_bytes"] > 0 == modes["none"]["moved_bytes"]


def test_nothing_fits_is_said_before_anything_is_loaded(helios, folder, monkeypatch):
    monkeypatch.setattr("helios_cli.engine.parts.load_component", None)
    said = helios("render", "a red circle", "-m", folder, *SMALL, "--device", "cpu", "--ram", "100M", code=3)
    assert "of host memory, of which 100 MB may be used" in said.err and "--size" in said.err
    said = helios("render", "a red circle", "-m", folder, *SMALL, "--device", "cpu", "--vram", "1G", code=2)
    assert "--vram limits the memory of a GPU" in said.err
    said = helios("render", "a red circle", "-m", folder, *SMALL, "--ram", "lots", code=2)
    assert "6GiB" in said.err


class Gives:
    """Memory that gives out so many `times`: at the `first`-th module of a kind, then each time `again` ones later."""

    def __init__(self, monkeypatch, first: int, times: int, again: int = 1, kind: type = FeedForward) -> None:
        self.left, self.times = first, times
        forward = kind.forward

        def fail(block, *args, **kwargs):
            self.left -= 1
            if self.left == 0 and self.times:
                self.times, self.left = self.times - 1, again
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(block, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", fail)


def layers(folder: Path) -> int:
    return json.loads((folder / "transformer" / "config.json").read_text())["num_layers"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FeedForward, Decoder])
def test_memory_that_runs_out_is_met_with_less_once(kind, helios, folder, monkeypatch):
    """In the second chunk, of which the VAE has written a frame: the first is safe and taken over, the film is what it
    would have been."""
    helios("render", "a red circle", "-m", folder, *SMALL, "--no-cache", "-o", "whole/")
    Gives(monkeypatch, first=8 * layers(folder) if kind is FeedForward else 2 + 2, times=1, kind=kind)
    said = helios("render", "a red circle", "-m", folder, *SMALL, "--no-cache", "-o", "film/")
    assert "memory ran out" in said.err and "1 chunk from earlier renders" in said.err
    whole, film = ([file.read_bytes() for file in sorted(Path(name).iterdir())] for name in ("whole", "film"))
    assert film == whole


@pytest.mark.slow
def test_memory_that_runs_out_twice_ends_with_3_and_can_be_gone_on_from(helios, folder, monkeypatch):
    arguments = ["render", "a red circle", "-m", folder, *SMALL, "--no-cache", "-o", "film.mkv"]
    with monkeypatch.context() as broken:
        Gives(broken, first=7 * layers(folder), times=2, again=2 * layers(folder))
        said = helios(*arguments, code=3)
    assert "ran out of memory" in said.err and "--offload stream" in said.err
    assert "1 chunk from earlier renders" in helios(*arguments).err


def test_memory_that_runs_out_in_a_mode_that_was_asked_for_is_an_error(helios, folder, monkeypatch):
    Gives(monkeypatch, first=3, times=1)
    said = helios("render", "a red circle", "-m", folder, *SMALL, "--offload", "model", "-o", "f.mkv", code=3)
    assert "memory ran out;" not in said.err


def sources(*prompts: str) -> list[str]:
    for place, prompt in enumerate(prompts):
        Path(f"{place}.txt").write_text(prompt)
    return [f"{place}.txt" for place in range(len(prompts))]


@pytest.mark.slow
def test_lanes_write_the_films_that_are_written_one_by_one(helios, folder, tmp_path, nothing_stays):
    """Lanes also read each block once for two films."""
    names = sources("a red circle", "a green square", "a blue ball")
    for out, flags in (("alone", []), ("together", ["--lanes", "2", "--offload", "stream"])):
        Path(out).mkdir()
        said = helios("render", *names, "-m", folder, *SMALL, "--no-cache", "-o", out, *flags)
    for name in ("0.mp4", "1.mp4", "2.mp4"):
        assert (decoded(tmp_path / "alone" / name) == decoded(tmp_path / "together" / name)).all()
    assert all(24 <= count < 30 for count in passes_over(nothing_stays))  # 36 of three films; more is read ahead
    assert "0: chunk 2/3" in said.err and "1: chunk 2/3" in said.err


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "again"), [(FeedForward, ["0", "1"]), (Decoder, ["1"])])
def test_memory_that_runs_out_in_lanes(kind, again, helios, folder, tmp_path, monkeypatch):
    """A call is all films', and frames are one film's: those that it stopped go on with less, and are what they are
    alone."""
    names, frames = sources("a red circle", "a green square"), ["--frames", 33, "--no-cache"]
    for out in ("alone", "together"):
        Path(out).mkdir()
    helios("render", *names, "-m", folder, *SMALL, *frames, "-o", "alone")
    Gives(monkeypatch, first=3 * layers(folder) if kind is FeedForward else 2 + 1, times=1, kind=kind)
    said = helios("render", *names, "-m", folder, *SMALL, *frames, "-o", "together", "--lanes", 2, "--json")
    events = [json.loads(line) for line in said.out.splitlines()]
    assert any(event["event"] == "notice" and "memory ran out" in event["message"] for event in events)
    assert [event["film"] for event in events if event["event"] == "film_started"] == ["0", "1", *again]
    for name in ("0.mp4", "1.mp4"):
        assert (decoded(tmp_path / "alone" / name) == decoded(tmp_path / "together" / name)).all()


@pytest.mark.slow
def test_events_of_lanes_say_their_film(helios, folder):
    """By its name: they have one title."""
    names = ["0.toml", "1.toml"]
    for name in names:
        Path(name).write_text('title = "twins"\n[[shot]]\nprompt = "a red circle"\n')
    Path("out").mkdir()
    said = helios("render", *names, "-m", folder, *SMALL, "-o", "out", "--lanes", 2, "--json")
    events = [json.loads(line) for line in said.out.splitlines()]
    done = [event["film"] for event in events if event["event"] == "film_done"]
    assert sorted(done) == ["0", "1"]
    order = [event["film"] for event in events if event["event"] == "step_done"]
    assert order[:4] in (["0", "1"] * 2, ["1", "0"] * 2)  # in lockstep


@pytest.mark.slow
def test_one_lane_may_fail(helios, folder):
    names = sources("a red circle", "red " * 600)
    Path("out").mkdir()
    said = helios("render", *names, "-m", folder, *SMALL, "-o", "out", "--lanes", 2, "--strict", code=1)
    assert "1 of 2 films failed: 1" in said.err
    assert Path("out/0.mp4").exists() and not Path("out/1.mp4").exists()


@pytest.mark.slow
def test_a_weight_file_that_is_cut_short_and_made_whole_again(helios, folder, tmp_path, monkeypatch):
    """While a film renders whose transformer comes again for each chunk, ahead of its use: exit code 4, and what is
    safe is gone on from."""
    copy = shutil.copytree(folder, tmp_path / "model")
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    whole, status, end_piece = weights.read_bytes(), weights.stat(), FilmWriter.end_piece
    arguments = ["render", "a red circle", "-m", copy, *SMALL, "--no-cache", "--offload", "model"]
    helios(*arguments, "-o", "whole/")

    def cut(writer, safe):
        end_piece(writer, safe)
        os.truncate(weights, 1000)

    with monkeypatch.context() as broken:
        broken.setattr(FilmWriter, "end_piece", cut)
        said = helios(*arguments, "-o", "film/", code=4)
    assert f"{weights.name}: truncated" in said.err or f"{weights.name}: changed" in said.err
    weights.write_bytes(whole)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "from earlier renders" in helios(*arguments, "-o", "film/").err
    frames, expected = ([file.read_bytes() for file in sorted(Path(name).iterdir())] for name in ("film", "whole"))
    assert frames == expected


@pytest.mark.slow
def test_a_next_film_has_its_text_encoder_beside_the_rest(helios, folder, monkeypatch):
    """There is room for all of so small a model: its transformer is read once."""
    placed, place = [], Models.place
    monkeypatch.setattr(Models, "place", lambda self, placement: placed.append(placement) or place(self, placement))
    names = sources("a red circle", "a green square")
    Path("out").mkdir()
    helios("render", *names, "-m", folder, *SMALL, "--no-cache", "-o", "out", "--frames", 33)
    assert [placement.mode for placement in placed] == ["none", "none"]
    assert [placement.text_beside for placement in placed] == [False, True]


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Reads of a weight file fail once the file named by EIO_WHEN is there. */
static int fails(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return strstr(path, "transformer/diffusion_pytorch_model") && access(getenv("EIO_WHEN"), F_OK) == 0;
}

ssize_t preadv(int fd, const struct iovec *vectors, int count, off_t place) {
    static ssize_t (*real)(int, const struct iovec *, int, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "preadv");
    if (fails(fd)) { errno = EIO; return -1; }
    return real(fd, vectors, count, place);
}

ssize_t preadv64(int fd, const struct iovec *v, int n, off_t place) { return preadv(fd, v, n, place); }
ssize_t preadv2(int fd, const struct iovec *v, int n, off_t place, int flags) { return preadv(fd, v, n, place); }
ssize_t preadv64v2(int fd, const struct iovec *v, int n, off_t place, int flags) { return preadv(fd, v, n, place); }
"""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the library that fails reads")
def test_a_disk_that_fails_while_a_film_renders(helios, folder, tmp_path):
    """The error names file and cause, exit code 4; what is done is safe, and goes on when the disk is well again."""
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"], cwd=tmp_path, check=True)
    bad = tmp_path / "disk is bad"
    arguments = ["render", "a red circle", "-m", folder, *SMALL, "--offload", "stream", "--ram", "2G", "-o", "film.mkv"]
    placing = "import helios_cli.cost.placing as p; from dataclasses import replace; choose = p.choose\n"
    placing += "def streamed(*a):\n    mode = choose(*a)\n"
    placing += "    return mode._replace(placement=replace(mode.placement, resident=0))\np.choose = streamed\n"
    # All blocks would stay, and nothing be read while the film renders.
    script = f"import sys\n{placing}from helios_cli.cli import main\nsys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / "shim.so"), "EIO_WHEN": str(bad)}
    command = [sys.executable, "-c", script, *map(str, arguments), "--progress", "plain", "--no-cache"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("chunk 1/3"):
                bad.touch()
    assert process.returncode == 4, "".join(lines)
    assert "transformer/diffusion_pytorch_model.safetensors" in "".join(lines)
    assert "Input/output error" in "".join(lines)
    bad.unlink()
    assert "from earlier renders" in helios(*arguments, "--no-cache").err
