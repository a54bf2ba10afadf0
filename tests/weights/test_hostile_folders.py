"""Checkpoint folders from strangers, made of the one in the package: what `plan` says of each, `render` says too, with
the file and the next step; nothing is built, read or counted without end first."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from helios_cli.architecture import MAX_STAGES, SchedulerConfig
from helios_cli.bench.specs import word_tokenizer
from helios_cli.cli import main
from helios_cli.errors import CheckpointError
from helios_cli.sampling.schedule import build_stage
from helios_cli.weights import tokenizer as library
from helios_cli.weights.names import EMBEDDED_FOLDER
from helios_cli.weights.tokenizer import read_tokenizer, tokens_of
from support.tiers import some

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

Change = Callable[[Path], object]


def write(path: Path, body: bytes | str) -> None:
    path.unlink(missing_ok=True)  # a link into the package
    path.write_bytes(body.encode() if isinstance(body, str) else body)


def config(name: str, **values: object) -> Change:
    path = "helios.json" if name == "own" else f"{name}/{'scheduler_' if name == 'scheduler' else ''}config.json"
    return lambda folder: write(folder / path, json.dumps(json.loads((folder / path).read_text()) | values))


def tokenizer(**values: object) -> Change:
    path = "tokenizer/tokenizer.json"
    return lambda folder: write(folder / path, json.dumps(json.loads((folder / path).read_text()) | values))


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}


def sequence(*normalizers: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(normalizers)}


def charsmap(tree: bytes, texts: bytes) -> dict:
    raw = len(tree).to_bytes(4, "little") + tree + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


def header(name: str, **values: object) -> Change:
    """Changes what the header says of a tensor; a new name is an entry of its own."""

    def change(folder: Path) -> None:
        body = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(body[:8], "little")
        told = json.loads(body[8 : 8 + length])
        told[name] = told.get(name, {}) | values
        text = json.dumps(told).encode()
        write(folder / WEIGHTS, len(text).to_bytes(8, "little") + text + body[8 + length :])

    return change


def raw_header(length: int, text: bytes = b"") -> Change:
    return lambda folder: write(folder / WEIGHTS, length.to_bytes(8, "little") + text)


def text(name: str, body: str) -> Change:
    return lambda folder: write(folder / name, body)


def sparse(name: str) -> Change:
    def change(folder: Path) -> None:
        write(folder / name, b'{"a": "')
        os.truncate(folder / name, 20 * 10**9)

    return change


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    write(folder / "transformer/diffusion_pytorch_model.bin", b"\x80\x04cos\nsystem\n")


REFUSED: dict[str, tuple[Change, str]] = {
    "layers": (config("transformer", num_layers=10**9), "`num_layers` cannot be 1000000000, 1 to 512"),
    "layers that are not there": (config("transformer", num_layers=500), "blocks.499.ffn.net.0.proj.weight is missing"),
    "fewer layers": (config("transformer", num_layers=1), "blocks.1.ffn.net.0.proj.weight is [512, 128]"),
    "heads": (config("transformer", num_attention_heads=10**9), "`num_attention_heads` cannot be 1000000000"),
    "other heads": (
        config("transformer", num_attention_heads=8),
        "[128, 16, 1, 2, 2], but should be [256, 16, 1, 2, 2]",
    ),
    "two patch sides": (config("transformer", patch_size=[1, 2]), "`patch_size` cannot be [1, 2]"),
    "no text width": (config("transformer", text_dim=None), "`text_dim` cannot be None"),
    "another text width": (
        config("transformer", text_dim=32),
        "`text_dim` is 32, but d_model of the text encoder is 64",
    ),
    "no rotations": (config("transformer", rope_dim=[0, 0, 0]), "`rope_dim` [0, 0, 0]"),
    "odd rotations": (config("transformer", rope_dim=[11, 11, 10]), "`rope_dim` [11, 11, 10]"),
    "NaN": (config("transformer", eps=math.nan), "NaN is not JSON"),
    "text layers": (config("text_encoder", num_layers=10**9), "`num_layers` cannot be 1000000000"),
    "vocabulary": (config("text_encoder", vocab_size=10**12), "`vocab_size` cannot be 1000000000000"),
    "architectures": (config("text_encoder", architectures=3), "is a 3; helios needs UMT5EncoderModel"),
    "widths": (config("vae", dim_mult=[1, 2, 4, 10**9]), "`dim_mult` cannot be [1, 2, 4, 1000000000]"),
    "res blocks": (config("vae", num_res_blocks=10**9), "`num_res_blocks` cannot be 1000000000"),
    "no deviation": (config("vae", latents_std=[0.0] * 16), "`latents_std` cannot be [0.0"),
    "words": (config("vae", latents_mean=["x"] * 16), "`latents_mean` cannot be ['x'"),
    "stages": (config("scheduler", stages=10**12), "stages of a distilled model cannot be 1000000000000"),
    "timesteps": (config("scheduler", num_train_timesteps=10**12), "`num_train_timesteps` cannot be"),
    "no range": (config("scheduler", stage_range=[]), "`stage_range` [] does not rise over 3 stages"),
    "no gamma": (config("scheduler", gamma=0), "`gamma` cannot be 0"),
    "steps": (config("own", steps=[10**9] * 3), "steps cannot be [1000000000"),
    "size": (config("own", native_size=[10**9, 64]), "native_size cannot be [1000000000, 64]"),
    "a novel": (config("own", knows="x" * 5_000_000), "knows cannot be 'xxx"),
    "a class of 5 MB": (config("transformer", _class_name="x" * 5_000_000), "is a 'xxx"),
    "nested repeats": (tokenizer(pre_tokenizer=split("(a+)+$")), "this Split could take unbounded time"),
    "two repeats": (tokenizer(pre_tokenizer=split("a*a*b")), "this Split could take unbounded time"),
    "large count": (tokenizer(pre_tokenizer=split("a{99999}")), "this Split could take unbounded time"),
    "looks back": (tokenizer(pre_tokenizer=split("(?<=a)b")), "this Split could take unbounded time"),
    "growing text": (
        tokenizer(normalizer=sequence({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"})),
        "this Replace could take unbounded time",
    ),
    "many steps": (tokenizer(normalizer=sequence(*[{"type": "NFC"}] * 99)), "has more than 16 steps"),
    "long replacements": (tokenizer(normalizer=charsmap(b"\0" * 4, b"x" * 1000)), "this Precompiled could take"),
    "a tree that ends early": (tokenizer(normalizer=charsmap(b"\xff" * 3, b"x\0")), "this Precompiled could take"),
    "another component": (tokenizer(pre_tokenizer={"type": "Evil"}), "`pre_tokenizer` cannot be 'Evil'"),
    "no tokenizer model": (tokenizer(model=None), "`model` is not one of"),
    "tokens beyond the table": (
        tokenizer(model={"type": "WordLevel", "vocab": {"<unk>": 2, "a": 10**6}, "unk_token": "<unk>"}),
        "the text encoder has 291 tokens",
    ),
    "a shape of 2^63": (header("patch_long.bias", shape=[2**63]), "has the shape [9223372036854775808]"),
    "many dimensions": (header("patch_long.bias", shape=[2**62] * 100_000), "has the shape [46116860184"),
    "overlap": (header("patch_long.bias", data_offsets=[0, 256]), "the one before it ends at"),
    "a name of 5 MB": (header("x" * 5_000_000, dtype="F32", shape=[1]), "has a tensor name of 5000000 characters"),
    "a header of 2^63": (raw_header(2**63), "a header of 9223372036854775808 bytes"),
    "a header of 90 MB": (
        raw_header(90_000_000, b'{"a":[' + b"{}," * 29_999_997 + b"0]}"),
        "a header of 90000000 bytes",
    ),
    "index elsewhere": (text(INDEX, '{"weight_map": {"a": "../../etc/x.safetensors"}}'), "lists '../../etc/x"),
    "index with NUL": (text(INDEX, '{"weight_map": {"a": "x\\u0000.safetensors"}}'), "lists 'x\\x00.safetensors'"),
    "long shard": (text(INDEX, json.dumps({"weight_map": {"a": "x" * 300 + ".safetensors"}})), "lists 'xxx"),
    "link to another file": (link(WEIGHTS, "/etc/passwd"), "not a safetensors file"),
    "link to itself": (link(WEIGHTS, Path(WEIGHTS).name), "holds neither"),
    "a pipe for a config": (pipe("vae/config.json"), "config.json is not a regular file"),
    "zeros for a config": (link("vae/config.json", "/dev/zero"), "config.json is not a regular file"),
    "a pipe for weights": (pipe(WEIGHTS), "is not a regular file"),
    "zeros for weights": (link(WEIGHTS, "/dev/zero"), "is not a regular file"),
    "an index of 20 GB": (sparse("model_index.json"), "has 20000000000 bytes; at most 10000000 are read"),
    "a tokenizer of 20 GB": (sparse("tokenizer/tokenizer.json"), "20000000000 bytes; at most 33554432"),
    "another JSON of 20 GB": (sparse("tokenizer/special_tokens_map.json"), "20000000000 bytes; at most"),
    "depth": (text("vae/config.json", "[" * 100_000), "not valid JSON"),
    "digits": (text("vae/config.json", '{"z_dim": 1' + "0" * 5000 + "}"), "not valid JSON"),
    "pickle": (pickled, "pickle files can run code and are never read"),
}

RUN_ALL = """
import json, resource, sys
from helios_cli.cli import main

resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
for folder in json.loads(sys.stdin.read()):
    code = main([*sys.argv[1:], folder])
    print(f"\\n#### {code}", file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("strangers")
    made = {}
    for number, (kind, (change, _)) in enumerate(REFUSED.items()):
        made[kind] = shutil.copytree(EMBEDDED_FOLDER, root / str(number), copy_function=os.symlink)
        change(made[kind])
    return made


@pytest.mark.process
@pytest.mark.slow
def test_plan_refuses_them_with_the_file_in_little_memory(folders, tmp_path):
    """All in one process, which may have a gigabyte of addresses."""
    arguments = [sys.executable, "-c", RUN_ALL, "plan", "a red ball", "-m"]
    told = subprocess.run(
        arguments, input=json.dumps(list(map(str, folders.values()))), capture_output=True, text=True, cwd=tmp_path
    )
    answers = told.stderr.split("\n#### ")
    codes = [int(answer.split("\n", 1)[0]) for answer in answers[1:]]
    assert codes == [CheckpointError.exit_code] * len(folders), told.stderr
    said = [answers[0], *(answer.partition("\n")[2] for answer in answers[1:-1])]
    for (kind, (_, message)), answer in zip(REFUSED.items(), said, strict=True):
        assert message in " ".join(answer.split()), kind
        assert len(answer) < 3000, kind


@pytest.mark.parametrize("kind", some(8, [kind for first in range(8) for kind in list(REFUSED)[first::8]]))
def test_render_and_verify_refuse_them_too(folders, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    message = REFUSED[kind][1]
    assert main(["render", "a red ball", "-m", str(folders[kind]), "-q"]) == CheckpointError.exit_code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
    if kind != "tokens beyond the table":  # which only a text shows
        assert main(["models", "verify", str(folders[kind])]) == CheckpointError.exit_code


def test_what_is_not_run_is_no_reason_to_refuse(tmp_path, monkeypatch, capsys):
    """Code next to the weights is never imported, and the padding of a tokenizer is ours to decide."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model", copy_function=os.symlink)
    write(folder / "text_encoder/evil.py", f"open({str(tmp_path / 'evil')!r}, 'w')")
    config("text_encoder", auto_map={"AutoModel": "evil.Evil"})(folder)
    padding = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    tokenizer(padding={"strategy": {"Fixed": 10**12}, **padding}, truncation={"max_length": 0})(folder)
    assert main(["plan", "a red ball", "-m", str(folder)]) == 0
    assert main(["models", "verify", str(folder)]) == 0
    assert not (tmp_path / "evil").exists()


numbers = st.integers(-(10**12), 10**12) | st.floats() | st.none() | st.booleans() | st.text(max_size=3)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "num_train_timesteps": st.integers(1, 2000) | numbers,
            "shift": st.floats(0.001, 1000) | numbers,
            "stages": st.integers(1, MAX_STAGES) | numbers,
            "stage_range": st.lists(st.floats(0, 1), max_size=MAX_STAGES + 1).map(sorted)
            | st.lists(numbers, max_size=4),
            "gamma": st.floats(0.001, 1000) | numbers,
            "use_dynamic_shifting": st.booleans() | numbers,
            "time_shift_type": st.sampled_from(["linear", "exponential"]),
            "base_image_seq_len": st.integers(1, 2**24) | numbers,
            "max_shift": st.floats(0, 100) | numbers,
        },
    ),
    st.sampled_from(["HeliosDMDScheduler", "HeliosScheduler"]),
    st.integers(1, 20),
)
def test_every_schedule_that_is_taken_can_be_made(values, kind, steps):
    try:
        made = SchedulerConfig.from_json({"_class_name": kind, **values})
    except ValueError:
        return
    for stage in range(made.stages):
        built = build_stage(made, stage, steps, 540)
        assert built.steps <= 2 * steps
        assert all(math.isfinite(number) for number in (*built.sigmas, *built.timesteps, *(built.renoise or ())))


@given(
    st.sampled_from(["model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens"]),
    st.recursive(numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner)),
)
def test_no_tokenizer_raises_anything_else(tmp_path_factory, place, value):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(json.dumps(json.loads(word_tokenizer().to_str()) | {place: value}))
    with contextlib.suppress(CheckpointError):
        tokens_of("a red ball", read_tokenizer(file), 300)


def test_a_tokenizer_as_transformers_makes_it_of_sentencepiece(tmp_path):
    """The parts of the published one: Unigram pieces, spaces as a letter of their own, an end token."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁red", -2.0), ("▁ball", -2.0), ("▁", -3.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    spaces = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    made.normalizer = normalizers.Sequence(spaces)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.enable_padding(length=512)
    made.save(str(tmp_path / "tokenizer.json"))
    assert tokens_of("a  red ball ", read_tokenizer(tmp_path / "tokenizer.json"), 7) == ([3, 4, 5, 1], "")


USUAL = [" {2,}", r"\s+", "▁", r"\b(?:a|an|the)\b|\S", r"(?:x)|\p{L}+", r"a\+\+b", "[(+*)]"]


@pytest.mark.parametrize("pattern", USUAL)
def test_patterns_of_usual_tokenizers_are_taken(pattern):
    assert library._is_plain(pattern)
