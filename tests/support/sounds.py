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


def picture_packets(path: Path) -> bytes:
    """Time, length and hash of every packet of the picture."""
    return run("-i", f"file:{path}", "-map", "0:v", "-c", "copy", "-f", "framehash", "-")
