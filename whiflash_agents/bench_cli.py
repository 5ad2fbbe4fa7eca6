"""`whiflash-agents bench` and `whiflash-agents lossless`: the last line of stdout is JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from whiflash_engine.config import require

if TYPE_CHECKING:
    from whiflash_agents.measure.prompts import Prompt


def add_bench_parsers(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Add the two subcommands."""
    bench = subparsers.add_parser("bench", help="measure speed against transformers' generate")
    _shared(bench, per_kind=4, tokens=64)
    bench.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: what is fast")
    bench.add_argument(
        "--compare", choices=("routers", "ablation", "dial"), default="routers",
        help="arms and routers, what each part of the router buys, or its balance dial",
    )  # fmt: skip
    bench.add_argument(
        "--gguf", type=Path, help="the same model for llama.cpp, if llama-cpp-python is installed"
    )
    bench.add_argument("--plots", type=Path, help="folder to draw the result in, as SVG and PNG")
    bench.set_defaults(run=_bench)
    lossless = subparsers.add_parser(
        "lossless", help="compare every arm with plain decoding, token for token, in float32"
    )
    _shared(lossless, per_kind=25, tokens=64)
    lossless.set_defaults(run=_lossless)


def _shared(parser: argparse.ArgumentParser, per_kind: int, tokens: int) -> None:
    parser.add_argument("--model", help="folder, GGUF file or hub id; default: the embedded model")
    parser.add_argument("--data", type=Path, help="folder of prompts; default: the package's own")
    parser.add_argument("--ids", type=Path, help="file of prompt ids: take only these, in order")
    parser.add_argument("--per-kind", type=int, default=per_kind, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=tokens, help="new tokens a prompt")
    parser.add_argument("--ar-drafter", help="folder of an EAGLE-3 checkpoint")
    parser.add_argument("--diffusion-drafter", help="folder of a DFlash checkpoint")


def _rows(args: argparse.Namespace) -> list[Prompt]:
    """All that may be measured with; what is wrong is told before a model is loaded."""
    from whiflash_agents.measure.prompts import balanced, from_folder, named, shipped

    require(args.tokens > 0, "tokens", args.tokens, "must be at least 1")
    rows = shipped() if args.data is None else list(from_folder(args.data))
    if args.ids is not None:
        rows = named(rows, args.ids)
    balanced(rows, args.per_kind)
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _bench(args: argparse.Namespace) -> int:
    rows = _rows(args)
    from whiflash_agents.measure.plots import draw, draw_dial, require_plots

    if args.plots is not None:
        require_plots(args.plots)
    # torch stands behind these: whoever mistyped an option should not wait for it
    from rich.console import Console

    from whiflash_agents.measure.methods import COMPARISONS
    from whiflash_agents.measure.prompts import balanced
    from whiflash_agents.measure.speed import measure
    from whiflash_agents.measure.table import table
    from whiflash_engine.checkpoints.resolve import resolve_model
    from whiflash_engine.engine import Engine

    engine = Engine.load(
        args.model, ar_drafter=args.ar_drafter, diffusion_drafter=args.diffusion_drafter,
        dtype=args.dtype, report=_say,
    )  # fmt: skip
    folder = resolve_model(args.model, report=_say).path
    ways = COMPARISONS[args.compare]
    prompts, oracle = balanced(rows, args.per_kind), args.compare == "routers"
    speed = measure(engine, folder, prompts, args.tokens, ways, _say, gguf=args.gguf, oracle=oracle)
    Console(stderr=True).print(table(speed))
    if args.plots is not None:
        dial = args.compare == "dial"
        drawn = draw_dial(speed, args.plots) if dial else draw(speed, args.plots, args.compare)
        _say(f"drawn: {', '.join(map(str, drawn))}")
    print(json.dumps(speed))
    return 0


def _lossless(args: argparse.Namespace) -> int:
    rows = _rows(args)
    from whiflash_agents.measure.lossless import prove, with_grammar
    from whiflash_engine.engine import Engine

    engine = Engine.load(
        args.model, ar_drafter=args.ar_drafter, diffusion_drafter=args.diffusion_drafter,
        dtype="float32", report=_say,
    )  # fmt: skip
    prompts, refused = with_grammar(engine, rows, args.per_kind, _say)
    result = prove(engine, prompts, args.tokens, _say) | {"schemas_refused": refused}
    print(json.dumps(result))
    return 0 if result["differences"] == 0 else 1
