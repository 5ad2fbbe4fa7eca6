"""What a router has learned, in a small JSON file that its user may read and delete.

Only counts and averages by arm, entropy and span: nothing of any text.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from whiflash_engine.config import ArmName
from whiflash_engine.errors import ConfigError
from whiflash_engine.router.averages import Key
from whiflash_engine.router.neural import LARGEST, Learner, NeuralPolicy

_VERSION = 2
_MOST_BYTES = 4 * 2**20


def recall(path: Path, learner: Learner, model: str) -> None:
    """Take up what `keep` wrote; nothing if there is no such file yet. ConfigError for a file
    that is something else, or another model's."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict) or told.get("version") != _VERSION:
            raise ValueError("of another version or another program")
        if told["model"] != model:
            raise ValueError(f"of the model {told['model']!r}, not {model!r}")
        averages = learner.averages if isinstance(learner, NeuralPolicy) else learner
        cells = {_key(key): _counts(counts) for key, counts in told["cells"]}
        shift: dict[ArmName, float] = {}
        if isinstance(learner, NeuralPolicy):
            given = told["shift"]
            shift = {arm: _shift(given[arm]) for arm in learner.shift if arm in given}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"is no file of these router statistics ({error}); delete it to begin anew"
        raise ConfigError("statistics", str(path), why) from error
    # only now, when all of it is known to be good
    averages.recall(cells)
    if isinstance(learner, NeuralPolicy):
        learner.shift.update(shift)


def keep(path: Path, learner: Learner, model: str) -> None:
    """model: whose drafters they tell of. Written beside and moved into place, so that no reader
    sees half of it. OSError if it cannot be."""
    averages = learner.averages if isinstance(learner, NeuralPolicy) else learner
    cells = averages.counts().items()
    told = {
        "version": _VERSION,
        "model": model,
        "shift": dict(learner.shift) if isinstance(learner, NeuralPolicy) else {},
        "cells": [[key, [[round(n, 3) for n in row] for row in rows]] for key, rows in cells],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            json.dump(told, stream)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _key(parts: Sequence[str | int]) -> Key:
    if not all(isinstance(part, str | int) for part in parts):
        raise ValueError("a cell without a name")
    return tuple(parts)


def _shift(value: float) -> float:
    if not abs(float(value)) <= LARGEST:
        raise ValueError(f"a shift of {value}")
    return float(value)


def _counts(rows: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    tried, passed = ([float(n) for n in row] for row in rows)
    pairs = zip(tried, passed, strict=True)  # both were rounded when they were written
    if not all(0 <= p <= t + 1e-2 and t < math.inf for t, p in pairs):
        raise ValueError("a cell that holds no counts")
    return tried, passed
