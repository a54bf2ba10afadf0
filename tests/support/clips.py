"""Films whose faults are known, since they were drawn here: a camera moves over soft shapes, then a fault is put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helios_cli.film.writer import open_writer

SIZE = (128, 72)
CHUNK = 33


def scene(seed: int = 0, *, width: int = 640, height: int = SIZE[1], tint=(1.0, 0.9, 0.75)) -> np.ndarray:
    """A picture [height, width, 3] of soft shapes of all sizes up to 96 pixels, alike in brightness everywhere."""
    generator = np.random.default_rng(seed)
    across, down = np.fft.fftfreq(width)[None, :], np.fft.fftfreq(height)[:, None]
    frequency = np.hypot(across, down)
    amplitude = np.where(frequency < 1 / 96, 0, np.maximum(frequency, 1 / 96) ** -2.0)
    noise = generator.normal(size=(2, height, width))
    layers = [np.fft.ifft2(np.fft.fft2(layer) * amplitude).real for layer in noise]
    shape, color = (layer / layer.std() for layer in layers)
    picture = np.stack([shape * 45 + 120 + color * 20 * share for share in (1, 0, -1)], -1)
    return (picture * tint).clip(0, 255).astype(np.float32)


def pan(picture: np.ndarray, num_frames: int, *, speed: float = 1.5, start: float = 0.0) -> np.ndarray:
    """A camera that moves along `picture` by `speed` pixels a frame, float32 [frames, *SIZE, 3]; it wraps around."""
    width = picture.shape[1]
    frames = []
    for number in range(num_frames):
        left = start + speed * number
        whole, part = int(left // 1), left % 1
        columns = np.arange(whole, whole + SIZE[0])
        near, far = picture[:, columns % width], picture[:, (columns + 1) % width]
        frames.append(near * (1 - part) + far * part)
    return np.stack(frames)


def levels(frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.rint(frames).clip(0, 255), np.uint8)


def noisy(frames: np.ndarray, strength: int) -> np.ndarray:
    """The frames with evenly spread noise of at most `strength` levels."""
    return frames + np.random.default_rng(0).integers(-strength, strength + 1, frames.shape)


def film(path: Path, frames: np.ndarray, fps: float = 24) -> Path:
    """The frames [T, H, W, 3] encoded as helios encodes films; `path` may be a folder."""
    size = frames.shape[2], frames.shape[1]
    with open_writer(path, size=size, fps=fps, preset="veryfast") as writer:
        writer.write(levels(frames))
    return path
