"""Do grammars let through what a schema forbids? Schemas with valid and invalid instances.

The rows are those of MaskBench and of the JSON-Schema-Test-Suite: `{"schema", "tests": [{"data",
"valid"}]}`. What must not happen is that an invalid document is accepted; a valid one may be
refused for its spelling or the order of its keys, which a generation never chooses otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.hermes import HERMES
from whiflash_adapters.refusals import reason
from whiflash_engine.config import require
from whiflash_engine.constraint import GrammarFactory
from whiflash_engine.errors import ConfigError, ConstraintError
from whiflash_engine.training.rows import Json, read_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPELLINGS = ((", ", ": "), (",", ":"))


@dataclass(slots=True)
class Verdicts:
    """Over all instances of the schemas that compile."""

    schemas: int = 0
    refused: int = 0
    invalid: int = 0
    valid: int = 0
    false_accepts: int = 0
    false_rejects: int = 0
    accepted_wrongly: list[str] = field(default_factory=list)
    why_refused: dict[str, int] = field(default_factory=dict)


def judge(
    rows: Iterable[Mapping[str, object]],
    factory: GrammarFactory,
    tokenizer: PreTrainedTokenizerBase,
) -> Verdicts:
    """Every row's schema as the answer's grammar, every instance against it."""
    found = Verdicts()
    for row in rows:
        schema, tests = row["schema"], row["tests"]
        found.schemas += 1
        if not isinstance(schema, Mapping) or not isinstance(tests, Sequence):
            found.refused += 1  # `true` and `false` are schemas, but no answers
            continue
        try:
            lark = HERMES.grammar(Ask(mode="none", final=schema))
            factory.lark(lark)
        except (ConfigError, ConstraintError) as error:
            found.refused += 1
            why = reason(error)
            found.why_refused[why] = found.why_refused.get(why, 0) + 1
            continue
        for test in tests:
            accepted = any(
                _accepts(factory, lark, text, tokenizer) for text in _spelled(test["data"])
            )
            found.valid += bool(test["valid"])
            found.invalid += not test["valid"]
            found.false_rejects += bool(test["valid"]) and not accepted
            if accepted and not test["valid"]:
                found.false_accepts += 1
                place = row.get("file"), row.get("description"), test.get("description")
                found.accepted_wrongly.append(" / ".join(str(x) for x in place if x))
    return found


def _spelled(data: object) -> Iterator[str]:
    for separators in _SPELLINGS:
        yield json.dumps(data, ensure_ascii=False, separators=separators)


def _accepts(
    factory: GrammarFactory, lark: str, text: str, tokenizer: PreTrainedTokenizerBase
) -> bool:
    constraint = factory.lark(lark)
    try:
        constraint.commit(tokenizer.encode(text, add_special_tokens=False))
    except ConstraintError:
        return False
    return constraint.is_accepting


def judge_folder(
    folder: Path, factory: GrammarFactory, tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, object]]:
    """Verdicts by file of a folder of `*.jsonl.gz`."""
    paths = sorted(folder.glob("*.jsonl.gz"))
    if not paths:
        raise ConfigError("data", str(folder), "holds no *.jsonl.gz")
    return {
        path.name.removesuffix(".jsonl.gz"): asdict(judge(_rows(path), factory, tokenizer))
        for path in paths
    }


def _rows(path: Path) -> Iterator[Json]:
    """ConfigError, naming file and line, for a row that cannot be judged."""
    for number, row in read_lines(path):
        where, tests = f"{path}:{number}", row.get("tests")
        require("schema" in row, "data", where, "has no 'schema'")
        sound = isinstance(tests, list) and all(
            isinstance(test, dict) and {"data", "valid"} <= test.keys() for test in tests
        )
        require(sound, "data", where, "needs 'tests', each with 'data' and 'valid'")
        yield row
