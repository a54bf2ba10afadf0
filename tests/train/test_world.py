"""The toy world: what is drawn stays in view and does what its caption says, and captions are words the model knows."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from helios_cli.bench.specs import SPECIAL, WORDS, word_tokenizer
from helios_cli.train.world.captions import MAX_TOKENS, Attributes, attributes, caption, describe, labels
from helios_cli.train.world.draw import FADE, backdrop_picture, distance, render
from helios_cli.train.world.palette import (
    BACKGROUNDS,
    COLOURS,
    COMBINATIONS,
    MOTIONS,
    SCENES,
    SHAPES,
    SPLITS,
    stands_out,
)
from helios_cli.train.world.prompts import prompts
from helios_cli.train.world.scene import Backdrop, Scene, Segment, Thing, Trajectory, draw_scene
from helios_cli.units import FRAMES_PER_CHUNK
from support.tiers import some

LONG = 24 * 60 * 30  # half an hour


@functools.cache
def scenes(count: int, **kinds) -> list[Scene]:
    return [draw_scene(seed, split="train" if seed % 2 else "held_out", **kinds) for seed in range(count)]


def centres(scene: Scene, frames: int, start: int = 0) -> np.ndarray:
    """Where the object is in the picture: the middle of the pixels that are not the background's."""
    film = render(scene, frames, start).astype(np.int16)
    height, width = film.shape[1:3]
    behind = np.rint(backdrop_picture(scene.backdrop, width, height)).astype(np.int16)
    away = np.abs(film - behind).sum(axis=-1) > 1
    count = away.sum(axis=(1, 2))
    x, y = away.sum(axis=1) @ np.arange(width), away.sum(axis=2) @ np.arange(height)
    return np.stack([x, y], axis=-1) / count[:, None]


@pytest.mark.slow
def test_objects_stay_in_view():
    """The outermost pixels are the background's, at the start and after half an hour."""
    for scene in scenes(40):
        behind = np.rint(backdrop_picture(scene.backdrop, 128, 64)).astype(np.uint8)
        for start in (0, LONG):
            film = render(scene, 150, start)
            for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
                assert (film[edge] == behind[edge[1:]]).all()


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_first_chunk_does_what_the_caption_says(motion):
    """By pixels: directions hold from the first frame to the last, and are far enough to be seen."""
    seen = [scene for scene in scenes(160) if scene.thing.motion == motion]
    assert len(seen) >= 8
    for scene in seen:
        path = centres(scene, FRAMES_PER_CHUNK)
        x, y = (path[-1] - path[0]).tolist()
        steps = np.diff(path, axis=0)
        if motion in ("left", "right"):
            assert (
                abs(y) < 0.5
                and (40 if motion == "right" else -40) / x <= 1
                and x * (1 if motion == "right" else -1) >= 40
            )
            assert (steps[:, 0] * x > -1e-9).all()
        elif motion in ("up", "down"):
            assert abs(x) < 0.5 and y * (1 if motion == "down" else -1) >= 15
            assert (steps[:, 1] * y > -1e-9).all()
        elif motion == "still":
            assert np.ptp(path, axis=0).max() < 1e-9
        elif motion == "bouncing":
            assert np.ptp(path[:, 0]) < 0.5 and np.ptp(path[:, 1]) > 14
        else:
            assert np.ptp(path, axis=0).min() > 14


@pytest.mark.slow
@pytest.mark.parametrize("variety", ["plain", "rich"])
def test_a_film_is_seamless(variety):
    """Any part of it is that part of the whole."""
    for seed in range(16):
        scene = draw_scene(seed, variety=variety, changes=(33,))
        whole = render(scene, 80)
        np.testing.assert_array_equal(render(scene, 30, 25), whole[25:55])


@pytest.mark.slow
def test_objects_move_a_little_at_a_time():
    """No jump anywhere, across caption changes either: what bounces is fastest, at 8 pixels a frame."""
    for scene in scenes(50, changes=(33, 66)):
        shown = replace(scene, segments=tuple(replace(one, backdrop=scene.backdrop) for one in scene.segments))
        steps = np.linalg.norm(np.diff(centres(shown, 100), axis=0), axis=1)
        assert steps.max() < 8.5, (scene.seed, steps.argmax())


