"""The kernel launches of a film of the 14B model, without a GPU: from shapes alone, recorded instead of started."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import helios_kernels as kernels
from helios_cli.architecture import DiTConfig, VAEConfig
from helios_cli.bench.specs import VAE
from helios_cli.cost.arithmetic import convolution_shapes
from helios_cli.model.convolution import CUDNN, FUSED, TRITON, Convolutions
from helios_cli.model.convolution import key_of as shape_of
from helios_cli.model.dit import FP32_ISLANDS, HeliosDiT
from helios_cli.model.fp8 import use_fp8
from helios_cli.model.vae import WanVAE
from helios_cli.sampling.schedule import Stage
from helios_cli.sampling.solvers import DMD
from helios_cli.weights.fp8 import is_fp8
from helios_kernels import renoise
from helios_kernels.dispatch import FP8_CHIPS, compiling_for
from support.kernel_builds import CHIPS, Launch, launch_of, marked, recorded, variant
from support.meta_networks import call, on_meta
from support.tiers import some

META = torch.device("meta")


def of_the_transformer(chip: str, quant: str = "none") -> list[Launch]:
    """Record a call of two blocks at 640x384, the prompt's keys first."""
    dit = on_meta(lambda: HeliosDiT(DiTConfig(num_layers=2)))
    if quant == "fp8":
        use_fp8(dit, is_fp8)
    for name, parameter in dit.named_parameters():
        if parameter.dtype == torch.float32 and FP32_ISLANDS.isdisjoint(name.split(".")) and "_scale" not in name:
            parameter.data = parameter.data.bfloat16()
    work = call(dit, (640, 384), halvings=0, prompt_tokens=120)
    with torch.no_grad(), compiling_for(chip), recorded() as launches:
        work["history"](), work["text"](), work["call"]()
    return launches


def of_the_sampler(chip: str) -> list[Launch]:
    grids = ((12, 20), (24, 40), (48, 80))
    coarse, middle, fine = (torch.empty(1, 16, 9, *grid, device=META) for grid in grids)
    with compiling_for(chip), recorded() as launches:
        renoise(coarse, middle, 0.6, 0.7), renoise(middle, fine, 0.6, 0.7)
        solver = DMD(Stage((999.0, 500.0), (0.9, 0.5, 0.0)), fine)
        solver.step(0, fine, fine.bfloat16()), solver.step(1, fine, fine.bfloat16())
    return launches


class Timed(Convolutions):
    """Takes the kernel wherever there is one, with the norm behind it or without, and notes for which shapes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def of(self, x_BTHWC, weight):
        if not kernels.causal_conv.takes(x_BTHWC, weight):
            return CUDNN
        self.taken[shape_of(x_BTHWC)] = self.name
        return self.name


def decoding_on_meta(choice: Convolutions, elements: int | None = None) -> WanVAE:
    vae = on_meta(lambda: WanVAE(VAEConfig.from_json(VAE), elements).bfloat16())
    for layer in vae.modules():
        if isinstance(layer, torch.nn.Conv3d):  # as `prepare` does on a GPU
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)
    vae.use_convolutions(choice)
    return vae


def of_the_vae(chip: str, choice: Convolutions) -> list[Launch]:
    """Record an image that a film begins with, and a chunk."""
    vae = decoding_on_meta(choice)
    with torch.no_grad(), compiling_for(chip), recorded() as launches:
        vae.encode(torch.empty(1, 3, 5, 384, 640, device=META), torch.Generator())
        for frames in vae.decode(torch.empty(1, 16, 9, 48, 80, device=META)):
            del frames
    return launches


def key_of(started: Launch) -> tuple:
    """Return what decides a build: the kernel, its constants and the types of its tensors."""
    of = variant(started)
    return started.kernel.__name__, tuple(sorted(of.constants.items())), tuple(sorted(of.signature.items()))


@pytest.mark.parametrize("chip", some(1, sorted(CHIPS, key=("sm_90", "gfx942").__contains__, reverse=True)))
def test_all_that_a_film_starts_is_built_ahead_of_time(chip):
    started = of_the_sampler(chip) + of_the_vae(chip, Convolutions()) + of_the_transformer(chip)
    started += of_the_vae(chip, Timed(TRITON)) + of_the_vae(chip, Timed(FUSED))
    if chip in FP8_CHIPS:
        started += of_the_transformer(chip, quant="fp8")
    built = {key_of(launch_of(*build)) for _, *build in marked((chip,))}
    missing = {key_of(launch) for launch in started} - built
    assert not missing


def test_the_stream_is_read_once_at_each_border():
    """A norm before the first block; from then on norms come with the sums before them, the last one as well."""
    started = of_the_transformer("sm_90")
    assert Counter(launch.kernel.__name__ for launch in started if "attention" not in launch.kernel.__name__) == {
        "stream_kernel": 1 + 2 * 3,
        "qk_norm_rope_kernel": 2 * (3 + 1),  # and the prompt's keys
    }
    first, *sums = (launch.constants for launch in started if launch.kernel.__name__ == "stream_kernel")
    assert not first["HAS_SUM"] and all(constants["HAS_NORM"] for constants in (first, *sums))
    assert [constants["HAS_GATE"] for constants in sums] == [True, False, True] * 2


def test_norms_round_to_fp8_themselves():
    """Attention's result, whose rows are spread over programs, and the hidden channels are rounded by a pass."""
    started = of_the_transformer("sm_90", quant="fp8")
    counts = Counter(launch.kernel.__name__ for launch in started if launch.constants.get("FP8", True))
    assert counts["quantize_kernel"] == 2 * 2
    assert counts["stream_kernel"] == 1 + 2 * 2 - 1  # the last norm is for the output layer, in bfloat16


