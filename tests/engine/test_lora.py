"""LoRA files folded into weights: against sums by hand, against diffusers, and the same wherever weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helios_cli.engine.convert import convert
from helios_cli.engine.models import Models
from helios_cli.errors import CheckpointError
from helios_cli.model.dit import HeliosDiT
from helios_cli.model.fp8 import use_fp8
from helios_cli.weights import reader
from helios_cli.weights.adapters import fold
from helios_cli.weights.ahead import Ahead
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import is_fp8, quantize_weight
from helios_cli.weights.load import load_component, tensors_to_load
from helios_cli.weights.placement import PROMPT_MATRICES, Placement
from helios_cli.weights.reader import WeightFiles
from support import loras

CPU = torch.device("cpu")


def transformer_of(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, *, fp8: bool = False) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = HeliosDiT(checkpoint.architecture.dit)
        if fp8:
            module = use_fp8(module, is_fp8)
    return load_component(module, checkpoint.component("transformer"), device=CPU, dtype=dtype)


def require_sums(found: nn.Module, weights: dict, *added: tuple[dict, float]) -> None:
    """Each tensor is that of the file plus what LoRA files add, to the last bits of float32."""
    for name, value in found.state_dict().items():
        expected = weights[name].double() + sum(factor * terms.get(name, 0) for terms, factor in added)
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-6), name
        if not any(name in terms for terms, _ in added):
            assert torch.equal(value, weights[name])


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("family", loras.FAMILIES)
def test_every_family_adds_its_product(family, alpha, distilled, tmp_path):
    weights = loras.weights_of(distilled)
    added = loras.write(tmp_path / "lora.safetensors", weights, family, alpha=alpha, biases=True)
    checkpoint, _ = fold(Checkpoint.open(distilled), [(tmp_path / "lora.safetensors", 0.7)])
    require_sums(transformer_of(checkpoint), weights, (added, 0.7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_files_of_every_type(dtype, distilled, tmp_path):
    weights = loras.weights_of(distilled)
    added = loras.write(tmp_path / "lora.safetensors", weights, "Wan", alpha=3, biases=True, dtype=dtype)
    checkpoint, _ = fold(Checkpoint.open(distilled), [(tmp_path / "lora.safetensors", 1.0)])
    require_sums(transformer_of(checkpoint), weights, (added, 1.0))


def test_whole_differences_of_weights_and_norms(distilled, tmp_path):
    weights = loras.weights_of(distilled)
    places = {"head.head.diff": "proj_out.weight", "blocks.0.norm3.diff": "blocks.0.norm2.weight"}
    places |= {"blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight"}
    tensors = {f"diffusion_model.{theirs}": torch.randn(weights[ours].shape) for theirs, ours in places.items()}
    save_file(tensors, tmp_path / "diff.safetensors")
    added = {ours: tensors[f"diffusion_model.{theirs}"].double() for theirs, ours in places.items()}
    checkpoint, _ = fold(Checkpoint.open(distilled), [(tmp_path / "diff.safetensors", 0.5)])
    require_sums(transformer_of(checkpoint), weights, (added, 0.5))


def test_several_files_add_up(distilled, tmp_path):
    weights, files, added = loras.weights_of(distilled), [], []
    for seed, family in enumerate(("PEFT", "kohya")):
        files.append((tmp_path / f"{seed}.safetensors", 0.5 - seed))
        added.append((loras.write(files[-1][0], weights, family, seed=seed), 0.5 - seed))
    checkpoint, _ = fold(Checkpoint.open(distilled), files)
    require_sums(transformer_of(checkpoint), weights, *added)


@pytest.fixture
def folded(distilled, tmp_path) -> Checkpoint:
    loras.write(tmp_path / "lora.safetensors", loras.weights_of(distilled), "Wan", alpha=2, biases=True)
    return fold(Checkpoint.open(distilled), [(tmp_path / "lora.safetensors", 1.0)])[0]


def test_it_is_folded_in_float32_and_rounded_once(folded):
    wide, narrow = (transformer_of(folded, dtype).state_dict() for dtype in (torch.float32, torch.bfloat16))
    for name, value in wide.items():
        assert torch.equal(narrow[name], value.bfloat16()), name


def test_it_is_folded_before_fp8(folded):
    wide, rounded = transformer_of(folded).state_dict(), transformer_of(folded, torch.bfloat16, fp8=True).state_dict()
    names = [name for name in wide if is_fp8(name)]
    assert names
    for name in names:
        values, scales = quantize_weight(wide[name])
        assert torch.equal(rounded[name].view(torch.uint8), values.view(torch.uint8)), name
        assert torch.equal(rounded[f"{name}_scale"], scales)


def test_small_pieces_add_up_to_the_same(folded, monkeypatch):
    whole = transformer_of(folded).state_dict()
    monkeypatch.setattr(reader, "PIECE_BYTES", 1000)
    for name, value in transformer_of(folded).state_dict().items():
        assert torch.allclose(value, whole[name], rtol=1e-6, atol=1e-6), name


@pytest.mark.usefixtures("large")
def test_blocks_that_stream_have_it(folded):
    """The matrices that each block computes with equal those of a model in memory, walk after walk."""
    expected = transformer_of(folded, torch.bfloat16).state_dict()
    models = Models(folded, CPU, torch.bfloat16, placement=Placement("stream"))
    for _ in range(2):
        for index, block in enumerate(models.dit.visit()):
            for name, value in block.state_dict().items():
                if value.dim() == 2 and name not in PROMPT_MATRICES:
                    assert torch.equal(value, expected[f"blocks.{index}.{name}"]), name
        for index, block in enumerate(models.dit.visit_for_prompts()):
            for name in PROMPT_MATRICES:
                assert torch.equal(block.get_parameter(name), expected[f"blocks.{index}.{name}"]), name
    models.close()


def test_reading_ahead_has_it(folded):
    with torch.device("meta"):
        module = HeliosDiT(folded.architecture.dit)
    component, files = folded.component("transformer"), WeightFiles()
    wanted = tensors_to_load(
        module, component, dtype=torch.float32, keep_fp32=lambda name: False, leave=frozenset(), check=True
    )
    ahead = Ahead(files, CPU)
    ahead.begin("transformer", wanted, 2**40)
    expected = transformer_of(folded).state_dict()
    taken = ahead.take("transformer")
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[name], value) for name, value in expected.items())
    files.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_a_converted_copy_equals_what_is_folded_in_memory(dtype, folded, tmp_path):
    """The copy needs the file no more."""
    fp8 = dtype == "float8"
    expected = transformer_of(folded, torch.bfloat16, fp8=fp8).state_dict()
    copy = Checkpoint.open(convert(folded, tmp_path / "copy", dtype, lambda count: None).path)
    (tmp_path / "lora.safetensors").unlink()
    for name, value in transformer_of(copy, torch.bfloat16, fp8=fp8).state_dict().items():
        assert torch.equal(value.view(torch.uint8), expected[name].view(torch.uint8)), name


def test_a_lora_on_a_copy_in_fp8_is_rounded_anew(folded, distilled, tmp_path):
    """The copy's values times their scales are what the LoRA is added to."""
    path = convert(Checkpoint.open(distilled), tmp_path / "copy", "float8", lambda count: None).path
    copy, _ = fold(Checkpoint.open(path), [(tmp_path / "lora.safetensors", 1.0)])
    wide, rounded = transformer_of(copy).state_dict(), transformer_of(copy, torch.bfloat16, fp8=True).state_dict()
    for name in filter(is_fp8, wide):
        values, scales = quantize_weight(wide[name])
        assert torch.equal(rounded[name].view(torch.uint8), values.view(torch.uint8)), name
        assert torch.equal(rounded[f"{name}_scale"], scales)


