"""Tests of a comparison over seeds: its figures, its tables, its page."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from client.student.predictions import read_predictions, write_predictions
from common.calibration import ReliabilityBins
from common.errors import BadFileError
from simulations.answered import named, read_track
from simulations.before_after import before_after, bins_of, worst_site
from simulations.evidence import gather_evidence, main, write_evidence
from simulations.evidence_page import render_page
from simulations.evidence_tables import grids, markdown
from simulations.findings import cards, findings, lead, not_known
from simulations.grids import DECIMALS, p_value
from simulations.paired import Word
from simulations.results import predictions_path, read_results
from tests.simulations.made_up import METHODS, SITES, TRACK, UNION, write_run
from tests.simulations.test_report import Page

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / str(seed), seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def block(folders: list[Path]) -> dict[str, Any]:
    return gather_evidence(folders)


@pytest.fixture(scope="module")
def track(block: dict[str, Any]) -> dict[str, Any]:
    return block["tracks"][TRACK]


@pytest.fixture(scope="module")
def html(block: dict[str, Any]) -> str:
    return render_page(block)


def line_of(lines: list[dict[str, Any]], second: str, top: int = 1) -> dict[str, Any]:
    return next(line for line in lines if (line["second"], line["top"]) == (second, top))


def test_rates_are_those_of_all_seeds_cases_together(track: dict[str, Any], folders: list[Path]) -> None:
    method = next(line for line in track["methods"] if line["method"] == "federated_sft")
    entries = [read_results(f / "results.json")["tracks"][TRACK]["methods"]["federated_sft"] for f in folders]
    mean = sum(entry["top1"] for entry in entries) / 3
    assert method["union"]["top1"]["rate"] == pytest.approx(mean, abs=2e-6)
    assert method["union"]["top1"]["by_seed"] == pytest.approx([entry["top1"] for entry in entries])
    assert method["union"]["n"] == 3 * UNION
    low, high = method["union"]["top10"]["interval"]
    assert low < method["union"]["top10"]["rate"] < high
    assert (method["seconds"], method["bytes_up"], method["seeds"]) == (12.0, 2_000_000, [0, 1, 2])


def test_a_mean_over_sites_is_that_of_all_their_answers(track: dict[str, Any]) -> None:
    rates = {(m["method"], m["site"]): m["union"]["top1"]["rate"] for m in track["methods"]}
    sites = [rates["local_orpo", site] for site in SITES]
    assert rates["local_orpo_mean", None] == pytest.approx(sum(sites) / 2, abs=2e-6)


def test_winner_and_loser_are_called_so_by_their_intervals(track: dict[str, Any]) -> None:
    union = track["comparisons"]["union"]
    assert line_of(union, "search")["word"] == Word.BETTER
    assert line_of(union, "linear_model")["word"] == Word.WORSE
    assert line_of(union, "pooled_orpo")["word"] == Word.EVEN
    for line in union:
        assert line["p_holm"] >= line["p_value"]
        assert line["interval"][0] <= line["difference"] <= line["interval"][1]
    # Nobody judged the teachers on new publications.
    assert "teacher" not in {line["second"] for line in track["comparisons"]["new"]}


def test_the_best_site_is_chosen_by_the_figure_that_is_compared(
    track: dict[str, Any], folders: list[Path]
) -> None:
    line = line_of(track["comparisons"]["union"], "best_local_orpo")
    best = []
    for folder in folders:
        run = read_track(folder, read_results(folder / "results.json"), TRACK)
        rows = run.rows("union")
        best.append(max(run.answered["local_orpo", site].right(1)[rows].mean() for site in SITES))
    assert line["second_rate"] == pytest.approx(np.mean(best), abs=2e-6)


def test_own_answers_set_each_site_beside_its_own_student(track: dict[str, Any]) -> None:
    lines = [line for line in track["own_answers"] if line["top"] == 1]
    assert [line["site"] for line in lines] == [*SITES, "all sites"]
    assert [line["n"] for line in lines] == [3 * UNION // 2, 3 * UNION // 2, 3 * UNION]
    assert lines[0]["second_rate"] > lines[1]["second_rate"]
    assert all(line["word"] == Word.BETTER for line in lines)


def test_a_promise_is_compared_with_none_and_with_the_best_site_alone(track: dict[str, Any]) -> None:
    lines = [line for line in track["privacy_price"]["union"] if line["top"] == 1]
    assert [(line["epsilon"], line["second"]) for line in lines] == [
        (8.0, "federated_orpo"), (8.0, "best_local_orpo"), (2.0, "federated_orpo"), (2.0, "best_local_orpo"),
    ]  # fmt: skip
    assert lines[0]["word"] == Word.WORSE
    assert lines[1]["word"] == Word.BETTER


def test_calibration_is_judged_on_the_sites_and_on_new_publications(
    track: dict[str, Any], folders: list[Path]
) -> None:
    (line,) = track["calibration"]
    assert (line["before"], line["how"]) == ("federated_orpo", "temperature")
    union = line["union"]
    assert union["ece"]["after"] < union["ece"]["before"]
    assert union["ratio"] == pytest.approx(union["ece"]["after"] / union["ece"]["before"], abs=1e-5)
    assert union["ratio_interval"][0] < union["ratio_interval"][1] < 1
    assert sorted(union["sites"]) == list(SITES)
    assert worst_site(union["sites"], "after") == max(
        ((site, one["after"]) for site, one in union["sites"].items()), key=lambda one: one[1]
    )
    assert line["new"]["sites"] == {}
    assert worst_site({}, "after") is None
    # A seed's ECE, from the predictions themselves.
    eces = []
    for folder in folders:
        cases = read_predictions(predictions_path(folder, TRACK, "federated_orpo"))[:UNION]
        confidence = np.array([case.answers[0].confidence for case in cases])
        right = np.array([case.answers[0].id == case.truth for case in cases])
        eces.append(ReliabilityBins.from_cases(confidence, right).ece())
    assert union["ece"]["before"] == pytest.approx(np.mean(eces), abs=2e-6)
    assert sum(bins_of(union["bins"]["before"]).n) == 3 * UNION


def test_a_student_beside_itself_is_not_better_calibrated(folders: list[Path]) -> None:
    runs = [read_track(f, read_results(f / "results.json"), TRACK) for f in folders]
    same = named("federated_orpo")
    found = before_after(runs, same, same, "union", np.random.default_rng(0))
    assert found is not None
    assert (found["ratio"], found["ratio_interval"], found["difference"]) == (1, [1, 1], 0)
    assert before_after(runs, same, named("nobody"), "union", np.random.default_rng(0)) is None


def test_the_same_runs_give_the_same_evidence(block: dict[str, Any], folders: list[Path]) -> None:
    assert json.dumps(gather_evidence(folders)) == json.dumps(block)


def test_tables_show_what_was_measured_and_nothing_else(block: dict[str, Any], track: dict[str, Any]) -> None:
    text = markdown(block)
    for label in ("Federated student, noise for ε 2", "Best site alone", "Student with documents (RAG)"):
        assert label in text
    assert "| right document found | tokens a note | seconds a note |" in text
    # Free decoding and NLL were measured by nobody: no column, and no zero.
    assert "NLL" not in text
    assert "exact name" not in text
    accuracy = grids(track, DECIMALS)[0]
    teacher = next(row for row in accuracy.rows if row[0] == "Teachers")
    assert teacher[-4:] == ("–",) * 4
    widths = {(grid.title, len(row) - len(grid.head)) for grid in grids(track, DECIMALS) for row in grid.rows}
    assert all(more == 0 for _, more in widths)


def test_words_report_a_loss_as_a_loss(track: dict[str, Any]) -> None:
    found = findings(track)
    assert any(one.startswith("Search in public descriptions, patients of the sites") for one in found.wins)
    assert any(one.startswith("Linear model, coded findings, patients of the sites") for one in found.loses)
    assert any(one.startswith("All data in one place") for one in found.even)
    assert "does worse than: Linear model, coded findings; Teachers" in lead(TRACK, track)
    assert len(found.own) == 3
    assert not any("noise for" in one for one in found.wins)
    tones = {card.label: card.tone for card in cards(TRACK, track)}
    assert tones["Best site alone"] == "better"
    assert tones["Linear model, coded findings"] == "worse"
    assert tones["All data in one place"] == "even"


def test_what_is_not_known_is_said(block: dict[str, Any], track: dict[str, Any]) -> None:
    said = " ".join(not_known(block, track))
    assert "All data in one place" in said
    assert "3 trainings of each method" in said
    bare = {**track, "privacy_price": {"union": [], "new": []}, "calibration": []}
    assert "no student with noise" in " ".join(not_known(block, bare))
    assert "no student with noise" not in said


def test_page_makes_no_request_and_runs_no_script(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html
    links = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "action"}]
    assert all(link.startswith("#") for link in links)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    hidden = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-hidden")]
    assert hidden == ["true"] * page.tags.count("svg")


def test_page_shows_pictures_first_and_says_what_they_show(html: str, track: dict[str, Any]) -> None:
    text = Page(html).text
    places = [
        text.index(heading)
        for heading in (
            "2 hospitals that learn together",
            "Who is right, and how often",
            "What the federation adds to a site",
            "Can its confidence be believed?",
            "What privacy costs",
            "In words",
            "What is not known",
            "All figures",
        )
    ]
    assert places == sorted(places)
    main = next(line for line in track["methods"] if line["method"] == "federated_orpo")
    assert f"{100 * main['union']['top1']['rate']:.1f} %" in text


def test_what_was_not_run_is_not_on_the_page(tmp_path: Path) -> None:
    few = {name: METHODS[name] for name in ("base", "federated_orpo")}
    page = write_evidence([write_run(tmp_path / "0", 0, few)], tmp_path / "out", Console(quiet=True))
    text = Page(page.read_text(encoding="utf-8")).text
    assert "Can its confidence be believed?" not in text
    assert "What privacy costs" not in text
    assert "McNemar, exact" in text
    assert "One training of each method" in text


def test_the_command_writes_three_files(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*map(str, folders), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evidence.json", "evidence.md", "report.html",
    ]  # fmt: skip
    assert "hospitals that learn together" in capsys.readouterr().out
    assert main([str(folders[0]), str(folders[0]), "--out", str(tmp_path)]) == 1
    assert "every seed once" in capsys.readouterr().err


def test_a_run_without_cases_or_with_others_answers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "0", 0)
    path = predictions_path(run, TRACK, "base")
    write_predictions(path, read_predictions(predictions_path(run, TRACK, "search")))
    content = read_results(run / "results.json")
    lines = path.read_text().replace('"case-7"', '"stranger"')
    path.write_text(lines)
    with pytest.raises(BadFileError, match=r"base\.jsonl.*stranger"):
        read_track(run, content, TRACK)
    (run / "predictions" / TRACK / "cases.json").unlink()
    assert main([str(run), "--out", str(tmp_path / "out")]) == 1
    assert "cases.json" in capsys.readouterr().err


@pytest.mark.parametrize(("p", "said"), [(0.0004, "< 0.001"), (0.0312, "0.031"), (1.0, "1.000")])
def test_p_values_read_well(p: float, said: str) -> None:
    assert p_value(p) == said
