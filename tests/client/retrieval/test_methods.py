"""Tests of the five methods, the router and the search alone."""

import pytest

from client.preferences.answers import write_prompt
from client.retrieval.index import Document, DocumentKind, OntologyIndex
from client.retrieval.methods import (
    METHODS,
    Answered,
    Routed,
    base,
    chain_of_thought,
    cot_driven_rag,
    learn_threshold,
    note_length,
    rag,
    rag_driven_cot,
    router,
    search_alone,
)
from client.retrieval.questions import Task, disease_task, gene_task, student_task
from client.retrieval.retrievers import Bm25Retriever, Hit
from common.tracks import RARE_DISEASE, Answer, AnswerList
from tests.client.retrieval.tiny import PLANTED, ToldReader, numbered

NOTE = f"A boy with {PLANTED}."
ANSWERS = AnswerList(
    answers=(
        Answer(id="OMIM:1", name="Alpha syndrome"),
        Answer(id="OMIM:2", name="Beta disease", synonyms=("Beta",)),
        Answer(id="OMIM:9", name="Nowhere disease"),
    )
)
LIST = numbered("POTENTIAL_DISEASES:", ["Beta", "Alpha syndrome"])


class NotedSearch:
    """Finds in the index, and remembers what was searched."""

    def __init__(self, index: OntologyIndex) -> None:
        self.inner, self.queries = Bm25Retriever(index), list[tuple[str, int, str | None]]()

    def search(self, query: str, k: int, kind: DocumentKind | None = None) -> list[Hit]:
        self.queries.append((query, k, kind))
        return self.inner.search(query, k, kind)


@pytest.fixture
def search(index: OntologyIndex) -> NotedSearch:
    return NotedSearch(index)


@pytest.fixture
def task() -> Task:
    return disease_task(ANSWERS)


def text_of(answered: Answered) -> str:
    (document,) = answered.documents
    return document.text


def test_base_asks_for_the_list_alone(search: NotedSearch, task: Task) -> None:
    reader = ToldReader(LIST)
    answered = base(NOTE, reader, search, task)
    assert reader.prompts == [f"{NOTE}\n{task.final}\n"]
    assert (answered.ranked, answered.searched, search.queries) == (("OMIM:2", "OMIM:1"), False, [])


def test_a_student_s_base_prompt_is_the_one_it_was_trained_on(search: NotedSearch) -> None:
    reader = ToldReader(LIST)
    base(NOTE, reader, search, student_task(ANSWERS))
    assert reader.prompts == [write_prompt(RARE_DISEASE, NOTE)]


def test_chain_of_thought_asks_all_questions_in_one_prompt(search: NotedSearch, task: Task) -> None:
    reader = ToldReader(f"Stripes. So a beta.\n{LIST}")
    answered = chain_of_thought(NOTE, reader, search, task)
    (prompt,) = reader.prompts
    assert all(prompt.count(question) == 1 for question in task.questions)
    assert len(task.questions) == 4
    assert prompt.endswith(f"{task.final}\n")
    assert (answered.ranked, search.queries) == (("OMIM:2", "OMIM:1"), [])
    assert answered.steps[0].startswith("Stripes")


def test_rag_searches_with_the_note_and_gives_what_was_found(search: NotedSearch, task: Task) -> None:
    reader = ToldReader(LIST)
    answered = rag(NOTE, reader, search, task)
    assert search.queries == [(NOTE, 1, "disease")]
    assert [document.id for document in answered.documents] == ["OMIM:2"]
    assert text_of(answered) in reader.prompts[0]
    assert not any(question in reader.prompts[0] for question in task.questions)
    assert reader.prompts[0].endswith(f"{NOTE}\n{task.final}\n")


def test_rag_driven_cot_gives_what_was_found_and_asks_all_questions(search: NotedSearch, task: Task) -> None:
    reader = ToldReader(LIST)
    answered = rag_driven_cot(NOTE, reader, search, task)
    assert search.queries == [(NOTE, 1, "disease")]
    (prompt,) = reader.prompts
    assert prompt.index(text_of(answered)) < prompt.index(NOTE) < prompt.index(task.questions[0])
    assert "Rely on the reference" in prompt


def test_cot_driven_rag_searches_with_the_first_answer_and_shows_it_before_the_list(
    search: NotedSearch, task: Task
) -> None:
    reader = ToldReader("Integument: zebra stripes", "No age.", "Skin.", "Dominant.", LIST)
    answered = cot_driven_rag("A boy.", reader, search, task)
    assert search.queries == [("Integument: zebra stripes", 1, "disease")]
    assert answered.steps == ("Integument: zebra stripes", "No age.", "Skin.", "Dominant.", LIST)
    for number, question in enumerate(task.questions):
        assert reader.prompts[number].endswith(f"{question}\n")
        assert all(step in reader.prompts[number] for step in answered.steps[:number])
        assert text_of(answered) not in reader.prompts[number]
    last = reader.prompts[4]
    assert last.index("Dominant.") < last.index(text_of(answered)) < last.index(task.final)
    assert answered.ranked == ("OMIM:2", "OMIM:1")


def test_cot_driven_rag_without_a_first_answer_finds_nothing_and_says_so(
    search: NotedSearch, task: Task
) -> None:
    answered = cot_driven_rag(NOTE, ToldReader("", "", "", "", ""), search, task)
    assert (answered.searched, answered.documents, answered.abstained) == (True, (), True)
    assert answered.steps == ("", "", "", "", "")


