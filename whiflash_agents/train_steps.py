"""What the steps of `whiflash-agents train` do once their options are parsed.

Imports stand inside: `--help` should not wait for torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from whiflash_engine.training.drafter_run import DrafterOptions

_Options = TypeVar("_Options", bound="DrafterOptions")
Line = Mapping[str, float | str]


def adapter(args: argparse.Namespace) -> int:
    from whiflash_engine.checkpoints.shipped import SMOLLM2_TOOLS
    from whiflash_engine.training.adapter import AdapterOptions, train_adapter
    from whiflash_engine.training.lora import LoraConfig
    from whiflash_engine.training.mixes import MIXES

    model = _prepare(args)
    options = AdapterOptions(
        model=model, data=args.data, run=args.run_dir, output=args.output,
        template=SMOLLM2_TOOLS.template, lora=LoraConfig(rank=args.rank, alpha=2.0 * args.rank),
        batch=args.batch, epochs=args.epochs, minutes=args.minutes, seed=args.seed,
        mix=MIXES[args.mix], start=args.start, learning_rate=args.learning_rate,
        opening=args.opening,
    )  # fmt: skip
    with _device(args):
        train_adapter(options, _show())
    return 0


def average(args: argparse.Namespace) -> int:
    from whiflash_engine.training.lora import average_adapters

    average_adapters(args.adapter, args.output)
    return 0


def merge(args: argparse.Namespace) -> int:
    from whiflash_engine.checkpoints.shipped import SMOLLM2_TOOLS
    from whiflash_engine.training.adapter import merge_adapter

    merge_adapter(_prepare(args), args.adapter, SMOLLM2_TOOLS.template, args.output)
    return 0


def everything(args: argparse.Namespace) -> int:
    from whiflash_engine.checkpoints.shipped import SMOLLM2_TOOLS
    from whiflash_engine.training.miniature import MiniatureOptions, train_miniature

    options = MiniatureOptions(
        model=_prepare(args), data=args.data, output=args.output,
        template=SMOLLM2_TOOLS.template, minutes=args.minutes, rows=args.rows, seed=args.seed,
    )  # fmt: skip
    train_miniature(options, _show(), _tool_grammar)
    return 0


def corpus(args: argparse.Namespace) -> int:
    from whiflash_engine.training.corpus_options import CorpusOptions
    from whiflash_engine.training.corpus_writer import write_corpus
    from whiflash_engine.training.rows import KINDS

    model = _prepare(args)
    options = CorpusOptions(
        model=model, data=args.data, output=args.output, mix=args.mix, rows=args.rows,
        dev_rows=args.dev_rows, max_new=args.max_new, slots=args.slots, seed=args.seed,
        taps=args.taps, composed_tools=args.composed, max_prompt=args.max_prompt, part=args.part,
        replies=args.replies, shares=dict(zip(KINDS, args.shares, strict=True)),
        features=args.features, chunk=args.chunk,
    )  # fmt: skip
    with _device(args):
        write_corpus(options, _show(), _tool_grammar)
    return 0


def eagle3(args: argparse.Namespace) -> int:
    from whiflash_engine.training.eagle3 import Eagle3Options, train_eagle3

    with _device(args):
        train_eagle3(_drafter_options(Eagle3Options, args), _show())
    return 0


def dflash(args: argparse.Namespace) -> int:
    from whiflash_engine.training.dflash import DFlashOptions, train_dflash

    with _device(args):
        train_dflash(_drafter_options(DFlashOptions, args), _show())
    return 0


def router(args: argparse.Namespace) -> int:
    from whiflash_agents.router_training import RouterRun, train_router

    run = RouterRun(
        model=args.model, ar_drafter=args.ar_drafter, diffusion_drafter=args.diffusion_drafter,
        data=args.data, ids=args.ids, without=args.without, run=args.run_dir, output=args.output,
        per_kind=args.per_kind, tokens=args.tokens, max_prompt=args.max_prompt,
        epochs=args.epochs, seed=args.seed, learning_rate=args.learning_rate, start=args.start,
        earlier=args.earlier,
    )  # fmt: skip
    _set_threads(args.threads)
    train_router(run, _show())
    return 0


def _drafter_options(kind: type[_Options], args: argparse.Namespace) -> _Options:
    """Every field that an option of its name fills; the others keep their defaults."""
    given = {**vars(args), "model": _prepare(args), "run": args.run_dir}
    return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})


def _prepare(args: argparse.Namespace) -> Path:
    """Set the threads and find the model's folder."""
    from whiflash_engine.checkpoints.resolve import resolve_model

    _set_threads(args.threads)
    return resolve_model(args.model, report=print).path


def _device(args: argparse.Namespace) -> AbstractContextManager[object]:
    """Where the training's tensors are made; the CPU unless another is asked for."""
    from whiflash_engine.devices import choose_device

    return choose_device(args.device)


def _set_threads(threads: int | None) -> None:
    """None leaves it to torch. ConfigError for fewer than one."""
    import torch

    from whiflash_engine.config import require

    if threads is not None:
        require(threads >= 1, "threads", threads, "must be at least 1")
        torch.set_num_threads(threads)


def _show() -> Callable[[Line], None]:
    """Prints one report a line; rich colours the numbers."""
    from rich.console import Console

    console = Console()

    def show(values: Line) -> None:
        console.print("  ".join(f"{name} {value}" for name, value in values.items()))

    return show


def _tool_grammar(tools: Sequence[Mapping[str, object]]) -> str:
    """Of replies that may call these tools, as the default model writes calls."""
    from whiflash_adapters.formats.base import Ask
    from whiflash_adapters.formats.hermes import HERMES

    return HERMES.grammar(Ask(tools))
