"""The page in a real browser, against a real `helios live --serve`: it plays, follows prompts, comes back, and gives
away the recipe of the film that it showed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helios_cli.cli import main
from helios_cli.units import FRAMES_PER_CHUNK
from support import reruns, sounds
from support.browser import Browser, browser, programs
from support.firefox import firefox, program
from support.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.process, pytest.mark.slow]

FPS, AHEAD = 24, 3.0
CHUNK = FRAMES_PER_CHUNK / FPS
SMALL = ("-m", "tiny", "--size", "64x64", "--steps", "1,1,1")
ENTER = "\ue007"

COLOUR = """
const canvas = document.createElement("canvas"), video = document.querySelector("video"), sums = [0, 0, 0];
canvas.width = canvas.height = 16;
const context = canvas.getContext("2d");
context.drawImage(video, 0, 0, 16, 16);
context.getImageData(0, 0, 16, 16).data.forEach((value, at) => { if (at % 4 < 3) sums[at % 4] += value / 256; });
return sums;
"""
"""The mean colour of what the video shows."""

FRAMES = "document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames"
POSITION = "player && player.position"


class Live:
    """`helios live` with a page, in a folder."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0) -> None:
        command = [
            sys.executable,
            "-m",
            "helios_cli",
            "live",
            *SMALL,
            "--serve",
            f"{port}",
            "-o",
            "film.mp4",
            *arguments,
        ]
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stderr=self.log)
        self.url = ""
        wait_until(self._finds_url)
        self.port = int(re.search(r":(\d+)/", self.url)[1])

    def _finds_url(self) -> bool:
        assert self.process.poll() is None, self.said()
        found = re.findall(r"http://\S+", self.said())
        self.url = found[-1] if found else ""
        return bool(found)

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def start(tmp_path) -> Iterator:
    """Starts `helios live` in the test's folder."""
    started: list[Live] = []

    def run(*arguments: str, port: int = 0) -> Live:
        started.append(Live(tmp_path, *arguments, port=port))
        return started[-1]

    yield run
    for one in started:
        one.stop()


@pytest.fixture
def page() -> Iterator[Browser]:
    if programs() is None:
        pytest.skip("needs Chromium and its driver: apt install chromium chromium-driver")
    with browser() as one:
        yield one
        assert one.complaints() == []


def distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_the_film_plays_and_a_prompt_changes_it_within_the_promised_delay(start, page):
    live = start()
    page.open(live.url)
    page.wait("document.querySelector('#status').textContent === 'waiting for the first prompt'")
    page.type("#prompt", "a red ball rolls left" + ENTER)
    page.wait(f"{POSITION} > 2 * {CHUNK}")
    shown, before = page.run(f"return {FRAMES}"), page.run(COLOUR)
    page.wait(f"{FRAMES} > {shown} + {FPS}")
    assert page.text("#now") == "a red ball rolls left"
    page.run("document.querySelector('input[value=cut]').click()")
    at = page.run(f"return {POSITION}")
    page.type("#prompt", "a white star moves to the right at night" + ENTER)
    page.wait("document.querySelector('#now').textContent.includes('night')")
    start_of_shot = page.run("return shots.at(-1).start")
    # What rendering itself takes is not in it: while the machine is late, the film stands still.
    assert at < start_of_shot <= at + AHEAD + 2 * CHUNK
    page.wait(f"{POSITION} > {start_of_shot} + 0.2")
    assert distance(page.run(COLOUR), before) > 60
    assert [row.split("\n")[0] for row in page.text("#shots").split("0:0")[1:]]


