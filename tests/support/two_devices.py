"""Runs the VAE's part of a film by the rules of two devices, in a process of its own: it registers a kind of device.

Fake tensors of that kind compute nothing. Where tensors of two devices meet in an operation, PyTorch raises an error.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helios_cli.architecture import VAEConfig
from helios_cli.bench.specs import SPECS
from helios_cli.engine.conditioning import start_from_clip, start_from_picture
from helios_cli.engine.gpu import sent_to
from helios_cli.engine.history import History
from helios_cli.model.vae import WanVAE

KIND = "pretended"


class Only(TorchDispatchMode):
    """Raises AssertionError for an operation on a device of this kind other than `device`; counts the others."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.operations = device, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == KIND:
                assert leaf.device == self.device, f"{operation} on {leaf.device}"
                self.operations += 1
        return result


def vae_on(device: torch.device) -> WanVAE:
    with torch.device("meta"):
        vae = WanVAE(VAEConfig.from_json(SPECS["tiny"].vae)).eval()
    state = {name: torch.empty(value.shape, device=device) for name, value in vae.named_parameters()}
    vae.load_state_dict(state, assign=True)
    return vae.requires_grad_(False)


def decode(one: torch.device, two: torch.device, vae: WanVAE) -> None:
    """Send latents from one device to the VAE's and decode them there."""
    latents, finite = torch.zeros(1, 16, 9, 8, 8, device=one), torch.ones((), dtype=torch.bool, device=one)
    arrive = sent_to(two, latents, finite)
    with Only(two) as only:
        found, flag = arrive()
        frames = list(vae.decode(found))
    assert only.operations and flag.device == two
    assert sum(piece.shape[2] for piece in frames) == 33 and {piece.device for piece in frames} == {two}


def condition(one: torch.device, two: torch.device, vae: WanVAE) -> None:
    """Encode a picture and a clip on the VAE's device; their history comes to the other one as a whole."""
    frames, generator = np.zeros((3, 33, 64, 64), np.float32), torch.Generator()
    clip = SimpleNamespace(first_frame=lambda: frames[:, :1], num_chunks=1, chunks=lambda _: iter([frames]))
    for start_from, what in ((start_from_picture, frames[:, 0]), (start_from_clip, clip)):
        history = History.empty(16, 8, 8, two)
        with Only(two) as only:
            start_from(history, vae, what, generator)
        moved = history.to(one)
        assert only.operations
        assert moved.latents.device == moved.anchor.device == moved.terms()[2].device == one
        try:
            start_from(History.empty(16, 8, 8, one), vae, what, generator)
        except RuntimeError as error:
            assert "two devices" in str(error), error
        else:
            raise AssertionError("tensors of two devices met, and nothing failed")


if __name__ == "__main__":
    backend_registration._setup_privateuseone_for_python_backend(KIND)
    places = torch.device(KIND, 0), torch.device(KIND, 1)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        for work in (decode, condition):
            work(*places, vae_on(places[1]))
    print("right")
