"""The process between a driver and a Ray cluster: it holds the Ray actors, and relays messages between both.

Ray ends a driver's process when the head of its cluster is lost, waits for minutes for a head that is not there, prints
to stdout and stderr, and takes over SIGTERM. In a process of its own none of this reaches the command: `cluster` reads
plain messages from a pipe, and may kill this process, with which its actors die.

Replies are fetched (`Actor.take`) rather than streamed: a call that fails while a node cannot be reached is repeated
without losing or doubling a reply, and Ray Client (ray://) has no streaming calls.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from helios_cli.errors import HeliosError, MachineError
from helios_cli.farm.pool import PASSIVE, STOP_SECONDS, Message
from helios_cli.farm.ray_words import PATIENCE_SECONDS, broken_node, no_cluster, place_of, reason_of, refusal
from helios_cli.files import sha256_of

POLL_SECONDS = 10
"""Seconds that an actor waits for a reply to give before it answers that there is none."""

PROBE_SECONDS = 10
"""Seconds to wait for something that listens at the cluster's address."""

NOTICE_SECONDS = 5
"""Seconds after which a worker that waits for its GPUs says so, again and again: then it does not count as hung."""

SEES_SECONDS = 60
"""Seconds for a worker to find out whether it sees a file."""

CLOSE_SECONDS = 30
"""Seconds after the driver's end within which this process ends, whatever Ray does."""

STORE_BYTES = 256 * 2**20
"""Object store of a private Ray: the messages on their way, a few MB each."""

CLIENT = "ray://"

TRIES = 3
"""Times to connect through ray://: the head starts a process for each client, and that process sometimes dies at its
start (ray-project/ray#63202)."""


@dataclass(frozen=True)
class Wish:
    """The workers that a driver asks a cluster for.

    Attributes:
        address: "local", "auto", HOST:PORT or ray://HOST:PORT.
        workers: how many workers; None for as many as the cluster has room for.
        most: the most workers that there is work for, or None.
        gpus: GPUs of a worker, all in one node.
        device: --device. "cpu" takes no GPU, "cuda" needs one, "auto" takes GPUs if the cluster has any.
        module: the module of the workers; it has `hello` and `Worker` (`farm.worker`).
        environment: variables that workers get.
    """

    address: str
    workers: int | None = None
    most: int | None = None
    gpus: int = 1
    device: str = "auto"
    module: str = "helios_cli.farm.worker"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """The part of a node that one worker takes, and how many workers each node has room for."""

    cpus: int
    gpus: int
    rooms: tuple[int, ...]

    @property
    def bundle(self) -> dict[str, float]:
        """The share as a bundle of a placement group."""
        return {key: float(value) for key, value in (("CPU", self.cpus), ("GPU", self.gpus)) if value}

    def __str__(self) -> str:
        number, what = (self.gpus, "GPU") if self.gpus else (self.cpus, "CPU")
        return f"{number} {what}{'' if number == 1 else 's'}"


