"""A Ray cluster of several nodes on this machine, on 127.0.0.1 alone, in a process that loses nodes on command.

A line on stdin is a command: `lose N` kills node N (from 1: node 0 is the head) with all its processes, `lose head`
kills the head's server, `add` starts a node. The process answers with the same line. The cluster ends with stdin.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for: loopback only
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",  # a node that does not answer is dead after a few seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",  # and a lost head is noticed
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Nodes:
    """A running cluster. `environment` lets a driver in."""

    address: str
    environment: Mapping[str, str]
    process: subprocess.Popen

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Give this process, and those that it starts, what lets a driver in."""
        with mock.patch.dict(os.environ, self.environment):
            yield

    def do(self, command: str) -> None:
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == command


@contextlib.contextmanager
def ray_nodes(
    *nodes: Mapping[str, int],
    environment: Mapping[str, str] | None = None,
    ray: str = "",
    command: Sequence[str] = (),
) -> Iterator[Nodes]:
    """Start a cluster with a node for each mapping ({"num_cpus": 1}); the first is the head, and has workers too.

    `ray` is the version that the cluster says it has, `environment` is added to ENVIRONMENT, and `command` runs the
    program whose arguments follow it (`without_folder`).
    """
    environment = {**ENVIRONMENT, **(environment or {})}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # the paths of sockets are short
        environment["RAY_TMPDIR"] = folder
        with Path(folder, "log").open("w") as log:
            process = subprocess.Popen(
                [
                    *command,
                    sys.executable,
                    __file__,
                    ray,
                    *(f"{key}={value}" for node in nodes for key, value in node.items()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        try:
            address = process.stdout.readline().strip()
            assert address, Path(folder, "log").read_text()
            yield Nodes(address, environment, process)
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(ProcessLookupError):  # agents of killed nodes
                os.killpg(process.pid, signal.SIGKILL)


def without_folder(folder: Path) -> list[str]:
    """Return the beginning of a command for a process that has an empty folder in the place of `folder`.

    Where the system does not let a user have mounts of his own, it is empty.
    """
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        command = [*unshare, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return command
    return []


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set(), {pid}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in new} - found
    return found - {pid}


def serve(version: str, nodes: list[dict[str, int]]) -> None:
    import ray
    from ray.cluster_utils import Cluster

    if version:
        ray.__version__ = version
    small = {"object_store_memory": 80 * 2**20, "include_log_monitor": False}
    head = {"include_dashboard": False, "no_monitor": True}  # nothing here scales by itself
    cluster = Cluster(initialize_head=True, head_node_args={**nodes[0], **head, **small})
    running = [cluster.head_node, *(cluster.add_node(**node, **small) for node in nodes[1:])]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["lose", "head"]:
                cluster.head_node.kill_gcs_server()
            case ["lose", number]:
                node = running[int(number)]
                for pid in descendants(node.all_processes["raylet"][0].process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)  # they would outlive their node for seconds
                cluster.remove_node(node, allow_graceful=False)
            case ["add"]:
                running.append(cluster.add_node(**nodes[0], **small))
        print(line.strip(), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    said = [argument.split("=") for argument in sys.argv[2:]]
    serve(sys.argv[1], [{key: int(value)} for key, value in said])
