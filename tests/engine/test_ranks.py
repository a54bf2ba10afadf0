"""`--gpus-per-film` with real processes, by gloo on a CPU: films, errors, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helios_cli.cli import main
from helios_cli.engine.clock import Clock
from helios_cli.engine.denoise import Denoiser
from helios_cli.engine.history import History
from helios_cli.engine.models import Models
from helios_cli.engine.ranks import Ranks
from helios_cli.errors import CheckpointError, HeliosError, MachineError
from helios_cli.model.vae import WanVAE
from helios_cli.weights.checkpoint import Checkpoint
from support.forks import children
from support.reruns import decoded
from support.waiting import LONGEST, alive, wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

CPU = torch.device("cpu")
FOUR_HEADS = {"num_attention_heads": 4, "attention_head_dim": 8, "rope_dim": (2, 2, 4)}
STEPS = {"distilled": "1,1,2", "mid": "2,1,1", "base": "3"}
SMALL = ("--size", "64x64", "--dtype", "float32", "--device", "cpu", "--no-cache")


def ranks_of(pid: int) -> list[int]:
    """Return the ranks that a process has started and that run."""
    return [child for child, command in children(pid).items() if alive(child) and "helios_cli.engine.rank" in command]


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path, monkeypatch):
    """No rank outlives a test, and none of their folders stays, whatever the test does."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    assert ranks_of(os.getpid()) == []
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def films() -> dict[tuple[str, ...], np.ndarray]:
    """The films that were rendered, by their kind and flags: several tests compare with the same ones."""
    return {}


@pytest.fixture
def film_of(checkpoints, tmp_path, films):
    """Renders with `helios render` in this process, or takes what a test before rendered; returns the frames."""

    def render(kind: str, *flags: str) -> np.ndarray:
        if (kind, *flags) not in films:
            folder, output = checkpoints(kind, **FOUR_HEADS), tmp_path / f"{len(films)}.mkv"
            film = ["render", "a red circle", "-m", str(folder), "--frames", "60", "--steps", STEPS[kind], *SMALL]
            assert main([*film, "-q", "-o", str(output), *flags]) == 0
            films[kind, *flags] = decoded(output)
        return films[kind, *flags]

    return render


def levels_apart(frames: np.ndarray, others: np.ndarray) -> int:
    assert frames.shape == others.shape and frames.std() > 10
    return int(np.abs(frames.astype(int) - others).max())


@pytest.mark.parametrize(
    ("kind", "ranks"), [("mid", 2), ("base", 2), ("distilled", 2), ("mid", 4)], ids=lambda value: str(value)
)
def test_a_film_is_that_of_one_process(kind, ranks, film_of):
    """Bit for bit where each branch of guidance is made by one rank; else within one level."""
    expected = film_of(kind)
    frames = film_of(kind, "--gpus-per-film", str(ranks))
    most = 0 if kind != "distilled" and ranks == 2 else 1
    assert levels_apart(frames, expected) <= most


def test_chunks_of_one_process_are_those_of_two_ranks_with_a_branch_each(checkpoints, tmp_path, capsys):
    """They have one fingerprint, so that the second film takes them; ranks that share rows have another."""
    film = ["render", "a red circle", "-m", str(checkpoints("mid", **FOUR_HEADS)), "--frames", "60", "--steps", "1,1,1"]
    film += [*[word for word in SMALL if word != "--no-cache"], "--json", "-o"]
    assert main([*film, str(tmp_path / "one.mkv")]) == 0
    assert "chunks_reused" not in capsys.readouterr().out
    assert main([*film, str(tmp_path / "two.mkv"), "--gpus-per-film", "2"]) == 0
    assert capsys.readouterr().out.count('"chunk_done"') == 0
    assert main([*film, str(tmp_path / "four.mkv"), "--gpus-per-film", "4"]) == 0
    assert capsys.readouterr().out.count('"chunk_done"') == 2
    again = ["render", "--from", str(tmp_path / "four.mkv"), "-o", str(tmp_path / "again.mkv"), "--progress", "plain"]
    assert main(again) == 0
    assert "it differs in team" in capsys.readouterr().err


@pytest.mark.parametrize("how", [["--offload", "model"], ["--offload", "stream"]], ids=str)
def test_a_film_is_the_same_wherever_its_weights_are(how, film_of):
    expected = film_of("distilled", "--gpus-per-film", "2")
    assert levels_apart(film_of("distilled", "--gpus-per-film", "2", *how), expected) == 0


def test_a_film_in_fp8_is_that_of_one_process(film_of):
    """Both branches on a rank each, so that nothing is rounded differently."""
    expected = film_of("mid", "--quant", "fp8", "--dtype", "bfloat16")
    assert levels_apart(film_of("mid", "--quant", "fp8", "--dtype", "bfloat16", "--gpus-per-film", "2"), expected) == 0
    assert levels_apart(film_of("mid", "--dtype", "bfloat16"), expected) > 0


