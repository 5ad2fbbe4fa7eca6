"""A TypedDict as a Pydantic class of the same keys, so that what is done for those holds for it.

Pydantic itself reads those of `typing` only since Python 3.12, and LangChain's conversion knows of
no keys that may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import cleandoc
from types import UnionType
from typing import (
    Annotated,
    Any,
    ForwardRef,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from annotated_types import BaseMetadata, GroupedMetadata
from langchain_core.utils.function_calling import _parse_google_docstring
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo
from typing_extensions import ReadOnly, get_type_hints, is_typeddict

from whiflash_engine.errors import ConfigError

Given = TypeVar("Given")


def as_model(given: Given) -> Given | type[BaseModel]:
    """The class has the schema alone in common with the TypedDict: its fields have other names.
    What is none stays what it is. ConfigError for one that is generic."""
    _refuse_generic(given)
    if not isinstance(given, type) or not is_typeddict(given):
        return given
    kinds: list[type] = [given]
    models = [_model(kind, kinds) for kind in kinds]  # which finds more kinds inside of one
    names = {_name(i): model for i, model in enumerate(models)}
    for model in models:
        model.model_rebuild(_types_namespace=names)
    return models[0]


def told_in_docstring(kind: type, keys: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Of the class, and of its keys where it has "Args:" in Google's style, as LangChain has it."""
    return _parse_google_docstring(cleandoc(kind.__doc__ or ""), [*keys])


def _model(kind: type, kinds: list[type]) -> type[BaseModel]:
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise ConfigError("schema", kind, str(error)) from error
    about, said = told_in_docstring(kind, hints)
    fields: dict[str, Any] = {
        # a key may be no name that Pydantic lets a field have
        f"field_{i}": _field(key, hint, key in kind.__required_keys__, said.get(key), kinds)  # type: ignore[attr-defined]
        for i, (key, hint) in enumerate(hints.items())
    }
    return create_model(kind.__name__, __doc__=about or None, **fields)


def _field(
    key: str, hint: Any, required: bool, said: str | None, kinds: list[type]
) -> tuple[Any, Any]:
    """What `create_model` takes for a field. said: of it in the docstring."""
    told: dict[str, Any] = {}
    rest: list[Any] = []
    while (origin := get_origin(hint)) in (Required, NotRequired, ReadOnly, Annotated):
        hint, *extras = get_args(hint)
        if origin is Annotated:
            told = _told(extras) | told
            rest = [*extras, *rest]
        elif origin is not ReadOnly:
            required = origin is Required
    if said and not any(isinstance(one, FieldInfo) and one.description for one in rest):
        told = {"description": said} | told
    if not required and "default" not in told and not any(map(_defaults, rest)):
        told["default_factory"] = dict  # of which no schema tells
    hint = _referring(hint, kinds)
    return Annotated[(hint, *rest)] if rest else hint, Field(alias=key, **told)


def _told(extras: list[Any]) -> dict[str, Any]:
    """Takes from the extras what LangChain writes there: Annotated[T, default, "text"]. What is
    left is for Pydantic."""
    told: dict[str, Any] = {}
    if isinstance(extras[-1], str):
        told["description"] = extras.pop()
        if extras and not _is_metadata(extras[-1]):
            default = extras.pop()
            if default is not ...:
                told["default"] = default
    return told


def _is_metadata(extra: object) -> bool:
    if isinstance(extra, FieldInfo | BaseMetadata | GroupedMetadata):
        return True
    shapes = hasattr(extra, "__get_pydantic_core_schema__")  # a validator, say
    return shapes and not isinstance(extra, BaseModel)


def _defaults(extra: object) -> bool:
    return isinstance(extra, FieldInfo) and not extra.is_required()


def _referring(hint: Any, kinds: list[type]) -> Any:
    """The same type with a reference for each TypedDict, which then may hold itself."""
    _refuse_generic(hint)
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


def _refuse_generic(hint: object) -> None:
    if is_typeddict(get_origin(hint)):
        why = "a generic TypedDict is not supported; a generic Pydantic class is"
        raise ConfigError("schema", hint, why)


def _name(i: int) -> str:
    return f"_typed_dict_{i}"
