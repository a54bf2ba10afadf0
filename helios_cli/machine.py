"""Facts about this machine: processor, memory and its limits, disk, folders.

Functions that need torch import it when they are called. Linux and macOS are supported.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from helios_cli.errors import InputError, MachineError
from helios_cli.versions import version_of

if TYPE_CHECKING:
    import torch

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""The flags of /proc/cpuinfo that decide how fast the model runs."""

CPU_LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
)
"""Environment variables that make PyTorch, oneDNN and MKL use other instructions, which round differently."""


class Cpu(NamedTuple):
    """The processor.

    `cores` counts physical cores (None if unknown), `threads` the logical ones that this process may use; `limits` are
    the variables of CPU_LIMITS that are set, with their values.
    """

    model: str
    cores: int | None
    threads: int
    features: tuple[str, ...]
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryLimit:
    """A container's limit. `used_bytes` excludes the page cache, which the kernel drops before it kills a process."""

    path: str
    limit_bytes: int
    used_bytes: int

    @property
    def available_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class HostMemory:
    """`free_bytes` is what the kernel calls available, None if unknown; `limits` are those of containers."""

    total_bytes: int
    free_bytes: int | None
    limits: tuple[MemoryLimit, ...]

    @property
    def available_bytes(self) -> int:
        """The memory that this process can still take under every limit."""
        free = self.total_bytes if self.free_bytes is None else self.free_bytes
        return min([free, *(limit.available_bytes for limit in self.limits)])


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """Return what is known of the processor."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    features = set(flags[1].split()) if flags else set()
    cores = re.findall(r"^physical id\s*:\s*(\d+)$.*?^core id\s*:\s*(\d+)$", text, re.MULTILINE | re.DOTALL)
    return Cpu(
        model=model[1].strip() if model else platform.processor() or platform.machine(),
        cores=len(set(cores)) or None,
        threads=threads,
        features=tuple(name for name in CPU_FEATURES if name in features),
        limits=tuple(f"{name}={os.environ[name]}" for name in CPU_LIMITS if os.environ.get(name)),
    )


SMALL_MODEL_PARAMETERS = 50_000_000
"""A smaller transformer runs on one thread, as its operations are too short to share.

On two quiet cores of an Intel Xeon the embedded model makes 80 frames a second with one thread and 88 with two, which
take two and a half times as long for the coarsest stage; with one thread for the transformer and one for each of two
chunks that are decoded at a time (`chunks_beside`), 160.
"""


def cpu_threads(parameters: int | None = None) -> int:
    """Return the threads for a transformer of `parameters`: OMP_NUM_THREADS, else 1 if it is small, else all cores."""
    if _thread_limit() is not None:
        return cores()
    return 1 if parameters is not None and parameters < SMALL_MODEL_PARAMETERS else cores()


def cores() -> int:
    """Return the number of cores that this process may use, at most OMP_NUM_THREADS."""
    processor = cpu()
    most = min(processor.threads, processor.cores or processor.threads)
    return min(most, _thread_limit() or most)


def _thread_limit() -> int | None:
    """Return OMP_NUM_THREADS, of which the first number counts: others are for loops inside of others."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


MOST_CHUNKS_BESIDE = 3
"""The most chunks that are decoded at a time while the next one is denoised: one of `tiny` takes three times as long to
decode as to denoise, so that more would wait for the transformer."""


def chunks_beside(threads: int, processes: int = 1) -> int:
    """Return how many chunks are decoded at a time, each by one thread, while the next one is denoised on `threads`,
    in each of several processes that share the cores; 0 if those threads take all of them."""
    share = cores() // (threads * processes)
    return min(share, MOST_CHUNKS_BESIDE) if share > 1 else 0


def host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> HostMemory:
    """Return the machine's memory and the limits that cgroups (v1 and v2) of this process and above put on it."""
    meminfo = proc / "meminfo"
    if not meminfo.exists():
        return HostMemory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None, ())
    values = {
        key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    }
    total = values["MemTotal"]
    limits = tuple(limit for limit in _memory_limits(proc, cgroups) if limit.limit_bytes < total)
    return HostMemory(total, values.get("MemAvailable"), limits)


