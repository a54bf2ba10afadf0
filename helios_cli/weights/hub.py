"""From what the user calls a model to a folder on this disk: a path, a known name, or a Hub id.

Network errors become one sentence each. `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN` and `HF_ENDPOINT` mean what they mean
to `huggingface_hub`, which is imported only when something is looked up.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from helios_cli.errors import CheckpointError, HeliosError, InputError, MachineError
from helios_cli.weights.checkpoint import MODEL_INDEX, missing_files, needed_files
from helios_cli.weights.names import EMBEDDED, EMBEDDED_FOLDER, KNOWN, NAMES, known_repo, nearest

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")

Advance = Callable[[int], None]
"""Called with the number of bytes that came in since the last call, from any thread."""

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Opened with a description and the bytes to come: `console.progress_bytes` is one."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a folder on this disk, or a revision of a repository on the Hub."""

    folder: Path | None = None
    repo: str = ""
    revision: str = ""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `blob`: its name in the cache, SHA-256 of a large file, Git's SHA-1 of a small one."""

    name: str
    bytes: int
    blob: str


def source_of(model: str, revision: str | None = None) -> Source:
    """What `model` names: an existing folder, else a known name, else a Hub id `owner/name`.

    A folder that happens to be called `base` and is no checkpoint does not hide the model of that name.
    Raises `InputError` with the nearest known name for anything else.
    """
    if model and Path(model).is_dir() and (model not in NAMES or Path(model, MODEL_INDEX).exists()):
        return Source(folder=Path(model))
    if model == EMBEDDED:
        return Source(folder=EMBEDDED_FOLDER)
    known = KNOWN.get(model) or known_repo(model)
    if known:
        return Source(repo=known.repo, revision=revision or known.revision)
    if model and Path(model).exists():
        return Source(folder=Path(model))  # a file: opening it says what a checkpoint is
    suggestion = nearest(model)
    if suggestion and suggestion.lower() == model.lower():
        raise InputError(f"there is no model {model}: the Hub spells it {suggestion}", hint=f"write {suggestion}")
    if HUB_ID.fullmatch(model):
        return Source(repo=model, revision=revision or "main")
    hint = f"did you mean {suggestion}?" if suggestion else f"known names: {', '.join(NAMES)}"
    raise InputError(f"{model} is neither a folder, nor a known model, nor a Hub id owner/name", hint=hint)


def resolve(
    model: str, revision: str | None = None, *, progress: Progress | None = None, free_bytes: int | None = None
) -> Path:
    """The folder of `model`, downloaded first if this disk does not have it. A complete snapshot needs no network.

    `free_bytes` stands in for the free space of the cache's disk. Raises `CheckpointError` if the repository cannot be
    had and `MachineError` if the disk cannot hold it.
    """
    source = source_of(model, revision)
    return find(source) or download(source, progress=progress, free_bytes=free_bytes)


def find(source: Source) -> Path | None:
    """The local folder of `source` if all of its files are here, without the network."""
    if source.folder:
        return source.folder
    snapshot = snapshot_of(source)
    return snapshot if snapshot and not missing_files(snapshot) else None


def download(source: Source, *, progress: Progress | None = None, free_bytes: int | None = None) -> Path:
    """Fetch what is missing of `source` into the Hub cache and return its snapshot folder. A branch is looked up anew.

    The whole set is weighed against the free space before the first byte is asked for. An interrupted download keeps
    the files that were complete; the others start again.
    """
    from huggingface_hub import constants, snapshot_download

    found = find(source)
    if found and (source.folder or COMMIT.fullmatch(source.revision)):
        return found
    with _explained(source):
        files = _remote_files(source)
        blobs = _repo_folder(source.repo) / "blobs"
        size = sum(file.bytes for file in files if not (blobs / file.blob).exists())
        _require_space(size, Path(constants.HF_HUB_CACHE), free_bytes)
        with progress(source.repo, size) if progress else nullcontext(_ignore) as advance:
            snapshot = snapshot_download(
                source.repo,
                revision=source.revision,
                allow_patterns=[file.name for file in files],
                tqdm_class=_byte_counter(advance, size),
            )
    return Path(snapshot)


