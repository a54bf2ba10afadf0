"""Finds or downloads the folder of a model, given as a path, a known name, or a Hub id.

A network error becomes one sentence. `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN` and `HF_ENDPOINT` have the meaning of
`huggingface_hub`, which is imported only when something is looked up (`client`).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from helios_cli.errors import CheckpointError, HeliosError, InputError, MachineError
from helios_cli.files import replacing
from helios_cli.visible import printable
from helios_cli.weights.checkpoint import MODEL_INDEX, missing_files, needed_files
from helios_cli.weights.client import COMMIT, DIGEST, cache, connect, endpoint, listing
from helios_cli.weights.files import digest_of, read_json, some_of
from helios_cli.weights.names import KNOWN, nearest
from helios_cli.weights.source import LORA_NAME, Source, how_to_go_on, lora_source, source_of, spoken, with_file
from helios_cli.weights.tokenizer import MAX_TOKENIZER_BYTES

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

ONLY = ".only_safetensors"
"""A folder in that of a repository: for commits that were listed the name of their only weights."""

FILES_TOGETHER = 8
MAX_TIMES, SURPLUS_BYTES = 4, 2**20
"""A transfer fails after this many times the size of its file, plus a surplus for small files."""

Advance = Callable[[int], None]
"""A function that is called, from any thread, with the number of bytes since its last call."""

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""A function of a description and the bytes to come that opens a progress display, as `console.progress_bytes`."""


class RemoteFile(NamedTuple):
    """A file of a repository. `blob` is its name in the cache: SHA-256 if it is large, Git's SHA-1 if it is small."""

    name: str
    bytes: int
    blob: str


def resolve(model: str, revision: str | None = None, *, progress: Progress | None = None) -> Path:
    """Return the folder of `model`, downloaded first if need be. A complete snapshot needs no network.

    Raises CheckpointError if the download fails and MachineError if the disk is too small.
    """
    return download(source_of(model, revision), progress=progress, anew=False)


def find(source: Source) -> Path | None:
    """Return the local folder of `source` if all of its files are there, without the network."""
    if source.folder:
        return source.folder
    snapshot = snapshot_of(source)
    return snapshot if snapshot and not missing_files(snapshot) else None


def download(source: Source, *, progress: Progress | None = None, anew: bool = True) -> Path:
    """Download missing files of `source` into the Hub cache and return its snapshot folder.

    A branch is looked up again with `anew`. The free space is checked before the first byte. Each file is compared with
    the digest that the Hub states; one that differs is removed and named. An interrupted download keeps complete files
    and starts the others again.
    """
    folder = find(source)
    if folder and (not anew or source.folder or COMMIT.fullmatch(source.revision)):
        return folder
    with _explained(source):
        commit, files = _remote_files(source)
        snapshot = _repo_folder(source.repo) / "snapshots" / commit
        if not snapshot.is_dir() or missing_files(snapshot):
            _fetch(source, commit, files, progress)
        _note_commit(source, commit)
    return snapshot


def _note_commit(source: Source, commit: str) -> None:
    """Remember the commit of a branch, so that it is found without the network."""
    if source.revision != commit:
        ref = _repo_folder(source.repo) / "refs" / source.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        with replacing(ref) as new:
            new.write_text(commit)


def lora_file(name: str, *, progress: Progress | None = None) -> Path:
    """Return the LoRA file `name`: a path, or `owner/name[/file.safetensors][@revision]` on the Hub, which is
    downloaded and verified first if need be.

    A branch is not looked up again. Raises CheckpointError if it is not there, or the repository has several and `name`
    none of them.
    """
    if (found := find_lora(name)) is not None:
        return found
    source = lora_source(name)
    with _explained(source):
        commit, entries = _listed(source)
        file = source.file or _only_lora(source, entries)
        if file not in entries:
            raise CheckpointError(f"{source.repo} has no file {file}", hint=f"see {endpoint()}/{source.repo}/tree/main")
        _fetch(source, commit, [_remote_file(source, file, entries[file])], progress)
        _note_commit(source, commit)
        snapshot = _repo_folder(source.repo) / "snapshots" / commit
        if not source.file:
            _note_only(snapshot, file)
    return snapshot / file


