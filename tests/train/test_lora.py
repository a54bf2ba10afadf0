"""LoRA in training: what is trained, what is written, and that every reader of the file gets the trained weights."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from helios_cli.cli import main
from helios_cli.errors import CheckpointError, InputError, Interrupted
from helios_cli.model.dit import HeliosDiT
from helios_cli.train.config import load
from helios_cli.train.data import toy
from helios_cli.train.loop import perform
from helios_cli.train.lora import LoraLinear, add_lora, merged, save_lora
from helios_cli.train.phase import Share
from helios_cli.train.phases.flow import Mid
from helios_cli.train.settings.flow import CachedClips, LoraSettings, MidSettings
from helios_cli.train.state import load_state, open_start
from helios_cli.train.transformer import transformer_of
from helios_cli.weights.adapters import AdapterFile, fold
from helios_cli.weights.checkpoint import Checkpoint
from support.lessons import cache, network
from support.reruns import decoded, ended_at
from support.slopes import assert_slope

RECIPES = Path(__file__).resolve().parents[2] / "recipes/train"
CPU = torch.device("cpu")
SETTINGS = LoraSettings(rank=3, alpha=6.0, target_modules=("blocks.*", "proj_out"))
LAYERS = {
    f"blocks.{block}.{layer}"
    for block in (0, 1)
    for layer in (
        *(f"{attention}.{one}" for attention in ("attn1", "attn2") for one in ("to_q", "to_k", "to_v", "to_out.0")),
        *("ffn.net.0.proj", "ffn.net.2"),
    )
} | {"proj_out"}


def trained_on(folder: Path, settings: LoraSettings = SETTINGS) -> HeliosDiT:
    """The checkpoint's transformer with a LoRA that is not zero."""
    dit = transformer_of(Checkpoint.open(folder))
    add_lora(dit, settings, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in dit.modules():
            if isinstance(layer, LoraLinear):
                layer.up.copy_(torch.randn(layer.up.shape, generator=generator) * 0.1)
    return dit


def require_close(found: dict, expected: dict) -> None:
    """float32, whose sums of three products may be added in another order."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


def test_a_new_one_changes_nothing_and_only_it_is_trained(distilled):
    before = transformer_of(Checkpoint.open(distilled))
    dit = transformer_of(Checkpoint.open(distilled))
    add_lora(dit, SETTINGS, seed=0)
    state = merged(dit)
    assert all(torch.equal(state[name], value) for name, value in before.state_dict().items())
    assert state.keys() == before.state_dict().keys()
    trained = {name for name, parameter in dit.named_parameters() if parameter.requires_grad}
    assert trained == {f"{layer}.{part}" for layer in LAYERS for part in ("down", "up")}


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_what_is_written_folds_to_what_was_trained(alpha, distilled, tmp_path):
    settings = SETTINGS.model_copy(update={"alpha": alpha})
    dit = trained_on(distilled, settings)
    save_lora(tmp_path / "style.safetensors", dit, settings)
    checkpoint, (notice,) = fold(Checkpoint.open(distilled), [(tmp_path / "style.safetensors", 1.0)])
    assert notice == "style.safetensors: 21 of its 21 modules matched, rank 3, weight 1"
    require_close(transformer_of(checkpoint).state_dict(), merged(dit))
    described = AdapterFile.open(tmp_path / "style.safetensors").describe()
    assert (described["family"], described["ranks"], described["alphas"]) == ("PEFT", [3], [alpha or 3.0])


@pytest.mark.oracle
def test_diffusers_reads_it(distilled, tmp_path):
    """`load_lora_weights` makes a network whose flow is that of the trained one, fused or not."""
    from support import oracle
    from support.calls import call_ours, call_theirs, inputs
    from support.tolerance import assert_equal_up_to_order

    dit = trained_on(distilled)
    save_lora(tmp_path / "style.safetensors", dit, SETTINGS)
    pipeline = oracle.load(distilled)
    x, timestep = inputs(8, 16), torch.tensor([742])
    with torch.no_grad():
        without = call_theirs(pipeline.transformer, x, timestep)
        pipeline.load_lora_weights(str(tmp_path / "style.safetensors"))
        config = pipeline.transformer.peft_config["default_0"]
        assert (config.r, config.lora_alpha) == (3, 6)
        theirs, ours = call_theirs(pipeline.transformer, x, timestep), call_ours(dit, x, timestep)
    assert (ours - without).abs().max() > 0.1 * without.abs().max()
    assert_equal_up_to_order(ours, theirs)
    pipeline.fuse_lora(safe_fusing=True)
    pipeline.unload_lora_weights()
    require_close(merged(dit), dict(pipeline.transformer.state_dict()))


def test_gradient_by_finite_differences(tmp_path):
    """The matrices of the LoRA have gradients, and nothing else does."""
    data = CachedClips(clips="clips", held_back=0, first=0.5)
    settings = MidSettings(phase="mid", start="s", out="o", steps=1, dtype="float32", data=data, lora=SETTINGS)
    dit = network()
    add_lora(dit, SETTINGS, seed=0)
    with torch.no_grad():
        for layer in dit.modules():
            if isinstance(layer, LoraLinear):
                layer.up.normal_(std=0.1)
    phase = Mid(settings, dit, cache(tmp_path, (2, 3, 1)), CPU)
    assert_slope(phase, "LoRA", Share(0, range(2), 2, seed=0), lambda losses: sum(losses.values()))
    assert {name for name, p in dit.named_parameters() if p.grad is not None} == {
        f"{layer}.{part}" for layer in LAYERS for part in ("down", "up")
    }


def test_impossible_settings_are_refused(distilled):
    data = CachedClips(clips="clips")
    with pytest.raises(ValidationError, match="leave out `fresh`"):
        MidSettings(phase="mid", start="s", out="o", steps=1, data=data, fresh=True, lora=SETTINGS)
    with pytest.raises(InputError) as caught:
        load(RECIPES / "style.toml", ["lora.target_modules=[]", "lora.alfa=1"])
    assert "the list is too short, or empty" in str(caught.value) and "write `alpha`" in str(caught.value)
    dit = transformer_of(Checkpoint.open(distilled))
    with pytest.raises(InputError, match=r"'blocks\.\*\.to_x', which names no linear layer"):
        add_lora(dit, LoraSettings(target_modules=("blocks.*", "blocks.*.to_x")), seed=0)


def test_a_start_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert open_start("tiny").path.name == "tiny"
    with pytest.raises(CheckpointError, match="the model mid is not on this disk"):
        open_start("mid")
    (tmp_path / "lora.safetensors").touch()
    with pytest.raises(CheckpointError, match="left a LoRA, not a checkpoint"):
        open_start(str(tmp_path))


STYLE = """
phase = "mid"
start = "tiny"
out = "{out}"
steps = 6
batch = 2
dtype = "float32"
[lora]
rank = 2
[data]
clips = "latents"
held_back = 2
[ema]
decay = 0.9
[log]
every = 1
save_every = 2
"""
LATENTS = """
phase = "latents"
start = "tiny"
out = "latents"
size = [64, 64]
dtype = "float32"
[world]
clips = 4
long = 0.0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with four clips of the toy world as latents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toy, "CLIPS_PER_SHARD", 4)
    Path("latents.toml").write_text(LATENTS)
    list(perform(load(Path("latents.toml")), CPU))
    for name in ("ended", "whole"):
        Path(f"{name}.toml").write_text(STYLE.format(out=name))
    return tmp_path


