"""LoRA files: what their names mean, what fits, and what is refused. The numbers are in tests/engine/test_lora.py."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_cli.errors import CheckpointError
from helios_cli.weights.adapters import AdapterFile, fold
from helios_cli.weights.checkpoint import Checkpoint, weights_identity
from support import loras


@pytest.fixture
def lora(distilled, tmp_path):
    """Write a LoRA for the small checkpoint, with some tensors added, changed (to another) or removed (to None)."""

    def make(name: str = "style.safetensors", changes: dict | None = None, metadata: dict | None = None, **how) -> Path:
        path = tmp_path / name
        loras.write(path, loras.weights_of(distilled), **how)
        if changes or metadata:
            tensors = {**load_file(path), **(changes or {})}
            save_file({key: value for key, value in tensors.items() if value is not None}, path, metadata=metadata)
        return path

    return make


def notices(folder: Path, path: Path, weight: float = 1.0) -> list[str]:
    return fold(Checkpoint.open(folder), [(path, weight)])[1]


def refusal(folder: Path, path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        fold(Checkpoint.open(folder), [(path, 1.0)])
    return caught.value


def test_what_matched_is_told(distilled, lora):
    count = len(loras.LAYERS)
    (line,) = notices(distilled, lora(rank=4), 0.8)
    assert line == f"style.safetensors: {count} of its {count} modules matched, rank 4, weight 0.8"


def test_a_description(lora):
    path = lora(family="kohya", rank=4, alpha=2)
    report = AdapterFile.open(path).describe()
    assert (report["family"], report["modules"]) == ("kohya", len(loras.LAYERS))
    assert (report["ranks"], report["alphas"], report["dtypes"]) == ([4], [2.0], ["F32"])
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["bytes"] == sum(value.nbytes for value in load_file(path).values())


@pytest.mark.parametrize("value", [torch.tensor(2.0), torch.tensor([2.0]), torch.tensor(2.0).bfloat16()], ids=str)
def test_alpha_in_any_type(value, lora):
    file = AdapterFile.open(lora(changes={"transformer.proj_out.alpha": value}))
    assert file.scale("proj_out", file.modules["proj_out"]) == 0.5


def test_alphas_of_single_modules_and_stabilized_ranks(lora):
    config = {
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"^blocks\\.0\\.attn1\\.to_q": 2, "to_out.0": 1},
    }
    file = AdapterFile.open(lora(changes={"x": torch.ones(1)}, metadata={"lora_adapter_metadata": json.dumps(config)}))
    names = "blocks.0.attn1.to_q", "blocks.1.attn1.to_q", "blocks.1.attn2.to_out.0"
    assert [file.scale(name, file.modules[name]) for name in names] == [0.5, 2.0, 0.25]
    stable = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer.use_rslora": True})}
    file = AdapterFile.open(lora(changes={"x": torch.ones(1)}, metadata=stable))
    assert file.scale("proj_out", file.modules["proj_out"]) == 4.0


def test_the_configuration_that_peft_writes_next_to_its_file(lora, tmp_path):
    path = lora("adapter_model.safetensors")
    plain = AdapterFile.open(path).digest
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    file = AdapterFile.open(path)
    assert file.scale("proj_out", file.modules["proj_out"]) == 0.5
    assert file.digest != plain


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("transformer.proj_out.dora_scale", "DoRA"),
        ("transformer.proj_out.lora_magnitude_vector.weight", "DoRA"),
        ("lora_unet_blocks_0_ffn_0.lokr_w1", "LoKr"),
        ("lora_unet_blocks_0_ffn_0.hada_w1_a", "LoHa"),
        ("lora_unet_blocks_0_ffn_0.oft_diag", "OFT"),
        ("lora_unet_patch_embedding.lora_mid.weight", "LoCon"),
    ],
)
def test_other_kinds_are_refused_by_name(key, kind, distilled, lora):
    error = refusal(distilled, lora(changes={key: torch.ones(2)}))
    assert kind in error.message and key in error.message


def test_dora_is_refused_by_its_configuration(distilled, lora):
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})}
    assert "DoRA" in refusal(distilled, lora(changes={"x": torch.ones(1)}, metadata=metadata)).message


def test_nothing_matched_names_keys_seen_and_expected(distilled, tmp_path):
    path = tmp_path / "sdxl.safetensors"
    save_file({"lora_unet_down_blocks_1_attn.lora_down.weight": torch.ones(4, 8)}, path)
    message = refusal(distilled, path).message
    assert "lora_unet_down_blocks_1_attn.lora_down.weight" in message
    assert "diffusion_model.blocks.0.self_attn.q.lora_down.weight" in message


def test_leftovers_are_listed(distilled, lora):
    changes = {"transformer.blocks.7.attn1.to_q.lora_A.weight": torch.ones(4, 32), "surprise": torch.ones(1)}
    changes["transformer.blocks.7.attn1.to_q.lora_B.weight"] = torch.ones(32, 4)
    matched, rest = notices(distilled, lora(changes=changes))
    count = len(loras.LAYERS)
    assert f"{count} of its {count + 1} modules" in matched
    assert "3 tensors fit no module" in rest and "surprise" in rest and "blocks.7.attn1.to_q.lora_A" in rest


def test_image_branches_get_a_warning(distilled, lora):
    keys = ("blocks.0.cross_attn.k_img.lora_A.weight", "blocks.0.cross_attn.v_img.lora_B.weight")
    changes = {f"diffusion_model.{key}": torch.ones(4, 4) for key in keys}
    lines = notices(distilled, lora(family="Wan", changes=changes))
    assert "2 tensors are for the image branch" in lines[1] and len(lines) == 2


@pytest.mark.parametrize(
    ("name", "how", "warned"),
    [
        ("Wan21_CausVid_14B.safetensors", {}, True),
        ("Wan2.1-StepDistill-lora.safetensors", {}, True),
        ("turbocharged_style.safetensors", {}, False),
        ("style.safetensors", {"family": "Wan", "biases": True}, True),
        ("style.safetensors", {"family": "Wan"}, False),
    ],
)
def test_accelerators_get_a_warning_on_distilled(name, how, warned, distilled, checkpoints, lora):
    path = lora(name, **how)
    assert any("few-step accelerator" in line for line in notices(distilled, path)) == warned
    assert len(notices(checkpoints("base"), path)) == 1


def test_another_shape_names_the_tensor_and_the_base(distilled, tmp_path):
    path = tmp_path / "small.safetensors"
    shapes = {"lora_A": (4, 1536), "lora_B": (1536, 4)}
    start = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{start}.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}, path)
    error = refusal(distilled, path)
    assert f"{start}.lora_A.weight is [4, 1536]" in error.message and "[r, 32] and [32, r]" in error.message
    assert "1536 wide, as Wan2.1 1.3B is" in (error.hint or "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer.proj_out.lora_B.weight": None}, "but not its other half"),
        ({"transformer.proj_out.lora_B.weight": torch.ones(64, 5)}, "is [64, 5]"),
        ({"transformer.proj_out.lora_A.weight": torch.ones(4)}, "is [4]"),
        ({"transformer.proj_out.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)}, "is I8"),
        ({"transformer.proj_out.diff_b": torch.ones(3)}, "is [3], but proj_out.bias of this model is [64]"),
        ({"transformer.proj_out.alpha": torch.ones(2)}, "not a single number"),
        ({"transformer.proj_out.alpha": torch.tensor(float("nan"))}, "cannot be nan"),
        ({"proj_out.lora_A.weight": torch.ones(4, 32)}, "two tensors for one place"),
        ({"head.head.lora_A.weight": torch.ones(4, 32), "head.head.lora_B.weight": torch.ones(64, 4)}, "two modules"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults(changes, message, distilled, lora):
    assert message in refusal(distilled, lora(changes=changes)).message


@pytest.mark.parametrize("config", ['{"transformer.lora_alpha": -1}', '{"transformer.lora_alpha": "x"}', "[", "3"])
def test_faulty_configurations(config, distilled, lora):
    path = lora(changes={"x": torch.ones(1)}, metadata={"lora_adapter_metadata": config})
    assert str(path) in refusal(distilled, path).message


def test_pickles_are_never_opened(distilled, tmp_path):
    """Neither by their suffix nor under another name."""
    path = tmp_path / "style.pt"
    torch.save({"a": torch.ones(1)}, path)
    assert "pickle" in refusal(distilled, path).message
    renamed = tmp_path / "style.safetensors"
    renamed.write_bytes(pickle.dumps({"a": 1}) * 20)
    assert "not a safetensors file" in refusal(distilled, renamed).message


def test_the_identity_of_the_weights(distilled, lora):
    """It depends on content, weight and order, and not on the name; without a LoRA it is what it was."""
    plain = Checkpoint.open(distilled)
    one, copy, other = lora("one.safetensors"), lora("copy.safetensors"), lora("other.safetensors", seed=1)

    def identity(*files) -> str:
        return weights_identity(fold(plain, files)[0])

    assert identity() == weights_identity(plain)
    assert identity((one, 1.0)) == identity((copy, 1.0))
    different = [
        (),
        ((one, 1.0),),
        ((one, 0.5),),
        ((other, 1.0),),
        ((one, 1.0), (other, 1.0)),
        ((other, 1.0), (one, 1.0)),
    ]
    assert len({identity(*files) for files in different}) == len(different)
