"""Sound files for tests, and what ffmpeg decodes of a file."""

from __future__ import annotations

import subprocess
import wave
from pathlib import Path

import imageio_ffmpeg
import numpy as np

EXE = imageio_ffmpeg.get_ffmpeg_exe()
RATE = 48_000


def tone(seconds: float, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """Sines that differ by channel and beat slowly, so that no two places are alike: float64 [samples, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    pitch, beat = [220 + 110 * n for n in range(channels)], [0.31 + n / 7 for n in range(channels)]
    voices = [np.sin(2 * np.pi * p * time) * np.sin(2 * np.pi * b * time + 1) for p, b in zip(pitch, beat, strict=True)]
    return np.stack(voices, 1) * 0.5


def write(path: Path, samples: np.ndarray, rate: int = RATE, width: int = 2) -> Path:
    """A WAV file of `width` bytes a sample, written by Python's own module."""
    levels = np.rint(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    data = (levels + 128).astype(np.uint8) if width == 1 else levels.astype(f"<i{width}")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return path


def convert(source: Path, target: Path, *options: str) -> Path:
    run("-i", f"file:{source}", *options, "-y", f"file:{target}")
    return target


def run(*arguments: str) -> bytes:
    return subprocess.run([EXE, "-v", "error", *arguments], capture_output=True, check=True).stdout


def heard(path: Path, *filters: str) -> np.ndarray:
    """The first sound stream as ffmpeg decodes it: float32 [samples, 2]."""
    chosen = ["-af", ",".join(filters)] if filters else []
    raw = run("-i", f"file:{path}", "-map", "0:a:0", *chosen, "-f", "f32le", "-")
    return np.frombuffer(raw, np.float32).reshape(-1, 2)


def is_in_time(film: Path, samples: np.ndarray, start: int = 0) -> bool:
    """Return whether a film's sound is `samples` from its first picture on, after a coder with losses: to a
    millisecond, the tick of Matroska, and at most a tenth of it wrong. A second is compared, from `start` on."""
    played = heard_at(film)[round(first_picture(film) * RATE) :]
    wanted = samples[start + 100 : start + 100 + RATE]
    errors = {late: np.abs(played[start + 100 + late :][:RATE] - wanted).mean() for late in range(-100, 101)}
    best = min(errors, key=errors.get)
    return abs(best) <= 50 and errors[best] < np.abs(wanted).mean() / 10


def heard_at(path: Path) -> np.ndarray:
    """As `heard`, from the time 0 of the file on."""
    placed = ["-map", "0:a:0", "-af", "aresample=async=1:first_pts=0", "-f", "f32le", "-"]
    raw = run("-copyts", "-i", f"file:{path}", *placed)
    return np.frombuffer(raw, np.float32).reshape(-1, 2)


def first_picture(path: Path) -> float:
    """The time in seconds of a film's first picture."""
    listed = run("-copyts", "-i", f"file:{path}", "-map", "0:v", "-c", "copy", "-f", "framecrc", "-").decode()
    base = next(line for line in listed.splitlines() if line.startswith("#tb 0:")).split()[-1]
    numerator, denominator = map(int, base.split("/"))
    time = next(line for line in listed.splitlines() if not line.startswith("#")).split(",")[2]
    return int(time) * numerator / denominator


def picture_packets(path: Path) -> bytes:
    """Time, length and hash of every packet of the picture."""
    return run("-i", f"file:{path}", "-map", "0:v", "-c", "copy", "-f", "framehash", "-")