def require_same_ends() -> None:
    assert Path("ended/lora.safetensors").read_bytes() == Path("whole/lora.safetensors").read_bytes()
    with safe_open("ended/lora.safetensors", "pt") as file:
        assert all(file.get_tensor(name).any() for name in file.keys())  # noqa: SIM118
    states = [load_state(Path(name)) for name in ("ended", "whole")]
    ours, theirs = (state["players"]["LoRA"] for state in states)
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 60
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_a_stopped_run_comes_to_the_same_end(folder):
    """The base is not copied: the run leaves the LoRA, its states and its log."""
    asked = iter(range(100))
    with pytest.raises(Interrupted, match="after 3 steps"):
        list(perform(load(Path("ended.toml")), CPU, lambda: next(asked) == 2))
    for name in ("ended", "whole"):
        assert main(["train", f"{name}.toml", "-q", "--device", "cpu"]) == 0
    require_same_ends()
    assert {path.name for path in Path("ended").iterdir()} == {"lora.safetensors", "state", "log.jsonl", "losses.svg"}
    other = LoraSettings(rank=3)
    with pytest.raises(InputError, match=r"lora\.rank was 2, is 3"):
        list(perform(load(Path("ended.toml")).model_copy(update={"lora": other}), CPU))


@pytest.mark.train
def test_a_killed_run_comes_to_the_same_end(folder):
    command = ["train", "--device", "cpu", "--progress", "plain"]
    code, said = ended_at("step 3", signal.SIGKILL, lambda: main([*command, "ended.toml"]))
    assert code == -signal.SIGKILL, said
    begun = load_state(Path("ended"))["step"]
    assert 0 < begun < 6
    for name in ("ended", "whole"):
        assert main([*command, f"{name}.toml"]) == 0
    require_same_ends()


FILTER = "colorchannelmixer=rr=.7:rb=.2:gg=.55"


@pytest.mark.train
@pytest.mark.slow
def test_the_recipe_trains_a_style_that_films_have(tmp_path, monkeypatch):
    """The commands in its comments, with half of the clips and of the steps: clips of another colour, and a prompt that
    none of them has. The film is nearer to what the filter makes of it than to what it is without the LoRA."""
    monkeypatch.chdir(tmp_path)
    Path("style").mkdir()
    for colour, background in itertools.product(("red", "white"), ("green", "yellow", "purple")):
        Path(f"style/{colour}-{background}.txt").write_text(f"a {colour} circle rises over {background}\n")
    captions = sorted(str(path) for path in Path("style").glob("*.txt"))
    assert main(["render", *captions, "-o", "style", "--frames", "66", "--filter", FILTER, "-q"]) == 0
    recipes = [str(RECIPES / f"{name}.toml") for name in ("style-latents", "style")]
    assert main(["train", recipes[0], "-q", "--device", "cpu"]) == 0
    assert main(["train", recipes[1], "-q", "--device", "cpu", "--set", "steps=30"]) == 0
    colours = {}
    for name, how in (
        ("without", []),
        ("filtered", ["--filter", FILTER]),
        ("with", ["--lora", "runs/style/lora.safetensors"]),
    ):
        film = f"{name}.mkv"
        command = ["render", "a yellow star rises over a green background", "-o", film, "--frames", "66", "--seed", "3"]
        assert main([*command, "-q", *how]) == 0
        colours[name] = decoded(Path(film)).reshape(-1, 3).mean(0)
    wanted = colours["filtered"] - colours["without"]
    share = wanted @ (colours["with"] - colours["without"]) / (wanted @ wanted)
    assert 0.6 < share < 1.6, colours
