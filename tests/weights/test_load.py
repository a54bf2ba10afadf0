"""Loading into modules on the meta device, from checkpoints that diffusers and transformers wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helios_cli.errors import CheckpointError
from helios_cli.weights.checkpoint import Checkpoint, Component
from helios_cli.weights.files import read_tensors
from helios_cli.weights.load import load_component
from support.fakes import PIPELINES, write_json

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict[str, nn.Module]]:
    """A checkpoint that `save_pretrained` wrote, its transformer in shards, and the modules it was written from."""
    from diffusers import AutoencoderKLWan, HeliosDMDScheduler, HeliosPyramidPipeline, HeliosTransformer3DModel
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "rope_dim": (4, 4, 4), "num_layers": 2}
    text = UMT5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    modules = {
        "transformer": HeliosTransformer3DModel(**sizes, text_dim=32, ffn_dim=32),
        "text_encoder": UMT5EncoderModel(text),
        "vae": AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
    }
    pipeline = HeliosPyramidPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>"),
        scheduler=HeliosDMDScheduler(stages=3),
        is_distilled=True,
        **modules,
    )
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(folder, max_shard_size="100KB")
    return folder, modules


def skeleton(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A module on the meta device whose state dict has these names and shapes."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(torch.empty(shape, device="meta")))
    return root


def skeleton_of(module: nn.Module) -> nn.Module:
    names = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    names.pop("encoder.embed_tokens.weight", None)  # transformers' second name of shared.weight
    return skeleton(names)


def test_a_saved_pipeline_opens(saved):
    folder, modules = saved
    opened = Checkpoint.open(folder)
    assert (opened.kind, opened.scheduler["_class_name"]) == ("distilled", "HeliosDMDScheduler")
    for name, module in modules.items():
        assert opened.component(name).parameters == sum(value.numel() for value in module.parameters())
    files = {info.file.name for info in opened.component("transformer").tensors.values()}
    assert len(files) > 1
    assert opened.component("transformer").config["rope_dim"] == [4, 4, 4]


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "vae"])
def test_every_component_loads_bit_for_bit(saved, name):
    folder, modules = saved
    component = Checkpoint.open(folder).component(name)
    loaded = load_component(skeleton_of(modules[name]), component, device="cpu", dtype=torch.float32)
    expected = modules[name].state_dict()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_islands_stay_in_float32(saved):
    folder, modules = saved
    component = Checkpoint.open(folder).component("transformer")
    island = re.compile("time_embedder|scale_shift_table").search
    module = skeleton_of(modules["transformer"])
    loaded = load_component(module, component, device="cpu", dtype=torch.bfloat16, keep_fp32=island)
    expected = modules["transformer"].state_dict()
    types = {torch.float32: 0, torch.bfloat16: 0}
    for key, value in loaded.state_dict().items():
        assert value.dtype == (torch.float32 if island(key) else torch.bfloat16), key
        assert torch.equal(value, expected[key].to(value.dtype)), key
        types[value.dtype] += 1
    assert min(types.values()) > 5


def component_of(tmp_path: Path, tensors: dict[str, torch.Tensor], name: str = "transformer") -> Component:
    save_file(tensors, tmp_path / "model.safetensors")
    return Component(name, tmp_path, {}, read_tensors(tmp_path, "model"))


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("used", [torch.float32, torch.float16, torch.bfloat16])
def test_any_stored_type_in_any_used_type(tmp_path, stored, used):
    weight = torch.randn(5, 7, dtype=torch.float64).to(stored)
    component = component_of(tmp_path, {"weight": weight, "empty": torch.zeros(0, dtype=stored)})
    loaded = load_component(skeleton({"weight": (5, 7), "empty": (0,)}), component, device="cpu", dtype=used)
    assert torch.equal(loaded.weight, weight.to(used))
    assert loaded.weight.dtype == used


def test_parameters_own_their_memory(tmp_path):
    """Not views of the file: replacing it later must not change, or end, a running render."""
    component = component_of(tmp_path, {"weight": torch.ones(1000)})
    loaded = load_component(skeleton({"weight": (1000,)}), component, device="cpu", dtype=torch.float32)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded.weight, torch.ones(1000))


def test_everything_that_does_not_fit_is_named_before_anything_is_read(tmp_path):
    component = component_of(tmp_path, {"a": torch.ones(2, 3), "x": torch.ones(1), "y": torch.ones(1)})
    (tmp_path / "model.safetensors").unlink()  # a read would fail, and say so
    module = skeleton({"a": (3, 2), "b": (1,), **{f"c{i:02}": (1,) for i in range(12)}})
    with pytest.raises(CheckpointError) as raised:
        load_component(module, component, device="cpu", dtype=torch.float32)
    missing = ", ".join(["b", *(f"c{i:02}" for i in range(9))])
    assert f"13 missing: {missing} and 3 more" in raised.value.message
    assert "2 surplus: x, y" in raised.value.message
    assert "1 mis-shaped: a ([2, 3], expected [3, 2])" in raised.value.message
    assert all(parameter.is_meta for parameter in module.parameters())


def test_types_that_are_not_read_are_named(tmp_path):
    component = component_of(tmp_path, {"a": torch.ones(2).to(torch.float8_e4m3fn), "b": torch.ones(2).int()})
    with pytest.raises(CheckpointError, match=r"2 of a type that is not read: a \(F8_E4M3\), b \(I32\)"):
        load_component(skeleton({"a": (2,), "b": (2,)}), component, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "stored", "ours"),
    [
        ("transformer", ["scale_shift_table", "blocks.0.scale_shift_table"], "norm_out.scale_shift_table"),
        ("transformer", ["norm_out.scale_shift_table", "blocks.0.scale_shift_table"], "norm_out.scale_shift_table"),
        ("transformer", ["norm_out.scale_shift_table", "blocks.0.scale_shift_table", "norm_added_q.weight"], None),
        ("text_encoder", ["shared.weight", "encoder.embed_tokens.weight"], "shared.weight"),
        ("text_encoder", ["encoder.embed_tokens.weight"], "shared.weight"),
    ],
)
def test_other_names_for_the_same(tmp_path, name, stored, ours):
    component = component_of(tmp_path, {key: torch.full((1,), float(i)) for i, key in enumerate(stored)}, name)
    ours = ours or stored[0]
    module = skeleton({key: (1,) for key in (ours, *stored[1:2]) if "embed_tokens" not in key})
    loaded = load_component(module, component, device="cpu", dtype=torch.float32)
    assert loaded.get_parameter(ours).item() == 0


def test_an_alias_of_another_component_is_surplus(tmp_path):
    component = component_of(tmp_path, {"norm_added_q.weight": torch.ones(1), "a": torch.ones(1)}, "vae")
    with pytest.raises(CheckpointError, match="1 surplus: norm_added_q"):
        load_component(skeleton({"a": (1,)}), component, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path, value):
    component = component_of(tmp_path, {"good": torch.ones(9), "bad": torch.tensor([1.0, value, 2.0])})
    with pytest.raises(CheckpointError, match=r"tensor bad has values that are not finite") as raised:
        load_component(skeleton({"good": (9,), "bad": (3,)}), component, device="cpu", dtype=torch.bfloat16)
    assert "helios models verify" in raised.value.hint


def test_values_that_the_type_cannot_hold(tmp_path):
    component = component_of(tmp_path, {"a": torch.tensor([1e6])})
    with pytest.raises(CheckpointError, match=r"tensor a has values that torch.float16 cannot hold") as raised:
        load_component(skeleton({"a": (1,)}), component, device="cpu", dtype=torch.float16)
    assert "--dtype bfloat16" in raised.value.hint
    load_component(skeleton({"a": (1,)}), component, device="cpu", dtype=torch.bfloat16)


def test_a_file_damaged_since_it_was_checked(tmp_path):
    component = component_of(tmp_path, {"a": torch.ones(4)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"model.safetensors: truncated: 77 of 80 bytes"):
        load_component(skeleton({"a": (4,)}), component, device="cpu", dtype=torch.float32)
    save_file({"b": torch.ones(4)}, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors: a is not where it was"):
        load_component(skeleton({"a": (4,)}), component, device="cpu", dtype=torch.float32)


def test_a_module_that_keeps_something_on_meta_is_a_bug(tmp_path):
    module = skeleton({"a": (1,)})
    module.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(RuntimeError, match="table"):
        component = component_of(tmp_path, {"a": torch.ones(1)})
        load_component(module, component, device="cpu", dtype=torch.float32)


def test_shards_and_a_single_file_load_the_same(saved, tmp_path):
    folder, modules = saved
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    save_file(
        {key: value for shard in shards for key, value in load_file(shard).items()}, tmp_path / "model.safetensors"
    )
    single = Component("transformer", tmp_path, {}, read_tensors(tmp_path, "model"))
    sharded = Checkpoint.open(folder).component("transformer")
    assert {name: info.shape for name, info in single.tensors.items()} == {
        name: info.shape for name, info in sharded.tensors.items()
    }
    loaded = [
        load_component(skeleton_of(modules["transformer"]), component, device="cpu", dtype=torch.bfloat16).state_dict()
        for component in (single, sharded)
    ]
    assert all(torch.equal(loaded[0][key], loaded[1][key]) for key in loaded[0])


def test_the_fakes_are_like_what_diffusers_writes(saved):
    """The other tests' hand-made index and scheduler files agree with the written ones in what we read."""
    folder, _ = saved
    index, scheduler = PIPELINES["distilled"]
    opened = Checkpoint.open(folder)
    assert {key: opened.scheduler[key] for key in scheduler} == scheduler
    write_json(folder / "model_index.json", index)
    assert Checkpoint.open(folder).preset == opened.preset
