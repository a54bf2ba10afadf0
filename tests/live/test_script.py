"""The decisions of a live film, chunk by chunk, against the plan of the recipe that it writes; nothing is
rendered."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_cli.engine.events import Notice, Playback, PromptTaken
from helios_cli.errors import InputError
from helios_cli.film.target import Target
from helios_cli.live.clock import Playhead
from helios_cli.live.lines import Line
from helios_cli.live.recipe_file import MARK, RecipeFile, begun_film, recipe_path
from helios_cli.live.script import LiveScript, PromptDefaults
from helios_cli.recipe.export import write_recipe
from helios_cli.recipe.film import Film
from helios_cli.recipe.fingerprint import Arithmetic, Fingerprints, chunk_fingerprints
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.schema import Recipe, Shot
from helios_cli.recipe.settings import ModelDefaults, resolve_settings
from helios_cli.recipe.sources import read_films
from helios_cli.recipe.trees import read_tree
from helios_cli.recipe.validate import recipe_from

FOLDER = Path("/films")
HERE = Arithmetic("cpu", "float32", "2")
USUAL, FIRST = PromptDefaults(), Shot(prompt="first")


def plan_of(film: Film) -> Plan:
    return plan_film(film, resolve_settings(film.recipe, RenderOptions(), ModelDefaults((64, 64), (1, 1, 1), 1.0)))


class Lines:
    """Prompts that are there when chunk `index` is decided: {index: shots}; at its end after the last."""

    def __init__(self, at: dict[int, list[Shot]], *, end: int) -> None:
        self.at, self.end, self.now = at, end, 0
        self.waiting: deque[Shot] = deque()
        self.are_open, self.position = False, 0.0

    def arrive(self, index: int) -> None:
        self.now = index
        self.waiting += self.at.get(index, [])

    def take(self) -> Line | None:
        return Line(self.waiting.popleft(), self.position) if self.waiting else None

    @property
    def ended(self) -> bool:
        return self.now >= self.end and not self.waiting


class Live:
    """A session that was run to its end. `kept`: the recipe's text as it was before each chunk."""

    def __init__(self, lines: Lines, defaults: PromptDefaults = USUAL, first: Shot = FIRST, **settings) -> None:
        self.texts, self.told, self.events, self.kept = [], [], [], []
        film = Film("f", "f.toml", Recipe(shot=[first], **{"fps": 24.0, "seed": 7, **settings}), FOLDER)
        self.script = LiveScript(
            *(film, film.recipe.fps, lines, defaults, Playhead(film.recipe.fps, None)),
            **{"plan_of": plan_of, "keep": self.keep, "warn": self.told.append},
        )
        self.rendered = []
        fingerprints = Fingerprints("weights", HERE)
        while True:
            lines.arrive(len(self.rendered))
            decided = self.script.decide(len(self.rendered))
            self.events += [event for event in decided if isinstance(event, PromptTaken)]
            if len(self.rendered) == len(self.script.plan.chunks):
                break
            self.kept.append(self.texts[-1])
            self.rendered.append(self.script.plan.chunks[len(self.rendered)])
            self.fingerprints = fingerprints.of(self.script.plan)

    def keep(self, film: Film) -> None:
        self.texts.append(write_recipe(film, "toml", FOLDER))


def reread(text: str) -> Plan:
    problems = Problems("f.toml")
    tree, lines = read_tree(text, ".toml", problems)
    return plan_of(Film("f", "f.toml", recipe_from(tree, lines, problems), FOLDER))


SHOTS = st.builds(
    lambda prompt, seconds, transition: Shot(
        prompt=prompt,
        **({} if seconds is None else {"seconds": seconds}),
        **({} if transition is None else {"transition": transition}),
    ),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([None, None, 0.04, 1.375, 2.0, 5.5, 7.0]),
    st.sampled_from([None, None, "blend", "switch", "cut"]),
)


@given(
    at=st.dictionaries(st.integers(0, 25), st.lists(SHOTS, max_size=3), max_size=6),
    defaults=st.builds(
        PromptDefaults, st.sampled_from(["blend", "switch", "cut"]), st.sampled_from([0.1, 1.1, 1.375, 4.0, 6.0])
    ),
    length=st.sampled_from([{}, {}, {"frames": 1}, {"frames": 100}, {"seconds": 20.0}, {"minutes": 0.5}]),
    fps=st.sampled_from([24.0, 30.0, 23.976, 8.25, 33.0, 29.97]),
)
def test_the_recipe_has_the_film_s_chunks_at_any_moment(at, defaults, length, fps):
    """A render of the finished recipe makes the same chunks; one of the recipe as a kill left it goes on from there."""
    live = Live(Lines(at, end=max(at, default=0)), defaults, fps=fps, **length)
    plan = reread(live.texts[-1])
    assert plan == live.script.plan
    assert list(plan.chunks) == live.rendered
    assert live.fingerprints == chunk_fingerprints(plan, "weights", HERE)
    for index, text in enumerate(live.kept):
        assert list(reread(text).chunks[: index + 1]) == live.rendered[: index + 1]
    assert all(chunk.num_frames == 33 for chunk in live.rendered[:-1])
    if length:
        assert plan.num_frames == live.script.num_frames
        assert len(live.rendered) == live.script.num_chunks


