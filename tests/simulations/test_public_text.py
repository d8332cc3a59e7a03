import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import BadFileError
from simulations.public_text import (
    PublicDisease,
    PublicNotes,
    PublicText,
    from_hpo,
    from_syndromes,
    read_lines,
)
from simulations.syndromes import load_casebook

DATA = Path(__file__).parents[3] / "shared" / "data"
LABELS = {f"HP:{i:07d}": f"Finding {i}" for i in range(1, 9)}
TEXT = PublicText(
    labels=LABELS,
    parents={"HP:0000001": ("HP:0000008",)},
    sentences=("Finding 1: a finding.",),
    names=("Alpha", "Beta"),
    diseases=(
        PublicDisease(name="Alpha", frequencies={"HP:0000001": 1.0, "HP:0000002": 1.0}, planned=True),
        PublicDisease(name="Beta", frequencies={"HP:0000003": 1.0, "HP:0000004": 1.0}, planned=False),
    ),
)


def test_notes_are_of_their_disease_and_half_of_them_of_the_plans_answers() -> None:
    notes = PublicNotes(TEXT, np.random.default_rng(0))
    drawn = [notes.draw() for _ in range(300)]
    assert 110 < sum(name == "Alpha" for _, name in drawn) < 190
    own = {"Alpha": ("finding 1", "finding 2", "finding 8"), "Beta": ("finding 3", "finding 4")}
    for note, name in drawn:
        presented = note.split("looked for")[0].lower()
        assert any(finding in presented for finding in own[name])


def test_the_same_seed_draws_the_same_notes() -> None:
    one, other = (PublicNotes(TEXT, np.random.default_rng(4)) for _ in range(2))
    assert [one.draw() for _ in range(9)] == [other.draw() for _ in range(9)]


def test_text_without_diseases_gives_notes_without_a_name() -> None:
    text = replace(TEXT, diseases=())
    note, name = PublicNotes(text, np.random.default_rng(0)).draw()
    assert note
    assert name == ""


def test_syndromes_are_described_and_facial_findings_are_in_no_drawn_note() -> None:
    casebook = load_casebook()
    text = from_syndromes(casebook, seed=0)
    facial = {finding.id for finding in casebook.facial}
    assert not any(facial & set(disease.frequencies) for disease in text.diseases)
    for syndrome in casebook.syndromes:
        assert any(syndrome.name in sentence for sentence in text.sentences)
    assert (
        text.digest()
        == from_syndromes(casebook, seed=0).digest()
        != from_syndromes(casebook, seed=1).digest()
    )


def test_a_file_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_text("{}")
    with pytest.raises(BadFileError, match="not a gzipped file"):
        list(read_lines(path))


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not beside the repository")
def test_hidden_findings_are_in_no_public_note_of_the_real_ontology() -> None:
    hidden = frozenset({"HP:0000252"})
    text = from_hpo(
        DATA / "hpo", {"OMIM:162200": "Neurofibromatosis, type 1"}, hidden, other_diseases=50, seed=0
    )
    assert len(text.diseases) == 51
    assert [disease.name for disease in text.diseases if disease.planned] == ["Neurofibromatosis, type 1"]
    assert not any(hidden & set(disease.frequencies) for disease in text.diseases)


def test_what_was_annotated_from_a_publication_that_must_not_be_read_is_not_in_the_text(
    tmp_path: Path,
) -> None:
    terms = [{"id": f"HP:{i}", "label": f"Sign {i}", "is_phenotype": True} for i in range(1, 7)]
    sources = ["PMID:1", "PMID:2;PMID:3", "PMID:9 ; PMID:1", "PMID:4", ""]
    disease = {
        "disease_id": "OMIM:1",
        "name": "Some disease",
        "phenotypes": [{"id": f"HP:{i}", "freq": 0.5, "ref": ref} for i, ref in enumerate(sources, start=1)],
        "hpo_2025": ["HP:6"],
    }
    for name, rows in (("hp_terms", terms), ("disease_annotations", [disease])):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)

    def findings(**options: object) -> set[str]:
        text = from_hpo(
            tmp_path, {"OMIM:1": "Some disease"}, frozenset(), other_diseases=0, seed=0, **options
        )
        return set(text.diseases[0].frequencies) if text.diseases else set()

    assert findings() == {f"HP:{i}" for i in range(1, 7)}
    assert findings(unread=frozenset({"PMID:1"})) == {"HP:2", "HP:4", "HP:5", "HP:6"}
    # Without the lists of the newest release two findings are left: too few to describe a disease.
    assert findings(unread=frozenset({"PMID:1", "PMID:3"}), newest_lists=False) == set()
    assert findings(unread=frozenset({"PMID:1"}), newest_lists=False) == {"HP:2", "HP:4", "HP:5"}
