"""The model of a checkpoint on its devices: encodes prompts, makes model calls, decodes latents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

import helios_kernels
from helios_cli import machine
from helios_cli.architecture import DiTConfig, VAEConfig
from helios_cli.cost.team import Team
from helios_cli.cost.vae import piece_elements_on
from helios_cli.device import device_of, dtype_name, latent_dtype
from helios_cli.engine.choices import Choices
from helios_cli.engine.gpu import CallGraphs, CudaRecorder, recall_kernels, require_quant
from helios_cli.engine.parts import Part, Parts
from helios_cli.errors import MachineError
from helios_cli.model import dit, umt5
from helios_cli.model.attention import AUTO
from helios_cli.model.dit import Call, HeliosDiT, TextContext
from helios_cli.model.fp8 import use_fp8
from helios_cli.model.low_bit import use_low_bit
from helios_cli.model.umt5 import UMT5Encoder
from helios_cli.model.vae import WanVAE, kept_pictures
from helios_cli.units import PROMPTS_TOGETHER
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import Quant, is_fp8
from helios_cli.weights.low_bit import is_low_bit
from helios_cli.weights.offload import BlockStream
from helios_cli.weights.placement import RESIDENT, Placement
from helios_cli.weights.tokenizer import read_tokenizer, tokens_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from helios_cli.engine.ranks import Ranks
    from helios_cli.weights.low_bit import LowBit

PROMPTS_KEPT = 2**24
"""Bytes of encoded prompts that are kept although no film needs them at the moment: some long, or many short ones."""


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt. `rows`: [K, E] on the host, K <= 512. `lost`: the end of the text that did not fit, or ""."""

    rows: Tensor
    lost: str = ""


