"""A worker without a model, for pools of Ray actors: it answers as `farm.worker` does, and can be made to fail."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from helios_cli import __version__


def hello() -> dict:
    version = os.environ.get("STUB_VERSION", __version__)
    return {"hello": {"host": socket.gethostname(), "pid": os.getpid(), "versions": {"helios": version}}}


class Worker:
    def __init__(self, is_stopped: Callable[[], bool], share: int) -> None:
        self._is_stopped, self._share = is_stopped, share
        self.session = contextlib.nullcontext()

    def answer(self, message: dict) -> Iterator[dict]:
        match message:
            case {"echo": content}:
                names = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
                yield {"echo": content, "share": self._share, **{name: os.environ.get(name) for name in names}}
            case {"count": number, "until": path}:
                for index in range(number):
                    yield {"index": index}
                while not Path(path).exists() and not self._is_stopped():
                    time.sleep(0.01)
                yield {"done": {}, "stopped": self._is_stopped()}
            case {"leave": path}:
                yield {"started": path}
                while not self._is_stopped():
                    time.sleep(0.01)
                Path(path).write_text("safe")
            case {"fail": what}:
                raise KeyboardInterrupt(what)
            case {"exit": code}:
                os._exit(code)
