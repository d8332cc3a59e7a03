"""Tests of the order and the words of a comparison."""

from typing import Any

import pytest

from simulations.standings import (
    NEW_PUBLICATIONS,
    calibration_of,
    charted,
    epsilon_of,
    headline,
    method_label,
    own_answers,
    own_label,
    percent,
    percent_interval,
    points,
    standings,
)


@pytest.fixture
def track(sample_run: Any) -> dict[str, Any]:
    return sample_run.result.as_dict()["tracks"]["rare_disease"]


def test_order_goes_from_base_to_teacher_and_a_mean_follows_its_sites(track: dict[str, Any]) -> None:
    assert [standing.label for standing in standings(track)] == [
        "Base model, untrained",
        "site-a alone",
        "site-b alone",
        "site-c alone",
        "One site alone, mean",
        "Federated student",
        "All data in one place",
        "Teachers",
    ]


def test_only_the_federated_student_trained_with_orpo_is_what_the_run_is_about(track: dict[str, Any]) -> None:
    track["methods"]["federated_sft"] = track["methods"]["base"]
    found = standings(track)
    assert [standing.method for standing in found if standing.is_winner_to_be] == ["federated_orpo"]
    assert [standing.method for standing in found][5:7] == ["federated_orpo", "federated_sft"]


def test_methods_that_were_not_judged_on_a_test_are_left_out(track: dict[str, Any]) -> None:
    del track["methods"]["base"][NEW_PUBLICATIONS]
    assert "base" not in [standing.method for standing in standings(track, NEW_PUBLICATIONS)]
    assert {standing.scores["n"] for standing in standings(track, NEW_PUBLICATIONS)} == {10}


def test_a_picture_shows_the_mean_of_the_teachers_in_their_place(track: dict[str, Any]) -> None:
    teacher = track["methods"]["teacher"]
    track["methods"]["teacher"] = {"site-a": teacher, "top1": teacher}
    assert [s.label for s in charted(standings(track))][-2:] == ["Teacher of site-a", "Teacher of top1"]
    track["methods"]["teacher_mean"] = teacher
    assert [s.label for s in charted(standings(track))][-2:] == ["All data in one place", "Teachers, mean"]


def test_a_site_is_shown_its_own_student_and_no_other_site_s(track: dict[str, Any]) -> None:
    found = own_answers(track)
    assert list(found) == ["site-a", "site-b", "site-c"]
    assert [own_label(standing) for standing in found["site-b"]] == [
        "Base model, untrained", "This site alone", "Federated student", "All data in one place", "Teachers",
    ]  # fmt: skip
    assert found["site-b"][1].site == "site-b"
    assert {standing.scores["n"] for standing in found["site-b"]} == {20}


def test_headline_compares_what_a_hospital_would_ask(track: dict[str, Any]) -> None:
    assert headline(track) == (
        "The federated student names the right answer first for 70 of 100 test patients; a site that trains "
        "alone reaches 40 on average; with all data in one place it would be 75."
    )
    del track["methods"]["federated_orpo"]
    assert headline(track) == ""


@pytest.mark.parametrize(
    ("method", "site", "label"),
    [
        ("base", None, "Base model, untrained"),
        ("local_sft", "site-a", "site-a alone, SFT"),
        ("local_sft_mean", None, "One site alone, mean, SFT"),
        ("federated_orpo_middle", None, "Federated student, middle"),
        ("rag", None, "RAG"),
        ("rag_rag_cot", None, "Documents, then questions (RAG-driven CoT)"),
        ("search", None, "Search in public descriptions"),
        ("text_linear", None, "Linear model, words of the note"),
        ("linear_model_with_exclusions", None, "Linear model, coded findings and exclusions"),
        ("local_dpo", "site-b", "site-b alone, DPO"),
        ("federated_dpo", None, "Federated student, DPO"),
        ("federated_orpo_temperature", None, "Federated student, calibrated (temperature)"),
        ("federated_orpo_label_smoothing", None, "Federated student, calibrated (label smoothing)"),
        ("federated_sft_cft", None, "Federated student, SFT, calibrated (CFT)"),
        ("federated_orpo_rcft", None, "Federated student, calibrated (RCFT)"),
        ("federated_orpo_distributed_eps_8", None, "Federated student, noise for ε 8"),
        ("federated_orpo_distributed_eps_0-5", None, "Federated student, noise for ε 0.5"),
        ("federated_orpo_local_eps_2", None, "Federated student, each site its own noise for ε 2"),
        ("label_counts_mean", None, "Label counts, mean"),
    ],
)
def test_methods_have_names_for_people(method: str, site: str | None, label: str) -> None:
    assert method_label(method, site) == label


def test_methods_stand_in_the_order_in_which_people_compare_them(track: dict[str, Any]) -> None:
    scores = track["methods"]["base"]
    names = [
        "teacher", "linear_model", "text_linear", "pooled_orpo", "rag_cot_rag", "rag_base", "rag_router",
        "federated_orpo_distributed_eps_2", "federated_orpo_distributed_eps_8", "federated_orpo_rcft",
        "federated_orpo_temperature", "federated_sft", "federated_dpo", "federated_orpo", "local_orpo_mean",
        "search", "base", "something_else",
    ]  # fmt: skip
    found = standings({"methods": dict.fromkeys(names, scores)})
    assert [standing.method for standing in found] == [
        "base", "search", "local_orpo_mean", "federated_orpo", "federated_dpo", "federated_sft",
        "federated_orpo_temperature", "federated_orpo_rcft", "federated_orpo_distributed_eps_8",
        "federated_orpo_distributed_eps_2", "rag_base", "rag_cot_rag", "rag_router", "pooled_orpo",
        "linear_model", "text_linear", "teacher", "something_else",
    ]  # fmt: skip
    assert [standing.method for standing in found if standing.is_winner_to_be] == ["federated_orpo"]


@pytest.mark.parametrize(
    ("method", "origin", "epsilon"),
    [
        ("federated_orpo_rcft", ("federated_orpo", "rcft"), None),
        ("federated_orpo_label_smoothing", ("federated_orpo", "label_smoothing"), None),
        ("federated_orpo_distributed_eps_8", None, 8.0),
        ("federated_orpo_local_eps_0-5", None, 0.5),
        ("federated_orpo_distributed_eps_2_cft", ("federated_orpo_distributed_eps_2", "cft"), 2.0),
        ("federated_orpo", None, None),
    ],
)
def test_names_tell_what_was_calibrated_and_what_was_promised(
    method: str, origin: tuple[str, str] | None, epsilon: float | None
) -> None:
    assert (calibration_of(method), epsilon_of(method)) == (origin, epsilon)


def test_figures_read_well() -> None:
    assert (points(0.132), points(-0.0042)) == ("+13.2", "\N{MINUS SIGN}0.4")
    assert (percent(0.7125), percent(None)) == ("71.2 %", "–")
    assert (percent_interval([0.689, 0.734]), percent_interval(None)) == ("68.9–73.4", "")
