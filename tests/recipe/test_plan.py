import json
import math
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from helios_cli.recipe.fingerprint import Arithmetic, Fingerprints, chunk_fingerprints
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, check_film, plan_film, segments
from helios_cli.recipe.problems import RecipeError
from helios_cli.recipe.settings import resolve_settings
from helios_cli.units import FRAMES_PER_CHUNK
from support.recipes import GREEN, MODEL, RED, film_of, plan_of, recipe_keys, timed_keys


def shot(prompt=RED, **keys):
    return {"prompt": prompt, **keys}


def frames_of(plan) -> list[int]:
    return [s.num_frames for s in plan.shots]


@given(recipe_keys(pictures=False), st.integers(1, 2000) | st.none())
def test_chunks_tile_the_film(keys, frames):
    try:
        plan = plan_of(keys, frames=frames)
    except RecipeError:
        return
    assert sum(chunk.num_frames for chunk in plan.chunks) == plan.num_frames
    assert frames is None or plan.num_frames == frames
    ends = [chunk.start_frame + chunk.num_frames for chunk in plan.chunks]
    assert [chunk.start_frame for chunk in plan.chunks] == [0, *ends[:-1]]
    assert [chunk.index for chunk in plan.chunks] == list(range(len(plan.chunks)))
    cuts = [s.start_frame for s in plan.shots if s.transition == "cut" and s.start_frame < plan.num_frames]
    assert [chunk.start_frame for chunk in plan.chunks if chunk.fresh] == cuts
    for chunk, after in zip(plan.chunks, [*plan.chunks[1:], None], strict=True):
        assert 1 <= chunk.num_frames <= FRAMES_PER_CHUNK
        assert chunk.num_frames == FRAMES_PER_CHUNK or after is None or after.fresh
        assert (chunk.seed is not None) == chunk.fresh
        assert math.isclose(sum(weight for _, weight in chunk.prompts), 1) and len(chunk.prompts) <= 2
        assert all(0 < weight <= 1 for _, weight in chunk.prompts)
        assert plan.shots[chunk.shot].prompt == chunk.prompts[-1][0]
    assert [chunk.shot for chunk in plan.chunks] == sorted(chunk.shot for chunk in plan.chunks)


@given(timed_keys(), st.integers(1, 5000))
def test_a_shorter_film_is_the_start_of_the_longer_one(keys, frames):
    """A chunk depends on nothing after it."""
    long = plan_of(keys)
    short = plan_of(keys, frames=min(frames, long.num_frames))
    assert short.chunks[:-1] == long.chunks[: len(short.chunks) - 1]
    last, twin = short.chunks[-1], long.chunks[len(short.chunks) - 1]
    assert (last.prompts, last.shot, last.seed) == (twin.prompts, twin.shot, twin.seed)
    assert last.num_frames <= twin.num_frames


@given(timed_keys(), timed_keys())
def test_what_stands_behind_a_cut_depends_on_nothing_before_it(first, second):
    """Only the film's last chunk may be trimmed differently, or left out, where its end is rounded to another frame."""
    opening, *rest = second["shot"]
    opening = {"prompt": opening["prompt"], "seconds": opening["seconds"], "transition": "cut"}
    rest = [keys | {"transition": "switch"} if keys.get("transition") == "cut" else keys for keys in rest]
    alone = plan_of({"shot": [opening, *rest]})
    whole = plan_of({"shot": [*first["shot"], opening, *rest]})
    tail_shots = whole.shots[len(first["shot"]) :]
    offset = tail_shots[0].start_frame
    assert [s.start_frame - offset for s in tail_shots] == [s.start_frame for s in alone.shots]
    tail = [chunk for chunk in whole.chunks if chunk.start_frame >= offset]
    common = min(len(tail), len(alone.chunks))
    assert abs(len(tail) - len(alone.chunks)) <= 1 and abs(whole.num_frames - offset - alone.num_frames) <= 1
    for a, b in zip(tail[:common], alone.chunks[:common], strict=True):
        assert (a.prompts, a.seed, a.start_frame - offset) == (b.prompts, b.seed, b.start_frame)


