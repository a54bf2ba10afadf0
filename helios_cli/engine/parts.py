"""The networks of a checkpoint on their devices: loaded, sent away to make room, brought back, and read ahead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from helios_cli import machine
from helios_cli.model import umt5
from helios_cli.model.dit import HeliosDiT
from helios_cli.model.umt5 import UMT5Encoder
from helios_cli.weights.ahead import Ahead
from helios_cli.weights.checkpoint import Component
from helios_cli.weights.load import load_component, stored_tensors, tensors_to_load
from helios_cli.weights.offload import BlockStream, StoredRows
from helios_cli.weights.placement import PROMPT_MATRICES, Placement
from helios_cli.weights.reader import StoredTensor, WeightFiles, expect_files

if TYPE_CHECKING:
    from helios_cli.model.block import Block

EMBEDDING = "shared.weight"
"""The text encoder's embedding, one row per token of the vocabulary; a prompt needs only a few rows."""


@dataclass(frozen=True)
class Part:
    """A network of the model: how it is built, where and in which type it computes, and what stays in float32 there.

    `fp32_islands` are names of modules."""

    component: Component
    build: Callable[[], nn.Module]
    device: torch.device
    dtype: torch.dtype
    fp32_islands: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.component.name

    def on_meta(self) -> Any:
        with torch.device("meta"):
            return self.build()

    def keeps_fp32(self, parameter: str) -> bool:
        return not self.fp32_islands.isdisjoint(parameter.split("."))

    def dtype_of(self, parameter: str) -> torch.dtype:
        return torch.float32 if self.keeps_fp32(parameter) else self.dtype


@dataclass(frozen=True)
class _Loaded:
    """A part that can be read again; `leave` are its parameters that are not loaded with the others."""

    part: Part
    module: nn.Module
    leave: frozenset[str]


class Parts:
    """The parts that are loaded, their files, and what is read ahead.

    Args:
        device: of the transformer, the part that is read ahead.

    Attributes:
        placement: changes only while nothing is loaded, or where that may stay.
        stream: the transformer's blocks, if they stream.
    """

    def __init__(self, device: torch.device, placement: Placement) -> None:
        self.placement = placement
        self.files = WeightFiles()
        self.stream: BlockStream | None = None
        self._ahead = Ahead(self.files, device)
        self._loaded: dict[str, _Loaded] = {}
        self._away: set[str] = set()

    def load(self, part: Part) -> Any:
        """Return the network of a part, with its weights or with blocks that stream."""
        module = part.on_meta()
        if isinstance(module, HeliosDiT) and self.placement.reads_for_prompts:
            self._stream_blocks(part, module)
        loaded = self._loaded[part.name] = _Loaded(part, module, self._left_out(module))
        return self._fill(loaded).eval()

    def drop(self, name: str) -> None:
        """Forget a part, whose memory is freed with its network."""
        self._loaded.pop(name, None)

    def send_away(self, name: str) -> bool:
        """Free the memory of a part that can be read again; return whether there was one."""
        if name not in self._loaded or name in self._away:
            return False
        self._loaded[name].module.to("meta")
        self._away.add(name)
        if name == "transformer" and self.stream is not None:
            self.stream.leave()
        machine.give_back_memory()
        return True

    def bring_back(self, name: str) -> bool:
        """Read a part again that was sent away; return whether it was."""
        if name not in self._away:
            return False
        self._fill(self._loaded[name], check=False)  # the values were checked the first time
        self._away.discard(name)
        return True

    def read_ahead(self, part: Part) -> None:
        """Start to read a part while another one works.

        As much as fits is read to its device, and all of it into the page cache if the files fit there."""
        placement = self.placement
        most = placement.transformer_ahead_bytes if part.name == "transformer" else placement.vae_ahead_bytes
        if most and self._ahead.part != part.name:
            check = part.name not in self._loaded
            if check:
                module = part.on_meta()
                wanted = _Loaded(part, module, self._left_out(module))
            else:
                wanted = self._loaded[part.name]
            self._ahead.begin(part.name, tensors_to_load(wanted.module, part.component, **_how(wanted, check)), most)
        if part.component.bytes < machine.host_memory().available_bytes:
            expect_files({tensor.file for tensor in part.component.tensors.values()})

    def drop_ahead(self) -> None:
        """Free what was read ahead."""
        self._ahead.drop()

    def unload(self) -> None:
        """Forget all parts and close their files."""
        self._ahead.close()
        if self.stream is not None:
            self.stream.close()
        self.stream = None
        self._loaded.clear()
        self._away.clear()
        self.files.close()

    @contextlib.contextmanager
    def streamed_text_encoder(self, part: Part) -> Iterator[UMT5Encoder]:
        """Provide the text encoder within the block; its layers stream, and its embedding stays in its file."""
        encoder = part.on_meta()
        stored = stored_tensors(encoder, part.component)
        stream = self._stream_of(part, encoder.encoder.block, "encoder.block.", stored, again=False)
        self._fill(_Loaded(part, encoder, stream.names | {EMBEDDING}))
        encoder.shared = StoredRows(stored[EMBEDDING], self.files, part.device, part.dtype)
        encoder.walk = cast("Callable[[], Iterable[umt5.Layer]]", stream.walk)
        with contextlib.closing(stream):
            yield encoder.eval()

    def _stream_blocks(self, part: Part, module: HeliosDiT) -> None:
        """Stream what of the transformer's blocks is needed for prompts alone, and the rest where it does not stay."""
        common = part, module.blocks, "blocks.", stored_tensors(module, part.component)
        for_prompts = self._stream_of(*common, again=False, takes=_is_for_prompts)
        module.walk_for_prompts = cast("Callable[[], Iterable[Block]]", for_prompts.walk_once)
        if self.placement.mode == "stream":
            self.stream = self._stream_of(*common, takes=lambda name: not _is_for_prompts(name))
            module.walk = cast("Callable[[], Iterable[Block]]", self.stream.walk)

    def _stream_of(
        self,
        part: Part,
        blocks: nn.ModuleList,
        prefix: str,
        stored: dict[str, StoredTensor],
        *,
        again: bool = True,
        takes: Callable[[str], bool] = lambda name: True,
    ) -> BlockStream:
        placement = self.placement
        return BlockStream(
            blocks,
            prefix,
            stored,
            self.files,
            part.device,
            part.dtype_of,
            resident=placement.resident if again else 0,
            again=again,
            # Weights that are read once must not evict those that are read again from a small page cache.
            cached_bytes=placement.cached_bytes if again or placement.cached_bytes is None else 0,
            part=takes,
        )

    def _left_out(self, module: nn.Module) -> frozenset[str]:
        """Return the names of the parameters that are not loaded with the others."""
        if not isinstance(module, HeliosDiT) or not self.placement.reads_for_prompts:
            return frozenset()
        for_prompts = frozenset(name for name, _ in module.named_parameters() if _is_for_prompts(name))
        return for_prompts if self.stream is None else for_prompts | self.stream.names

    def _fill(self, loaded: _Loaded, *, check: bool = True) -> nn.Module:
        part, ahead = loaded.part, self._ahead.take(loaded.part.name)
        how = {**_how(loaded, check), "device": part.device, "files": self.files, "ahead": ahead}
        return load_component(loaded.module, part.component, **how)


def _how(loaded: _Loaded, check: bool) -> dict[str, Any]:
    part = loaded.part
    return {"dtype": part.dtype, "keep_fp32": part.keeps_fp32, "leave": loaded.leave, "check": check}


def _is_for_prompts(name: str) -> bool:
    return name.endswith(PROMPT_MATRICES)