def cached_snapshots() -> Iterator[tuple[str, str]]:
    """(repository, commit) of every Helios pipeline in the Hub cache, whole or not."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    for index in sorted(cache.glob(f"models--*/snapshots/*/{MODEL_INDEX}")) if os.path.isdir(cache) else ():
        if b'"Helios' in index.read_bytes():
            yield index.parents[2].name.removeprefix("models--").replace("--", "/"), index.parent.name


def snapshot_of(source: Source) -> Path | None:
    """The cached folder of `source`, whole or not. A branch is the commit it was when last downloaded."""
    folder = _repo_folder(source.repo)
    ref = folder / "refs" / source.revision
    commit = ref.read_text().strip() if os.path.isfile(ref) else source.revision  # nothing is in a closed folder
    snapshot = folder / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and os.path.isdir(snapshot) else None


def refetch(source: Source, folder: Path, name: str) -> str:
    """The command that replaces one bad file."""
    if source.folder:
        return f"copy {name} anew from where {folder} came from"
    if not (folder / name).exists():
        return f"helios models pull {spoken(source)}"
    return f"hf download {source.repo} {name} --revision {folder.name} --force-download"


def spoken(source: Source) -> str:
    """`distilled` for its pinned revision, else the id with what makes it complete on a command line."""
    known = known_repo(source.repo)
    if known and source.revision == known.revision:
        return known.name
    return source.repo if source.revision == "main" else f"{source.repo} --revision {source.revision}"


def _repo_folder(repo: str) -> Path:
    """The repository's folder in the Hub cache: `blobs/`, `snapshots/<commit>/`, `refs/<branch>`."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _remote_files(source: Source) -> list[RemoteFile]:
    """The files that make the checkpoint. Raises `CheckpointError` if the repository is not a pipeline."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    found = {sibling.rfilename: sibling for sibling in info.siblings or []}
    if MODEL_INDEX not in found:
        raise CheckpointError(
            f"{source.repo} has no {MODEL_INDEX}, so it is not a pipeline in the diffusers layout",
            hint=f"published Helios models: {', '.join(known.repo for known in KNOWN.values())}",
        )
    files = (found[name] for name in needed_files(found))
    return [RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id) for file in files]


def _require_space(size: int, cache: Path, free_bytes: int | None) -> None:
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free if free_bytes is None else free_bytes
    if size > free:
        raise MachineError(
            f"the download needs {size / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB free",
            hint=f"free {(size - free) / 1e9:.1f} GB, or set HF_HOME to a folder on a larger disk",
        )


def _ignore(count: int) -> None:
    pass


def _byte_counter(advance: Advance, total: int) -> type:
    """A tqdm class that draws nothing and passes bytes on to `advance`, never more than `total` in all.

    The library opens one bar of files and two of bytes, received and written. With deduplicated storage the two differ
    on the way; the larger is how much of the file is done.
    """
    from tqdm.auto import tqdm

    lock = threading.Lock()
    reported = 0

    class ByteCounter(tqdm):
        def __init__(self, *args, **kwargs) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            self.bytes = 0
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            nonlocal reported
            if not self.counts_bytes:
                return
            with lock:
                self.bytes += int(n or 0)
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
            hint=f"unset HF_HUB_OFFLINE and run: helios models pull {spoken(source)}",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(source, error) from error
    except (OSError, errors.HTTPError, RuntimeError) as error:  # hf_xet, in Rust, reports most things as RuntimeError
        raise _broken(source, error) from error


def _refused(source: Source, error: Exception) -> CheckpointError:
    """The Hub was reached and said no."""
    from huggingface_hub import constants, errors

    page, repo = f"{constants.ENDPOINT}/{source.repo}", source.repo
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
            hint = f"did you mean {meant}?" if meant and meant != repo else "for a private one set HF_TOKEN"
        case _ if status in (401, 403):
            what = f"{repo}: access denied (HTTP {status})"
            hint = f"set HF_TOKEN to a token that may read {page}"
        case _:
            what, hint = f"{repo}: the Hub answered HTTP {status}", "try again later"
    return CheckpointError(what, hint=hint)


def _broken(source: Source, error: Exception) -> HeliosError:
    """The connection or the disk. The library reports a body of the wrong length as a bare OSError."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError("the disk became full during the download", hint="free space and run the command again")
    if isinstance(error, OSError) and error.filename:
        return MachineError(f"{error.filename}: {error.strerror}", hint="set HF_HOME to a folder that can be written")
    if "Consistency check failed" in str(error):
        name = re.search(r"[\w./-]+\.(safetensors|json)", str(error))  # the library shows the last 40 letters
        return CheckpointError(
            f"{source.repo}: {f'the file ending in {name[0]}' if name else 'a file'} arrived incomplete",
            hint=f"run again: helios models pull {spoken(source)}",
        )
    return CheckpointError(
        f"the Hub could not be reached ({type(error.__cause__ or error).__name__})",
        hint=f"check the connection; what is complete is kept: helios models pull {spoken(source)}",
    )
