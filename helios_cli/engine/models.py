"""Holds the sub-models of a checkpoint on a device: loads them when they are needed, and frees them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

import helios_kernels
from helios_cli import machine
from helios_cli.cost.arithmetic import product_shapes
from helios_cli.cost.team import Team
from helios_cli.cost.vae import piece_elements_on
from helios_cli.device import device_of, latent_dtype
from helios_cli.engine.gpu import (
    CallGraphs,
    CudaRecorder,
    attention_memory,
    convolution_memory,
    measure_attention,
    measure_convolutions,
    recall_kernels,
    require_quant,
)
from helios_cli.engine.sums import measure_sums
from helios_cli.errors import MachineError
from helios_cli.model import dit, umt5
from helios_cli.model.attention import AUTO, Choice8Bit, choose
from helios_cli.model.convolution import Convolutions
from helios_cli.model.dit import Call, HeliosDiT, TextContext
from helios_cli.model.fp8 import FAST_LENGTHS, use_fp8
from helios_cli.model.low_bit import use_low_bit
from helios_cli.model.umt5 import UMT5Encoder
from helios_cli.model.vae import WanVAE, kept_pictures
from helios_cli.units import PROMPTS_TOGETHER, grid_of
from helios_cli.weights.ahead import Ahead
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import Quant, is_fp8
from helios_cli.weights.load import load_component, stored_tensors, tensors_to_load
from helios_cli.weights.low_bit import is_low_bit
from helios_cli.weights.offload import BlockStream, StoredRows
from helios_cli.weights.placement import PROMPT_MATRICES, RESIDENT, Placement
from helios_cli.weights.reader import StoredTensor, WeightFiles, expect_files
from helios_cli.weights.tokenizer import read_tokenizer, tokens_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from helios_cli.engine.ranks import Ranks
    from helios_cli.model.block import Block

Part = TypeVar("Part", bound=nn.Module)

EMBEDDING = "shared.weight"
"""The text encoder's embedding, one row per token of the vocabulary; a prompt needs only a few rows."""

