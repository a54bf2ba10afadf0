"""What this machine has: processor, memory and its limits, disk. Plain facts; nothing is printed.

torch is imported inside the functions that ask it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.errors import InputError, MachineError
from helios_cli.versions import version_of

if TYPE_CHECKING:
    import torch

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Flags of /proc/cpuinfo that decide how fast the model runs on a processor."""

CPU_LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
)
"""Variables by which PyTorch, oneDNN and MKL take other instructions, which round otherwise."""


@dataclass(frozen=True)
class Cpu:
    """The processor. `cores` counts physical cores, None if unknown; `threads` those this process may use; `limits` are
    the variables of CPU_LIMITS that are set, with their values."""

    model: str
    cores: int | None
    threads: int
    features: tuple[str, ...]
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryLimit:
    """A container's limit. `used_bytes` is without the page cache, which the kernel gives up before it kills."""

    path: str
    limit_bytes: int
    used_bytes: int

    @property
    def available_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class HostMemory:
    """`free_bytes` is what the kernel calls available, None if it does not tell; `limits` are those of containers."""

    total_bytes: int
    free_bytes: int | None
    limits: tuple[MemoryLimit, ...]

    @property
    def available_bytes(self) -> int:
        """What this process can still take: the least of the machine's and every limit's rest."""
        free = self.total_bytes if self.free_bytes is None else self.free_bytes
        return min([free, *(limit.available_bytes for limit in self.limits)])


@dataclass(frozen=True)
class Triton:
    """`version` is None if it is not installed; `reason` says why it can run, or why not."""

    version: str | None
    runs: bool
    reason: str


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    places = re.findall(r"^physical id\s*:\s*(\d+)$.*?^core id\s*:\s*(\d+)$", text, re.MULTILINE | re.DOTALL)
    return Cpu(
        model=model[1].strip() if model else platform.processor() or platform.machine(),
        cores=len(set(places)) or None,
        threads=threads,
        features=tuple(name for name in CPU_FEATURES if name in known),
        limits=tuple(f"{name}={os.environ[name]}" for name in CPU_LIMITS if os.environ.get(name)),
    )


SMALL_MODEL_PARAMETERS = 50_000_000
"""A transformer below this runs on one thread. Its operations are too short to be shared: the embedded model makes 130
frames a second with one thread as with two on a quiet machine of two cores, and 95 against 26 with one core busy."""


def cpu_threads(parameters: int | None = None) -> int:
    """Threads that a transformer of `parameters` runs on: OMP_NUM_THREADS, else one for a small one, else all cores."""
    found, asked = cpu(), os.environ.get("OMP_NUM_THREADS", "")
    most = min(found.threads, found.cores or found.threads)
    if asked.isdigit() and int(asked):
        return min(int(asked), most)
    return 1 if parameters is not None and parameters < SMALL_MODEL_PARAMETERS else most


def host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> HostMemory:
    """Memory of the machine and the limits on this process, by cgroup v1 and v2: its own group's and those above."""
    meminfo = proc / "meminfo"
    if not meminfo.exists():
        return HostMemory(_physical_bytes(), None, ())
    values = {
        key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    }
    total = values["MemTotal"]
    limits = tuple(limit for limit in _memory_limits(proc, cgroups) if limit.limit_bytes < total)
    return HostMemory(total, values.get("MemAvailable"), limits)


