"""The network that a router's training fits: made fresh or gone on from, and written."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from whiflash_engine.checkpoints.router import CONFIG, load_router
from whiflash_engine.checkpoints.tensors import read_folder
from whiflash_engine.errors import CheckpointError
from whiflash_engine.router.neural import STRUCTURE, RouterNet
from whiflash_engine.training.model_files import write_json, write_tensors
from whiflash_engine.training.rounds import ARMS, Rounds

_LAYERS = {"fc1": "0", "fc2": "3"}
"""Names in the file, and in `nn.Sequential`."""


class Trainee:
    """net: of inputs that `normed` gives [N,D]; returns log odds [N,P]."""

    def __init__(self, net: nn.Sequential, mean: Tensor, scale: Tensor) -> None:
        self.net, self._mean, self._scale = net, mean, scale

    @staticmethod
    def fresh(known: Rounds, dropout: float) -> Trainee:
        """d + structure -> d/8 -> GELU -> one log odds per arm and position."""
        inputs = known.features.shape[1]
        hidden = max((inputs - STRUCTURE) // 8, 8)
        mean, spread = known.features.mean(0), known.features.std(0)
        # what never varied has taught nothing, and says nothing when one day it does
        scale = torch.where(spread > 1e-3, 1.0 / spread.clamp_min(1e-2), 0.0)
        return Trainee(_layers(inputs, hidden, sum(known.positions), dropout), mean, scale)

    @staticmethod
    def going_on(folder: Path, known: Rounds, dropout: float) -> Trainee:
        """From a router of `train router`, for drafters of other weights. CheckpointError if it
        is none, or is for other inputs, arms or draft lengths."""
        inputs = known.features.shape[1]
        has, wanted = dict(startable(folder, inputs - STRUCTURE).positions), _positions(known)
        if [*has.items()] != [*wanted.items()]:  # in order: outputs lie arm by arm
            raise CheckpointError(
                folder / CONFIG,
                f"is for drafts of up to {has}, those that were logged are of up to {wanted}; "
                "go on with drafters of the same lengths, and enough prompts to have seen them",
            )
        saved = {name: value.float() for name, value in read_folder(folder).items()}
        net = _layers(inputs, len(saved["fc1.bias"]), sum(known.positions), dropout)
        net.load_state_dict(
            {
                f"{place}.{part}": saved[f"{name}.{part}"]
                for name, place in _LAYERS.items()
                for part in ("weight", "bias")
            }
        )
        return Trainee(net, saved["mean"], saved["scale"])

    def normed(self, features: Tensor) -> Tensor:
        return (features - self._mean) * self._scale

    @torch.no_grad()
    def odds(self, x: Tensor) -> Tensor:
        """Log odds [N,P] for inputs that are normed."""
        self.net.eval()
        found: Tensor = self.net(x)
        return found

    def export(self, rounds: Rounds, output: Path) -> None:
        state = self.net.state_dict()
        layers = {
            f"{name}.{part}": state[f"{place}.{part}"]
            for name, place in _LAYERS.items()
            for part in ("weight", "bias")
        }
        tensors = {"mean": self._mean, "scale": self._scale, **layers}
        write_tensors(output / "model.safetensors", tensors)
        write_json(
            output / CONFIG,
            {"architectures": ["WhiFlashRouter"], "hidden_size": len(self._mean) - STRUCTURE,
             "structure": STRUCTURE, "positions": _positions(rounds)},
        )  # fmt: skip


def startable(folder: Path, hidden_size: int) -> RouterNet:
    """A router that training can go on from. CheckpointError if it is none."""
    found = load_router(folder, hidden_size)
    if not isinstance(found, RouterNet):
        raise CheckpointError(
            folder, "is a published router of one output; training goes on from `train router`'s"
        )
    return found


def _layers(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(approximate="tanh"), nn.Dropout(dropout),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


def _positions(rounds: Rounds) -> dict[str, int]:
    return {arm: n for arm, n in zip(ARMS, rounds.positions, strict=True) if n}
