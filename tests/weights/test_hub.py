"""Downloads from a real HTTP server on the loopback address, each in a process of its own, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helios_cli.errors import InputError
from helios_cli.units import format_bytes
from helios_cli.weights.checkpoint import Checkpoint, files_of
from helios_cli.weights.client import COMMIT as COMMIT_ID
from helios_cli.weights.names import EMBEDDED_FOLDER, KNOWN
from helios_cli.weights.report import bytes_to_read, verify
from helios_cli.weights.source import Source, shadow_of, source_of, spoken
from support.fakes import COMMIT, Hub, write_checkpoint

pytestmark = pytest.mark.process

WEIGHTS = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"


def pull(helios, hub, *arguments, **environment):
    return helios("models", "pull", *(arguments or ("acme/helios",)), HF_ENDPOINT=hub.url, **environment)


def test_a_download_fetches_what_is_needed_and_no_more(helios, hub):
    done = pull(helios, hub)
    assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.strip())
    assert snapshot.name == COMMIT
    assert sorted(hub.downloads()) == files_of(snapshot) == files_of(hub.root)
    for name in files_of(hub.root):
        assert (snapshot / name).read_bytes() == (hub.root / name).read_bytes()
    assert Checkpoint.open(snapshot).kind == "distilled"
    total = sum((hub.root / name).stat().st_size for name in files_of(hub.root))
    assert f"acme/helios: {format_bytes(total)} of {format_bytes(total)}, 100 %" in done.stderr


def test_a_cached_branch_needs_no_network_and_keeps_its_commit(helios, snapshot):
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):  # the default endpoint of these tests is a closed port
        done = helios("models", "info", "acme/helios", "--json", **environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["revision"] == COMMIT


def test_a_pinned_commit_that_is_whole_is_not_asked_for_again(helios, snapshot):
    done = helios("models", "pull", "acme/helios", "--revision", COMMIT)
    assert (done.returncode, done.stdout.strip()) == (0, str(snapshot))


def test_an_interrupted_download_goes_on_with_what_is_missing(helios, hub, snapshot):
    blob = (snapshot / WEIGHTS).resolve()
    size = blob.stat().st_size
    blob.unlink()  # the snapshot's link to it stays
    assert json.loads(helios("models", "list", "--json").stdout)[-1]["state"] == "incomplete"
    done = helios("models", "info", "acme/helios")
    assert done.returncode == 4
    assert "not in the cache" in done.stderr
    done = pull(helios, hub)
    assert (done.returncode, hub.downloads()) == (0, [WEIGHTS])
    assert f"{size} B of {size} B, 100 %" in done.stderr


def test_a_connection_that_breaks_off_is_tried_again(helios, hub):
    hub.cut = {WEIGHTS}
    done = pull(helios, hub)
    assert done.returncode == 0, done.stderr
    assert hub.downloads().count(WEIGHTS) == 2
    assert helios("models", "verify", "acme/helios").returncode == 0


def test_a_file_shorter_than_announced_is_named(helios, hub):
    hub.lie = {WEIGHTS}
    done = pull(helios, hub)
    assert done.returncode == 4
    assert "model-00001-of-00002.safetensors arrived incomplete" in done.stderr
    assert "helios models pull acme/helios" in done.stderr


def test_refusals(python, hub):
    """One process runs all cases: the Hub's answer for each of these ids, and the user's message."""
    expected = {
        "acme/gone": ((404, "RepoNotFound"), "was not found on the Hub, or is private", "HF_TOKEN"),
        "acme/secret": ((401, "RepoNotFound"), "was not found on the Hub, or is private", "HF_TOKEN"),
        "acme/moved": ((404, "RevisionNotFound"), "has no revision main", "commits/main"),
        "acme/gated": ((403, "GatedRepo"), "is gated", f"accept its terms at {hub.url}/acme/gated"),
        "acme/shut": ((401, "GatedRepo"), "is gated", "HF_TOKEN"),
        "acme/denied": ((403, "Forbidden"), "access denied (HTTP 403)", "HF_TOKEN"),
        "acme/teapot": ((418, "Teapot"), "the Hub answered HTTP 418", "later"),
        "BestWishYsh/Helios-Destilled": ((404, "RepoNotFound"), "was not found", "BestWishYsh/Helios-Distilled?"),
    }
    hub.refuse = {repo: answer for repo, (answer, _, _) in expected.items()}
    code = f"""
import json
from helios_cli.errors import CheckpointError
from helios_cli.weights.hub import resolve

for repo in {list(expected)}:
    try:
        resolve(repo)
    except CheckpointError as error:
        print(json.dumps([error.message, error.hint]))
"""
    done = python("-c", code, HF_ENDPOINT=hub.url, HF_TOKEN="hf_abcdefghijklmnop")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(expected), done.stderr
    for (repo, (_, message, hint)), (found_message, found_hint) in zip(expected.items(), told, strict=True):
        assert repo in found_message
        assert message in found_message
        assert hint in found_hint
    assert "hf_abc" not in done.stdout + done.stderr


FIND_LORA = """
import sys
from helios_cli.errors import HeliosError
from helios_cli.weights.hub import lora_file

