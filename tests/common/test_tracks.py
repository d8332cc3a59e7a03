import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SettingsError, UnsupportedSchemaError
from common.tracks import RARE_DISEASE, TISSUE_TYPE, TRACKS, Answer, AnswerList, Eye, Modality, Track, fold

# No deadline: another test may hold the processor.
few = settings(max_examples=30, deadline=None)

LINES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=12)
ANSWER_LISTS = st.lists(
    st.builds(
        Answer, id=LINES, name=LINES, synonyms=st.lists(LINES, max_size=3).map(tuple), ontology=st.text()
    ),
    min_size=1,
    max_size=6,
    unique_by=(lambda answer: answer.id, lambda answer: fold(answer.name)),
).map(lambda answers: AnswerList(answers=tuple(answers)))

MARFAN = Answer(id="OMIM:154700", name="Marfan syndrome", synonyms=("MFS1", "Marfan's"), ontology="OMIM 2026")
LOEYS = Answer(id="OMIM:609192", name="Loeys-Dietz syndrome 1", synonyms=("LDS1", "Marfan's"))
ANSWERS = AnswerList(answers=(MARFAN, LOEYS))


def test_the_two_tracks_read_text_and_images() -> None:
    assert TRACKS == {"rare_disease": RARE_DISEASE, "tissue_type": TISSUE_TYPE}
    assert (RARE_DISEASE.modality, RARE_DISEASE.header) == (Modality.TEXT, "POTENTIAL_DISEASES:")
    assert (TISSUE_TYPE.modality, TISSUE_TYPE.header) == (Modality.IMAGE, "MOST_LIKELY_TISSUE:")
    assert [eye.value for eye in Eye] == ["photo", "note", "slide"]


@pytest.mark.parametrize(
    "change", [{"name": "Rare"}, {"name": ""}, {"header": ""}, {"header": "a\nb"}, {"modality": "sound"}]
)
def test_a_track_without_a_proper_name_header_or_modality_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        Track(**({"name": "a", "modality": "text", "header": "A:"} | change))


def test_an_answer_is_found_by_name_and_synonym_whatever_case_and_white_space() -> None:
    assert ANSWERS.find("marfan  SYNDROME\n") is MARFAN
    assert ANSWERS.find("mfs1") is MARFAN
    assert ANSWERS.find("LDS1") is LOEYS
    assert ANSWERS.find("Marfan") is None
    assert ANSWERS.find("") is None


def test_a_shared_synonym_names_neither_answer_and_a_name_goes_before_a_synonym() -> None:
    assert ANSWERS.find("Marfan's") is None
    named = Answer(id="c", name="marfan's")
    assert AnswerList(answers=(MARFAN, LOEYS, named)).find("Marfan's") is named


def test_an_answer_has_its_place() -> None:
    assert ANSWERS.names == ("Marfan syndrome", "Loeys-Dietz syndrome 1")
    assert ANSWERS.ids == ("OMIM:154700", "OMIM:609192")
    assert [ANSWERS.index_of(answer_id) for answer_id in ANSWERS.ids] == [0, 1]
    assert len(ANSWERS) == 2
    with pytest.raises(ValueError, match=r"Expected an id of the plan's 2 answers, got 'OMIM:1'"):
        ANSWERS.index_of("OMIM:1")


@pytest.mark.parametrize(
    ("ids", "names", "reason"),
    [
        ([], [], "got none"),
        (["a", "a"], ["x", "y"], "'a' twice"),
        (["a", "b"], ["x", "x"], "'x' twice"),
        (["a", "b"], ["x y", "X y"], "'x y' twice"),
    ],
)
def test_ids_are_unique_and_so_are_names_also_when_case_and_white_space_are_ignored(
    ids: list[str], names: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        AnswerList(answers=tuple(Answer(id=i, name=n) for i, n in zip(ids, names, strict=True)))


@pytest.mark.parametrize("change", [{"id": ""}, {"name": "a\nb"}, {"name": " a"}, {"synonyms": ("",)}])
def test_an_answer_that_is_not_one_line_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Answer(**({"id": "a", "name": "b"} | change))


@few
@given(answers=ANSWER_LISTS)
def test_answers_come_back_from_json_with_the_same_digest(answers: AnswerList) -> None:
    back = AnswerList.from_json(answers.to_json())
    assert back == answers
    assert back.digest() == answers.digest()


@few
@given(answers=ANSWER_LISTS)
def test_every_answer_is_found_by_its_name(answers: AnswerList) -> None:
    for index, answer in enumerate(answers.answers):
        assert answers.find(answer.name) is answer
        assert answers.index_of(answer.id) == index


def test_the_digest_changes_with_order_name_synonym_and_ontology() -> None:
    lists = [
        ANSWERS,
        AnswerList(answers=(LOEYS, MARFAN)),
        AnswerList(answers=(MARFAN,)),
        AnswerList(answers=(MARFAN, Answer(id=LOEYS.id, name=LOEYS.name))),
        AnswerList(answers=(MARFAN, Answer(id=LOEYS.id, name=LOEYS.name, ontology="x"))),
    ]
    assert len({answers.digest() for answers in lists}) == len(lists)


def test_a_list_of_a_newer_schema_an_unknown_key_or_no_schema_is_refused() -> None:
    content = json.loads(ANSWERS.to_json())
    with pytest.raises(UnsupportedSchemaError, match=r"answers: schema 2 is newer than 1"):
        AnswerList.from_json(json.dumps(content | {"schema": 2}))
    with pytest.raises(SettingsError, match=r"answers.extra"):
        AnswerList.from_json(json.dumps(content | {"extra": 1}))
    with pytest.raises(SettingsError, match=r"answers.schema"):
        AnswerList.from_json(json.dumps({"answers": content["answers"]}))
    with pytest.raises(SettingsError, match=r"answers.answers\[0\].name: expected text, got nothing"):
        AnswerList.from_json('{"schema":1,"answers":[{"id":"a"}]}')
