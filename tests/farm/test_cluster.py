"""Workers as Ray actors, without a model: how a cluster is divided, what its failures say, and what is left after them.

The clusters are private ones of `local`, and several nodes on 127.0.0.1.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from helios_cli import __version__
from helios_cli.errors import InputError, MachineError
from helios_cli.farm import cluster
from helios_cli.farm.cluster import ClusterPool, check_address, check_versions
from helios_cli.farm.ray_words import broken_node, reason_of, refusal
from helios_cli.farm.relay import Actor, Share, Wish, share_of
from support.ray_nodes import descendants, ray_nodes
from support.waiting import LONGEST, alive, wait_until

TESTS = Path(__file__).resolve().parents[1]


def pool_of(address: str, **how) -> closing[ClusterPool]:
    return closing(ClusterPool(Wish(address, module="support.ray_worker", **how)))


def until(pool: ClusterPool, key: str, *names: str) -> dict[str, dict]:
    """Wait for a message with `key` from each of the workers, and return them; without names, from any."""
    end = time.monotonic() + LONGEST
    found: dict[str, dict] = {}
    while time.monotonic() < end:
        for name, message in pool.receive(1):
            if key in message and (name in names or not names):
                found[name] = message
        if found and found.keys() >= set(names):
            return found
    raise AssertionError(f"no message with {key} from {set(names) - set(found)}")


def pids_of(pool: ClusterPool, *names: str) -> dict[str, int]:
    return {name: message["hello"]["pid"] for name, message in until(pool, "hello", *names).items()}


def wish(workers: int | None = None, gpus: int = 1, device: str = "auto") -> Wish:
    return Wish("head:6379", workers, None, gpus, device, "module", {})


@pytest.mark.parametrize(
    ("nodes", "wished", "expected"),
    [
        ([{"CPU": 32, "GPU": 8}], wish(), Share(0, 1, (8,))),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 16}, {"CPU": 8, "GPU": 4}], wish(), Share(0, 1, (8, 4))),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 8, "GPU": 2}], wish(gpus=4), Share(0, 4, (2, 0))),
        ([{"CPU": 32, "GPU": 7}], wish(gpus=2), Share(0, 2, (3,))),
        ([{"CPU": 4, "GPU": 8}], wish(), Share(0, 1, (8,))),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 16}], wish(device="cpu"), Share(16, 0, (1, 1))),
        ([{"CPU": 8}, {"CPU": 8}], wish(), Share(8, 0, (1, 1))),
        ([{"CPU": 8}, {"CPU": 8}], wish(4), Share(4, 0, (2, 2))),
        ([{"CPU": 8}, {"CPU": 4}], wish(3), Share(4, 0, (1, 2))),
        ([{"CPU": 1}, {"CPU": 1}], wish(5), Share(1, 0, (1, 1))),
        ([{"CPU": 2}], wish(device="cpu", gpus=2), Share(2, 0, (1,))),
    ],
)
def test_a_cluster_is_divided_among_workers(nodes, wished, expected):
    assert share_of(nodes, wished) == expected


@pytest.mark.parametrize(
    ("nodes", "wished", "message"),
    [
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 4}], wish(gpus=8), "no node of the cluster has so many GPUs"),
        ([{"CPU": 8}], wish(device="cuda"), "the Ray cluster at head:6379 has no GPU"),
        ([{"memory": 8}], wish(), "the Ray cluster at head:6379 has no CPU or GPU"),
    ],
)
def test_a_cluster_without_room_says_what_it_lacks(nodes, wished, message):
    with pytest.raises(MachineError, match=message):
        share_of(nodes, wished)


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.1:6379", "[::1]:6379", "ray://head:10001"])
def test_addresses(address):
    assert check_address(address) == address


@pytest.mark.parametrize("address", ["", "head", "http://head:8265", "head:port", "a b:1", "ray://head", "local:"])
def test_what_is_no_address(address):
    with pytest.raises(InputError, match="not an address"):
        check_address(address)


DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: Actor\n\tpid: 1\n"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (f"{DIED}The actor is dead because its node has died. Node Id: 7", "its node was lost"),
        (
            "Task was killed due to the node running low on memory.",
            "its node ran out of memory, and Ray ended the worker",
        ),
        (f"{DIED}Its worker process has died. Worker exit type: X", "Its worker process has died. Worker exit type: X"),
        ("", "its process ended"),
    ],
)
def test_the_reason_of_a_lost_worker(said, reason):
    assert reason_of(said) == reason


def test_a_node_without_helios_is_an_error_of_the_cluster():
    said = "The actor died because of an error raised in its creation task, ray::Actor.__init__() (pid=5, ip=10.0.0.7)"
    error = broken_node(f"{said}\nModuleNotFoundError: No module named 'helios_cli'")
    assert "node 10.0.0.7" in error.message and "helios-render[ray]" in error.hint
    assert broken_node("ModuleNotFoundError: No module named 'numpy'") is None


def test_versions_of_helios_must_be_the_same():
    check_versions({"host": "b", "versions": {"helios": __version__}})
    with pytest.raises(MachineError, match=f"node b has helios 0.0.1, this machine has {__version__}"):
        check_versions({"host": "b", "versions": {"helios": "0.0.1"}})


def test_an_actor_takes_each_message_once_and_keeps_replies_until_they_are_seen():
    actor = Actor("support.ray_worker", {}, 1)
    hello = actor.take(0, LONGEST)
    assert list(hello[0]) == ["hello"]
    assert actor.take(0, LONGEST) == hello, "an answer may be lost on its way"
    for number in (0, 0, 1, 0, 1):
        actor.send(number, {"echo": number})
    replies: list[dict] = []
    while len(replies) < 2:
        replies += actor.take(1 + len(replies), LONGEST)
    assert [reply["echo"] for reply in replies] == [0, 1]
    assert actor.take(3, 0) == []
    actor.send(2, {"fail": "all"})
    assert actor.take(3, LONGEST)[0]["lost"] == "it failed: KeyboardInterrupt: all"


def test_an_actor_that_is_stopped_makes_its_work_safe(tmp_path):
    actor = Actor("support.ray_worker", {}, 1)
    actor.send(0, {"leave": str(tmp_path / "safe")})
    while "started" not in str(actor.take(0, LONGEST)):
        continue
    actor.stop(LONGEST)
    assert (tmp_path / "safe").read_text() == "safe"


def test_without_ray_cluster_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="--cluster local needs Ray") as error:
        ClusterPool(Wish("local"))
    assert error.value.hint == "pip install 'helios-render[ray]'"


def test_what_ray_says_of_versions_is_said_in_one_line():
    error = refusal(
        "head:6379",
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.1\n    Python: 3.12.1\n"
        "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n",
    )
    assert "has Ray 2.59.1 and Python 3.12.1, this machine has Ray 2.60.0 and Python 3.11.7" in error.message


@pytest.mark.process
@pytest.mark.slow
def test_local_starts_replaces_workers_and_leaves_nothing(with_ray, tmp_path, monkeypatch):
    """Messages arrive in order, workers are processes apart, nothing listens beyond loopback, and nothing is left.

    One of two workers is killed: the pool says so, the other goes on, and a new one takes its place.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pool_of("local", workers=2) as pool:
        assert list(pool.names) == ["cpu0", "cpu1"]
        pids = pids_of(pool, *pool.names)
        for name in pool.names:
            for index in range(50):
                pool.send(name, {"echo": {"of": name, "index": index, "bytes": bytes([index]) * 1000}})
        came: dict[str, list[dict]] = {name: [] for name in pool.names}
        while min(map(len, came.values())) < 50:
            for name, message in pool.receive(1):
                came[name].append(message)
        for name, messages in came.items():
            assert [m["echo"] for m in messages] == [
                {"of": name, "index": index, "bytes": bytes([index]) * 1000} for index in range(50)
            ]
            assert {(m["OMP_NUM_THREADS"], m["share"]) for m in messages} == {("3", 2)}
        assert len({os.getpid(), *pids.values()}) == 3
        family = descendants(pool._process.pid)
        assert set(pids.values()) <= family
        assert listening(family) and listening(family) <= LOOPBACK
        pool.send("cpu0", {"count": 1, "until": "/nowhere"})
        until(pool, "index", "cpu0")
        os.kill(pids["cpu0"], signal.SIGKILL)
        until(pool, "lost", "cpu0")
        pool.send("cpu1", {"echo": 1})
        until(pool, "echo", "cpu1")
        pool.renew("cpu0")
        assert pids_of(pool, "cpu0")["cpu0"] != pids["cpu0"]
        pool.send("cpu0", {"exit": 3})
        until(pool, "lost", "cpu0")
        pool.renew("cpu1")  # while it is well
        pool.send("cpu1", {"echo": 2})
        assert until(pool, "echo", "cpu1")["cpu1"]["echo"] == 2
        family |= descendants(pool._process.pid)
    assert not any(map(alive, family))
    assert not pool._folder.exists() and not list(tmp_path.iterdir())


