"""Facts about the machine, against the kernel's own words and against files laid out as cgroups lay them out."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from helios_cli import machine
from helios_cli.cli import main
from helios_cli.cost.speeds import read_speeds
from helios_cli.errors import InputError, MachineError
from helios_cli.film.cache import Cache
from helios_cli.film.target import check_target
from helios_cli.weights import hub
from helios_cli.weights.source import source_of
from support.programs import program
from support.users import as_user, needs_users

GIB = 2**30
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def memory_in(root: Path, membership: str, cgroups: dict[str, str]) -> machine.HostMemory:
    """Memory as seen on a 64 GiB machine with 60 GiB available and these cgroup files."""
    meminfo = (
        f"MemTotal:  {64 * GIB // 1024} kB\nMemFree:  1 kB\nMemAvailable:  {60 * GIB // 1024} kB\nHugePages_Free: 0\n"
    )
    write_files(root / "proc", {"meminfo": meminfo, "self/cgroup": membership})
    write_files(root / "cgroup", cgroups)
    return machine.host_memory(root / "proc", root / "cgroup")


@linux
def test_memory_of_this_machine():
    memory = machine.host_memory()
    assert memory.total_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.available_bytes <= memory.total_bytes


def test_memory_without_proc(tmp_path):
    memory = machine.host_memory(tmp_path / "proc", tmp_path / "cgroup")
    assert memory.available_bytes == memory.total_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_no_limit(tmp_path):
    memory = memory_in(tmp_path, "0::/\n", {"memory.stat": ""})
    assert (memory.limits, memory.available_bytes) == ((), 60 * GIB)


def test_cgroup_v2_limit_and_the_page_cache(tmp_path):
    """Page cache does not count as used; tmpfs pages (shmem), which cannot be dropped, do."""
    stat = f"anon {GIB}\nfile {9 * GIB}\nshmem {2 * GIB}\ninactive_file {4 * GIB}\nactive_file {3 * GIB}\n"
    files = {"memory.max": f"{16 * GIB}\n", "memory.current": f"{10 * GIB}\n", "memory.stat": stat}
    memory = memory_in(tmp_path, "0::/\n", files)
    (limit,) = memory.limits
    assert (limit.limit_bytes, limit.used_bytes) == (16 * GIB, 3 * GIB)
    assert memory.available_bytes == 13 * GIB


def test_cgroup_v2_takes_the_least_of_all_groups_above(tmp_path):
    files = {}
    for group, limit in (("", "max"), ("user.slice/", str(8 * GIB)), ("user.slice/run.scope/", str(20 * GIB))):
        files[f"{group}memory.max"] = limit
        files[f"{group}memory.current"] = str(GIB)
        files[f"{group}memory.stat"] = "inactive_file 0\nactive_file 0"
    memory = memory_in(tmp_path, "0::/user.slice/run.scope\n", files)
    assert [limit.limit_bytes for limit in memory.limits] == [20 * GIB, 8 * GIB]
    assert memory.available_bytes == 7 * GIB


@pytest.mark.parametrize("group", ["", "docker/abc/"], ids=["own group mounted as root", "path visible"])
def test_cgroup_v1_limit(group, tmp_path):
    files = {
        f"memory/{group}memory.limit_in_bytes": str(46 * GIB),
        f"memory/{group}memory.usage_in_bytes": str(45 * GIB),
        f"memory/{group}memory.stat": f"inactive_file 5\ntotal_active_file {GIB}\ntotal_inactive_file {39 * GIB}",
    }
    memory = memory_in(tmp_path, "4:cpu,cpuacct:/x\n3:memory:/docker/abc\n0::/\n", files)
    assert memory.available_bytes == 41 * GIB


def test_cgroup_v1_without_a_limit_says_a_huge_one(tmp_path):
    files = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": str(62 * GIB)}
    assert memory_in(tmp_path, "3:memory:/\n", files).limits == ()


def test_a_full_group_has_nothing_left(tmp_path):
    files = {"memory.max": str(GIB), "memory.current": str(2 * GIB), "memory.stat": ""}
    assert memory_in(tmp_path, "0::/\n", files).available_bytes == 0


@linux
def test_cpu_of_this_machine():
    cpu = machine.cpu()
    assert cpu.threads == len(os.sched_getaffinity(0))
    assert cpu.model
    assert ("avx512f" in cpu.features) >= (torch.backends.cpu.get_cpu_capability() == "AVX512")


def test_cpu_from_a_file(tmp_path):
    """Two sockets of two cores, two threads a core."""
    blocks = [
        f"processor\t: {index}\nmodel name\t: Test CPU 9\nphysical id\t: {index // 4}\ncore id\t\t: {index // 2 % 2}\n"
        f"flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
        for index in range(8)
    ]
    (tmp_path / "cpuinfo").write_text("\n".join(blocks))
    cpu = machine.cpu(tmp_path / "cpuinfo")
    assert (cpu.model, cpu.cores) == ("Test CPU 9", 4)
    assert cpu.features == ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def test_cpu_without_proc(tmp_path):
    cpu = machine.cpu(tmp_path / "none")
    assert cpu.model and cpu.threads >= 1 and cpu.cores is None and cpu.features == ()


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    free = machine.disk_free_bytes(tmp_path / "a" / "b" / "film.mp4")
    assert abs(free - shutil.disk_usage(tmp_path).free) < GIB  # other processes write at the same time


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    assert machine.home() == tmp_path
    monkeypatch.delenv("HELIOS_HOME")
    assert machine.home().name == "helios"


def test_a_home_of_nobody_is_an_input_error(monkeypatch):
    monkeypatch.setenv("HELIOS_HOME", "~nobody-is-called-so/helios")
    with pytest.raises(InputError, match="HELIOS_HOME"):
        machine.home()


@needs_users
def test_a_user_without_a_home_keeps_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    assert main(["cache", "list"]) == 0 and main(["plan", "x", "--size", "1"]) == 2  # imports late modules
    for variable in ("HOME", "HELIOS_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def work() -> None:
        cache = Cache()
        assert machine.home() == machine.NO_HOME and not machine.is_writable(machine.home())
        assert not cache.has("a") and cache.state("a") is None and cache.films() == []
        with pytest.raises(OSError, match="no home folder: set HELIOS_HOME"):
            cache.put("a", b"state", "key", b"piece")
        assert (read_speeds(), main(["cache", "list"])) == ([], 3)

    as_user(54321, work)


@needs_users
def test_folders_that_may_not_be_searched(tmp_path, monkeypatch):
    """A folder that may not be searched counts as empty if nothing in it is needed; otherwise the error has the
    path."""
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    tmp_path.chmod(0o700)

    def work() -> None:
        assert not machine.is_writable(machine.home()) and machine.disk_free_bytes(machine.home())
        assert not Cache().has("a") and Cache().state("a") is None and Cache().films() == []
        assert hub.find(source_of("distilled")) is None and not list(hub.cached_snapshots())
        for name in ("film.mp4", "film/", "film"):
            with pytest.raises(InputError, match=r"denied|not writable"):
                check_target(f"{tmp_path}/{name}", force=True)

    as_user(54321, work)


def test_temporary_files_go_into_the_home_where_there_is_no_other_place(monkeypatch, tmp_path):
    """No place is good for tempfile where it cannot write some bytes."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with machine.temporary_folder() as folder:
            assert Path(folder).parent == tmp_path / "home"
        monkeypatch.setenv("HELIOS_HOME", "/proc/none")
        with pytest.raises(MachineError, match="/proc/none") as error:
            machine.temporary_folder()
        assert "TMPDIR" in error.value.hint
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


