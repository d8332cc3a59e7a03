"""Ranking a plan's answers: the beam that walks down the token trie, beside scoring every answer alone.

Both give a case's ten best of 217 answers. The reference runs prompt and answer together, once an answer. The
weights are random: a first token says nothing about how well an answer goes on, which is the worst case for a
beam, so that ``top10_agreement`` is a floor and not what a trained student has (``docs/benchmarks.md``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from client.student.decode import build_trie, rank_by_beam, score_one_by_one
from client.student.evaluate import SPARE_BEAMS
from client.student.model import Student
from simulations.benchmarks._measure import in_turns, parser, positive, report, with_model
from simulations.benchmarks.orpo_step import END_ID, draw_patients, make_llama_student

TOP = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = with_model(parser("decode", __doc__))
    options.add_argument("--cases", type=positive, default=4, help="default %(default)s")
    options.add_argument("--answers", type=positive, default=217, help="default %(default)s")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    student = make_llama_student(chosen.vocabulary, chosen.width, chosen.layers)
    prompts = [one.prompt for one in draw_patients(chosen.cases, chosen.prompt, chosen.vocabulary)]
    values = measure(student, prompts, draw_answers(chosen.answers, chosen.vocabulary), chosen.repeats)
    report(f"ranking {chosen.answers} answers", values, as_json=chosen.json)


def draw_answers(count: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Distinct answers of one to five tokens and the end; some begin alike, as names of diseases do."""
    rng = np.random.default_rng(1)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        first = int(rng.integers(5, min(vocabulary, 5 + count)))
        rest = rng.integers(5, vocabulary, size=int(rng.integers(0, 5))).tolist()
        drawn[(first, *rest, END_ID)] = None
    return list(drawn)


def measure(
    student: Student, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]], repeats: int
) -> dict[str, float | int]:
    """All figures of the benchmark."""
    trie = build_trie(answers)

    def by_beam() -> list[list[int]]:
        found = rank_by_beam(student.model, prompts, trie, beams=TOP + SPARE_BEAMS, pad_id=student.pad_id)
        return [[answer for answer, _ in case[:TOP]] for case in found]

    def one_by_one() -> list[list[int]]:
        return [
            np.argsort([-score for score in score_one_by_one(student.model, prompt, answers)], kind="stable")[
                :TOP
            ].tolist()
            for prompt in prompts
        ]

    seconds = in_turns({"beam": by_beam, "one_by_one": one_by_one}, repeats)
    shared = [len(set(a) & set(b)) for a, b in zip(by_beam(), one_by_one(), strict=True)]
    return {
        "cases": len(prompts),
        "answers": len(answers),
        **{f"{name}_cases_per_s": len(prompts) / taken for name, taken in seconds.items()},
        "ratio": seconds["one_by_one"] / seconds["beam"],
        "top10_agreement": sum(shared) / (len(shared) * min(TOP, len(answers))),
    }


if __name__ == "__main__":
    main()