def test_a_reader_that_is_held_to_answers_reasons_first(search: NotedSearch, task: Task) -> None:
    reader = ToldReader(f"Stripes point to beta.\n{LIST}", ranked=["OMIM:9", "OMIM:2"])
    answered = rag_driven_cot(NOTE, reader, search, task)
    assert answered.ranked == ("OMIM:9", "OMIM:2")
    assert answered.confidence == (0.5, 0.25)
    (prompt,) = reader.ranked_prompts
    assert prompt.endswith(f"Stripes point to beta.\n{task.final}\n")
    assert answered.tokens_in == reader.count(reader.prompts[0]) + reader.count(prompt)
    assert answered.tokens_out == reader.count(answered.steps[0])


def test_a_reader_that_is_held_to_answers_writes_nothing_where_no_reasoning_is_asked(
    search: NotedSearch, task: Task
) -> None:
    for method in (base, rag):
        reader = ToldReader(ranked=["OMIM:1"])
        answered = method(NOTE, reader, search, task)
        assert (answered.steps, answered.ranked, answered.format_ok) == ((), ("OMIM:1",), True)


def test_genes_are_asked_for_in_their_own_words(index: OntologyIndex, search: NotedSearch) -> None:
    reader = ToldReader("POTENTIAL_GENES:\n1. 'GENB' \n2. GENX\n3. gena")
    answered = rag(NOTE, reader, search, gene_task(index.genes()))
    assert answered.ranked == ("GENB", None, "GENA")
    assert answered.ids == ("GENB", "GENA")
    assert search.queries == [(NOTE, 1, "gene")]
    assert "genes" in reader.prompts[0] and "POTENTIAL_GENES:" in reader.prompts[0]


def test_lengths_are_the_task_s(search: NotedSearch) -> None:
    task = Task(
        kind="disease", header="POTENTIAL_DISEASES:", answers=ANSWERS, questions=("One?", "Two?"),
        final="List.", step_tokens=7, chain_tokens=19, documents=2,
    )  # fmt: skip
    short, chained = ToldReader("seizure", "b", LIST), ToldReader(LIST)
    assert len(cot_driven_rag(NOTE, short, search, task).documents) == 2
    chain_of_thought(NOTE, chained, search, task)
    assert (short.longest, chained.longest) == ([7, 7, 7], [19])


def test_what_a_long_prompt_loses_is_counted_and_never_the_note(index: OntologyIndex, task: Task) -> None:
    reader, whole = ToldReader(LIST, longest_prompt=60), ToldReader(LIST)
    answered = rag(NOTE, reader, Bm25Retriever(index), task)
    rag(NOTE, whole, Bm25Retriever(index), task)
    assert whole.count(whole.prompts[0]) < 60
    assert (answered.tokens_cut, reader.prompts) == (0, whole.prompts)
    cut = ToldReader(LIST, longest_prompt=whole.count(whole.prompts[0]) - 4)
    answered = rag(NOTE, cut, Bm25Retriever(index), task)
    assert answered.tokens_cut == 4
    assert cut.prompts[0].endswith(f"{NOTE}\n{task.final}\n")
    assert "Beta disease." in cut.prompts[0] and "Occasional: Seizure." not in cut.prompts[0]


def test_the_search_alone_ranks_the_plan_s_answers_and_nothing_else(index: OntologyIndex) -> None:
    note = "Short stature, cleft palate and seizure."
    found = search_alone(Bm25Retriever(index), note, ANSWERS)
    # OMIM:3 fits best, but is no answer of the plan, as no gene is; OMIM:9 has no document.
    assert Bm25Retriever(index).search(note, 1)[0].document.id == "OMIM:3"
    assert found.ranked == ("OMIM:1", "OMIM:2")
    assert [document.id for document in found.documents] == ["OMIM:1"]
    assert not found.abstained and found.format_ok
    assert search_alone(Bm25Retriever(index), "quetzal", ANSWERS).abstained


def test_the_router_leads_short_notes_by_the_search_and_long_ones_by_questions(
    search: NotedSearch, task: Task
) -> None:
    assert router(9, 10) is rag_driven_cot
    assert router(10, 10) is cot_driven_rag
    assert note_length(" one two\nthree ") == 3
    Routed(100)(NOTE, ToldReader(LIST), search, task)
    Routed(2)("A boy.", ToldReader(PLANTED, "", "", "", LIST), search, task)
    assert [query for query, _, _ in search.queries] == [NOTE, PLANTED]


def test_the_threshold_is_the_smallest_of_those_with_most_right_answers() -> None:
    lengths = [100, 200, 300, 400]
    assert learn_threshold(lengths, [True, True, False, False], [False, False, True, True]) == 300
    assert learn_threshold(lengths, [True] * 4, [True] * 4) == 100
    assert learn_threshold(lengths, [False] * 4, [True] * 4) == 100
    assert learn_threshold(lengths, [True] * 4, [False] * 4) == 401
    # A long note before a short one; two notes of one length go the same way.
    assert learn_threshold([400, 100, 100], [False, True, True], [True, True, False]) == 400


def test_a_threshold_needs_notes() -> None:
    with pytest.raises(ValueError, match="validation note"):
        learn_threshold([], [], [])
    with pytest.raises(ValueError):
        learn_threshold([1], [True], [])


def test_every_method_has_the_name_that_results_give_it() -> None:
    assert dict(METHODS) == {
        "base": base,
        "cot": chain_of_thought,
        "rag": rag,
        "rag_cot": rag_driven_cot,
        "cot_rag": cot_driven_rag,
    }


def test_a_document_about_nothing_is_none() -> None:
    with pytest.raises(ValueError):
        Document(kind="disease", id="A", title="A", text=" ")
