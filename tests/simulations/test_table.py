"""Tests of the terminal's table."""

import io
from typing import Any

from rich.console import Console

from simulations.table import figure, print_results


def test_table_shows_every_test_and_says_how_patients_were_protected(sample_run: Any) -> None:
    written = io.StringIO()
    print_results(sample_run.result.as_dict(), Console(file=written, width=130))
    text = written.getvalue()
    assert "rare_disease: 40 test patients, 4 answers" in text
    assert "patients from new publications" in text
    assert "top-1 on each site's own answers" in text
    assert "The federated student names the right answer first for 70 of 100" in text
    assert "Aggregation mode: secagg-v1. Privacy mode: none." in text
    assert "The coordinator saw only the sum of the sites' updates." in " ".join(text.split())
    # Two of the rounds' 200 seconds were training.
    assert "Keys, masks, sums and messages took 99% of the rounds' time." in " ".join(text.split())
    whole = " ".join(text.split())
    assert "No noise: there is no bound on what the student tells about one patient." in whole
    for label in ("Base model, untrained", "site-c alone", "One site alone, mean", "Federated student"):
        assert label in text


def test_no_line_is_wider_than_a_common_terminal(sample_run: Any) -> None:
    written = io.StringIO()
    print_results(sample_run.result.as_dict(), Console(file=written, width=100))
    assert max(map(len, written.getvalue().splitlines())) <= 100
    assert "…" not in written.getvalue()


def test_a_long_name_takes_two_lines_and_no_figure_is_cut(sample_run: Any) -> None:
    written = io.StringIO()
    content = sample_run.result.as_dict()
    methods = content["tracks"]["rare_disease"]["methods"]
    methods["linear_model_with_exclusions"] = methods["base"]
    print_results(content, Console(file=written, width=100))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "exclusions" in text
    assert text.count("10.0 %") >= 2


def test_figures_that_are_no_shares_are_told_as_they_are() -> None:
    assert (figure("nll", 1.2345), figure("car", 0.5), figure("nll", None)) == ("1.234", "50.0 %", "–")