def test_values_that_are_not_finite_name_the_lora(distilled, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"proj_out.diff_b": torch.full((64,), float("inf"))}, path)
    checkpoint, _ = fold(Checkpoint.open(distilled), [(path, 1.0)])
    with pytest.raises(CheckpointError, match=r"lora\.safetensors.*not finite"):
        transformer_of(checkpoint)


def of_diffusers(pipeline, weight: float) -> dict:
    """The weights of its transformer with the adapter that was loaded, folded by it."""
    pipeline.fuse_lora(lora_scale=weight, safe_fusing=True)
    pipeline.unload_lora_weights()
    return pipeline.transformer.state_dict()


def require_equal(folder: Path, path: Path, weight: float, expected: dict, changed: int) -> None:
    weights = loras.weights_of(folder)
    checkpoint, _ = fold(Checkpoint.open(folder), [(path, weight)])
    found = transformer_of(checkpoint).state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-6), name
    assert sum(not torch.equal(found[name], weights[name]) for name in found) == changed


BLOCKS = tuple(
    f"blocks.{block}.{name}"
    for block in (0, 1)
    for name in (
        *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
        *("ffn.net.0.proj", "ffn.net.2"),
    )
)
"""All layers of the blocks, which diffusers expects of a file in kohya's names."""


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("family", "alpha", "biases"),
    [
        ("PEFT", None, False),
        ("PEFT", None, True),
        ("PEFT without transformer", None, False),
        ("Wan", None, False),
        ("Wan", 6.0, True),
        ("Wan, down and up", 6.0, False),
        ("kohya", 6.0, False),
    ],
)
def test_diffusers_with_the_same_file(family, alpha, biases, distilled, tmp_path):
    """`load_lora_weights` of its pipeline: every weight that it folds equals ours in float32."""
    from support import oracle

    is_peft, path = family.startswith("PEFT"), tmp_path / "lora.safetensors"
    layers = [*BLOCKS, "patch_embedding", "patch_long", "proj_out"] if is_peft else BLOCKS
    loras.write(path, loras.weights_of(distilled), family, layers=layers, alpha=alpha, biases=biases)
    pipeline = oracle.load(distilled)
    if family == "PEFT without transformer":
        pipeline.transformer.load_lora_adapter(str(path), prefix=None)
    else:
        pipeline.load_lora_weights(str(path))
    require_equal(distilled, path, 0.7, of_diffusers(pipeline, 0.7), len(layers) * (1 + biases))


