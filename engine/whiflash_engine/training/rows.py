"""Prompt rows: gzipped JSONL files of one prompt a line, and their gold answers.

A data folder holds `train/SOURCE.jsonl.gz` and `dev/SOURCE.jsonl.gz` with rows
`{"id", "kind", "messages", "tools", "schema", "source"}`, references beside them in
`train_refs/` and `dev_refs/` as `{"id", "ref"}`, and id lists in `mixes/NAME.ids`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from whiflash_engine.errors import CheckpointError
from whiflash_engine.training.model_files import JsonValue

KINDS = ("tool", "json", "reason", "chat")

Json = dict[str, JsonValue]
"""One JSON object: a message, a tool, a reference."""


@dataclass(frozen=True)
class PromptRow:
    id: str
    kind: str
    source: str
    messages: tuple[Json, ...]
    tools: tuple[Json, ...]
    schema: Json | None = None
    """The JSON schema that the reply should obey."""


def read_lines(path: Path) -> Iterator[tuple[int, Json]]:
    """(line number, object) for every line; errors name file and line."""
    if not path.exists():
        raise CheckpointError(path, "no such file")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise CheckpointError(f"{path}:{number}", f"not valid JSON: {error}") from error
            if not isinstance(value, dict):
                raise CheckpointError(f"{path}:{number}", "should be a JSON object")
            yield number, value


def parse_row(value: Json, where: str) -> PromptRow:
    """Check one row; `where` (file:line) is what errors name."""

    def objects(key: str, needed: bool) -> tuple[Json, ...]:
        items = value.get(key)
        if items is None and not needed:
            return ()
        if not isinstance(items, list) or (needed and not items):
            raise CheckpointError(where, f"{key!r} should be a list of objects")
        found = tuple(item for item in items if isinstance(item, dict))
        if len(found) != len(items):
            raise CheckpointError(where, f"{key!r} should hold objects only")
        return found

    def text(key: str) -> str:
        item = value.get(key)
        if not isinstance(item, str) or not item:
            raise CheckpointError(where, f"{key!r} should be a non-empty string")
        return item

    if text("kind") not in KINDS:
        raise CheckpointError(where, f"'kind' should be one of {', '.join(KINDS)}")
    messages = objects("messages", needed=True)
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise CheckpointError(where, "every message needs a 'role'")
    schema = value.get("schema")
    if schema is not None and not isinstance(schema, dict):
        raise CheckpointError(where, "'schema' should be an object")
    return PromptRow(
        id=text("id"),
        kind=text("kind"),
        source=text("source"),
        messages=messages,
        tools=objects("tools", needed=False),
        schema=schema,
    )


def load_rows(data: Path, split: str, source: str) -> list[PromptRow]:
    path = data / split / f"{source}.jsonl.gz"
    return [parse_row(value, f"{path}:{number}") for number, value in read_lines(path)]


def load_refs(data: Path, split: str, source: str) -> dict[str, JsonValue]:
    """id -> reference; the folder `<split>_refs` lies beside the rows."""
    path = data / f"{split}_refs" / f"{source}.jsonl.gz"
    refs: dict[str, JsonValue] = {}
    for number, value in read_lines(path):
        identity = value.get("id")
        if not isinstance(identity, str):
            raise CheckpointError(f"{path}:{number}", "'id' should be a string")
        refs[identity] = value.get("ref")
    return refs


def load_by_ids(data: Path, split: str, mix: str) -> list[PromptRow]:
    """The rows of `mixes/<mix>.ids`, in that order. An id is `<source>-<hex>`."""
    path = data / "mixes" / f"{mix}.ids"
    if not path.exists():
        raise CheckpointError(path, "no such file")
    ids = path.read_text(encoding="utf-8").split()
    rows: dict[str, PromptRow] = {}
    for source in sorted({identity.rsplit("-", 1)[0] for identity in ids}):
        rows.update({row.id: row for row in load_rows(data, split, source)})
    for number, identity in enumerate(ids, start=1):
        if identity not in rows:
            raise CheckpointError(f"{path}:{number}", f"no row {identity!r} in {split}/")
    return [rows[identity] for identity in ids]
