"""Search in the ontology index: by words (BM25), by embeddings, and reordered by a cross-encoder.

All run in this process on documents in memory. No query is written or logged anywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import bm25s
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from client.retrieval.index import Document, DocumentKind, OntologyIndex
from client.student.model import digest_base
from common.errors import BadFileError

RERANKED = 3
"""Documents that a reranker reads, as in the paper (arXiv 2503.12286)."""
LONGEST_TEXT = 512
"""Tokens that an encoder reads of a text: what the encoders of this family were trained on."""
TEXTS_AT_ONCE = 32

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A document that was found.

    Attributes:
        document: The document.
        score: The larger, the better; of this retriever and this query only.
    """

    document: Document
    score: float


class Retriever(Protocol):
    """Finds documents for a text."""

    def search(self, query: str, k: int, kind: DocumentKind | None = None) -> list[Hit]:
        """The best ``k`` documents, of one kind if it is given, best first; ties in the index's order."""
        ...


def words(text: str) -> list[str]:
    """Plain words in lower case: runs of letters and digits."""
    return _WORD.findall(text.lower())


class Bm25Retriever:
    """Scores documents by the words they share with a query, rare words more (BM25, library bm25s).

    A document that shares no word with the query is no hit.
    """

    def __init__(self, index: OntologyIndex) -> None:
        self._documents = index.documents
        self._bm25 = bm25s.BM25()
        self._bm25.index([words(document.text) for document in self._documents], show_progress=False)

    def search(self, query: str, k: int, kind: DocumentKind | None = None) -> list[Hit]:
        """As ``Retriever``."""
        known = [word for word in words(query) if word in self._bm25.vocab_dict]
        if not known:
            return []
        scores = np.asarray(self._bm25.get_scores(known), dtype=np.float64)
        return _best(self._documents, scores, k, kind, above=0.0)


class DenseRetriever:
    """Scores documents by the cosine of embeddings: mean pooling over a transformer's last layer.

    Args:
        index: Of the documents.
        folder: Of a sentence-transformers-like model: encoder and tokenizer.
        kept: Folder in which the documents' embeddings are kept for the next time, under a name made of
            the digests of index and model; they take long to compute.

    Raises:
        BadFileError: The folder holds no such model.
    """

    def __init__(self, index: OntologyIndex, folder: Path, kept: Path | None = None) -> None:
        self._documents = index.documents
        self._tokenizer, self._model = _load(folder, AutoModel)
        self._vectors = self._embedded(index, folder, kept)

    def search(self, query: str, k: int, kind: DocumentKind | None = None) -> list[Hit]:
        """As ``Retriever``."""
        return _best(self._documents, self._vectors @ self._embed([query])[0], k, kind)

    def _embedded(self, index: OntologyIndex, folder: Path, kept: Path | None) -> NDArray[np.float32]:
        if kept is None:
            return self._embed([document.text for document in self._documents])
        # Embeddings of another index or another model must never be taken for these.
        of = hashlib.sha256(f"{index.digest()} {digest_base(folder)}".encode()).hexdigest()
        file = kept / f"embeddings-{of[:32]}.npy"
        if not file.is_file():
            np.save(file, self._embed([document.text for document in self._documents]))
        vectors: NDArray[np.float32] = np.load(file, allow_pickle=False)
        if vectors.ndim != 2 or len(vectors) != len(self._documents):
            raise BadFileError(file, f"expected {len(self._documents)} embeddings, got {vectors.shape}")
        return vectors

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Of norm 1: (texts, width)."""
        vectors: list[NDArray[np.float32]] = []
        for batch in _batches(texts):
            inputs = self._tokenizer(
                batch, padding=True, truncation=True, max_length=LONGEST_TEXT, return_tensors="pt"
            )
            states: Tensor = self._model(**inputs).last_hidden_state
            real = inputs["attention_mask"][..., None].float()
            mean = (states.float() * real).sum(1) / real.sum(1).clamp(min=1.0)
            vectors.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(vectors)


class Reranked:
    """Another retriever's first documents, in the order of a cross-encoder that reads query and document.

    Args:
        retriever: Finds the documents.
        folder: Of a sequence classifier with one output, the relevance, or two, the second being it.
        first: How many documents are reordered; no more than these come back.

    Raises:
        BadFileError: The folder holds no such model.
    """

    def __init__(self, retriever: Retriever, folder: Path, first: int = RERANKED) -> None:
        self._retriever, self._first = retriever, first
        self._tokenizer, self._model = _load(folder, AutoModelForSequenceClassification)
        outputs = int(self._model.config.num_labels)
        if outputs not in (1, 2):
            raise BadFileError(folder, f"expected a classifier with one output or two, got {outputs}")

    @torch.no_grad()
    def search(self, query: str, k: int, kind: DocumentKind | None = None) -> list[Hit]:
        """As ``Retriever``; ties in the order in which the documents were found."""
        found = self._retriever.search(query, self._first, kind)
        scores: list[float] = []
        for batch in _batches(found):
            # The query is cut where both do not fit: a document's name stands at its beginning.
            inputs = self._tokenizer(
                [query] * len(batch),
                [hit.document.text for hit in batch],
                padding=True,
                truncation="longest_first",
                max_length=LONGEST_TEXT,
                return_tensors="pt",
            )
            logits = self._model(**inputs).logits.float()
            scores += (logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]).tolist()
        return _best([hit.document for hit in found], np.array(scores), k, None)


def _best(
    documents: Sequence[Document],
    scores: NDArray[np.floating],
    k: int,
    kind: DocumentKind | None,
    above: float = -np.inf,
) -> list[Hit]:
    order = (int(row) for row in np.argsort(-scores, kind="stable") if scores[row] > above)
    wanted = (row for row in order if kind in (None, documents[row].kind))
    return [Hit(document=documents[row], score=float(scores[row])) for row in islice(wanted, k)]


def _batches(rows: Sequence[Any]) -> list[Sequence[Any]]:
    return [rows[start : start + TEXTS_AT_ONCE] for start in range(0, len(rows), TEXTS_AT_ONCE)]


def _load(folder: Path, family: Any) -> tuple[Any, Any]:
    """Tokenizer and model of a folder on this machine."""
    try:
        digest_base(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = family.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise BadFileError(folder, str(error)) from error
    return tokenizer, model
