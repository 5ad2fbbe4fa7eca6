"""Optimisers and the learning-rate schedule.

Muon (Jordan et al. 2024, github.com/KellerJordan/Muon): momentum whose update is replaced by
the nearest orthogonal matrix, found with a few Newton-Schulz steps. On the drafters it learned
several times faster per sequence than AdamW, which keeps the vectors (norms).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import overload

import torch
from torch import Tensor, nn

from whiflash_engine.devices import choose_dtype


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal factor of `matrix`, approximately (singular values land in 0.7..1.2)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.to(choose_dtype(None, matrix.device))
    wide = x.shape[0] > x.shape[1]
    x = x.T if wide else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    x = x.T if wide else x
    return x.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """For two-dimensional weights. The update's scale follows the matrix shape
    (0.2 * sqrt(max side)), so that AdamW-like learning rates fit (arXiv 2502.16982)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: object) -> float: ...
    @torch.no_grad()
    def step(self, closure: object = None) -> float | None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                buffer = state["momentum"]
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(buffer, group["momentum"]))
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))
        return None


def rate(done: float, warmup: float = 0.04, floor: float = 0.05) -> float:
    """Factor on the learning rate at `done` in [0,1]: linear warm-up, then cosine to `floor`."""
    if done < warmup:
        return max(done, warmup / 20) / warmup
    rest = min(1.0, (done - warmup) / (1 - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * rest))


def optimiser_tensors(optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The tensors inside the optimisers' states, by name, for a safetensors checkpoint."""
    return {
        f"{name}/{index}/{key}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for name, optimiser in optimisers.items()
        for index, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def load_optimiser_tensors(
    optimisers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimiser_tensors`; groups and learning rates stay as constructed."""
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            owner, index, key = path.split("/")
            if owner == name:
                state.setdefault(int(index), {})[key] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