def test_lanes_are_films_alone(film_of, tmp_path, checkpoints):
    """Two films side by side on two ranks, each what it is by itself."""
    folder = checkpoints("mid", **FOUR_HEADS)
    (tmp_path / "one.txt").write_text("a red circle")
    (tmp_path / "two.txt").write_text("a green square\n\na blue ball")
    films = [str(tmp_path / name) for name in ("one.txt", "two.txt")]
    for name in ("alone", "lanes"):
        (tmp_path / name).mkdir()
    flags = ["-m", str(folder), "--frames", "40", "--steps", "1,1,1", *SMALL, "-q", "--gpus-per-film", "2"]
    assert main(["render", *films, "-o", f"{tmp_path}/alone/", *flags]) == 0
    assert main(["render", *films, "-o", f"{tmp_path}/lanes/", "--lanes", "2", *flags]) == 0
    for name in ("one.mp4", "two.mp4"):
        assert levels_apart(decoded(tmp_path / "lanes" / name), decoded(tmp_path / "alone" / name)) == 0


def models_with(folder: Path, ranks: int, patience: float = 600) -> Models:
    models = Models(Checkpoint.open(folder), CPU, torch.float32, name="test", threads=1)
    if ranks > 1:
        models.ranks = Ranks([CPU] * ranks, models, patience)
    return models


def latents_of(models: Models, steps: tuple[int, ...]) -> torch.Tensor:
    """Return the latents of a chunk with history."""
    models.encode(["a red circle"])
    with torch.inference_mode():
        preset = models.checkpoint.preset
        settings = type(preset)(**{**vars(preset), "steps": steps, "guidance": 1.0})
        denoiser = Denoiser(models.dit, models.scheduler, settings, (64, 64), Clock(CPU), models.answer)
        history, g = History.empty(16, 8, 8, CPU), torch.Generator().manual_seed(3)
        history.remember(torch.randn(1, 16, 9, 8, 8, generator=g))
        text = models.embed_text((("a red circle", 1.0),))
        steps_done = denoiser.chunk(1, history, text, None, torch.Generator().manual_seed(1), amplify=False)
        while True:
            try:
                next(steps_done)
            except StopIteration as end:
                return end.value


@pytest.mark.parametrize("ranks", [2, 4])
def test_latents_are_those_of_one_process(ranks, checkpoints):
    """The ranks hold no more tensors after each call, which are those that this process holds; and every socket on
    which they listen is one of this machine's loopback."""
    folder = checkpoints("distilled", **FOUR_HEADS)
    expected = latents_of(models_with(folder, 1), (2, 2, 2))
    models = models_with(folder, ranks)
    made, held = [], []
    try:
        for _ in range(3):
            made.append(latents_of(models, (2, 2, 2)))
            held.append(len(models.ranks._held))
        addresses = {address for pid in (os.getpid(), *ranks_of(os.getpid())) for address in listening(pid)}
    finally:
        models.close()
    assert torch.allclose(made[0], expected, atol=1e-5, rtol=0)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert held[0] == held[1] == held[2] < 20
    assert addresses == {"0100007F"}  # 127.0.0.1


