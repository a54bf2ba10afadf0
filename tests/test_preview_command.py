"""Preview decoders from the command line: films that they show, and the films that take their place."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import helios_cli as helios
from helios_cli.cli import main
from helios_cli.engine.preview import Preview
from helios_cli.film.again import read_again
from helios_cli.weights.preview import PreviewFile
from support import previews
from support.renders import latents_of
from support.reruns import decoded, ended_at

SIZE = (64, 64)
HOW = ["--size", "64x64", "--steps", "1,1,1", "--frames", "40", "--device", "cpu", "--dtype", "float32"]
SHOWN = ["--preview-decoder", "taew2_1.safetensors"]
PROMPT = "a red ball rolls left"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return previews.write(tmp_path_factory.mktemp("preview") / "taew2_1.safetensors")


@pytest.fixture
def folder(tmp_path, monkeypatch, weights, distilled) -> Path:
    """The current folder, with the file of a preview decoder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))
    os.link(weights, "taew2_1.safetensors")
    return tmp_path


@pytest.fixture
def render(folder, capfd):
    """Render a film, and return its events."""

    def run(output: str, *arguments: str) -> list[dict]:
        capfd.readouterr()
        assert main(["render", PROMPT, "-o", output, *HOW, *arguments, "--json"]) == 0
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    return run


def kinds(events: list[dict], *names: str) -> list[str]:
    return [event["event"] for event in events if event["event"] in names]


def sidecar(output: str) -> dict:
    return json.loads(Path(output).with_suffix(".json").read_text())


@pytest.mark.slow
def test_the_frames_are_the_decoder_s_and_the_latents_those_of_the_film(render):
    with latents_of() as plain:
        render("plain.mkv", "--no-cache", "-m", "tiny")
    with latents_of() as latents:
        events = render("film.mkv", "--no-cache", *SHOWN, "-m", "tiny")
    assert all(torch.equal(*pair) for pair in zip(plain, latents, strict=True))
    preview = Preview(PreviewFile.open(Path("taew2_1.safetensors")), torch.device("cpu"), torch.float32)
    groups = [
        group for chunk, count in zip(latents, (33, 7), strict=True) for group, _ in preview.pictures(chunk, count)
    ]
    frames = decoded(Path("film.mkv"), SIZE)
    assert np.array_equal(frames, torch.cat(groups).flatten(1).numpy().reshape(frames.shape))
    assert events[0]["event"] == "notice" and "latents of its own" in events[0]["message"]
    assert next(event for event in events if event["event"] == "film_started")["preview"] == "taew2_1.safetensors"

    shown, film = sidecar("film.mkv"), sidecar("plain.mkv")
    assert [chunk["fingerprint"] for chunk in shown["chunks"]] == [chunk["fingerprint"] for chunk in film["chunks"]]
    assert shown["fingerprint"] != film["fingerprint"]
    assert shown["preview"]["name"] == "taew2_1.safetensors" and "preview" not in film


