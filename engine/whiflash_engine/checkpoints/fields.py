"""Typed reading of a JSON configuration: each error names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from whiflash_engine.errors import CheckpointError

MAX_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object of a file. A null counts as absent, as it does for its writers.

    Every getter raises `CheckpointError` for a value of another type; a getter without a
    default raises it for an absent key as well.
    """

    path: Path
    values: Mapping[str, object]
    prefix: str = ""

    @staticmethod
    def read(path: Path) -> Fields:
        """Parse a file that must hold one JSON object."""
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise CheckpointError(path, "too large for a JSON configuration")
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(path, f"cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(path, f"is not valid JSON ({error})") from error
        if not isinstance(values, dict):
            raise CheckpointError(path, "must hold a JSON object")
        return Fields(path, values)

    def fail(self, key: str, why: str) -> CheckpointError:
        return CheckpointError(self.path, f"{self.prefix}{key}: {why}")

    def get(self, key: str) -> object:
        return self.values.get(key)

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self._wrong(key, value, "a list of integers")
        return tuple(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of strings")
        return tuple(value)

    def sub(self, key: str) -> Fields:
        """The object under `key`; empty where there is none."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Fields(self.path, value, f"{self.prefix}{key}.")

    def _wrong(self, key: str, value: object, wanted: str) -> CheckpointError:
        if value is None:
            return self.fail(key, f"is missing ({wanted})")
        return self.fail(key, f"must be {wanted}, not {str(value)[:60]}")
