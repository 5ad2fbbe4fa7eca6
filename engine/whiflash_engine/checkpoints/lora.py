"""Merge a LoRA adapter (arXiv 2106.09685) in PEFT's layout into base weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.shipped import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from whiflash_engine.checkpoints.tensors import read_file
from whiflash_engine.errors import CheckpointError

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter: `pairs[name]` is (A, B) with A (r, in) and B (out, r) for the weight."""

    path: Path
    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]


def read_lora(folder: Path) -> Lora:
    """Read `adapter_config.json` and `adapter_model.safetensors`.

    Raises CheckpointError for a kind of adapter that is not plain LoRA, for a tensor that
    is no half of a pair, and for a rank that is not the one stated.
    """
    config = Fields.read(folder / ADAPTER_CONFIG)
    if config.text("peft_type", "LORA") != "LORA":
        raise config.fail("peft_type", "only LORA is supported")
    for key in ("use_dora", "use_rslora", "fan_in_fan_out"):
        if config.flag(key, False):
            raise config.fail(key, "is not supported")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise config.fail(key, "is not supported")
    rank = config.integer("r")
    if rank < 1:
        raise config.fail("r", "must be positive")
    path = folder / ADAPTER_WEIGHTS
    halves = {"lora_A": dict[str, Tensor](), "lora_B": dict[str, Tensor]()}
    for name, tensor in read_file(path).items():
        stem, _, half = name.removesuffix(".weight").rpartition(".")
        if not name.startswith(_PREFIX) or half not in halves:
            raise CheckpointError(path, f"tensor {name!r} is no lora_A or lora_B of a layer")
        halves[half][f"{stem.removeprefix(_PREFIX)}.weight"] = tensor
        if tensor.ndim != 2 or tensor.shape[0 if half == "lora_A" else 1] != rank:
            raise CheckpointError(path, f"tensor {name!r} does not have rank {rank}")
    first, second = halves["lora_A"], halves["lora_B"]
    for name in sorted(first.keys() ^ second.keys()):
        raise CheckpointError(path, f"weight {name!r} has only one half of its pair")
    if not first:
        raise CheckpointError(path, "holds no tensor")
    modules = config.get("target_modules")
    for module in config.texts("target_modules") or () if isinstance(modules, list) else ():
        if not any(name.endswith(f".{module}.weight") for name in first):
            raise CheckpointError(path, f"holds nothing for target module {module!r}")
    scale = config.number("lora_alpha") / rank
    return Lora(path, scale, {name: (first[name], second[name]) for name in first})


def merge_lora(lora: Lora, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + alpha / r * B A, summed in float32 and rounded to W's dtype.

    Raises CheckpointError naming the tensor if the base lacks it or has another shape.
    """
    merged = dict(weights)
    for name, (a, b) in lora.pairs.items():
        base = weights.get(name)
        if base is None:
            raise CheckpointError(lora.path, f"the base model has no weight {name!r}")
        if tuple(base.shape) != (b.shape[0], a.shape[1]):
            raise CheckpointError(
                lora.path,
                f"weight {name!r}: the adapter changes {[b.shape[0], a.shape[1]]}, "
                f"the base has {list(base.shape)}",
            )
        delta = b.to(torch.float32) @ a.to(torch.float32)
        merged[name] = torch.add(base.to(torch.float32), delta, alpha=lora.scale).to(base.dtype)
    return merged