def share_of(nodes: list[Mapping[str, float]], wish: Wish) -> Share:
    """Divide a cluster among workers. `nodes` are the resources of its nodes, as `ray.nodes()` gives them.

    A worker on GPUs takes no CPU in Ray's books. Without GPUs there is one worker a node, or as many as are wished for,
    with the same number of CPUs each. Raises MachineError if the cluster cannot hold a worker.
    """
    gpus = [int(node.get("GPU", 0)) for node in nodes if int(node.get("GPU", 0))]
    cpus = sorted(int(node.get("CPU", 0)) for node in nodes if int(node.get("CPU", 0)))
    if gpus and wish.device != "cpu":
        most = max(gpus)
        if most < wish.gpus:
            raise MachineError(
                f"--gpus-per-film {wish.gpus}: no node of the cluster has so many GPUs, the largest has {most}",
                hint=f"use --gpus-per-film {most} or less",
            )
        return Share(0, wish.gpus, tuple(number // wish.gpus for number in gpus))
    if wish.device not in ("auto", "cpu"):
        raise MachineError(
            f"--device {wish.device}: {place_of(wish.address)} has no GPU",
            hint="start a node that has one: ray start --address HEAD:PORT --num-gpus 1",
        )
    if not cpus:
        raise MachineError(
            f"{place_of(wish.address)} has no CPU or GPU for workers",
            hint="start a node: ray start --address HEAD:PORT",
        )
    if wish.workers is None:
        return Share(cpus[0], 0, (1,) * len(cpus))
    each = next((each for each in range(cpus[-1], 1, -1) if sum(have // each for have in cpus) >= wish.workers), 1)
    return Share(each, 0, tuple(have // each for have in cpus))


class Actor:
    """A worker in a Ray actor. Its messages and replies are numbered, so that repeated calls change nothing.

    Args:
        module: the module of the worker (`Wish`).
        environment: variables that it gets.
        together: the number of workers that may share the memory of its node.
    """

    def __init__(self, module: str, environment: Mapping[str, str], together: int) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # from Ray; bits of a film depend on it
        os.environ.update(environment)  # before torch is imported, which reads them once
        self._module, self._together = module, together
        self._stopped = threading.Event()
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._received = 0
        self._replies: list[Message] = []
        self._taken = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def send(self, number: int, message: Message) -> None:
        """Queue message `number`, counted from 0."""
        with self._changed:
            if number == self._received:
                self._received += 1
                self._messages.put(message)

    def take(self, seen: int, seconds: float) -> list[Message]:
        """Return the replies after the first `seen`, once there are any or `seconds` have passed."""
        with self._changed:
            del self._replies[: seen - self._taken]
            self._taken = seen
            self._changed.wait_for(lambda: self._replies, seconds)
            return list(self._replies)

    def sees(self, path: str, digest: str) -> bool:
        """Return whether the file at `path` is here too, with the same SHA-256."""
        return digest_of(Path(path)) == digest

    def stop(self, seconds: float) -> None:
        """Stop the worker after its step, and return when it has made its computed chunks safe."""
        self._stopped.set()
        self._messages.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            module = importlib.import_module(self._module)
            self._reply(module.hello())
            worker = module.Worker(self._stopped.is_set, self._together)
            with worker.session:
                while (message := self._messages.get()) is not None and not self._stopped.is_set():
                    for reply in worker.answer(message):
                        self._reply(reply)
        except BaseException as error:  # the thread ends with it, and says so
            last = traceback.format_exception_only(error)[-1].strip()
            self._reply({"lost": f"it failed: {last}"})

    def _reply(self, reply: Message) -> None:
        with self._changed:
            self._replies.append(reply)
            self._changed.notify_all()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or "" if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return ""


class Place:
    """One worker's place in the cluster: the resources reserved for it, and the actor that has them now."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name = name
        self._cluster = cluster
        self._group = cluster.reserve()
        self._lock = threading.Lock()
        self._turn = 0
        self._actor: Any = None
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def begin(self) -> None:
        """Start an actor. What an earlier one still says is not passed on."""
        self.end()
        with self._lock:
            self._outbox = queue.SimpleQueue()
            threading.Thread(target=self._run, args=(self._turn, self._outbox), daemon=True).start()

    def end(self) -> None:
        """Kill the actor."""
        with self._lock:
            self._turn += 1
            actor, self._actor = self._actor, None
            self._outbox.put(None)
        if actor is not None:
            self._cluster.kill(actor)

    def give_up(self) -> None:
        """Kill the actor, and give its resources back to the cluster."""
        self.end()
        self._cluster.free(self._group)

    def send(self, message: Message) -> None:
        self._outbox.put(message)

    def sees(self, path: str, digest: str) -> bool:
        """Return whether the worker sees this machine's file at `path`."""
        try:
            return self._actor is not None and self._cluster.ray.get(
                self._actor.sees.remote(path, digest), timeout=SEES_SECONDS
            )
        except self._cluster.ray.exceptions.RayError:  # then it is lost, which `_take_all` reports
            return False

    def stop(self) -> Any:
        """Ask the actor to stop. Returns what to wait for, or None if there is no actor."""
        return None if self._actor is None else self._actor.stop.remote(STOP_SECONDS)

    def _run(self, turn: int, outbox: queue.SimpleQueue[Message | None]) -> None:
        """Live one actor's life: wait for room, start it, and pass messages on until it is lost or replaced."""
        try:
            self._wait_for_room(turn)
            with self._lock:
                if self._turn != turn:
                    return
                self._actor = actor = self._cluster.actor(self._group)
            sender = threading.Thread(target=self._send_all, args=(turn, actor, outbox), daemon=True)
            sender.start()
            self._take_all(turn, actor)
        except self._cluster.ray.exceptions.RayError as error:
            if fault := broken_node(str(error)):
                self._cluster.fail(fault)
            self._say(turn, {"lost": reason_of(str(error))})

    def _wait_for_room(self, turn: int) -> None:
        ready = self._group.ready()
        while self._turn == turn and not self._cluster.ray.wait([ready], timeout=NOTICE_SECONDS)[0]:
            self._say(turn, {"waiting": f"worker {self.name} waits for {self._cluster.shortage()}"})

    def _send_all(self, turn: int, actor: Any, outbox: queue.SimpleQueue[Message | None]) -> None:
        number = 0
        with contextlib.suppress(self._cluster.ray.exceptions.RayError):  # `_take_all` meets it too, and reports it
            while (message := outbox.get()) is not None and self._turn == turn:
                self._reach(actor.send, number, message)
                number += 1

    def _take_all(self, turn: int, actor: Any) -> None:
        seen = 0
        while self._turn == turn:
            replies = self._reach(actor.take, seen, POLL_SECONDS)
            seen += len(replies)
            for reply in replies:
                self._say(turn, reply)

    def _reach(self, method: Any, *arguments: object) -> Any:
        """Return the result of an actor's method, repeated while it cannot be reached. RayActorError if that lasts."""
        give_up = None
        while True:
            try:
                return self._cluster.ray.get(method.remote(*arguments))
            except self._cluster.ray.exceptions.ActorUnavailableError:
                give_up = give_up or time.monotonic() + PATIENCE_SECONDS
                if time.monotonic() > give_up:
                    raise
                time.sleep(1)

    def _say(self, turn: int, message: Message) -> None:
        with self._lock:
            if self._turn == turn:
                self._cluster.say(self.name, message)


class Cluster:
    """The connection to Ray, and the places of its workers."""

    def __init__(self, wish: Wish, folder: Path, pipe: Connection) -> None:
        import ray

        self.ray = ray
        self._wish, self._folder, self._pipe = wish, folder, pipe
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}
        self._share = Share(0, 0, ())

    def connect(self) -> None:
        """Connect to the cluster, or start a private one. Raises HeliosError."""
        address = self._wish.address
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address == "local":
            cpus = max(os.cpu_count() or 1, self._wish.workers or 0)
            quiet |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
            quiet |= {"_temp_dir": str(self._folder)}
        elif address != "auto":
            probe(address.removeprefix(CLIENT))
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                self.ray.init(address=address, **quiet)
                return
            except (ConnectionError, RuntimeError, ValueError, ImportError, self.ray.exceptions.RayError) as error:
                if last or not (address.startswith(CLIENT) and "Initialization failure" in str(error)):
                    raise refusal(address, f"{error}\n{error.__cause__ or ''}") from error

    def settle(self) -> list[str]:
        """Divide the cluster and give each worker its place. Returns their names. Raises HeliosError."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self._share = share_of(nodes, self._wish)
        count = self._wish.workers if self._share.gpus and self._wish.workers else sum(self._share.rooms)
        kind = "gpu" if self._share.gpus else "cpu"
        count = min([count, *filter(None, (self._wish.workers, self._wish.most))])
        names = [f"{kind}{index}" for index in range(count)]
        self.tell("names", names)
        self._places = {name: Place(name, self) for name in names}
        for place in self._places.values():
            place.begin()
        return names

    def serve(self, commands: queue.SimpleQueue[tuple]) -> None:
        """Follow the driver's commands until it closes the pool or is gone."""
        while True:
            match commands.get():
                case ("send", name, message):
                    self._places[name].send(message)
                case ("renew", name):
                    self._places[name].begin()
                case ("end", name):
                    self._places[name].give_up()
                case ("sees", name, path, digest):
                    threading.Thread(target=self._answer_sees, args=(name, path, digest), daemon=True).start()
                case _:
                    return

    def _answer_sees(self, name: str, path: str, digest: str) -> None:
        self.tell("sees", self._places[name].sees(path, digest))

    def close(self) -> None:
        """Stop the actors, kill those that do not stop in time, and a private Ray with them."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            stops = [stop for place in self._places.values() if (stop := place.stop()) is not None]
            if stops:
                self.ray.wait(stops, num_returns=len(stops), timeout=STOP_SECONDS)
        for place in self._places.values():
            place.end()
        self.ray.shutdown()

    def reserve(self) -> Any:
        """A placement group for one worker. It outlives the actor, so that no other job takes a failed worker's GPU."""
        return self.ray.util.placement_group([self._share.bundle], strategy="STRICT_PACK")

    def free(self, group: Any) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):  # the cluster is being lost
            self.ray.util.remove_placement_group(group)

    def actor(self, group: Any) -> Any:
        """Start an actor in its placement group."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        environment = self._wish.environment if self._share.gpus else {**PASSIVE, **self._wish.environment}
        options = self.ray.remote(Actor).options(
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            max_concurrency=4,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        return options.remote(self._wish.module, environment, min(max(self._share.rooms), len(self._places)))

    def kill(self, actor: Any) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):  # it is dead already
            self.ray.kill(actor, no_restart=True)

    def shortage(self) -> str:
        """Say what a worker waits for, and how much of it the cluster has."""
        kind = "GPU" if self._share.gpus else "CPU"
        total = int(self.ray.cluster_resources().get(kind, 0))
        free = int(self.ray.available_resources().get(kind, 0))
        return f"{self._share}: {free} of {total} are free on {place_of(self._wish.address)}"

    def say(self, name: str, message: Message) -> None:
        """Pass a worker's message to the driver."""
        self.tell("message", name, message)

    def fail(self, error: HeliosError) -> None:
        """Report an error that no other worker would survive."""
        self.tell("error", error.to_dict())

    def tell(self, *words: object) -> None:
        with self._lock, contextlib.suppress(OSError):  # the driver is gone, and `listen` ends this process
            self._pipe.send(words)


def probe(address: str) -> None:
    """Wait until something listens at HOST:PORT. MachineError if nothing does; Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + PROBE_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > end or isinstance(error, socket.gaierror):
                raise no_cluster(address, error.strerror or str(error)) from error
        time.sleep(0.5)


def listen(pipe: Connection, commands: queue.SimpleQueue[tuple], folder: Path, has_begun: threading.Event) -> None:
    """Pass the driver's commands on. When the driver closes the pipe or is gone, this process ends: within
    CLOSE_SECONDS if it `has_begun` something that has to be closed, else at once."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            commands.put(pipe.recv())
    if not has_begun.is_set():
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGKILL)
    commands.put(("close",))
    signal.alarm(CLOSE_SECONDS)  # has no Python handler, which could not run while a call of Ray hangs


def main() -> None:
    """Run the process: `relay DESCRIPTOR FOLDER`, with a `Wish` as JSON on the command line."""
    descriptor, folder, wish = int(sys.argv[1]), Path(sys.argv[2]), Wish(**json.loads(sys.argv[3]))
    os.set_inheritable(descriptor, False)  # Ray's processes would hold the pipe open
    pipe = Connection(descriptor)
    commands: queue.SimpleQueue[tuple] = queue.SimpleQueue()
    has_begun = threading.Event()
    threading.Thread(target=listen, args=(pipe, commands, folder, has_begun), daemon=True).start()
    cluster = Cluster(wish, folder, pipe)
    try:
        if wish.address == "local":
            has_begun.set()  # Ray's processes are this one's
        cluster.connect()
        has_begun.set()
        cluster.settle()
        cluster.serve(commands)
    except HeliosError as error:
        cluster.fail(error)
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
