"""Measures how long a typed prompt takes to show: python tests/latency_live.py [--prompts 20] [--ahead 3s]

Starts `helios live --serve` with the embedded model, opens its page in Chromium, and sends prompts in turn, day and
night, each as a cut. The clock runs in the page, from Enter to the first video frame that is as dark or light as the
other prompt. Needs chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from support.browser import browser

PROMPTS = ("a white star moves to the right at night", "a red ball rolls left")

MEASURE = """
return (async text => {
const video = document.querySelector("video"), canvas = document.createElement("canvas");
canvas.width = canvas.height = 16;
const context = canvas.getContext("2d", { willReadFrequently: true });
const brightness = () => {
  context.drawImage(video, 0, 0, 16, 16);
  return context.getImageData(0, 0, 16, 16).data.reduce((sum, value) => sum + value) / 1024;
};
brightness();
await new Promise(done => video.requestVideoFrameCallback(done));  // the first picture of a canvas may be empty
const before = brightness(), at = player.position;
document.querySelector("#prompt").value = text;
document.querySelector("input[value=cut]").checked = true;
const began = performance.now();
document.querySelector("#form").requestSubmit();
return new Promise(done => {
  const look = () => {
    const shot = shots.at(-1);  // the film before may flicker by itself
    if (shot.prompt === text && player.position >= shot.start && Math.abs(brightness() - before) > 30)
      done({ seconds: (performance.now() - began) / 1000, film: player.position - at });
    else video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
});
})(arguments[0]);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--ahead", default="3s")
    parser.add_argument("--size", default="128x64")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "helios_cli", "live", PROMPTS[1], "-m", "tiny", "--size", options.size]
        command += ["--no-cache", "--hold", "1s", "--ahead", options.ahead, "--serve", "0", "-o", f"{folder}/film.mp4"]
        log = Path(folder, "log")
        with log.open("w") as file:
            live = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file)
        try:
            results = measure(log, options.prompts)
        finally:
            live.terminate()
            live.wait()
    seconds, film = ([one[key] for one in results] for key in ("seconds", "film"))
    print(json.dumps({"ahead": options.ahead, "prompts": results}))
    print(f"Enter to changed picture: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")
    print(f"of these, seconds of film: median {statistics.median(film):.2f}, worst {max(film):.2f}")


def measure(log: Path, count: int) -> list[dict[str, float]]:
    """The seconds that each prompt took, on the wall and of the film."""
    while not (found := re.search(r"http://\S+", log.read_text())):
        time.sleep(0.1)
    results = []
    with browser() as page:
        page.open(found[0])
        page.wait("player && player.position > 5")
        for number in range(count):
            page.wait("!state.waiting.length && shots.at(-1).start + 1.4 < player.position")
            answer = page.run(MEASURE, PROMPTS[number % 2])
            results.append(answer)
            print(f"{number + 1:2}: {answer['seconds']:.2f} s, {answer['film']:.2f} s of film", file=sys.stderr)
            time.sleep(0.37 * (number % 5))  # not always at the same place in a chunk
    return results


if __name__ == "__main__":
    main()
