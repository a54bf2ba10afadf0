"""The HTML page: one file, whole, with nothing in it from elsewhere."""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from helios_cli.check import plot
from helios_cli.check.examine import examine
from helios_cli.check.footage import Frame
from helios_cli.check.html import check_report_path, write
from helios_cli.check.layout import grid
from helios_cli.check.limits import LIMITS
from helios_cli.check.measure import MAX_THUMBNAILS, measure
from helios_cli.check.page import PLOTS, page
from helios_cli.check.report import Report
from helios_cli.errors import InputError
from support.clips import CHUNK, SIZE, film, pan, scene
from support.users import as_user, needs_users

VOID = {"meta", "img", "br", "line", "circle", "path"}


class Page(HTMLParser):
    """Every tag with its attributes, and the text; asserts that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    """Six chunks, the third black, and so with findings."""
    frames = pan(scene(), 6 * CHUNK)
    frames[2 * CHUNK : 3 * CHUNK] = 0
    return examine(film(tmp_path_factory.mktemp("film") / "film.mp4", frames))


def test_the_page_is_whole_and_alone(report):
    text = page(report)
    parsed = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        assert not {"href", "srcset", "xlink:href"} & set(attributes)
        assert attributes.get("src", "data:").startswith("data:")


def test_the_page_says_what_the_report_says(report):
    said = " ".join(Page(page(report)).texts)
    for finding in report.findings:
        assert finding.kind in said and finding.message in said
    assert f"{len(report.findings)} findings" in said
    for limit in LIMITS.values():
        assert limit.means in said and limit.why in said


def test_the_contact_sheet_shows_the_chunks(report):
    images = Page(page(report)).of("img")
    assert [image["alt"].split(",")[0] for image in images] == [f"chunk {number}" for number in range(1, 7)]
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in images]
    assert {picture.size for picture in pictures} == {SIZE}
    means = [np.asarray(picture).mean() for picture in pictures]
    assert means[2] < 1 and min(means[:2] + means[3:]) > 80


def test_black_is_marked_in_the_plot_of_brightness(report):
    text = page(report)
    brightness = next(part for part in text.split("<figure") if "<b>Brightness</b>" in part)
    (mark,) = re.findall(r'<circle class="mark" cx="([\d.]+)" cy="([\d.]+)"', brightness)
    middle = plot.LEFT + (plot.WIDTH - plot.LEFT - plot.RIGHT) * 2.5 / 6
    assert float(mark[0]) == pytest.approx(middle, abs=0.1)
    assert float(mark[1]) == pytest.approx(plot.HEIGHT - plot.BOTTOM, abs=0.1)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>.mp4", "\"&'.mp4", os.fsdecode(b"\xff\x00.mp4")])
def test_names_are_text(report, tmp_path, name):
    write(page(replace(report, film=name, notices=(name,))), tmp_path / "report.html")
    parsed = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not parsed.of("script")
    assert os.fsencode(name).decode(errors="replace") in parsed.texts


def test_a_report_of_one_frame(tmp_path):
    parsed = Page(page(examine(film(tmp_path / "film.mp4", pan(scene(), 1)))))
    assert len(parsed.of("svg")) == len(PLOTS) and "nothing found" in parsed.texts
    assert any("1 frame, " in text and ", 1 chunk. " in text for text in parsed.texts)


@pytest.mark.parametrize("count", [1, 2, 7, 450, 451, 10_000])
@pytest.mark.parametrize("scale", [0.001, 1, 255, 1e6])
def test_plots_stay_inside_their_frame_and_small(count, scale):
    generator = np.random.default_rng(count)
    values = [None, *(generator.random(count) * scale).tolist(), None]
    times = np.linspace(0, 90, len(values)).tolist()
    text = plot.svg(plot.Series(times, values, limit=scale / 2), 90, "noise")
    Page(text)
    assert len(text) < 60_000
    for path in re.findall(r' d="M([^"Z]*)', text):
        points = np.array([point.split() for point in path.split("L")], float)
        assert (points >= (plot.LEFT - 0.1, plot.TOP - 0.1)).all()
        assert (points <= (plot.WIDTH - plot.RIGHT + 0.1, plot.HEIGHT - plot.BOTTOM + 0.1)).all()


@pytest.mark.parametrize("seconds", [0.04, 1, 59, 61, 600, 3600, 36_000, 360_000])
def test_times_on_the_axis_are_few_and_apart(seconds):
    text = plot.svg(plot.Series([0, seconds], [1, 2]), seconds, "line")
    places = [float(place) for place in re.findall(r'<text x="([\d.]+)" y="126"', text)]
    assert 1 <= len(places) <= 9 and all(np.diff(places) > 60)


@pytest.mark.parametrize("values", [[1e-5, 1.0], [0.4, 0.5], [-3.0, 2.0], [0.0, 5.0], [2.0, 2.0], [7.0]], ids=str)
def test_an_axis_holds_its_values_between_round_ticks(values):
    series = plot.Series([0, 1], values, from_zero=False, least_range=0, may_be_logarithmic=True)
    axis = plot.Axis(series)
    assert all(-1e-9 <= axis.height(value) <= 1 + 1e-9 for value in (*values, *axis.ticks))
    assert 1 <= len(axis.ticks) <= 8
    assert all(float(f"{tick:.1e}") == pytest.approx(tick) for tick in axis.ticks)


@pytest.mark.parametrize("num_chunks", [1, 48, 49, 500])
def test_thumbnails_are_spread_over_the_film(num_chunks):
    class Grey:
        def frames(self):
            for index in range(2 * num_chunks):
                frame = np.full((4, 4, 3), index // 2 % 256, np.uint8)
                yield Frame(frame, frame[..., 0])

    thumbnails = measure(Grey(), grid(2)).thumbnails
    assert min(num_chunks, MAX_THUMBNAILS // 2) <= len(thumbnails) <= MAX_THUMBNAILS
    places = [thumbnail.chunk for thumbnail in thumbnails]
    assert places[0] == 0 and len(set(np.diff(places))) <= 1 and num_chunks - places[-1] <= num_chunks / 12 + 1
    for thumbnail in thumbnails:
        assert np.asarray(Image.open(io.BytesIO(thumbnail.jpeg))) == pytest.approx(thumbnail.chunk % 256, abs=1)


@pytest.mark.parametrize("name", ["film.mp4", "report", "missing/report.html", "folder.html"])
def test_a_page_is_written_to_an_html_file_only(tmp_path, name):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError) as refused:
        check_report_path(tmp_path / name)
    assert refused.value.hint


@needs_users
def test_a_place_that_may_not_be_written_to_is_refused_before_the_work(shared):
    (shared / "theirs").mkdir(mode=0o755)
    (shared / "theirs.html").touch(0o644)

    def another_user() -> None:
        check_report_path(shared / "mine.html")
        for name in ("theirs/report.html", "theirs.html"):
            with pytest.raises(InputError, match="not writable"):
                check_report_path(shared / name)

    as_user(1001, another_user)
