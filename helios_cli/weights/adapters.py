"""Reads LoRA files, and says what they add to which weights of the transformer. Without torch: only headers are read.

A LoRA has, for a layer's weight W [out, in], `up` B [out, r] and `down` A [r, in]; the weight that computes is
W + weight x alpha / r x B A (Hu et al., arXiv:2106.09685). It is folded in float32 as W is read (`reader`), so that no
second copy of a weight exists. Three families of names are known:

    PEFT     transformer.blocks.0.attn1.to_q.lora_A.weight, also without `transformer.`, and `.lora_B.bias`; rank and
             alpha in the file's metadata, or in an `adapter_config.json` next to it
    Wan      diffusion_model.blocks.0.self_attn.q.lora_A.weight or .lora_down.weight, .alpha, .diff_b, .diff
    kohya    lora_unet_blocks_0_self_attn_q.lora_down.weight, .lora_up.weight, .alpha

Without an alpha the factor alpha / r is 1, as in diffusers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.errors import CheckpointError
from helios_cli.files import sha256_of
from helios_cli.weights.client import DIGEST
from helios_cli.weights.files import (
    MAX_JSON_BYTES,
    PICKLE_SUFFIXES,
    TensorInfo,
    read_header,
    read_json,
    read_metadata,
    shown,
    some_of,
)

if TYPE_CHECKING:
    from helios_cli.weights.checkpoint import Checkpoint

METADATA_KEY = "lora_adapter_metadata"
"""The key under which diffusers stores PEFT's configuration in a safetensors file."""

CONFIG_FILE = "adapter_config.json"
"""PEFT's configuration, next to the file that its `save_pretrained` writes."""

FLOATS = {"F16": "<e", "F32": "<f", "F64": "<d"}

MAX_ALPHA = 1e6

_ROLES = {
    "down": r"lora_A(?:\.default)?\.weight|lora_down\.weight|lora\.down\.weight",
    "up": r"lora_B(?:\.default)?\.weight|lora_up\.weight|lora\.up\.weight",
    "up_bias": r"lora_B(?:\.default)?\.bias|lora_up\.bias",
    "alpha": r"alpha",
    "diff": r"diff",
    "diff_b": r"diff_b",
}
_KEY = re.compile(r"(?P<module>.+?)\.(?:" + "|".join(f"(?P<{role}>{form})" for role, form in _ROLES.items()) + ")")

_REFUSED = {
    "DoRA": re.compile(r"\.(?:dora_scale|lora_magnitude_vector)(?:\.|$)"),
    "LoKr": re.compile(r"\.lokr_"),
    "LoHa": re.compile(r"\.hada_"),
    "OFT": re.compile(r"\.oft_"),
    "LoCon with a Tucker core": re.compile(r"\.lora_mid\."),
}

_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.", "lora_unet_", "lycoris_")

