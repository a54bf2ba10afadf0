"""The sub-models of a checkpoint on a device: who is loaded, and when it goes again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

import helios_kernels
from helios_cli import machine
from helios_cli.errors import CheckpointError, MachineError
from helios_cli.model import dit, umt5
from helios_cli.model.dit import DiTConfig, HeliosDiT
from helios_cli.model.umt5 import UMT5Config, UMT5Encoder
from helios_cli.model.vae import VAEConfig, WanVAE
from helios_cli.sampling.schedule import SchedulerConfig
from helios_cli.units import MAX_TEXT_TOKENS
from helios_cli.weights.checkpoint import SCHEDULER_CONFIG, Checkpoint
from helios_cli.weights.load import load_component


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt. `rows`: [K, E], K <= 512. `lost`: the end of the text that did not fit, or ""."""

    rows: Tensor
    lost: str = ""


class Models:
    """Loads a checkpoint's parts as they are needed. The text encoder is freed as soon as the prompts are encoded.

    `name` is what the user calls the model. Raises CheckpointError for a config that is not supported, MachineError for
    kernels that were asked for and cannot be had.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, name: str = "") -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.name = name or checkpoint.path.name
        if device.type == "cpu":
            torch.set_num_threads(machine.cpu_threads(checkpoint.component("transformer").parameters))
        try:
            helios_kernels.backend()
        except RuntimeError as error:
            raise MachineError(str(error), hint="unset HELIOS_KERNELS; `helios doctor` shows what is there") from error
        configs = {name: part.config for name, part in checkpoint.components.items()}
        self.dit_config = _read(DiTConfig.from_json, checkpoint, configs["transformer"], "transformer/config.json")
        self.vae_config = _read(VAEConfig.from_json, checkpoint, configs["vae"], "vae/config.json")
        self.text_config = _read(UMT5Config.from_json, checkpoint, configs["text_encoder"], "text_encoder/config.json")
        self.scheduler = _read(SchedulerConfig.from_json, checkpoint, checkpoint.scheduler, SCHEDULER_CONFIG)
        self.prompts: dict[str, Prompt] = {}
        self._dit: HeliosDiT | None = None
        self._vae: WanVAE | None = None

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's values leave float16's range; it is float32 then."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    def encode(self, texts: Iterable[str]) -> None:
        """Encodes the prompts that are not known yet into `prompts`."""
        new = [text for text in dict.fromkeys(texts) if text not in self.prompts]
        if not new:
            return
        tokenizer = Tokenizer.from_file(str(self.checkpoint.tokenizer))
        tokenizer.no_padding()
        islands = umt5.FP32_ISLANDS_IN_FLOAT16 if self.dtype == torch.float16 else frozenset()
        encoder = self._load("text_encoder", lambda: UMT5Encoder(self.text_config), self.dtype, islands)
        for text in new:
            self.prompts[text] = _encode(text, tokenizer, encoder, self.device)

    def mixed(self, weighted: tuple[tuple[str, float], ...]) -> Tensor:
        """Weighted sum of encoded prompts, [1, K, E]; a shorter one counts as zero where it has no rows."""
        longest = max(len(self.prompts[text].rows) for text, _ in weighted)
        first = self.prompts[weighted[0][0]].rows
        if len(weighted) == 1:
            return first[None]
        total = torch.zeros(1, longest, first.shape[-1], device=self.device)
        for text, weight in weighted:
            rows = self.prompts[text].rows
            total[0, : len(rows)] += weight * rows.float()
        return total.to(first.dtype)

    @property
    def dit(self) -> HeliosDiT:
        if self._dit is None:
            self._dit = self._load("transformer", lambda: HeliosDiT(self.dit_config), self.dtype, dit.FP32_ISLANDS)
            self._dit.join_projections()
        return self._dit

    @property
    def vae(self) -> WanVAE:
        if self._vae is None:
            self._vae = self._load("vae", lambda: WanVAE(self.vae_config), self.vae_dtype, frozenset())
        return self._vae

    def _load(
        self, name: str, build: Callable[[], nn.Module], dtype: torch.dtype, fp32_islands: frozenset[str]
    ) -> nn.Module:
        with torch.device("meta"):
            module = build()
        return load_component(
            module,
            self.checkpoint.component(name),
            device=self.device,
            dtype=dtype,
            keep_fp32=lambda parameter: not fp32_islands.isdisjoint(parameter.split(".")),
        ).eval()


def _encode(text: str, tokenizer: Tokenizer, encoder: UMT5Encoder, device: torch.device) -> Prompt:
    tokenizer.no_truncation()
    encoding, lost = tokenizer.encode(text), ""
    if len(encoding.ids) > MAX_TEXT_TOKENS:
        tokenizer.enable_truncation(MAX_TEXT_TOKENS)  # keeps the end token
        whole, encoding = encoding, tokenizer.encode(text)
        lost = text[whole.offsets[MAX_TEXT_TOKENS - 1][0] :]
    return Prompt(encoder(torch.tensor(encoding.ids, device=device)), lost)


def _read(from_json: Callable[[dict], object], checkpoint: Checkpoint, config: dict, file: str):
    """A typed config; what it does not support is the checkpoint's fault, named with its file."""
    try:
        return from_json(config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path / file}: {error}", hint="helios runs the published Helios architecture, in any size"
        ) from error
