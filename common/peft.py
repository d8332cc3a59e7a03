"""Adapters in PEFT's folder format, so that peft, transformers and vLLM load a student as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from common.adapter import (
    METADATA_KEY,
    Adapter,
    AdapterMode,
    AdapterSpec,
    Block,
    ModuleShape,
    read_tensors,
    tensor_key,
)
from common.canonical import read_object
from common.errors import BadFileError, UnsupportedSchemaError

PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
PEFT_SUFFIX = ".weight"
# Each of them changes what the factors mean.
PEFT_UNREADABLE = (
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
)


def export_peft(
    adapter: Adapter, folder: Path | str, base_model: str, task_type: str | None = "CAUSAL_LM"
) -> None:
    """Write the adapter as a folder that PEFT loads onto ``base_model``.

    The spec goes along in the metadata of the tensors, so that `import_peft` gives the same adapter back.

    PEFT knows no core between the factors: an adapter of the mode ``core`` is written as what it computes,
    the plain LoRA of A and B M, and comes back as such (`without_core`). What a run goes on from is
    `common.adapter.save_adapter`.
    """
    adapter = without_core(adapter)
    spec = adapter.spec
    config = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": spec.rank,
        "target_modules": [module.name for module in spec.modules],
        "task_type": task_type,
    }
    tensors = {f"{PEFT_PREFIX}{key}{PEFT_SUFFIX}": array for key, array in adapter.tensors.items()}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(target / PEFT_TENSORS), metadata={METADATA_KEY: spec.to_json()})
    (target / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def without_core(adapter: Adapter) -> Adapter:
    """The plain adapter, of the mode rolora, that computes the same; one without a core as it is.

    B M is computed in float64 and rounded once, to float32.
    """
    if adapter.spec.mode is not AdapterMode.CORE:
        return adapter
    tensors = {}
    for module in adapter.spec.modules:
        a, b, core = (adapter.tensors[tensor_key(module, block)] for block in (Block.A, Block.B, Block.CORE))
        product = b.astype(np.float64) @ core.astype(np.float64)
        tensors[tensor_key(module, Block.A)] = a
        tensors[tensor_key(module, Block.B)] = product.astype(np.float32)
    return Adapter(spec=replace(adapter.spec, mode=AdapterMode.ROLORA), tensors=tensors)


def import_peft(folder: Path | str) -> Adapter:
    """The adapter of a PEFT folder, in float32.

    A folder that `export_peft` did not write does not say how its adapter is shared: it is read as the
    plan's default, rolora. So is one whose adapter had a core before it was written.

    Raises:
        BadFileError: A file is missing or damaged, or is no plain LoRA of one rank on linear modules.
        UnsupportedSchemaError: A newer version wrote it.
    """
    config_path, tensors_path = Path(folder) / PEFT_CONFIG, Path(folder) / PEFT_TENSORS
    rank, alpha = _read_peft_config(config_path)
    metadata, saved = read_tensors(tensors_path)
    try:
        tensors = {_key_from_peft(key): _widened(key, array) for key, array in saved.items()}
        spec = AdapterSpec(mode=AdapterMode.ROLORA, rank=rank, alpha=alpha, modules=_modules_of(tensors))
        if METADATA_KEY in metadata:
            written = AdapterSpec.from_json(metadata[METADATA_KEY])
            if replace(spec, mode=written.mode) != written:
                raise ValueError(f"Expected the spec of the metadata, got another one in {PEFT_CONFIG}")
            spec = written
        return Adapter(spec=spec, tensors=tensors)
    except UnsupportedSchemaError as error:
        raise error.at(tensors_path) from error
    except ValueError as error:
        raise BadFileError(tensors_path, str(error)) from error


def _read_peft_config(path: Path) -> tuple[int, float]:
    """Rank and alpha; BadFileError if the folder holds more than plain LoRA."""
    try:
        config = read_object(path.read_text(encoding="utf-8"), PEFT_CONFIG)
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"not a readable adapter configuration: {error}") from error
    if config.get("peft_type") != "LORA":
        raise BadFileError(path, f"expected peft_type LORA, got {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        raise BadFileError(path, f"expected bias none, got {config['bias']!r}")
    for key in PEFT_UNREADABLE:
        if config.get(key):
            raise BadFileError(path, f"expected plain LoRA, got {key} {config[key]!r}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise BadFileError(path, f"expected numbers for r and lora_alpha, got {rank!r} and {alpha!r}")
    return rank, float(alpha)


def _key_from_peft(key: str) -> str:
    if not (key.startswith(PEFT_PREFIX) and key.endswith(PEFT_SUFFIX)):
        raise ValueError(f"Expected {PEFT_PREFIX}<module>.lora_<A or B>{PEFT_SUFFIX}, got {key!r}")
    return key.removeprefix(PEFT_PREFIX).removesuffix(PEFT_SUFFIX)


def _widened(key: str, array: NDArray[Any]) -> NDArray[np.float32]:
    # Anything wider than float32 would lose digits without a word.
    if array.dtype not in (np.float16, np.float32):
        raise ValueError(f"Expected {key} in float16 or float32, got {array.dtype}")
    return array.astype(np.float32)


def _modules_of(tensors: Mapping[str, NDArray[Any]]) -> tuple[ModuleShape, ...]:
    """The modules that have both factors, as matrices."""
    modules = []
    for key in tensors:
        name, _, factor = key.rpartition(".")
        if factor != "lora_A":
            continue
        factors = (tensors[key], tensors.get(f"{name}.lora_B", np.zeros(())))
        if any(array.ndim != 2 for array in factors):
            raise ValueError(f"Expected two matrices for {name}, got {[array.shape for array in factors]}")
        modules.append(
            ModuleShape(name=name, in_features=factors[0].shape[1], out_features=factors[1].shape[0])
        )
    return tuple(modules)
