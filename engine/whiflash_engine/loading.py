"""From folders to a target and its drafters: device, precision, which runner, which taps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whiflash_engine.checkpoints.dflash import DFlashConfig, load_dflash
from whiflash_engine.checkpoints.eagle3 import Eagle3Config, load_eagle3
from whiflash_engine.checkpoints.weights import is_native, load_config, load_weights
from whiflash_engine.config import ArmName, require
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.drafters.dflash import DFlashDrafter
from whiflash_engine.drafters.eagle3 import Eagle3Drafter
from whiflash_engine.target.base import Target
from whiflash_engine.target.hf import HFTarget
from whiflash_engine.target.native import NativeTarget


def choose_device(name: str | None) -> torch.device:
    """None takes a GPU when there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require(
        name.split(":")[0] in ("cpu", "cuda"), "device", name, 'must be "cpu", "cuda" or "cuda:N"'
    )
    require(name == "cpu" or torch.cuda.is_available(), "device", name, "no such device here")
    return torch.device(name)


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """None takes bfloat16 on a GPU and on CPUs that compute in it, float32 elsewhere."""
    if name is None:
        fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    require(name in kinds, "dtype", name, f"must be one of {', '.join(kinds)}")
    return kinds[name]


@dataclass(frozen=True, slots=True)
class LoadedDrafters:
    """Checkpoints read and checked against the target's configuration, not built yet."""

    eagle3: tuple[Eagle3Config, Mapping[str, Tensor]] | None
    dflash: tuple[DFlashConfig, Mapping[str, Tensor]] | None

    @property
    def taps(self) -> tuple[int, ...]:
        """The union of what the drafters listen to: one capture serves both."""
        aux = self.eagle3[0].aux if self.eagle3 else ()
        taps = self.dflash[0].taps if self.dflash else ()
        return tuple(sorted({*aux, *taps}))

    def build(self, target: Target) -> dict[ArmName, Drafter]:
        drafters: dict[ArmName, Drafter] = {}
        if self.eagle3:
            drafters["ar"] = Eagle3Drafter(self.eagle3[0], _cast(self.eagle3[1], target), target)
        if self.dflash:
            drafters["diffusion"] = DFlashDrafter(
                self.dflash[0], _cast(self.dflash[1], target), target
            )
        return drafters


def _cast(weights: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
    return {
        name: w.to(target.device, target.dtype) if w.is_floating_point() else w.to(target.device)
        for name, w in weights.items()
    }


def load_drafters(
    model: Path, ar: str | Path | None, diffusion: str | Path | None
) -> LoadedDrafters:
    """Read drafter folders; a drafter of another hidden size or vocabulary is refused."""
    if ar is None and diffusion is None:
        return LoadedDrafters(None, None)
    config = load_config(model)
    return LoadedDrafters(
        load_eagle3(Path(ar), config) if ar else None,
        load_dflash(Path(diffusion), config) if diffusion else None,
    )


def load_target(
    folder: Path, taps: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Target:
    """The native runner where the family is known, transformers for every other model."""
    if not is_native(json.loads((folder / "config.json").read_text(encoding="utf-8"))):
        return HFTarget(folder, taps=taps, dtype=dtype, device=device)
    config = load_config(folder)
    return NativeTarget(config, load_weights(folder, dtype, device), taps)
