"""Working memory against tensors followed through every operation of our modules."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from math import prod
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from helios_cli import machine
from helios_cli.architecture import DiTConfig, VAEConfig
from helios_cli.bench import specs
from helios_cli.cost import memory, vae
from helios_cli.cost.auto import usual_film
from helios_cli.cost.memory import MemoryBudget, plan_memory
from helios_cli.cost.model import PUBLISHED_PARAMETERS, find_model
from helios_cli.cost.placing import memory_plans
from helios_cli.cost.work import PromptTokens
from helios_cli.cost.workload import Workload
from helios_cli.device import ITEMSIZE, Device
from helios_cli.model import dit as dit_module
from helios_cli.model import umt5
from helios_cli.model.attention import Choice, Choice8Bit, attention
from helios_cli.model.dit import HeliosDiT
from helios_cli.model.sharded import forward_all
from helios_cli.model.umt5 import UMT5Config, UMT5Encoder
from helios_cli.model.vae import WanVAE
from helios_cli.units import PIECE_ELEMENTS, held_keys
from helios_cli.weights.offload import layout_of
from helios_cli.weights.placement import DEVICE_SLOTS, HOST_SLOTS, PROMPT_MATRICES, Placement
from helios_kernels import launch
from helios_kernels.attention_8bit import KINDS
from helios_kernels.dispatch import compiling_for
from support.live_bytes import peak_bytes
from support.meta_networks import SMALL, Counted, call, on_meta
from support.recipes import plan_of

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def fused_attention(monkeypatch):
    """On the meta device PyTorch's attention would hold a score for each pair of rows; no real back end does."""
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, attn_mask=None: torch.empty_like(q)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("config", "size"), [({"num_layers": 2}, (640, 384)), (SMALL | {"num_layers": 4}, (256, 192))])
def test_a_model_call(dtype, config, size, fused_attention):
    shape = DiTConfig.from_json({**specs.TRANSFORMER, **config})
    dit = on_meta(lambda: HeliosDiT(shape)).to(dtype)
    work = call(dit, size, 0, 100)
    work["history"](), work["text"]()
    history, noisy = shape.history_tokens(size).total, shape.noisy_tokens(size, 1)[0]
    stage = SimpleNamespace(noisy=noisy, rows=history + noisy)
    model, stages = SimpleNamespace(dit=shape), SimpleNamespace(stages=[stage])
    expected = memory._call_bytes(SimpleNamespace(model=model, work=stages, product_itemsize=dtype.itemsize, team=1))
    rotations = 4 * (noisy + history) * shape.attention_head_dim  # made within the call here, kept by the engine
    # The rest are queries' norms and rows of modulation, and alignment of small things.
    assert peak_bytes(work["call"]) == pytest.approx(expected + rotations, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_in_8_bits_needs_no_more(kernels, kind, fused_attention, monkeypatch):
    """The factors in 8 bits, and their float32 copies one after the other where PyTorch rounds them, are less than the
    norm of the keys or the hidden rows of the feed-forward; with kernels no copy is wider than 8 bits."""
    shape = DiTConfig.from_json({**specs.TRANSFORMER, "num_layers": 2})
    dit = on_meta(lambda: HeliosDiT(shape)).to(torch.bfloat16)
    for block in dit.blocks:
        block.attn1.choice = Choice8Bit(Choice())
        block.attn1.choice.only = kind
    history, noisy = shape.history_tokens((640, 384)).total, shape.noisy_tokens((640, 384), 1)[0]
    stage = SimpleNamespace(noisy=noisy, rows=history + noisy)
    model, stages = SimpleNamespace(dit=shape), SimpleNamespace(stages=[stage])
    expected = memory._call_bytes(SimpleNamespace(model=model, work=stages, product_itemsize=2, team=1))
    q, k, v = torch.empty(3, 1, stage.rows, 40, 128, dtype=torch.bfloat16, device="meta")
    monkeypatch.setattr(launch, "start", lambda *_: None)  # on the meta device nothing can run
    with compiling_for("sm_90") if kernels else nullcontext(), torch.no_grad():
        work = call(dit, (640, 384), 0, 100)
        work["history"](), work["text"]()
        assert peak_bytes(work["call"]) < 1.03 * expected + 4 * stage.rows * shape.attention_head_dim
        factors = peak_bytes(lambda: attention(q, k, v, None, dit.blocks[0].attn1.choice))
    if kernels:  # three factors and the result, and scales
        assert factors == pytest.approx((3 + 2) * q.numel(), rel=0.07)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_prompt_s_keys_and_values(dtype):
    """They are kept, and there once more while they are put together; the rest is the embedded prompt."""
    shape = DiTConfig.from_json({**specs.TRANSFORMER, **SMALL, "num_layers": 60})
    dit = on_meta(lambda: HeliosDiT(shape)).to(dtype)
    rows = 100 + (1 if dtype == torch.float32 else 2)  # and those that stand for the padding
    context = 2 * shape.num_layers * rows * shape.width * dtype.itemsize
    load = SimpleNamespace(context_bytes=lambda rows: context, text_rows=rows)
    expected = context + memory._embedding_bytes(load, Placement())
    assert peak_bytes(call(dit, (256, 192), 0, 100)["text"]) == pytest.approx(expected, rel=0.05)


def test_ranks_share_the_memory_of_calls_but_not_that_of_weights():
    one, four = workload_of(GPU), replace(workload_of(GPU), ranks=4)
    alone, shared = (memory.plan_memory(load, MemoryBudget(), Placement(graphs=False)) for load in (one, four))
    denoise = {plan: next(phase for phase in plan.phases if phase.phase == "denoise") for plan in (alone, shared)}
    assert denoise[shared].weights == denoise[alone].weights
    assert 0.2 < denoise[shared].working / denoise[alone].working < 0.4
    assert shared.host_bytes - alone.host_bytes == 3 * memory.PROCESS_BYTES["cuda"]
    assert not shared.chunks_beside and alone.chunks_beside  # all of them decode


def test_a_vae_on_the_gpu_of_a_rank_is_next_to_a_transformer():
    apart = replace(workload_of(GPU), vae_device=GPU, ranks=2)
    alone, joined = (
        memory.plan_memory(load, MemoryBudget(), Placement()) for load in (apart, replace(apart, joins_rank=True))
    )
    denoise = next(phase.total for phase in alone.phases if phase.phase == "denoise")
    assert joined.vae_device_bytes == alone.vae_device_bytes + denoise


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("team", [2, 4])
def test_a_rank_s_part_of_a_model_call(dtype, team, fused_attention):
    """The part of the first of a team, which has the most rows."""
    shape = DiTConfig.from_json({**specs.TRANSFORMER, "num_layers": 2})
    dit = on_meta(lambda: HeliosDiT(shape)).to(dtype)
    work = call(dit, (640, 384), 0, 100)
    work["history"](), work["text"]()
    inputs, history, noisy = (
        work["inputs"](),
        shape.history_tokens((640, 384)).total,
        shape.noisy_tokens((640, 384), 1)[0],
    )
    model = SimpleNamespace(dit=shape)
    stages = SimpleNamespace(stages=[SimpleNamespace(noisy=noisy, rows=history + noisy)])
    expected = memory._call_bytes(SimpleNamespace(model=model, work=stages, product_itemsize=dtype.itemsize, team=team))
    assert peak_bytes(lambda: forward_all(dit, [inputs], Counted(team))) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [30, 512])