_WAN = tuple(
    (re.compile(ours), wan)
    for ours, wan in (
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_out\.0$", ".o"),
        (r"\.to_([qkv])$", r".\1"),
        (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
        (r"\.ffn\.net\.2$", ".ffn.2"),
        (r"^(blocks\.\d+)\.norm2$", r"\1.norm3"),
        (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
        (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
        (r"^condition_embedder\.time_proj$", "time_projection.1"),
        (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
        (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
        (r"^proj_out$", "head.head"),
    )
)
"""Our names of modules, and what Wan's own code calls them."""

_IMAGE_BRANCH = re.compile(r"(?:^|[._])(?:k_img|v_img|add_[kqv]_proj|norm_added_[kq]|img_emb|image_embedder)(?:[._]|$)")

_FEW_STEPS = re.compile(
    r"causvid|lightx2v|step.?distill|accvid|self.?forcing|(?:^|[^a-z])(?:lcm|dmd2?|turbo|lightning|fusionx|rcm)(?:[^a-z]|$)"
)

_WIDTHS = {1536: "Wan2.1 1.3B", 2048: "LTX-Video", 3072: "Wan2.2 5B", 5120: "a 14B model such as Wan2.1 14B"}

_EXAMPLES = (
    "transformer.blocks.0.attn1.to_q.lora_A.weight",
    "diffusion_model.blocks.0.self_attn.q.lora_down.weight",
    "lora_unet_blocks_0_self_attn_q.lora_down.weight",
)


@dataclass(frozen=True)
class Term:
    """A summand of a tensor, in float32: `scale` x `up` `down`, or `scale` x `up` where there is no `down`."""

    up: TensorInfo
    scale: float
    down: TensorInfo | None = None


@dataclass(frozen=True)
class Adapter:
    """A LoRA file that is folded into a checkpoint.

    Attributes:
        weight: The factor that the user gave.
        digest: SHA-256 of everything that decides the terms apart from the weight.
        bytes: The size of its tensors.
        matched: How many of its `modules` belong to the transformer.
        working_bytes: The largest `down` matrix, as stored and in float32, which a reading thread holds.
    """

    path: Path
    weight: float
    digest: str
    bytes: int
    family: str
    ranks: tuple[int, ...]
    matched: int
    modules: int
    working_bytes: int


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA file as its header describes it.

    Attributes:
        modules: The tensors of each module by role, by the module's name in the file without prefixes.
        others: Names of tensors that have no role in a LoRA.
        config: PEFT's configuration; empty if there is none.
    """

    path: Path
    family: str
    modules: dict[str, dict[str, TensorInfo]]
    others: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    config: dict

    @classmethod
    def open(cls, path: Path) -> AdapterFile:
        """Read the header of a LoRA file. CheckpointError if it is damaged, a pickle, or of a kind not supported."""
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise CheckpointError(f"{path} is a pickle; only .safetensors is read", hint="convert it to safetensors")
        tensors = read_header(path)
        for kind, form in _REFUSED.items():
            if name := next((name for name in tensors if form.search(name)), None):
                raise CheckpointError(
                    f"{path} is {kind}, which helios does not fold ({name})",
                    hint="merge it with the program that trained it, or train a plain LoRA",
                )
        config = _config(path)
        if config.get("use_dora"):
            raise CheckpointError(f"{path} is DoRA by its configuration, which helios does not fold")
        modules: dict[str, dict[str, TensorInfo]] = {}
        others = []
        for name, info in tensors.items():
            key = _KEY.fullmatch(name)
            if key is None or key.lastgroup is None or _is_of_text_encoder(name):
                others.append(name)
                continue
            roles = modules.setdefault(_without_prefixes(key["module"]), {})
            if key.lastgroup in roles:
                twice = f"{roles[key.lastgroup].name} and {name}"
                raise CheckpointError(f"{path} has two tensors for one place: {twice}")
            roles[key.lastgroup] = info
        return cls(path, _family(tensors), modules, tuple(others), tensors, config)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the file, as the Hub's cache names it or as it is read here, and of its configuration."""
        blob = self.path.readlink().name if self.path.is_symlink() else ""
        if not (len(blob) == 64 and DIGEST.fullmatch(blob)):
            blob = sha256_of(self.path)
        config = _config_file(self.path)
        if config is None:
            return blob
        return hashlib.sha256(blob.encode() + config.read_bytes()).hexdigest()

    @property
    def bytes(self) -> int:
        return sum(info.bytes for info in self.tensors.values())

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({roles["down"].shape[0] for roles in self.modules.values() if _is_matrix(roles, "down")}))

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas of its modules; the rank where none is given."""
        pairs = ((name, roles) for name, roles in self.modules.items() if _is_matrix(roles, "down"))
        return tuple(sorted({self.alpha(name, roles) for name, roles in pairs}))

    def alpha(self, module: str, roles: Mapping[str, TensorInfo]) -> float:
        """Return the alpha of a module: its own tensor, else that of the configuration, else its rank."""
        if "alpha" in roles:
            return _scalar(roles["alpha"])
        patterns = self.config.get("alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            plain = str(pattern).removeprefix("^").replace("\\.", ".")
            if module == plain or module.endswith(f".{plain}"):
                return _number(self.path, "alpha_pattern", value)
        if self.config.get("lora_alpha") is not None:
            return _number(self.path, "lora_alpha", self.config["lora_alpha"])
        return float(roles["down"].shape[0])

    def scale(self, module: str, roles: Mapping[str, TensorInfo]) -> float:
        """Return alpha / rank, or alpha / sqrt(rank) for a rank-stabilized LoRA."""
        rank = roles["down"].shape[0]
        return self.alpha(module, roles) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def describe(self) -> dict:
        """Describe the file as plain values."""
        return {
            "path": str(self.path),
            "kind": "lora",
            "family": self.family,
            "modules": len(self.modules),
            "ranks": list(self.ranks),
            "alphas": list(self.alphas),
            "dtypes": sorted({info.dtype for info in self.tensors.values()}),
            "tensors": len(self.tensors),
            "bytes": self.bytes,
            "others": list(self.others),
            "sha256": self.digest,
        }


def fold(checkpoint: Checkpoint, files: Iterable[tuple[Path, float]]) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint with LoRA files that are folded into its transformer as it is read, each with its weight,
    and notices about them.

    Raises CheckpointError for a file that is damaged, of an unsupported kind or another shape, or matches nothing.
    """
    component = checkpoint.component("transformer")
    terms: dict[str, tuple[Term, ...]] = dict(component.terms)
    adapters, notices = list(checkpoint.adapters), []
    for path, weight in files:
        file = AdapterFile.open(path)
        fit = _Fit(file, component.tensors, weight)
        for name, term in fit.terms:
            terms[name] = (*terms.get(name, ()), term)
        adapters.append(fit.adapter)
        notices += fit.notices(checkpoint.kind)
    parts = {**checkpoint.components, "transformer": replace(component, terms=terms)}
    return replace(checkpoint, components=parts, adapters=tuple(adapters)), notices


class _Fit:
    """The terms of a file for the tensors of a transformer."""

    def __init__(self, file: AdapterFile, targets: Mapping[str, TensorInfo], weight: float) -> None:
        self.file, self._targets, self._weight = file, targets, weight
        self.terms: list[tuple[str, Term]] = []
        self._matched: set[str] = set()
        self._left: list[str] = list(file.others)
        spellings = _spellings(targets)
        for module, roles in file.modules.items():
            ours = spellings.get(module)
            if ours is None:
                self._left += [info.name for info in roles.values()]
            elif ours in self._matched:
                raise CheckpointError(f"{file.path} has two modules for {ours}, one of them {module}")
            else:
                self._add(module, ours, roles)
        if not self.terms:
            seen = some_of(list(file.tensors), 3)
            raise CheckpointError(
                f"{file.path} matches nothing in the transformer: it has keys such as {seen}; "
                f"expected are keys such as {', '.join(_EXAMPLES)}",
                hint="use a LoRA made for Helios or Wan2.1 14B",
            )

    def _add(self, module: str, ours: str, roles: Mapping[str, TensorInfo]) -> None:
        found = len(self.terms)
        scale = 1.0
        if "down" in roles or "up" in roles:
            down, up = self._pair(module, ours, roles)
            scale = self.file.scale(module, roles)
            self.terms.append((f"{ours}.weight", Term(up, self._weight * scale, down)))
        for role, name, factor in (("diff", "weight", 1.0), ("diff_b", "bias", 1.0), ("up_bias", "bias", scale)):
            if role in roles:
                self._difference(roles[role], f"{ours}.{name}", factor)
        if len(self.terms) > found:
            self._matched.add(ours)

    def _pair(self, module: str, ours: str, roles: Mapping[str, TensorInfo]) -> tuple[TensorInfo, TensorInfo]:
        """Return the two matrices of a module, which fit its weight."""
        if "down" not in roles or "up" not in roles:
            there = roles.get("down") or roles["up"]
            raise CheckpointError(f"{self.file.path} has {there.name}, but not its other half")
        down, up, target = roles["down"], roles["up"], self._targets[f"{ours}.weight"]
        rows, columns = target.shape[0], math.prod(target.shape[1:])
        for info in (down, up):
            self._require_type(info)
        rank = down.shape[0] if len(down.shape) > 1 else 0
        is_conv = len(target.shape) > 2
        fits_down = len(down.shape) > 1 and (
            down.shape[1:] == target.shape[1:] if is_conv else math.prod(down.shape[1:]) == columns
        )
        fits_up = len(up.shape) > 1 and up.shape[0] == rows and math.prod(up.shape[1:]) == rank
        if not (rank and fits_down and fits_up):
            expected = f"[r, {', '.join(map(str, target.shape[1:]))}] and [{rows}, r]"
            raise CheckpointError(
                f"{self.file.path}: {down.name} is {list(down.shape)} and {up.name} is {list(up.shape)}, but {ours} of "
                f"this model needs {expected}",
                hint=self._likely_base(),
            )
        return down, up

    def _difference(self, info: TensorInfo, name: str, factor: float) -> None:
        target = self._targets.get(name)
        if target is None:
            self._left.append(info.name)
            return
        self._require_type(info)
        if info.shape != target.shape:
            raise CheckpointError(
                f"{self.file.path}: {info.name} is {list(info.shape)}, but {name} of this model is "
                f"{list(target.shape)}",
                hint=self._likely_base(),
            )
        self.terms.append((name, Term(info, self._weight * factor)))

    def _require_type(self, info: TensorInfo) -> None:
        if info.dtype not in {*FLOATS, "BF16"}:
            raise CheckpointError(
                f"{self.file.path}: {info.name} is {info.dtype}, which is not read as a LoRA",
                hint="store it as bfloat16 or float32",
            )

    def _likely_base(self) -> str:
        """Return what the file was probably made for, by the inputs of its attention."""
        for module, roles in self.file.modules.items():
            if re.search(r"(?:self_attn|attn1)[._](?:to_)?[qkv]$", module) and _is_matrix(roles, "down"):
                width = math.prod(roles["down"].shape[1:])
                known = f", as {_WIDTHS[width]} is" if width in _WIDTHS else ""
                return f"it was made for a network {width} wide{known}; use one made for this model's shape"
        return "it was made for a network of another shape"

    @property
    def adapter(self) -> Adapter:
        file = self.file
        most = max((term.down.bytes + 4 * term.down.elements for _, term in self.terms if term.down), default=0)
        return Adapter(
            path=file.path,
            weight=self._weight,
            digest=file.digest,
            bytes=sum(term.up.bytes + (term.down.bytes if term.down else 0) for _, term in self.terms),
            family=file.family,
            ranks=file.ranks,
            matched=len(self._matched),
            modules=len(file.modules),
            working_bytes=most,
        )

    def notices(self, kind: str) -> list[str]:
        """Return what matched, what is left out, and what does not suit a model of `kind`."""
        file, adapter, name = self.file, self.adapter, self.file.path.name
        rank = f", rank {', '.join(map(str, adapter.ranks))}" if adapter.ranks else ""
        lines = [f"{name}: {adapter.matched} of its {adapter.modules} modules matched{rank}, weight {self._weight:g}"]
        image = [key for key in self._left if _IMAGE_BRANCH.search(key)]
        rest = [key for key in self._left if key not in image]
        if image:
            lines.append(
                f"{name}: {len(image)} tensors are for the image branch of Wan's image-to-video models, which Helios "
                f"does not have; they are left out: {some_of(image, 3)}"
            )
        if rest:
            lines.append(f"{name}: {len(rest)} tensors fit no module of the model and are left out: {some_of(rest)}")
        if kind == "distilled" and _is_few_steps(file):
            lines.append(
                f"{name} looks like a few-step accelerator; a distilled model needs few steps already, and the two "
                "together spoil the pictures"
            )
        return lines


def _spellings(targets: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return every known name of each module of a transformer -> our name."""
    names: dict[str, str] = {}
    for ours in dict.fromkeys(name.rpartition(".")[0] for name in targets if name.endswith((".weight", ".bias"))):
        wan = ours
        for form, replacement in _WAN:
            wan = form.sub(replacement, wan)
        for name in (ours, wan, ours.replace(".", "_"), wan.replace(".", "_")):
            names.setdefault(name, ours)
    return names


def _is_few_steps(file: AdapterFile) -> bool:
    """Return whether a file is an accelerator by its name, or by what only those train: biases and the time."""
    if _FEW_STEPS.search(file.path.name.lower()):
        return True
    has_biases = any("diff_b" in roles for roles in file.modules.values())
    return has_biases and any(module.startswith(("time_projection", "time_embedding")) for module in file.modules)


def _is_matrix(roles: Mapping[str, TensorInfo], role: str) -> bool:
    return role in roles and len(roles[role].shape) > 1 and roles[role].shape[0] > 0


def _is_of_text_encoder(name: str) -> bool:
    return name.startswith(("text_encoder", "lora_te"))


def _without_prefixes(module: str) -> str:
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    return module


def _family(names: Iterable[str]) -> str:
    names = list(names)
    if any(name.startswith(("lora_unet_", "lycoris_")) for name in names):
        return "kohya"
    if any(re.search(r"diffusion_model\.|(?:^|\.)(?:self_attn|cross_attn)\.", name) for name in names):
        return "Wan"
    return "PEFT"


def _config_file(path: Path) -> Path | None:
    """Return PEFT's configuration next to a file that its `save_pretrained` has written."""
    config = path.with_name(CONFIG_FILE)
    return config if path.name == "adapter_model.safetensors" and config.is_file() else None


def _config(path: Path) -> dict:
    """Return PEFT's configuration of the transformer's adapter; empty if there is none."""
    if (file := _config_file(path)) is not None:
        return read_json(file)
    text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        return {}
    try:
        values = json.loads(text) if len(text) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: its metadata `{METADATA_KEY}` is not a JSON object")
    return {key.removeprefix("transformer."): value for key, value in values.items()}


def _number(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_ALPHA:
        raise CheckpointError(f"{path}: `{key}` of its configuration cannot be {shown(value)}")
    return float(value)


def _scalar(info: TensorInfo) -> float:
    """Read the only number of a tensor, which is an alpha."""
    if info.elements != 1 or info.dtype not in {*FLOATS, "BF16"}:
        raise CheckpointError(f"{info.file}: {info.name} is {info.dtype} {list(info.shape)}, not a single number")
    with info.file.open("rb") as file:
        file.seek(info.begin)
        data = file.read(info.bytes)
    if info.dtype == "BF16":  # the upper half of a float32
        data = b"\0\0" + data
    (value,) = struct.unpack(FLOATS.get(info.dtype, "<f"), data)
    return _number(info.file, info.name, value)
