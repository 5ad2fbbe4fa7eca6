"""`whiflash-agents train adapter|merge|corpus|eagle3|dflash|router|all`: parse options, run, show.

Every command can be stopped and started again; it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Line = Mapping[str, float | str]


def add_train_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` with its steps, in the order in which they are run."""
    train = subparsers.add_parser("train", help="train the tool adapter or a drafter")
    steps = train.add_subparsers(required=True, metavar="STEP")
    _adapter_parser(steps)
    _merge_parser(steps)
    _corpus_parser(steps)
    for name, what, run in (
        ("eagle3", "train the EAGLE-3 drafter on a corpus", _eagle3),
        ("dflash", "train the DFlash drafter on a corpus", _dflash),
    ):
        _drafter_parser(steps, name, what, run)
    _router_parser(steps)
    _all_parser(steps)


def _adapter_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("adapter", help="a LoRA adapter that teaches tool calls")
    _common(parser, model="smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="folder of prompt rows")
    parser.add_argument("--run-dir", type=Path, required=True, help="checkpoints, learning curve")
    parser.add_argument("--minutes", type=float, help="wall-clock budget")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="conversations a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--mix",
        choices=("broad", "loops", "full", "decide", "again", "miniature"),
        default="broad",
        help="which conversations to teach",
    )
    parser.add_argument("--start", type=Path, help="folder of an adapter to go on from")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument(
        "--opening", type=float, default=1.0, help="weight of the first two tokens of a reply"
    )
    parser.set_defaults(run=_adapter)


def _merge_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("merge", help="a model folder with an adapter folded in")
    parser.add_argument("--model", default="smollm2-135m", help="the untouched model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of `train adapter`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the result")
    parser.set_defaults(run=_merge, threads=None)


def _all_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("all", help="every step after the other, in miniature")
    _common(parser, model="smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="folder of prompt rows")
    parser.add_argument("--minutes", type=float, default=7.0, help="of training, in all")
    parser.add_argument("--rows", type=int, default=120, help="prompts of the corpus")
    parser.set_defaults(run=_all)


def _corpus_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("corpus", help="the target's own responses and its features")
    _common(parser, model="default")
    parser.add_argument("--data", type=Path, required=True, help="folder of prompt rows")
    parser.add_argument("--mix", default="train_8k", help="id list under mixes/ to take rows from")
    parser.add_argument("--rows", type=int, default=1600, help="training prompts")
    parser.add_argument("--dev-rows", type=int, default=80, help="held-out prompts")
    parser.add_argument("--max-new", type=int, default=144, help="new tokens a response")
    parser.add_argument(
        "--composed", type=float, default=0.15, help="share of tool prompts made from templates"
    )
    parser.add_argument("--max-prompt", type=int, default=400, help="longest prompt in tokens")
    parser.add_argument("--taps", type=_integers, help="feature boundaries, such as 2,9,15,21,27")
    parser.add_argument(
        "--part", type=_integers, default=(0, 1), metavar="I,N",
        help="write every N-th chunk from the I-th on; run N single-threaded processes",
    )  # fmt: skip
    parser.add_argument("--slots", type=int, default=48, help="responses generated at once")
    parser.set_defaults(run=_corpus)


def _drafter_parser(
    steps: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    what: str,
    run: Callable[[argparse.Namespace], int],
) -> None:
    parser = steps.add_parser(name, help=what)
    _common(parser, model="default")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of `train corpus`")
    parser.add_argument("--run-dir", type=Path, required=True, help="checkpoints, learning curve")
    parser.add_argument("--minutes", type=float, help="wall-clock budget")
    parser.add_argument("--start", type=Path, help="folder of a drafter to go on from")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8, help="responses a step")
    parser.add_argument("--draft-vocab", type=int, default=8192)
    parser.add_argument(
        "--muon-rate", type=float, default=5e-3, help="learning rate of the matrices"
    )
    parser.add_argument(
        "--adam-rate", type=float, default=1e-3, help="learning rate of the vectors"
    )
    parser.add_argument(
        "--optimiser", choices=("muon", "adamw"), default="muon", help="of the matrices"
    )
    parser.add_argument(
        "--targets", choices=("soft", "hard"), default="soft",
        help="learn the target's distribution, or the token that followed",
    )  # fmt: skip
    parser.add_argument("--float32", action="store_true", help="compute in float32")
    if name == "dflash":
        parser.add_argument("--layers", type=int, default=3)
    parser.set_defaults(run=run)


