"""Opens the file of a preview decoder (`model.taehv`): names, shapes and hash, without torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helios_cli.architecture import TAEHVConfig, VAEConfig
from helios_cli.errors import CheckpointError
from helios_cli.files import sha256_of
from helios_cli.weights.files import TensorInfo, misfits, read_header

UNUSED = "encoder."
"""The beginning of the names of tensors that the published file has and a decoder does not need."""

FLOATS = ("F64", "F32", "F16", "BF16")
MAX_BYTES = 2**29
"""The largest file: the published one has 23 MB, and would have 90 MB in the widest type."""

FILE_HINT = "it has to be taew2_1.safetensors of github.com/madebyollin/taehv, the decoder for Wan 2.1"


@dataclass(frozen=True)
class PreviewFile:
    """The file of a preview decoder. `digest` is its SHA-256; `tensors` are those that decode."""

    path: Path
    digest: str
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> PreviewFile:
        """Check a file. CheckpointError that names the tensor for a name, shape or type that does not fit."""
        tensors = read_preview(path)
        try:
            status = path.stat()
            digest = _digest(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}", hint=FILE_HINT) from error
        return cls(path, digest, tensors)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors.values())

    def doubts(self, vae: VAEConfig, model: str) -> list[str]:
        """Return a notice if the VAE of `model` is not the one whose latents the published file decodes. Raises
        CheckpointError if its latents have another number of channels."""
        wan, channels = VAEConfig(), TAEHVConfig().latent_channels
        if channels != vae.z_dim:
            what = f"{self.path} decodes latents of {channels} channels, but those of {model} have {vae.z_dim}"
            raise CheckpointError(what, hint="leave out --preview-decoder")
        if (vae.latents_mean, vae.latents_std) == (wan.latents_mean, wan.latents_std):
            return []
        return [
            f"{model} has latents of its own: a preview decoder for those of Wan 2.1 shows other things and colours"
        ]


@functools.lru_cache(maxsize=4)
def _digest(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    """Hash a file once, however often a film asks for its decoder. All but `path` say that it is still the same."""
    return sha256_of(path)


def read_preview(path: Path) -> dict[str, TensorInfo]:
    """Read the header of a preview decoder's file, without hashing it. CheckpointError as in `PreviewFile.open`."""
    try:
        header = read_header(path)
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes; a preview decoder has at most {MAX_BYTES}")
    except CheckpointError as error:
        error.hint = FILE_HINT if error.hint is None or "models verify" in error.hint else error.hint
        raise
    needed = TAEHVConfig().shapes()
    decoding = {name: info for name, info in header.items() if not name.startswith(UNUSED)}
    if faults := misfits(needed, decoding, lambda _, info: info.dtype in FLOATS):
        raise CheckpointError(f"{path} is not a preview decoder; its tensors: {faults}", hint=FILE_HINT)
    return {name: header[name] for name in needed}