class Passes(TorchDispatchMode):
    """Counts the bytes of sums and copies around the VAE's convolutions, and of biases that PyTorch adds to them."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        name = operation._overloadpacket.__name__
        if name in ("add_", "copy_"):
            added = args[1].nbytes if name == "add_" and args[1].shape == out.shape else 0
            self.moved += 2 * out.nbytes + added
        if name == "convolution" and args[2] is not None:
            self.moved += 2 * out.nbytes
        return out


def moved_by(started: Launch) -> int:
    """Count what `vae_norm_silu_kernel` reads and writes, and `causal_conv_kernel` apart from the convolution."""
    tensors = dict(zip((parameter.name for parameter in started.kernel.params), started.args, strict=False))
    if started.kernel.__name__ == "causal_conv_kernel":
        # Its result is the convolution's own, the normed one with a norm.
        sums = tensors["shortcut"].nbytes if started.constants["HAS_SHORTCUT"] else 0
        return 2 * sums if started.constants["NORM"] else sums
    moved = tensors["x"].nbytes + tensors["out"].nbytes
    if started.constants["HAS_PAST"]:
        moved += tensors["past"].nbytes
    if started.constants["HAS_SHORTCUT"]:
        moved += 2 * tensors["x"].nbytes
    return moved


@pytest.mark.parametrize("exponent", some(1, [28, 26]))
def test_the_passes_of_a_decode(exponent):
    """Bytes around the convolutions of a chunk of 640x384, in the README; interleaving is a copy of 6 GB more."""
    latents = torch.empty(1, 16, 9, 48, 80, device=META)
    moved, started = [], Counter()
    for choice in (Convolutions(), Timed(TRITON), Timed(FUSED)):
        vae = decoding_on_meta(choice, 2**exponent)
        with torch.no_grad(), compiling_for("sm_90"), recorded() as launches, Passes() as passes:
            for frames in vae.decode(latents):
                del frames
        moved.append(passes.moved + sum(map(moved_by, launches)))
        started = Counter(launch.kernel.__name__ for launch in launches)
    shapes = convolution_shapes(vae.config, (640, 384), "bfloat16")
    assert set(choice.taken) == set(shapes[-2:])  # 192 and 96 channels
    assert started["causal_conv_kernel"] > 0
    readme = (Path(__file__).parents[2] / "kernels/README.md").read_text()
    (recorded_gb,) = re.findall(rf"^\| 2\^{exponent} \|.*\| (\d+) \| (\d+) \| (\d+) \|$", readme, re.MULTILINE)
    assert [int(gb) for gb in recorded_gb] == [round(one / 1e9) for one in moved]
