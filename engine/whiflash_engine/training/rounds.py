"""Prefixes from which every arm has drafted: what a router learns from.

What is told of a draft is how many tokens passed and how many there were: a row of trials that
ends at the first rejection, or where the draft ends. So a draft that was accepted whole (censored
by its length) says what it says and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.tensors import read_file
from whiflash_engine.config import ArmName
from whiflash_engine.errors import CheckpointError
from whiflash_engine.router.perceptron import Array
from whiflash_engine.training.loop import Report
from whiflash_engine.training.model_files import write_json, write_tensors

DRAFTERS: tuple[ArmName, ...] = ("ar", "diffusion")
ARMS: tuple[ArmName, ...] = (*DRAFTERS, "retrieval")
HELD_OUT = 9
"""Every ninth prompt is held out: kinds take turns, and four of them would share eight."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """One prefix. features: of `whiflash_engine.router.neural`. tried: per arm of `ARMS`, how
    many draft tokens passed and how many were drafted, behind what a grammar forced; (0, 0)
    where it had no turn. weight: how probable it is that a round begins here."""

    features: Array
    tried: Sequence[tuple[int, int]]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rounds:
    """N prefixes. features [N,D] float32; accepted, drafted [N,A] int64; prompt [N] int64;
    weight [N] float32, see `Drafted`.

    positions: per arm, the longest draft of all prefixes, also where these are some of them.
    """

    features: Tensor
    accepted: Tensor
    drafted: Tensor
    prompt: Tensor
    weight: Tensor
    positions: tuple[int, ...]

    @staticmethod
    def read(folder: Path) -> Rounds:
        """What `log_rounds` wrote. CheckpointError if that is nothing, or of several models."""
        parts = [read_file(file) for file in sorted(folder.glob("prefixes-*.safetensors"))]
        parts = [part for part in parts if len(part["prompt"])]
        if not parts:
            raise CheckpointError(folder, "holds no prefixes")
        if len({part["features"].shape[1] for part in parts}) > 1:
            raise CheckpointError(folder, "holds prefixes of models of different sizes")
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        drafted = columns["drafted"].long()
        return Rounds(
            columns["features"].float(), columns["accepted"].long(), drafted,
            columns["prompt"].long(), columns["weight"].float(),
            tuple(int(n) for n in drafted.amax(0)),
        )  # fmt: skip

    def split(self) -> tuple[Rounds, Rounds]:
        """(those to learn from, those of the held-out prompts)."""
        unseen = self.prompt % HELD_OUT == 0
        return self.of(~unseen), self.of(unseen)

    def of(self, chosen: Tensor) -> Rounds:
        """chosen: [N] bool."""
        return Rounds(
            self.features[chosen], self.accepted[chosen], self.drafted[chosen],
            self.prompt[chosen], self.weight[chosen], self.positions,
        )  # fmt: skip

    def trials(self) -> tuple[Tensor, Tensor]:
        """bool [N,P] each: was the position asked, did it pass; arm after arm."""
        asked, passed = [], []
        for arm, count in enumerate(self.positions):
            place = torch.arange(count)
            accepted, drafted = self.accepted[:, arm, None], self.drafted[:, arm, None]
            asked.append((place <= accepted) & (place < drafted))
            passed.append(place < accepted)
        return torch.cat(asked, 1), torch.cat(passed, 1)


def log_rounds(
    prompts: Sequence[Callable[[], Iterator[Drafted]]],
    folder: Path, settings: Mapping[str, object], report: Report, chunk: int = 20,
) -> None:  # fmt: skip
    """Log the prefixes of every prompt, a file for each `chunk` prompts; what is there
    already is not made again. settings: what they depend on; CheckpointError for a folder whose
    prefixes were made with others."""
    made_with = folder / "settings.json"
    if made_with.is_file():
        known = Fields.read(made_with).values
        for name, value in settings.items():
            if known.get(name) != value:
                why = f"its prefixes were made with {name} {known.get(name)!r}, not {value!r}"
                raise CheckpointError(folder, why)
    else:
        write_json(made_with, settings)
    for start in range(0, len(prompts), chunk):
        path = folder / f"prefixes-{start:05}.safetensors"
        if path.is_file():
            continue
        rows: list[Drafted] = []
        numbers: list[int] = []
        for number, drafted in enumerate(prompts[start : start + chunk], start):
            rows += drafted()
            numbers += [number] * (len(rows) - len(numbers))
        _write(path, rows, numbers)
        report({"prompts": min(start + chunk, len(prompts)), "prefixes": len(rows)})


def _write(path: Path, rows: Sequence[Drafted], prompts: Sequence[int]) -> None:
    tried = torch.tensor([row.tried for row in rows], dtype=torch.int16).view(-1, len(ARMS), 2)
    features = np.stack([row.features for row in rows]) if rows else np.zeros((0, 0))
    write_tensors(
        path,
        {"features": torch.from_numpy(features).half(),
         "accepted": tried[:, :, 0].contiguous(), "drafted": tried[:, :, 1].contiguous(),
         "weight": torch.tensor([row.weight for row in rows]),
         "prompt": torch.tensor(prompts, dtype=torch.int32)},
    )  # fmt: skip
