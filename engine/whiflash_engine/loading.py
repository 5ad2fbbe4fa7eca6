"""From folders to a target and its drafters: device, precision, which runner, which taps."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whiflash_engine.checkpoints.dflash import DFlashConfig, load_dflash
from whiflash_engine.checkpoints.eagle3 import Eagle3Config, load_eagle3
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.router import load_router
from whiflash_engine.checkpoints.weights import is_native, load_config, load_weights
from whiflash_engine.config import ArmName, ModelConfig, require
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.drafters.dflash import DFlashDrafter
from whiflash_engine.drafters.eagle3 import Eagle3Drafter
from whiflash_engine.errors import ConfigError
from whiflash_engine.router.neural import Perceptron, RouterNet
from whiflash_engine.target.base import Target
from whiflash_engine.target.hf import HFTarget
from whiflash_engine.target.hf_loading import causal_config
from whiflash_engine.target.native import NativeTarget


def choose_device(name: str | None) -> torch.device:
    """One of "cpu", "cuda" and "cuda:N"; None takes a GPU when there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]{0,3}))?", name)
    if form is None:
        raise ConfigError("device", name, 'must be "cpu", "cuda" or "cuda:N"')
    if name != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(form[1] or 0)
        require(index < count, "device", name, f"no such device here, which has {count} GPUs")
    return torch.device(name)


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """None takes bfloat16 on a GPU and on CPUs that compute in it, float32 elsewhere."""
    if name is None:
        fast = device.type == "cuda" or _computes_in_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    require(name in kinds, "dtype", name, f"must be one of {', '.join(kinds)}")
    return kinds[name]


def _computes_in_bfloat16() -> bool:
    """Of the processor. oneDNN calls bfloat16 supported on all of AVX512, and emulates it there."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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

    @property
    def digest(self) -> str:
        """Tells these drafters from others; from what fuses the features, their first layer."""
        found = hashlib.sha256()
        for loaded in (self.eagle3, self.dflash):
            if loaded is not None:
                found.update(loaded[1]["fc.weight"].float().numpy(force=True).tobytes())
        return found.hexdigest()[:12]

    @property
    def arms(self) -> tuple[ArmName, ...]:
        return (*(("ar",) if self.eagle3 else ()), *(("diffusion",) if self.dflash else ()))

    def build(
        self, target: Target, *, depth: int | None = None, block: int | None = None
    ) -> dict[ArmName, Drafter]:
        """depth: how many tokens EAGLE-3 drafts. block: rows of a DFlash block, the bonus
        token's included. None leaves either as it usually is."""
        drafters: dict[ArmName, Drafter] = {}
        if self.eagle3:
            chain = self.eagle3[0], _cast(self.eagle3[1], target), target
            drafters["ar"] = Eagle3Drafter(*chain, *(() if depth is None else (depth,)))
        if self.dflash:
            drafters["diffusion"] = DFlashDrafter(
                self.dflash[0], _cast(self.dflash[1], target), target, block
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
    config = _target_config(model)
    return LoadedDrafters(
        None if ar is None else load_eagle3(_home(ar), config),
        None if diffusion is None else load_dflash(_home(diffusion), config),
    )


def load_net(model: Path, router: str | Path | None) -> RouterNet | Perceptron | None:
    """Read a learned router; one made for another hidden size is refused."""
    if router is None:
        return None
    return load_router(_home(router), _target_config(model).hidden_size)


def _home(folder: str | Path) -> Path:
    """`~` as for models; of an unknown user it stays, and the folder is told not to exist."""
    return Path(os.path.expanduser(folder))


def _target_config(folder: Path) -> ModelConfig:
    """What `load_target(folder, ...).config` will be, without its weights."""
    return load_config(folder) if _is_native(folder) else causal_config(folder)


def _is_native(folder: Path) -> bool:
    return is_native(Fields.read(folder / "config.json").values)


def load_target(
    folder: Path, taps: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Target:
    """The native runner where the family is known, transformers for every other model."""
    if not _is_native(folder):
        return HFTarget(folder, taps=taps, dtype=dtype, device=device)
    config = load_config(folder)
    return NativeTarget(config, load_weights(folder, dtype, device), taps)
