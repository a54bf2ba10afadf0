"""Every kernel against its twin on the GPU at hand, on small and ugly shapes, and a file of the verdicts.

A kernel that compiles and passes the tests can still be wrong on a chip, with a driver or a compiler, that its authors
never had. So `HELIOS_KERNELS=auto` takes only kernels that were found right here:

    "NVIDIA H200": {"made_with": "torch 2.13.0, triton 3.7.1, kernels 0f3c91a2b4d5",
                    "faults": {"renoise": null, "dmd_step": "small: bfloat16: error 1, bound 0.01"}, "lost": {}}

Verdicts of other versions, or of other kernels, do not count.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from helios_kernels import devices


@dataclass(frozen=True)
class Verdicts:
    """Verdicts by operation.

    Attributes:
        faults: what is wrong with it; None where it was right.
        lost: why there is no verdict: its process was killed or took too long. Each is tried once more.
    """

    faults: Mapping[str, str | None]
    lost: Mapping[str, str]

    def why_not(self, operation: str) -> str | None:
        """Return why the kernel must not run; None if it was right."""
        return self.faults.get(operation, self.lost.get(operation, "it was not tried"))


def _parse(entry: dict) -> Verdicts | None:
    return Verdicts(dict(entry["faults"]), dict(entry["lost"])) if entry["made_with"] == made_with() else None


_entries = devices.Entries(_parse)
_tried_here: dict[str, Verdicts] = {}
"""Verdicts of this process by device; they hold even if no file could be written."""

use = _entries.use


def of(device: str) -> Verdicts | None:
    """Return the verdicts on a device; None if these kernels were not tried there."""
    return _tried_here.get(device) or _entries.of(device)


def keep(device: str, verdicts: Verdicts, file: Path) -> None:
    """Take these verdicts from now on, and write them. OSError if they cannot be written."""
    _tried_here[device] = verdicts
    _entries.forget()
    devices.write(device, {"made_with": made_with(), **asdict(verdicts)}, file)


@functools.cache
def made_with() -> str:
    """Return what decides whether kernels are right, in addition to the device."""
    import triton

    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    return f"torch {torch.__version__}, triton {triton.__version__}, kernels {sources.hexdigest()[:12]}"


def operations(chip: str) -> tuple[str, ...]:
    """Return the operations that have a kernel on `chip`."""
    from helios_kernels.check import OPS

    return tuple(name for name, op in OPS.items() if op.chips is None or chip in op.chips)


@torch.no_grad()
def trial(device: torch.device, name: str) -> str | None:
    """Return what is wrong with an operation that the device's chip has; None if it is right.

    Raises what a GPU raises that no longer answers, and OutOfMemoryError, which does not mean that the kernel is wrong.
    """
    from helios_kernels.check import OPS, compare
    from helios_kernels.dispatch import HALVES

    for case in OPS[name].cases:
        try:
            for dtype in HALVES if case.interpreted else ():
                for result in compare(OPS[name], case, dtype, device):
                    if not result.good:
                        kind = str(dtype).removeprefix("torch.")
                        return f"{case.id}: {kind}: error {result.error:.3g}, bound {result.bound:.3g}"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a compiler, a launch or a comparison
            if device.type == "cuda":
                torch.cuda.synchronize()
            return f"{case.id}: {type(error).__name__}: {error}".splitlines()[0]
    return None
