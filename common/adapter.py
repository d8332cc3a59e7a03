"""The trained part of a student: LoRA factors, as NumPy arrays.

An adapter is a pair (A, B) for each adapted linear module; the module computes
``W x + (alpha / rank) * B A x`` (Hu et al. 2021, section 4.1). A round trains one block of it, all A or
all B, since the mean of products is not the product of means: with one block fixed the sum over sites
is exact (Sun et al. 2024, FFA-LoRA; Chen et al. 2025, RoLoRA). In the mode ``core`` both factors are drawn
and stay as they are, and a small square matrix M between them is all that is trained and summed:
``W x + (alpha / rank) * B M A x`` (Bałazy et al. 2024, LoRA-XS; Singhal et al. 2025, Fed-SB).

The order of everything is fixed, modules by name, A before B before M, rows first, so that two machines
agree on every byte.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.canonical import canonical_json, plain, read_object
from common.checks import require, require_once, require_positive, require_schema, require_whole
from common.errors import BadFileError, UnsupportedSchemaError
from common.ids import AdapterId, RoundId
from common.schema import build, conform

ADAPTER_SCHEMA = 1

# The only metadata key: with two, safetensors would write them in an order that changes from run to run.
METADATA_KEY = "consilium"
DIGEST_LABEL = b"consilium adapter v1\n"
DRAW_LABEL = "consilium initial adapter v1"


class AdapterMode(StrEnum):
    """Which block is trained and summed in which round."""

    FFA = "ffa"
    ROLORA = "rolora"
    CORE = "core"


class Block(StrEnum):
    """One of the factors, of all modules together; only the mode ``core`` has a core between A and B."""

    A = "A"
    B = "B"
    CORE = "core"


@dataclass(frozen=True, kw_only=True)
class ModuleShape:
    """A linear module that is adapted.

    Attributes:
        name: Its path in the base model, for example ``model.layers.0.self_attn.q_proj``.
        in_features: Width of its input.
        out_features: Width of its output.
    """

    name: str
    in_features: int
    out_features: int

    def __post_init__(self) -> None:
        conform(self)
        require(
            bool(self.name) and not any(letter.isspace() for letter in self.name),
            "name",
            repr(self.name),
            "a module's path without white space",
        )
        require_whole("in_features", self.in_features, 1)
        require_whole("out_features", self.out_features, 1)


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """The shape of an adapter and how it is shared.

    Attributes:
        mode: Which block is trained in which round.
        rank: Rows of every A and columns of every B.
        alpha: Strength; the product B A is scaled by ``alpha / rank``.
        modules: The adapted modules; brought into the order of their names.
    """

    mode: AdapterMode
    rank: int
    alpha: float
    modules: tuple[ModuleShape, ...]

    def __post_init__(self) -> None:
        conform(self)
        require_whole("rank", self.rank, 1)
        require_positive("alpha", self.alpha)
        require_once("modules", [module.name for module in self.modules])
        object.__setattr__(self, "modules", tuple(sorted(self.modules, key=lambda module: module.name)))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks that there are, in the fixed order."""
        return tuple(Block) if self.mode is AdapterMode.CORE else (Block.A, Block.B)

    def active_block(self, round_id: RoundId | int) -> Block:
        """The block that a round trains; the first round is 1.

        ffa: always B. rolora: B in the rounds 1, 3, 5 and so on, A in the others. core: always the core.
        """
        if round_id < 1:
            raise ValueError(f"Expected a round id >= 1, got {round_id}")
        if self.mode is AdapterMode.ROLORA and round_id % 2 == 0:
            return Block.A
        return Block.CORE if self.mode is AdapterMode.CORE else Block.B

    def shape(self, module: ModuleShape, block: Block) -> tuple[int, int]:
        """Rows and columns: (rank, in_features) of A, (out_features, rank) of B, (rank, rank) of a core.

        A core has (0, 0) in the other modes, where a tensor of it does not exist.
        """
        if block is Block.A:
            return self.rank, module.in_features
        if block is Block.B:
            return module.out_features, self.rank
        return (self.rank, self.rank) if self.mode is AdapterMode.CORE else (0, 0)

    def size(self, block: Block) -> int:
        """How many numbers the block holds, over all modules."""
        return sum(math.prod(self.shape(module, block)) for module in self.modules)

    def to_json(self) -> str:
        """The spec as canonical JSON, with its schema number."""
        return canonical_json({"schema": ADAPTER_SCHEMA, **plain(self)})

    @classmethod
    def from_json(cls, text: str) -> AdapterSpec:
        """The spec back from its JSON; SettingsError or UnsupportedSchemaError if it is not one."""
        content = read_object(text, "adapter")
        require_schema("adapter", content.pop("schema", None), ADAPTER_SCHEMA)
        return build(cls, content, "adapter")


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """The factors of every module of a spec.

    Guarantee: holds exactly the spec's tensors, in float32, finite, and nobody can change them. An array that
    can be written to is copied; one that cannot is kept. Two adapters are equal if their digests are.

    Attributes:
        spec: Shapes, and how the adapter is shared.
        tensors: By ``{module}.lora_A``, shape (rank, in_features); ``{module}.lora_B``, shape (out_features,
            rank); and in the mode ``core`` by ``{module}.lora_core``, shape (rank, rank).
    """

    spec: AdapterSpec
    tensors: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        shapes = tensor_shapes(self.spec)
        for key in self.tensors:
            if key not in shapes:
                raise ValueError(f"Expected only the spec's tensors, got {key!r}")
        for key in shapes:
            if key not in self.tensors:
                raise ValueError(f"Expected all of the spec's tensors, got none for {key!r}")
        frozen = {key: _frozen(key, self.tensors[key], shape) for key, shape in shapes.items()}
        object.__setattr__(self, "tensors", MappingProxyType(frozen))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def digest(self) -> AdapterId:
        """SHA-256 of the spec and of all numbers, in the fixed order.

        Guarantee: the digest changes with any value.
        """
        state = hashlib.sha256(DIGEST_LABEL)
        state.update(self.spec.to_json().encode() + b"\n")
        for key in tensor_shapes(self.spec):
            state.update(self.tensors[key].astype("<f4", copy=False).tobytes())
        return AdapterId(state.hexdigest())


