"""`whiflash-agents bench|replay|lossless`: the last line of stdout is JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from whiflash_agents.model_options import load_engine, say
from whiflash_agents.prompt_options import add_prompt_options, chosen_rows
from whiflash_engine.config import require


def add_bench_parsers(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Add the subcommands."""
    bench = subparsers.add_parser("bench", help="measure speed against transformers' generate")
    add_prompt_options(bench, per_kind=4, tokens=64)
    bench.add_argument(
        "--compare", choices=("routers", "ablation", "dial"), default="routers",
        help="arms and routers, what each part of the router buys, or its balance dial",
    )  # fmt: skip
    bench.add_argument(
        "--gguf", type=Path, help="the same model for llama.cpp, if llama-cpp-python is installed"
    )
    bench.add_argument("--plots", type=Path, help="folder to draw the result in, as SVG and PNG")
    bench.set_defaults(run=_bench)
    replay = subparsers.add_parser(
        "replay",
        help="what routers make of recorded texts, in seconds that are the same for all of them",
    )
    add_prompt_options(replay, per_kind=12, tokens=96)
    replay.add_argument(
        "--compare", choices=("routers", "ablation", "dial"), default="routers",
        help="as of bench, but for what no router decides",
    )  # fmt: skip
    replay.add_argument("--repeats", type=int, default=4, help="with other noise in the seconds")
    replay.set_defaults(run=_replay)
    lossless = subparsers.add_parser(
        "lossless",
        help="compare every arm with plain decoding, token for token; --dtype: float32 unless told",
    )
    add_prompt_options(lossless, per_kind=25, tokens=64)
    lossless.set_defaults(run=_lossless)


def _bench(args: argparse.Namespace) -> int:
    rows = chosen_rows(args)
    from whiflash_agents.measure.peers import require_llama
    from whiflash_agents.measure.plots import draw, draw_dial, require_plots

    if args.gguf is not None:
        require_llama(args.gguf)
    if args.plots is not None:
        require_plots(args.plots)
    from rich.console import Console

    from whiflash_agents.measure.methods import COMPARISONS
    from whiflash_agents.measure.prompts import balanced
    from whiflash_agents.measure.speed import measure
    from whiflash_agents.measure.table import against_table, table
    from whiflash_engine.checkpoints.resolve import resolve_model

    engine = load_engine(args)
    folder = resolve_model(args.model, report=say).path
    ways = COMPARISONS[args.compare]
    prompts, oracle = balanced(rows, args.per_kind), args.compare == "routers"
    speed = measure(engine, folder, prompts, args.tokens, ways, say, gguf=args.gguf, oracle=oracle)
    console = Console(stderr=True)
    console.print(table(speed))
    if "auto_to" in speed:
        console.print(against_table(speed["auto_to"]))
    print(json.dumps(speed), flush=True)  # before the drawing, which could fail
    if args.plots is not None:
        dial = args.compare == "dial"
        drawn = draw_dial(speed, args.plots) if dial else draw(speed, args.plots, args.compare)
        say(f"drawn: {', '.join(map(str, drawn))}")
    return 0


def _replay(args: argparse.Namespace) -> int:
    require(args.repeats > 0, "repeats", args.repeats, "must be at least 1")
    rows = chosen_rows(args)
    from rich.console import Console

    from whiflash_agents.measure.methods import COMPARISONS
    from whiflash_agents.measure.prompts import balanced
    from whiflash_agents.measure.replayed import measure_replay, replayable
    from whiflash_agents.measure.table import replay_table
    from whiflash_engine.devices import device_name

    engine, ways = load_engine(args), replayable(COMPARISONS[args.compare])
    prompts = balanced(rows, args.per_kind)
    found = measure_replay(engine, prompts, args.tokens, ways, args.repeats, say)
    title = (
        f"{len(prompts)} prompts, up to {args.tokens} tokens each, {args.repeats} times, replayed"
    )
    Console(stderr=True).print(replay_table(found, title))
    about = {
        "dtype": engine.target.precision, "device": device_name(engine.target.device),
        "prompts": len(prompts), "tokens": args.tokens, "repeats": args.repeats,
    }  # fmt: skip
    print(json.dumps(about | {"methods": found}))
    return 0


def _lossless(args: argparse.Namespace) -> int:
    rows = chosen_rows(args)
    from whiflash_agents.measure.lossless import prove, with_grammar

    engine = load_engine(args, dtype="float32")
    prompts, refused = with_grammar(engine, rows, args.per_kind, say)
    result = prove(engine, prompts, args.tokens, say) | {"schemas_refused": refused}
    print(json.dumps(result))
    return 0 if result["differences"] == 0 else 1