def find_lora(name: str) -> Path | None:
    """Return the LoRA file `name` if it is on this disk, and known to be the one that is meant. CheckpointError for a
    path where nothing is.

    A repository's only file is known from its listing: the cache may hold one of several."""
    if os.path.isabs(name):
        if not os.path.isfile(name):
            raise CheckpointError(f"{printable(name, 200)}: there is no such LoRA file on this machine")
        return Path(name)
    source = lora_source(name)
    snapshot = snapshot_of(source)
    if snapshot is None:
        return None
    file = source.file or _noted_only(snapshot)
    return snapshot / file if file and (snapshot / file).is_file() else None


def _note_only(snapshot: Path, file: str) -> None:
    """Remember the only weights of a commit, so that they are found without the network."""
    note = snapshot.parents[1] / ONLY / snapshot.name
    note.parent.mkdir(exist_ok=True)
    with replacing(note) as new:
        new.write_text(file, encoding="utf-8")


def _noted_only(snapshot: Path) -> str:
    """Return what `_note_only` wrote, or ""."""
    note = snapshot.parents[1] / ONLY / snapshot.name
    file = note.read_text(encoding="utf-8", errors="replace") if os.path.isfile(note) else ""
    return file if LORA_NAME.fullmatch(file) else ""


def found_lora(name: str) -> Path:
    """Return the LoRA file `name`, which is on this disk. CheckpointError if it is not."""
    found = find_lora(name)
    if found is None:
        source = lora_source(name)
        revision = "" if source.revision == "main" else f" --revision {source.revision}"
        hint = f"hf download {source.repo} {source.file}{revision}" if source.file else f"write {with_file(source)}"
        raise CheckpointError(f"{name} is not downloaded, so its shape is not known", hint=hint)
    return found


def pinned_lora(name: str, file: Path) -> str:
    """Return `owner/name/file.safetensors@commit` for the LoRA `name` on the Hub, whose file in the cache is `file`."""
    snapshot = snapshot_of(source := lora_source(name))
    if snapshot is None or not file.is_relative_to(snapshot):
        return name
    return f"{source.repo}/{file.relative_to(snapshot).as_posix()}@{snapshot.name}"


def _only_lora(source: Source, names: Iterable[str]) -> str:
    """Return the only weights at the top of a repository. CheckpointError if there are several, or none."""
    files = sorted(name for name in names if LORA_NAME.fullmatch(name) and "/" not in name)
    if len(files) == 1:
        return files[0]
    if not files:
        raise CheckpointError(f"{source.repo} has no .safetensors file", hint="pickles are not read; name another one")
    raise CheckpointError(
        f"{source.repo} has {len(files)} .safetensors files: {some_of(files)}",
        hint=f"name one: {source.repo}/{files[0]}",
    )


def _fetch(source: Source, commit: str, files: list[RemoteFile], progress: Progress | None) -> None:
    """Fetch the files, the pipeline's index last, without which a download is incomplete."""
    connect({file.blob for file in files})
    blobs = _repo_folder(source.repo) / "blobs"
    size = sum(file.bytes for file in files if not (blobs / file.blob).exists())
    _require_space(size, cache())
    from concurrent.futures import ThreadPoolExecutor  # brings logging, which most commands need not import

    failures: list[BaseException] = []  # after the first, other transfers end at their next bytes
    with progress(source.repo, size) if progress else nullcontext(unseen) as advance:
        fetch = partial(_fetch_file, source, commit, advance=advance, failures=failures)
        with ThreadPoolExecutor(FILES_TOGETHER) as pool:
            try:
                list(pool.map(fetch, [file for file in files if file.name != MODEL_INDEX]))
                list(pool.map(fetch, [file for file in files if file.name == MODEL_INDEX]))
            except BaseException as error:
                failures.append(error)  # Ctrl-C; an error of a file is already in the list
    if failures:
        raise failures[0]