def test_shapes_have_like_areas_and_smooth_edges():
    """An object's area is the same wherever it is between two pixels, to a hundredth."""
    areas = {}
    for shape in SHAPES:
        sizes = []
        for shift in np.linspace(0, 1, 7):
            trajectory = Trajectory("still", (64 + shift, 32 + shift / 3))
            thing = Thing("white", shape, (255.0, 255.0, 255.0), 12.0, trajectory)
            film = render(Scene(0, (Segment(0, Backdrop("plain", "black"), (thing,)),)), 1)
            sizes.append((film[0, :, :, 1] / 255).sum())
        assert np.ptp(sizes) < 0.012 * np.mean(sizes), shape
        areas[shape] = np.mean(sizes)
    assert max(areas.values()) < 1.6 * min(areas.values()), areas


def test_distance_is_to_the_outline():
    """Against the nearest of many points on the other side, near the outline and away from corners."""
    axis = np.linspace(-1.6, 1.6, 321)
    x, y = np.meshgrid(axis, axis)
    for shape in SHAPES:
        field = distance(shape, x, y)
        inside = np.stack([x[field < 0], y[field < 0]], axis=-1)
        outside = np.stack([x[field >= 0], y[field >= 0]], axis=-1)
        dice = np.random.default_rng(0)
        off = []
        for _ in range(60):
            row, column = dice.integers(321, size=2)
            if 0.02 < abs(field[row, column]) < 0.15:
                others = outside if field[row, column] < 0 else inside
                nearest = np.hypot(others[:, 0] - axis[column], others[:, 1] - axis[row]).min()
                off.append(nearest - abs(field[row, column]))
        assert np.median(np.abs(off)) < 0.01, shape


def test_colours_stand_out():
    """Wherever the object may be, its colour is at least 90 levels from what is behind it."""
    for seed in range(300):
        scene = draw_scene(seed)
        behind = backdrop_picture(scene.backdrop, 128, 64)
        away = np.linalg.norm(behind - np.array(scene.thing.rgb), axis=-1)
        assert np.percentile(away, 5) > 90, (scene.thing.colour, scene.backdrop)


