"""From names and folders to what an engine is made of: which runner, which taps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whiflash_engine.checkpoints.dflash import DFlashConfig, load_dflash
from whiflash_engine.checkpoints.digest import drafters_digest, model_digest
from whiflash_engine.checkpoints.eagle3 import Eagle3Config, load_eagle3
from whiflash_engine.checkpoints.fetch import Report
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.resolve import (
    resolve_model,
    resolve_part,
    shipped_drafters,
    silent,
)
from whiflash_engine.checkpoints.router import load_router
from whiflash_engine.checkpoints.weights import is_native, load_weights, model_config
from whiflash_engine.config import ArmName, ModelConfig, RouterConfig, require
from whiflash_engine.devices import ROUNDED, choose_device, choose_dtype
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.drafters.dflash import DFlashDrafter, checked_block
from whiflash_engine.drafters.eagle3 import Eagle3Drafter, checked_depth
from whiflash_engine.graphs import Capture, graph_capture
from whiflash_engine.linear import rounds
from whiflash_engine.router.build import build_router
from whiflash_engine.router.neural import RouterNet
from whiflash_engine.router.perceptron import Perceptron
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
        return drafters_digest(loaded[1] for loaded in (self.eagle3, self.dflash) if loaded)

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
        self,
        target: Target,
        *,
        depth: int | None = None,
        block: int | None = None,
        capture: Capture | None = None,
    ) -> dict[ArmName, Drafter]:
        """depth: how many tokens EAGLE-3 drafts. block: rows of a DFlash block, the bonus
        token's included. None leaves either as it usually is. capture: of work of fixed shape."""
        drafters: dict[ArmName, Drafter] = {}
        if self.eagle3:
            drafters["ar"] = Eagle3Drafter(
                self.eagle3[0], _cast(self.eagle3[1], target), target, depth, capture=capture
            )
        if self.dflash:
            drafters["diffusion"] = DFlashDrafter(
                self.dflash[0], _cast(self.dflash[1], target), target, block, capture=capture
            )
        return drafters


def _cast(weights: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
    return {
        name: w.to(target.device, target.dtype) if w.is_floating_point() else w.to(target.device)
        for name, w in weights.items()
    }


def load_drafters(
    config: ModelConfig,
    ar: str | Path | None,
    diffusion: str | Path | None,
    *,
    report: Report = silent,
) -> LoadedDrafters:
    """Read drafters (folders or hub ids); one of another hidden size or vocabulary is refused."""

    def folder(spec: str | Path) -> Path:
        return resolve_part(spec, "drafter", report=report)

    return LoadedDrafters(
        None if ar is None else load_eagle3(folder(ar), config),
        None if diffusion is None else load_dflash(folder(diffusion), config),
    )


def _router_net(spec: str | Path, hidden_size: int, report: Report) -> RouterNet | Perceptron:
    return load_router(resolve_part(spec, "router", report=report), hidden_size)


@dataclass(frozen=True, slots=True)
class TargetFiles:
    """A model folder, of which only config.json has been read."""

    folder: Path
    config: ModelConfig
    """What the target's will be."""
    is_native: bool
    """The native runner knows the family; transformers runs every other one."""

    @staticmethod
    def read(folder: Path) -> TargetFiles:
        fields = Fields.read(folder / "config.json")
        if is_native(fields.values):
            return TargetFiles(folder, model_config(fields), True)
        return TargetFiles(folder, causal_config(folder), False)

    def check(self, dtype: str | None) -> None:
        """ConfigError where the model's runner does not compute in it."""
        why = "is for models that the native runner knows"
        require(self.is_native or dtype != ROUNDED, "dtype", dtype, why)

    def load(
        self,
        taps: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        capture: Capture | None = None,
        *,
        rounded: bool = False,
    ) -> Target:
        """capture, rounded: of the native runner."""
        if not self.is_native:
            return HFTarget(self.folder, taps=taps, dtype=dtype, device=device)
        weights = load_weights(self.folder, dtype, device)
        return NativeTarget(self.config, weights, taps, rounded=rounded, capture=capture)


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
    report: Report | None,
) -> Parts:
    """Read what `Engine.load` names; its docstring tells what None means. What does not fit
    together, or lacks what `router` needs, is refused before the target's weights are read."""
    place = choose_device(device)
    kind, rounded = choose_dtype(dtype, place), dtype == ROUNDED
    why = "is for x86 with AVX2 under Linux with a C compiler"
    require(not rounded or rounds(place, kind), "dtype", dtype, why)
    report = report or silent
    folder = resolve_model(None if model is None else str(model), report=report)
    shipped = shipped_drafters(folder)
    if shipped is not None:
        if ar_drafter is None and diffusion_drafter is None:
            neural_router = neural_router or shipped.router
        ar_drafter = ar_drafter or shipped.eagle3
        diffusion_drafter = diffusion_drafter or shipped.dflash
    files = TargetFiles.read(folder.path)
    files.check(dtype)
    drafters = load_drafters(files.config, ar_drafter, diffusion_drafter, report=report)
    net = _router_net(neural_router, files.config.hidden_size, report) if neural_router else None
    build_router(router, (*drafters.arms, "retrieval", "plain"), net=net)  # tells what it lacks
    drafters.check(ar_depth, diffusion_block)
    tokenizer = load_tokenizer(folder.path)
    stops = tuple(stop_token_ids(folder.path, tokenizer))
    # what another runner's network does in between is not known to be fit for it
    capture = graph_capture(place) if files.is_native else None
    target = files.load(drafters.taps, kind, place, capture, rounded=rounded)
    return Parts(
        target,
        drafters.build(target, depth=ar_depth, block=diffusion_block, capture=capture),
        tokenizer,
        net,
        folder.name,
        f"{folder.name} {model_digest(folder.path)} {drafters.digest}",
        stops,
    )