@pytest.mark.parametrize(
    ("frames", "chunks"), [(1, [1]), (33, [33]), (34, [33, 1]), (66, [33, 33]), (240, [33] * 7 + [9])]
)
def test_the_film_has_the_frames_that_were_asked_for(frames, chunks):
    plan = plan_of({"shot": [shot()]}, frames=frames)
    assert [chunk.num_frames for chunk in plan.chunks] == chunks


def test_a_film_without_any_length_has_a_chunk_a_shot():
    plan = plan_of({"shot": [shot(), shot(transition="switch")]})
    assert plan.num_frames == 66 and not plan.roundings
    assert plan.origins["num_frames"] == "default"


def test_shots_without_a_length_share_what_is_left():
    keys = {"seconds": 10, "shot": [shot(), shot(seconds=2.5), shot(), shot(GREEN)]}
    assert frames_of(plan_of(keys)) == [60, 60, 60, 60]
    assert frames_of(plan_of(keys, frames=242)) == [61, 60, 61, 60]
    assert frames_of(plan_of(keys, frames=63)) == [1, 60, 1, 1]
    with pytest.raises(RecipeError, match="leaves nothing for the 3 shots"):
        plan_of(keys | {"seconds": 62 / 24})


def test_a_flag_that_leaves_nothing_to_share_stops_the_film():
    keys = {"seconds": 10, "shot": [shot(), shot(seconds=2.5), shot(), shot(GREEN)]}
    plan = plan_of(keys, frames=62)
    assert frames_of(plan) == [33, 29] and plan.chunks == plan_of(keys | {"seconds": 159 / 24}, frames=62).chunks
    (notice,) = plan_of(keys, frames=30).notices  # and nothing of blends in shots that are not there
    assert notice.endswith("of 159 frames (6.625 s), in shot 1; 3 shots after it are left out")


def test_ends_are_rounded_and_not_lengths():
    plan = plan_of({"shot": [shot(seconds=0.77) for _ in range(20)]})
    assert plan.num_frames == round(20 * 0.77 * 24)
    assert [s.start_frame for s in plan.shots] == [round(i * 0.77 * 24) for i in range(20)]


def test_a_recipe_that_is_shorter_than_its_shots_contradicts_itself():
    with pytest.raises(RecipeError, match=r"240 frames \(10 s\).*288 frames \(12 s\)") as raised:
        plan_of({"seconds": 10, "shot": [shot(seconds=12)]})
    assert "seconds = 12" in raised.value.hint


def test_a_flag_stops_the_film_or_lets_the_last_shot_go_on():
    keys = {"seconds": 6, "shot": [shot(seconds=2), shot(GREEN, seconds=2), shot(seconds=2)]}
    short, long = plan_of(keys, seconds=1.5), plan_of(keys, seconds=10)
    assert check_film(film_of(keys | {"seconds": 1}), RenderOptions(seconds=1.5)).num_frames == 36
    assert short.num_frames == 36 and "2 shots after it are left out" in short.notices[0]
    assert frames_of(long) == [48, 48, 144] and "continues to the end" in long.notices[0]


def test_a_cut_falls_on_its_frame():
    plan = plan_of({"shot": [shot(seconds=2), shot(GREEN, seconds=2, transition="cut", seed=9)]})
    assert [(c.start_frame, c.num_frames, c.fresh, c.seed) for c in plan.chunks] == [
        (0, 33, True, 42),
        (33, 15, False, None),
        (48, 33, True, 9),
        (81, 15, False, None),
    ]
    assert not plan.roundings


def test_a_switch_falls_on_the_nearest_chunk():
    for start, actual in ((49, 33), (50, 66), (33, 33), (82, 66)):
        plan = plan_of({"frames": 165, "shot": [shot(seconds=start / 24), shot(GREEN, transition="switch")]})
        assert next(c.start_frame for c in plan.chunks if c.prompts == ((GREEN, 1.0),)) == actual
        assert [(r.shot, r.asked_frame, r.actual_frame) for r in plan.roundings] == (
            [] if start == actual else [(1, start, actual)]
        )


