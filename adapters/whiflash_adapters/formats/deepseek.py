"""DeepSeek's forms: V3 and R1 fence their arguments, V3.1 does not.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>calculate
```json
{"expression": "2 * 3"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>calculate<｜tool▁sep｜>{"expression": "2 * 3"}...
"""

from __future__ import annotations

import regex

from whiflash_adapters.formats.form import JsonForm

_BEGIN, _END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_FIRST, _LAST, _SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"

DEEPSEEK_V3 = JsonForm(
    name="deepseek-v3",
    section=_FIRST,
    head=f"{_BEGIN}function{_SEP}",
    middle="\n```json\n",
    tail=f"\n```{_END}",
    between="\n",
    close=_LAST,
    opener=_BEGIN,
    quoted=False,
    head_pattern=regex.compile(rf"\s*function\s*{_SEP}([^\n`]*)\n```json\s*(?=\{{)"),
    tail_pattern=regex.compile(rf"\s*```\s*{_END}"),
    end=_END,
    silent=(_FIRST, _LAST),
)

DEEPSEEK_V31 = JsonForm(
    name="deepseek-v3.1",
    section=_FIRST,
    head=_BEGIN,
    middle=_SEP,
    tail=_END,
    close=_LAST,
    opener=_BEGIN,
    quoted=False,
    head_pattern=regex.compile(rf"([^<｜]*){_SEP}\s*(?=\{{)"),
    tail_pattern=regex.compile(rf"\s*{_END}"),
    end=_END,
    silent=(_FIRST, _LAST),
)
