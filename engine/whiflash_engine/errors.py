"""Everything this library raises on purpose.

WhiFlashError
├── ConfigError (ValueError)        a field has a value that cannot work
│   └── PromptTooLongError          the prompt does not fit into the context
├── ModelNotFoundError              no such model, and what to do about it
├── CheckpointError                 a file is truncated, mismatched or not what it says
├── ConstraintError (ValueError)    a grammar or schema cannot be compiled
└── NumericsError                   the target produced logits that are not finite
"""

from __future__ import annotations

from pathlib import Path


class WhiFlashError(Exception):
    """Base class; catch this to catch them all."""


class ConfigError(WhiFlashError, ValueError):
    """A field has a value that cannot work. Names the field and the value."""

    def __init__(self, field: str, value: object, why: str) -> None:
        super().__init__(f"{field}={value!r}: {why}")
        self.field = field
        self.value = value
        self.why = why


class PromptTooLongError(ConfigError):
    """The prompt, or prompt plus one token, does not fit into the context."""

    def __init__(self, length: int, limit: int) -> None:
        why = f"the context holds {limit} tokens, and at least one must be generated"
        super().__init__("prompt", f"{length} tokens", why)
        self.length = length
        self.limit = limit


class ModelNotFoundError(WhiFlashError):
    """No such model here, or it cannot be fetched now."""


class CheckpointError(WhiFlashError):
    """A file is truncated, mismatched or not what it says. Names the file."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = Path(path)


class ConstraintError(WhiFlashError, ValueError):
    """A grammar or schema cannot be compiled, which is told before anything is generated; or one
    became too large for its parser on the way, or was led where it does not allow."""


class NumericsError(WhiFlashError):
    """The target produced logits that are not finite."""
