"""The arithmetic of a device, which decides how numbers are rounded, for fingerprints; without torch."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping

from helios_cli import machine, measured
from helios_cli.architecture import DiTConfig, VAEConfig
from helios_cli.cost.vae import decoder_levels
from helios_cli.device import Device
from helios_cli.measured import Measured
from helios_cli.recipe.fingerprint import Arithmetic
from helios_cli.units import IN_8_BITS, PIECE_ELEMENTS, PROMPT_KEYS, counted_rows
from helios_cli.versions import version_of
from helios_cli.weights.fp8 import FAST

LIBRARIES = ("triton", "fa3-fwd", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas")
"""Packages other than torch that may compute products, convolutions and attention on a GPU."""

TF32_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
"""Variables that change how float32 is rounded on a GPU."""


def arithmetic_of(
    device: Device,
    dtype: str,
    attention_taken: Mapping[str, str],
    *,
    quant: str,
    attention: str,
    fast_sums: Iterable[int] = (),
    vae_device: Device | None = None,
    team: int = 1,
    decoders: int = 1,
    piece_elements: int | None = None,
    convolutions: Mapping[str, str] | None = None,
    latents: str = "",
) -> Arithmetic:
    """Describe the arithmetic of a device, and of the VAE's if it has its own.

    `attention_taken` is what is known of the device's `attention_shapes`, `fast_sums` the lengths of its products
    in fp8 that have them. `team` is the number of ranks that share a model call, `decoders` the number that decode a
    chunk together, `piece_elements` what a layer of the VAE's decoder works on at a time, `convolutions` what is known
    of its `convolution_shapes`, `latents` the `device.latent_dtype`.
    """
    lengths = " ".join(map(str, sorted(fast_sums)))
    sums = f"fast sums {lengths}" if lengths else ""
    facts, vae = [_kernels(device, attention, attention_taken), sums], ""
    decoding = _decoding(piece_elements, convolutions or {})
    if vae_device is None or vae_device.name == device.name:
        facts.append(decoding)
    else:
        vae = ", ".join(fact for fact in (vae_device.name, _kernels(vae_device, "auto", {}), decoding) if fact)
    kernels = " ".join(fact for fact in facts if fact)
    wide = "" if latents == dtype else latents
    return Arithmetic(device.name, dtype, version_of("torch"), quant, kernels, vae, team, decoders, wide)


def _decoding(elements: int | None, convolutions: Mapping[str, str]) -> str:
    """Return the size of the VAE's pieces, by which a GPU may choose how it convolves, and which convolutions are a
    kernel's; empty for the usual ones."""
    facts = [] if elements is None or elements in PIECE_ELEMENTS.values() else [f"pieces {elements}"]
    ours = sorted(shape + name.removeprefix("triton") for shape, name in convolutions.items() if name != "cudnn")
    return " ".join([*facts, *([f"convolutions {_digest(ours)}"] if ours else [])])


def convolution_shapes(vae: VAEConfig, size: tuple[int, int], dtype: str) -> list[str]:
    """Return the shapes of the decoder's convolutions that are timed before a film, as `model.convolution.key_of` has
    them, and some that are not. `dtype` is the VAE's."""
    return [f"{rows}x{columns} {channels} {dtype}" for rows, columns, channels in decoder_levels(vae, size)]


def measured_convolutions(device: str, shapes: Iterable[str]) -> dict[str, str]:
    """Return what computes those of the shapes that were timed on the device."""
    if os.environ.get("HELIOS_KERNELS") == "reference":
        return {}
    known = measured.CONVOLUTIONS.on(device).known
    return {shape: known[shape].fastest(known[shape].ms, "cudnn") for shape in shapes if shape in known}


