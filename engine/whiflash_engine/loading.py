"""From names and folders to what an engine is made of: which runner, which taps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whiflash_engine.checkpoints.dflash import DFlashConfig, load_dflash
from whiflash_engine.checkpoints.eagle3 import Eagle3Config, load_eagle3
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.resolve import resolve_model, shipped_drafters, silent
from whiflash_engine.checkpoints.router import load_router
from whiflash_engine.checkpoints.weights import is_native, load_config, load_weights
from whiflash_engine.config import ArmName, ModelConfig, RouterConfig, require
from whiflash_engine.devices import choose_device, choose_dtype
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.drafters.dflash import DFlashDrafter, checked_block
from whiflash_engine.drafters.eagle3 import Eagle3Drafter, checked_depth
from whiflash_engine.router.neural import Perceptron, RouterNet
from whiflash_engine.router.router import build_router
from whiflash_engine.target.base import Target
from whiflash_engine.target.hf import HFTarget
from whiflash_engine.target.hf_loading import causal_config
from whiflash_engine.target.native import NativeTarget
from whiflash_engine.text import load_tokenizer, stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    def check(self, depth: int | None, block: int | None) -> None:
        """ConfigError for draft lengths that these drafters cannot have."""
        if depth is not None:
            require(self.eagle3 is not None, "ar_depth", depth, "there is no AR drafter")
            checked_depth(depth)
        if block is not None:
            require(self.dflash is not None, "diffusion_block", block, "there is none to draft it")
            if self.dflash is not None:
                checked_block(block, self.dflash[0])

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


_END_BYTES = 1 << 16


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


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of."""

    target: Target
    drafters: Mapping[ArmName, Drafter]
    tokenizer: PreTrainedTokenizerBase
    router_net: RouterNet | Perceptron | None
    model_name: str
    identity: str
    """Tells these weights from others, the drafters' included."""
    stop_token_ids: tuple[int, ...]


def load_parts(
    model: str | Path | None,
    router: RouterConfig,
    *,
    ar_drafter: str | Path | None,
    diffusion_drafter: str | Path | None,
    neural_router: str | Path | None,
    ar_depth: int | None,
    diffusion_block: int | None,
    device: str | None,
    dtype: str | None,
    report: Callable[[str], None] | None,
) -> Parts:
    """Read what `Engine.load` names; its docstring tells what None means. What does not fit
    together, or lacks what `router` needs, is refused before the target's weights are read."""
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    folder = resolve_model(None if model is None else str(model), report=report or silent)
    shipped = shipped_drafters(folder)
    if shipped is not None:
        if ar_drafter is None and diffusion_drafter is None:
            neural_router = neural_router or shipped.router
        ar_drafter = ar_drafter or shipped.eagle3
        diffusion_drafter = diffusion_drafter or shipped.dflash
    drafters = load_drafters(folder.path, ar_drafter, diffusion_drafter)
    net = load_net(folder.path, neural_router)
    build_router(router, (*drafters.arms, "retrieval", "plain"), net=net)  # tells what it lacks
    drafters.check(ar_depth, diffusion_block)
    tokenizer = load_tokenizer(folder.path)
    stops = tuple(stop_token_ids(folder.path, tokenizer))
    target = load_target(folder.path, drafters.taps, kind, place)
    return Parts(
        target,
        drafters.build(target, depth=ar_depth, block=diffusion_block),
        tokenizer,
        net,
        folder.name,
        f"{folder.name} {_digest(folder.path)} {drafters.digest}",
        stops,
    )


def _digest(folder: Path) -> str:
    """Tells a model from others of its name: of its configuration and the ends of its weights."""
    found = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            found.update(file.read())
    return found.hexdigest()[:12]
