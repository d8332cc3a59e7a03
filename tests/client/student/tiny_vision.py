"""Image models of real families with their real processors, tiny and untrained, in Hugging Face folders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from client.patients.photos import ImageRef, SlideRef
from client.preferences.answers import write_answers, write_prompt
from client.student.branches import PatientPairs
from client.student.model import Student, adapter_spec, load_base, make_student
from common.adapter import AdapterMode
from common.learning_plan import AdapterPlan, Side
from common.tracks import TISSUE_TYPE, Modality

NAMES = ("adipose tissue", "background", "debris", "muscle", "mucus")
TEXT = write_prompt(TISSUE_TYPE)
HIDDEN = 32
# Wide enough that untrained answers differ by much more than rounding.
INITIAL = {"initializer_range": 0.3}
LANGUAGE = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    **INITIAL,
}
TURNS = (
    "{{% for m in messages %}}<s>User:{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}{image}"
    "{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}\nAssistant:{{% endif %}}"
)


def tiny_tokenizer(special: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<s>", "</s>", *special],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT, write_answers(TISSUE_TYPE.header, NAMES)] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def idefics3(config: type = Idefics3Config, model: type = Idefics3ForConditionalGeneration) -> Any:
    rows = [f"<row_{i}_col_{j}>" for i in range(1, 3) for j in range(1, 3)]
    tokenizer = tiny_tokenizer(
        ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows]
    )
    images = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=TURNS.format(image="<image>")
    )
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = config(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 0, **LANGUAGE},
        vision_config={**vision, "image_size": 16, "patch_size": 4, **INITIAL},
        scale_factor=2,
        image_token_id=processor.image_token_id,
    )
    return model(settings), processor


def smolvlm() -> Any:
    # SmolVLM's own processor differs in its videos alone, and needs another library for them.
    return idefics3(SmolVLMConfig, SmolVLMForConditionalGeneration)


def qwen2_vl(
    config: type = Qwen2VLConfig,
    model: type = Qwen2VLForConditionalGeneration,
    processor: type = Qwen2VLProcessor,
    **vision: Any,
) -> Any:
    tokenizer = tiny_tokenizer(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    pixels = {"shortest_edge": 64, "longest_edge": 24 * 24}
    reader = processor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels, **sizes),
        chat_template=TURNS.format(image="<|vision_start|><|image_pad|><|vision_end|>"),
    )
    tower = vision or {"embed_dim": 16, "hidden_size": HIDDEN, "mlp_ratio": 2}
    settings = config(
        text_config={
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "bos_token_id": 1,
            "eos_token_id": 2,
            **LANGUAGE,
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            **tower,
            **INITIAL,
        },
        image_token_id=reader.image_token_id,
        video_token_id=reader.video_token_id,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    return model(settings), reader


def qwen2_5_vl() -> Any:
    return qwen2_vl(
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        hidden_size=16,
        intermediate_size=24,
        out_hidden_size=HIDDEN,
        window_size=16,
        fullatt_block_indexes=[1],
    )


def qwen3_vl() -> Any:
    return qwen2_vl(
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        hidden_size=16,
        intermediate_size=24,
        out_hidden_size=HIDDEN,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0],
    )


def mllama() -> Any:
    tokenizer = tiny_tokenizer(["<|image|>", "<|python_tag|>"])
    images = MllamaImageProcessor(size={"height": 8, "width": 8}, max_image_tiles=4)
    processor = MllamaProcessor(images, tokenizer, chat_template=TURNS.format(image="<|image|>"))
    settings = MllamaConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "cross_attention_layers": [1],
            "pad_token_id": 0,
            **LANGUAGE,
        },
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 24,
            "vision_output_dim": 32,
            "image_size": 8,
            "patch_size": 4,
            "intermediate_layers_indices": [0],
            **INITIAL,
        },
        image_token_index=processor.image_token_id,
    )
    model = MllamaForConditionalGeneration(settings)
    # Fresh gates are closed, and no image would come through.
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.7)
    return model, processor


FAMILIES: dict[str, Callable[[], Any]] = {
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "mllama": mllama,
}


def save_family(family: str, folder: Path) -> Path:
    """A folder with a model of the family and its processor, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def image_student(
    folder: Path,
    *,
    mode: AdapterMode = AdapterMode.ROLORA,
    targets: tuple[str, ...] = ("q_proj", "k_proj", "down_proj"),
    side: Side = "language",
) -> Student:
    torch.set_num_threads(1)
    base, processor = load_base(str(folder), modality=Modality.IMAGE)
    plan = AdapterPlan(mode=mode, rank=4, alpha=8.0, targets=targets, side=side, factors_digest="0" * 64)
    return make_student(base, processor, adapter_spec(base, plan))


def tile(height: int, width: int, seed: int) -> SlideRef:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return ImageRef(array=pixels)


# Of three shapes, so that no batch can hold them all.
TILES = (tile(16, 16, 0), tile(16, 16, 1), tile(12, 24, 2), tile(16, 16, 3), tile(24, 12, 4), tile(12, 24, 5))


def entry(
    student: Student, patient: str, image: SlideRef, names: Sequence[str], *, extra: str = ""
) -> PatientPairs:
    """One tile of a patient; the first name beats each other one."""
    answers = [student.answer_ids(write_answers(TISSUE_TYPE.header, [name])) for name in names]
    return PatientPairs(
        patient_id=patient,
        prompt=student.prompt_ids(extra + TEXT, 512, image),
        branches=tuple(answers),
        pairs=tuple((0, i) for i in range(1, len(names))) or ((0, None),),
        image=image,
    )