def _router_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("router", help="the router, on rounds that both drafters began")
    _common(parser, model="default")
    parser.add_argument("--ar-drafter", help="folder of an EAGLE-3 checkpoint")
    parser.add_argument("--diffusion-drafter", help="folder of a DFlash checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder of prompts")
    parser.add_argument("--ids", type=Path, help="file of prompt ids: take only these, in order")
    parser.add_argument(
        "--without", type=Path, help="file of prompt ids to leave out: the drafters' own"
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="the rounds, to go on from")
    parser.add_argument("--per-kind", type=int, default=100, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens a prompt")
    parser.add_argument("--max-prompt", type=int, default=512, help="longest prompt in tokens")
    parser.add_argument("--epochs", type=int, default=30)
    parser.set_defaults(run=_router)


def _common(parser: argparse.ArgumentParser, model: str) -> None:
    parser.add_argument(
        "--model", default=model, help=f"name, folder, GGUF file or hub id; default: {model}"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; default: what torch picks")


def _adapter(args: argparse.Namespace) -> int:
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
    train_adapter(options, _show())
    return 0


def _merge(args: argparse.Namespace) -> int:
    from whiflash_engine.checkpoints.shipped import SMOLLM2_TOOLS
    from whiflash_engine.training.adapter import merge_adapter

    merge_adapter(_prepare(args), args.adapter, SMOLLM2_TOOLS.template, args.output)
    return 0


def _all(args: argparse.Namespace) -> int:
    from whiflash_engine.checkpoints.shipped import SMOLLM2_TOOLS
    from whiflash_engine.training.miniature import MiniatureOptions, train_miniature

    options = MiniatureOptions(
        model=_prepare(args), data=args.data, output=args.output,
        template=SMOLLM2_TOOLS.template, minutes=args.minutes, rows=args.rows, seed=args.seed,
    )  # fmt: skip
    train_miniature(options, _show(), _tool_grammar)
    return 0


def _corpus(args: argparse.Namespace) -> int:
    from whiflash_engine.training.corpus_options import CorpusOptions
    from whiflash_engine.training.corpus_writer import write_corpus

    model = _prepare(args)
    options = CorpusOptions(
        model=model, data=args.data, output=args.output, mix=args.mix, rows=args.rows,
        dev_rows=args.dev_rows, max_new=args.max_new, slots=args.slots, seed=args.seed,
        taps=args.taps, composed_tools=args.composed, max_prompt=args.max_prompt, part=args.part,
    )  # fmt: skip
    write_corpus(options, _show(), _tool_grammar)
    return 0


def _eagle3(args: argparse.Namespace) -> int:
    from whiflash_engine.training.eagle3 import Eagle3Options, train_eagle3

    options = Eagle3Options(
        model=_prepare(args), corpus=args.corpus, run=args.run_dir, output=args.output,
        draft_vocab=args.draft_vocab, epochs=args.epochs, minutes=args.minutes,
        batch=args.batch, seed=args.seed, float32=args.float32, start=args.start,
        muon_rate=args.muon_rate, adam_rate=args.adam_rate, optimiser=args.optimiser,
        targets=args.targets,
    )  # fmt: skip
    train_eagle3(options, _show())
    return 0


def _dflash(args: argparse.Namespace) -> int:
    from whiflash_engine.training.dflash import DFlashOptions, train_dflash

    options = DFlashOptions(
        model=_prepare(args), corpus=args.corpus, run=args.run_dir, output=args.output,
        draft_vocab=args.draft_vocab, epochs=args.epochs, minutes=args.minutes,
        batch=args.batch, seed=args.seed, float32=args.float32, start=args.start,
        muon_rate=args.muon_rate, adam_rate=args.adam_rate, optimiser=args.optimiser,
        targets=args.targets, layers=args.layers,
    )  # fmt: skip
    train_dflash(options, _show())
    return 0


def _router(args: argparse.Namespace) -> int:
    from whiflash_agents.router_training import RouterRun, train_router

    run = RouterRun(
        model=args.model, ar_drafter=args.ar_drafter, diffusion_drafter=args.diffusion_drafter,
        data=args.data, ids=args.ids, without=args.without, run=args.run_dir, output=args.output,
        per_kind=args.per_kind, tokens=args.tokens, max_prompt=args.max_prompt,
        epochs=args.epochs, seed=args.seed, threads=args.threads,
    )  # fmt: skip
    train_router(run, _show())
    return 0


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _prepare(args: argparse.Namespace) -> Path:
    """Set the threads and find the model's folder."""
    import torch  # here, not above: `--help` should not wait for it

    from whiflash_engine.checkpoints.resolve import resolve_model

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return resolve_model(args.model, report=print).path


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