@pytest.mark.process
@pytest.mark.slow
def test_a_worker_that_takes_all_memory_is_named(with_ray, monkeypatch):
    """Ray ends workers when the memory of their node runs low, here at once."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    with pool_of("local", workers=1) as pool:
        assert until(pool, "lost")["cpu0"]["lost"] == "its node ran out of memory, and Ray ended the worker"


@pytest.mark.process
@pytest.mark.slow
def test_a_killed_driver_leaves_nothing(with_ray, tmp_path):
    script = (
        "import sys, time\n"
        "from helios_cli.farm.cluster import ClusterPool, Wish\n"
        "pool = ClusterPool(Wish('local', workers=1, module='support.ray_worker'))\n"
        "while not (messages := pool.receive(1)): pass\n"
        "print(pool._process.pid, pool._folder, messages[0][1]['hello']['pid'], flush=True)\n"
        "time.sleep(1000)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    relay, folder, actor = driver.stdout.readline().split()
    family = descendants(int(relay)) | {int(relay)}
    assert int(actor) in family
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_until(lambda: not any(map(alive, family)))
    assert not Path(folder).exists()


@pytest.mark.process
@pytest.mark.slow
def test_a_node_is_lost_and_another_joins(with_ray, tmp_path):
    """Two nodes, a worker each. One is killed in the middle of its work: its worker waits, says for what, and starts
    again on a node that joins. Then the head is killed: the pool ends with an error."""
    with ray_nodes({"num_cpus": 1}, {"num_cpus": 1}) as nodes, nodes.entered(), pool_of(nodes.address) as pool:
        assert len(pool.names) == 2
        pids = pids_of(pool, *pool.names)
        for name in pool.names:
            assert pool.sees(name, tmp_path) and not list(tmp_path.iterdir())
            pool.send(name, {"count": 3, "until": str(tmp_path / "go")})
        nodes.do("lose 1")
        [lost] = until(pool, "lost")
        pool.renew(lost)
        assert f"worker {lost} waits for 1 CPU: 0 of 1 are free" in until(pool, "waiting", lost)[lost]["waiting"]
        nodes.do("add")
        assert pids_of(pool, lost)[lost] not in pids.values()
        pool.send(lost, {"count": 1, "until": str(tmp_path / "go")})
        (tmp_path / "go").touch()
        until(pool, "done", *pool.names)
        nodes.do("lose head")
        with pytest.raises(MachineError, match="was lost: its head does not answer") as error:
            until(pool, "nothing")
        assert "run the same command again" in error.value.hint


@pytest.mark.process
@pytest.mark.slow
def test_a_worker_has_gpus_of_its_own_in_one_node(with_ray, tmp_path):
    """Ray counts GPUs that a node says it has: this needs none. Three workers of two GPUs; a third node of one is left
    out, and a fourth worker has no room."""
    with ray_nodes({"num_gpus": 4}, {"num_gpus": 2}, {"num_gpus": 1}) as nodes, nodes.entered():
        with pool_of(nodes.address, workers=4, gpus=2) as pool:
            [waiting] = until(pool, "waiting").items()
            assert waiting[1]["waiting"] == (
                f"worker {waiting[0]} waits for 2 GPUs: 1 of 7 are free on the Ray cluster at {nodes.address}"
            )
            lucky = [name for name in pool.names if name != waiting[0]]
            for name in lucky:
                pool.send(name, {"echo": name})
            seen = [message["CUDA_VISIBLE_DEVICES"] for message in until(pool, "echo", *lucky).values()]
            assert sorted(seen) == ["0,1", "0,1", "2,3"]
            pool.end(lucky[0])  # its GPUs are free: the fourth worker has them now
            pids_of(pool, waiting[0])
        with pool_of(nodes.address, most=2) as pool:
            assert list(pool.names) == ["gpu0", "gpu1"]
        with pytest.raises(MachineError, match="no node of the cluster has so many GPUs, the largest has 4"):
            pool_of(nodes.address, gpus=8)


@pytest.mark.process
@pytest.mark.slow
def test_what_keeps_a_driver_out_of_a_cluster(with_ray, tmp_path):
    """Other versions of Ray, another token, and workers of another version of helios."""
    with ray_nodes({"num_cpus": 1}, ray="2.1.0") as nodes, nodes.entered(), pytest.raises(MachineError) as error:
        pool_of(nodes.address)
    assert f"has Ray 2.1.0 and Python {sys.version.split()[0]}, this machine has Ray" in error.value.message
    with ray_nodes({"num_cpus": 1}, environment={"STUB_VERSION": "0.0.1"}) as nodes, nodes.entered():
        with pool_of(nodes.address) as pool, pytest.raises(MachineError, match=r"has helios 0\.0\.1, this machine has"):
            until(pool, "nothing")
        wrong = mock.patch.dict(os.environ, {"RAY_AUTH_TOKEN": "f" * 32})
        with wrong, pytest.raises(MachineError, match="Ray's token is missing or wrong") as error:
            pool_of(nodes.address)
        assert "auth_token" in error.value.hint


@pytest.mark.process
@pytest.mark.slow
def test_nothing_at_the_address(with_ray, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(MachineError, match=r"no Ray cluster at 127\.0\.0\.1:1: Connection refused"):
        pool_of("127.0.0.1:1")
    with pytest.raises(MachineError, match="none runs on this machine"):
        pool_of("auto")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(MachineError, match="did not answer within 1 s"):
        pool_of("127.0.0.1:1")


LOOPBACK = {"127.0.0.1", "::1"}


def listening(pids: set[int]) -> set[str]:
    """The addresses at which these processes listen for TCP connections."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(address_of(fields[1].partition(":")[0]))
    return addresses


def address_of(digits: str) -> str:
    """An address as the kernel writes it: words of four bytes in the order of the machine."""
    words = [bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address)