def _fetch_file(
    source: Source, commit: str, file: RemoteFile, *, advance: Advance, failures: list[BaseException]
) -> None:
    from huggingface_hub import hf_hub_download

    if failures:
        return
    counter = _byte_counter(advance, file.bytes, failures)
    try:
        path = Path(hf_hub_download(source.repo, file.name, revision=commit, tqdm_class=counter))
    except BaseException as error:
        failures.append(error)  # before this thread takes the next file
        raise
    digest = digest_of(path, git=len(file.blob) == 40, advance=unseen)
    if digest != file.blob:
        remove_chain(path)
        raise CheckpointError(
            f"{source.repo}: {file.name} is not what the Hub states: its digest is {digest[:12]}…, "
            f"not {file.blob[:12]}…; it was removed",
            hint=how_to_go_on(source),
        )


def remove_chain(path: Path) -> None:
    """Remove a file, and if it is a link everything that it leads to."""
    while path.is_symlink():
        linked = path.parent / path.readlink()
        path.unlink()
        path = linked
    path.unlink(missing_ok=True)


def cached_snapshots() -> Iterator[tuple[str, str]]:
    """Yield (repository, commit) of every Helios pipeline in the Hub cache, complete or not."""
    folder = cache()
    for index in sorted(folder.glob(f"models--*/snapshots/*/{MODEL_INDEX}")) if os.path.isdir(folder) else ():
        try:
            pipeline = str(read_json(index).get("_class_name"))
        except CheckpointError:
            continue  # unreadable, or of another program
        if pipeline.startswith("Helios") and COMMIT.fullmatch(index.parent.name):
            yield index.parents[2].name.removeprefix("models--").replace("--", "/"), index.parent.name


def snapshot_of(source: Source) -> Path | None:
    """Return the cached folder of `source`, complete or not. A branch is its commit at the last download."""
    folder = _repo_folder(source.repo)
    ref = folder / "refs" / source.revision
    # os.path: a folder that may not be searched counts as empty.
    commit = ref.read_text(errors="replace").strip() if os.path.isfile(ref) else source.revision
    snapshot = folder / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and os.path.isdir(snapshot) else None


def refetch(source: Source, folder: Path, name: str) -> str:
    """Return the command that replaces a bad file."""
    if source.folder:
        return f"copy {name} again from the source of {folder}"
    if not (folder / name).exists():
        return f"helios models pull {spoken(source)}"
    return f"hf download {source.repo} {name} --revision {folder.name} --force-download"


def _repo_folder(repo: str) -> Path:
    """Return the repository's folder in the Hub cache: `blobs/`, `snapshots/<commit>/`, `refs/<branch>`."""
    return cache() / f"models--{repo.replace('/', '--')}"


def _remote_files(source: Source) -> tuple[str, list[RemoteFile]]:
    """Return the commit and the files of the checkpoint. CheckpointError if the repository is not a pipeline, or the
    listing is invalid."""
    commit, files = _listed(source)
    if MODEL_INDEX not in files:
        raise CheckpointError(
            f"{source.repo} has no {MODEL_INDEX}, so it is not a pipeline in the diffusers layout",
            hint=f"published Helios models: {', '.join(known.repo for known in KNOWN.values())}",
        )
    return commit, [_remote_file(source, name, files[name]) for name in needed_files(files)]


def _listed(source: Source) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the commit and the entries of a repository's listing by file name."""
    answer = listing(source.repo, source.revision)
    commit, siblings = answer.get("sha"), answer.get("siblings")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise CheckpointError(f"{endpoint()} did not send a valid listing of {source.repo}", hint="check HF_ENDPOINT")
    entries = [entry for entry in siblings if isinstance(entry, dict) and isinstance(entry.get("rfilename"), str)]
    return commit, {entry["rfilename"]: entry for entry in entries}


def _remote_file(source: Source, name: str, entry: dict[str, Any]) -> RemoteFile:
    large, size = entry.get("lfs"), entry.get("size", -1)
    blob: Any = large.get("sha256") if isinstance(large, dict) else entry.get("blobId")
    is_file = type(size) is int and isinstance(blob, str)
    if is_file and size >= 0 and DIGEST.fullmatch(blob) and not (name.endswith(".json") and size > MAX_TOKENIZER_BYTES):
        return RemoteFile(name, size, blob)
    what = f"{endpoint()} gives no valid size and digest for {name} of {source.repo}"
    raise CheckpointError(what, hint="check HF_ENDPOINT")


