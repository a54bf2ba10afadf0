"""The text encoder against transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from helios_cli.model.umt5 import TIED_EMBEDDING, UMT5Config, UMT5Encoder
from support import oracle
from support.tolerance import assert_as_good, assert_equal_up_to_order

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def pair() -> tuple[UMT5EncoderModel, UMT5Encoder]:
    torch.manual_seed(0)
    theirs = oracle.text_encoder(100)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = UMT5Encoder(UMT5Config.from_json(theirs.config.to_dict()))
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name != TIED_EMBEDDING})
    return theirs, ours


def rows(model: UMT5EncoderModel, tokens: torch.Tensor) -> torch.Tensor:
    """Encode as the pipelines do: padded to 512 tokens with a mask, of which only the real rows are kept."""
    padded = torch.zeros(1, 512, dtype=torch.long)
    padded[0, : len(tokens)] = tokens
    return model(padded, (torch.arange(512) < len(tokens)).long()[None]).last_hidden_state[0, : len(tokens)]


@pytest.mark.oracle
@pytest.mark.parametrize("length", [1, 2, 20, 150, 512])
def test_rows_without_padding_equal_padded_and_masked(length):
    """Lengths beyond 128 reach the last distance bucket."""
    theirs, ours = pair()
    tokens = torch.randint(1, 100, (length,), generator=torch.Generator().manual_seed(length))
    assert_equal_up_to_order(ours(tokens), rows(theirs, tokens))


@pytest.mark.oracle
def test_bfloat16():
    theirs, ours = pair()
    tokens = torch.randint(1, 100, (40,))
    exact = rows(theirs, tokens)
    assert_as_good(ours.bfloat16()(tokens), rows(theirs.bfloat16(), tokens), exact, "rows")


@pytest.mark.oracle
def test_names_and_shapes_are_those_of_umt5_xxl():
    """242 tensors, 5.68 billion parameters."""
    from transformers import UMT5Config as TheirConfig
    from transformers import UMT5EncoderModel

    published = TheirConfig(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        theirs, ours = UMT5EncoderModel(published), UMT5Encoder(UMT5Config())
    expected = {name: value.shape for name, value in theirs.state_dict().items() if name != TIED_EMBEDDING}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected
    assert len(expected) == 242
    assert sum(shape.numel() for shape in expected.values()) == 5_680_910_336


def test_another_feed_forward_is_refused():
    with pytest.raises(ValueError, match="feed_forward_proj"):
        UMT5Config.from_json({"feed_forward_proj": "relu"})
