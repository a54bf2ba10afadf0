"""Finds the rate at which brightness rises and falls periodically."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CYCLES = 4
"""Periods that a stretch must hold. One dip, a flash or a fade is none of them."""

LEAST_SHARE = 0.5
"""Share of the variance that the one rate must explain. A sawtooth's is 0.6, that of random change far less."""

LEAST_EVENNESS = 0.5
"""Weakest of the three thirds of a stretch against the strongest: what is periodic goes on."""

LEAST_SWING = 0.5
"""Levels: less is the coder's, or rounding."""

PADDING = 8
"""Points of the spectrum for each that is independent, to find the peak between them."""


@dataclass(frozen=True)
class Flicker:
    """A periodic change: its rate, and how far it goes from lowest to highest, in levels."""

    hz: float
    swing: float


def periodic(brightness: np.ndarray, fps: float, *, below_hz: float = float("inf")) -> Flicker | None:
    """Return the strongest periodic change of at least four cycles; None if there is none that stands out."""
    count = len(brightness)
    if count < 2 * CYCLES + 1:
        return None
    times = np.arange(count) / fps
    rest = brightness - np.polyval(np.polyfit(times, brightness, 1), times)
    window = np.hanning(count + 2)[1:-1]
    spectrum = np.abs(np.fft.rfft(rest * window, PADDING * count)) ** 2
    rates = np.fft.rfftfreq(PADDING * count, 1 / fps)
    low = int(np.searchsorted(rates, CYCLES * fps / count * (1 - 1e-9)))
    high = int(np.searchsorted(rates, min(below_hz, fps / 2) * (1 + 1e-9)))
    if high - low < 2 or spectrum.max() <= 0:
        return None
    peak = low + int(spectrum[low:high].argmax())
    # A peak at an end of the range is the slope of a slower or faster one; the last rate of all may be one.
    if peak == low and spectrum[peak - 1] > spectrum[peak]:
        return None
    if peak + 1 < len(spectrum) and spectrum[peak + 1] > spectrum[peak]:
        return None
    hz = _top(spectrum, peak) * fps / (PADDING * count)
    parts = [slice(index * count // 3, (index + 1) * count // 3) for index in range(3)]
    thirds = [_fitted(times[part], rest[part], hz, fps)[0] for part in parts]
    swing, share = _fitted(times, rest, hz, fps)
    if swing < LEAST_SWING or share < LEAST_SHARE or min(thirds) < LEAST_EVENNESS * max(thirds):
        return None
    return Flicker(hz, swing)


def _top(spectrum: np.ndarray, peak: int) -> float:
    """Return where the parabola through the logarithms at a peak and its neighbours is highest."""
    if peak + 1 >= len(spectrum):
        return float(peak)
    left, middle, right = np.log(spectrum[peak - 1 : peak + 2] + np.finfo(float).tiny)
    bend = left - 2 * middle + right
    return peak + float((left - right) / (2 * bend)) if bend < 0 else float(peak)


def _fitted(times: np.ndarray, values: np.ndarray, hz: float, fps: float) -> tuple[float, float]:
    """Fit a wave of the rate `hz` on a slope. Return its swing, and the share of the variance about the slope that it
    explains."""
    angles = 2 * np.pi * hz * times
    slope = [np.ones_like(times), times - times.mean()]
    # At half the frame rate the sine is 0 at every frame.
    waves = [np.cos(angles)] if hz > 0.499 * fps else [np.cos(angles), np.sin(angles)]
    unexplained = _residual(slope, values)
    waved = np.stack([*waves, *slope], 1)
    weights = np.linalg.lstsq(waved, values, rcond=None)[0]
    left = values - waved @ weights
    total = float(unexplained @ unexplained)
    return 2 * float(np.hypot.reduce(weights[: len(waves)])), 1 - float(left @ left) / total if total > 0 else 0.0


def _residual(basis: list[np.ndarray], values: np.ndarray) -> np.ndarray:
    matrix = np.stack(basis, 1)
    return values - matrix @ np.linalg.lstsq(matrix, values, rcond=None)[0]
