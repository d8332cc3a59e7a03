"""Who reads the prompts: any model that writes, and a student of this project.

A student may be held to the plan's answers: then it still writes its reasoning freely, and the list comes
from the trie, so that no answer outside the plan can come out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from client.retrieval.questions import Task
from client.student.decode import TrieNode, decode_freely
from client.student.evaluate import rank_cases
from client.student.model import Student
from client.student.prompts import StudentPrompt

ROOM = 4
"""A student's prompt takes all but one part in this many of its positions, unless it is told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a reader wrote, and how many tokens it read and wrote."""

    text: str
    tokens_in: int
    tokens_out: int


class Reader(Protocol):
    """A model that reads a prompt and writes."""

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt that it can read."""
        ...

    def count(self, text: str) -> int:
        """The tokens of a prompt."""
        ...

    def generate(self, prompt: str, longest: int) -> Generated:
        """What it writes after a prompt, at most ``longest`` tokens; an empty text is an answer too."""
        ...

    def rank(self, prompt: str, task: Task) -> list[tuple[str, float]] | None:
        """The best ``task.wanted`` answers as (id, confidence), or None: it writes its lists itself."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; the values of arXiv 2503.12286.

    Attributes:
        seed: The same seed and prompt give the same text.
        temperature, top_p, top_k: As everywhere.
    """

    seed: int
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 10


class StudentReader:
    """A student of notes as a reader.

    Args:
        student: With its adapter loaded.
        constrained: Whether its lists are held to the task's answers.
        lists: Whether it was taught lists of several names (``chosen_length`` > 1).
        longest_prompt: In tokens; three quarters of the model's positions without it.
        sampling: How it draws what it writes freely; greedy without.
    """

    def __init__(
        self,
        student: Student,
        *,
        constrained: bool,
        lists: bool,
        longest_prompt: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self._student, self._sampling = student, sampling
        self._constrained, self._lists = constrained, lists
        self._positions = int(student.model.config.max_position_embeddings)
        self._longest = longest_prompt or self._positions - self._positions // ROOM
        if not 1 <= self._longest < self._positions:
            raise ValueError(
                f"Expected longest_prompt below the model's {self._positions} positions, got {self._longest}"
            )
        self._tries: dict[tuple[str, str], TrieNode] = {}

    @property
    def longest_prompt(self) -> int:
        """As ``Reader``."""
        return self._longest

    def count(self, text: str) -> int:
        """As ``Reader``."""
        # A tokenizer's limit is one for its model; here nothing is cut, whatever the length.
        return len(self._student.prompt_ids(text, max(self._longest, 4 * len(text) + 4096)))

    def generate(self, prompt: str, longest: int) -> Generated:
        """As ``Reader``; never beyond the model's positions."""
        ids = self._student.prompt_ids(prompt, self._longest)
        longest = min(longest, self._positions - len(ids))
        written = self._sampled(ids, longest, prompt) if self._sampling else self._greedy(ids, longest)
        text = str(self._student.tokenizer.decode(written, skip_special_tokens=True))
        return Generated(text=text, tokens_in=len(ids), tokens_out=len(written))

    def rank(self, prompt: str, task: Task) -> list[tuple[str, float]] | None:
        """As ``Reader``."""
        if not self._constrained:
            return None
        (case,) = rank_cases(
            self._student,
            [StudentPrompt(text=prompt)],
            self._trie(task),
            top=task.wanted,
            max_prompt_tokens=self._longest,
        )
        ids = (task.answers.ids[row] for row in case.answers)
        return list(zip(ids, case.confidence, strict=True))

    def _trie(self, task: Task) -> TrieNode:
        key = (task.header, task.answers.digest())
        if key not in self._tries:
            self._tries[key] = self._student.answer_trie(task.header, task.answers, lists=self._lists)
        return self._tries[key]

    def _greedy(self, ids: Sequence[int], longest: int) -> list[int]:
        student = self._student
        (written,) = decode_freely(
            student.model, [ids], pad_id=student.pad_id, end_id=student.end_id, longest=longest
        )
        return written

    @torch.no_grad()
    def _sampled(self, ids: Sequence[int], longest: int, prompt: str) -> list[int]:
        assert self._sampling is not None
        inputs = torch.tensor([ids], device=next(self._student.model.parameters()).device)
        # Seeded by the prompt too: what a case gets does not depend on the cases before it.
        seed = hashlib.sha256(f"{self._sampling.seed}\n{prompt}".encode()).digest()
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(seed[:7], "big"))
            whole = self._student.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=True,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                top_k=self._sampling.top_k,
                max_new_tokens=longest,
                pad_token_id=self._student.pad_id,
                eos_token_id=self._student.end_id,
            )
        written = whole[0, len(ids) :].tolist()
        return written[: written.index(self._student.end_id)] if self._student.end_id in written else written
