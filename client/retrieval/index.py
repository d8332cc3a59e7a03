"""The ontology index: one document for each disease and for each gene, of public knowledge only.

It is built once, is the same at every site, and is named by a digest. A file of it is gzipped JSON lines: a
first line with schema, sources and digest, then one line a document.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from common.atomic import write_atomically
from common.canonical import canonical_json, json_digest, plain
from common.checks import require, require_line, require_once, require_schema
from common.errors import BadFileError, FederationError, UnsupportedSchemaError
from common.schema import build, conform
from common.tracks import Answer, AnswerList

INDEX_SCHEMA = 1

DocumentKind = Literal["disease", "gene"]

# The ontology's own classes of frequency, from the least share of patients on (HP:0040279 and its siblings).
FREQUENCY_WORDS = (
    (1.0, "Always"),
    (0.8, "Very frequent"),
    (0.3, "Frequent"),
    (0.05, "Occasional"),
    (0.0, "Very rare"),
)
UNSTATED_WORDS = "Also described"


@dataclass(frozen=True, kw_only=True)
class DiseaseFacts:
    """What public annotations say of a disease, in words.

    Attributes:
        id: For example ``OMIM:154700``.
        name: As the source gives it.
        synonyms: Other names.
        genes: Symbols.
        inheritance, course: Modes of inheritance; onset and course.
        findings: The share of patients that has a finding, by the finding's name; None where no source
            says it.
    """

    id: str
    name: str
    synonyms: tuple[str, ...] = ()
    genes: tuple[str, ...] = ()
    inheritance: tuple[str, ...] = ()
    course: tuple[str, ...] = ()
    findings: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Document:
    """What the index says of one disease or one gene.

    Attributes:
        kind: Which of the two.
        id: Of the disease; a gene's symbol.
        title: Its name.
        text: All of it, the title included.
        about: Ids of what else it tells of: a disease's genes, a gene's diseases.
    """

    kind: DocumentKind
    id: str
    title: str
    text: str
    about: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        conform(self)
        require_line("id", self.id)
        require_line("title", self.title)
        require(bool(self.text.strip()), "text", "nothing", "words")

    def tells_of(self, identifier: str) -> bool:
        """Whether it is about this disease or gene."""
        return identifier == self.id or identifier in self.about


@dataclass(frozen=True, kw_only=True)
class OntologyIndex:
    """All documents, in the order of their ids, diseases first.

    Guarantee: the same sources give the same documents, the same digest and the same file, byte for byte.

    Attributes:
        documents: Each id once.
        sources: The releases that it was made from, to be named wherever it is shown.
    """

    documents: tuple[Document, ...]
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.documents), "documents", "none", "at least one")
        require_once("documents", [document.id for document in self.documents])

    def of_kind(self, kind: DocumentKind) -> tuple[Document, ...]:
        """The documents of one kind, in order."""
        return tuple(document for document in self.documents if document.kind == kind)

    def genes(self) -> AnswerList:
        """The answers of the gene task: every gene that has a document."""
        ontology = "; ".join(self.sources)
        return AnswerList(
            answers=tuple(
                Answer(id=document.id, name=document.title, ontology=ontology)
                for document in self.of_kind("gene")
            )
        )

    def digest(self) -> str:
        """SHA-256 of the sources and all documents, 64 hexadecimal digits."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return json_digest({"schema": INDEX_SCHEMA, **plain(self)})

    def save(self, path: Path) -> None:
        """Write the index as one file, whole or not at all."""
        first = {
            "schema": INDEX_SCHEMA,
            "digest": self.digest(),
            "sources": list(self.sources),
            "documents": len(self.documents),
        }
        lines = [canonical_json(first), *(canonical_json(plain(document)) for document in self.documents)]
        packed = io.BytesIO()
        # Neither a time nor a name: the same index is the same file.
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
        write_atomically(path, packed.getvalue())

    @classmethod
    def load(cls, path: Path) -> OntologyIndex:
        """The index of a file.

        Raises:
            BadFileError: It is no such file, or not all of it is as it was written.
            UnsupportedSchemaError: A newer version wrote it.
        """
        lines = read_lines(path)
        try:
            first = next(lines, {})
            require_schema("index", first.get("schema"), INDEX_SCHEMA)
            sources = tuple(map(str, first.get("sources", ())))
            documents = tuple(build(Document, line, "index") for line in lines)
            index = cls(documents=documents, sources=sources)
        except UnsupportedSchemaError as error:
            raise error.at(path) from error
        except BadFileError:
            raise
        except (ValueError, TypeError, FederationError) as error:
            raise BadFileError(path, f"not an ontology index: {error}") from error
        if first.get("digest") != index.digest():
            raise BadFileError(path, f"expected digest {first.get('digest')}, got {index.digest()}: damaged")
        return index


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped file of JSON lines; BadFileError if it is none."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("expected a JSON object in each line")
                yield value
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise BadFileError(path, f"not a gzipped file of JSON lines: {error}") from error


def build_index(diseases: Iterable[DiseaseFacts], sources: Sequence[str] = ()) -> OntologyIndex:
    """The index of these diseases and of the genes that they name; SettingsError if an id comes twice."""
    ordered = sorted(diseases, key=lambda disease: disease.id)
    by_gene: dict[str, list[DiseaseFacts]] = {}
    for disease in ordered:
        for gene in disease.genes:
            by_gene.setdefault(gene, []).append(disease)
    return OntologyIndex(
        documents=(
            *map(_disease_document, ordered),
            *(_gene_document(gene, by_gene[gene]) for gene in sorted(by_gene)),
        ),
        sources=tuple(sources),
    )


def _disease_document(disease: DiseaseFacts) -> Document:
    parts = [
        f"{disease.name}.",
        _part("Also called", disease.synonyms),
        _part("Genes", disease.genes),
        _part("Inheritance", disease.inheritance),
        _part("Onset and course", disease.course),
        *_findings(disease.findings),
    ]
    return Document(
        kind="disease", id=disease.id, title=disease.name, text=_joined(parts), about=disease.genes
    )


def _gene_document(gene: str, diseases: Sequence[DiseaseFacts]) -> Document:
    findings: dict[str, float | None] = {}
    for disease in diseases:
        for name, share in disease.findings.items():
            findings[name] = max(share or 0.0, findings.get(name) or 0.0) or None
    parts = [
        f"Gene {gene}.",
        _part("Diseases", tuple(dict.fromkeys(disease.name for disease in diseases))),
        _part("Inheritance", tuple(dict.fromkeys(one for d in diseases for one in d.inheritance))),
        *_findings(dict(sorted(findings.items()))),
    ]
    about = tuple(disease.id for disease in diseases)
    return Document(kind="gene", id=gene, title=gene, text=_joined(parts), about=about)


def _part(heading: str, words: Sequence[str]) -> str:
    return f"{heading}: {'; '.join(words)}." if words else ""


def _findings(findings: Mapping[str, float | None]) -> list[str]:
    """One part for each class of frequency, the most frequent first."""
    classes: dict[str, list[str]] = {words: [] for words in (*dict(FREQUENCY_WORDS).values(), UNSTATED_WORDS)}
    for name, share in findings.items():
        classes[_frequency_words(share)].append(name)
    return [_part(words, names) for words, names in classes.items()]


def _frequency_words(share: float | None) -> str:
    if share is None:
        return UNSTATED_WORDS
    return next(words for least, words in FREQUENCY_WORDS if share >= least)


def _joined(parts: Iterable[str]) -> str:
    return " ".join(part for part in parts if part)
