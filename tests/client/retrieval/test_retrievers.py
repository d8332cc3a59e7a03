"""Tests of the search."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from client.retrieval.index import Document, OntologyIndex
from client.retrieval.retrievers import Bm25Retriever, DenseRetriever, Hit, Reranked, words
from common.errors import BadFileError
from tests.client.retrieval.tiny import PLANTED, save_cross_encoder, save_encoder


@pytest.fixture(scope="module")
def encoder(index: OntologyIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(index, tmp_path_factory.mktemp("encoder"))


def ids(hits: list[Hit]) -> list[str]:
    return [hit.document.id for hit in hits]


def test_words_are_plain_and_in_lower_case() -> None:
    assert words("A 4-year-old GIRL, (Müller's) under_score") == [
        "a", "4", "year", "old", "girl", "müller", "s", "under", "score",
    ]  # fmt: skip


def test_the_planted_document_is_found_first_by_its_words(index: OntologyIndex) -> None:
    assert ids(Bm25Retriever(index).search(f"A boy with {PLANTED}.", 1, "disease")) == ["OMIM:2"]


def test_the_planted_document_is_found_first_by_embeddings(index: OntologyIndex, encoder: Path) -> None:
    assert ids(DenseRetriever(index, encoder).search(PLANTED, 1, "disease")) == ["OMIM:2"]


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_reranker_puts_the_relevant_document_first(
    index: OntologyIndex, tmp_path: Path, outputs: int
) -> None:
    by_words, query = Bm25Retriever(index), "short stature"
    before = ids(by_words.search(query, 3))
    relevant = before[-1]
    reranked = Reranked(by_words, save_cross_encoder(index, tmp_path, relevant, outputs))
    assert ids(reranked.search(query, 1)) == [relevant]
    assert sorted(ids(reranked.search(query, 9))) == sorted(before)


def test_the_search_may_be_of_one_kind_and_of_so_many(index: OntologyIndex) -> None:
    search = Bm25Retriever(index).search
    assert ids(search(PLANTED, 9, "gene")) == ["GENB", "GENA"]
    assert sorted(ids(search(PLANTED, 9))) == ["GENA", "GENB", "OMIM:2"]
    assert len(search(PLANTED, 2)) == 2


def test_a_document_without_a_word_of_the_query_is_no_hit(index: OntologyIndex) -> None:
    assert Bm25Retriever(index).search("quetzal", 5) == []
    assert Bm25Retriever(index).search("", 5) == []


def test_equal_documents_come_in_the_order_of_the_index(encoder: Path) -> None:
    twins = tuple(Document(kind="disease", id=f"A:{i}", title="seizure", text="Seizure.") for i in range(6))
    index = OntologyIndex(documents=twins)
    for retriever in (Bm25Retriever(index), DenseRetriever(index, encoder)):
        assert ids(retriever.search("seizure", 6)) == [f"A:{i}" for i in range(6)]


def test_the_same_query_gives_the_same_scores(index: OntologyIndex, encoder: Path) -> None:
    for make in (lambda: Bm25Retriever(index), lambda: DenseRetriever(index, encoder)):
        assert make().search("seizure and stature", 5) == make().search("seizure and stature", 5)


def test_embeddings_are_kept_for_this_index_and_this_model_alone(
    index: OntologyIndex, encoder: Path, tmp_path: Path
) -> None:
    first = DenseRetriever(index, encoder, kept=tmp_path).search(PLANTED, 5)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert DenseRetriever(index, encoder, kept=tmp_path).search(PLANTED, 5) == first
    assert file.stat().st_mtime_ns == written
    DenseRetriever(OntologyIndex(documents=index.documents[:2]), encoder, kept=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_embeddings_do_not_depend_on_the_texts_beside_them(index: OntologyIndex, encoder: Path) -> None:
    alone = DenseRetriever(OntologyIndex(documents=index.documents[:1]), encoder).search("seizure", 1)
    together = {hit.document.id: hit.score for hit in DenseRetriever(index, encoder).search("seizure", 9)}
    assert together[alone[0].document.id] == pytest.approx(alone[0].score, abs=1e-5)


def test_a_folder_without_a_model_is_refused(index: OntologyIndex, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"config\.json"):
        DenseRetriever(index, tmp_path)
    with pytest.raises(BadFileError):
        Reranked(Bm25Retriever(index), tmp_path / "nowhere")


def test_a_classifier_of_three_classes_is_no_reranker(
    index: OntologyIndex, encoder: Path, tmp_path: Path
) -> None:
    for file in encoder.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with torch.random.fork_rng():
        config = BertConfig(
            vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            num_labels=3,
        )  # fmt: skip
        BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(BadFileError, match="one output or two, got 3"):
        Reranked(Bm25Retriever(index), tmp_path)
