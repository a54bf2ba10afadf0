"""A model larger than the memory that it may take: `python tests/soak_offload.py --folder DIR`. Run by hand.

Writes a synthetic checkpoint, renders it streamed in a process of its own under a limit, and watches that process from
outside: anonymous memory and bytes read by /proc. The limit is a memory cgroup's where this user may make one, else one
of the process's own (RLIMIT_DATA), which counts private memory whether it is touched or not. Then renders it with the
model in memory, without a limit, and compares every frame.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.placement import HOST_SLOTS
from support.reruns import decoded

SIZE = (64, 64)
CHUNKS = 2

CHILD = """
import json, sys
from helios_cli.weights.offload import BlockStream
from helios_cli.weights.reader import WeightFiles
streams, files = [], []
def opened(one):
    files.append(one)
    start(one)
start, WeightFiles.__init__ = WeightFiles.__init__, opened
def remember(stream, *rest, **how):
    streams.append(stream)
    begin(stream, *rest, **how)
begin, BlockStream.__init__ = BlockStream.__init__, remember
from helios_cli.cli import main
code = main(sys.argv[1:])
streamed = streams[-1].streamed if streams else []
blocks, read = [stream.blocks_read for stream in streams], sum(one.bytes_read for one in files)
print(json.dumps({"blocks": blocks, "streamed": streamed, "bytes": read}))
sys.exit(code)
"""

PASSES = 9
"""Passes over the weights: three steps a chunk, of which the first has twice as many."""

OTHER_BYTES = 400_000_000
"""Bytes that may be read in addition to weights: modules, the tokenizer, and ffmpeg's input."""


def spec_of(layers: int):
    base = SPECS["1.3b"]
    return replace(base, transformer={**base.transformer, "num_layers": layers}, native_size=SIZE)


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Path | None]:
    """A memory cgroup (v2 or v1) with a limit, below this process's own; None where none may be made."""
    root = Path("/sys/fs/cgroup")
    group = root / ("memory" if (root / "memory").is_dir() else "") / f"helios-soak-{os.getpid()}"
    file = "memory.limit_in_bytes" if (root / "memory").is_dir() else "memory.max"
    try:
        group.mkdir()
        (group / file).write_text(str(limit))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def anonymous_bytes(pid: int) -> int:
    try:
        found = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def bytes_read(pid: int) -> int:
    """By the process's own calls, out of the page cache or from the disk."""
    try:
        return int(re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[1])
    except OSError:
        return 0


def render(folder: Path, out: Path, flags: list[str], limit: int | None) -> dict:
    """A film in a process of its own: its peak, its seconds, and what it read."""
    arguments = ["render", "a red circle moves left", "-m", str(folder), "--frames", str(33 * CHUNKS), "-q"]
    arguments += ["--steps", "1,1,1", "--no-cache", "--device", "cpu", "-o", str(out), *flags]
    with cgroup(limit) if limit else contextlib.nullcontext() as group:
        enter = f"echo $$ > {group}/cgroup.procs; " if group else f"ulimit -d {limit // 1024}; " if limit else ""
        shell = ["sh", "-c", f'{enter}exec "$@"', "sh", sys.executable, "-c", CHILD, *arguments]
        began, peak, read = time.monotonic(), 0, 0
        process = subprocess.Popen(shell, stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            peak, read = max(peak, anonymous_bytes(process.pid)), max(read, bytes_read(process.pid))
            time.sleep(0.01)
        said = process.stdout.read()
        held = [file for file in ("memory.max_usage_in_bytes", "memory.peak") if group and (group / file).exists()]
        most = int((group / held[0]).read_text()) if held else None
    assert process.returncode == 0, process.returncode
    return {
        "limit": ("a cgroup's" if group else "the process's") if limit else None,
        "peak anonymous bytes": peak,
        "peak of the cgroup, page cache included": most,
        "seconds": round(time.monotonic() - began, 1),
        "bytes read": read,
        "weights": json.loads(said.splitlines()[-1]),
    }


def check_reads(found: dict) -> None:
    """Check that each block that is not resident is read once a pass, and nothing else, except for unused
    read-ahead."""
    weights = found["weights"]
    *text, blocks = weights["blocks"]
    assert all(count == 1 for layers in text for count in layers), text
    for index, count in enumerate(blocks):
        streamed = index in weights["streamed"]
        assert PASSES * streamed <= count <= (PASSES + CHUNKS + 1) * streamed, (index, count)
    surplus = sum(blocks) - PASSES * len(weights["streamed"])
    assert surplus <= 3 * HOST_SLOTS, surplus  # behind the last pass, and at each walk for the prompt
    assert weights["bytes"] <= found["bytes read"] <= weights["bytes"] + OTHER_BYTES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint and the films; emptied by you")
    parser.add_argument("--layers", type=int, default=38)
    parser.add_argument("--limit", type=float, default=2.0, help="GB")
    options = parser.parse_args()
    limit = int(options.limit * 1e9)
    folder = options.folder / "model"
    if not folder.exists():
        write_checkpoint(folder, spec_of(options.layers))
    size = sum(part.bytes for part in Checkpoint.open(folder).components.values())
    print(f"checkpoint of {size / 1e9:.2f} GB", flush=True)
    streamed = render(
        folder, options.folder / "streamed.mkv", ["--offload", "stream", "--ram", f"{options.limit}G"], limit
    )
    print("streamed", json.dumps(streamed), flush=True)
    assert streamed["peak anonymous bytes"] <= limit
    check_reads(streamed)
    resident = render(folder, options.folder / "resident.mkv", ["--offload", "none"], None)
    print("resident", json.dumps(resident), flush=True)
    films = [decoded(options.folder / f"{name}.mkv", SIZE) for name in ("streamed", "resident")]
    assert len(films[0]) == 33 * CHUNKS and (films[0] == films[1]).all()
    print(f"{len(films[0])} frames, none different")


if __name__ == "__main__":
    main()
