"""GPUs that a film can be planned for without having one, by their makers' figures.

Rates are dense, with sums in float32 (GeForce cards halve those; float16 is as fast as bfloat16). Compared with copies
of the makers' tables on 2026-11-28: rates and bandwidth of RTX 4090, L40S, H100, H200, B200 and MI300X, rates of A100.
Not confirmed: the other cards, the bandwidth of A100, the float32 rates of H200 and MI300X, H100 PCIe, links, and
memory, which is in MiB as the driver shows it, some less with ECC. Times that follow from them are marked as stated.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from helios_cli.device import Device
from helios_cli.errors import InputError, MachineError
from helios_cli.weights.fp8 import FP8_CAPABILITY, Quant

LINKS = {"4.0 x8": 10e9, "4.0 x16": 20e9, "5.0 x8": 20e9, "5.0 x16": 40e9}
"""Bytes a second that pinned memory reaches over PCIe, five eighths of the nominal. Stated."""


class KnownGpu(NamedTuple):
    """Operations and bytes a second. `fp8_flops` is None where `--quant fp8` does not run."""

    memory_mib: int
    bandwidth: float
    bfloat16_flops: float
    fp8_flops: float | None
    float32_flops: float
    link: str

    @property
    def total_bytes(self) -> int:
        return self.memory_mib * 2**20


def _gpu(mib: int, gb_s: float, bfloat16: float, fp8: float | None, float32: float, link: str) -> KnownGpu:
    return KnownGpu(mib, gb_s * 1e9, bfloat16 * 1e12, fp8 and fp8 * 1e12, float32 * 1e12, link)


KNOWN_GPUS = {
    "RTX 3060 12GB": _gpu(12288, 360, 25.5, None, 12.7, "4.0 x16"),
    "RTX 3090": _gpu(24576, 936, 71, None, 35.6, "4.0 x16"),
    "RTX 4060 Ti 16GB": _gpu(16380, 288, 44.1, 88.3, 22.1, "4.0 x8"),
    "RTX 4070": _gpu(12282, 504, 58.3, 116.6, 29.1, "4.0 x16"),
    "RTX 4080": _gpu(16376, 717, 97.5, 194.9, 48.7, "4.0 x16"),
    "RTX 4090": _gpu(24564, 1008, 165.2, 330.3, 82.6, "4.0 x16"),
    "RTX 5060 Ti 16GB": _gpu(16311, 448, 47.4, 94.9, 23.7, "5.0 x8"),
    "RTX 5070": _gpu(12227, 672, 61.7, 123.5, 30.9, "5.0 x16"),
    "RTX 5080": _gpu(16303, 960, 112.6, 225.1, 56.3, "5.0 x16"),
    "RTX 5090": _gpu(32607, 1792, 209.5, 419, 104.8, "5.0 x16"),
    "RTX A6000": _gpu(49140, 768, 154.8, None, 38.7, "4.0 x16"),
    "RTX 6000 Ada": _gpu(49140, 960, 364.2, 728.5, 91.1, "4.0 x16"),
    "RTX PRO 6000": _gpu(97887, 1792, 503.8, 1007.6, 126, "5.0 x16"),
    "A10": _gpu(23028, 600, 125, None, 31.2, "4.0 x16"),
    "L4": _gpu(23034, 300, 121, 242.5, 30.3, "4.0 x16"),
    "L40S": _gpu(46068, 864, 362, 733, 91.6, "4.0 x16"),
    "A100 80GB": _gpu(81920, 1935, 312, None, 19.5, "4.0 x16"),
    "A100 40GB": _gpu(40960, 1555, 312, None, 19.5, "4.0 x16"),
    "H100": _gpu(81559, 3350, 989, 1979, 67, "5.0 x16"),
    "H100 PCIe": _gpu(81559, 2000, 756, 1513, 51, "5.0 x16"),
    "H200": _gpu(143771, 4800, 989, 1979, 67, "5.0 x16"),
    "B200": _gpu(183359, 7700, 2250, 4500, 75, "5.0 x16"),
    "MI300X": _gpu(196592, 5300, 1307, None, 163.4, "5.0 x16"),
}
"""Cards with several sizes of memory have the larger one first: `A100` is that one."""

NVLINKS = {"A100 80GB": 200e9, "A100 40GB": 200e9, "H100": 300e9, "H200": 300e9, "B200": 600e9}
"""Bytes a second that one such GPU receives from others over NVLink, two thirds of the nominal. Stated."""

_SAYS_NOTHING = re.compile(
    r"nvidia|geforce|rtx|amd|instinct|tesla|generation|blackwell|workstation|server|edition|sxm\d?|hbm\d?e?"
)
_MEMORY = re.compile(r"\d+gb")


def known_gpu(name: str) -> tuple[str, KnownGpu] | None:
    """Return the GPU of this name, as a driver or a user writes it ("NVIDIA A100-SXM4-40GB", "4090"); None for others,
    such as one that only begins with a name here ("RTX 4070 Ti")."""
    words = _words(name)
    for given in (words, words - {"pcie"}):  # PCIe is a chip of its own only if a name here has it
        for known, gpu in KNOWN_GPUS.items():
            own = _words(known)
            model = {word for word in own if not _MEMORY.fullmatch(word)}
            memory = f"{round(gpu.memory_mib / 1024)}gb"
            if model and model <= given <= own | {memory}:
                return known, gpu
    return None


def peer_rate(name: str) -> float | None:
    """Return the bytes a second that a GPU receives from another of its kind in the same machine; None if unknown.

    GPUs that are sold with NVLink are taken to be joined by it, others by PCIe.
    """
    known = known_gpu(name)
    return NVLINKS.get(known[0], LINKS[known[1].link]) if known else None


def require_gpu(name: str) -> tuple[str, KnownGpu]:
    """Return `known_gpu`, or raise an InputError with the nearest names."""
    if known := known_gpu(name):
        return known
    text = " ".join(sorted(_words(name)))
    near = sorted(KNOWN_GPUS, key=lambda known: -_alike(text, known))[:3]
    raise InputError(
        f"--on {name}: unknown GPU",
        hint=f"the nearest are {', '.join(near)}; all are {', '.join(KNOWN_GPUS)}",
    )


def other_device(name: str) -> Device:
    """Return a GPU of KNOWN_GPUS that is not here, with all of its memory free. Raises InputError for another name."""
    known, gpu = require_gpu(name)
    return Device("cuda", known, gpu.total_bytes, gpu.total_bytes)


def require_quant(quant: Quant, device: Device) -> None:
    """Raise MachineError for fp8 products on a `device` that is known to have none that helios can use."""
    known = known_gpu(device.name)
    old = device.capability is not None and device.capability < FP8_CAPABILITY
    if (
        quant != "none"
        and device.kind != "cpu"
        and (device.kind != "cuda" or old or (known and not known[1].fp8_flops))
    ):
        raise MachineError(
            f"--quant {quant}: {device.name} has no fp8 products that helios can use (NVIDIA GPUs from Ada on have)",
            hint="leave out --quant",
        )


def _words(name: str) -> frozenset[str]:
    spaced = re.sub(r"(?<=rtx)(?=\d)|(?<=\d)(?=ti|super)", " ", name.lower())
    return frozenset(word for word in re.findall(r"[a-z0-9]+", spaced) if not _SAYS_NOTHING.fullmatch(word))


def _alike(text: str, known: str) -> float:
    return difflib.SequenceMatcher(None, text, " ".join(sorted(_words(known)))).ratio()