def prompts(live: Live) -> list[str]:
    """The prompt that each chunk goes to."""
    return [chunk.prompts[-1][0] for chunk in live.rendered]


def test_each_of_the_prompts_of_a_pipe_is_held():
    live = Live(Lines({0: [Shot(prompt="b"), Shot(prompt="c", seconds=6)]}, end=0))
    assert prompts(live) == ["first"] * 3 + ["b"] * 3 + ["c"] * 5  # 4 s are 2.9 chunks, 6 s are 4.4
    assert [(e.prompt, e.chunk, e.transition) for e in live.events] == [
        ("first", 0, "cut"),
        ("b", 3, "blend"),
        ("c", 6, "blend"),
    ]


def test_a_prompt_comes_into_force_with_the_next_chunk_and_the_last_one_goes_on_until_then():
    live = Live(Lines({5: [Shot(prompt="b", transition="cut")]}, end=10))
    assert prompts(live) == ["first"] * 5 + ["b"] * 5
    assert [chunk.fresh for chunk in live.rendered] == [index in (0, 5) for index in range(10)]
    assert live.rendered[5].seed == 7


def test_a_blend_takes_no_longer_than_its_prompt_is_held():
    """The length does not depend on whether another prompt follows: that is not known when the first one is
    decided."""
    for later in ({}, {4: [Shot(prompt="c")]}):
        live = Live(Lines({1: [Shot(prompt="b")], **later}, end=6), PromptDefaults(hold=2.0))
        assert [chunk.prompts for chunk in live.rendered[2:4]] == [
            (("first", 0.75), ("b", 0.25)),
            (("first", 0.25), ("b", 0.75)),
        ]


def test_a_given_length_is_kept_while_lines_come_and_when_none_do():
    for lines in (Lines({}, end=0), Lines({i: [Shot(prompt="b")] for i in range(50)}, end=50)):
        live = Live(lines, frames=200)
        assert [chunk.num_frames for chunk in live.rendered] == [33] * 6 + [2]


def test_a_recipe_that_is_full_takes_no_more_prompts_and_the_film_goes_on():
    class Small(Live):
        def keep(self, film: Film) -> None:
            if len(film.recipe.shots) > 2:
                raise InputError("f.toml has reached the limit for a recipe")
            super().keep(film)

    live = Small(Lines({0: [Shot(prompt=p) for p in "bcd"]}, end=8))
    assert prompts(live) == ["first"] * 3 + ["b"] * 5
    assert [line[-3:] for line in live.told] == ["'c'", "'d'"]
    assert list(reread(live.texts[-1]).chunks) == live.rendered


def test_a_film_ends_after_a_day():
    live = Live(Lines({}, end=10**9), fps=1.0, first=Shot(prompt="first", seconds=86_000))
    assert len(live.rendered) == 86_400 // 33
    assert list(reread(live.texts[-1]).chunks) == live.rendered


# The file


@pytest.fixture
def target(tmp_path):
    return Target.of(tmp_path / "film.mp4")


def test_the_recipe_stands_beside_the_film(tmp_path, target):
    assert recipe_path(target) == tmp_path / "film.toml"
    assert recipe_path(Target.of(f"{tmp_path}/film.v2/")) == tmp_path / "film.v2.toml"


def test_only_a_recipe_of_its_own_is_replaced(target):
    path = recipe_path(target)
    begun_film(path, target, force=False)
    path.write_text("version = 1\n")
    with pytest.raises(InputError, match="did not write it"):
        begun_film(path, target, force=False)
    begun_film(path, target, force=True)
    path.write_text(f"{MARK}\n")
    begun_film(path, target, force=False)


def test_an_unfinished_film_goes_on_if_its_recipe_is_there(target):
    path = recipe_path(target)
    target.journal.write_text("")
    with pytest.raises(InputError, match="there is an unfinished film"):
        begun_film(path, target, force=False)
    path.write_text(f'{MARK}\nversion = 1\n[[shot]]\nprompt = "a boat"\n')
    film = begun_film(path, target, force=False)
    assert film is not None and [shot.prompt for shot in film.recipe.shots] == ["a boat"]
    assert begun_film(path, target, force=True) is None


def test_what_is_written_is_a_source_with_the_command_on_top(target):
    path = recipe_path(target)
    film = Film("film", "film.toml", Recipe(shot=[Shot(prompt='a "red" ball\\')], seed=3), target.path.parent)
    RecipeFile(path, "helios render film.toml --dtype float32").write(film)
    assert path.read_text().splitlines()[:2] == [
        f"{MARK}. To finish the film, or to make it again:",
        "#   helios render film.toml --dtype float32",
    ]
    assert read_films([str(path)])[0].recipe == film.recipe


def test_a_recipe_that_could_not_be_read_again_is_not_written(target):
    path = recipe_path(target)
    film = Film("f", "f.toml", Recipe(shot=[Shot(prompt="a" * 20_000)] * 60), target.path.parent)
    with pytest.raises(InputError, match="has reached the limit for a recipe"):
        RecipeFile(path, "").write(film)
    assert not path.exists()