HOLES = """
import re
import numpy as np
from pathlib import Path
from helios_cli import machine
def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = resident()
large = np.ones(2**21)
del large  # from now on glibc takes pieces of up to 32 MB from its heap
pieces = [np.ones(2**19) for _ in range(100)]
kept = pieces[-1]
del pieces
held = resident() - before
machine.give_back_memory()
after = resident() - before
pieces = [np.ones(2**19) for _ in range(100)]
kept = pieces[-1]
del pieces
print(held, after, resident() - before)
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_is_given_back():
    """400 MB are freed behind a piece that stays: at once by a call, and by themselves from then on."""
    said = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True).stdout
    held, after, later = map(int, said.split())
    assert held > 300e6
    assert after < 30e6 and later < 30e6


HOLDER = "import sys; held = bytearray(100_000_000); print(flush=True); sys.stdin.read()"


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell nothing of a living child")
def test_children_count_while_they_live():
    """Two at a time are both counted, and one alone is not more: nothing of this process, as in a child's rusage."""
    mine = bytearray(b"1" * 300_000_000)
    children = machine.Children()
    held = [
        subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        peaks = []
        for child in held:
            child.stdout.readline()
            children.watch(child.pid)
            children.look()
            peaks.append(children.peak_bytes)
    finally:
        for child in held:
            child.communicate()
    del mine
    assert 100e6 < peaks[0] < 150e6 and 200e6 < peaks[1] < 300e6
    children.look()  # they are gone
    assert children.peak_bytes == peaks[1]


TOPOLOGY = r"""
\t\e[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\e[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-15\t0\t\tN/A
GPU1\tNV18\t X \tPHB\tPXB\t0-15\t0\t\tN/A
GPU2\tSYS\tPHB\t X \tSYS\t16-31\t1\t\tN/A
NIC0\tPIX\tPXB\tSYS\t X \t\t\t\t

Legend:

  X    = Self
"""


def test_links_between_gpus(tmp_path, monkeypatch):
    """As `nvidia-smi topo -m` prints them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_links() == {}
    program(tmp_path / "nvidia-smi", f"printf '{TOPOLOGY}'")
    far = "PCIe and the link between processors"
    assert machine.gpu_links() == {(0, 1): "NVLink", (0, 2): far, (1, 2): "PCIe"}


@pytest.mark.parametrize("script", ["exit 6", "echo", r"printf 'GPU0\t X \t0-15\n'", r"printf 'GPU0\nGPU1\tX\n'"])
def test_no_links_where_none_are_reported(tmp_path, monkeypatch, script):
    program(tmp_path / "nvidia-smi", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_links() == {}


@pytest.mark.parametrize(("limit", "threads"), [("2", 2), ("2,1", 2), (" 3 , 4", 3), ("12", 8), ("0", 8), ("two", 8)])
def test_the_first_number_of_omp_num_threads_counts(monkeypatch, limit, threads):
    """OpenMP reads the others for loops inside of others."""
    monkeypatch.setattr(machine, "cpu", lambda: machine.Cpu("a CPU", 8, 16, (), ()))
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert machine.cores() == threads


@pytest.mark.parametrize(
    ("cores", "limit", "threads", "processes", "chunks"),
    [
        (1, "", 1, 1, 0),
        (2, "", 1, 1, 2),
        (8, "", 1, 1, 3),
        (8, "", 1, 4, 2),
        (2, "", 1, 2, 0),
        (8, "", 8, 1, 0),
        (8, "1", 1, 1, 0),
        (8, "2", 2, 1, 0),
    ],
)
def test_cores_that_the_transformer_leaves_decode_chunks(monkeypatch, cores, limit, threads, processes, chunks):
    """OMP_NUM_THREADS limits the process as a whole."""
    monkeypatch.setattr(machine, "cpu", lambda: machine.Cpu("a CPU", cores, 2 * cores, (), ()))
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert machine.cpu_threads(1) == (int(limit) if limit else 1)
    assert machine.chunks_beside(threads, processes) == chunks
