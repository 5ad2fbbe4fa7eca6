"""The loop that all trainers share: schedule, budget, checkpoints, learning curve.

Nothing computed is lost: a checkpoint (weights, optimiser state, position in the data) is
written every few minutes and when the loop ends for whatever reason, Ctrl-C included. A run
that is started again in the same folder goes on where it stopped. Batches depend on the step
number alone, so an interrupted run ends with the weights of an uninterrupted one; under a time
budget nearly so, because the learning rate then follows the clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.tensors import read_file
from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.training.interrupts import held_back
from whiflash_engine.training.model_files import write_json, write_tensors
from whiflash_engine.training.optim import load_optimiser_tensors, optimiser_tensors, rate

Report = Callable[[Mapping[str, float | str]], None]
"""Called with one line of the learning curve."""


@dataclass(frozen=True)
class LoopOptions:
    steps: int
    """Length of the learning-rate schedule, and the most steps made."""
    minutes: float | None = None
    """Wall-clock budget; the schedule then ends with the budget if that comes first."""
    clip: float = 1.0
    report_every: int = 10
    checkpoint_seconds: float = 180.0
    evaluate_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError("steps", self.steps, "at least one step is needed")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError("minutes", self.minutes, "should be above zero")


class Trainee(Protocol):
    """What a trainer brings along."""

    settings: Mapping[str, object]
    """What a checkpoint must agree with before it is continued."""

    def trained(self) -> Mapping[str, nn.Parameter]: ...

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]: ...

    def loss(self, step: int) -> tuple[Tensor, int]:
        """The loss of batch `step` and how many tokens it was taken over."""

    def evaluate(self) -> Mapping[str, float]: ...

    def export(self) -> None:
        """Write the weights in their published form."""


class Checkpoint:
    """Two files: tensors, and a JSON that is written last and so vouches for them."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))

    def save(self, trainee: Trainee, step: int, tokens: int, seconds: float) -> None:
        tensors = {f"weight/{name}": value for name, value in trainee.trained().items()}
        state = optimiser_tensors(trainee.optimisers())
        name = f"checkpoint-{step}.safetensors"
        write_tensors(
            self.folder / name, {**tensors, **{f"state/{k}": v for k, v in state.items()}}
        )
        values = {"step": step, "tokens": tokens, "seconds": round(seconds, 3), "file": name}
        write_json(self.folder / "checkpoint.json", {**values, "settings": self.settings})
        for old in self.folder.glob("checkpoint-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self, trainee: Trainee) -> tuple[int, int, float]:
        """(step, tokens, seconds) of the saved run; (0, 0, 0) where there is none."""
        path = self.folder / "checkpoint.json"
        if not path.exists():
            return 0, 0, 0.0
        saved = Fields.read(path)
        mine, theirs = self.settings, saved.sub("settings").values
        if theirs != mine:
            different = sorted(k for k in mine.keys() | theirs if mine.get(k) != theirs.get(k))
            raise CheckpointError(
                path, f"belongs to a run with other settings ({', '.join(different)}); "
                "choose another folder or remove this one"
            )  # fmt: skip
        tensors = read_file(self.folder / saved.text("file"))
        trained = trainee.trained()
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(tensors[f"weight/{name}"])
        state = {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}
        load_optimiser_tensors(trainee.optimisers(), state)
        return saved.integer("step"), saved.integer("tokens"), saved.number("seconds")


def train(trainee: Trainee, options: LoopOptions, folder: Path, report: Report) -> None:
    """Run (or continue) to the end of the schedule or of the budget."""
    checkpoint = Checkpoint(folder, trainee.settings)
    step, tokens, before = checkpoint.load(trainee)
    untrained = dict(trainee.evaluate()) if step == 0 else None  # not part of the budget
    first_step, began = step, time.monotonic()
    saved = evaluated = began
    budget = options.minutes * 60 if options.minutes is not None else None
    optimisers = trainee.optimisers()
    base_rates = {name: [g["lr"] for g in o.param_groups] for name, o in optimisers.items()}
    losses: list[float] = []
    whole = True  # weights, optimisers and step number are of one moment

    def spent() -> float:
        return before + time.monotonic() - began

    def curve(values: Mapping[str, float | str]) -> None:
        line = {"step": step, "tokens": tokens, "seconds": round(spent(), 1), **values}
        try:
            with (folder / "curve.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise CheckpointError(
                folder / "curve.jsonl", f"cannot be written ({error.strerror})"
            ) from error
        report(line)

    folder.mkdir(parents=True, exist_ok=True)
    if untrained:
        curve(untrained)
    try:
        while step < options.steps and (budget is None or spent() < budget):
            done = max(step / options.steps, spent() / budget if budget else 0.0)
            for name, optimiser in optimisers.items():
                for group, base in zip(optimiser.param_groups, base_rates[name], strict=True):
                    group["lr"] = base * rate(done)
            loss, count = trainee.loss(step)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(_parameters(trainee), options.clip)
            with held_back():
                whole = False
                for optimiser in optimisers.values():
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
                step, tokens, whole = step + 1, tokens + count, True
            losses.append(float(loss.detach()))
            now = time.monotonic()
            if step % options.report_every == 0:
                curve({"loss": round(sum(losses) / len(losses), 4)})
                losses.clear()
            if now - saved > options.checkpoint_seconds:
                checkpoint.save(trainee, step, tokens, spent())
                trainee.export()
                saved = time.monotonic()
            if now - evaluated > options.evaluate_seconds:
                curve(dict(trainee.evaluate()))
                evaluated = time.monotonic()
    finally:
        if whole and step > first_step:
            checkpoint.save(trainee, step, tokens, spent())
    trainee.export()
    curve(dict(trainee.evaluate()))


def _parameters(trainee: Trainee) -> Iterable[nn.Parameter]:
    return trainee.trained().values()
