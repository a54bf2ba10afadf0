"""The otio timeline by the shape that OpenTimelineIO documents for its schemas, the edit list by CMX3600's columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helios_cli.errors import InputError
from helios_cli.film.export import check_exports, edl, export, export_path, otio, timecode
from helios_cli.film.jobs import find_jobs
from helios_cli.film.target import Target
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.settings import ModelDefaults, resolve_settings
from helios_cli.recipe.sources import read_films
from helios_cli.recipe.values import parse_forms

RECIPE = """
[[shot]]
prompt = "A red circle moves left over a blue background, slowly and for so long that a comment does not hold it all."
seconds = 2
[[shot]]
prompt = "Łódź"
seconds = 1.5
transition = "cut"
seed = 9
[[shot]]
prompt = "A green square."
seconds = 3
"""

COMPOSABLE = {"OTIO_SCHEMA", "name", "metadata", "source_range", "effects", "markers"}
SCHEMAS = {
    "Timeline.1": {"OTIO_SCHEMA", "name", "metadata", "global_start_time", "tracks"},
    "Stack.1": {*COMPOSABLE, "children"},
    "Track.1": {*COMPOSABLE, "children", "kind"},
    "Clip.1": {*COMPOSABLE, "media_reference"},
    "Marker.2": {"OTIO_SCHEMA", "name", "metadata", "color", "marked_range"},
    "ExternalReference.1": {"OTIO_SCHEMA", "name", "metadata", "available_range", "target_url"},
    "ImageSequenceReference.1": {
        *("OTIO_SCHEMA", "name", "metadata", "available_range", "target_url_base", "name_prefix", "name_suffix"),
        *("start_frame", "frame_step", "rate", "frame_zero_padding", "missing_frame_policy"),
    },
    "TimeRange.1": {"OTIO_SCHEMA", "start_time", "duration"},
    "RationalTime.1": {"OTIO_SCHEMA", "value", "rate"},
}
"""Fields of the file format's schemas, from OpenTimelineIO's serialized-schema reference."""


def plan(folder: Path, recipe: str = RECIPE, **flags) -> Plan:
    path = folder / "boat.toml"
    path.write_text(recipe)
    film = read_films([str(path)])[0]
    return plan_film(
        film, resolve_settings(film.recipe, RenderOptions(**flags), ModelDefaults((64, 64), (1, 1, 1), 1.0))
    )


def objects(node):
    if isinstance(node, dict):
        if "OTIO_SCHEMA" in node:
            yield node
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from objects(child)


@pytest.mark.parametrize("name", ["boat.mp4", "a boat.mkv", "frames/"])
def test_every_object_has_the_fields_of_its_schema(tmp_path, name):
    timeline = json.loads(otio(Target.of(f"{tmp_path}/{name}"), plan(tmp_path)))
    found = list(objects(timeline))
    assert timeline["OTIO_SCHEMA"] == "Timeline.1"
    assert [set(node) for node in found] == [SCHEMAS[node["OTIO_SCHEMA"]] for node in found]


def test_clips_are_the_shots_and_markers_the_seams(tmp_path):
    film = plan(tmp_path)
    timeline = json.loads(otio(Target.of(tmp_path / "a boat.mp4"), film))
    clips = timeline["tracks"]["children"][0]["children"]
    spans = [(clip["source_range"]["start_time"]["value"], clip["source_range"]["duration"]["value"]) for clip in clips]
    assert spans == [(0, 48), (48, 36), (84, 72)]
    assert [clip["metadata"]["helios"]["seed"] for clip in clips] == [42, 9, 9]
    assert clips[1]["metadata"]["helios"]["prompt"] == "Łódź"
    assert {clip["media_reference"]["target_url"] for clip in clips} == {"a%20boat.mp4"}
    marks = [[mark["marked_range"]["start_time"]["value"] for mark in clip["markers"]] for clip in clips]
    assert marks == [[33], [48, 81], [114, 147]]
    assert [start for clip in marks for start in clip] == [chunk.start_frame for chunk in film.chunks[1:]]


def test_events_of_the_edit_list(tmp_path):
    lines = edl(Target.of(tmp_path / "boat.mp4"), plan(tmp_path)).splitlines()
    assert lines[:2] == ["TITLE: boat", "FCM: NON-DROP FRAME"]
    code = r"(\d\d:\d\d:\d\d:\d\d)"
    event = re.compile(rf"(\d{{3}})  (\S{{1,8}}) +V     C        {code} {code} {code} {code}")
    events = [found.groups() for found in map(event.fullmatch, lines) if found]
    assert [(number, begin, end) for number, _, begin, end, _, _ in events] == [
        ("001", "00:00:00:00", "00:00:02:00"),
        ("002", "00:00:02:00", "00:00:03:12"),
        ("003", "00:00:03:12", "00:00:06:12"),
    ]
    assert all((begin, end) == tuple(record) for _, _, begin, end, *record in events)
    comments = [line for line in lines if line.startswith("* COMMENT: ")]
    assert "* COMMENT: Łódź" in comments
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(line.removeprefix("* COMMENT: ") for line in comments[:2]) == plan(tmp_path).shots[0].prompt


@pytest.mark.parametrize(
    ("frame", "base", "shown"),
    [(0, 24, "00:00:00:00"), (23, 24, "00:00:00:23"), (86399, 24, "00:59:59:23"), (90000, 25, "01:00:00:00")],
)
def test_timecode(frame, base, shown):
    assert timecode(frame, base) == shown


def test_a_fractional_rate_is_nominal_and_said_so(tmp_path):
    target = Target.of(tmp_path / "boat.mp4")
    notices = export(target, plan(tmp_path, fps=23.976), ("otio", "edl"))
    assert len(notices) == 1 and "23.976" in notices[0]
    timeline = json.loads((tmp_path / "boat.otio").read_text())
    rates = {node["rate"] for node in objects(timeline) if node["OTIO_SCHEMA"] == "RationalTime.1"}
    assert rates == {24000 / 1001}
    assert export(target, plan(tmp_path), ("otio", "edl")) == []


def test_what_cannot_be_exported_is_found_before(tmp_path):
    target = Target.of(tmp_path / "boat.mp4")
    with pytest.raises(InputError, match="'xml'"):
        parse_forms("otio,xml")
    with pytest.raises(InputError, match="999"):
        check_exports(target, ("edl",), 1000, 24, force=True)
    check_exports(target, ("otio",), 1000, 120, force=False)
    export_path(target, "edl").write_text("mine")
    with pytest.raises(InputError, match="edl exists"):
        check_exports(target, ("edl",), 1, 24, force=False)
    check_exports(target, ("edl",), 1, 24, force=True)


@pytest.mark.parametrize(
    "rates",
    [{"fps": 120.0}, {"fps": 119.88}, {"filter": "fps=120"}, {"through": "cat", "through_fps": 120.0}],
    ids=str,
)
def test_timecode_with_three_digits_of_frames_is_refused_before_the_render(tmp_path, monkeypatch, rates):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"at most 100 frames per second.*would have 1[12]"):
        find_jobs(["a red circle"], RenderOptions(export=("edl",), model="tiny", **rates))


@pytest.mark.parametrize("rates", [{"fps": 100.0}, {"fps": 120.0, "filter": "fps=30"}], ids=str)
def test_timecode_with_two_digits_of_frames_is_exported(tmp_path, monkeypatch, rates):
    monkeypatch.chdir(tmp_path)
    find_jobs(["a red circle"], RenderOptions(export=("edl",), model="tiny", **rates))
    assert timecode(99, 100) == "00:00:00:99"