def attention_shapes(
    dit: DiTConfig, size: tuple[int, int], stages: int, dtype: str, team: int = 1, quant: str = "none"
) -> Iterator[str]:
    """Yield the shapes that --attention auto times on a GPU before a film, as `model.backends.shape_key` has them.

    `team` is the number of ranks that share a model call (`engine.choices.measure_attention`).
    """
    history, kind = dit.history_tokens(size).total, f"x{dit.attention_head_dim} {dtype}"
    heads, own = f"{dit.num_attention_heads}{kind}", f"{dit.num_attention_heads // team}{kind}"
    for noisy in dit.noisy_tokens(size, stages):
        rows, few = counted_rows(history + noisy), counted_rows(noisy)
        for end in ("", IN_8_BITS) if quant == "fp8+attention" else ("",):
            yield f"{rows}x{rows} {own}{end}"
            yield f"{few}x{rows} {own}{end}"
        asking = noisy if dit.guidance_cross_attn else history + noisy
        for guided in sorted({counted_rows(-(-asking // team)), counted_rows(asking // team)}, reverse=True):
            yield from (f"{guided}x{keys} {heads} bias" for keys in PROMPT_KEYS)
            yield f"{guided}x{PROMPT_KEYS[-1]} {heads}"


def measured_attention(device: str, shapes: Iterable[str]) -> dict[str, str]:
    """Return the attention that --attention auto takes for those of the shapes that were timed on the device."""
    known = measured.ATTENTION.on(device).known
    without = {"triton"} if os.environ.get("HELIOS_KERNELS") == "reference" else set()
    return {
        # In 8 bits it is not the fastest that is taken: the name in the file is.
        shape: known[shape].name
        if shape.endswith(IN_8_BITS)
        else known[shape].fastest(name for name in known[shape].ms if name not in without)
        for shape in shapes
        if shape in known
    }


def taken_for(shapes: Iterable[str], taken: Mapping[str, str]) -> dict[str, str]:
    """Return what was taken for these shapes alone: one process renders films of several sizes."""
    return {shape: taken[shape] for shape in shapes if shape in taken}


def product_shapes(dit: DiTConfig, size: tuple[int, int], stages: int) -> list[str]:
    """Return the shapes, rows x inputs x outputs, of the products in fp8 at the finest stage of films of a model's
    native `size`.

    They stand for its films of other sizes: one process may render several, and their sums are of the same lengths.
    """
    rows = dit.history_tokens(size).total + dit.noisy_tokens(size, stages)[-1]
    width, hidden = dit.width, dit.ffn_dim
    products = (width, 3 * width), (width, width), (width, hidden), (hidden, width)
    return [f"{rows}x{inner}x{outer}" for inner, outer in products]


def fast_sums(known: Mapping[str, Measured], shapes: Iterable[str]) -> frozenset[int]:
    """Return the lengths of sums that are fast in all products of these shapes that add up as many."""
    lengths = {shape: int(shape.split("x")[1]) for shape in shapes}
    slow = {length for shape, length in lengths.items() if shape not in known or known[shape].name != FAST}
    return frozenset(lengths.values()) - slow


def _kernels(device: Device, attention: str, attention_taken: Mapping[str, str]) -> str:
    """Return what the user set, and on a GPU what was measured there; empty for a CPU with nothing set."""
    flags = {"HELIOS_KERNELS": os.environ.get("HELIOS_KERNELS", "auto"), "--attention": attention}
    facts = [f"{name}={value}" for name, value in flags.items() if value != "auto"]
    if device.kind == "cuda":
        facts += [f"{name}={os.environ[name]}" for name in TF32_VARIABLES if os.environ.get(name)]
        facts += _libraries()
        findings = {
            "attention": attention == "auto" and dict(attention_taken),
            "tuned": machine.findings(machine.TUNED).get(device.name),
            # `auto` takes kernels that were right when they were tried
            "tried": flags["HELIOS_KERNELS"] == "auto" and machine.findings(machine.TRIED).get(device.name),
        }
        facts += [f"{name} {_digest(finding)}" for name, finding in findings.items() if finding]
    return " ".join(facts)


@functools.cache
def _libraries() -> tuple[str, ...]:
    return tuple(f"{package} {version}" for package in LIBRARIES if (version := machine.package_version(package)))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
