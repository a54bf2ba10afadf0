"""Stand-ins for a GPU's streams and events, for machines without one: they record the calls."""

from __future__ import annotations


class Queue:
    """A stand-in for a CUDA stream that records its calls, in order."""

    def __init__(self, name: str, log: list) -> None:
        self.name, self.log = name, log

    def wait_event(self, event: Mark) -> None:
        self.log.append((self.name, "waits for", event))

    def wait_stream(self, other: Queue) -> None:
        self.log.append((self.name, "waits for", other.name))

    def synchronize(self) -> None:
        self.log.append((self.name, "ends", None))


class Mark:
    """Stands in for a CUDA event. `log`: where it tells that the host, in any thread, waits for it."""

    def __init__(self, log: list) -> None:
        self.log = log

    def record(self, queue: Queue) -> None:
        queue.log.append((queue.name, "marks", self))

    def synchronize(self) -> None:
        self.log.append(("host", "waits for", self))
