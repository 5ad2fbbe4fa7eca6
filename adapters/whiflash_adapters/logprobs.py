"""Log-probabilities in the shape that OpenAI gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from whiflash_engine.events import Round

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def as_logprobs(
    rounds: Iterable[Round], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[dict[str, object]]]:
    """{"content": [{token, logprob, top_logprobs: [{token, logprob}]}]}: every token of the
    answer, those of tool calls, of reasoning and the stop token included. In nats."""

    def entry(token: int, logprob: float) -> dict[str, object]:
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return {"token": text, "logprob": logprob}

    return {
        "content": [
            entry(one.token, one.logprob) | {"top_logprobs": [entry(*other) for other in one.top]}
            for round_ in rounds
            for one in round_.logprobs
        ]
    }
