"""Answers as text, and back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from client.preferences.answers import INSTRUCTIONS, parse_answers, write_answers, write_prompt
from common.tracks import RARE_DISEASE, TISSUE_TYPE, TRACKS, Answer, AnswerList, Modality, Track

HEADER = RARE_DISEASE.header
MARFAN = Answer(id="OMIM:154700", name="Marfan syndrome", synonyms=("MFS1",))
NOONAN = Answer(id="OMIM:163950", name="Noonan syndrome 1")
OTHER = Answer(id="OMIM:100300", name="Adams-Oliver syndrome - type 1 (with: skull defects)")
ANSWERS = AnswerList(answers=(MARFAN, NOONAN, OTHER))
# As GPT-2 and Llama 3 cut text before they merge.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@given(places=st.lists(st.sampled_from(ANSWERS.answers), min_size=1, max_size=20))
def test_what_write_answers_wrote_is_read_back_unchanged(places: list[Answer]) -> None:
    text = write_answers(HEADER, [answer.name for answer in places])
    assert parse_answers(text, HEADER, ANSWERS) == places


def test_a_list_has_the_fixed_form() -> None:
    assert write_answers(HEADER, ["A", "B"]) == "POTENTIAL_DISEASES:\n1. A\n2. B"


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one name"):
        write_answers(HEADER, [])


@pytest.mark.parametrize(
    "line",
    [
        "1. 'Marfan syndrome'",
        '1) "marfan  SYNDROME"',
        "1 . **Marfan syndrome**",
        "- Marfan syndrome.",
        "* MFS1",
        "\u20221: Marfan syndrome".removeprefix("\u2022"),
        "1. \u201cMarfan syndrome\u201d,",
        "1. Marfan syndrome - tall, with long fingers",
        "1. Marfan syndrome (aortic root (dilated))",
        "1. **Marfan syndrome**: likely",
        "Marfan syndrome",
    ],
)
def test_quotes_marks_and_explanations_do_not_hide_a_name(line: str) -> None:
    assert parse_answers(f"{HEADER}\n{line}", HEADER, ANSWERS) == [MARFAN]


def test_a_name_that_holds_explanation_marks_is_read_whole() -> None:
    assert parse_answers(f"{HEADER}\n1. {OTHER.name}", HEADER, ANSWERS) == [OTHER]


def test_an_unknown_name_is_none_and_keeps_its_place() -> None:
    text = f"{HEADER}\n1. Noonan syndrome 1\n2. Noonan syndrome 99\n3. Marfan syndrome"
    assert parse_answers(text, HEADER, ANSWERS) == [NOONAN, None, MARFAN]


def test_text_around_a_numbered_list_is_no_answer() -> None:
    text = (
        f"Marfan syndrome comes to mind.\n\n{HEADER.lower()}\n1. Noonan syndrome 1\nMFS1\nI hope this helps."
    )
    assert parse_answers(text, HEADER, ANSWERS) == [NOONAN, MARFAN]


def test_lines_without_numbers_count_below_the_header() -> None:
    assert parse_answers(f"{HEADER}\nMFS1\nsomething else\n", HEADER, ANSWERS) == [MARFAN, None]


def test_a_text_without_header_or_answers_is_read_too() -> None:
    assert parse_answers("1. MFS1", HEADER, ANSWERS) == [MARFAN]
    assert parse_answers(f"{HEADER}\n\n", HEADER, ANSWERS) == []
    assert parse_answers("", HEADER, ANSWERS) == []


@given(text=st.text(alphabet="1.)-\n '\"(:Marfan syndrome*\u2022", max_size=200))
def test_no_text_breaks_the_parser_and_every_numbered_line_is_an_entry(text: str) -> None:
    entries = parse_answers(f"{HEADER}\n{text}", HEADER, ANSWERS)
    numbered = [line for line in text.splitlines() if re.match(r"\d{1,3}[.)]", line.strip())]
    assert len(entries) >= len(numbered)


def test_every_track_has_a_short_instruction_of_one_line() -> None:
    assert INSTRUCTIONS.keys() == TRACKS.keys()
    assert all(len(text) < 100 and "\n" not in text for text in INSTRUCTIONS.values())


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3])
@given(note=st.text(alphabet="ab .,\n1", min_size=1, max_size=60).filter(lambda note: bool(note.strip())))
def test_an_answer_starts_at_a_token_boundary(pattern: str, note: str) -> None:
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    prompt, answer = write_prompt(RARE_DISEASE, note), write_answers(HEADER, ["Marfan syndrome"])
    pieces = [piece for piece, _ in cut.pre_tokenize_str(prompt + answer)]
    apart = [piece for part in (prompt, answer) for piece, _ in cut.pre_tokenize_str(part)]
    assert pieces == apart


def test_an_answer_starts_at_a_token_boundary_after_training_too() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    prompt, answer = write_prompt(RARE_DISEASE, "A tall boy."), write_answers(HEADER, ["Marfan syndrome"])
    tokenizer.train_from_iterator(
        [prompt + answer] * 20, trainers.BpeTrainer(vocab_size=600, show_progress=False)
    )
    assert (
        tokenizer.encode(prompt + answer).ids == tokenizer.encode(prompt).ids + tokenizer.encode(answer).ids
    )


def test_a_text_prompt_is_note_and_instruction() -> None:
    assert write_prompt(RARE_DISEASE, " A tall boy. \n") == f"A tall boy.\n{INSTRUCTIONS['rare_disease']}\n"


def test_an_image_prompt_is_the_instruction_alone() -> None:
    assert write_prompt(TISSUE_TYPE) == f"{INSTRUCTIONS['tissue_type']}\n"
    with pytest.raises(ValueError, match="Expected no note"):
        write_prompt(TISSUE_TYPE, "a slide of bone")


@pytest.mark.parametrize("note", [None, "", " \n"])
def test_a_text_prompt_without_a_note_is_refused(note: str | None) -> None:
    with pytest.raises(ValueError, match="Expected a note"):
        write_prompt(RARE_DISEASE, note)


def test_an_unknown_track_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a track among"):
        write_prompt(Track(name="weather", modality=Modality.TEXT, header="SKY:"), "rain")