def test_the_page_comes_back_after_the_server_and_the_recipe_makes_the_same_film(start, page, tmp_path, monkeypatch):
    live = start("a red ball rolls left")
    page.open(live.url)
    page.wait(f"{POSITION} > {CHUNK}")
    live.process.kill()
    live.process.wait()
    page.wait("document.querySelector('#status').textContent.startsWith('connection lost')")
    assert page.run("return document.querySelector('#send').disabled")
    start("a red ball rolls left", port=live.port)
    page.wait("state !== null")
    began = page.run(f"return {FRAMES}")
    page.wait(f"state !== null && {FRAMES} > {began} + {FPS} && {POSITION} > 0")
    assert page.text("#now") == "a red ball rolls left"
    page.run("document.querySelector('input[value=switch]').click()")
    page.type("#seconds", "1")
    page.type("#prompt", "a white star moves to the right at night" + ENTER)
    page.wait("document.querySelector('#now').textContent.includes('night')")
    page.click("#end")
    page.accept()
    page.wait("state?.phase === 'done'")
    page.click("a[href='recipe.toml']")
    page.click("a[href='film.mp4']")
    for name in ("film.toml", "film.mp4"):
        wait_until((page.downloads / name).exists)
    assert (page.downloads / "film.mp4").read_bytes() == (tmp_path / "film.mp4").read_bytes()
    monkeypatch.chdir(page.downloads)
    assert main(["render", "film.toml", "--no-cache", "-q", "-o", "again.mp4"]) == 0
    assert (reruns.decoded(Path("again.mp4")) == reruns.decoded(tmp_path / "film.mp4")).all()
    del live
    page.complaints()  # of a server that was gone


def test_a_pause_is_for_everybody_and_a_picture_starts_a_scene(start, page, tmp_path):
    Image.new("RGB", (96, 96), (250, 240, 20)).save(tmp_path / "sun.png")
    live = start("--hold", "1s", "a red ball rolls left")
    page.open(live.url)
    page.wait(f"{POSITION} > 0.5")
    page.click("#pause")
    page.wait("state.paused && document.querySelector('video').paused")
    assert page.text("#pause") == "Go on" and page.text("#over") == "Paused"
    page.type("#picture", str(tmp_path / "sun.png"))
    assert page.run("return document.querySelector('input[value=cut]').checked")
    page.type("#prompt", "a yellow sun" + ENTER)
    page.wait("document.querySelector('#next').textContent.includes('a yellow sun (waits)')")
    page.click("#pause")
    page.wait(f"document.querySelector('#now').textContent === 'a yellow sun' && {POSITION} > shots.at(-1).start + 0.1")
    red, green, blue = page.run(COLOUR)
    assert red > 150 and green > 150 and blue < 120
    assert [path.suffix for path in (tmp_path / "film.pictures").iterdir()] == [".png"]
    page.type("#picture", str(tmp_path / "log"))
    page.type("#prompt", "no picture" + ENTER)
    page.wait("document.querySelector('#error').textContent.includes('not a picture')")
    page.complaints()  # the answer 400


LOUDEST = """
if (!window.ear) {
  const context = new AudioContext();
  ear = context.createAnalyser();
  ear.fftSize = 16384;
  context.createMediaElementSource(document.querySelector("video")).connect(ear).connect(context.destination);
}
return ear.context.resume().then(() => {
  const levels = new Float32Array(ear.frequencyBinCount);
  ear.getFloatFrequencyData(levels);
  return levels.indexOf(Math.max(...levels)) * ear.context.sampleRate / ear.fftSize;
});
"""
"""The frequency that is loudest in what the video plays."""


@pytest.mark.parametrize("how", ["", "?hls"])
def test_the_film_has_its_sound(start, page, tmp_path, how):
    """Muted, as browsers want it, until a viewer asks for it; without Media Source, too, where the page plays HLS."""
    time = np.arange(10 * sounds.RATE) / sounds.RATE
    music = sounds.write(tmp_path / "music.wav", np.tile(np.sin(880 * np.pi * time)[:, None] / 2, 2))
    live = start("a red ball rolls left", "--audio", str(music), "--audio-fit", "loop")
    page.open(live.url + how)
    page.wait(f"{POSITION} > 0.5" if not how else f"{FRAMES} > 2 * {FPS}")
    assert page.run("return document.querySelector('video').src").endswith("/film.m3u8") == bool(how)
    assert page.run("return document.querySelector('video').muted") and page.text("#sound") == "Unmute"
    page.click("#sound")
    assert not page.run("return document.querySelector('video').muted") and page.text("#sound") == "Mute"
    wait_until(lambda: abs(page.run(LOUDEST) - 440) < 5)