def test_a_blend_goes_over_from_prompt_to_prompt():
    plan = plan_of({"shot": [shot(seconds=66 / 24), shot(GREEN, seconds=132 / 24, blend_seconds=99 / 24)]})
    weights = [dict(chunk.prompts).get(GREEN, 0) for chunk in plan.chunks]
    assert weights == pytest.approx([0, 0, 1 / 6, 3 / 6, 5 / 6, 1])
    assert plan.chunks[2].prompts[0] == (RED, pytest.approx(5 / 6))


def test_a_blend_is_no_longer_than_its_shot():
    keys = {"shot": [shot(seconds=3), shot(GREEN, seconds=2, blend_seconds=3), shot(seconds=6)]}
    plan = plan_of(keys)
    assert plan.shots[1].blend_frames == 48
    assert "blend takes 2 s, not 3 s" in plan.notices[0]
    with pytest.raises(RecipeError, match="shot 2, `blend_seconds`"):
        plan_of(keys, strict=True)


def test_a_blend_that_nobody_wrote_is_no_error():
    keys = {"shot": [shot(seconds=3), shot(GREEN, seconds=2)]}
    assert "blend of 4 s" in plan_of(keys, strict=True).notices[0]


def test_equal_prompts_are_not_mixed():
    assert all(len(chunk.prompts) == 1 for chunk in plan_of({"shot": [shot(), shot(f" {RED}\n")]}).chunks)


def test_a_shot_that_no_chunk_shows_is_named():
    keys = {
        "frames": 99,
        "shot": [shot(seconds=1), shot(GREEN, seconds=0.25, transition="switch"), shot(transition="switch")],
    }
    assert "shot 2: no chunk has its middle" in plan_of(keys).notices[0]
    with pytest.raises(RecipeError, match="never used"):
        plan_of(keys, strict=True)


def test_the_style_is_on_every_prompt():
    plan = plan_of({"style": "flat  colours", "shot": [shot(), shot(GREEN, seconds=9, transition="cut")]})
    assert {text for c in plan.chunks for text, _ in c.prompts} == {f"{RED}, flat colours", f"{GREEN}, flat colours"}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"shot": [shot(seconds=0.001)]}, "less than a frame"),
        ({"shot": [shot(seconds="20h"), shot(seconds="20h")]}, "the limit is 24 hours"),
    ],
)
def test_films_that_cannot_be(keys, says):
    with pytest.raises(RecipeError, match=says):
        plan_of(keys)


def test_pictures_are_absolute_and_must_exist(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "sea.png")
    for name in ("clip.mp4", "sea.mp3"):
        (tmp_path / name).write_text("what is in it")
    film = film_of({"shot": [shot(image="se.png"), shot(image="./sea.png", transition="cut")]}, tmp_path)
    with pytest.raises(RecipeError, match="no such file") as raised:
        check_film(film)
    assert [(p.shot, p.key, p.suggestion) for p in raised.value.problems] == [(1, "image", "did you mean sea.png?")]
    assert film.picture("./sea.png") == tmp_path / "sea.png"
    assert film.picture("-i.png") == tmp_path / "-i.png"
    for keys, says in (
        ({"image": "clip.mp4"}, "write `video`"),
        ({"video": "sea.png"}, "write `image`"),
        ({"image": "sea.mp3"}, "save it as .png"),
    ):
        with pytest.raises(RecipeError) as raised:
            check_film(film_of({"shot": [shot(**keys)]}, tmp_path))
        assert says in raised.value.hint


def test_pictures_must_be_readable_to_their_end(tmp_path):
    picture = tmp_path / "sea.png"
    film = film_of({"shot": [shot(), shot(image="sea.png", transition="cut")]}, tmp_path)
    picture.write_text("not a picture")
    with pytest.raises(RecipeError, match=r"shot 2, `image`: .*sea\.png is not a picture that can be read") as raised:
        check_film(film)
    assert raised.value.hint == "save it as .png or .jpg"
    Image.effect_noise((64, 64), 60).save(picture)
    check_film(film)
    picture.write_bytes(picture.read_bytes()[:-100])
    with pytest.raises(RecipeError, match="cannot read the picture"):
        check_film(film)


