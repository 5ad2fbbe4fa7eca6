"""`whiflash-agents train STEP`: parse options, run, show.

Every command can be stopped and started again; it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from whiflash_agents import train_steps
from whiflash_agents.model_options import add_drafter_options
from whiflash_engine.training.mixes import MIXES


def add_train_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` with its steps, in the order in which they are run."""
    train = subparsers.add_parser("train", help="train the tool adapter or a drafter")
    steps = train.add_subparsers(required=True, metavar="STEP")
    _adapter_parser(steps)
    _average_parser(steps)
    _merge_parser(steps)
    _corpus_parser(steps)
    for name, what, run in (
        ("eagle3", "train the EAGLE-3 drafter on a corpus", train_steps.eagle3),
        ("dflash", "train the DFlash drafter on a corpus", train_steps.dflash),
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
    parser.add_argument(
        "--epochs", type=int, default=1, help="each draws its conversations anew; default: 1"
    )
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--mix",
        choices=tuple(MIXES),
        default="broad",
        help="which conversations to teach",
    )
    parser.add_argument("--start", type=Path, help="folder of an adapter to go on from")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument(
        "--opening", type=float, default=1.0, help="weight of the first two tokens of a reply"
    )
    _device_option(parser)
    parser.set_defaults(run=train_steps.adapter)


def _average_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("average", help="an adapter between adapters of one descent")
    parser.add_argument(
        "--adapter", type=Path, required=True, action="append", help="a folder; at least two"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the result")
    parser.set_defaults(run=train_steps.average)


def _merge_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("merge", help="a model folder with an adapter folded in")
    parser.add_argument("--model", default="smollm2-135m", help="the untouched model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of `train adapter`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the result")
    parser.set_defaults(run=train_steps.merge, threads=None)


def _all_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("all", help="every step after the other, in miniature")
    _common(parser, model="smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="folder of prompt rows")
    parser.add_argument("--minutes", type=float, default=7.0, help="of training, in all")
    parser.add_argument("--rows", type=int, default=120, help="prompts of the corpus")
    parser.set_defaults(run=train_steps.everything)


def _corpus_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("corpus", help="the target's own responses and its features")
    _common(parser, model="default")
    parser.add_argument("--data", type=Path, required=True, help="folder of prompt rows")
    parser.add_argument("--mix", default="train_8k", help="id list under mixes/ to take rows from")
    parser.add_argument("--rows", type=int, default=1600, help="training prompts")
    parser.add_argument(
        "--shares", type=_shares, default=(1.5, 1.1, 1.0, 1.0), metavar="T,J,R,C",
        help="of tool, json, reason and chat prompts",
    )  # fmt: skip
    parser.add_argument("--dev-rows", type=int, default=80, help="held-out prompts")
    parser.add_argument("--replies", type=int, default=1, help="responses to a training prompt")
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
    parser.add_argument("--chunk", type=int, default=384, help="responses written at once")
    parser.add_argument(
        "--no-features", dest="features", action="store_false",
        help="do not keep the target's features: whoever trains on it computes them again",
    )  # fmt: skip
    _device_option(parser)
    parser.set_defaults(run=train_steps.corpus)


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
    _device_option(parser)
    if name == "dflash":
        parser.add_argument("--layers", type=int, default=3)
        parser.add_argument("--anchors", type=int, default=64, help="blocks of a response")
    parser.set_defaults(run=run)


def _router_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("router", help="the router, on text that every arm has drafted")
    _common(parser, model="default")
    add_drafter_options(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of prompts")
    parser.add_argument("--ids", type=Path, help="file of prompt ids: take only these, in order")
    parser.add_argument(
        "--without", type=Path, help="file of prompt ids to leave out: the drafters' own"
    )
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="what was logged, to go on from"
    )
    parser.add_argument(
        "--earlier",
        type=Path,
        action="append",
        default=[],
        help="--run-dir of an earlier run, to learn from too; once for each",
    )
    parser.add_argument("--per-kind", type=int, default=100, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens a prompt")
    parser.add_argument("--max-prompt", type=int, default=512, help="longest prompt in tokens")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--start", type=Path, help="folder of a router to go on from")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.set_defaults(run=train_steps.router)


def _common(parser: argparse.ArgumentParser, model: str) -> None:
    parser.add_argument(
        "--model", default=model, help=f"name, folder, GGUF file or hub id; default: {model}"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; default: what torch picks")


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda" or "cuda:N"; default: cpu')


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in text.split(","))
    if len(shares) != 4:
        raise argparse.ArgumentTypeError("four numbers: of tool, json, reason and chat prompts")
    return shares


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
