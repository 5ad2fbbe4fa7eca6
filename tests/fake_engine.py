"""An engine that says what it is told to: real tokens, real rounds, no model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import llguidance
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import whiflash_engine
from whiflash_engine.config import ArmName, RouterConfig, SamplingConfig, Span
from whiflash_engine.constraint import Constraint
from whiflash_engine.errors import ConstraintError
from whiflash_engine.events import FinishReason, Round, Seconds, TokenLogprob

TEMPLATE = Path(whiflash_engine.__file__).parent / "weights/smollm2_135m_tools/chat_template.jinja"
TOOLLESS_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(*, template: str | None = None, tags: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, so that every split of a character or a tag occurs."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    if tags:
        inner.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        chat_template=template or TEMPLATE.read_text(encoding="utf-8"),
    )


class FakeEngine:
    """Answers with the next of its texts, `size` tokens a round, arms in turn."""

    def __init__(
        self,
        *texts: str,
        size: int = 3,
        context_length: int = 4096,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        self.tokenizer = tokenizer or byte_tokenizer()
        self.context_length = context_length
        self.model_name = "fake"
        self.prompts: list[str] = []
        self.grammars: list[str] = []
        self.samplings: list[SamplingConfig] = []
        self.routers: list[RouterConfig | None] = []
        self.running = 0
        self._texts, self._size = list(texts), size

    def generate(
        self,
        token_ids: Sequence[int],
        *,
        sampling: SamplingConfig | None = None,
        constraint: Constraint | None = None,
        router: RouterConfig | None = None,
        span: Span = "text",
        cancelled: threading.Event | None = None,
    ) -> Iterator[Round]:
        sampling = sampling or SamplingConfig()
        self.prompts.append(str(self.tokenizer.decode(list(token_ids))))
        self.samplings.append(sampling)
        self.routers.append(router)
        eos = self.tokenizer.eos_token_id
        said = self._texts.pop(0) if len(self._texts) > 1 else self._texts[0]
        ids = [*self.tokenizer.encode(said, add_special_tokens=False), eos][: sampling.max_tokens]
        reason: FinishReason = "stop" if ids[-1] == eos else "length"
        arms: tuple[ArmName, ...] = ("ar", "diffusion", "forced")
        if router is not None and router.name == "plain":
            arms = ("plain",)
        return self._rounds(ids, len(token_ids), reason, arms, sampling.logprobs)

    def _rounds(
        self, ids: list[int], start: int, reason: FinishReason, arms: Sequence[ArmName],
        top: int | None,
    ) -> Iterator[Round]:  # fmt: skip
        self.running += 1
        try:
            for n, at in enumerate(range(0, len(ids), self._size)):
                tokens = tuple(ids[at : at + self._size])
                last = at + self._size >= len(ids)
                yield Round(
                    arm=arms[n % len(arms)],
                    position=start + at,
                    tokens=tokens,
                    proposed=tokens[:-1],
                    accepted=len(tokens) - 1,
                    verified=len(tokens),
                    span="tool_call" if n % 4 == 1 else "text",
                    entropy=0.5,
                    backlog=0,
                    seconds=Seconds(draft=0.001, verify=0.002, catch_up=0.0005),
                    logprobs=()
                    if top is None
                    else tuple(TokenLogprob(t, -0.5, ((t, -0.5),)[:top]) for t in tokens),
                    finish_reason=reason if last else None,
                )
        finally:
            self.running -= 1

    def grammar(self, lark: str, signposts: Sequence[str] = ()) -> Constraint:
        problem = llguidance.LLMatcher.validate_grammar(
            llguidance.LLMatcher.grammar_from_lark(lark), None
        )
        if problem:
            raise ConstraintError(problem)
        self.grammars.append(lark)
        return cast("Constraint", object())  # never asked for a mask here

    def json_schema(self, schema: Mapping[str, object]) -> Constraint:
        return self.grammar("start: /.*/")
