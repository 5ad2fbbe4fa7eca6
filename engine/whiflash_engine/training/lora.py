"""Low-rank adapters (LoRA, arXiv 2106.09685): y = W x + (alpha / r) B A x.

Saved under PEFT's names, so that other tools can read them. Merging into the base weights is
`checkpoints.lora.merge_lora`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.shipped import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from whiflash_engine.checkpoints.tensors import read_file
from whiflash_engine.config import require
from whiflash_engine.errors import CheckpointError
from whiflash_engine.training.model_files import (
    write_json,
    write_tensors,
)

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = LINEARS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """A frozen linear with a trainable low-rank term. A and B are float32 masters."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base, self.scale = base, config.scale
        self.lora_A = nn.Parameter(torch.empty(config.rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_A.to(x.dtype))
        out: Tensor = self.base(x) + F.linear(low, (self.lora_B * self.scale).to(x.dtype))
        return out


def inject(model: nn.Module, config: LoraConfig) -> list[nn.Parameter]:
    """Replace every targeted linear inside `layers`; returns what to train."""
    trained: list[nn.Parameter] = []
    for module in list(model.modules()):
        for name in config.targets:
            linear = getattr(module, name, None)
            if isinstance(linear, nn.Linear):
                adapter = LoraLinear(linear, config)
                setattr(module, name, adapter)
                trained += [adapter.lora_A, adapter.lora_B]
    if not trained:
        raise ValueError(f"no linear named {', '.join(config.targets)} in the model")
    return trained


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of an injected model under PEFT's names."""
    return {
        f"base_model.model.model.{name}.{part}.weight": getattr(module, part).detach()
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
        for part in ("lora_A", "lora_B")
    }


def load_adapter_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved A and B into an injected model; every name must be known and present."""
    wanted = adapter_tensors(model)
    if wanted.keys() != tensors.keys():
        raise ValueError(f"adapter tensors differ: {sorted(wanted.keys() ^ tensors.keys())[:4]}")
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(tensors[name])


def save_adapter(
    folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig, base_name: str
) -> None:
    """Write adapter_model.safetensors (bfloat16) and adapter_config.json."""
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    write_tensors(folder / ADAPTER_WEIGHTS, rounded)
    write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": list(config.targets),
        },
    )


def average_adapters(folders: Sequence[Path], output: Path) -> None:
    """An adapter between near relatives, of which each was trained on from the last: the mean of
    A and of B, tensor by tensor (the mean of their products is another one, but near).
    CheckpointError where they differ in more than values."""
    require(len(folders) > 1, "adapter", [str(f) for f in folders], "two are needed to average")
    configs = [Fields.read(folder / ADAPTER_CONFIG).values for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if config != configs[0]:
            raise CheckpointError(folder / ADAPTER_CONFIG, f"differs from {folders[0]}'s")
    files = [folder / ADAPTER_WEIGHTS for folder in folders]
    found = [read_file(file) for file in files]
    for file, tensors in zip(files, found, strict=True):
        shapes = [{name: t.shape for name, t in part.items()} for part in (tensors, found[0])]
        if shapes[0] != shapes[1]:
            raise CheckpointError(file, f"has other tensors than {files[0]}")
    mean = {name: torch.stack([t[name].float() for t in found]).mean(0) for name in found[0]}
    write_tensors(output / ADAPTER_WEIGHTS, {k: v.to(torch.bfloat16) for k, v in mean.items()})
    write_json(output / ADAPTER_CONFIG, configs[0])