def test_the_text_encoder(dtype, length):
    config = {**specs.TEXT_ENCODER, "num_layers": 2}
    shape = UMT5Config.from_json(config)
    encoder = on_meta(lambda: UMT5Encoder(shape)).to(dtype)
    model = SimpleNamespace(text=shape, parameters={"text_encoder": 0, "transformer": 14 * 10**9})
    work = SimpleNamespace(prompts=PromptTokens({"": length}, counted=True, lost={}))
    load = Workload(None, model, Device("cpu", "CPU", None, None), str(dtype).removeprefix("torch."))
    vars(load)["work"] = work  # there is no plan to count
    phase = memory._text_phase(load, Placement(), 0)
    row = torch.zeros(length, dtype=torch.long, device="meta")
    assert peak_bytes(lambda: encoder(row)) == pytest.approx(phase.working, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("base_dim", "size"), [(8, (128, 64)), (8, (256, 192)), (16, (384, 256))])
def test_the_vae_on_a_cpu(base_dim, size):
    """In one piece; in several; in pieces that are split again further on."""
    config = {**specs.VAE, "base_dim": base_dim, "num_res_blocks": 1}
    shape = VAEConfig.from_json(config)
    model = WanVAE(shape)
    latents = torch.zeros(1, 16, 9, size[1] // 8, size[0] // 8)

    def decode() -> None:
        for frames in model.decode(latents):
            del frames

    assert peak_bytes(decode) == pytest.approx(4 * vae.decode_elements(shape, size, PIECE_ELEMENTS["cpu"]), rel=0.1)
    if size == (384, 256):
        return  # two seconds more for the same
    clip = torch.zeros(1, 3, 33, size[1], size[0])
    peak, expected = (
        peak_bytes(lambda: model.encode(clip, torch.Generator())),
        4 * vae.encode_elements(shape, size, "cpu"),
    )
    assert 0.8 * expected < peak < expected


def test_the_published_sizes():
    """Parameters of the known models, and those that stay float32, counted on the modules."""
    modules = {
        "transformer": on_meta(lambda: HeliosDiT(DiTConfig())),
        "text_encoder": on_meta(lambda: UMT5Encoder(UMT5Config())),
        "vae": on_meta(lambda: WanVAE(VAEConfig.from_json(specs.VAE))),
    }
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    assert sizes == PUBLISHED_PARAMETERS

    def kept(name, islands):
        named = modules[name].named_parameters()
        return sum(p.numel() for path, p in named if not islands.isdisjoint(path.split(".")))

    assert kept("transformer", dit_module.FP32_ISLANDS) == DiTConfig().fp32_parameters
    assert kept("text_encoder", umt5.FP32_ISLANDS_IN_FLOAT16) == UMT5Config().float16_fp32_parameters


def test_defaults_are_the_published_shapes():
    assert DiTConfig.from_json(specs.TRANSFORMER) == DiTConfig()
    assert UMT5Config.from_json(specs.TEXT_ENCODER) == UMT5Config()
    assert VAEConfig.from_json(specs.VAE) == VAEConfig()
    for bad in (
        {"num_layers": 0},
        {"num_layers": "3"},
        {"ffn_dim": 2.5},
        {"patch_size": [1, -2, 2]},
        {"patch_size": 2},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DiTConfig.from_json(bad)


def workload_of(device: Device, dtype: str = "bfloat16", shots=("a red ball",), lanes: int = 1, **flags) -> Workload:
    model = find_model("distilled")
    plan = plan_of({"shot": [{"prompt": prompt} for prompt in shots]}, size=(640, 384), **flags)
    return Workload(plan, model, device, dtype, lanes=lanes)


def modes(device: Device, dtype: str = "bfloat16", budget: MemoryBudget | None = None, **flags):
    return memory_plans(
        workload_of(device, dtype, **flags),
        budget or MemoryBudget(device.free_bytes, None if device.kind == "cuda" else device.free_bytes),
    )


def test_the_published_model_on_a_gpu():
    """The transformer takes 28.6 GB in bfloat16 with its time embedder in float32, next to a VAE of 0.25 GB; the
    text encoder of 11.4 GB comes and goes before."""
    gpu = Device("cuda", "NVIDIA H100 80GB HBM3", 85 * 10**9, 80 * 10**9)
    mode, *_ = modes(gpu)
    text, denoise, decode = mode.phases
    assert text.weights == 2 * 5_680_910_336
    assert denoise.weights == decode.weights == 2 * 14_312_427_584 + 2 * DiTConfig().fp32_parameters + 2 * 126_892_531
    assert mode.name == "none" and mode.fits
    assert 30e9 < mode.device_bytes < 40e9 and mode.host_bytes < 1.5e9
    half, *_ = modes(gpu, "float16")
    assert half.phases[0].weights > text.weights and half.phases[2].working == pytest.approx(
        2 * decode.working, rel=1e-6
    )
    assert modes(gpu, "float32")[0].phases[1].weights == 4 * (14_312_427_584 + 126_892_531)


def test_what_fits():
    gpu = Device("cuda", "GPU", 24 * 10**9, 24 * 10**9)
    assert modes(gpu)[0].fits is False
    assert modes(replace(gpu, free_bytes=None))[0].fits is None
    cpu = Device("cpu", "CPU", 64 * 10**9, 40 * 10**9)
    mode, *_ = modes(cpu)
    assert mode.fits and mode.host_bytes > mode.device_bytes


def test_guidance_and_steps_are_kept_in_memory():
    gpu = Device("cuda", "GPU", None, None)
    plain, guided, longer = (
        modes(gpu, **flags)[1].phases[1].kept for flags in ({}, {"guidance": 5}, {"steps": (9, 9, 9)})
    )
    assert guided - plain == 2 * 40 * 64 * 5120 * 2  # the fewest keys that a prompt has on a GPU
    assert longer - plain == 4 * 2 * (27 - 6) * 2 * 6 * 40 * 5120  # the only chunk has doubled steps


def test_dtypes_have_their_sizes():
    assert {name: getattr(torch, name).itemsize for name in ITEMSIZE} == ITEMSIZE
    assert DiTConfig().patch_cells == 4


GPU = Device("cuda", "GPU", 32 * 10**9, 80 * 10**9)
"""A GPU with more room than it has, so that the VAE's pieces are the usual ones in every budget."""

PROMPTS_BYTES = 2 * 40 * DiTConfig().prompt_matrices
"""The bytes of the 14B model that only prompts need, in bfloat16."""

HOST = 64 * 10**9


def stream(vram: float, **flags):
    return modes(GPU, budget=MemoryBudget(int(vram), HOST), **flags)[2]


def test_blocks_are_as_large_as_the_slots_that_they_come_into():
    """Counted on the modules, of the 14B transformer and the published text encoder, whose distances move, too."""
    dit, text = DiTConfig(), UMT5Config()
    block = on_meta(lambda: HeliosDiT(DiTConfig(num_layers=1))).blocks[0]
    whole, for_prompts = (
        layout_of(block, lambda name: torch.bfloat16, part)[-1].end
        for part in (lambda name: True, lambda name: name in PROMPT_MATRICES)
    )
    assert whole == pytest.approx(2 * dit.block_matrices, rel=1e-6)
    assert for_prompts == 2 * dit.prompt_matrices == workload_of(GPU).prompt_block_bytes
    assert workload_of(GPU).block_bytes == pytest.approx(whole - for_prompts, rel=1e-6)
    layer = on_meta(lambda: UMT5Encoder(UMT5Config(num_layers=1))).encoder.block[0]
    assert layout_of(layer, lambda name: torch.float32)[-1].end == pytest.approx(4 * text.layer_matrices, rel=2e-5)


def test_a_budget_is_used_and_never_passed():
    """More of it, more blocks that stay, fewer bytes moved; never more than is given."""
    before = None
    for vram in range(7, 48, 2):
        mode = stream(vram * 1e9)
        assert mode.fits and mode.device_bytes <= vram * 1e9
        if before is not None:
            assert mode.moved_bytes <= before.moved_bytes
        before = mode
    assert before.placement.resident == 40
    assert before.moved_bytes == before.waited_bytes == PROMPTS_BYTES  # one chunk, one prompt
    assert stream(3e9).fits is False


def test_the_full_model_streams_in_four_gigabytes_of_host_memory():
    """Pinned slots, this process, frames on their way to the encoder."""
    mode = stream(8e9)
    block = 2 * (DiTConfig().block_matrices - DiTConfig().prompt_matrices)
    assert HOST_SLOTS * block < mode.host_bytes < 4e9
    assert mode.phases[1].weights > DEVICE_SLOTS * block


def test_what_moves_is_what_passes_by():
    """Six passes a chunk and six more in the first, over the blocks that do not stay; guidance moves them once. What
    takes turns is waited for: all that stays of the transformer, and the VAE. So is what the prompt needs, once."""
    mode, model = stream(12e9, frames=33), find_model("distilled")
    layers = 40 - mode.placement.resident
    block = 2 * (DiTConfig().block_matrices - DiTConfig().prompt_matrices)
    assert mode.placement.turns
    assert mode.moved_bytes - mode.waited_bytes == pytest.approx(layers * 12 * block)
    whole = 2 * (model.parameters["transformer"] + model.parameters["vae"]) + 2 * DiTConfig().fp32_parameters
    assert mode.waited_bytes == (whole - layers * block - PROMPTS_BYTES) + PROMPTS_BYTES
    assert mode.read_bytes == pytest.approx(2 * mode.moved_bytes, rel=1e-3)  # float32 in the files
    parameters = model.parameters["transformer"] + model.parameters["vae"] - 40 * DiTConfig().prompt_matrices
    assert mode.pass_bytes == 4 * parameters
    guided = modes(GPU, budget=MemoryBudget(int(6.2e9), HOST), guidance=3, frames=33)[2]
    plain = modes(GPU, budget=MemoryBudget(int(6.2e9), HOST), frames=33)[2]
    assert guided.moved_bytes < 1.1 * plain.moved_bytes * (40 - guided.placement.resident) / (
        40 - plain.placement.resident
    )


def test_what_the_page_cache_cannot_hold_is_kept_out_of_it_in_part():
    wide = modes(GPU, budget=MemoryBudget(int(12e9), 200 * 10**9))[2]
    assert wide.placement.cached_bytes is None
    tight = modes(GPU, budget=MemoryBudget(int(12e9), 16 * 10**9))[2]
    assert tight.placement.cached_bytes == 16 * 10**9 - tight.host_bytes
    assert tight.pass_bytes > tight.placement.cached_bytes


def test_films_in_lockstep_may_have_prompts_of_different_lengths():
    """The recorded calls of each further film keep a copy of keys and values, in addition to the film's own."""
    found = {
        (lanes, graphs): plan_memory(workload_of(GPU, lanes=lanes), MemoryBudget(), Placement(graphs=graphs))
        for lanes in (1, 3)
        for graphs in (False, True)
    }
    taken = {key: mode.device_bytes for key, mode in found.items()}
    load = workload_of(GPU)
    keys_and_values = 2 * 40 * 5120 * 2 * held_keys(load.work.text_rows)
    further = (taken[3, True] - taken[3, False]) - (taken[1, True] - taken[1, False])
    assert further == 2 * keys_and_values


def test_lanes_share_the_weights_and_nothing_else():
    """A walk of its own has only each one's prompt, for its keys and values."""
    one, four = (plan_memory(workload_of(GPU, lanes=lanes), MemoryBudget(), Placement("stream")) for lanes in (1, 4))
    assert four.moved_bytes - one.moved_bytes == 3 * PROMPTS_BYTES
    assert four.phases[1].weights == one.phases[1].weights
    assert four.phases[1].kept == 4 * one.phases[1].kept
    assert one.phases[1].working < four.phases[1].working < 2 * one.phases[1].working
    assert one.chunks_beside and not four.chunks_beside  # films in lockstep take turns


def taking(placement: Placement, **flags):
    return plan_memory(workload_of(GPU, **flags), MemoryBudget(), placement)


def test_a_chunk_that_is_decoded_beside_the_next_one_is_counted():
    """The working memory of decoding is added to that of a call wherever transformer and VAE are both resident."""
    for placement in (Placement(graphs=False), Placement("stream"), Placement("stream", resident=7)):
        together, alone = taking(placement), taking(replace(placement, decode_beside=False))
        _, denoise, decode = together.phases
        assert together.device_bytes == decode.total + denoise.working + 500_000_000
        assert alone.device_bytes == max(denoise.total, decode.total) + 500_000_000
        assert together.chunks_beside and not alone.chunks_beside
    assert not taking(Placement("model")).chunks_beside and not taking(Placement("stream", turns=True)).chunks_beside
    assert not plan_memory(workload_of(Device("cpu", "CPU", None, None)), MemoryBudget(), Placement()).chunks_beside


def test_chunks_that_a_cpu_decodes_at_the_same_time_are_counted(monkeypatch):
    """Each has the working memory of a decode, and all but the first hold their frames until it is their turn."""
    load = workload_of(Device("cpu", "CPU", None, None))
    small = replace(load, model=replace(load.model, parameters=dict.fromkeys(load.model.parameters, 1000)))
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    taken = {}
    for cores in (1, 2, 3):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        taken[cores] = plan_memory(replace(small), MemoryBudget(), Placement())
    assert [plan.chunks_beside for plan in taken.values()] == [0, 2, 3]
    _, denoise, decode = taken[1].phases
    frames = 33 * 3 * prod(load.plan.size)
    assert taken[3].host_bytes - taken[2].host_bytes == decode.working + frames
    assert taken[2].device_bytes == decode.total + denoise.working + decode.working + frames


def test_a_picture_that_is_encoded_beside_a_chunk_is_counted(tmp_path):
    """By itself, as the VAE does one thing at a time."""
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(picture)
    load = workload_of(GPU)
    first, *rest = load.plan.chunks
    pictured = replace(load, plan=replace(load.plan, chunks=(replace(first, image=picture), *rest)))
    mode = plan_memory(pictured, MemoryBudget(), Placement("stream"))
    _, conditioning, denoise, decode = mode.phases
    assert mode.device_bytes == max(conditioning.total, decode.total) + denoise.working + 500_000_000


def test_graphs_hold_a_call_once_more_and_its_inputs():
    """Graphs are counted for each number of text keys, and not at all in a mode that records no calls."""
    shots = ("a red ball", "a green box", "a green box that is seen from far away, " * 7)
    for prompts, keys in ((shots[:1], ()), (shots[:2], ()), (shots, (64,))):
        plain, recorded = (taking(Placement(graphs=graphs), shots=prompts) for graphs in (False, True))
        more = recorded.phases[1].kept - plain.phases[1].kept
        work = workload_of(GPU, shots=prompts).work
        context = 2 * 40 * 5120 * 2
        texts = context * (held_keys(work.text_rows) + sum(keys))
        calling = 1.1 * memory._call_bytes(workload_of(GPU, shots=prompts))
        assert texts + calling < more < 1.1 * (texts + calling)
        assert recorded.device_bytes - plain.device_bytes == more
    assert taking(Placement("stream")).phases == taking(Placement("stream", graphs=False)).phases


def test_none_gives_up_what_it_can_before_it_is_given_up():
    """Matrices for prompts are given up first, then graphs, then concurrent decoding; every estimate states what it
    really takes."""
    ways = [Placement(text_beside=False)]
    for less in ({"prompt_matrices": False}, {"graphs": False}, {"decode_beside": False}):
        ways.append(replace(ways[-1], **less))
    sizes = [taking(way).device_bytes for way in ways]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[1] == PROMPTS_BYTES
    for way, size in zip(ways, sizes, strict=True):
        mode = modes(GPU, budget=MemoryBudget(size, HOST))[0]
        assert mode.placement == way and mode.fits and mode.device_bytes == size
    assert modes(GPU, budget=MemoryBudget(sizes[-1] - 1, HOST))[0].fits is False


def test_matrices_for_prompts_are_elsewhere_until_one_comes():
    """On the device pass two blocks of them at a time, and through host memory three, while keys and values are made:
    next to a long prompt that is more than a call of a small film takes. A film whose prompts change at each chunk
    waits for all of them each time."""
    wide = workload_of(GPU, shots=("word " * 400, "other " * 300), seconds=3)
    load = Workload(replace(wide.plan, size=(128, 64)), wide.model, GPU, "bfloat16")
    stay, leave = (
        plan_memory(load, MemoryBudget(), Placement(graphs=False, prompt_matrices=stay)) for stay in (True, False)
    )
    block = 2 * DiTConfig().prompt_matrices
    assert stay.phases[1].weights - leave.phases[1].weights == 40 * block
    assert leave.phases[1].working - stay.phases[1].working == pytest.approx(1.1 * DEVICE_SLOTS * block)
    assert leave.host_bytes - stay.host_bytes == HOST_SLOTS * block
    changes = sum(a.prompts != b.prompts for a, b in pairwise(load.plan.chunks))
    assert changes > 0 and stay.moved_bytes == 0
    assert leave.moved_bytes == leave.waited_bytes == pytest.approx((1 + changes) * 40 * block / len(load.plan.chunks))
    assert leave.read_bytes == 2 * leave.moved_bytes and leave.pass_bytes == 2 * 40 * block
    kept = plan_memory(load, MemoryBudget(), Placement("model")).moved_bytes
    left = plan_memory(load, MemoryBudget(), Placement("model", prompt_matrices=False)).moved_bytes
    assert kept - left == pytest.approx((len(load.plan.chunks) - 1 - changes) * 40 * block / len(load.plan.chunks))


def test_a_text_encoder_that_comes_beside_the_others_is_counted_with_them():
    alone, beside = (taking(Placement(graphs=False, text_beside=beside)) for beside in (False, True))
    assert beside.phases[0].weights == alone.phases[0].weights + alone.phases[1].weights
    assert beside.phases[1:] == alone.phases[1:] and beside.device_bytes > alone.device_bytes


def test_a_long_prompt_is_there_twice_while_it_is_put_together():
    """Block by block, and together: 411 MB for 512 rows, more than a call of a small film takes."""
    load = workload_of(GPU, shots=("word " * 400,))
    assert load.work.text_rows == 502
    small = Workload(replace(load.plan, size=(128, 64)), load.model, GPU, "bfloat16")
    denoise = plan_memory(small, MemoryBudget(), Placement()).phases[1]
    assert denoise.working > 2 * 40 * 512 * 5120 * 2
    assert denoise.kept > 2 * 40 * 512 * 5120 * 2


@pytest.mark.parametrize(
    ("cpu", "dtype", "itemsize"),
    [
        ("AMD EPYC, avx2, 2 threads", "bfloat16", 4),
        ("AMD EPYC, avx2, avx512f, 2 threads", "bfloat16", 4),
        ("AMD EPYC, avx2, avx512f, avx512_bf16, 2 threads", "bfloat16", 2),
        ("AMD EPYC, avx2, avx512f, avx512_bf16, 2 threads", "float16", 4),
    ],
)
def test_a_cpu_without_small_products_works_in_wide_ones(cpu, dtype, itemsize):
    load = replace(workload_of(Device("cpu", cpu, None, None)), dtype=dtype)
    assert load.product_itemsize == itemsize
    wide = replace(load, dtype="float32")
    working, widest = (
        {phase.phase: phase.working for phase in plan_memory(one, MemoryBudget(), Placement()).phases}
        for one in (load, wide)
    )
    assert (working["decode"] == widest["decode"]) == (itemsize == 4)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_prompts_of_a_long_list_are_host_memory(kind):
    """2,000 of 100 tokens and two lanes: they are there for the whole film, and on no GPU."""
    usual = usual_film(find_model("distilled"), Device(kind, "a device", None, None), "bfloat16")
    one = {text: 100 for text in usual.plan.texts}
    shots = one | {f"shot {number}": 100 for number in range(1999)}
    many, few = (
        plan_memory(
            replace(usual, prompts=PromptTokens(tokens, counted=True, lost={}), lanes=2),
            MemoryBudget(),
            Placement("stream"),
        )
        for tokens in (shots, one)
    )
    rows = 2 * 1999 * 100 * 4096 * 2
    assert many.host_bytes - few.host_bytes == pytest.approx(rows, rel=0.01)
    if kind == "cuda":
        assert many.phases[1:] == few.phases[1:] and many.device_bytes == few.device_bytes
    else:
        assert {a.kept - b.kept for a, b in zip(many.phases, few.phases, strict=True)} == {rows}
