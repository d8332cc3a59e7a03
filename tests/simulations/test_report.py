"""Tests of the report: self-contained, readable, and true to the results."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from simulations.report import duration, render_report, size, write_report
from simulations.scores import Outcomes, score
from simulations.standings import standings
from simulations.table import MORE_COLUMNS

VOID = {"meta", "br", "img", "rect", "line", "circle", "path", "use"}


class Page(HTMLParser):
    """Elements that must be closed, every attribute, the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(sample_run: Any) -> str:
    return render_report(sample_run.result.as_dict(), sample_run.picture)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_element_is_closed(page: Page) -> None:
    assert page.open == []


def test_page_makes_no_request(html: str, page: Page) -> None:
    links = [
        value for _, name, value in page.attributes if name in {"src", "href", "srcset", "action", "data"}
    ]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert (
        "meta",
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    ) in page.attributes


def test_page_runs_no_script_and_no_text_of_the_plan_or_the_results_becomes_markup(
    html: str, page: Page
) -> None:
    assert "<script" not in html
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "Demo <script>alert(1)</script>" in page.text
    assert "disease <1> & co" in page.text


def test_every_method_is_there_with_its_figures(page: Page, sample_run: Any) -> None:
    track = sample_run.result.as_dict()["tracks"]["rare_disease"]
    for standing in standings(track):
        assert standing.label in page.text
    for figure in ("70.0 %", "75.0 %", "40.0 %", "90.0 %"):
        assert figure in page.text


def test_page_says_how_patients_were_protected(page: Page, sample_run: Any) -> None:
    assert page.text.count("Aggregation mode: secagg-v1. Privacy mode: none.") == 2
    assert "The coordinator saw only the sum of the sites' updates. No noise" in page.text
    content = sample_run.result.as_dict()
    for block, mode in (("aggregation", "clear"), ("privacy", "perhaps")):
        with pytest.raises(ValueError, match=mode):
            render_report({**content, block: {**content[block], "mode": mode}}, sample_run.picture)


def test_pictures_have_words_and_ids_are_unique(page: Page) -> None:
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    hidden = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-hidden")]
    roles = [value for _, name, value in page.attributes if name == "role"]
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    # The words around a drawing say what it shows; the drawing itself would be read out as loose numbers.
    assert hidden == ["true"] * page.tags.count("svg")
    assert roles.count("img") == 4
    assert all(len(label) > 3 for label in labels)


def test_same_run_gives_the_same_page(html: str, sample_run: Any, tmp_path: Any) -> None:
    path = write_report(tmp_path, sample_run.result.as_dict(), sample_run.picture)
    assert path.name == "report.html"
    assert path.read_text(encoding="utf-8") == html


def test_more_methods_than_colors_and_what_was_not_measured_are_shown(sample_run: Any) -> None:
    content, picture = sample_run.result.as_dict(), sample_run.picture
    track = content["tracks"]["rare_disease"]
    of_track = picture.tracks["rare_disease"]
    empty = score(Outcomes.of([]), np.random.default_rng(0)).as_dict()
    more = {f"other_{i}": track["methods"]["base"] for i in range(8)} | {"nothing": empty}
    full = {**content, "tracks": {"rare_disease": {**track, "methods": {**track["methods"], **more}}}}
    bins = dict.fromkeys(more, of_track.bins["teacher"])
    shown = replace(picture, tracks={"rare_disease": replace(of_track, bins=bins, rounds=())})
    text = Page(render_report(full, shown)).text
    assert "Other 7" in text
    assert "Nothing" in text
    assert "Training, round by round" not in text


def test_further_figures_are_shown_where_they_were_measured(sample_run: Any) -> None:
    content = sample_run.result.as_dict()
    methods = content["tracks"]["rare_disease"]["methods"]
    for entry in (methods[name] for name in methods if name != "local_orpo"):
        entry |= dict.fromkeys(MORE_COLUMNS)
    for entry in methods["local_orpo"].values():
        entry |= dict.fromkeys(MORE_COLUMNS)
    assert "Free answers and confidence" not in Page(render_report(content, sample_run.picture)).text
    methods["federated_orpo"] |= {"nll": 1.25, "car": 0.5}
    text = Page(render_report(content, sample_run.picture)).text
    assert "Free answers and confidence" in text
    assert "1.250" in text
    assert "class-wise ECE" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (12, "12 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_read_well() -> None:
    assert (size(1_300_000), size(512)) == ("1.3 MB", "0.5 kB")
