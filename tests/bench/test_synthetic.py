"""Synthetic models against the classes of diffusers and transformers, and their films' range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from helios_cli.bench import synthetic
from helios_cli.bench.specs import SPECS, WORDS, word_tokenizer
from helios_cli.bench.synthetic import RandomModels, describe, write_checkpoint
from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.history import History
from helios_cli.film.writer import open_writer
from helios_cli.weights.checkpoint import Checkpoint, files_of
from support import oracle
from support.renders import Case, plan_of, rendered

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a tiny float32 checkpoint for each kind."""
    made = {}

    def get(kind: str):
        if kind not in made:
            made[kind] = write_checkpoint(tmp_path_factory.mktemp(kind), SPECS["tiny"], kind=kind)
        return made[kind]

    return get


def test_a_resident_size_is_written_block_by_block(tiny, tmp_path, monkeypatch):
    """The same tensors, and never more than a block of them at once."""
    whole, held, real = tiny("distilled"), [], synthetic.random_state

    def watched(*arguments, **options):
        state = real(*arguments, **options)
        held.append(len(state))
        return state

    monkeypatch.setattr(synthetic, "random_state", watched)
    folder = write_checkpoint(tmp_path / "large", replace(SPECS["tiny"], resident=True))
    for name, part in Checkpoint.open(whole).components.items():
        written = Checkpoint.open(folder).component(name).tensors
        assert written.keys() == part.tensors.keys()
        for key in ("blocks.3.attn1.to_q.weight", "encoder.block.1.layer.0.SelfAttention.q.weight", "patch_mid.weight"):
            if key in written:
                values = [load_file(tensors[key].file)[key] for tensors in (written, part.tensors)]
                assert torch.equal(*values)
    blocks = SPECS["tiny"].transformer["num_layers"] + SPECS["tiny"].text_encoder["num_layers"]
    assert len(held) == blocks + 3


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("size", SPECS)
def test_tensors_are_those_of_the_reference_classes(size, tmp_path):
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    spec = SPECS[size]
    with init_empty_weights():
        reference = {
            "transformer": diffusers.HeliosTransformer3DModel.from_config(spec.transformer),
            "vae": diffusers.AutoencoderKLWan.from_config(spec.vae),
            "text_encoder": transformers.UMT5EncoderModel(transformers.UMT5Config(**spec.text_encoder)),
        }
    described = describe(tmp_path, spec, torch.bfloat16)
    for name, module in reference.items():
        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        shapes.pop("encoder.embed_tokens.weight", None)  # shared.weight once more
        assert {key: info.shape for key, info in described.component(name).tensors.items()} == shapes


def test_the_large_size_is_the_published_model(tmp_path):
    """Counts from the model card and the published files: 14.3 B parameters, 80 481 086 028 bytes of float32."""
    described = describe(tmp_path, SPECS["14b"], torch.float32)
    counts = {name: component.parameters for name, component in described.components.items()}
    assert counts["transformer"] == 14_312_427_584
    headers = 80_481_086_028 - 4 * sum(counts.values())
    assert 0 < headers < 1e6


def test_same_arguments_give_the_same_bytes(tmp_path):
    first, again, other = (
        write_checkpoint(tmp_path / name, SPECS["tiny"], dtype=torch.bfloat16, seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    names = files_of(first)
    assert names == files_of(again) == files_of(other) and len(names) == 11
    same = {name for name in names if (first / name).read_bytes() == (other / name).read_bytes()}
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert {name for name in names if name not in same} == {name for name in names if name.endswith(".safetensors")}


def test_files_can_be_read_by_others(tiny):
    folder = tiny("distilled")
    assert all((folder / name).stat().st_mode & 0o044 == 0o044 for name in files_of(folder))


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize(("kind", "size", "steps"), [("base", (64, 64), (2,)), ("mid", (128, 128), (2, 2, 2))])
def test_diffusers_renders_the_same_frames(kind, size, steps, tiny, tmp_path):
    """The checks of test_parity. test_tiny covers the distilled kind with the embedded checkpoint."""
    folder = tiny(kind)
    assert Checkpoint.open(folder).kind == kind
    case = Case(kind, size, steps, chunks=1)
    expected = oracle.reference(case, oracle.load(folder)).astype(int)
    frames = rendered(case, folder, tmp_path / "f")[: len(expected)].astype(int)
    assert expected.std() > 20
    assert (np.abs(frames - expected) > 1).mean() <= 1e-3


@pytest.mark.slow
def test_made_on_the_device_is_the_same_as_written(tiny, tmp_path):
    case = Case("distilled", (64, 64), (1, 1, 1), chunks=1)
    models = RandomModels(SPECS["tiny"], CPU, torch.float32, name="tiny")
    kept = [file for file in models.checkpoint.path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in kept) < 50_000
    plan = plan_of(case)
    frames = []
    with open_writer(tmp_path / "x.mkv", size=plan.size, fps=plan.fps) as writer:
        write = writer.write
        writer.write = lambda pictures: (frames.append(pictures.copy()), write(pictures))
        list(render_chunks(plan, models, writer))
    expected = rendered(case, tiny("distilled"), tmp_path / "f")
    np.testing.assert_array_equal(np.concatenate(frames), expected)


@pytest.mark.slow
def test_values_stay_in_range_over_many_chunks(monkeypatch, tmp_path):
    """Twelve chunks fill the history more than five times over."""
    latents = []
    remember = History.remember
    monkeypatch.setattr(
        History, "remember", lambda self, x, **kw: (latents.append(x.float()), remember(self, x, **kw))[1]
    )
    folder = write_checkpoint(tmp_path / "model", SPECS["tiny"], dtype=torch.bfloat16)
    case = Case("distilled", (64, 64), (1, 1, 1), chunks=12)
    frames = rendered(case, folder, tmp_path / "f", dtype=torch.bfloat16)
    deviations = torch.stack([x.std() for x in latents])
    assert deviations.min() > 0.7 and deviations.max() < 2.5
    assert deviations[-4:].mean() / deviations[:4].mean() == pytest.approx(1, abs=0.1)
    assert 20 < frames.std() < 80
    assert ((frames == 0) | (frames == 255)).mean() < 0.1


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_every_ascii_prompt_has_a_spelling(text):
    encoding = word_tokenizer().encode(text)
    assert encoding.tokens[-1] == "</s>" and "<unk>" not in encoding.tokens
    assert "".join(encoding.tokens[:-1]) == "".join(text.lower().split())


def test_known_words_are_one_token():
    tokens = word_tokenizer().encode(" ".join(WORDS)).tokens
    assert tokens == [*WORDS, "</s>"]
    assert word_tokenizer().encode("A RED fish.").tokens == ["a", "red", "f", "i", "s", "h", ".", "</s>"]


@pytest.mark.oracle
def test_transformers_reads_the_same_tokens(tiny):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny("distilled") / "tokenizer")
    prompt = "A Red circle, slowly: café 42%"
    assert theirs(prompt).input_ids == word_tokenizer().encode(prompt).ids
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
