"""Turns the errors of a device or host that ran out of memory into `OutOfMemory`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch

from helios_cli.errors import OutOfMemory

USE_LESS = "use --offload stream, a smaller --size, or a smaller --vram so that less of the model stays in memory"

DEVICE_MESSAGES = (
    "error: out of memory",
    "[CUDA]: out of memory",
    "BLAS_STATUS_ALLOC_FAILED",
    "DNN_STATUS_ALLOC_FAILED",
)
"""Parts of RuntimeErrors by the CUDA runtime (which also pins host memory), Triton, cuBLAS and cuDNN."""


E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """Drop the tracebacks of an error and its causes, whose frames hold tensors."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__, link = None, link.__cause__ or link.__context__
    return error


@contextlib.contextmanager
def memory_errors(hint: str = USE_LESS) -> Iterator[None]:
    """Raise OutOfMemory in place of the errors that PyTorch and its libraries raise without memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(words in message for words in DEVICE_MESSAGES):
            first = message.strip().splitlines()[0].partition(". ")[0].rstrip(".")
            raise OutOfMemory(f"the device ran out of memory: {first}", hint=hint) from error
        if isinstance(error, MemoryError) or "can't allocate memory" in message:
            raise OutOfMemory("this machine ran out of memory", hint=hint) from error
        raise
