import json
from pathlib import Path
from typing import Any

import pytest
import torch

from client.student.batches import micro_batches
from client.student.branches import PatientPairs, pack, plain_log_probs, with_images
from client.student.decode import decode_freely, rank_by_beam, score_one_by_one
from client.student.evaluate import batches_by_length, free_answers, rank_cases
from client.student.model import Student, load_base
from client.student.orpo import orpo_losses
from client.student.prompts import StudentPrompt
from client.student.vision import FAMILIES, TAIL_TOKENS, Sight, cut_middle
from common.tracks import TISSUE_TYPE, AnswerList, Modality
from tests.client.student.tiny_vision import NAMES, TEXT, TILES, entry, tile

every_family = pytest.mark.parametrize("image_folder", FAMILIES, indirect=True)
LAMBDA = 0.1
LONGEST = 512
# Several lengths of prompt, and two tiles that one batch cannot hold.
WORDS = ("", "of a man: ", "", "of an old woman: ", "", "x ")


def entries_of(student: Student) -> list[PatientPairs]:
    return [
        entry(student, f"p{i}", image, NAMES[: 1 + i % 4], extra=extra)
        for i, (image, extra) in enumerate(zip(TILES, WORDS, strict=True))
    ]


def fill(student: Student) -> list[torch.nn.Parameter]:
    """Give every factor values and a gradient, in float64."""
    student.model.double()
    factors = [p for name, p in student.model.named_parameters() if ".lora_" in name]
    with torch.no_grad():
        for number, factor in enumerate(factors):
            factor.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    for factor in factors:
        factor.requires_grad_(requires_grad=True)
    return factors