def test_every_name_occurs():
    counted = {name: Counter() for name in ("background", "colour", "shape", "motion")}
    for scene in (draw_scene(seed) for seed in range(2000)):
        for name, counter in counted.items():
            counter[getattr(labels(scene.segments[0]), name)] += 1
    for name, known in (("background", BACKGROUNDS), ("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS)):
        assert set(counted[name]) == set(known)
    plain = sum(counted["background"][name] for name in COLOURS)
    assert 0.8 < plain / 2000 < 0.92  # 76 % plain, 8 % gradients of a colour
    assert min(counted["background"][name] for name in SCENES) > 40


def test_training_never_sees_what_is_held_out():
    train, held_out = (set(SPLITS[split]) for split in ("train", "held_out"))
    assert train | held_out == set(COMBINATIONS) and not train & held_out
    assert 0.12 < len(held_out) / len(COMBINATIONS) < 0.18
    for places in combinations(range(3), 2):
        pairs = {tuple(one[place] for place in places) for one in COMBINATIONS}
        seen = Counter(tuple(one[place] for place in places) for one in train)
        assert set(seen) == pairs and min(seen.values()) >= 2
    for split, variety in (("train", "plain"), ("train", "rich"), ("held_out", "plain"), ("held_out", "rich")):
        for seed in range(120):
            for segment in draw_scene(seed, split=split, variety=variety, changes=(33, 66)).segments:
                for thing in segment.things:
                    assert (thing.colour, thing.shape, thing.motion) in SPLITS[split]


@pytest.mark.train
def test_a_second_object_is_seen_as_long_as_the_film_lasts():
    """The pixels of the second object are those of a film without the first one, through changes too; it stands
    out, and is reported."""
    scenes_of_two = [scene for scene in scenes(30, variety="rich", changes=(33,)) if len(scene.things) == 2]
    assert len(scenes_of_two) > 5
    for scene in scenes_of_two:
        for segment in scene.segments:
            first, second = segment.things
            assert first.colour != second.colour and stands_out(second.colour, segment.backdrop.name)
            at_rest = replace(segment, start=0, camera=None, nightfall=None)
            both = render(Scene(0, (at_rest,)), 140)
            (alone,) = render(Scene(0, (replace(at_rest, things=(second,)),)), 1)
            own = np.abs(alone - np.rint(backdrop_picture(segment.backdrop, 128, 64))).sum(axis=-1) > 60
            assert own.sum() > 60 and (both[:, own] == alone[own]).all()


def test_what_night_falls_on_can_be_seen_at_night():
    """Through changes, which leave hills, sea and a bright colour where they are."""
    falling = [scene for scene in scenes(300, variety="rich", changes=(33, 66, 99)) if scene.segments[0].nightfall]
    assert len(falling) > 5
    for scene in falling:
        for segment in scene.segments:
            assert segment.backdrop == scene.backdrop and segment.backdrop.kind in ("hills", "sea")
            assert segment.things[0].colour in SCENES["night"]


@pytest.mark.slow
def test_captions_are_known_words_and_say_what_is_seen():
    tokenizer = word_tokenizer()
    spelt = {token for piece, token in tokenizer.get_vocab().items() if piece not in WORDS and piece not in SPECIAL}
    spelt.discard(tokenizer.token_to_id(","))
    captions = set()
    for seed in range(700):
        variety = "rich" if seed % 3 == 0 else "plain"
        for segment in draw_scene(seed, variety=variety, changes=(33,)).segments:
            text = describe(segment, seed)
            ids = tokenizer.encode(text).ids
            assert len(ids) <= MAX_TOKENS and not spelt & set(ids), text
            assert attributes(text) == labels(segment), text
            captions.add(text)
    assert len(captions) > 1300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a red circle moves left over a blue background", Attributes("blue", "red", "circle", "left")),
        ("a red ball rolls left over green hills", Attributes("hills", "red", "circle", "left")),
        ("Blue background, a small yellow star jumps up and down", Attributes("blue", "yellow", "star", "bouncing")),
        ("a white box circles around above the sea", Attributes("sea", "white", "square", "circling")),
        ("an orange triangle sinks, with a red ball", Attributes(None, "orange", "triangle", "down")),
        ("a black disc is not moving on plain white", Attributes("white", "black", "circle", "still")),
        ("a ship at sea", Attributes("sea", None, None, None)),
    ],
)
def test_sentences_by_hand(text, said):
    assert attributes(text) == said


def test_a_seed_is_a_scene():
    assert draw_scene(7) == draw_scene(7) != draw_scene(8)
    assert draw_scene(7, changes=(33,)).segments[0] == draw_scene(7).segments[0]
    assert caption(draw_scene(7), 1) == caption(draw_scene(7), 1)
    assert len({caption(draw_scene(7), seed) for seed in range(30)}) > 15


@pytest.mark.parametrize("count", some(1, [8, 30]))
def test_a_change_is_complete_after_its_fade(count):
    """From then on the film is that of the new segment alone; up to it, that of the old one."""
    for seed in range(count):
        scene = draw_scene(seed, changes=(33,))
        old, new = (Scene(seed, (segment,)) for segment in scene.segments)
        film = render(scene, 33 + FADE + 5)
        np.testing.assert_array_equal(film[:34], render(old, 34))
        np.testing.assert_array_equal(film[33 + FADE :], render(new, 5, 33 + FADE))
        assert old.segments[0] != replace(new.segments[0], start=0)


def test_prompts_are_balanced():
    made = prompts(64, seed=3)
    assert made == prompts(64, seed=3) != prompts(64, seed=4)
    assert [prompt.unseen for prompt in made] == [True, False] * 32
    for prompt in made:
        said = prompt.expected
        assert ((said.colour, said.shape, said.motion) in SPLITS["held_out"]) == prompt.unseen
        assert attributes(prompt.caption) == said
    motions = Counter(prompt.expected.motion for prompt in made)
    assert len(motions) == 7 and max(motions.values()) <= 2 * min(motions.values())
    assert len({prompt.caption for prompt in made}) == 64


def test_other_sizes_show_the_same():
    """A film of twice the size, reduced, is the film."""
    for seed in range(20):
        scene = draw_scene(seed)
        large = render(scene, 3, 10, width=256, height=128).astype(float)
        reduced = large.reshape(3, 64, 2, 128, 2, 3).mean(axis=(2, 4))
        assert np.abs(reduced - render(scene, 3, 10)).mean() < 1.5
