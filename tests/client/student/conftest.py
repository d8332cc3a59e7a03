from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from client.preferences.answers import write_answers, write_prompt
from client.student.model import Student, adapter_spec, load_base, make_student
from common.adapter import AdapterMode
from common.learning_plan import AdapterPlan
from common.tracks import RARE_DISEASE, Answer, AnswerList
from tests.client.student import tiny_vision

NAMES = ("Alpha syndrome", "Alpha syndrome 2", "Beta disease", "Gamma and delta dysplasia", "Epsilon")
NOTES = ("seizure and short stature", "short stature", "cleft palate, seizure", "broad thumb")


@pytest.fixture(scope="session")
def answers() -> AnswerList:
    return AnswerList(answers=tuple(Answer(id=f"A:{i}", name=name) for i, name in enumerate(NAMES)))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a real architecture, tiny and untrained."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [write_prompt(RARE_DISEASE, note) for note in NOTES] * 20
    texts += [write_answers(RARE_DISEASE.header, NAMES)] * 20
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                # Wide enough that untrained answers differ by much more than rounding.
                initializer_range=0.3,
                tie_word_embeddings=True,
            )
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def student(base_folder: Path) -> Student:
    torch.set_num_threads(2)
    base, tokenizer = load_base(str(base_folder))
    plan = AdapterPlan(
        mode=AdapterMode.ROLORA, rank=4, alpha=8.0, targets=("q_proj", "down_proj"), factors_digest="0" * 64
    )
    return make_student(base, tokenizer, adapter_spec(base, plan))


@pytest.fixture(scope="session")
def tissues() -> AnswerList:
    return AnswerList(
        answers=tuple(Answer(id=f"T:{i}", name=name) for i, name in enumerate(tiny_vision.NAMES))
    )


# SmolVLM and Qwen2.5-VL differ from these in their towers; the tests of exactness name all families.
@pytest.fixture(scope="session", params=["idefics3", "qwen2_vl", "mllama"])
def image_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an image model of each way to look at an image; its name is the family's."""
    return tiny_vision.save_family(request.param, tmp_path_factory.mktemp("vision") / request.param)


@pytest.fixture
def sighted(image_folder: Path) -> Student:
    return tiny_vision.image_student(image_folder)
