"""Answers from a student: constrained to the plan's answers, or free.

Constrained: the plan's answers form a token trie, and a beam walks down it, so an answer outside the plan
cannot come out. All beams of a case live in *one* row of the batch: each step appends its tokens as new
columns, and a mask lets a column see the prompt and its own ancestors. The prompt's keys and values, those of
its image among them, are computed once and never copied. ``score_one_by_one`` is the plain reference.

Free: greedy decoding without any constraint, from which the invalid-answer rate is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from client.patients.photos import SlideRef
from client.student.branches import plain_log_probs
from client.student.vision import Vision, images_for


@dataclass
class TrieNode:
    """A node of the token trie: which tokens may follow, and which answer ends here."""

    children: dict[int, TrieNode] = field(default_factory=dict)
    answer: int | None = None


def build_trie(token_ids: Sequence[Sequence[int]]) -> TrieNode:
    """A trie of token sequences; sequence i ends in a node whose ``answer`` is i.

    Raises:
        ValueError: Two sequences are equal, one is empty, or one is the beginning of another.
    """
    root = TrieNode()
    for index, ids in enumerate(token_ids):
        node = root
        for token in ids:
            node = node.children.setdefault(token, TrieNode())
        if not ids or node.answer is not None:
            raise ValueError(
                f"Expected distinct, non-empty answers; number {index} equals another or is empty"
            )
        node.answer = index
    for node in _walk(root):
        if node.answer is not None and node.children:
            raise ValueError(f"Expected every answer to end with a terminator; number {node.answer} goes on")
    return root


def _walk(root: TrieNode) -> Iterator[TrieNode]:
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def shared_prefix(trie: TrieNode) -> tuple[tuple[int, ...], TrieNode]:
    """The tokens that every answer begins with, and the node after them."""
    tokens: list[int] = []
    while len(trie.children) == 1 and trie.answer is None:
        ((token, trie),) = trie.children.items()
        tokens.append(token)
    return tuple(tokens), trie


@dataclass(frozen=True)
class _Beam:
    """A partial answer: where it is in the trie, its score, and the cache columns of its tokens."""

    node: TrieNode
    score: float
    columns: tuple[int, ...]
    token: int


@dataclass(frozen=True)
class _Prompts:
    """Prompts of a batch, padded on the left, and what the model gets with them.

    ``ids`` and ``real`` are (rows, columns), the latter False where padded; ``positions`` (rows, columns) or
    (3, rows, columns); ``after`` (rows,) the position of the first token after the prompt.
    """

    ids: Tensor
    real: Tensor
    positions: Tensor
    after: Tensor
    images: Mapping[str, Tensor]


def _pad_left(
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device,
    vision: Vision | None,
    images: Sequence[SlideRef],
) -> _Prompts:
    images = images_for(vision, images, len(prompts))
    columns = max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = torch.full((len(prompts), columns), pad_id, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, columns - len(prompt) :] = torch.tensor(prompt)
    real = torch.arange(columns, device=device)[None] >= columns - lengths[:, None]
    positions = (torch.arange(columns, device=device)[None] - (columns - lengths)[:, None]).clamp(min=0)
    if vision is None:
        return _Prompts(ids, real, positions, lengths, {})
    placed = vision.positions(prompts, images, positions)
    # An image may take fewer positions than tokens: what follows goes on from the largest position.
    after = placed.reshape(-1, *positions.shape).amax((0, 2)) + 1
    return _Prompts(ids, real, placed, after, vision.inputs(images, ids))


@torch.no_grad()
def rank_by_beam(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    trie: TrieNode,
    *,
    beams: int,
    pad_id: int,
    vision: Vision | None = None,
    images: Sequence[SlideRef] = (),
) -> list[list[tuple[int, float]]]:
    """Each case's best answers as (answer index, summed log-probability), best first, at most ``beams``.

    Guarantee: with as many beams as there are answers the ranking equals scoring every answer alone.

    Args:
        model: A causal language model, or one that reads images.
        prompts: Token ids, any lengths; what begins every answer (the header) may be part of them.
        trie: Of answers, each ending with a terminator.
        beams: How many partial answers a case keeps, and how many answers come back.
        pad_id: What fills short prompts on the left.
        vision: Of an image student.
        images: Of an image student, one for each prompt, all of the same shapes.
    """
    device = next(model.parameters()).device
    batch = _pad_left(prompts, pad_id, device, vision, images)
    columns = batch.ids.shape[1]
    cache = DynamicCache()
    logits = model(
        input_ids=batch.ids,
        attention_mask=batch.real.long(),
        position_ids=batch.positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **batch.images,
    ).logits
    finished: list[list[tuple[int, float]]] = [[] for _ in prompts]
    roots = [[_Beam(trie, 0.0, (), -1)] for _ in prompts]
    alive = _grow(roots, logits.float().log_softmax(-1), finished, beams)
    depth = 0
    while any(alive):
        width = max(map(len, alive))
        first = columns + cache_columns(cache, columns)
        step, mask = _step_inputs(alive, batch.real, first, width, pad_id, next(model.parameters()).dtype)
        logits = model(
            input_ids=step,
            attention_mask=mask,
            position_ids=(batch.after[:, None] + depth).expand(-1, width),
            past_key_values=cache,
            use_cache=True,
            **({} if vision is None else vision.further(batch.images, width)),
        ).logits
        alive = [
            [_Beam(b.node, b.score, (*b.columns, first + i), b.token) for i, b in enumerate(row)]
            for row in alive
        ]
        alive = _grow(alive, logits.float().log_softmax(-1), finished, beams)
        depth += 1
    return finished


def cache_columns(cache: DynamicCache, prompt_columns: int) -> int:
    """How many columns the beams have added to the cache so far."""
    return int(cache.get_seq_length()) - prompt_columns


def _grow(
    beams_by_row: Sequence[Sequence[_Beam]],
    log_probs: Tensor,
    finished: list[list[tuple[int, float]]],
    width: int,
) -> list[list[_Beam]]:
    """One step down the trie: the best ``width`` partial answers of each row; whole ones are kept aside."""
    grown: list[list[_Beam]] = []
    for row, beams in enumerate(beams_by_row):
        candidates = _children(beams, log_probs[row])
        candidates.sort(key=lambda beam: -beam.score)
        done = [(b.node.answer, b.score) for b in candidates if b.node.answer is not None]
        finished[row] = sorted([*finished[row], *done], key=lambda pair: -pair[1])[:width]
        # A partial answer only loses score from here, so one below the last kept whole answer is out.
        bar = finished[row][-1][1] if len(finished[row]) == width else -float("inf")
        grown.append([b for b in candidates if b.node.answer is None and b.score > bar][:width])
    return grown


def _children(beams: Sequence[_Beam], log_probs: Tensor) -> list[_Beam]:
    tokens = [(i, token) for i, beam in enumerate(beams) for token in beam.node.children]
    if not tokens:
        return []
    rows, ids = torch.tensor(tokens, device=log_probs.device).T
    gains = log_probs[rows, ids].tolist()
    return [
        _Beam(beams[i].node.children[token], beams[i].score + gain, beams[i].columns, token)
        for (i, token), gain in zip(tokens, gains, strict=True)
    ]


def _step_inputs(
    alive: Sequence[Sequence[_Beam]], real: Tensor, first: int, width: int, pad_id: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Tokens of the next step (rows, width) and who they see: (rows, 1, width, first + width), additive."""
    rows, prompt_columns = real.shape
    step = torch.full((rows, width), pad_id)
    visible = torch.zeros((rows, width, first + width), dtype=torch.bool)
    visible[:, :, :prompt_columns] = real.cpu()[:, None]
    visible[:, range(width), range(first, first + width)] = True
    for row, beams in enumerate(alive):
        for i, beam in enumerate(beams):
            step[row, i] = beam.token
            visible[row, i, list(beam.columns)] = True
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
    return step.to(real.device), mask[:, None].to(real.device)


