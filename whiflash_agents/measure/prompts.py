"""Prompts to measure with: rows `{"id", "kind", "messages", "tools", "schema"}`.

Those that ship with the package were written for it and are in no training set. Others come
from a folder of gzipped JSONL files in the same form.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from whiflash_adapters.formats.hermes_grammar import grammar
from whiflash_engine.errors import ConfigError

if TYPE_CHECKING:
    from whiflash_engine.constraint import Constraint
    from whiflash_engine.engine import Engine

Kind = Literal["tool", "json", "reason", "chat"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# What a prompt without tools and schema is constrained to when a grammar is asked for.
_ANSWER: Mapping[str, object] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 200}},
    "required": ["answer"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row. tools: OpenAI tool dicts; schema: the JSON schema that the answer should obey."""

    id: str
    kind: Kind
    messages: Sequence[Mapping[str, object]]
    tools: Sequence[Mapping[str, object]]
    schema: Mapping[str, object] | None

    def token_ids(self, engine: Engine) -> list[int]:
        """The prompt as the model's chat template renders it."""
        ids = engine.tokenizer.apply_chat_template(
            list(self.messages), tools=list(self.tools) or None, add_generation_prompt=True,
            return_dict=False,
        )  # fmt: skip
        return cast(list[int], ids)

    def constraint(self, engine: Engine) -> Constraint:
        """A fresh constraint: the prompt's tools, its schema, or else a small object."""
        if self.tools:
            return engine.grammar(grammar(self.tools, "auto"))
        return engine.json_schema(self.schema or _ANSWER)


def shipped() -> list[Prompt]:
    """The package's own prompts, all kinds."""
    text = files("whiflash_agents.measure").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return [_row(line, f"prompts.jsonl:{i}") for i, line in enumerate(text.splitlines(), 1)]


def from_folder(folder: Path) -> Iterator[Prompt]:
    """Every row of every `*.jsonl.gz` of a folder, in order of file name."""
    paths = sorted(folder.glob("*.jsonl.gz"))
    if not paths:
        raise ConfigError("data", str(folder), "holds no *.jsonl.gz")
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for i, line in enumerate(lines, 1):
                yield _row(line, f"{path.name}:{i}")


def balanced(prompts: Sequence[Prompt], per_kind: int) -> list[Prompt]:
    """The first `per_kind` of each kind, kinds interleaved."""
    by_kind = {kind: [p for p in prompts if p.kind == kind][:per_kind] for kind in KINDS}
    for kind, rows in by_kind.items():
        if len(rows) < per_kind:
            raise ConfigError("per-kind", per_kind, f"only {len(rows)} {kind} prompts there")
    return [by_kind[kind][i] for i in range(per_kind) for kind in KINDS]


def _row(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
        if row["kind"] not in KINDS or not row["messages"]:
            raise ValueError("unknown kind or no messages")
        return Prompt(
            row["id"], row["kind"], row["messages"], row.get("tools") or (), row.get("schema")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("data", where, f"not a prompt row: {error}") from error