for name in sys.argv[1:]:
    try:
        print(lora_file(name).name)
    except HeliosError as error:
        print(error.message, error.hint, sep="; ")
"""


@pytest.fixture
def loras(tmp_path):
    root = tmp_path / "loras"
    root.mkdir()
    for name in ("a", "b"):
        (root / f"{name}.safetensors").write_bytes(name.encode() * 100)
    hub = Hub("acme/loras", root)
    yield hub
    hub.close()


def test_which_lora_is_meant_does_not_depend_on_what_was_downloaded_before(python, loras):
    names = ("acme/loras", "acme/loras/a.safetensors", "acme/loras")
    first, named, again = python("-c", FIND_LORA, *names, HF_ENDPOINT=loras.url).stdout.splitlines()
    assert named == "a.safetensors" and loras.downloads() == ["a.safetensors"]
    several = "acme/loras has 2 .safetensors files: a.safetensors, b.safetensors; name one: acme/loras/a.safetensors"
    assert first == again == several
    named, offline = python("-c", FIND_LORA, *names[1:], HF_HUB_OFFLINE="1").stdout.splitlines()
    assert named == "a.safetensors" and offline.endswith("with the file's name: acme/loras/FILE.safetensors")


def test_the_only_lora_of_a_repository_is_found_again_without_the_network(python, loras):
    (loras.root / "b.safetensors").unlink()
    for environment in ({"HF_ENDPOINT": loras.url}, {"HF_HUB_OFFLINE": "1"}):
        assert python("-c", FIND_LORA, "acme/loras", **environment).stdout == "a.safetensors\n"


def test_a_repository_without_a_pipeline(helios, hub):
    (hub.root / "model_index.json").unlink()
    done = pull(helios, hub)
    assert done.returncode == 4
    assert "acme/helios has no model_index.json" in done.stderr


def test_network_down(helios):
    done = helios("models", "pull", "acme/helios")
    assert done.returncode == 4
    assert done.stderr.startswith("error: the Hub could not be reached (ConnectError)")


def test_a_cache_that_cannot_be_written(helios, hub, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/hub").write_text("a file where the cache should be")
    done = pull(helios, hub)
    assert done.returncode == 3
    assert f"error: {tmp_path / 'hf'}" in done.stderr
    assert "hint: set HF_HOME" in done.stderr


def test_offline_and_not_cached(helios, hub):
    done = pull(helios, hub, HF_HUB_OFFLINE="1")
    assert (done.returncode, hub.requests) == (4, [])
    assert "HF_HUB_OFFLINE forbids the network" in done.stderr


def test_full_disk_is_known_before_the_first_byte(python, hub, tmp_path):
    size = sum((hub.root / name).stat().st_size for name in files_of(hub.root))
    refuse = f"""
import shutil
from types import SimpleNamespace
from helios_cli.weights.hub import resolve
shutil.disk_usage = lambda path: SimpleNamespace(free={size - 1})
resolve("acme/helios")
"""
    done = python("-c", refuse, HF_ENDPOINT=hub.url)
    assert "MachineError: the download needs 0.0 GB and" in done.stderr
    assert not any("/resolve/" in path for _, path, _ in hub.requests)
    assert not list(tmp_path.rglob("snapshots"))

    accept = f"""
