"""A tiny ontology, tiny encoders, and a reader that writes what a test tells it to."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from client.retrieval.index import OntologyIndex
from client.retrieval.questions import Task
from client.retrieval.readers import Generated
from client.retrieval.retrievers import words

TERMS = [
    {"id": "HP:1", "label": "Seizure", "is_phenotype": True, "source": "hp 2024", "alt_ids": ["HP:91"]},
    {"id": "HP:2", "label": "Short stature", "is_phenotype": True, "source": "hp 2024"},
    {"id": "HP:3", "label": "Zebra stripes", "is_phenotype": True, "source": "hp 2024"},
    {"id": "HP:4", "label": "Long face", "is_phenotype": True, "source": "hp 2024", "alt_ids": ["HP:94"]},
    {"id": "HP:5", "label": "Cleft palate", "is_phenotype": True, "source": "hp 2025"},
    {"id": "HP:6", "label": "Autosomal dominant", "is_phenotype": False, "source": "hp 2024"},
    {"id": "HP:7", "label": "Infantile onset", "is_phenotype": False, "source": "hp 2024"},
    {"id": "HP:8", "label": "Known from a case", "is_phenotype": True,
     "source": "label seen in the cases only (newer HPO)"},
]  # fmt: skip
DISEASES = [
    {
        "disease_id": "OMIM:1",
        "name": "Alpha syndrome",
        "name_2025": "Alpha-one syndrome",
        "genes": ["GENA"],
        "inheritance": ["HP:6"],
        "course": ["HP:7"],
        "phenotypes": [
            {"id": "HP:1", "freq": 0.9, "ref": "PMID:1"},
            {"id": "HP:2", "freq": 0.4, "ref": "OMIM:1;PMID:2"},
            {"id": "HP:4", "ref": "OMIM:1"},
            {"id": "HP:5", "freq": 0.0, "ref": "OMIM:1"},
        ],
        "hpo_2025": ["HP:1", "HP:6", "HP:8"],
    },
    {
        "disease_id": "OMIM:2",
        "name": "Beta disease",
        "genes": ["GENA", "GENB"],
        "phenotypes": [
            {"id": "HP:3", "freq": 1.0, "ref": "PMID:3"},
            {"id": "HP:91", "freq": 0.1, "ref": "PMID:3"},
            {"id": "HP:2", "qualifier": "NOT", "ref": "PMID:3"},
        ],
    },
    {
        "disease_id": "OMIM:3",
        "name": "Gamma dysplasia",
        "phenotypes": [{"id": "HP:2", "freq": 0.02, "ref": "PMID:4"}],
        "hpo_2025": ["HP:5"],
    },
]
PLANTED = "zebra stripes"
"""A finding that the document of OMIM:2 alone has, and of its genes."""


def write_hpo(folder: Path, diseases: Iterable[object] = DISEASES, terms: Iterable[object] = TERMS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("hp_terms", terms), ("disease_annotations", diseases)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return folder


def _tokenizer(index: OntologyIndex, folder: Path) -> PreTrainedTokenizerFast:
    known = sorted({word for document in index.documents for word in words(document.text)})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    fast.save_pretrained(folder)
    return fast


def _bert(vocabulary: int, **more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
        **more,
    )


def save_encoder(index: OntologyIndex, folder: Path) -> Path:
    """An encoder whose layer passes on what it gets: a text's embedding is the mean of its words'."""
    fast = _tokenizer(index, folder)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = BertModel(_bert(len(fast), initializer_range=0.3))
        embeddings, layer = model.embeddings, model.encoder.layer[0]
        embeddings.word_embeddings.weight[:4] = 0  # padding, unknown, start and end
        for part in (
            embeddings.position_embeddings,
            embeddings.token_type_embeddings,
            layer.attention.output.dense,
            layer.output.dense,
        ):
            part.weight.zero_()
        model.save_pretrained(folder)
    return folder


def save_cross_encoder(index: OntologyIndex, folder: Path, relevant: str, outputs: int) -> Path:
    """A classifier that was taught which document is relevant, whatever the query."""
    fast = _tokenizer(index, folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(_bert(len(fast), num_labels=outputs))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        texts = [document.text for document in index.documents]
        inputs = fast(["short stature"] * len(texts), texts, padding=True, return_tensors="pt")
        truth = torch.tensor([float(document.id == relevant) for document in index.documents])
        for _ in range(40):
            logits = model(**inputs).logits
            margin = logits[:, -1] - logits[:, 0] if outputs == 2 else logits[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(folder)
    return folder


class ToldReader:
    """Writes what it is told, word for word a token; remembers what it was asked."""

    def __init__(self, *texts: str, longest_prompt: int = 10_000, ranked: list[str] | None = None) -> None:
        self.texts, self.longest_prompt, self.ranked = list(texts), longest_prompt, ranked
        self.prompts: list[str] = []
        self.ranked_prompts: list[str] = []
        self.longest: list[int] = []

    def count(self, text: str) -> int:
        return len(text.split())

    def generate(self, prompt: str, longest: int) -> Generated:
        self.prompts.append(prompt)
        self.longest.append(longest)
        text = self.texts.pop(0)
        return Generated(text=text, tokens_in=self.count(prompt), tokens_out=self.count(text))

    def rank(self, prompt: str, task: Task) -> list[tuple[str, float]] | None:
        if self.ranked is None:
            return None
        self.ranked_prompts.append(prompt)
        return [(one, 0.5**place) for place, one in enumerate(self.ranked, start=1)]


def numbered(header: str, names: Iterable[str], write: Callable[[str], str] = str) -> str:
    return "\n".join([header, *(f"{i}. {write(name)}" for i, name in enumerate(names, start=1))])
