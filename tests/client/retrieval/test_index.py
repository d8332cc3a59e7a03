"""Tests of the ontology index."""

import gzip
from pathlib import Path

import pytest

from client.retrieval.hpo import from_hpo
from client.retrieval.index import DiseaseFacts, Document, OntologyIndex, build_index, read_lines
from client.retrieval.retrievers import Bm25Retriever
from common.errors import BadFileError, SettingsError, UnsupportedSchemaError
from tests.client.retrieval.tiny import DISEASES, TERMS, write_hpo

HPO = Path(__file__).parents[4] / "shared" / "data" / "hpo"


def document(index: OntologyIndex, identifier: str) -> Document:
    return {one.id: one for one in index.documents}[identifier]


def test_a_disease_has_one_document_with_all_that_is_known(index: OntologyIndex) -> None:
    assert document(index, "OMIM:1") == Document(
        kind="disease",
        id="OMIM:1",
        title="Alpha syndrome",
        text="Alpha syndrome. Also called: Alpha-one syndrome. Genes: GENA. Inheritance: Autosomal dominant. "
        "Onset and course: Infantile onset. Very frequent: Seizure. Frequent: Short stature. "
        "Also described: Long face.",
        about=("GENA",),
    )


def test_frequencies_are_said_in_the_ontology_s_classes_and_merged_ids_by_their_new_name(
    index: OntologyIndex,
) -> None:
    assert document(index, "OMIM:2").text == (
        "Beta disease. Genes: GENA; GENB. Always: Zebra stripes. Occasional: Seizure."
    )
    assert document(index, "OMIM:3").text == (
        "Gamma dysplasia. Very rare: Short stature. Also described: Cleft palate."
    )


def test_a_gene_has_one_document_with_its_diseases_and_their_findings(index: OntologyIndex) -> None:
    gene = document(index, "GENA")
    assert (gene.kind, gene.about) == ("gene", ("OMIM:1", "OMIM:2"))
    assert gene.text == (
        "Gene GENA. Diseases: Alpha syndrome; Beta disease. Inheritance: Autosomal dominant. "
        "Always: Zebra stripes. Very frequent: Seizure. Frequent: Short stature. Also described: Long face."
    )
    assert gene.tells_of("GENA") and gene.tells_of("OMIM:2") and not gene.tells_of("OMIM:3")


def test_documents_are_in_the_order_of_their_ids_diseases_first(index: OntologyIndex) -> None:
    assert [one.id for one in index.documents] == ["OMIM:1", "OMIM:2", "OMIM:3", "GENA", "GENB"]
    assert index.genes().ids == ("GENA", "GENB")
    assert index.sources == ("hp 2024", "hp 2025")


def test_a_publication_that_is_not_to_be_known_is_not_in_it_even_where_it_is_one_of_several(
    hpo: Path,
) -> None:
    # Short stature's source is "OMIM:1;PMID:2".
    text = document(from_hpo(hpo, unread=frozenset({"PMID:2", "PMID:3"})), "OMIM:1").text
    assert "Short stature" not in text
    assert "Seizure" in text
    assert document(from_hpo(hpo, unread=frozenset({"PMID:3"})), "OMIM:2").text == (
        "Beta disease. Genes: GENA; GENB."
    )


def test_lists_without_sources_are_left_out_if_wished(hpo: Path) -> None:
    assert "Cleft palate" not in document(from_hpo(hpo, newest_lists=False), "OMIM:3").text


@pytest.mark.parametrize("hidden", ["HP:4", "HP:94"])
def test_hidden_findings_are_in_no_document_and_otherwise_they_are(hpo: Path, hidden: str) -> None:
    assert all("Long face" not in one.text for one in from_hpo(hpo, hidden=frozenset({hidden})).documents)
    assert "Long face" in document(from_hpo(hpo), "OMIM:1").text


