"""Tests of reading lists: forms that readers write, and what the published reader of lists got wrong."""

import pytest

from client.retrieval.lists import before_list, read_list
from common.tracks import Answer, AnswerList
from tests.client.retrieval.tiny import numbered

DISEASES = AnswerList(
    answers=(
        Answer(id="OMIM:1", name="Alpha syndrome", synonyms=("Alpha-one",)),
        *(Answer(id=f"OMIM:{i}", name=f"Disease {i}") for i in range(2, 11)),
    )
)
GENES = AnswerList(answers=tuple(Answer(id=one, name=one) for one in ("FBN1", "TGFBR2", "SCN1A")))
HEADER, GENE_HEADER = "POTENTIAL_DISEASES:", "POTENTIAL_GENES:"


def test_ten_numbered_lines_are_read_and_have_the_form() -> None:
    read = read_list(numbered(HEADER, DISEASES.names), HEADER, DISEASES, 10)
    assert (read.ranked, read.format_ok, read.abstained) == (DISEASES.ids, True, False)


@pytest.mark.parametrize("header", [f"{GENE_HEADER}\n", f"{GENE_HEADER} \n", "Potential_genes :\n\n"])
def test_a_list_of_genes_is_read_whatever_white_space_the_header_has(header: str) -> None:
    read = read_list(f"{header}1. 'FBN1' \n2. 'scn1a'  \n3. 'NOGENE9'\n", GENE_HEADER, GENES, 3)
    assert (read.ranked, read.format_ok) == (("FBN1", "SCN1A", None), True)


def test_a_missing_item_keeps_its_place() -> None:
    read = read_list("POTENTIAL_GENES:\n1. FBN1\n2.\n3. SCN1A\n", GENE_HEADER, GENES, 3)
    assert (read.ranked, read.format_ok) == (("FBN1", None, "SCN1A"), False)


def test_a_synonym_names_its_answer_and_an_answer_counts_once() -> None:
    read = read_list(f"{HEADER}\n1. alpha-ONE\n2. Alpha syndrome\n3. Disease 3\n", HEADER, DISEASES, 3)
    assert read.ranked == ("OMIM:1", None, "OMIM:3")


@pytest.mark.parametrize(
    "text",
    [
        numbered(HEADER, DISEASES.names[:9]),
        f"{numbered(HEADER, DISEASES.names)}\n11. Disease 2",
        f"{numbered(HEADER, DISEASES.names)}\nI hope this helps.",
        numbered(HEADER, DISEASES.names).replace("10.", "9."),
        numbered("DISEASES", DISEASES.names),
    ],
    ids=["nine", "eleven", "prose", "a number twice", "another header"],
)
def test_another_form_is_counted_as_such_and_read_all_the_same(text: str) -> None:
    read = read_list(text, HEADER, DISEASES, 10)
    assert not read.format_ok
    assert read.ranked[0] == "OMIM:1"


def test_reasoning_before_the_list_is_no_part_of_it() -> None:
    text = (
        f"1. Seizures. I shall write {HEADER} below.\n2. Disease 9 fits.\n{numbered(HEADER, ['Disease 4'])}"
    )
    assert read_list(text, HEADER, DISEASES, 1).ranked == ("OMIM:4",)
    assert before_list(text, HEADER).endswith("Disease 9 fits.")
    assert before_list("no list", HEADER) == "no list"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The findings are many.\n1. Seizure\n2. Short stature",
        HEADER,
        f"{HEADER}\nUnknown.",
        f"{HEADER}\n1. Unknown\n2. unknown",
        f"{HEADER}\nCannot be determined from the note.",
        f"{HEADER}\n1.\n2.",
    ],
)
def test_no_list_or_an_unknown_is_an_abstention(text: str) -> None:
    read = read_list(text, HEADER, DISEASES, 10)
    assert read.abstained
    assert not any(read.ranked)


@pytest.mark.parametrize(
    "text",
    [f"{HEADER}\n1. Unknown\n2. Disease 2", f"{HEADER}\n1. No such disease", "It is Disease 3\nDisease 3"],
)
def test_a_wrong_or_a_partial_list_is_no_abstention(text: str) -> None:
    assert not read_list(text, HEADER, DISEASES, 10).abstained