def test_the_browser_keeps_half_a_minute_of_the_film_and_gets_a_minute_in_front(start, page):
    """Hours of film take no more memory in the browser than a minute does. Few frames a second make a minute of a few
    chunks."""
    fps = 12
    live = start("a red ball rolls left", "--ahead", "none", "--no-cache", "--fps", str(fps))
    page.open(live.url)
    page.wait(f"{POSITION} > 0.1")
    page.run("document.querySelector('video').playbackRate = 8")
    page.wait(f"{POSITION} > 75")
    page.wait("player.queue.length === 0 && !player.buffer.updating")
    position, first, last = page.run(
        "const kept = document.querySelector('video').buffered;"
        "return [player.position, kept.start(0), kept.end(kept.length - 1)]"
    )
    chunk = FRAMES_PER_CHUNK / fps
    assert position - first <= 60 + 2 * chunk and last - position <= 60 + 2 * chunk


def test_two_pages_show_the_same_and_both_may_type_and_markup_is_text(start, page):
    live = start("--hold", "1s", "a red ball rolls left")
    with browser() as other:
        for one in (page, other):
            one.open(live.url)
            one.wait(f"{POSITION} > 0.5 && state.viewers === 2" if one is other else f"{POSITION} > 0.5")
        other.type("#prompt", "a blue square" + ENTER)
        for one in (page, other):
            one.wait("document.querySelector('#now').textContent === 'a blue square'")
        page.type("#prompt", "<img src=x onerror=alert(1)> a <b>star</b>" + ENTER)
        for one in (page, other):
            one.wait("document.querySelector('#now').textContent.includes('<b>star</b>')")
            assert one.run("return document.querySelectorAll('#shots img, #shots b, #now *, #next *').length") == 0


def test_the_page_fits_a_phone_has_labels_and_goes_by_keyboard_until_ctrl_c(start, page):
    """Ctrl-C ends the film, and says how to go on."""
    live = start("a red ball rolls left")
    page.command("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    page.open(live.url)
    page.wait(f"{POSITION} > 0.5")
    assert page.run("return document.documentElement.scrollWidth") <= 360
    labels = {
        "#prompt": "Prompt",
        "#seconds": "Hold the prompt for at least so many seconds",
        "#picture": "Picture to start from",
        "#send": "Send",
        "#pause": "Pause",
        "#end": "End the film",
        "video": "The film",
        "input[value=cut]": "cut",
    }
    assert {selector: page.label(selector) for selector in labels} == labels
    page.run("document.activeElement.blur()")
    reached = []
    for _ in range(9):
        page.command("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(page.run("return document.activeElement.id || document.activeElement.getAttribute('href')"))
    wanted = ["prompt", "seconds", "picture", "send", "pause", "end", "recipe.toml", "film.mp4"]
    assert [name for name in reached if name in wanted] == wanted
    for scheme, is_dark in (("dark", True), ("light", False)):
        page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        back = page.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == is_dark
    assert page.complaints() == []
    os.kill(live.process.pid, signal.SIGINT)
    assert live.process.wait() == 130
    assert "finishes the film" in live.said()
    page.wait("document.querySelector('#status').textContent.startsWith('connection lost')")
    page.complaints()  # of a server that was gone


@pytest.mark.skipif(program() is None, reason="needs Firefox: apt install firefox-esr")
def test_firefox_plays_it_too(start, tmp_path):
    music = sounds.write(tmp_path / "music.wav", sounds.tone(5))
    live = start("a red ball rolls left", "--hold", "1s", "--audio", str(music), "--audio-fit", "loop")
    with firefox() as page:
        page.open(live.url)
        page.wait(f"{POSITION} > 2 * {CHUNK}")
        assert page.run(FRAMES) > FPS and page.run("video.mozHasAudio")
        page.run("$('prompt').value = 'a blue square'; $('form').requestSubmit()")
        page.wait("$('now').textContent === 'a blue square'")
        shown = page.run(FRAMES)
        page.wait(f"{FRAMES} > {shown} + {FPS}")
        assert page.complaints == []
