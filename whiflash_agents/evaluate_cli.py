"""`whiflash-agents evaluate calls|drafters|agents|grammar`: figures for cards and doubters."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whiflash_agents.model_options import add_device_options, load_engine, say
from whiflash_agents.prompt_options import add_prompt_options, chosen_rows
from whiflash_engine.config import require

if TYPE_CHECKING:
    from whiflash_agents.measure.prompts import Prompt


def add_evaluate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = subparsers.add_parser("evaluate", help="how good a model and its drafters are")
    what = evaluate.add_subparsers(required=True, metavar="WHAT")
    calls = what.add_parser("calls", help="tool calls, refusals and word problems, greedy")
    calls.add_argument(
        "--model", action="append", help="may be repeated; default: smollm2-135m and default"
    )
    add_device_options(calls)
    calls.add_argument("--data", type=Path, required=True, help="folder with dev/ and dev_refs/")
    calls.add_argument("--per-group", type=int, default=100, help="rows a group at most")
    calls.add_argument("--tokens", type=int, default=128, help="new tokens a row")
    calls.add_argument("--max-prompt", type=int, default=1500, help="longest prompt in tokens")
    calls.set_defaults(run=_calls)
    drafters = what.add_parser("drafters", help="acceptance length, who wins where, fill-in")
    add_prompt_options(drafters, per_kind=10, tokens=128)
    drafters.set_defaults(run=_drafters)
    agents = what.add_parser("agents", help="what kept turns and forced tokens save")
    add_prompt_options(agents, per_kind=10, tokens=128)
    agents.add_argument("--repeats", type=int, default=3, help="of the conversation")
    agents.set_defaults(run=_agents)
    grammar = what.add_parser("grammar", help="schemas with valid and invalid instances")
    grammar.add_argument("--model", help="whose tokenizer; default: the embedded model")
    grammar.add_argument("--data", type=Path, required=True, help="folder of *.jsonl.gz")
    grammar.set_defaults(run=_grammar)


def _calls(args: argparse.Namespace) -> int:
    for name in ("per_group", "tokens", "max_prompt"):
        require(getattr(args, name) > 0, name, getattr(args, name), "must be at least 1")
    require(
        (args.data / "dev_refs").is_dir(), "data", str(args.data), "should hold dev/ and dev_refs/"
    )
    from rich.console import Console

    from whiflash_agents.measure.calls import measure_calls
    from whiflash_agents.measure.table import scores_table
    from whiflash_engine.checkpoints.resolve import resolve_model
    from whiflash_engine.checkpoints.shipped import SMOLLM2_TOOLS
    from whiflash_engine.engine import Engine
    from whiflash_engine.loading import TargetFiles

    template = SMOLLM2_TOOLS.template.read_text(encoding="utf-8")
    scores: dict[str, Mapping[str, Mapping[str, int]]] = {}
    names = args.model or ["smollm2-135m", "default"]
    for name in names:  # one that is not there should not cost the figures of those before it
        TargetFiles.read(resolve_model(name, report=say).path).check(args.dtype)
    for name in names:
        engine = Engine.load(name, device=args.device, dtype=args.dtype, report=say)
        scores[name] = measure_calls(
            engine, args.data, per_group=args.per_group, tokens=args.tokens,
            max_prompt=args.max_prompt, template=template, report=say,
        )  # fmt: skip
    Console(stderr=True).print(scores_table(scores))
    print(json.dumps(scores))
    return 0


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    from whiflash_agents.measure.prompts import balanced

    return balanced(chosen_rows(args), args.per_kind)


def _agents(args: argparse.Namespace) -> int:
    require(args.repeats > 0, "repeats", args.repeats, "must be at least 1")
    prompts = _prompts(args)
    from whiflash_agents.measure.agents import measure_forced, measure_turns

    engine = load_engine(args)
    turns = measure_turns(engine, args.repeats, say)
    print(json.dumps({"turns": turns, "forced": measure_forced(engine, prompts, args.tokens, say)}))
    return 0


def _drafters(args: argparse.Namespace) -> int:
    prompts = _prompts(args)
    from whiflash_agents.measure.drafting import measure_drafting

    engine = load_engine(args)
    print(json.dumps(measure_drafting(engine, prompts, args.tokens, say)))
    return 0


def _grammar(args: argparse.Namespace) -> int:
    require(args.data.is_dir(), "data", str(args.data), "no such folder")
    from whiflash_agents.measure.grammars import judge_folder
    from whiflash_engine.checkpoints.resolve import resolve_model
    from whiflash_engine.checkpoints.weights import load_config
    from whiflash_engine.constraint import GrammarFactory
    from whiflash_engine.grammar_tokenizer import native_tokenizer
    from whiflash_engine.text import load_tokenizer, stop_token_ids

    folder = resolve_model(args.model, report=say).path
    tokenizer = load_tokenizer(folder)
    stops = stop_token_ids(folder, tokenizer)
    size = load_config(folder).vocab_size
    factory = GrammarFactory(native_tokenizer(tokenizer), size, stops)
    print(json.dumps(judge_folder(args.data, factory, tokenizer)))
    return 0
