"""Encoding frames to latents and captions to rows, with the VAE and the text encoder of a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from helios_cli.errors import InputError
from helios_cli.train.data.cache import CacheNote, LatentClips
from helios_cli.train.models import InMemoryModels
from helios_cli.units import MAX_TEXT_TOKENS, PIXELS_PER_CELL
from helios_cli.weights.checkpoint import READ_WHOLE, Checkpoint
from helios_cli.weights.files import TensorInfo

ONLY_DECODING = ("decoder.", "post_quant_conv.")

BATCH_PIXELS = 8 * 128 * 64
"""Pixels per frame, over all chunks encoded together: enough to keep a core busy with a small VAE."""


class ClipEncoder:
    """Encodes with the checkpoint's own VAE and text encoder, which stay loaded.

    `size` is (width, height) in pixels. Latents depend only on the seed and the chunks of a call.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, size: tuple[int, int]) -> None:
        self.checkpoint, self.size = checkpoint, size
        self.models = InMemoryModels(checkpoint, device, dtype)

    def note(self, source: dict[str, str]) -> CacheNote:
        """Return the note of a cache made with this encoder; `source` describes the clips."""
        width, height = (pixels // PIXELS_PER_CELL for pixels in self.size)
        return CacheNote(
            encoder=encoder_identity(self.checkpoint),
            source={**source, "size": f"{self.size[0]}x{self.size[1]}", "dtype": str(self.models.dtype)},
            latent_shape=(self.models.vae_config.z_dim, height, width),
            text_dim=self.models.text_config.d_model,
        )

    @torch.inference_mode()
    def latents(self, chunks: Iterable[np.ndarray], seed: int) -> Tensor:
        """Return samples of the posterior of N chunks, float32 [3, 33, H, W] in [-1, 1]: [N, C, 9, h, w] on the host.

        Only the chunks that are encoded together are in memory at a time.
        """
        generator = torch.Generator().manual_seed(seed)
        together = max(1, BATCH_PIXELS // (self.size[0] * self.size[1]))
        source, encoded = iter(chunks), []
        while batch := list(islice(source, together)):
            frames = torch.from_numpy(np.stack(batch)).to(self.models.device)
            encoded.append(self.models.vae.encode(frames, generator).cpu())
        return torch.cat(encoded)

    @torch.inference_mode()
    def rows(self, captions: Iterable[str]) -> dict[str, Tensor]:
        """Return [K, E] of each caption on the host, in the encoder's dtype. InputError for too many tokens."""
        self.models.encode(captions)
        prompts = dict(self.models.prompts)
        self.models.prompts.clear()
        for caption, prompt in prompts.items():
            if prompt.lost:
                raise InputError(
                    f"a caption has more than {MAX_TEXT_TOKENS} tokens; its end would be cut off: {prompt.lost!r}",
                    hint=f"shorten {caption[:40]!r}...",
                )
        return {caption: prompt.rows.cpu() for caption, prompt in prompts.items()}


def encoder_identity(checkpoint: Checkpoint) -> str:
    """Hash the VAE's encoder, the text encoder and the tokenizer: equal hashes mean equal latents and rows.

    Training the transformer or the decoder leaves a cache valid. Large components are identified by each file's size
    and time of change, as in `weights.checkpoint`.
    """
    digest = hashlib.sha256(checkpoint.tokenizer.read_bytes())
    for name in ("vae", "text_encoder"):
        component = checkpoint.component(name)
        digest.update(json.dumps(component.config, sort_keys=True).encode())
        read = _bytes if component.bytes <= READ_WHOLE else _state
        for tensor in sorted(component.tensors.values(), key=lambda tensor: tensor.name):
            if not tensor.name.startswith(ONLY_DECODING):
                digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}\0".encode())
                digest.update(read(tensor))
    return digest.hexdigest()


def require_same_encoder(clips: LatentClips, checkpoint: Checkpoint) -> None:
    """InputError if the clips were encoded with other weights than the checkpoint's."""
    if clips.note.encoder != encoder_identity(checkpoint):
        raise InputError(
            f"the clips in {clips.folder} come from another VAE or text encoder than those of {checkpoint.path}",
            hint="encode them again, with this checkpoint as the `start` of the phase latents",
        )


def _bytes(tensor: TensorInfo) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.begin)
        return file.read(tensor.bytes)


def _state(tensor: TensorInfo) -> bytes:
    status = tensor.file.stat()
    return f"{tensor.file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()