import shutil
from contextlib import nullcontext
from types import SimpleNamespace
from helios_cli.weights.hub import resolve
seen = []
shutil.disk_usage = lambda path: SimpleNamespace(free={size})
folder = resolve("acme/helios", progress=lambda name, total: nullcontext(seen.append))
print(sum(seen), folder.name)
"""
    assert python("-c", accept, HF_ENDPOINT=hub.url).stdout.split() == [str(size), COMMIT]


def test_models_list_says_how_to_get_more_than_the_embedded_one(helios):
    assert "helios models pull distilled" in helios("models", "list").stderr


def test_models_list_shows_what_is_here(helios, snapshot):
    assert "pull" not in helios("models", "list").stderr
    first, second = (json.loads(helios("models", "list", "--json").stdout) for _ in range(2))
    assert first == second
    assert [item["name"] for item in first] == ["tiny", "distilled", "mid", "base", ""]
    assert {item["state"] for item in first[1:4]} == {"not downloaded"}
    assert (first[4]["repo"], first[4]["kind"], first[4]["state"]) == ("acme/helios", "distilled", "ready")
    assert first[4]["bytes"] == sum((snapshot / name).stat().st_size for name in files_of(snapshot))

    parked = (snapshot / WEIGHTS).rename(snapshot / "parked")
    assert json.loads(helios("models", "list", "--json").stdout)[-1]["state"] == "incomplete"
    parked.rename(snapshot / WEIGHTS)
    damage(snapshot, WEIGHTS, lambda body: body[:-1])
    assert json.loads(helios("models", "list", "--json").stdout)[-1]["state"] == "damaged"


def test_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_of("tiny") == Source(folder=EMBEDDED_FOLDER)
    distilled = KNOWN["distilled"]
    assert source_of("distilled") == Source(repo=distilled.repo, revision=distilled.revision)
    assert source_of(distilled.repo) == source_of("distilled")
    assert source_of("base", "main").revision == "main"
    assert source_of("acme/other") == Source(repo="acme/other", revision="main")
    (tmp_path / "acme/other").mkdir(parents=True)
    assert source_of("acme/other") == Source(folder=Path("acme/other"))
    for name in ("base", "tiny"):  # a folder does not hide the model of that name
        plain = source_of(name)
        assert shadow_of(name) is None
        write_checkpoint(tmp_path / name)
        assert source_of(name) == plain
        assert source_of(f"./{name}") == Source(folder=Path(name))
        assert f"./{name}" in shadow_of(name)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("distiled", "did you mean distilled?"),
        ("Base", "write base"),
        ("BestWishYSH/Helios-Mid", "write BestWishYsh/Helios-Mid"),
        ("zzz", "known names: tiny, distilled, mid, base"),
        ("/no/such/folder", "known names"),
        ("./nowhere", "known names"),
        ("", "known names"),
    ],
)
def test_names_that_are_no_model(model, hint):
    with pytest.raises(InputError) as raised:
        source_of(model)
    assert hint in raised.value.hint


def test_known_revisions_are_commits():
    for model in KNOWN.values():
        assert COMMIT_ID.fullmatch(model.revision)
        assert spoken(source_of(model.name)) == model.name


def damage(snapshot: Path, name: str, change) -> None:
    """Change the bytes behind a snapshot's link, as a bad disk would."""
    blob = (snapshot / name).resolve()
    blob.write_bytes(change(blob.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (WEIGHTS, lambda body: body[:-1], "truncated: "),
        (WEIGHTS, lambda body: body[:-1] + bytes([body[-1] ^ 1]), "its digest is "),
        (WEIGHTS, lambda body: body[:9] + b"\x00" + body[10:], "not valid JSON"),
        ("vae/config.json", lambda body: body.replace(b"1.0", b"2.0"), "its digest is "),
        ("vae/config.json", lambda body: body[:-1], "not valid JSON"),
    ],
)
def test_verify_names_the_bad_file_of_a_snapshot(snapshot, name, change, problem):
    read = []
    assert not [check for check in verify(snapshot, read.append) if check.problem]
    assert sum(read) == bytes_to_read(snapshot) == sum((snapshot / file).stat().st_size for file in files_of(snapshot))
    damage(snapshot, name, change)
    bad = [check for check in verify(snapshot, read.append) if check.problem]
    assert [check.name for check in bad] == [name]
    assert problem in bad[0].problem


def test_verify_says_how_to_replace_the_bad_file(helios, snapshot):
    damage(snapshot, WEIGHTS, lambda body: body[:-1])
    done = helios("models", "verify", "acme/helios")
    assert done.returncode == 4
    assert f"1 of {len(files_of(snapshot))} files of {snapshot} are bad: {WEIGHTS}" in done.stderr
    assert f"hint: hf download acme/helios {WEIGHTS} --revision {COMMIT} --force-download" in done.stderr
    (snapshot / WEIGHTS).unlink()
    done = helios("models", "verify", "acme/helios")
    assert done.returncode == 4
    assert "hint: helios models pull acme/helios" in done.stderr


def test_verify_and_info_of_a_local_folder(helios, checkpoint):
    done = helios("models", "verify", str(checkpoint), "--json")
    assert done.returncode == 0
    assert {check["method"] for check in json.loads(done.stdout)} == {"header", "JSON"}
    done = helios("models", "info", str(checkpoint))
    assert done.returncode == 0
    assert "kind         distilled" in done.stdout
    assert "steps 2,2,2, guidance 1.0" in done.stdout
    shutil.rmtree(checkpoint / "vae")
    done = helios("models", "verify", str(checkpoint), "--json")
    assert done.returncode == 4
    bad = [check["name"] for check in json.loads(done.stdout) if check["problem"]]
    assert bad == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]


def test_verify_compares_the_index_with_the_shards(helios, checkpoint):
    index = checkpoint / "transformer/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = content["weight_map"]["bias"]
    index.write_text(json.dumps(content))
    done = helios("models", "verify", str(checkpoint))
    assert done.returncode == 4
    assert "does not match its shards: ghost" in done.stdout


def test_info_of_a_known_model_that_is_not_here(helios):
    done = helios("models", "info", "distilled", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["state"], found["revision"]) == ("not downloaded", KNOWN["distilled"].revision)
    assert "helios models pull distilled" in done.stderr


def test_list_and_info_import_no_torch(helios, checkpoint, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    for arguments in (["list"], ["info", str(checkpoint)], ["verify", str(checkpoint)]):
        done = helios("models", *arguments, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