def test_pictures_are_those_of_one_process(checkpoints):
    """Ten frames of a chunk whose eight rows of latents three ranks share, within a level; and always the same."""
    folder, latents = checkpoints("distilled"), torch.randn(1, 16, 9, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = torch.cat([group for group, _ in models_with(folder, 1).pictures(latents, 10, decoders=1)])
    models = models_with(folder, 3)
    try:
        with torch.inference_mode():
            groups = [list(models.pictures(latents, 10, decoders=3)) for _ in range(2)]
    finally:
        models.close()
    frames, again = (torch.cat([group for group, _ in made]) for made in groups)
    assert levels_apart(frames.numpy(), expected.numpy()) <= 1 and torch.equal(frames, again)
    assert all(finite for _, finite in groups[0])


def listening(pid: int) -> set[str]:
    """Return the addresses, in hexadecimal digits, on which a process accepts connections."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(fd)))
        except OSError:
            continue  # closed since
    tables = [Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


# What goes wrong


def test_a_rank_that_cannot_open_the_model_says_so(checkpoints, tmp_path):
    models = models_with(checkpoints("distilled", **FOUR_HEADS), 3)
    models.ranks._how["checkpoint"] = str(tmp_path)
    models.encode(["a red circle"])
    with pytest.raises(CheckpointError, match=r"^rank [12] of 3 \(cpu, --gpus-per-film 3\): "):
        models.embed_text((("a red circle", 1.0),))


def test_a_rank_that_is_killed_ends_the_call_and_the_next_one_starts_anew(checkpoints):
    models = models_with(checkpoints("distilled", **FOUR_HEADS), 4)
    try:
        expected = latents_of(models, (1, 1, 1))
        os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)
        with pytest.raises(MachineError, match=r"rank 2 of 4 \(cpu.*\) was stopped by SIGKILL") as caught:
            latents_of(models, (1, 1, 1))
        assert "run the same command again" in caught.value.hint
        assert ranks_of(os.getpid()) == []
        assert torch.equal(latents_of(models, (1, 1, 1)), expected)
    finally:
        models.close()


def test_a_rank_that_is_killed_while_a_chunk_is_decoded_ends_it(checkpoints, monkeypatch):
    models, latents = models_with(checkpoints("distilled"), 3), torch.randn(1, 16, 9, 8, 8)
    decode = WanVAE.decode

    def kill_one(*arguments):
        os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)
        return decode(*arguments)

    with torch.inference_mode():
        models.vae  # noqa: B018
        list(models.pictures(latents, 1, decoders=3))
        monkeypatch.setattr(WanVAE, "decode", kill_one)
        with pytest.raises(MachineError, match=r"rank 2 of 3 \(cpu.*\) was stopped by SIGKILL"):
            list(models.pictures(latents, 33, decoders=3))
    assert ranks_of(os.getpid()) == []


def test_a_rank_that_raises_is_named_with_its_error(checkpoints):
    """By a command that makes no sense to it."""
    models = models_with(checkpoints("distilled", **FOUR_HEADS), 2)
    latents_of(models, (1, 1, 1))
    with pytest.raises(HeliosError, match=r"rank 1 of 2 .* failed: KeyError: 'dance'") as caught:  # noqa: SIM117
        with models.ranks._commanding():
            models.ranks._send(dance={})
            models.ranks._settle()
    assert any("Traceback" in note for note in caught.value.__notes__)


def test_a_rank_that_does_not_answer_is_given_up(checkpoints):
    models = models_with(checkpoints("distilled", **FOUR_HEADS), 2, patience=60)
    latents_of(models, (1, 1, 1))
    models.ranks._patience = 1
    os.kill(ranks_of(os.getpid())[0], signal.SIGSTOP)
    with pytest.raises(MachineError, match=r"rank 1 of 2 .* did not answer for 1(\.0)? s"):
        latents_of(models, (1, 1, 1))


@pytest.fixture
def rendering(checkpoints, tmp_path):
    """Starts a long film on two ranks in a process of its own; returns it once its first chunk is done."""
    processes = []

    def start() -> subprocess.Popen:
        film = ["render", "a red circle", "-m", str(checkpoints("distilled", **FOUR_HEADS)), *SMALL, "--minutes", "60"]
        command = [sys.executable, "-m", "helios_cli", *film, "--json", "--gpus-per-film", "2", "-o", "film.mp4"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        for line in process.stdout:
            if '"chunk_done"' in line:
                return process
        pytest.fail(process.stderr.read())

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=LONGEST)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_film_that_is_stopped_leaves_no_process(number, rendering, tmp_path):
    process = rendering()
    (rank,) = ranks_of(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=LONGEST)
    assert process.returncode == 130 and "are safe" in errors
    assert not alive(rank)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_key_press_stops_what_waits_for_a_rank_that_hangs(rendering):
    process = rendering()
    (rank,) = ranks_of(process.pid)
    os.kill(rank, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LONGEST)
    assert process.returncode == 130 and not alive(rank)


def test_ranks_die_with_the_process_that_started_them(rendering, tmp_path):
    process = rendering()
    (rank,) = ranks_of(process.pid)
    process.kill()
    process.wait(timeout=LONGEST)
    wait_until(lambda: not alive(rank))
    wait_until(lambda: list((tmp_path / "temporary").glob("helios-*")) == [])


def test_a_film_whose_rank_is_killed_goes_on_with_the_same_command(film_of, checkpoints, tmp_path, monkeypatch):
    """Killed during the second chunk, which the same command makes again."""
    expected = film_of("distilled", "--gpus-per-film", "2")
    answer, made = Ranks.answer, []

    def kill_one(self, *args):
        made.append(1)
        if len(made) == 10:  # of 8, with doubled first steps, and 4
            os.kill(ranks_of(os.getpid())[0], signal.SIGKILL)
        return answer(self, *args)

    monkeypatch.setattr(Ranks, "answer", kill_one)
    film = ["render", "a red circle", "-m", str(checkpoints("distilled", **FOUR_HEADS)), "--frames", "60", *SMALL]
    film += ["--steps", STEPS["distilled"], "-q", "--gpus-per-film", "2", "-o", str(tmp_path / "film.mkv")]
    assert main(film) == MachineError.exit_code
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr(Ranks, "answer", lambda self, *args: calls.append(1) or answer(self, *args))
    assert main(film) == 0
    assert len(calls) == 4
    assert levels_apart(decoded(tmp_path / "film.mkv"), expected) == 0
