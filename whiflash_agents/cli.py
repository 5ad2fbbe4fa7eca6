"""The command line: `whiflash-agents demo|trace|bench|replay|lossless|evaluate|train|--version`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from langchain_core.exceptions import ContextOverflowError

from whiflash_agents.bench_cli import add_bench_parsers
from whiflash_agents.demo import add_demo_parser
from whiflash_agents.evaluate_cli import add_evaluate_parser
from whiflash_agents.trace_cli import add_trace_parser
from whiflash_agents.train_cli import add_train_parser
from whiflash_engine.errors import WhiFlashError


class _Version(argparse.Action):
    """Looked up when it is asked for: a checkout that is not installed has none."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        print(parser.prog, version("whiflash-agents"))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="whiflash-agents", description="A local engine for LLM agents."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_demo_parser(commands)
    add_trace_parser(commands)
    add_bench_parsers(commands)
    add_evaluate_parser(commands)
    add_train_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command. What we raise on purpose is one line, not a traceback."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (WhiFlashError, ContextOverflowError) as error:
        print(f"whiflash-agents: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