@pytest.mark.slow
def test_the_final_film_is_the_one_without_a_preview(render):
    render("plain.mp4", "--no-cache")
    events = render("film.mp4", *SHOWN, "--final")
    assert Path("film.mp4").read_bytes() == Path("plain.mp4").read_bytes()
    assert kinds(events, "film_started", "preview_done", "film_done") == [
        "film_started",
        "preview_done",
        "film_started",
        "film_done",
    ]
    started = [event["preview"] for event in events if event["event"] == "film_started"]
    assert started == ["taew2_1.safetensors", None]
    after = events[[event["event"] for event in events].index("preview_done") :]
    assert kinds(after, "step_done") == [] and after[-1]["frames_reused"] == 40
    assert sidecar("film.mp4")["fingerprint"] == sidecar("plain.mp4")["fingerprint"]
    assert not list(Path().glob("film.partial*")) and not list(Path().glob("*.journal"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--filter", "hflip,fps=48"], ["--through", "cat", "--filter", "tmix"]], ids=str)
def test_filters_and_programs_come_behind_both(flags, render):
    """The preview is shown as the film will be; and the final film is the one without a preview, to the byte."""
    render("plain.mkv", "--no-cache", *flags)
    shown = render("shown.mkv", "--no-cache", *flags, *SHOWN)
    assert not np.array_equal(decoded(Path("shown.mkv"), SIZE), decoded(Path("plain.mkv"), SIZE))
    events = render("film.mkv", *flags, *SHOWN, "--final")
    assert np.array_equal(decoded(Path("film.mkv"), SIZE), decoded(Path("plain.mkv"), SIZE))
    ends = [event for event in events if event["event"] in ("preview_done", "film_done")]
    assert [end["event"] for end in ends] == ["preview_done", "film_done"]
    assert shown[-1]["frames"] == ends[0]["frames"] == ends[1]["frames"]
    assert [event["phase"] for event in events if event["event"] == "phase_started"].count("after") == 2
    assert sidecar("film.mkv")["after"] == sidecar("plain.mkv")["after"]
    assert not list(Path().glob("film.partial*")) and not list(Path().glob("*.journal"))


@pytest.mark.slow
def test_kept_pieces_of_one_are_not_taken_for_the_other(render):
    first = render("plain.mkv")
    shown = render("film.mkv", *SHOWN)
    assert kinds(first, "step_done") and not kinds(shown, "step_done")  # the states are shared
    again, more = render("again.mkv"), render("more.mkv", *SHOWN)
    assert not kinds(again, "step_done") and not kinds(more, "step_done")
    plain, film = (decoded(Path(name), SIZE) for name in ("plain.mkv", "film.mkv"))
    assert not np.array_equal(plain, film)
    assert np.array_equal(decoded(Path("again.mkv"), SIZE), plain)
    assert np.array_equal(decoded(Path("more.mkv"), SIZE), film)


@pytest.mark.slow
def test_a_preview_that_is_there_is_decoded_later(render, capfd):
    """Chunks that are no longer kept are rendered once more for it."""
    render("plain.mp4", "--no-cache")
    for kept in (True, False):
        render("film.mp4", *SHOWN, "--force")
        if not kept:
            main(["cache", "clear", "--json"])
        events = render("film.mp4", *SHOWN, "--final")
        assert bool(kinds(events, "step_done")) is not kept
        assert Path("film.mp4").read_bytes() == Path("plain.mp4").read_bytes()
    assert main(["render", PROMPT, "-o", "film.mp4", *HOW, *SHOWN, "--final", "-q"]) == 2
    assert "film.mp4 exists" in capfd.readouterr().err


@pytest.mark.slow
def test_a_film_of_other_settings_is_not_replaced(render, capfd):
    render("film.mp4", *SHOWN, "--seed", "7")
    before = Path("film.mp4").read_bytes()
    assert main(["render", PROMPT, "-o", "film.mp4", *HOW, *SHOWN, "--final", "-q"]) == 2
    assert "film.mp4 exists" in capfd.readouterr().err
    assert Path("film.mp4").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("at", ["chunk_done", "preview_done"])
def test_a_render_that_is_killed_goes_on(at, render, folder):
    render("plain.mp4", "--no-cache")
    command = ["render", PROMPT, "-o", "film.mp4", *HOW, *SHOWN, "--final"]
    code, _ = ended_at(
        lambda line: json.loads(line)["event"] == at,
        signal.SIGKILL,
        lambda: main([*command, "--json"]),
        stream="stdout",
    )
    assert code == -signal.SIGKILL
    assert main([*command, "-q"]) == 0
    assert Path("film.mp4").read_bytes() == Path("plain.mp4").read_bytes()


@pytest.mark.slow
def test_a_film_made_again_from_a_preview_s_record_says_that_it_differs(render, capfd):
    render("film.mkv", *SHOWN)
    assert read_again(Path("film.mkv")).record.preview.name == "taew2_1.safetensors"
    capfd.readouterr()
    assert main(["render", "--from", "film.mkv", "-o", "again.mkv", "--progress", "plain"]) == 0
    assert "not be bit-identical to film.mkv: it differs in preview decoder" in capfd.readouterr().err
    assert main(["render", "--from", "film.mkv", "-o", "same.mkv", *SHOWN, "--progress", "plain"]) == 0
    assert "bit-identical" not in capfd.readouterr().err


@pytest.mark.slow
def test_takes_and_a_picture_to_start_from(render, capfd):
    Image.new("RGB", (64, 64), "red").save("start.png")
    render("film.mkv", "--image", "start.png", *SHOWN)
    assert len(decoded(Path("film.mkv"), SIZE)) == 40
    assert main(["render", PROMPT, "-o", "some.mp4", *HOW, *SHOWN, "--takes", "2", "-q"]) == 0
    assert len(decoded(Path("some.takes/seed-43.mp4"), SIZE)) == 33


@pytest.mark.slow
def test_two_films_in_lanes_share_the_decoder(folder, capfd):
    Path("one.txt").write_text(PROMPT)
    Path("two.txt").write_text("a green square")
    Path("out").mkdir()
    assert main(["render", "one.txt", "two.txt", "-o", "out", *HOW, *SHOWN, "--lanes", "2", "--no-cache", "-q"]) == 0
    assert main(["render", "one.txt", "-o", "alone.mp4", *HOW, *SHOWN, "--no-cache", "-q"]) == 0
    assert np.array_equal(decoded(Path("out/one.mp4"), SIZE), decoded(Path("alone.mp4"), SIZE))


@pytest.mark.slow
def test_a_live_film(folder, monkeypatch):
    """It is shown by the preview decoder, and decoded by the VAE once its prompts have ended."""
    without_length = [flag for flag in HOW if flag not in ("--frames", "40")]

    def live(output: str, *arguments: str) -> np.ndarray:
        reading, writing = os.pipe()
        os.write(writing, b"[cut 1s] a green square\n")
        os.close(writing)
        with os.fdopen(reading) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert main(["live", PROMPT, "--hold", "1s", "-o", output, *without_length, *arguments, "-q"]) == 0
        return decoded(Path(output), SIZE)

    plain = live("plain.mp4", "--no-cache")
    assert len(plain) >= 66
    assert np.array_equal(live("film.mp4", *SHOWN, "--final"), plain)
    assert "preview" not in sidecar("film.mp4")


def test_a_plan_knows_the_decoder(folder, capfd):
    plans = {}
    for name, flags in {"plain": [], "shown": SHOWN, "final": [*SHOWN, "--final"]}.items():
        assert main(["plan", PROMPT, *HOW, *flags, "--json"]) == 0
        plans[name] = json.loads(capfd.readouterr().out)["films"][0]
    assert plans["plain"]["preview_decoder"] is None
    file = PreviewFile.open(Path("taew2_1.safetensors"))
    assert plans["shown"]["preview_decoder"]["sha256"] == file.digest
    assert [plans[name]["preview_decoder"]["final"] for name in ("shown", "final")] == [False, True]
    assert plans["final"]["flops"]["final"] == plans["plain"]["flops"]["decode"]
    assert plans["final"]["fingerprint"] == plans["plain"]["fingerprint"] != plans["shown"]["fingerprint"]
    chunks = [[chunk["fingerprint"] for chunk in plan["chunks"]] for plan in plans.values()]
    assert chunks[0] == chunks[1] == chunks[2]
    phases = [phase["phase"] for phase in plans["final"]["memory"][0]["phases"]]
    assert phases == ["text", "denoise", "decode", "final"]
    assert main(["plan", PROMPT, *HOW, *SHOWN, "--final"]) == 0
    assert "taew2_1.safetensors, then the VAE" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--final"], "--final needs --preview-decoder"),
        ([*SHOWN, "--workers", "2"], "--workers shares films out"),
        ([*SHOWN, "--share"], "--share shares films out"),
        ([*SHOWN, "--final", "--no-cache"], "--final and --no-cache, which keeps no chunks"),
        ([*SHOWN, "--final", "--takes", "2"], "--final and --takes, which makes no film"),
        ([*SHOWN, "--final", "--lanes", "2"], "--final and --lanes"),
        ([*SHOWN, "--final", "-o", "-"], "--final and -o -, which writes a film that cannot be replaced"),
        (["--preview-decoder", "decoder.pth"], "a pickle can run any program"),
        (["--preview-decoder", "taew2.safetensors"], "did you mean taew2_1.safetensors?"),
        (["--preview-decoder", "."], "a folder, not a decoder's file"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(flags, message, folder, capfd):
    assert main(["render", PROMPT, *HOW, *flags]) == 2
    assert message in capfd.readouterr().err


def test_a_file_that_is_no_decoder_is_an_error_before_anything_is_loaded(folder, capfd):
    previews.write(Path("wan2_2.safetensors"), **{"decoder.1.weight": torch.zeros(256, 48, 3, 3)})
    assert main(["plan", PROMPT, *HOW, "--preview-decoder", "wan2_2.safetensors"]) == 4
    said = capfd.readouterr().err
    assert "decoder.1.weight ([256, 48, 3, 3], expected [256, 16, 3, 3])" in said
    assert "taew2_1.safetensors of github.com/madebyollin/taehv" in said


@pytest.mark.slow
def test_from_python(folder):
    events = list(
        helios.render(
            PROMPT,
            size=SIZE,
            frames=33,
            steps=(1, 1, 1),
            device="cpu",
            output="film.mkv",
            preview_decoder="taew2_1.safetensors",
            final=True,
        )
    )
    assert [type(event).__name__ for event in events[-1:]] == ["FilmDone"]
    assert any(type(event).__name__ == "PreviewDone" for event in events)
