"""From messages to token ids, with a mark on the tokens that are to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from whiflash_engine.training.rows import Json


class HubTokenizer:
    """A `transformers` tokenizer folder with what training needs; the template may be replaced."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        from transformers import AutoTokenizer, PreTrainedTokenizerBase

        self.inner = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder))
        if template is not None:
            self.inner.chat_template = template.read_text(encoding="utf-8")

    def render(self, messages: Sequence[Json], tools: Sequence[Json]) -> str:
        return cast(
            str,
            self.inner.apply_chat_template(
                list(messages), tools=list(tools) or None,
                add_generation_prompt=True, tokenize=False,
            ),
        )  # fmt: skip

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return cast(str, self.inner.decode(list(ids), skip_special_tokens=False))

    @property
    def stop_id(self) -> int:
        return int(self.inner.eos_token_id)

    @property
    def stop_text(self) -> str:
        return str(self.inner.eos_token)


@dataclass(frozen=True)
class Taught:
    """Token ids of one conversation; `learn[i]` says whether token i is to be predicted."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]


def teach(
    tokenizer: HubTokenizer,
    messages: Sequence[Json],
    tools: Sequence[Json],
    replies: Sequence[tuple[str, Sequence[Json]]],
) -> Taught:
    """A conversation whose assistant turns are learned.

    `replies` are (text of the assistant's turn, messages that follow it: the turn itself and
    what came after, up to the next turn). The last one needs no followers.
    """
    so_far = list(messages)
    text = tokenizer.render(so_far, tools)
    ids = tokenizer.encode(text)
    learn = [False] * len(ids)
    for index, (reply, followers) in enumerate(replies):
        new = [*tokenizer.encode(reply), tokenizer.stop_id]
        ids += new
        learn += [True] * len(new)
        text += reply + tokenizer.stop_text
        if index + 1 < len(replies):
            so_far += followers
            longer = tokenizer.render(so_far, tools)
            if not longer.startswith(text):
                raise ValueError(f"the chat template rewrites the turn {reply!r}")
            between = tokenizer.encode(longer[len(text) :])
            ids += between
            learn += [False] * len(between)
            text = longer
    return Taught(tuple(ids), tuple(learn))
