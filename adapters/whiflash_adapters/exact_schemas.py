"""Pydantic's JSON schemas, exact where it is generous."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from whiflash_adapters.json_values import number


class Exact(GenerateJsonSchema):
    """With a Decimal that no word is one of. One with bounds is a number within them; how many
    digits it has is left to whoever validates it."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        as_number: JsonSchemaValue = super().decimal_schema(schema)["anyOf"][0]
        if as_number != {"type": "number"}:
            return as_number  # a pattern keeps to no bounds
        # as a string too: a number loses digits beyond the 17th once it is a float
        return {"anyOf": [as_number, {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}]}

    def field_is_present(self, field: Any) -> bool:
        """A dataclass may have fields that its constructor does not take."""
        return field.get("init") is not False and super().field_is_present(field)

    def encode_default(self, dft: object) -> object:
        """A Decimal's is a number: where there are bounds, nothing else passes."""
        return super().encode_default(number(dft) if isinstance(dft, Decimal) else dft)


class Untitled(Exact):
    """Without titles that only repeat a field's name: they would cost tokens of the prompt."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False