@torch.no_grad()
def score_one_by_one(
    model: nn.Module,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    *,
    vision: Vision | None = None,
    image: SlideRef | None = None,
) -> list[float]:
    """Summed log-probability of each answer after the prompt, one forward pass each: the reference."""
    return [
        float(plain_log_probs(model, prompt, answer, vision=vision, image=image).sum()) for answer in answers
    ]


@torch.no_grad()
def decode_freely(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    end_id: int,
    longest: int,
    vision: Vision | None = None,
    images: Sequence[SlideRef] = (),
) -> list[list[int]]:
    """Greedy answers without any constraint, as token ids without the end token, at most ``longest``.

    ``vision`` and ``images`` are as for ``rank_by_beam``.
    """
    batch = _pad_left(prompts, pad_id, next(model.parameters()).device, vision, images)
    real = batch.real.long()
    cache = DynamicCache()
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    step, positions, also = batch.ids, batch.positions, batch.images
    for depth in range(longest):
        logits = model(
            input_ids=step,
            attention_mask=real,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **also,
        ).logits[:, -1]
        step = logits.argmax(-1, keepdim=True)
        for row in sorted(open_rows):
            token = int(step[row])
            if token == end_id:
                open_rows.discard(row)
            else:
                answers[row].append(token)
        if not open_rows:
            break
        real = torch.cat([real, torch.ones_like(step)], dim=1)
        positions = batch.after[:, None] + depth
        also = {} if vision is None else vision.further(batch.images, 1)
    return answers
