"""Prompts to measure with: rows `{"id", "kind", "messages", "tools", "schema"}`.

Those that ship with the package were written for it and are in no training set. Others come
from a folder of gzipped JSONL files in the same form.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.hermes import HERMES
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
            return engine.grammar(HERMES.grammar(Ask(self.tools)), HERMES.signposts)
        return engine.json_schema(self.schema or _ANSWER)


def shipped() -> list[Prompt]:
    """The package's own prompts, all kinds."""
    name = "prompts.jsonl"
    text = files("whiflash_agents.measure").joinpath(name).read_text(encoding="utf-8")
    return list(_rows(text, name))


def from_folder(folder: Path) -> Iterator[Prompt]:
    """Every row of every `*.jsonl.gz` of a folder, in order of file name."""
    paths = sorted(folder.glob("*.jsonl.gz"))
    if not paths:
        raise ConfigError("data", str(folder), "holds no *.jsonl.gz")
    for path in paths:
        try:
            text = gzip.decompress(path.read_bytes()).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise ConfigError("data", str(path), f"cannot be read: {error}") from error
        yield from _rows(text, path.name)


def named(prompts: Sequence[Prompt], path: Path) -> list[Prompt]:
    """Those whose ids a file lists, in its order."""
    ids = listed(path, "ids")
    by_id = {prompt.id: prompt for prompt in prompts}
    unknown = [name for name in ids if name not in by_id]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ConfigError("ids", str(path), f"no such prompts: {', '.join(unknown[:5])}{more}")
    return [by_id[name] for name in dict.fromkeys(ids)]


def listed(path: Path, field: str) -> list[str]:
    """The ids in a file. field: how its user calls it."""
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(field, str(path), f"cannot be read: {why}") from error


def balanced(
    prompts: Iterable[Prompt], per_kind: int, usable: Callable[[Prompt], bool] = lambda _: True
) -> list[Prompt]:
    """The first `per_kind` usable ones of each kind, kinds interleaved.

    usable: asked only until there are enough.
    """
    if per_kind < 1:
        raise ConfigError("per-kind", per_kind, "must be at least 1")
    by_kind: dict[Kind, list[Prompt]] = {kind: [] for kind in KINDS}
    for prompt in prompts:
        rows = by_kind[prompt.kind]
        if len(rows) < per_kind and usable(prompt):
            rows.append(prompt)
    for kind, rows in by_kind.items():
        if len(rows) < per_kind:
            raise ConfigError("per-kind", per_kind, f"there are only {len(rows)} {kind} prompts")
    return [by_kind[kind][i] for i in range(per_kind) for kind in KINDS]


def _rows(text: str, name: str) -> Iterator[Prompt]:
    # Not splitlines: JSON text may hold line separators of other kinds as they are.
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _row(line, f"{name}:{i}")


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