def _require_space(size: int, cache: Path) -> None:
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise MachineError(
            f"the download needs {size / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB free",
            hint=f"free {(size - free) / 1e9:.1f} GB, or set HF_HOME to a folder on a larger disk",
        )


def unseen(count: int) -> None:
    """Take the bytes of an `Advance` where no progress is shown."""


def _byte_counter(advance: Advance, total: int, failures: list[BaseException]) -> type:
    """Make a tqdm class that draws nothing and passes a file's bytes on to `advance`, at most `total`.

    The library opens one bar (bytes received) or two (received and written). With deduplicated storage the two differ;
    the larger is the progress of the file. The class also ends a transfer when another one failed, or when far more
    bytes come than the file has.
    """
    from tqdm.auto import tqdm

    lock = threading.Lock()
    reported = 0

    class ByteCounter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            self.bytes = self.received = 0
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            nonlocal reported
            if not self.counts_bytes:
                return
            with lock:
                self.bytes += int(n or 0)
                self.received += max(0, int(n or 0))
                if failures or self.received > MAX_TIMES * total + SURPLUS_BYTES:
                    raise CheckpointError(
                        f"the server sends far more than the {total} bytes of a file", hint="check HF_ENDPOINT"
                    )
                new = min(self.bytes, total) - reported
                if new > 0:
                    reported += new
                    advance(new)

    return ByteCounter


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into one sentence and a next step. No message quotes a header or a token."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"{source.repo} is not a Hub id", hint="an id is owner/name") from error
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{source.repo} has to be downloaded, and HF_HUB_OFFLINE forbids the network",
            hint=f"unset HF_HUB_OFFLINE; {how_to_go_on(source)}",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(source, error) from error
    except (OSError, errors.HTTPError, RuntimeError) as error:  # hf_xet, in Rust, reports most things as RuntimeError
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(source, error.__cause__) from error
        raise _broken(source, error) from error


def _refused(source: Source, error: HfHubHTTPError) -> CheckpointError:
    """Return the error for a refusal of the Hub."""
    from huggingface_hub import errors

    page, repo = f"{endpoint()}/{source.repo}", source.repo
    status = error.response.status_code
    match error:
        case errors.GatedRepoError():
            what = f"{repo} is gated: access has to be granted first"
            hint = f"accept its terms at {page}, then set HF_TOKEN to a token of that account"
        case errors.RevisionNotFoundError():
            what = f"{repo} has no revision {source.revision}"
            hint = f"see {page}/commits/main, or use --revision main"
        case errors.RepositoryNotFoundError():
            what = f"{repo} was not found on the Hub, or is private"
            meant = nearest(repo)
            hint = f"did you mean {meant}?" if meant and meant != repo else "if it is private, set HF_TOKEN"
        case _ if status in (401, 403):
            what = f"{repo}: access denied (HTTP {status})"
            hint = f"set HF_TOKEN to a token that may read {page}"
        case _:
            what, hint = f"{repo}: the Hub answered HTTP {status}", "try again later"
    return CheckpointError(what, hint=hint)


def _broken(source: Source, error: Exception) -> HeliosError:
    """Return the error for the connection or the disk. The library reports a wrong length as a bare OSError."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError("the disk is full, so the download stopped", hint="free space and run the command again")
    if isinstance(error, OSError) and error.filename:
        return MachineError(f"{error.filename}: {error.strerror}", hint="set HF_HOME to a folder that can be written")
    if "Consistency check failed" in str(error):
        name = re.search(r"[\w./-]+\.(safetensors|json)", str(error))  # the library shows the last 40 characters
        return CheckpointError(
            f"{source.repo}: {f'the file ending in {name[0]}' if name else 'a file'} arrived incomplete",
            hint=how_to_go_on(source),
        )
    return CheckpointError(
        f"the Hub could not be reached ({type(error.__cause__ or error).__name__})",
        hint=f"check the connection; complete files are kept; {how_to_go_on(source)}",
    )
