"""Films that are changed: what is rendered again, what is not, and that both give the frames of a fresh render."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios_cli.cli import main
from helios_cli.engine.events import ChunkDone, ChunksReused, Notice, PhaseStarted
from helios_cli.engine.models import Models
from helios_cli.film.cache import PROMISED_DAYS, Cache
from helios_cli.recipe.film import Film
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.schema import Recipe
from helios_cli.recipe.settings import ModelDefaults, resolve_settings
from helios_cli.units import format_bytes
from support.renders import models_of
from support.reruns import PROMPTS, decoded, fingerprints_of, in_child, plan, run
from support.tiers import examples
from support.users import as_user, needs_users
from support.waiting import LONGEST

DEFAULTS = ModelDefaults(size=(64, 64), steps=(1, 1, 1), guidance=1.0)


@pytest.fixture(scope="module")
def models(checkpoints):
    return models_of(checkpoints("distilled"))


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


class Bench:
    """Renders plans of any kind into one folder; `fresh` without a cache."""

    def __init__(self, models: Models, folder: Path) -> None:
        self.models, self.folder, self.count = models, folder, 0

    def render(self, film: Plan, cache: Cache | None, suffix: str = ".mp4", **options) -> tuple[list, np.ndarray]:
        self.count += 1
        out = f"{self.folder / str(self.count)}{suffix or '/'}"
        events = run(film, self.models, out, cache, **options)
        return events, decoded(Path(out))

    def fresh(self, film: Plan, suffix: str = ".mp4", **options) -> np.ndarray:
        return self.render(film, None, suffix, **options)[1]


@pytest.fixture
def bench(models, tmp_path):
    return Bench(models, tmp_path)


@pytest.fixture
def model_calls(models, monkeypatch):
    """Counts the calls of the transformer."""
    calls = []
    forward = type(models.dit).forward
    monkeypatch.setattr(type(models.dit), "forward", lambda self, *args: (calls.append(1), forward(self, *args))[1])
    return calls


def rendered(events) -> list[int]:
    return [event.chunk for event in events if isinstance(event, ChunkDone)]


LAST = 9


def shots(*prompts: str, transition: str = "cut", chunks: int = 2) -> Plan:
    """A film of shots of so many chunks; with cuts, of the last chunk of each shot LAST frames."""
    seconds = (33 * (chunks - 1) + (LAST if transition == "cut" else 33)) / 24
    listed = [{"prompt": prompt, "seconds": seconds, "transition": transition} for prompt in prompts]
    return planned({"seed": 3, "shot": listed})


def planned(keys: dict) -> Plan:
    film = Film("film", "film.toml", Recipe.model_validate(keys), Path("/films"))
    return plan_film(film, resolve_settings(film.recipe, RenderOptions(), DEFAULTS))


# What is rendered again


@pytest.mark.slow
def test_a_shot_between_cuts_is_rendered_alone(bench, cache):
    bench.render(shots(*PROMPTS), cache)
    edited = shots(PROMPTS[0], "the red square", *PROMPTS[2:])
    events, frames = bench.render(edited, cache)
    assert rendered(events) == [2, 3]
    reused = [(event.chunk, event.frames, event.source) for event in events if isinstance(event, ChunksReused)]
    ends = [shot * (33 + LAST) + frames for shot in range(4) for frames in (33, 33 + LAST)]
    assert reused == [(chunk, ends[chunk], "cache") for chunk in (0, 1, 4, 5, 6, 7)]
    assert np.array_equal(frames, bench.fresh(edited))


@pytest.mark.slow
def test_without_cuts_everything_from_the_shot_on_is_rendered(bench, cache):
    bench.render(shots(*PROMPTS, transition="switch", chunks=1), cache)
    edited = shots(*PROMPTS[:2], "the red square", PROMPTS[3], transition="switch", chunks=1)
    events, frames = bench.render(edited, cache)
    assert rendered(events) == [2, 3]
    assert np.array_equal(frames, bench.fresh(edited))


def test_the_same_film_again_loads_no_model(bench, cache, model_calls):
    _, first = bench.render(shots(*PROMPTS[:2]), cache)
    (kept,) = cache.films()
    assert (kept.title, kept.kept_chunks, kept.chunks) == (shots(*PROMPTS[:2]).title, 4, 4)
    assert kept.output == str(bench.folder / "1.mp4")
    model_calls.clear()
    events, frames = bench.render(shots(*PROMPTS[:2]), cache)
    assert not model_calls
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == ["finish"]
    assert np.array_equal(frames, first)


@pytest.mark.slow
def test_a_longer_film_starts_where_the_shorter_one_ended(bench, cache, model_calls):
    """Reuse also works from the middle of a chunk: the decoder alone makes its frames from its latents."""
    shorter = plan((PROMPTS[0], 33, 7), (PROMPTS[0], 12, None))
    longer = plan((PROMPTS[0], 33, 7), (PROMPTS[0], 33, None), (PROMPTS[0], 5, None))
    bench.render(shorter, cache)
    model_calls.clear()
    events, frames = bench.render(longer, cache)
    assert len(model_calls) == 3 and rendered(events) == [2]
    assert np.array_equal(frames, bench.fresh(longer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "options"), [(".mp4", {"crf": 40}), (".mp4", {"codec": "av1"}), (".mkv", {}), ("", {})]
)
def test_another_encoding_needs_the_decoder_only(suffix, options, bench, cache, model_calls):
    film = shots(PROMPTS[0])
    bench.render(film, cache)
    model_calls.clear()
    _, frames = bench.render(film, cache, suffix, **options)
    assert not model_calls
    assert np.array_equal(frames, bench.fresh(film, suffix, **options))


@pytest.mark.slow
def test_a_film_starts_from_the_middle_of_another(bench, cache):
    """The second shot of one film, after a cut, is the whole of another."""
    bench.render(shots(*PROMPTS[:2]), cache)
    alone = shots(PROMPTS[1])
    events, frames = bench.render(alone, cache)
    assert rendered(events) == []
    assert np.array_equal(frames, bench.fresh(alone))


@pytest.mark.slow
def test_a_chunk_that_went_is_rendered_between_kept_ones(bench, cache, models):
    film = shots(*PROMPTS[:2], transition="switch")
    bench.render(film, cache)
    shutil.rmtree(cache.folder / "chunks" / fingerprints_of(film, models)[1])
    events, frames = bench.render(film, cache)
    assert rendered(events) == [1]
    assert np.array_equal(frames, bench.fresh(film))


prompt_texts = st.sampled_from(PROMPTS[:3])


@st.composite
def recipes(draw) -> dict:
    shot = st.fixed_dictionaries(
        {
            "prompt": prompt_texts,
            "seconds": st.sampled_from([0.2, 1.0, 1.375, 2.0]),
            "transition": st.sampled_from(["blend", "switch", "cut"]),
        }
    )
    return {"seed": draw(st.integers(1, 2)), "shot": draw(st.lists(shot, min_size=1, max_size=3))}


@st.composite
def edits(draw) -> list[dict]:
    """A recipe and what became of it: shots changed, moved, added, dropped, the seed another one."""
    versions = [draw(recipes())]
    for _ in range(draw(st.integers(1, 3))):
        keys = json.loads(json.dumps(versions[-1]))
        shot = draw(st.integers(0, len(keys["shot"]) - 1))
        match draw(st.sampled_from(["prompt", "seconds", "transition", "add", "drop", "swap", "seed"])):
            case "prompt":
                keys["shot"][shot]["prompt"] = draw(prompt_texts)
            case "seconds":
                keys["shot"][shot]["seconds"] = draw(st.sampled_from([0.3, 1.1, 2.5]))
            case "transition":
                keys["shot"][shot]["transition"] = draw(st.sampled_from(["blend", "switch", "cut"]))
            case "add":
                keys["shot"].insert(shot, draw(recipes())["shot"][0])
            case "drop" if len(keys["shot"]) > 1:
                del keys["shot"][shot]
            case "swap":
                keys["shot"].reverse()
            case _:
                keys["seed"] += 1
        versions.append(keys)
    return versions


@pytest.mark.slow
@settings(max_examples=examples(8), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(versions=edits())
def test_edited_recipes_equal_fresh_renders(versions, models, tmp_path_factory):
    """Every version through one cache, the last one against a render that knows nothing of the others."""
    bench = Bench(models, tmp_path_factory.mktemp("edits"))
    cache = Cache(bench.folder / "cache")
    for keys in versions:
        events, frames = bench.render(planned(keys), cache)
    assert np.array_equal(frames, bench.fresh(planned(versions[-1])))
    reused = sum(event.count for event in events if isinstance(event, ChunksReused))
    assert len(rendered(events)) + reused == len(planned(versions[-1]).chunks)


# The folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state", "*.piece"])
def test_damage_is_rendered_or_decoded_again_and_mended(name, bench, cache):
    film = shots(PROMPTS[0])
    _, first = bench.render(film, cache)
    damaged = list((cache.folder / "chunks").glob(f"*/{name}"))
    assert len(damaged) == 2
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-3])
    events, frames = bench.render(film, cache)
    assert rendered(events) == ([0, 1] if name == "state" else [])
    assert np.array_equal(frames, first)
    if name == "state":
        assert rendered(bench.render(film, cache)[0]) == []


def test_what_was_used_longest_ago_goes_first(tmp_path):
    cache = Cache(tmp_path, limit=3500)
    for name in "abc":
        cache.put(name, bytes(500), "key", bytes(500))
        time.sleep(0.02)
    assert cache.state("a") == bytes(500)
    cache.put("d", bytes(500), "key", bytes(500))
    assert [cache.has(name) for name in "abcd"] == [True, False, True, True]
    assert cache.num_bytes() <= 3500
    cache.put("e", bytes(3000), "key", bytes(3000))  # more than all
    assert not cache.has("e")


def test_by_default_a_tenth_of_the_disk_is_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("helios_cli.machine.disk_free_bytes", lambda _: 30_000)
    cache = Cache(tmp_path)
    for name in "abcd":
        cache.put(name, bytes(500), "key", bytes(500))
    assert 2000 < cache.num_bytes() <= 3400


@pytest.mark.slow
def test_the_newest_chunks_of_a_film_larger_than_the_cache_stay(bench, tmp_path, models):
    film = shots(*PROMPTS[:3], chunks=1)
    cache = Cache(tmp_path / "cache", limit=300_000)
    _, frames = bench.render(film, cache)
    kept = [cache.has(fingerprint) for fingerprint in fingerprints_of(film, models)]
    assert kept == sorted(kept) and 0 < sum(kept) < 3
    assert np.array_equal(frames, bench.fresh(film))


@pytest.mark.slow
def test_many_processes_use_one_small_cache(bench, models, tmp_path):
    """Three at a time over films that share chunks, in a cache that holds about three of six: every film is right."""
    films = [shots(*prompts, chunks=1) for prompts in (PROMPTS[:3], PROMPTS[1:], PROMPTS[:2])]
    models.encode(PROMPTS)
    expected = [bench.fresh(film) for film in films]
    cache = Cache(tmp_path / "cache", limit=400_000)
    pids = []
    for number, film in enumerate(films * 2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run(film, models, tmp_path / f"{number}-.mp4", cache)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 6
    for number in range(6):
        assert np.array_equal(decoded(tmp_path / f"{number}-.mp4"), expected[number % 3])
    assert cache.num_bytes() <= 400_000 + 5 * 150_000  # each of the others may have been writing a chunk


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(bench, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    events, frames = bench.render(shots(PROMPTS[0]), Cache(tmp_path / "cache"))
    told = [event.message for event in events if isinstance(event, Notice)]
    assert len(told) == 1 and "could not be kept" in told[0]
    assert np.array_equal(frames, bench.fresh(shots(PROMPTS[0])))


def test_what_a_dead_process_was_writing_goes_with_its_chunk(tmp_path):
    cache = Cache(tmp_path, limit=4000)
    for name in "ab":
        cache.put(name, bytes(500), "key", bytes(500))
        (cache.folder / "chunks" / name / ".new-half").write_bytes(bytes(500))
        time.sleep(0.02)
    assert cache.state("a") == bytes(500) and cache.num_bytes() > 3000
    Cache(tmp_path, limit=4000).put("c", bytes(500), "key", bytes(500))
    assert [cache.has(name) for name in "abc"] == [True, False, True] and cache.num_bytes() < 3000


def test_files_that_cannot_be_read_stay(cache):
    """Root may read every file, so the test makes opening fail instead: the state is sound all the same."""
    cache.put("a", b"state", "key", b"piece")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert (cache.state("a"), cache.piece("a", "key"), cache.has("a")) == (None, None, False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (cache.state("a"), cache.piece("a", "key"), cache.has("a")) == (b"state", b"piece", True)


def test_a_cut_file_is_not_kept(cache):
    cache.put("a", b"state", "key", b"piece")
    state = cache.folder / "chunks" / "a" / "state"
    for length in range(state.stat().st_size):
        os.truncate(state, length)
        assert not cache.has("a")
        cache.put("a", b"state", "key", b"piece")
        assert cache.state("a") is None, "and that takes it away"
        cache.put("a", b"state", "key", b"piece")
        assert cache.has("a")


def fill(cache: Cache, names: str) -> None:
    for name in names:
        cache.put(name, bytes(500), "key", bytes(500))


def test_what_was_promised_stays_whatever_comes(tmp_path):
    """The promise also holds for other processes, and for one that listed the cache before, for as long as
    promised."""
    cache, other = Cache(tmp_path, limit=4500), Cache(tmp_path, limit=4500)
    fill(cache, "ab")
    fill(other, "c")
    assert not other.promise("ax") and other.promise("ab")
    fill(cache, "defgh")
    fill(Cache(tmp_path, limit=4500), "ijk")
    assert cache.has("a") and cache.has("b") and cache.num_bytes() <= 4500
    fill(Cache(tmp_path, limit=2000), "l")
    assert cache.has("a") and cache.has("b") and not cache.has("l"), "there is no room for another one"
    for name in "ab":
        then = time.time() - (PROMISED_DAYS + 0.1) * 86400
        os.utime(cache.folder / "chunks" / name / "promised", (then, then))
        os.utime(cache.folder / "chunks" / name, (then, then))
    fill(Cache(tmp_path, limit=2000), "l")
    assert not cache.has("a") and cache.has("l")


def test_a_chunk_that_another_process_used_meanwhile_is_not_the_oldest(tmp_path):
    cache = Cache(tmp_path, limit=100_000)
    for name in map(str, range(60)):
        cache.put(name, bytes(500), "key", bytes(500))
    then = time.time() + 10
    for name in map(str, range(0, 60, 2)):
        os.utime(cache.folder / "chunks" / name, (then, then))
    cache.put("new", bytes(60_000), "key", b"")
    kept = [name for name in map(str, range(60)) if cache.has(name)]
    assert cache.has("new") and kept and all(int(name) % 2 == 0 or int(name) > 40 for name in kept)
    assert cache.num_bytes() <= 100_000


def test_most_chunks_are_kept_without_looking_at_the_others(tmp_path, monkeypatch):
    cache = Cache(tmp_path, limit=1_000_000)
    looks = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looks.append(path), scandir(path))[1])
    for number in range(300):
        cache.put(str(number), bytes(500), "key", bytes(500))
    assert len(looks) < 300 * 300 / 2 / 10
    assert cache.num_bytes() < 1_000_000


@needs_users
def test_two_users_of_a_group_share_a_cache(shared):
    as_user(1001, lambda: fill(Cache(shared / "cache"), "ab"), umask=0o002)

    def second() -> None:
        cache = Cache(shared / "cache")
        assert cache.state("a") == bytes(500) and cache.piece("a", "key") == bytes(500)
        assert cache.promise("ab")
        fill(cache, "c")

    as_user(1002, second, umask=0o002)
    cache = Cache(shared / "cache")
    assert [cache.has(name) for name in "abc"] == [True] * 3


@needs_users
def test_what_another_user_keeps_for_himself_is_left_alone(shared):
    as_user(1001, lambda: fill(Cache(shared / "cache", limit=5000), "ab"), umask=0o077)
    for folder in (shared / "cache", shared / "cache" / "chunks"):
        os.chmod(folder, 0o1777)

    def second() -> None:
        cache = Cache(shared / "cache", limit=5000)
        assert not cache.has("a") and cache.state("a") is None and not cache.promise("a")
        fill(cache, "cdefgh")
        assert 0 < cache.num_bytes() <= 5000

    as_user(1002, second)
    cache = Cache(shared / "cache")
    assert cache.state("a") == bytes(500) and cache.piece("b", "key") == bytes(500)


@needs_users
def test_what_is_only_to_read_is_read(shared):
    """An administrator rendered it into a folder that other users may read."""
    fill(Cache(shared / "cache", limit=5000), "ab")

    def second() -> None:
        cache = Cache(shared / "cache")
        assert cache.state("a") == bytes(500) and not cache.promise("ab")
        with pytest.raises(PermissionError):
            fill(cache, "c")

    as_user(1002, second)
    assert Cache(shared / "cache").state("b") == bytes(500)


@needs_users
def test_clearing_counts_what_was_removed(shared):
    as_user(1001, lambda: fill(Cache(shared / "cache"), "ab"))
    for folder in (shared / "cache", shared / "cache" / "chunks"):
        os.chmod(folder, 0o1777)

    def second() -> None:
        cache = Cache(shared / "cache")
        theirs = cache.num_bytes()
        assert theirs and cache.clear() == 0
        fill(cache, "c")
        mine = cache.num_bytes() - theirs
        assert cache.clear() == mine > 0

    as_user(1002, second)
    cache = Cache(shared / "cache")
    assert [cache.has(name) for name in "abc"] == [True, True, False]


def test_no_cache_keeps_nothing(bench, cache):
    bench.fresh(shots(PROMPTS[0]))
    assert cache.num_bytes() == 0


@pytest.mark.slow
def test_killed_while_keeping_a_chunk(bench, models, tmp_path):
    """A process that dies in the cache's own steps leaves a cache that works."""
    from support.reruns import KillAt

    models.encode(PROMPTS)
    film = shots(PROMPTS[0])
    expected = bench.fresh(film)
    cache = Cache(tmp_path / "cache")
    for step in range(1, 6):

        def work(step=step):
            kill = KillAt(step, torn=False)
            kill.calls = 0
            cache.put(f"{step}", b"state", "key", b"piece")

        in_child(work)
    events, frames = bench.render(film, cache)
    assert rendered(events) == [0, 1]
    assert np.array_equal(frames, expected)


# The command


def answer(capsys, *words: str) -> dict:
    assert main(["cache", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_and_clear(capsys):
    cache = Cache()
    assert main(["cache", "list"]) == 0 and "0 B" in capsys.readouterr().out
    fill(cache, "ab")
    cache.note_film("Harbour [at] dawn", "/films/harbour.mp4", "abc")
    listed = answer(capsys, "list")
    assert listed["bytes"] == cache.num_bytes()
    (film,) = listed["films"]
    assert 0 <= time.time() - film.pop("last_used") < LONGEST
    sizes = {"chunks": 3, "kept_chunks": 2, "num_bytes": cache.num_bytes()}
    assert film == {"title": "Harbour [at] dawn", "output": "/films/harbour.mp4", **sizes}
    assert main(["cache", "list"]) == 0
    row = rf"Harbour \[at\] dawn  2/3 +{format_bytes(cache.num_bytes())}  just now +/films/harbour.mp4\n"
    assert re.match(f"film .*\n{row}", capsys.readouterr().out)
    assert answer(capsys, "clear")["freed"] == listed["bytes"]
    assert answer(capsys, "list")["films"] == [] and cache.num_bytes() == 0
