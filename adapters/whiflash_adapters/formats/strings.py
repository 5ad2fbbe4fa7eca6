"""What a schema asks of a string, to the letter: `format`, `pattern`, `contentEncoding`.

llguidance has regular expressions for formats, but a shape is not yet a date: they let February
have 29 days every year and leap seconds come at any time. The rules here are a second pattern that
the string must match as well. Where the whole language is out of a regular expression's reach
(punycode in host names, which minute a leap second ends), or not worth it (letters of all
languages in addresses), it is a part of it: what is generated is valid.

A format that the standard does not know says nothing, as the standard has it (2020-12, Validation,
section 7): "path", "binary" and "password" are any string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from whiflash_engine.errors import ConfigError

_HOST_NAME = 253

_LLGUIDANCE: Final = frozenset(
    {"date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""Formats whose shape it keeps."""
_NARROWER: Final[Mapping[str, str]] = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "iri-reference": "uri-reference",
    "ipvanyaddress": "ipv4",
    **{f"uuid{version}": "uuid" for version in range(1, 9)},
}
"""Formats that a narrower one stands for."""
_REFUSED: Final = frozenset({"regex"})

_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    "(?:.{5}(?:0[13578]|1[02])-..|.{5}(?:0[469]|11)-(?:[012].|30)|.{5}02-(?:[01].|2[0-8])"
    f"|(?:..{_FOURTH}|(?:00|{_FOURTH})00)-02-29)"
)
# A label with hyphens in the third and fourth place would be punycode, or reserved.
_LABEL = "(?:[^.]{1,3}|[^.]{2}(?:[^.-][^.]|-[^.-])[^.]*)"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
_URL = "(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
_PATH = f"/?(?:{_URL}+(?:/{_URL}*)*)?"

_PATTERNS: Final[Mapping[str, str]] = {
    "date": f"^{_DATE}$",
    "time": "^.{6}[0-5]",
    "date-time": f"^{_DATE}.{{7}}[0-5]",
    "hostname": rf"^{_LABEL}(?:\.{_LABEL})*\.?$",
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$",
    "uri-reference": rf"^(?:https?://[a-z0-9]+(?:[.-][a-z0-9]+)*(?:/{_URL}*)*|{_PATH})"
    rf"(?:\?{_URL}*)?(?:#{_URL}*)?$",
    "uri-template": r"^(?:[A-Za-z0-9._~:/?&=-]|\{[A-Za-z0-9_]+\})*$",
    **{f"uuid{version}": f"^.{{14}}{version}.{{4}}[89abAB]" for version in range(1, 9)},
}
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
# White space as ECMA-262 has it: with the byte order mark, without "next line".
_SPACE, _INK = r"[[\s\ufeff]--[\x{85}]]", r"[^[[\s\ufeff]--[\x{85}]]]"


def exact(schema: Mapping[str, object], *, lenient: bool) -> dict[str, object]:
    """One node of a schema with what it asks of strings in words that llguidance keeps.

    ConfigError, unless lenient, for contents of a string that no grammar can promise.
    """
    out = dict(schema)
    pattern, encoding, media = (
        out.get(key) for key in ("pattern", "contentEncoding", "contentMediaType")
    )
    if isinstance(pattern, str):
        out["pattern"] = ecma(pattern)
    out = _formatted(out)
    if encoding == "base64":
        out = _matching(out, _BASE64)
    elif isinstance(encoding, str) and not lenient:
        raise ConfigError("schema contentEncoding", encoding, "only base64 can be kept to")
    if isinstance(media, str) and media.endswith("json") and not lenient:
        raise ConfigError("schema contentMediaType", media, "no grammar can keep to it in a string")
    return out


def ecma(pattern: str) -> str:
    r"""\s and \S of a JSON schema's pattern in the words of Rust's regular expressions."""
    meaning = {r"\s": _SPACE, r"\S": _INK}
    return re.sub(r"\\.", lambda found: meaning.get(found[0], found[0]), pattern, flags=re.DOTALL)


def _formatted(schema: Mapping[str, object]) -> dict[str, object]:
    """`format` as one that llguidance knows, as a pattern, as both, or as neither."""
    kind = schema.get("format")
    if not isinstance(kind, str) or kind in _REFUSED:
        return dict(schema)
    out = {key: value for key, value in schema.items() if key != "format"}
    shape = _NARROWER.get(kind, kind)
    if shape in _LLGUIDANCE:
        out["format"] = shape
    if shape == "hostname":
        most = out.get("maxLength")
        out["maxLength"] = min(most, _HOST_NAME) if isinstance(most, int) else _HOST_NAME
    own = _PATTERNS.get(kind) or _PATTERNS.get(shape)
    return out if own is None else _matching(out, own)


def _matching(schema: Mapping[str, object], pattern: str) -> dict[str, object]:
    if "pattern" not in schema:
        return {**schema, "pattern": pattern}
    others = schema.get("allOf")
    others = others if isinstance(others, list) else []
    return {**schema, "allOf": [*others, {"pattern": pattern}]}