def _memory_limits(proc: Path, cgroups: Path) -> Iterator[MemoryLimit]:
    membership = proc / "self" / "cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # v2; next to v1 it is mounted in `unified/`, without the memory controller
            yield from _limits_above(cgroups, group, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            yield from _limits_above(root, group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _limits_above(root: Path, group: str, limit: str, usage: str, prefix: str) -> Iterator[MemoryLimit]:
    """Yield the limits from `group` up to `root`. A container may not see upper groups, or see its own as the root."""
    folder = root / group.lstrip("/")
    for place in (folder, *folder.parents):
        text = _read(place / limit)
        if text.isdigit():
            counts = dict(line.split() for line in _read(place / "memory.stat").splitlines())
            cache = sum(int(counts.get(f"{prefix}{kind}", 0)) for kind in ("active_file", "inactive_file"))
            yield MemoryLimit(str(place / limit), int(text), max(0, int(_read(place / usage) or 0) - cache))
        if place == root:
            return


def _read(path: Path) -> str:
    """Return the text of a kernel file, or "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def peak_host_bytes() -> int:
    """Return the largest resident size of this process so far.

    On Linux a child inherits `ru_maxrss` from its parent, but not VmHWM.
    """
    if peak := _high_water("self"):
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Children:
    """The peak memory of child processes, read from Linux while they live.

    The figure of `wait4` would not do: it includes the memory of this process, with which the child began.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._alive: set[int] = set()

    def watch(self, pid: int) -> None:
        self._alive.add(pid)

    def look(self) -> None:
        """Update the peak. To be called when the children are at their largest."""
        self.peak_bytes = max(self.peak_bytes, sum(_high_water(pid) or 0 for pid in tuple(self._alive)))

    def forget(self, pid: int) -> None:
        self._alive.discard(pid)


children = Children()
"""The encoders of this process."""


def peak_bytes_with_children() -> int:
    """Return the peak memory of this process plus that of its encoders, which may come at different times."""
    return peak_host_bytes() + children.peak_bytes


def _high_water(pid: int | str) -> int | None:
    """Return the largest resident size of a living process, None where the system does not report it."""
    line = re.search(r"VmHWM:\s*(\d+) kB", _read(Path(f"/proc/{pid}/status")))
    return int(line[1]) * 1024 if line else None


M_MMAP_THRESHOLD = -3
"""A parameter of glibc's mallopt."""


def give_back_memory() -> None:
    """Return freed memory to the system, now and whenever a large block is freed later.

    By default glibc keeps freed blocks of up to 32 MB, which most weights are, and its heap gets holes.
    """
    import ctypes

    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.mallopt(M_MMAP_THRESHOLD, 2**20)
        library.malloc_trim(0)


NO_HOME = Path(os.devnull, "no-home")
"""A path where nothing exists and nothing can be written."""

NO_HOME_MESSAGE = "this user has no home folder: set HELIOS_HOME to a folder that can be written"


def home() -> Path:
    """Return the folder of helios' own files: HELIOS_HOME, else `helios/` in the user's cache folder.

    It may not exist yet. A user without a home folder, as in a container that runs under any number, gets NO_HOME.
    """
    if chosen := os.environ.get("HELIOS_HOME"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            hint = "set it to the folder's full path"
            raise InputError(f"HELIOS_HOME is {chosen}: no such user is known", hint=hint) from error
    is_mac, caches = sys.platform == "darwin", os.environ.get("XDG_CACHE_HOME")
    try:
        if caches and not is_mac:
            return Path(caches) / "helios"
        return Path.home() / ("Library/Caches" if is_mac else ".cache") / "helios"
    except RuntimeError:
        return NO_HOME


def temporary_folder() -> tempfile.TemporaryDirectory:
    """Make a temporary folder, in HELIOS_HOME if the system has no place for it.

    Raises MachineError if neither can be written.
    """
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError:
        place = home()
    try:
        os.makedirs(place, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="helios-", dir=place)
    except OSError as error:
        what = f"no folder for temporary files can be written, neither TMPDIR nor {place}: {error.strerror}"
        raise MachineError(what, hint="set TMPDIR to a folder that can be written") from error


ARITHMETIC = "arithmetic.json"
"""The file in `home()` with the results of trying products on devices (`engine.arithmetic`)."""

TUNED = "kernels.json"
"""The file in `home()` with the kernel configurations that `helios bench kernels --tune` found."""

TRIED = "trials.json"
"""The file in `home()` with the results of trying kernels on GPUs (`engine.trial`)."""


def findings(file: str | Path) -> dict[str, Any]:
    """Return what such a file says, by device; nothing for one that is missing, damaged or of another version."""
    try:
        stored = json.loads((home() / file).read_text(encoding="utf-8"))
        devices = stored.get("devices") if stored.get("version") == 1 else None
        return devices if isinstance(devices, dict) else {}
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}


def package_version(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return version_of(package)
    except ImportError:
        return None


def disk_free_bytes(path: Path) -> int:
    """Return the bytes that this user can write on the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(_nearest(path)).free


def is_writable(path: Path) -> bool:
    """Return whether this user can write the folder at `path`, or make it."""
    return os.access(_nearest(path), os.W_OK | os.X_OK)


def _nearest(path: Path) -> Path:
    """Return `path` or the nearest folder above it that exists. A folder that may not be searched counts as empty."""
    path = path.absolute()
    while not os.path.exists(path):
        path = path.parent
    return path


def nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver, which this PyTorch may not be able to use; None without one."""
    versions = _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")  # one a GPU
    return (versions[0].strip() or None) if versions else None


def gpu_links() -> dict[tuple[int, int], str]:
    """Return what joins each two GPUs, by nvidia-smi's indices: "NVLink", or how far apart they are over PCIe.

    Empty without nvidia-smi, and with one GPU.
    """
    lines = (re.sub(r"\x1b\[[0-9;]*m", "", line) for line in _nvidia_smi("topo", "-m"))  # the heading is underlined
    rows = [line.split("\t")[1:] for line in lines if re.match(r"GPU\d+\t", line)]
    if any(len(row) < len(rows) for row in rows):
        return {}
    return {
        (one, other): _link(rows[one][other].strip()) for one in range(len(rows)) for other in range(one + 1, len(rows))
    }


def _nvidia_smi(*arguments: str) -> list[str]:
    """Return the lines that nvidia-smi prints; none without it, or if it fails."""
    try:
        answer = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if answer.returncode else answer.stdout.splitlines()


def _link(code: str) -> str:
    """Return the words for a code of `nvidia-smi topo`: NV18 is NVLink with 18 links."""
    if code.startswith("NV"):
        return "NVLink"
    return {"PIX": "one PCIe switch", "PXB": "PCIe switches", "PHB": "PCIe", "NODE": "PCIe"}.get(
        code, "PCIe and the link between processors" if code == "SYS" else code
    )


def attention_backends(device: torch.device) -> tuple[str, ...]:
    """Return what PyTorch's scaled_dot_product_attention can choose from on `device`."""
    import torch

    if device.type == "cuda":
        is_new = torch.cuda.get_device_capability(device) >= (8, 0)
        flash = ("flash",) if is_new and torch.backends.cuda.is_flash_attention_available() else ()
        return (*flash, "efficient", "math")
    return ("flash", "math") if device.type == "cpu" else ("math",)
