"""The student: a language model by name or folder, of text or of images, with one LoRA adapter.

The base stays frozen and is named by a digest in the plan; all that is trained, sent and summed is the
adapter. PEFT configures and holds it; ``common.adapter`` is its form without torch.

PEFT computes ``lora_B(lora_A(x))``. The core of the mode ``core`` sits in lora_A, after A (``CoredLinear``);
PEFT's own merging and saving do not know of it, ``common.peft.export_peft`` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from client.patients.photos import SlideRef
from client.preferences.answers import write_answers
from client.student.decode import TrieNode, build_trie
from client.student.vision import Vision, cut_middle, language_modules, sight_of
from common.adapter import Adapter, AdapterMode, AdapterSpec, Block, ModuleShape, tensor_shapes
from common.learning_plan import AdapterPlan
from common.tracks import AnswerList, Modality

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
                   "vocab.json", "merges.txt", "chat_template.jinja")  # fmt: skip
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
                   "chat_template.json")  # fmt: skip
"""What the processor of an image model adds to the tokenizer's files."""
PEFT_PREFIX, ADAPTER = "base_model.model.", "default"
"""What PEFT puts before a module's name, and what it calls its only adapter."""


def digest_base(folder: Path) -> tuple[str, str]:
    """SHA-256 of a base model's folder and of its tokenizer: (model digest, tokenizer digest).

    The model's digest covers its configuration and weights, file by file in order of name; the tokenizer's
    covers the processor of an image model too.

    Raises:
        ValueError: The folder holds no weights or no tokenizer.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [p for p in files if p.name == "config.json" or p.suffix in {".safetensors", ".bin"}]
    tokenizer = [p for p in files if p.name in (*TOKENIZER_FILES, *PROCESSOR_FILES)]
    if len(weights) < 2 or not any(p.name in TOKENIZER_FILES for p in tokenizer):
        raise ValueError(f"Expected config.json, weights and a tokenizer in {folder}")
    return _digest_files(weights), _digest_files(tokenizer)


def _digest_files(paths: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def load_base(
    name_or_folder: str, *, modality: Modality = Modality.TEXT, device: str = "cpu"
) -> tuple[nn.Module, Any]:
    """A frozen model in fp32 with the attention that takes a block mask, and its tokenizer.

    For ``Modality.IMAGE`` it is an image-text-to-text model, and its processor in the tokenizer's place.

    Raises:
        ValueError: There is no end-of-sequence token, or it is an image model of a family that is not read.
    """
    image = modality is Modality.IMAGE
    if image:
        sight_of(AutoConfig.from_pretrained(name_or_folder))
    reader = (AutoProcessor if image else AutoTokenizer).from_pretrained(name_or_folder)
    if (reader.tokenizer if image else reader).eos_token_id is None:
        raise ValueError(f"Expected a tokenizer with an end-of-sequence token in {name_or_folder}")
    # SDPA accepts an additive 4-D mask, which the shared prompt needs; flash attention does not.
    model = (AutoModelForImageTextToText if image else AutoModelForCausalLM).from_pretrained(
        name_or_folder, attn_implementation="sdpa", dtype=torch.float32
    )
    model.requires_grad_(requires_grad=False)
    return model.to(device).eval(), reader


def adapter_spec(base: nn.Module, plan: AdapterPlan) -> AdapterSpec:
    """Which linear layers of ``base`` carry adapter factors, with their sizes.

    Of an image model they are those of its language model, and of its image tower where the plan says
    ``both``.

    Raises:
        ValueError: A target of the plan names no such layer of the base.
    """
    modules = base.named_modules()
    if _reads_images(base):
        modules = iter(language_modules(base, tower=plan.side == "both"))
    shapes = [
        ModuleShape(name=name, in_features=module.in_features, out_features=module.out_features)
        for name, module in modules
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in plan.targets
    ]
    missing = set(plan.targets) - {shape.name.rsplit(".", 1)[-1] for shape in shapes}
    if missing:
        raise ValueError(
            f"Expected every adapter target to be a linear layer of the base; not so: {sorted(missing)}"
        )
    ordered = tuple(sorted(shapes, key=lambda shape: shape.name))
    return AdapterSpec(mode=plan.mode, rank=plan.rank, alpha=plan.alpha, modules=ordered)


def _reads_images(base: nn.Module) -> bool:
    return hasattr(getattr(base, "config", None), "vision_config")


@dataclass(frozen=True)
class Student:
    """A frozen base, one adapter on it, and what reads notes or images for it.

    Attributes:
        model: The base with PEFT's LoRA layers; only adapter factors may require gradients.
        tokenizer: Of the base.
        spec: Of the adapter.
        vision: Of an image student: the processor, and the images it has read; none for a text student.
    """

    model: PeftModel
    tokenizer: Any
    spec: AdapterSpec
    vision: Vision | None = None

    @property
    def pad_id(self) -> int:
        """What fills short sequences; masked everywhere."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def end_id(self) -> int:
        """The end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, prompt: str, longest: int, image: SlideRef | None = None) -> tuple[int, ...]:
        """Token ids of a prompt, in the chat template where there is one; an image student's with its image.

        A prompt over ``longest`` tokens loses tokens before its last ``TAIL_TOKENS``, never its end and never
        a token of the image.

        Raises:
            ValueError: An image student gets no image or another one gets one, or the image is too long.
        """
        if (image is None) != (self.vision is None):
            raise ValueError(
                "Expected a prompt without an image for a text student"
                if self.vision is None
                else "Expected a prompt with an image for an image student"
            )
        if self.vision is not None and image is not None:
            return tuple(self.vision.prompt_ids(prompt, image, longest))
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        else:
            ids = self.tokenizer(prompt)["input_ids"]
            # A tokenizer that closes every text with the end token would end the prompt before the answer.
            ids = ids[:-1] if len(ids) > 1 and ids[-1] == self.end_id else ids
        return tuple(cut_middle(ids, longest))

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Token ids of an answer, its end-of-sequence token included."""
        return (*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end_id)

    def answer_trie(self, header: str, answers: AnswerList, *, lists: bool = False) -> TrieNode:
        """The trie of the plan's answers as the first name under the header.

        Args:
            header: Of the track.
            answers: Of the plan.
            lists: Whether the student was taught lists of several names: a first name then ends with a line
                break, and not with the end of the answer.
        """
        return build_trie(self.answer_tokens(header, answers, lists=lists))

    def answer_tokens(
        self, header: str, answers: AnswerList, *, lists: bool = False
    ) -> list[tuple[int, ...]]:
        """Token ids of each of the plan's answers, as the first name under the header; as ``answer_trie``."""
        texts = [write_answers(header, [name]) for name in answers.names]
        if not lists:
            return [self.answer_ids(text) for text in texts]
        lines = (self.tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"] for text in texts)
        return [tuple(ids) for ids in lines]

    def load(self, adapter: Adapter) -> None:
        """Put an adapter's values in place.

        Raises:
            ValueError: The adapter is not of this student's specification.
        """
        if adapter.spec != self.spec:
            raise ValueError("Expected an adapter of this student's specification")
        with torch.no_grad():
            for name, parameter in self._factors():
                parameter.copy_(torch.from_numpy(np.array(adapter.tensors[name])))

    def read(self) -> Adapter:
        """The adapter's values as they are now."""
        tensors = {name: p.detach().cpu().float().numpy().copy() for name, p in self._factors()}
        return Adapter(spec=self.spec, tensors=tensors)

    def train_block(self, block: Block) -> list[Tensor]:
        """Let only one block's factors require gradients; returns them in the adapter's order.

        Raises:
            ValueError: The adapter's mode has no such block.
        """
        if not self.spec.size(block):
            raise ValueError(f"Expected a block of the mode {self.spec.mode}, got {block.value}")
        chosen: list[Tensor] = []
        for name, parameter in self._factors():
            parameter.requires_grad_(name.endswith(f".lora_{block.value}"))
            if parameter.requires_grad:
                chosen.append(parameter)
        return chosen

    def _factors(self) -> list[tuple[str, nn.Parameter]]:
        """(name as in ``Adapter.tensors``, parameter), in the adapter's order."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                short = module_name(name).removesuffix(f".{ADAPTER}.weight")
                found[short.replace(f".lora_A.{ADAPTER}.core", ".lora_core")] = parameter
        return [(key, found[key]) for key in tensor_shapes(self.spec)]


def module_name(name: str) -> str:
    """A module's name in the base, from its name in the PEFT model."""
    return name.removeprefix(PEFT_PREFIX)


class CoredLinear(nn.Linear):
    """A and after it the core: M A x, from (..., in) to (..., rank)."""

    def __init__(self, a: nn.Linear) -> None:
        """Put a core of zeros after A; A's own weight is kept."""
        super().__init__(a.in_features, a.out_features, bias=False, device="meta")
        self.weight = a.weight
        self.core = nn.Parameter(a.weight.new_zeros(a.out_features, a.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """M A x."""
        return nn.functional.linear(super().forward(x), self.core)


def make_student(base: nn.Module, tokenizer: Any, spec: AdapterSpec) -> Student:
    """Put LoRA layers of ``spec`` on a base; ``tokenizer`` is the processor where the base reads images.

    The base is changed in place: several students on one machine share it by loading adapters in turn.
    """
    vision = Vision(base, tokenizer) if _reads_images(base) else None
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=[module.name for module in spec.modules],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config).eval()
    if spec.mode is AdapterMode.CORE:
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.lora_A[ADAPTER] = CoredLinear(layer.lora_A[ADAPTER])
    reader = tokenizer if vision is None else vision.processor.tokenizer
    return Student(model=model, tokenizer=reader, spec=spec, vision=vision)