# Going on


@given(
    at=st.dictionaries(st.integers(0, 12), st.lists(SHOTS, max_size=2), max_size=4),
    later=st.dictionaries(st.integers(0, 25), st.lists(SHOTS, max_size=2), max_size=4),
    length=st.sampled_from([{}, {"frames": 700}]),
    share=st.floats(0, 1),
)
def test_a_film_that_goes_on_keeps_its_chunks_and_takes_new_prompts(at, later, length, share):
    """After a kill at any chunk: those that were rendered are those of the new plan, and the recipe is again that of
    the whole film."""
    live = Live(Lines(at, end=max(at, default=0)), **length)
    done = max(1, round(share * len(live.rendered)))
    text = live.kept[done - 1]
    lines, texts, told = Lines(later, end=max(later, default=0)), [text], []
    problems = Problems("f.toml")
    film = Film("f", "f.toml", recipe_from(*read_tree(text, ".toml", problems), problems), FOLDER)
    script = LiveScript(
        *(film, 24.0, lines, USUAL, Playhead(24.0, None)),
        **{"chunks": done, "plan_of": plan_of, "warn": told.append},
        keep=lambda film: texts.append(write_recipe(film, "toml", FOLDER)),
    )
    assert list(script.plan.chunks[:done]) == live.rendered[:done]
    index, events = done, []
    while True:
        lines.arrive(index)
        events += script.decide(index)
        if index == len(script.plan.chunks):
            break
        index += 1
    assert list(script.plan.chunks[:done]) == live.rendered[:done]
    assert reread(texts[-1]) == script.plan
    assert next(event.prompt for event in events if isinstance(event, PromptTaken)) == film.recipe.shots[-1].prompt


# The playhead


class Steered:
    """A script whose lines stay open, under a clock on the wall that the test turns; nothing is rendered."""

    def __init__(self, ahead: float | None = 3.0) -> None:
        self.seconds = 0.0
        self.head = Playhead(24.0, ahead, lambda: self.seconds)
        self.lines = Lines({}, end=10**9)
        self.lines.are_open = True
        film = Film("f", "f.toml", Recipe(shot=[Shot(prompt="first")], fps=24.0, seed=7), FOLDER)
        self.script = LiveScript(
            *(film, 24.0, self.lines, PromptDefaults(hold=1.0), self.head),
            **{"plan_of": plan_of, "keep": lambda film: None, "warn": print},
        )

    def render(self, chunks: int, seconds: float) -> list:
        """Render so many chunks, each in so many seconds, and return the events; waiting takes a tenth at a time."""
        events = []
        for index in range(chunks):
            while self.script.is_early(index):
                self.seconds += 0.1
            events += self.script.decide(index)
            self.seconds += seconds
            self.head.show(33 * (index + 1))
        return events


def test_a_machine_that_is_too_slow_says_so_once_with_what_would_help():
    events = Steered().render(12, seconds=2.0)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert notice.message.startswith("this machine makes 16.5 frames a second, and the film shows 24: ")
    assert "--fps 16" in notice.message
    assert [event.state for event in events if isinstance(event, Playback)][3:] == ["late"] * 9


def test_a_machine_below_a_frame_a_second_is_not_advised_to_show_one_a_second():
    events = Steered().render(12, seconds=80.0)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert "makes 0.412 frames a second" in notice.message
    assert notice.message.endswith("; a smaller --size or fewer --steps would help")


@pytest.mark.parametrize("ahead", [3.0, None])
def test_a_machine_that_keeps_up_says_nothing_and_stays_no_further_ahead(ahead):
    steered = Steered(ahead)
    events = steered.render(40, seconds=0.5)
    assert not [event for event in events if isinstance(event, Notice)]
    playing = [event for event in events if isinstance(event, Playback)]
    assert {event.state for event in playing} == {"playing"}
    most = max(event.in_front for event in playing)
    assert most <= 3.0 if ahead else most > 30


@pytest.mark.slow
def test_a_pause_is_an_event_and_ends_with_the_last_door():
    """The waiting itself is real here: it ends because nobody is left who could end the pause."""
    steered = Steered()
    steered.head.pause()
    decided = iter(steered.script.decide(0))
    (taken,) = [next(decided)]
    assert (taken.state, taken.position) == ("paused", 0.0)
    steered.lines.are_open = False
    steered.head.never_pause()
    assert [type(event) for event in decided] == [PromptTaken, Playback]


def test_a_prompt_says_how_long_it_took():
    steered = Steered()
    steered.render(6, seconds=0.5)
    steered.lines.at[6] = [Shot(prompt="b", transition="switch")]
    steered.lines.arrive(6)
    steered.lines.position = steered.head.position
    while steered.script.is_early(6):
        steered.seconds += 0.1
    taken = next(event for event in steered.script.decide(6) if isinstance(event, PromptTaken))
    assert taken.delay == round(6 * 33 / 24 - steered.lines.position, 3)
    assert 3.0 < taken.delay <= 3.0 + 33 / 24