PROMPTS_KEPT = 2**24
"""Bytes of encoded prompts to keep that no film needs at the moment: some long ones, or many short ones."""


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
        ranks: Ranks | None = None,
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.vae_device = vae_device or device
        self.name = name or checkpoint.path.name
        self.placement, self.quant, self.attention = placement, quant, attention
        self.threads = threads or machine.cpu_threads(checkpoint.component("transformer").parameters)
        self.ranks = ranks
        self.piece_elements = piece_elements or piece_elements_on(device_of(self.vae_device), None)
        require_quant(quant, device)
        recall_kernels()
        try:
            helios_kernels.backend()
        except RuntimeError as error:
            raise MachineError(str(error), hint="unset HELIOS_KERNELS; `helios doctor` shows what is there") from error
        transformer = checkpoint.component("transformer")
        self.low_bit = checkpoint.low_bit
        if self.low_bit and (quant != "none" or transformer.terms):
            what = f"--quant {quant}" if quant != "none" else "--lora"
            problem = f"{what}: the weights of {self.name} are stored in {self.low_bit}, and are not rounded twice"
            raise MachineError(problem, hint="use a copy in bfloat16, or name it to `helios models convert`")
        read = checkpoint.architecture
        config = self.dit_config = read.dit
        heads = (config.num_attention_heads, config.attention_head_dim)
        memory = attention_memory(device) if attention == AUTO or quant == "fp8+attention" else None
        self._choice = choose(attention, device, self.latent_dtype, *heads, memory=memory, wanted=attention_wanted)
        self._choice_8bit = Choice8Bit(self._choice, attention_wanted) if quant == "fp8+attention" else None
        self.vae_config, self.text_config, self.scheduler = read.vae, read.text, read.scheduler
        self.fast_sums: frozenset[int] = frozenset()
        self.convolutions = Convolutions(convolution_memory(self.vae_device))
        self.prompts: dict[str, Prompt] = {}
        self._wanted: MutableMapping[object, frozenset[str]] = WeakKeyDictionary()
        self.stream: BlockStream | None = None
        self._files = WeightFiles()
        self._ahead = Ahead(self._files, device)
        self._dit: HeliosDiT | None = None
        self._vae: WanVAE | None = None
        self._fillers: dict[str, tuple] = {}  # arguments of _fill, for parts that can be loaded again
        self._away: set[str] = set()
        self.graphs = CallGraphs(CudaRecorder()) if device.type == "cuda" else None

    @cached_property
    def latent_dtype(self) -> torch.dtype:
        """The data type of the transformer and the text encoder; `device.latent_dtype` says where it is another."""
        name = str(self.dtype).removeprefix("torch.")
        found = latent_dtype(name, self.device.type, self.checkpoint.parameters, quant=self.quant)
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
    def overlaps(self) -> bool:
        """Return whether a chunk is decoded while the next one is denoised: on a GPU, if the placement leaves room,
        and on two devices."""
        return (self.device.type == "cuda" or self.is_apart) and self.placement.overlaps

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
        self.placement = placement
        if self.ranks is not None:
            self.ranks.place(placement)

    def close(self) -> None:
        """Free all parts, and end the other ranks."""
        if self.ranks is not None:
            self.ranks.close()
        self.unload()

    def unload(self) -> None:
        """Free all parts and close their files. They are loaded again when they are needed."""
        self._ahead.close()
        if self.stream is not None:
            self.stream.close()
        if self.graphs is not None:
            self.graphs.forget()
        self._dit = self._vae = self.stream = None
        self._fillers.clear()
        self._away.clear()
        self._files.close()
        if any(device.type == "cuda" for device in self.devices):
            torch.cuda.empty_cache()  # of all GPUs
        if self.ranks is not None:
            self.ranks.unload()

    def settle(self, size: tuple[int, int], team: int = 1) -> None:
        """Measure attention for films of `size` where `auto` needs it, convolutions and fp8 products: the choices
        decide how numbers are rounded.

        `team` is the number of ranks that share a model call."""
        if self.vae_device.type == "cuda":
            measure_convolutions(self.convolutions, self.vae_config, size, self.vae_dtype, self.vae_device)
        if (self.attention == AUTO or self._choice_8bit is not None) and self.device.type == "cuda":
            patch, stages = self.dit_config.patch_size, self.scheduler.stages
            grids = [grid_of(size, patch, stages - 1 - k) for k in range(stages)]
            plain, in_8_bits = self._choice, self._choice_8bit
            measure_attention(plain, self.dit_config, grids, self.latent_dtype, self.device, team, in_8_bits)
        if self.quant != "none" and self.device.type == "cuda":
            shapes = product_shapes(self.dit_config, self.checkpoint.native_size, self.scheduler.stages)
            self.follow_sums(measure_sums(shapes, self.device))

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

    @property
    def attention_taken(self) -> Mapping[str, str]:
        """The backend that `auto` chose on a GPU for each shape that `settle` has measured."""
        return {**self._choice.taken, **(self._choice_8bit.taken if self._choice_8bit else {})}

    def follow_sums(self, lengths: Iterable[int]) -> None:
        """Take fast sums in fp8 products of these lengths, and in no others."""
        self.fast_sums = frozenset(lengths)
        FAST_LENGTHS.clear()
        FAST_LENGTHS.update(self.fast_sums)

    def attend_in_8_bits_by(self, kind: str) -> None:
        """Compute self-attention in 8 bits by this kind alone, to compare kinds."""
        assert self._choice_8bit is not None, "only with --quant fp8+attention"
        self._choice_8bit.only = kind

    def follow_attention(self, wanted: Mapping[str, str]) -> None:
        """Take the backends that rank 0 has chosen by shape."""
        for choice in filter(None, (self._choice, self._choice_8bit)):
            choice.wanted = wanted

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
        islands = umt5.FP32_ISLANDS_IN_FLOAT16 if self.dtype == torch.float16 else frozenset()
        if self.placement.mode != "stream":
            encoder = self._load("text_encoder", lambda: UMT5Encoder(self.text_config), self.latent_dtype, islands)
            if not self.is_loaded or self.placement.mode == "model":
                self._read_ahead("transformer")
            yield encoder
            self._fillers.pop("text_encoder", None)
            return
        with torch.device("meta"):
            encoder = UMT5Encoder(self.text_config)
        stored = stored_tensors(encoder, self.checkpoint.component("text_encoder"))
        layers = cast(nn.ModuleList, encoder.encoder.block)
        stream = self._stream_of(
            "text_encoder", layers, "encoder.block.", stored, self.latent_dtype, islands, again=False
        )
        self._fill("text_encoder", encoder, self.latent_dtype, islands, stream.names | {EMBEDDING})
        encoder.shared = cast(
            nn.Embedding, StoredRows(stored[EMBEDDING], self._files, self.vae_device, self.latent_dtype)
        )
        encoder.walk = cast("Callable[[], Iterable[umt5.Layer]]", stream.walk)
        with contextlib.closing(stream):
            yield encoder.eval()

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
            self._send_away("vae", self._vae)
        if self._dit is None:
            self._dit = cast(HeliosDiT, self._load("transformer", *self._part("transformer")))
        elif not self._bring_back("transformer"):
            return self._dit
        self._dit.join_projections()
        if self.placement.mode == "model":
            self._read_ahead("vae")
        return self._dit

    def _device_of(self, name: str) -> torch.device:
        return self.device if name == "transformer" else self.vae_device

    def _part(self, name: str) -> tuple[Callable[[], nn.Module], torch.dtype, frozenset[str]]:
        """Return how a part is built, its data type, and the modules that stay in float32."""
        if name == "transformer":
            return self._build_dit, self.latent_dtype, dit.FP32_ISLANDS
        return self._build_vae, self.vae_dtype, frozenset()

    def _build_dit(self) -> HeliosDiT:
        module = HeliosDiT(self.dit_config)
        module.use_attention(self._choice, self._choice_8bit)
        if self.low_bit is not None:
            return cast(HeliosDiT, use_low_bit(module, is_low_bit, self.low_bit))
        if self.quant == "none":
            return module
        try:
            return cast(HeliosDiT, use_fp8(module, is_fp8))
        except ValueError as error:
            raise MachineError(f"--quant {self.quant}: {error}", hint="leave out --quant") from error

    def _build_vae(self) -> WanVAE:
        module = WanVAE(self.vae_config, self.piece_elements)
        module.use_convolutions(self.convolutions)
        return module

    @property
    def vae(self) -> WanVAE:
        """The VAE. Where the two take turns, it stays until `dit` is used."""
        if self.placement.takes_turns:
            self._send_away("transformer", self._dit)
        if self._vae is None:
            self._vae = cast(WanVAE, self._load("vae", *self._part("vae")))
        elif not self._bring_back("vae"):
            return self._vae
        self._vae.prepare()
        if self.placement.mode == "model":
            self._read_ahead("transformer")
        return self._vae

    def _load(self, name: str, build: Callable[[], Part], dtype: torch.dtype, fp32_islands: frozenset[str]) -> Part:
        with torch.device("meta"):
            module = build()
        if isinstance(module, HeliosDiT) and self.placement.reads_for_prompts:
            self._stream_blocks(module, dtype, fp32_islands)
        leave = self._left_out(module)
        self._fillers[name] = (module, dtype, fp32_islands, leave)
        return self._fill(name, module, dtype, fp32_islands, leave).eval()

    def _stream_blocks(self, module: HeliosDiT, dtype: torch.dtype, fp32_islands: frozenset[str]) -> None:
        """Stream what of the transformer's blocks is needed for prompts alone, and the rest where it does not stay."""
        stored = stored_tensors(module, self.checkpoint.component("transformer"))
        common = "transformer", module.blocks, "blocks.", stored, dtype, fp32_islands
        for_prompts = self._stream_of(*common, again=False, part=_is_for_prompts)
        module.walk_for_prompts = cast("Callable[[], Iterable[Block]]", for_prompts.walk_once)
        if self.placement.mode == "stream":
            self.stream = self._stream_of(*common, part=lambda name: not _is_for_prompts(name))
            module.walk = cast("Callable[[], Iterable[Block]]", self.stream.walk)

    def _left_out(self, module: nn.Module) -> frozenset[str]:
        """Return the names of the parameters that are not loaded with the others."""
        if not isinstance(module, HeliosDiT) or not self.placement.reads_for_prompts:
            return frozenset()
        for_prompts = frozenset(name for name, _ in module.named_parameters() if _is_for_prompts(name))
        return for_prompts if self.stream is None else for_prompts | self.stream.names

    def _fill(
        self,
        name: str,
        module: Part,
        dtype: torch.dtype,
        fp32_islands: frozenset[str],
        leave: frozenset[str],
        *,
        check: bool = True,
    ) -> Part:
        return cast(
            Part,
            load_component(
                module,
                self.checkpoint.component(name),
                device=self._device_of(name),
                dtype=dtype,
                keep_fp32=_keeps_fp32(fp32_islands),
                leave=leave,
                files=self._files,
                check=check,
                ahead=self._ahead.take(name),
            ),
        )

    def _stream_of(
        self,
        name: str,
        blocks: nn.ModuleList,
        prefix: str,
        stored: dict[str, StoredTensor],
        dtype: torch.dtype,
        fp32_islands: frozenset[str],
        *,
        again: bool = True,
        part: Callable[[str], bool] = lambda name: True,
    ) -> BlockStream:
        return BlockStream(
            blocks,
            prefix,
            stored,
            self._files,
            self._device_of(name),
            lambda parameter: dtype if fp32_islands.isdisjoint(parameter.split(".")) else torch.float32,
            resident=self.placement.resident if again else 0,
            again=again,
            # Weights that are read once must not evict those that are read again from a small page cache.
            cached_bytes=self.placement.cached_bytes if again or self.placement.cached_bytes is None else 0,
            part=part,
        )

    def _send_away(self, name: str, module: nn.Module | None) -> None:
        """Free the memory of a part that can be read again."""
        if module is not None and name in self._fillers and name not in self._away:
            module.to("meta")
            self._away.add(name)
            if name == "transformer" and self.stream is not None:
                self.stream.leave()
            if name == "transformer" and self.graphs is not None:
                self.graphs.forget()
            machine.give_back_memory()

    def _bring_back(self, name: str) -> bool:
        """Read a part again that was sent away; return whether it was."""
        if name not in self._away:
            return False
        self._fill(name, *self._fillers[name], check=False)  # the values were checked the first time
        self._away.discard(name)
        return True

    def _make_room_for_text(self) -> None:
        """Free the other parts on its device, unless the text encoder has room next to them."""
        self._ahead.drop()
        beside = self.placement.text_beside
        if beside is None and self.placement.mode == "none":
            needed = self.latent_dtype.itemsize * self.checkpoint.component("text_encoder").parameters
            beside = needed <= (device_of(self.vae_device).free_bytes or 0)
        if beside:
            return
        self._send_away("vae", self._vae)
        if not self.is_apart:
            self._send_away("transformer", self._dit)
        if self.stream is not None:
            self.stream.leave(host=True)  # the text encoder's buffers take their place

    def _read_ahead(self, name: str) -> None:
        """Start to read a part while another one works.

        As much as fits is read to the device, and all of it into the page cache if the files fit there."""
        component, placement = self.checkpoint.component(name), self.placement
        most = placement.transformer_ahead_bytes if name == "transformer" else placement.vae_ahead_bytes
        if most and self._ahead.part != name:
            if name in self._fillers:
                module, dtype, islands, leave = self._fillers[name]
            else:
                build, dtype, islands = self._part(name)
                with torch.device("meta"):
                    module = build()
                leave = self._left_out(module)
            kept, check = _keeps_fp32(islands), name not in self._fillers
            wanted = tensors_to_load(module, component, dtype=dtype, keep_fp32=kept, leave=leave, check=check)
            self._ahead.begin(name, wanted, most)
        if component.bytes < machine.host_memory().available_bytes:
            expect_files({tensor.file for tensor in component.tensors.values()})


def _is_for_prompts(name: str) -> bool:
    return name.endswith(PROMPT_MATRICES)


def _keeps_fp32(islands: frozenset[str]) -> Callable[[str], bool]:
    return lambda parameter: not islands.isdisjoint(parameter.split("."))
