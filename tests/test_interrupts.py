"""Whatever happens within a step, a run that is continued ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from whiflash_engine.training.interrupts import held_back
from whiflash_engine.training.loop import LoopOptions, train
from whiflash_engine.training.optim import Muon

STEPS = 6


class Toy:
    """One layer, its matrix and its vector trained by an optimiser each."""

    settings: Mapping[str, object] = {}

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        matrix, vector = self.layer.parameters()
        self.muon = Muon([matrix], lr=0.01)
        self.adamw = torch.optim.AdamW([vector], lr=0.01)

    def trained(self) -> Mapping[str, nn.Parameter]:
        return dict(self.layer.named_parameters())

    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"muon": self.muon, "adamw": self.adamw}

    def loss(self, step: int) -> tuple[Tensor, int]:
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        return ((self.layer(x) - x) ** 2).mean(), 3

    def evaluate(self) -> Mapping[str, float]:
        return {}

    def export(self) -> None:
        pass


def run(toy: Toy, folder: Path, steps: int = STEPS) -> None:
    train(toy, LoopOptions(steps=steps), folder, lambda _: None)


def interrupted(toy: Toy, at: int, how: Callable[[], None]) -> None:
    """Between its two optimisers in step `at`, counted from one."""
    made, real = 0, toy.adamw.step

    def step() -> None:
        nonlocal made
        made += 1
        if made == at:
            how()
        real()

    toy.adamw.step = step  # type: ignore[method-assign, assignment]


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def broken() -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Also where the tests run in the background, which shells make deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("how", "saved"), [(ctrl_c, 4), (broken, None)])
def test_no_checkpoint_holds_half_a_step(
    how: Callable[[], None], saved: int | None, tmp_path: Path
) -> None:
    whole, stopped, resumed = Toy(), Toy(), Toy()
    run(whole, tmp_path / "whole")
    interrupted(stopped, 4, how)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path / "parts")
    checkpoint = tmp_path / "parts" / "checkpoint.json"
    assert (json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else None) == saved
    run(resumed, tmp_path / "parts")
    for name, value in whole.trained().items():
        assert torch.equal(value, resumed.trained()[name]), name


def test_an_interrupt_is_heard_when_the_block_is_through() -> None:
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), held_back():
        ctrl_c()
        done.append(1)
    assert done and signal.getsignal(signal.SIGINT) is before


def test_another_thread_has_no_interrupts_to_hold_back() -> None:
    done: list[int] = []

    def work() -> None:
        with held_back():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