def tensor_shapes(spec: AdapterSpec) -> dict[str, tuple[int, int]]:
    """The shape of every tensor of a spec by its key, in the fixed order."""
    return {
        tensor_key(module, block): spec.shape(module, block)
        for module in spec.modules
        for block in spec.blocks
    }


def tensor_key(module: ModuleShape, block: Block) -> str:
    """The key of one factor of one module."""
    return f"{module.name}.lora_{block.value}"


def initial_adapter(spec: AdapterSpec, seed: int) -> Adapter:
    """The adapter that a run starts from: A drawn, B zero, so that it changes nothing yet.

    A is uniform within 1 / sqrt(in_features), as PEFT draws it (Kaiming uniform with a = sqrt 5). In the mode
    ``core`` B is drawn too, within 1 / sqrt(rank), and the core is zero.

    Guarantee: the initial adapter has the same bytes on every machine.
    """
    drawn = {Block.A: ""} if spec.mode is not AdapterMode.CORE else {Block.A: "", Block.B: "B"}
    tensors = {}
    for module in spec.modules:
        for block in spec.blocks:
            shape = spec.shape(module, block)
            tensors[tensor_key(module, block)] = (
                _draw(shape, seed, module, drawn[block]) if block in drawn else np.zeros(shape, np.float32)
            )
    return Adapter(spec=spec, tensors=tensors)


def flatten(adapter: Adapter, block: Block) -> NDArray[np.float32]:
    """One block as a new vector of ``spec.size(block)`` numbers."""
    if block not in adapter.spec.blocks:
        return np.zeros(0, dtype=np.float32)
    parts = [adapter.tensors[tensor_key(module, block)].ravel() for module in adapter.spec.modules]
    return np.concatenate(parts)


def unflatten(adapter: Adapter, block: Block, vector: NDArray[np.floating[Any]]) -> Adapter:
    """The adapter with one block taken from a vector; the other blocks are kept."""
    size = adapter.spec.size(block)
    if vector.shape != (size,):
        raise ValueError(f"Expected a vector of shape ({size},) for block {block.value}, got {vector.shape}")
    if block not in adapter.spec.blocks:
        return adapter
    tensors = dict(adapter.tensors)
    start = 0
    for module in adapter.spec.modules:
        shape = adapter.spec.shape(module, block)
        end = start + math.prod(shape)
        tensors[tensor_key(module, block)] = vector[start:end].reshape(shape).astype(np.float32)
        start = end
    return Adapter(spec=adapter.spec, tensors=tensors)


def save_adapter(adapter: Adapter, path: Path | str) -> None:
    """Write the adapter as safetensors, its spec in the metadata.

    Guarantee: equal adapters are saved as equal bytes.
    """
    save_file(dict(adapter.tensors), str(path), metadata={METADATA_KEY: adapter.spec.to_json()})


def load_adapter(path: Path | str) -> Adapter:
    """The adapter of a file that `save_adapter` wrote.

    Raises:
        BadFileError: The file is missing, damaged or holds something else.
        UnsupportedSchemaError: A newer version wrote it.
    """
    metadata, tensors = read_tensors(path)
    if METADATA_KEY not in metadata:
        raise BadFileError(path, f"expected an adapter's spec under the metadata key {METADATA_KEY!r}")
    try:
        return Adapter(spec=AdapterSpec.from_json(metadata[METADATA_KEY]), tensors=tensors)
    except UnsupportedSchemaError as error:
        raise error.at(path) from error
    except ValueError as error:
        raise BadFileError(path, str(error)) from error


def read_tensors(path: Path | str) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and tensors of a safetensors file; BadFileError if it is none."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise BadFileError(path, f"not a readable safetensors file: {error}") from error


def _draw(shape: tuple[int, int], seed: int, module: ModuleShape, factor: str) -> NDArray[np.float32]:
    """Uniform numbers within 1 / sqrt(columns), keyed by seed, module name and factor (nothing: A).

    NumPy promises that the raw words of a bit generator stay the same, not what a `Generator` makes of
    them; so the words become floats here, by operations that IEEE 754 rounds in one way only.
    """
    label = "\n".join([DRAW_LABEL, str(seed), module.name, *([factor] if factor else [])])
    key = hashlib.sha256(label.encode()).digest()
    words = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(math.prod(shape))
    # The middles of 2**24 equal steps over (-1, 1): symmetric about zero, exact in float64.
    unit = ((words >> np.uint64(40)).astype(np.float64) * 2 + 1) / 2**24 - 1
    return (unit * (1 / math.sqrt(shape[1]))).astype(np.float32).reshape(shape)


def _frozen(key: str, array: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    if array.dtype != np.float32:
        raise ValueError(f"Expected {key} in float32, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"Expected {key} of shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"Expected {key} to be finite, got {np.count_nonzero(~np.isfinite(array))} that are not"
        )
    if _can_change(array) or not array.flags.c_contiguous:
        array = array.copy(order="C")
        array.flags.writeable = False
    return array


def _can_change(array: NDArray[Any]) -> bool:
    """Whether somebody can write to the array, itself or through the one that it is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return True
        owner = owner.base
    return False
