"""The ontology index of the Human Phenotype Ontology's tidied files: terms, and annotations of diseases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from client.retrieval.index import DiseaseFacts, OntologyIndex, build_index, read_lines
from common.errors import BadFileError
from common.tracks import fold

# Terms that the tidied file knows from a case's label alone.
NO_RELEASE = "label seen in the cases only"


def from_hpo(
    folder: Path,
    *,
    hidden: frozenset[str] = frozenset(),
    unread: frozenset[str] = frozenset(),
    newest_lists: bool = True,
) -> OntologyIndex:
    """The index of the tidied HPO files in ``folder``.

    Guarantee: an annotation that names a publication of ``unread`` among its sources is not in it.

    Args:
        folder: With ``hp_terms.jsonl.gz`` and ``disease_annotations.jsonl.gz``.
        hidden: Ids of findings that are left out: the facial ones, where a simulation leaves them to the
            photo.
        unread: Publications that the index must not know, for example those whose cases are tested on.
        newest_lists: Whether the terms that the release of 2025 lists are read too. They come without
            frequencies and without sources, so that none can be left out for where it was found.

    Raises:
        BadFileError: A file is damaged, or not what its name says.
        FileNotFoundError: It is not there.
    """
    terms, annotations = folder / "hp_terms.jsonl.gz", folder / "disease_annotations.jsonl.gz"
    sources: set[str] = set()
    labels: dict[str, str] = {}
    shown: dict[str, str] = {}
    try:
        for term in read_lines(terms):
            if str(term.get("source", "")).startswith(NO_RELEASE):
                continue
            sources.add(str(term.get("source", "")))
            # Annotations may use an id that the ontology has since merged into another.
            named = dict.fromkeys([term["id"], *term.get("alt_ids", [])], str(term["label"]))
            labels |= named
            if term.get("is_phenotype") and hidden.isdisjoint(named):
                shown |= named
        facts = [
            _facts(row, labels, shown, unread, newest_lists=newest_lists) for row in read_lines(annotations)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFileError(folder, f"not the tidied HPO files: {error!r}") from error
    return build_index(facts, sorted(sources - {""}))


def _facts(
    row: Mapping[str, Any],
    labels: Mapping[str, str],
    shown: Mapping[str, str],
    unread: frozenset[str],
    *,
    newest_lists: bool,
) -> DiseaseFacts:
    name = " ".join(str(row["name"]).split())
    newest = " ".join(str(row.get("name_2025", "")).split())
    return DiseaseFacts(
        id=str(row["disease_id"]),
        name=name,
        synonyms=(newest,) if newest and fold(newest) != fold(name) else (),
        genes=tuple(dict.fromkeys(row.get("genes", ()))),
        inheritance=_labelled(row.get("inheritance", ()), labels),
        course=_labelled([*row.get("course", ()), *row.get("modifiers", ())], labels),
        findings=_shares(row, shown, unread, newest_lists=newest_lists),
    )


def _labelled(ids: Iterable[str], labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels[identifier] for identifier in ids if identifier in labels))


def _shares(
    row: Mapping[str, Any], shown: Mapping[str, str], unread: frozenset[str], *, newest_lists: bool
) -> dict[str, float | None]:
    """The share of patients by finding, in the order of the findings' names; a NOT is no finding."""
    found: dict[str, float | None] = {}
    for one in row.get("phenotypes", ()):
        share = one.get("freq")
        # An annotation may name several publications, with semicolons between them.
        known = unread.isdisjoint(part.strip() for part in str(one.get("ref", "")).split(";"))
        if known and one.get("qualifier") != "NOT" and share != 0 and one["id"] in shown:
            label = shown[one["id"]]
            found[label] = max(float(share or 0), found.get(label) or 0.0) or None
    for identifier in row.get("hpo_2025", ()) if newest_lists else ():
        if identifier in shown:
            found.setdefault(shown[identifier], None)
    return dict(sorted(found.items()))
