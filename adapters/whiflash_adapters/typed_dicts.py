"""A TypedDict as a Pydantic class of the same keys, so that what is done for those holds for it.

Pydantic itself reads those of `typing` only since Python 3.12, and LangChain's conversion knows of
no keys that may be missing.
"""

from __future__ import annotations

from types import UnionType
from typing import (
    Annotated,
    Any,
    ForwardRef,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, Field, create_model
from typing_extensions import ReadOnly, get_type_hints, is_typeddict

from whiflash_engine.errors import ConfigError


def as_model(given: type) -> type[BaseModel]:
    """The class has the schema alone in common with the TypedDict: its fields have other names."""
    kinds = [given]
    models = [_model(kind, kinds) for kind in kinds]  # which finds more kinds inside of one
    names = {_name(i): model for i, model in enumerate(models)}
    for model in models:
        model.model_rebuild(_types_namespace=names)
    return models[0]


def _model(kind: type, kinds: list[type]) -> type[BaseModel]:
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise ConfigError("schema", kind, str(error)) from error
    fields: dict[str, Any] = {
        # a key may be no name that Pydantic lets a field have
        f"field_{i}": _field(key, hint, key in kind.__required_keys__, kinds)  # type: ignore[attr-defined]
        for i, (key, hint) in enumerate(hints.items())
    }
    return create_model(kind.__name__, __doc__=kind.__doc__, **fields)


def _field(key: str, hint: Any, required: bool, kinds: list[type]) -> tuple[Any, Any]:
    """What `create_model` takes for a field. LangChain writes Annotated[T, default, "text"]."""
    told: dict[str, Any] = {}
    while (origin := get_origin(hint)) in (Required, NotRequired, ReadOnly, Annotated):
        inner, *said = get_args(hint)
        if origin is Annotated:
            if not isinstance(said[-1], str):
                break  # what Pydantic makes of it
            default, told["description"] = [..., *said][-2:]
            if default is not ...:
                told["default"] = default
        elif origin is not ReadOnly:
            required = origin is Required
        hint = inner
    if not required and "default" not in told:
        told["default_factory"] = dict  # of which no schema tells
    return _referring(hint, kinds), Field(alias=key, **told)


def _referring(hint: Any, kinds: list[type]) -> Any:
    """The same type with a reference for each TypedDict, which then may hold itself."""
    if is_typeddict(hint):
        if hint not in kinds:
            kinds.append(hint)
        return ForwardRef(_name(kinds.index(hint)))
    origin, inner = get_origin(hint), get_args(hint)
    if not inner or origin is Literal:
        return hint
    return (Union if origin is UnionType else origin)[
        tuple(_referring(one, kinds) for one in inner)
    ]


def _name(i: int) -> str:
    return f"_typed_dict_{i}"
