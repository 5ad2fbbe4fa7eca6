"""This library's errors as LangChain's own classes know them, so that its retries, fallbacks and
summaries act on them. Each is still the error that the engine raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions as core

from whiflash_engine.errors import (
    ConfigError,
    ConstraintError,
    ModelNotFoundError,
    PromptTooLongError,
)


class InvalidRequestError(ConfigError, core.ModelInvalidRequestError):
    """A field has a value that cannot work."""


class ContextOverflowError(PromptTooLongError, core.ContextOverflowError):
    """The prompt does not fit into the context."""


class RefusedGrammarError(ConstraintError, core.ModelInvalidRequestError):
    """A schema that cannot be followed to the letter, refused before anything is generated."""


class NoSuchModelError(ModelNotFoundError, core.ModelNotFoundError):
    """No such model here, or it cannot be fetched now."""


@contextmanager
def as_langchain() -> Iterator[None]:
    """Inside, the engine's errors are raised as those above."""
    try:
        yield
    except core.ModelError:
        raise
    except PromptTooLongError as error:
        raise ContextOverflowError(error.length, error.limit) from error
    except ConfigError as error:
        raise InvalidRequestError(error.field, error.value, error.why) from error
    except ConstraintError as error:
        raise RefusedGrammarError(str(error)) from error
    except ModelNotFoundError as error:
        raise NoSuchModelError(str(error)) from error
