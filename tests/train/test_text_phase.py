"""The text encoder's training: against transformers, and against its loss written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.train.phase import Share
from helios_cli.train.phases.text import NAMES, Reader, build, draw_seed
from helios_cli.train.settings.encoders import TextSettings
from helios_cli.train.world.captions import caption_with_labels
from helios_cli.train.world.scene import draw_scene
from helios_cli.weights.checkpoint import TOKENIZER, Checkpoint
from support.slopes import assert_slope

BATCH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("start"), SPECS["tiny"])


@pytest.fixture
def phase(folder):
    settings = TextSettings(phase="text", out="unused", steps=1, batch=BATCH)
    return build(settings, Checkpoint.open(folder), torch.device("cpu"))


def share(samples: range = range(BATCH), step: int = 0) -> Share:
    return Share(step, samples, BATCH, seed=3)


def gradient(reader: Reader) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten().clone() for parameter in reader.parameters()])


@pytest.mark.oracle
def test_the_loss_is_the_mean_over_captions_of_the_mean_over_tokens(phase, folder):
    from transformers import UMT5EncoderModel

    reader = phase.players["text_encoder"]
    theirs = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    expected = dict.fromkeys(NAMES, 0.0)
    for sample in range(BATCH):
        seed = draw_seed(share().generator(sample))
        text, truth = caption_with_labels(draw_scene(seed), seed)
        with torch.no_grad():
            rows = theirs(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
            at = 0
            for name, values in NAMES.items():
                head = slice(at, at + len(values))
                logits = rows @ reader.head.weight[head].T + reader.head.bias[head]
                wanted = values.index(getattr(truth, name))
                expected[name] += -F.log_softmax(logits, dim=-1)[:, wanted].mean().item() / BATCH
                at += len(values)
    found = {name: loss.item() for name, loss in phase.backward("text_encoder", share()).items()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_gradient_by_finite_differences(phase):
    assert_slope(phase, "text_encoder", share(range(2)), lambda losses: sum(losses.values()))


def test_a_batch_is_the_sum_of_its_shares(phase):
    reader = phase.players["text_encoder"]
    phase.backward("text_encoder", share())
    whole = gradient(reader)
    reader.zero_grad()
    for samples in (range(3), range(3, BATCH)):
        phase.backward("text_encoder", share(samples))
    torch.testing.assert_close(gradient(reader), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.train
def test_it_learns_what_is_seen_from_single_words(phase):
    reader = phase.players["text_encoder"]
    mover = torch.optim.Adam(reader.parameters(), lr=5e-3)
    before = phase.probe(share())
    for step in range(40):
        mover.zero_grad()
        phase.backward("text_encoder", share(step=step))
        mover.step()
    after = phase.probe(share())
    assert after["shape"] > max(0.6, before["shape"] + 0.2)  # chance is .25
    half = phase.probe(share(range(BATCH // 2)))
    assert half == pytest.approx({name: figure / 2 for name, figure in after.items()})  # the processes' are added up


@pytest.mark.oracle
def test_what_is_saved_is_read_by_transformers(phase, folder, tmp_path):
    from transformers import UMT5EncoderModel

    copy = write_checkpoint(tmp_path, SPECS["tiny"], seed=1)
    phase.save(copy)
    saved, start = (UMT5EncoderModel.from_pretrained(path / "text_encoder") for path in (copy, folder))
    tokens = torch.tensor([[5, 20, 33, 1]])
    with torch.no_grad():
        rows = saved(tokens).last_hidden_state
        assert torch.equal(rows, start(tokens).last_hidden_state)
        torch.testing.assert_close(phase.players["text_encoder"].encoder(tokens[0]), rows[0], atol=1e-5, rtol=0)


def test_a_run_from_nothing_depends_on_its_seed_alone():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(made))
        new = build(TextSettings(phase="text", out="unused", steps=1, seed=seed), None, torch.device("cpu"))
        made.append(torch.cat([p.flatten() for p in new.players["text_encoder"].parameters()]))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
