"""The preview decoder while films render: loaded where the VAE would be, and used in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import cached_property

import torch
from torch import Tensor

from helios_cli.model.taehv import TAEHV
from helios_cli.model.vae import kept_pictures
from helios_cli.weights.preview import PreviewFile
from helios_cli.weights.reader import StoredTensor, WeightFiles


class Preview:
    """Decodes chunks with the network in `file`, which is read when it is first needed."""

    def __init__(self, file: PreviewFile, device: torch.device, dtype: torch.dtype) -> None:
        self.file, self.device, self.dtype = file, device, dtype

    @cached_property
    def network(self) -> TAEHV:
        """The network. CheckpointError for values that are not finite, and for a file that has changed."""
        with torch.device("meta"):
            network = TAEHV()
        state = {}
        with closing(WeightFiles()) as files:
            for name, info in self.file.tensors.items():
                value = torch.empty(info.shape, dtype=self.dtype)
                files.read(StoredTensor(info), value)
                layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format  # as activations have it
                state[name] = value.to(self.device, memory_format=layout)
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).eval()

    def pictures(self, latents_1CTHW: Tensor, frames: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `Models.pictures` does: groups of a chunk's first `frames` frames, and whether each is finite."""
        return kept_pictures(self.network.decode(latents_1CTHW), frames)