def test_the_same_sources_give_the_same_file_byte_for_byte(hpo: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        from_hpo(hpo).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = write_hpo(tmp_path / "again", reversed(DISEASES), reversed(TERMS))
    assert from_hpo(again).digest() == from_hpo(hpo).digest()


def test_a_saved_index_is_read_back(index: OntologyIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "index")
    assert OntologyIndex.load(tmp_path / "index") == index


def test_the_digest_covers_every_word_and_the_sources(index: OntologyIndex) -> None:
    first = index.documents[0]
    other = Document(kind=first.kind, id=first.id, title=first.title, text=f"{first.text} X")
    assert OntologyIndex(documents=(other, *index.documents[1:]), sources=index.sources).digest() != (
        index.digest()
    )
    assert OntologyIndex(documents=index.documents).digest() != index.digest()


def changed(index: OntologyIndex, folder: Path, old: str, new: str) -> Path:
    index.save(folder / "index")
    text = gzip.decompress((folder / "index").read_bytes()).decode()
    assert old in text
    (folder / "index").write_bytes(gzip.compress(text.replace(old, new, 1).encode()))
    return folder / "index"


def test_a_changed_word_is_refused(index: OntologyIndex, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"expected digest .* damaged"):
        OntologyIndex.load(changed(index, tmp_path, "Zebra", "Horse"))


def test_a_missing_line_is_refused(index: OntologyIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "index")
    lines = gzip.decompress((tmp_path / "index").read_bytes()).decode().splitlines(keepends=True)
    (tmp_path / "index").write_bytes(gzip.compress("".join(lines[:-1]).encode()))
    with pytest.raises(BadFileError, match="damaged"):
        OntologyIndex.load(tmp_path / "index")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"kind":"disease"', '"kind":"people"', "not an ontology index"),
        (',"title":"Beta disease"', "", "not an ontology index"),
        ('"OMIM:2"', '"OMIM:1"', "not an ontology index"),
        ('"schema":1', '"schema":"x"', "not an ontology index"),
        ('{"about"', '["about"', "not a gzipped file of JSON lines"),
    ],
)
def test_what_is_no_index_is_refused(
    index: OntologyIndex, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    with pytest.raises(BadFileError, match=reason):
        OntologyIndex.load(changed(index, tmp_path, old, new))


def test_an_index_of_a_newer_version_is_refused_as_such(index: OntologyIndex, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSchemaError, match="index: schema 2"):
        OntologyIndex.load(changed(index, tmp_path, '"schema":1', '"schema":2'))


@pytest.mark.parametrize("cut", [10, 200])
def test_a_cut_file_is_refused(index: OntologyIndex, tmp_path: Path, cut: int) -> None:
    index.save(tmp_path / "index")
    (tmp_path / "index").write_bytes((tmp_path / "index").read_bytes()[:-cut])
    with pytest.raises(BadFileError):
        OntologyIndex.load(tmp_path / "index")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"")
    with pytest.raises(BadFileError):
        OntologyIndex.load(tmp_path / "index")


def test_files_that_are_not_the_ontology_s_are_refused(tmp_path: Path) -> None:
    folder = write_hpo(tmp_path / "hpo", diseases=[{"name": "no id"}])
    with pytest.raises(BadFileError, match="not the tidied HPO files"):
        from_hpo(folder)


def test_a_disease_that_comes_twice_is_refused() -> None:
    facts = DiseaseFacts(id="OMIM:1", name="A", findings={"Seizure": None})
    with pytest.raises(SettingsError):
        build_index([facts, facts])


@pytest.mark.data
@pytest.mark.skipif(not HPO.is_dir(), reason="the HPO files are not beside the repository")
def test_the_real_index_finds_a_disease_from_its_own_findings() -> None:
    index = from_hpo(HPO)
    assert len(index.of_kind("disease")) > 12_000
    assert len(index.of_kind("gene")) > 4_000
    marfan = next(
        row for row in read_lines(HPO / "disease_annotations.jsonl.gz") if row["disease_id"] == "OMIM:154700"
    )
    labels = {row["id"]: row["label"] for row in read_lines(HPO / "hp_terms.jsonl.gz")}
    note = ", ".join(labels[one["id"]] for one in marfan["phenotypes"] if one.get("freq", 1) > 0.3)
    search = Bm25Retriever(index).search
    assert search(note, 1, "disease")[0].document.id == "OMIM:154700"
    assert "FBN1" in [hit.document.id for hit in search(note, 10, "gene")]