class Models:
    """Loads the parts of a checkpoint as they are needed, and frees them where `placement` says so. The text encoder
    is freed as soon as the prompts are encoded.

    Args:
        device: of the transformer.
        vae_device: of the VAE and the text encoder; that of the transformer by default.
        name: what the user calls the model.
        attention_wanted: backend by attention shape that `auto` follows, to repeat another film.
        piece_elements: what a layer of the VAE's decoder works on at a time; by default what suits the device.
        threads: threads on a CPU; by default those that suit the transformer.
        processes: number of processes that share the cores of a CPU.

    Attributes:
        ranks: processes that make model calls together with this one.

    Raises:
        CheckpointError: a config that is not supported.
        MachineError: kernels that were requested and are not available.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        name: str = "",
        vae_device: torch.device | None = None,
        placement: Placement = RESIDENT,
        quant: Quant = "none",
        attention: str = AUTO,
        attention_wanted: Mapping[str, str] | None = None,
        piece_elements: int | None = None,
        threads: int | None = None,
        processes: int = 1,
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.vae_device = vae_device or device
        self.name = name or checkpoint.path.name
        self.quant, self.attention = quant, attention
        self.threads = threads or machine.cpu_threads(checkpoint.component("transformer").parameters)
        self.processes = processes
        self.ranks: Ranks | None = None
        self.piece_elements = piece_elements or piece_elements_on(device_of(self.vae_device), None)
        require_quant(quant, device)
        recall_kernels()
        try:
            helios_kernels.backend()
        except RuntimeError as error:
            raise MachineError(str(error), hint="unset HELIOS_KERNELS; `helios doctor` shows what is there") from error
        checkpoint.require_rounded_once(self.name, quant)
        read = checkpoint.architecture
        self.dit_config, self.vae_config, self.text_config = read.dit, read.vae, read.text
        self.scheduler = read.scheduler
        where = self.device, self.vae_device, self.latent_dtype, self.vae_dtype
        self.choices = Choices(checkpoint, *where, quant=quant, name=attention, wanted=attention_wanted)
        self.prompts: dict[str, Prompt] = {}
        self._wanted: MutableMapping[object, frozenset[str]] = WeakKeyDictionary()
        self.parts = Parts(device, placement)
        self._dit: HeliosDiT | None = None
        self._vae: WanVAE | None = None
        self.graphs = CallGraphs(CudaRecorder()) if device.type == "cuda" else None

    @cached_property
    def latent_dtype(self) -> torch.dtype:
        """The data type of the transformer and the text encoder; `device.latent_dtype` says where it is another."""
        found = latent_dtype(dtype_name(self.dtype), self.device.type, self.checkpoint.parameters, quant=self.quant)
        return cast(torch.dtype, getattr(torch, found))

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's data type; float32 in place of float16, whose range its values exceed."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    @property
    def is_apart(self) -> bool:
        """Return whether the VAE and the text encoder are on another device than the transformer."""
        return self.vae_device != self.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices of the model, that of the transformer first."""
        return (self.device, self.vae_device) if self.is_apart else (self.device,)

    @property
    def placement(self) -> Placement:
        return self.parts.placement

    @property
    def stream(self) -> BlockStream | None:
        """The transformer's blocks, if they stream."""
        return self.parts.stream

    @property
    def chunks_beside(self) -> int:
        """The number of chunks that are decoded at a time while the next one is denoised."""
        on_cores = machine.chunks_beside(self.threads, self.processes) if self.ranks is None else 0
        return self.placement.chunks_beside(self.device.type, is_apart=self.is_apart, on_cores=on_cores)

    @property
    def is_loaded(self) -> bool:
        """Return whether the transformer or the VAE is in memory."""
        return self._dit is not None or self._vae is not None

    def place(self, placement: Placement) -> None:
        """Set the placement of the next film. Loaded parts are freed if they were placed differently.

        Graphs are freed in any case: they hold memory for the shapes of earlier films."""
        if replace(placement, text_beside=self.placement.text_beside) != self.placement:
            self.unload()
        elif self.graphs is not None:
            self.graphs.forget()
        self.parts.placement = placement
        if self.ranks is not None:
            self.ranks.place(placement)

    def close(self) -> None:
        """Free all parts, and end the other ranks."""
        if self.ranks is not None:
            self.ranks.close()
        self.unload()

    def unload(self) -> None:
        """Free all parts and close their files. They are loaded again when they are needed."""
        if self.graphs is not None:
            self.graphs.forget()
        self._dit = self._vae = None
        self.parts.unload()
        if any(device.type == "cuda" for device in self.devices):
            torch.cuda.empty_cache()  # of all GPUs
        if self.ranks is not None:
            self.ranks.unload()

    def use_threads(self) -> None:
        """Set what belongs to a thread: on a CPU the number of its helpers that suits the model, and the
        transformer's GPU."""
        if any(device.type == "cpu" for device in self.devices):
            torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def team(self, guidance: float) -> Team:
        """Return the ranks that make a call of a film together. Raises InputError if they cannot."""
        ranks = 1 if self.ranks is None else self.ranks.count
        return Team.of(ranks, guidance, self.dit_config.num_attention_heads, self.name)

    def decoders(self, size: tuple[int, int], guidance: float) -> int:
        """Return how many ranks decode a chunk together."""
        return self.team(guidance).decoders(size, is_apart=self.is_apart)

    @torch.no_grad()
    def pictures(self, latents_1CTHW: Tensor, frames: int, decoders: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield groups of a chunk's first `frames` frames, uint8 [T, H, W, 3] on the VAE's device, and whether each is
        finite. With several `decoders`, all ranks make them together."""
        if decoders > 1:
            assert self.ranks is not None, "only ranks decode together"
            yield from self.ranks.pictures(self, latents_1CTHW, frames)
            return
        yield from kept_pictures(self.vae.decode(latents_1CTHW), frames)

    def answer(self, calls: Sequence[Call]) -> list[Tensor]:
        """Compute independent model calls, with the other ranks if there are any."""
        if self.ranks is not None and calls:
            return self.ranks.answer(self, calls)
        return self.answer_alone(calls)

    def answer_alone(self, calls: Sequence[Call]) -> list[Tensor]:
        """Compute independent model calls in this process; streamed weights are read once for all of them."""
        dit = self.dit
        if self.stream is not None and calls:
            return dit.forward_all(calls)
        if self.graphs is None or self.placement.mode != "none" or not self.placement.graphs:
            return [dit(*call) for call in calls]
        # What a call leaves for others is no input or result of it, so that such calls are not replayed.
        return [dit(*call) if call.past is not None else self.graphs(dit, call) for call in calls]

    def encode(self, texts: Iterable[str]) -> None:
        """Encode prompts that are not in `prompts` yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self.prompts]
        if not new:
            return
        if self.ranks is not None:
            self.ranks.begin()  # they load the transformer while prompts are encoded
        self._make_room_for_text()
        if self.placement.mode != "none":
            machine.give_back_memory()
        tokenizer = read_tokenizer(self.checkpoint.tokenizer)
        with self._text_encoder() as encoder:
            together = PROMPTS_TOGETHER if encoder.walk else 1
            for first in range(0, len(new), together):
                self._encode(new[first : first + together], tokenizer, encoder)
        del encoder
        if self.placement.mode != "none":
            machine.give_back_memory()

    def want(self, film: object, texts: Iterable[str]) -> None:
        """Declare the prompts that `film` still needs, as long as that object exists.

        Prompts that no film needs are dropped, oldest first, except for PROMPTS_KEPT bytes: memory grows neither with
        the prompts of a film nor with the number of films."""
        self._wanted[film] = frozenset(texts)
        needed = frozenset().union(*self._wanted.values())
        spare = {text: prompt.rows.nbytes for text, prompt in self.prompts.items() if text not in needed}
        most = sum(spare.values()) - PROMPTS_KEPT
        for text, num_bytes in spare.items():
            if most <= 0:
                return
            del self.prompts[text]
            most -= num_bytes

    def _encode(self, texts: list[str], tokenizer: Tokenizer, encoder: UMT5Encoder) -> None:
        read = [tokens_of(text, tokenizer, self.text_config.vocab_size) for text in texts]
        rows = encoder.forward_all([torch.tensor(ids, device=self.vae_device) for ids, _ in read])
        for text, (_, lost), row in zip(texts, read, rows, strict=True):
            self.prompts[text] = Prompt(row.cpu(), lost)

    @contextlib.contextmanager
    def _text_encoder(self) -> Iterator[UMT5Encoder]:
        """Provide the text encoder within the block."""
        part = self._part("text_encoder")
        if self.placement.mode == "stream":
            with self.parts.streamed_text_encoder(part) as encoder:
                yield encoder
            return
        encoder = cast(UMT5Encoder, self._load(part))
        if not self.is_loaded or self.placement.mode == "model":
            self.parts.read_ahead(self._part("transformer"))
        yield encoder
        self.parts.drop("text_encoder")

    def mixed(self, weighted: tuple[tuple[str, float], ...]) -> Tensor:
        """Return the weighted sum of encoded prompts, [1, K, E] on the device; shorter ones are padded with zeros."""
        longest = max(len(self.prompts[text].rows) for text, _ in weighted)
        first = self.prompts[weighted[0][0]].rows.to(self.device)
        if len(weighted) == 1:
            return first[None]
        total = torch.zeros(1, longest, first.shape[-1], device=self.device)
        for text, weight in weighted:
            rows = self.prompts[text].rows.to(self.device)
            total[0, : len(rows)] += weight * rows.float()
        return total.to(first.dtype)

    def embed_text(self, weighted: tuple[tuple[str, float], ...]) -> TextContext:
        """Return the keys and values of the weighted sum of encoded prompts."""
        rows = self.mixed(weighted)
        return self.dit.embed_text(rows) if self.ranks is None else self.ranks.embed_text(self, rows)

    @property
    def dit(self) -> HeliosDiT:
        """The transformer. Where the two take turns, it stays until `vae` is used."""
        if self.placement.takes_turns:
            self._send_away("vae")
        if self._dit is None:
            self._dit = cast(HeliosDiT, self._load(self._part("transformer")))
        elif not self.parts.bring_back("transformer"):
            return self._dit
        self._dit.join_projections()
        if self.placement.mode == "model":
            self.parts.read_ahead(self._part("vae"))
        return self._dit

    @property
    def vae(self) -> WanVAE:
        """The VAE. Where the two take turns, it stays until `dit` is used."""
        if self.placement.takes_turns:
            self._send_away("transformer")
        if self._vae is None:
            self._vae = cast(WanVAE, self._load(self._part("vae")))
        elif not self.parts.bring_back("vae"):
            return self._vae
        self._vae.prepare()
        if self.placement.mode == "model":
            self.parts.read_ahead(self._part("transformer"))
        return self._vae

    def _load(self, part: Part) -> nn.Module:
        return self.parts.load(part)

    def _send_away(self, name: str) -> None:
        """Free the memory of a part that can be read again."""
        if self.parts.send_away(name) and name == "transformer" and self.graphs is not None:
            self.graphs.forget()

    def _make_room_for_text(self) -> None:
        """Free the other parts on its device, unless the text encoder has room next to them."""
        self.parts.drop_ahead()
        beside = self.placement.text_beside
        if beside is None and self.placement.mode == "none":
            needed = self.latent_dtype.itemsize * self.checkpoint.component("text_encoder").parameters
            beside = needed <= (device_of(self.vae_device).free_bytes or 0)
        if beside:
            return
        self._send_away("vae")
        if not self.is_apart:
            self._send_away("transformer")
        if self.stream is not None:
            self.stream.leave(host=True)  # the text encoder's buffers take their place

    def _part(self, name: str) -> Part:
        """Describe a part without a reference to this object, which would then live as long as the part's memory."""
        component = self.checkpoint.component(name)
        if name == "transformer":
            build = partial(_build_dit, self.dit_config, self.choices, self.checkpoint.low_bit, self.quant)
            return Part(component, build, self.device, self.latent_dtype, dit.FP32_ISLANDS)
        if name == "vae":
            decoding = partial(_build_vae, self.vae_config, self.choices, self.piece_elements)
            return Part(component, decoding, self.vae_device, self.vae_dtype)
        islands = umt5.FP32_ISLANDS_IN_FLOAT16 if self.dtype == torch.float16 else frozenset()
        return Part(component, partial(UMT5Encoder, self.text_config), self.vae_device, self.latent_dtype, islands)


def _build_dit(config: DiTConfig, choices: Choices, low_bit: LowBit | None, quant: Quant) -> HeliosDiT:
    module = HeliosDiT(config)
    module.use_attention(choices.attention, choices.in_8_bits)
    if low_bit is not None:
        return cast(HeliosDiT, use_low_bit(module, is_low_bit, low_bit))
    if quant == "none":
        return module
    try:
        return cast(HeliosDiT, use_fp8(module, is_fp8))
    except ValueError as error:
        raise MachineError(f"--quant {quant}: {error}", hint="leave out --quant") from error


def _build_vae(config: VAEConfig, choices: Choices, piece_elements: int) -> WanVAE:
    module = WanVAE(config, piece_elements)
    module.use_convolutions(choices.convolutions)
    return module