def by_the_processor(student: Student, own: PatientPairs, text: str, answer: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of an answer, from what the processor gives for one prompt and nothing of ours."""
    assert student.vision is not None
    assert own.image is not None
    content = [{"type": "image", "image": own.image.pixels().copy()}, {"type": "text", "text": text}]
    inputs: dict[str, Any] = student.vision.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    new = torch.tensor([answer])
    assert inputs["input_ids"][0].tolist() == list(own.prompt)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
    if "cross_attention_mask" in inputs:
        seen = inputs["cross_attention_mask"]
        last = seen[:, -1:].expand(-1, len(answer), -1, -1)
        inputs["cross_attention_mask"] = torch.cat([seen, last], dim=1)
    logits = student.model(**inputs, use_cache=False).logits[0, len(own.prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, new[0][:, None])[:, 0]


def plain_loss(student: Student, own: PatientPairs, nll_on: str) -> torch.Tensor:
    """The loss written down pair by pair, one forward pass an answer, by the model's masks and positions."""

    def log_probs(prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
        return plain_log_probs(student.model, prompt, answer, vision=student.vision, image=own.image)

    losses = []
    for winner, loser in own.pairs:
        chosen = log_probs(own.prompt, own.branches[winner])
        nll = -chosen.mean()
        if nll_on == "sequence":
            assert student.vision is not None
            words = ~student.vision.stands_for_image(torch.tensor(own.prompt[1:]))
            # All of prompt and answer as one answer to the prompt's first token.
            whole = log_probs(own.prompt[:1], (*own.prompt[1:], *own.branches[winner]))
            counted = torch.cat([words, torch.ones(len(chosen), dtype=torch.bool)])
            nll = -whole[counted].mean()
        loss = nll
        if loser is not None:
            rejected = log_probs(own.prompt, own.branches[loser])
            odds = torch.log(chosen.mean().exp() / (1 - chosen.mean().exp()))
            odds = odds - torch.log(rejected.mean().exp() / (1 - rejected.mean().exp()))
            loss = nll - LAMBDA * torch.nn.functional.logsigmoid(odds)
        losses.append(loss)
    return torch.stack(losses).mean()


@every_family
def test_the_plain_form_is_what_processor_and_model_give_by_themselves(sighted: Student) -> None:
    fill(sighted)
    for own, extra in zip(entries_of(sighted), WORDS, strict=True):
        plain = plain_log_probs(
            sighted.model, own.prompt, own.branches[0], vision=sighted.vision, image=own.image
        )
        theirs = by_the_processor(sighted, own, extra + TEXT, own.branches[0])
        assert torch.allclose(plain, theirs.float(), atol=1e-6)
        other = plain_log_probs(
            sighted.model, own.prompt, own.branches[0], vision=sighted.vision, image=inverted(own)
        )
        assert not torch.allclose(plain, other, atol=1e-2)


def inverted(own: PatientPairs) -> Any:
    assert own.image is not None
    return type(own.image)(array=255 - own.image.pixels())


@every_family
@pytest.mark.parametrize("nll_on", ["answer", "sequence"])
def test_loss_and_gradients_with_images_equal_the_plain_form(sighted: Student, nll_on: str) -> None:
    factors = fill(sighted)
    entries = entries_of(sighted)
    for part in micro_batches(entries, sighted.vision):
        fast = orpo_losses(
            sighted.model, part, orpo_lambda=LAMBDA, pad_id=0, nll_on=nll_on, vision=sighted.vision
        ).loss
        plain = torch.stack([plain_loss(sighted, own, nll_on) for own in part])
        assert torch.allclose(fast, plain.to(fast.dtype), atol=1e-5)
        ours, theirs = (torch.autograd.grad(loss.sum(), factors) for loss in (fast, plain))
        assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-5
        assert all(float(gradient.abs().max()) > 1e-5 for gradient in theirs)


def test_a_batch_holds_only_images_whose_tensors_can_be_joined(sighted: Student) -> None:
    assert sighted.vision is not None
    entries = entries_of(sighted)
    parts = list(micro_batches(entries, sighted.vision))
    assert sorted(own.patient_id for part in parts for own in part) == [f"p{i}" for i in range(len(entries))]
    shapes = [sighted.vision.shapes(image) for image in TILES]
    rows = batches_by_length([own.prompt for own in entries], shapes)
    assert sorted(row for batch in rows for row in batch) == list(range(len(entries)))
    for part in (*parts, *([entries[row] for row in batch] for batch in rows)):
        assert len({sighted.vision.shapes(own.image) for own in part if own.image is not None}) == 1
    # Idefics3 cuts a wide tile into fewer pictures than a square one.
    assert len(set(shapes)) == (2 if "pixel_attention_mask" in dict(shapes[0]) else 1)
    if len(set(shapes)) > 1:
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            orpo_losses(sighted.model, entries, orpo_lambda=LAMBDA, pad_id=0, vision=sighted.vision)


def batches(student: Student) -> list[tuple[list[tuple[int, ...]], list[Any]]]:
    """Prompts and images as they may be decoded together."""
    assert student.vision is not None
    prompts = [
        student.prompt_ids(extra + TEXT, LONGEST, image) for image, extra in zip(TILES, WORDS, strict=True)
    ]
    rows = batches_by_length(prompts, [student.vision.shapes(image) for image in TILES])
    return [([prompts[row] for row in batch], [TILES[row] for row in batch]) for batch in rows]


@every_family
def test_with_as_many_beams_as_answers_the_ranking_of_images_equals_scoring_every_answer_alone(
    sighted: Student, tissues: AnswerList
) -> None:
    trie = sighted.answer_trie(TISSUE_TYPE.header, tissues)
    encoded = [sighted.answer_ids(f"{TISSUE_TYPE.header}\n1. {name}") for name in tissues.names]
    scores = set()
    for prompts, images in batches(sighted):
        found = rank_by_beam(
            sighted.model, prompts, trie, beams=len(tissues), pad_id=sighted.pad_id,
            vision=sighted.vision, images=images,
        )  # fmt: skip
        for prompt, image, ranking in zip(prompts, images, found, strict=True):
            alone = score_one_by_one(sighted.model, prompt, encoded, vision=sighted.vision, image=image)
            order = sorted(range(len(tissues)), key=lambda i: -alone[i])
            assert [answer for answer, _ in ranking] == order
            assert [score for _, score in ranking] == pytest.approx([alone[i] for i in order], abs=2e-4)
            scores.add(round(alone[0], 3))
    # Every image gives other scores.
    assert len(scores) == len(TILES)


@every_family
def test_free_decoding_of_images_equals_greedy_steps_one_by_one(sighted: Student) -> None:
    assert sighted.vision is not None
    for prompts, images in batches(sighted):
        found = decode_freely(
            sighted.model, prompts, pad_id=sighted.pad_id, end_id=sighted.end_id, longest=5,
            vision=sighted.vision, images=images,
        )  # fmt: skip
        for prompt, image, answer in zip(prompts, images, found, strict=True):
            expected: list[int] = []
            while len(expected) < 5:
                ids = torch.tensor([[*prompt, *expected]])
                with torch.no_grad():
                    inputs = sighted.vision.plain_inputs([image], ids)
                    token = int(sighted.model(input_ids=ids, **inputs).logits[0, -1].argmax())
                if token == sighted.end_id:
                    break
                expected.append(token)
            assert answer == expected


def test_images_are_ranked_in_their_order(sighted: Student, tissues: AnswerList) -> None:
    trie = sighted.answer_trie(TISSUE_TYPE.header, tissues)
    prompts = [StudentPrompt(text=TEXT, image=image) for image in TILES]
    ranked = rank_cases(sighted, prompts, trie, top=3, max_prompt_tokens=LONGEST)
    for prompt, case in zip(prompts, ranked, strict=True):
        (alone,) = rank_cases(sighted, [prompt], trie, top=3, max_prompt_tokens=LONGEST)
        assert case.answers == alone.answers
        assert case.confidence == pytest.approx(alone.confidence, abs=1e-4)
    valid = free_answers(
        sighted, prompts, TISSUE_TYPE.header, tissues, max_prompt_tokens=LONGEST, max_answer_tokens=4
    )
    assert len(valid) == len(prompts)


def test_branches_count_on_from_the_largest_position_of_the_image(sighted: Student) -> None:
    assert sighted.vision is not None
    own = [
        entry(sighted, "a", TILES[0], NAMES[:2], extra="longer "),
        entry(sighted, "b", TILES[1], NAMES[:2]),
    ]
    batch = with_images(pack(own, 0), own, sighted.vision)
    end = max(len(one.prompt) for one in own)
    if sighted.vision.sight is not Sight.GRID:
        assert torch.equal(batch.position_ids, pack(own, 0).position_ids)
        return
    assert batch.position_ids.shape == (3, 2, batch.input_ids.shape[1])
    for row, one in enumerate(own):
        of_prompt = batch.position_ids[:, row, end - len(one.prompt) : end]
        # Four image tokens, two by two, take two positions.
        assert int(of_prompt.max()) + 1 == len(one.prompt) - 2
        image = sighted.vision.stands_for_image(torch.tensor(one.prompt))
        assert (of_prompt[:, image] - of_prompt[:, image].min()).tolist() == [
            [0, 0, 0, 0],
            [0, 0, 1, 1],
            [0, 1, 0, 1],
        ]
        for branch in (range(len(one.branches[0])), range(len(one.branches[1]))):
            first = end + (0 if branch == range(len(one.branches[0])) else len(one.branches[0]))
            expected = [int(of_prompt.max()) + 1 + i for i in branch]
            for axis in batch.position_ids[:, row, first : first + len(branch)]:
                assert axis.tolist() == expected


def test_a_long_prompt_loses_text_and_no_piece_of_the_image(sighted: Student) -> None:
    assert sighted.vision is not None
    text = "muscle " * 60 + TEXT
    whole = sighted.prompt_ids(text, 10_000, TILES[0])
    pieces = sighted.vision.stands_for_image(torch.tensor(whole))
    needed = int(pieces.nonzero().max()) + 2 + TAIL_TOKENS
    for longest in (needed, needed + 20):
        cut = sighted.prompt_ids(text, longest, TILES[0])
        assert len(cut) == longest
        assert cut == (*whole[: longest - TAIL_TOKENS], *whole[-TAIL_TOKENS:])
        assert int(sighted.vision.stands_for_image(torch.tensor(cut)).sum()) == int(pieces.sum())
    with pytest.raises(ValueError, match=f"at least {needed}, which an image .* got {needed - 1}"):
        sighted.prompt_ids(text, needed - 1, TILES[0])


def test_a_text_without_an_image_is_cut_as_before() -> None:
    assert cut_middle(range(40), 20) == [*range(4), *range(24, 40)]
    assert cut_middle(range(20), 20) == list(range(20))


def test_a_processor_without_a_chat_template_puts_the_image_first(sighted: Student) -> None:
    assert sighted.vision is not None
    sighted.vision.processor.chat_template = None
    ids = sighted.prompt_ids(TEXT, LONGEST, TILES[0])
    assert sighted.vision.stands_for_image(torch.tensor(ids)).any()
    assert sighted.tokenizer.decode(ids).endswith(TEXT)


def test_what_lacks_an_image_or_has_one_too_many_is_refused(
    sighted: Student, student: Student, tissues: AnswerList
) -> None:
    with pytest.raises(ValueError, match="Expected a prompt with an image"):
        sighted.prompt_ids(TEXT, LONGEST)
    with pytest.raises(ValueError, match="Expected a prompt without an image"):
        student.prompt_ids(TEXT, LONGEST, TILES[0])
    own = entry(sighted, "a", TILES[0], NAMES[:2])
    with pytest.raises(ValueError, match="Expected no image, got 1 for 1 prompts"):
        orpo_losses(sighted.model, [own], orpo_lambda=LAMBDA, pad_id=0)
    trie = sighted.answer_trie(TISSUE_TYPE.header, tissues)
    with pytest.raises(ValueError, match="Expected an image for every prompt, got 0 for 1 prompts"):
        rank_by_beam(sighted.model, [own.prompt], trie, beams=2, pad_id=0, vision=sighted.vision)


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "llava"])
def test_a_family_that_is_not_known_is_refused_in_one_line(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ValueError, match=f"{', '.join(FAMILIES)}, got model_type {family}"):
        load_base(str(tmp_path), modality=Modality.IMAGE)


def test_a_tile_is_read_once_for_prompts_and_pixels(
    sighted: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sighted.vision is not None
    fresh, read = tile(16, 16, 77), []
    process = sighted.vision._process
    monkeypatch.setattr(sighted.vision, "_process", lambda *of: read.append(of) or process(*of))
    for _ in range(2):
        own = entry(sighted, "a", fresh, NAMES[:2])
        orpo_losses(sighted.model, [own], orpo_lambda=LAMBDA, pad_id=0, vision=sighted.vision)
    assert len(read) == 1
    sighted.prompt_ids("another question", LONGEST, fresh)
    assert len(read) == 2