def _physical_bytes() -> int:
    """Physical memory where there is no /proc."""
    if sys.platform == "win32":
        import ctypes

        kib = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return kib.value * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _memory_limits(proc: Path, cgroups: Path) -> Iterator[MemoryLimit]:
    membership = proc / "self" / "cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, group = line.split(":", 2)
        if (
            not controllers
        ):  # v2; mounted below `unified` where v1 is in use too, and then without the memory controller
            yield from _limits_above(cgroups, group, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            yield from _limits_above(root, group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _limits_above(root: Path, group: str, limit: str, usage: str, prefix: str) -> Iterator[MemoryLimit]:
    """Limits from `group` up to `root`. A container may not see the upper groups, or see its own group as the root."""
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
    """The text of a file of the kernel's; empty if there is none to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def peak_host_bytes() -> int:
    """Largest resident size of this process so far.

    Linux hands `ru_maxrss` on from parent to child; VmHWM begins anew.
    """
    if peak := _high_water("self"):
        return peak
    import resource  # not on Windows, which can still show the help

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Children:
    """The memory of child processes that live at the same time, as Linux tells it of those that are alive.

    What `wait4` tells of a child has this process's own memory in it, which it was begun with.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._alive: set[int] = set()

    def watch(self, pid: int) -> None:
        self._alive.add(pid)

    def look(self) -> None:
        """Count them, when they are at their largest."""
        self.peak_bytes = max(self.peak_bytes, sum(_high_water(pid) or 0 for pid in tuple(self._alive)))

    def forget(self, pid: int) -> None:
        self._alive.discard(pid)


children = Children()
"""Of this process: its encoders."""


def peak_bytes_with_children() -> int:
    """Most host memory that this process and its encoders took: each at its own peak, which may come apart."""
    return peak_host_bytes() + children.peak_bytes


def _high_water(pid: int | str) -> int | None:
    """Largest resident size of a living process; None where that is not told."""
    found = re.search(r"VmHWM:\s*(\d+) kB", _read(Path(f"/proc/{pid}/status")))
    return int(found[1]) * 1024 if found else None


M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt."""


def give_back_memory() -> None:
    """Hands freed memory back to the system, now and from now on as soon as a large piece is freed.

    glibc keeps pieces of up to 32 MB for itself, which are most weights, and leaves holes between them.
    """
    import ctypes

    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.mallopt(M_MMAP_THRESHOLD, 2**20)
        library.malloc_trim(0)


NO_HOME = Path(os.devnull, "no-home")
"""Where nothing is, and nothing can be written."""

NO_HOME_MESSAGE = "this user has no home folder: set HELIOS_HOME to a folder that can be written"


def home() -> Path:
    """HELIOS_HOME: where helios keeps pieces of films and measured speeds. It may not exist yet; NO_HOME for a user who
    has none, as in a container that is run under any number."""
    if chosen := os.environ.get("HELIOS_HOME"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            hint = "set it to the folder's full path"
            raise InputError(f"HELIOS_HOME is {chosen}: no such user is known", hint=hint) from error
    try:
        return _caches() / "helios"
    except RuntimeError:
        return NO_HOME


def _caches() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder that goes with the object, or the block: where the system has a place for such, else in HELIOS_HOME.
    MachineError if neither can be written."""
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError:
        place = home()
    try:
        os.makedirs(place, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="helios-", dir=place)
    except OSError as error:
        what = f"no folder for temporary files can be written, neither TMPDIR nor {place}: {error.strerror}"
        raise MachineError(what, hint="set TMPDIR to a folder that can be written") from error


def arithmetic_file() -> Path:
    """What came of trying what devices compute (`engine.arithmetic`)."""
    return home() / "arithmetic.json"


def attention_file() -> Path:
    """What was measured of attention on GPUs (`model.backends`)."""
    return home() / "attention.json"


def attention_key(device: str) -> str:
    """A GPU with the versions, and the configurations tuned on it, that decide which attention is fastest there."""
    versions = [f"{name} {version}" for name in ("torch", "triton") if (version := package_version(name))]
    configs = _tuned_configs(device)
    own = {kernel: config for kernel, config in configs.items() if kernel.startswith("attention")}
    tuned = [f"tuned {hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]}"] if own else []
    return ", ".join([device, *versions, *tuned])


def _tuned_configs(device: str) -> dict:
    try:
        return dict(json.loads(tuned_file().read_text(encoding="utf-8"))["devices"][device]["configs"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def package_version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version_of(package)
    except ImportError:
        return None


def tuned_file() -> Path:
    """Kernel configurations that `helios bench kernels --tune` found."""
    return home() / "kernels.json"


def tried_file() -> Path:
    """What came of trying the kernels on GPUs (`engine.trial`)."""
    return home() / "trials.json"


def disk_free_bytes(path: Path) -> int:
    """Bytes that this user can write on the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(_nearest(path)).free


def is_writable(path: Path) -> bool:
    """Whether this user can write the folder at `path`, or make it."""
    return os.access(_nearest(path), os.W_OK | os.X_OK)


def _nearest(path: Path) -> Path:
    """`path`, or the folder above it that is there. In one that may not be searched nothing is."""
    path = path.absolute()
    while not os.path.exists(path):
        path = path.parent
    return path


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, seen or not by this PyTorch; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout.strip() else None


def triton() -> Triton:
    import torch

    version = package_version("triton")
    if version is None:
        return Triton(None, False, "not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Triton(version, True, "TRITON_INTERPRET=1: interpreted on the CPU, for tests")
    if not torch.cuda.is_available():
        return Triton(version, False, "needs a GPU")
    return Triton(version, True, "a GPU is there")


def attention_backends(device: torch.device) -> tuple[str, ...]:
    """What PyTorch's scaled_dot_product_attention can choose from on `device`."""
    import torch

    if device.type == "cuda":
        flash = torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (
            8,
            0,
        )
        return (*(["flash"] if flash else []), "efficient", "math")
    return ("flash", "math") if device.type == "cpu" else ("math",)