def test_a_picture_on_the_command_line_takes_the_recipes_place(tmp_path):
    picture = tmp_path / "other.png"
    keys = {"shot": [shot(image="missing.png"), shot(transition="cut")]}
    with pytest.raises(RecipeError, match="--image") as raised:
        plan_of(keys, image=picture)
    assert raised.value.hint == "paths are relative to the current folder"
    Image.new("RGB", (8, 8)).save(picture)
    check_film(film_of(keys), RenderOptions(image=picture))
    plan = plan_of(keys, image=picture)
    assert [c.image for c in plan.chunks] == [picture, None] and plan.origins["image"] == "flag"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with the pictures that random recipes name, each with a colour of its own."""
    folder = tmp_path_factory.mktemp("pictures") / "films"
    for number, name in enumerate(("sea.png", "../sea.jpg", "a b/ü.webp")):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(path)
    return folder


@st.composite
def illustrated_plans(draw, folder: Path) -> Plan | None:
    """Plans of random recipes, with cuts, blends and pictures; None where the recipe contradicts itself."""
    film = film_of(draw(recipe_keys()), folder)
    try:
        return plan_film(
            film, resolve_settings(film.recipe, RenderOptions(frames=draw(st.integers(1, 2000) | st.none())), MODEL)
        )
    except RecipeError:
        return None


@given(st.data(), st.booleans())
def test_a_segment_alone_is_what_it_is_in_its_film(pictures, data, reanchor):
    plan = data.draw(illustrated_plans(pictures))
    if plan is None:
        return
    arithmetic = Arithmetic("CPU, 1 thread", "float32", "2.13.0")
    parts = segments(plan)
    alone = [Fingerprints("weights", arithmetic, reanchor=reanchor).of(part.plan) for part in parts]
    assert [*chain.from_iterable(alone)] == chunk_fingerprints(plan, "weights", arithmetic, reanchor=reanchor)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert [part.first_chunk for part in parts] == [chunk.index for chunk in plan.chunks if chunk.fresh]
    begins = accumulate((part.plan.num_frames for part in parts), initial=0)
    for part, begin in zip(parts, begins, strict=False):
        length = len(part.plan.chunks)
        whole = plan.chunks[part.first_chunk : part.first_chunk + length]
        assert whole == tuple(
            replace(chunk, index=chunk.index + part.first_chunk, start_frame=chunk.start_frame + begin)
            for chunk in part.plan.chunks
        )
        assert part.plan.title == plan.title and part.plan.num_frames == sum(c.num_frames for c in part.plan.chunks)
        assert {chunk.shot for chunk in part.plan.chunks} <= {shot.index for shot in part.plan.shots}
    assert [(shot.index, shot.prompt) for part in parts for shot in part.plan.shots] == [
        (shot.index, shot.prompt) for shot in plan.shots
    ]


@given(st.data(), st.floats(0, 100, allow_nan=False))
def test_plans_survive_json(pictures, data, guidance):
    """To the last bit, and with it their fingerprints."""
    plan = data.draw(illustrated_plans(pictures))
    if plan is None:
        return
    plan, adapter = replace(plan, guidance=guidance), TypeAdapter(Plan)
    for part in [plan, *(segment.plan for segment in segments(plan))]:
        written = json.dumps(adapter.dump_python(part, mode="json"))
        for again in (adapter.validate_json(adapter.dump_json(part)), adapter.validate_python(json.loads(written))):
            assert again == part and repr(again) == repr(part)


def test_plans_with_any_file_name_survive_json():
    """Bytes that are not UTF-8 are lone surrogates in a name, which pydantic's own JSON refuses."""
    plan = plan_of({"shot": [shot()]})
    plan = replace(plan, title="film \udcff", chunks=(replace(plan.chunks[0], image=Path("/films/\udcff.png")),))
    adapter = TypeAdapter(Plan)
    assert adapter.validate_python(json.loads(json.dumps(adapter.dump_python(plan, mode="json")))) == plan


def test_ten_thousand_shots_are_planned_at_once():
    plan = plan_of({"shot": [shot(f"shape {i}", seconds=8) for i in range(10_000)]})
    assert plan.num_frames == 10_000 * 192 and len(plan.chunks) == math.ceil(10_000 * 192 / 33)
    assert Path(plan.title) == Path("film")