@pytest.mark.oracle
@pytest.mark.parametrize("how", [{}, {"use_rslora": True}, {"lora_bias": True}], ids=str)
def test_a_file_that_diffusers_wrote(how, distilled, tmp_path):
    """Ranks and alphas of single layers and the rest of PEFT's configuration are in the metadata it stores."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from support import oracle

    pipeline, layers = oracle.load(distilled), [*BLOCKS, "patch_short"]
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=layers,
        rank_pattern={"^blocks.0.attn1.to_q": 2, "patch_short": 3},
        alpha_pattern={"^blocks.0.attn1.to_q": 5, "ffn.net.2": 1},
        init_lora_weights=False,
        **how,
    )
    pipeline.transformer.add_adapter(config)
    pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer),
        transformer_lora_adapter_metadata=pipeline.transformer.peft_config["default"].to_dict(),
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    changed = len(layers) * (2 if how.get("lora_bias") else 1)
    require_equal(distilled, path, 0.7, of_diffusers(pipeline, 0.7), changed)


@pytest.mark.oracle
def test_a_file_that_peft_wrote(distilled, tmp_path):
    """`save_pretrained` of PEFT stores the configuration in a file next to the weights."""
    from peft import LoraConfig, get_peft_model

    from support import oracle

    pipeline = oracle.load(distilled)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=list(BLOCKS), init_lora_weights=False)
    made = get_peft_model(pipeline.transformer, config)
    made.save_pretrained(tmp_path)
    expected = made.merge_and_unload().state_dict()
    require_equal(distilled, tmp_path / "adapter_model.safetensors", 1.0, expected, len(BLOCKS))
