"""Return what ffmpeg itself prints about a film."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg


def video_stream(film: Path) -> str:
    """Return ffmpeg's line about a film's video: `h264 (High) (...), yuv420p(tv, bt709, progressive), 64x48 ...`."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", f"file:{film}"]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    return re.findall(r"^  Stream #0:\d+\S*: Video: (.*)$", text, re.MULTILINE)[0]
