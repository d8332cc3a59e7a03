"""The ontology index of a simulation: what a hospital would build from public files."""

from __future__ import annotations

from client.patients.notes import read_facial_ids
from client.retrieval.hpo import from_hpo
from client.retrieval.index import DiseaseFacts, OntologyIndex, build_index
from simulations.data_settings import PhenopacketData
from simulations.faces import FACIAL_TERMS
from simulations.hospital import load_casebook
from simulations.populations import Population
from simulations.settings import SimulationSettings
from simulations.syndromes import Casebook


def simulation_index(settings: SimulationSettings, population: Population) -> OntologyIndex:
    """The documents that retrieval looks things up in, of a text track.

    Findings that the notes leave to the photo are not in them, nor, with ``data.public_text_apart``, what was
    annotated from a publication held out.

    Raises:
        BadFileError, FileNotFoundError: The ontology's files cannot be read.
    """
    data = settings.data
    if not isinstance(data, PhenopacketData):
        return syndrome_index(load_casebook())
    root = data.root.expanduser()
    unread = (record.group for record in population.new_publications if record.group)
    return from_hpo(
        root / "hpo",
        hidden=read_facial_ids(root / "faces" / "face_terms.csv") | frozenset(FACIAL_TERMS),
        unread=frozenset(unread) if data.public_text_apart else frozenset(),
        newest_lists=not data.public_text_apart,
    )


def syndrome_index(casebook: Casebook) -> OntologyIndex:
    """Documents of the synthetic syndromes: their names and how often a finding occurs that notes tell of."""
    ids = {answer.name: answer.id for answer in casebook.answers.answers}
    return build_index(
        [
            DiseaseFacts(
                id=ids[syndrome.name],
                name=syndrome.name,
                findings={t.finding.label: t.frequency for t in syndrome.findings if not t.facial},
            )
            for syndrome in casebook.syndromes
        ],
        [casebook.answers.answers[0].ontology],
    )
