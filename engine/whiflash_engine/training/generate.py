"""Batched generation on one preallocated KV cache, slots refilled as rows finish.

Growing caches by concatenation is what makes naive batched generation several times slower;
here every slot owns a fixed stretch of one buffer. Grouped-query attention is written as
"the query heads of a group are queries of one KV head", so no KV head is ever repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whiflash_engine.constraint import Constraint
from whiflash_engine.sampling import uniform
from whiflash_engine.training.choosing import Choice, Grammar, choose
from whiflash_engine.training.llama import DecoderLayer, Llama, rope_table


@dataclass(frozen=True)
class Job:
    """One prompt to continue. `key` seeds its random stream; temperature 0 is greedy."""

    key: str
    prompt: tuple[int, ...]
    max_new: int
    temperature: float = 0.0
    grammar: Callable[[], Constraint] | None = None
    """Makes the constraint that the reply is decoded under."""


@dataclass(frozen=True)
class Answer:
    job: Job
    tokens: tuple[int, ...]
    """Generated ids, the stop token included if it came."""
    forced: tuple[int, ...] = ()
    """Indices of tokens that were the only ones the grammar allowed."""
    overruled: tuple[int, ...] = ()
    """Indices of tokens where the grammar forbade what the model likes best."""
    features: Tensor | None = None
    """[P, taps+1, H] float16 for the P positions the model has run (all but the last token's):
    the tapped boundaries, then the normed last hidden state. None where nothing is tapped."""


class BatchGenerator:
    """Runs jobs through `slots` rows of one cache of `length` positions."""

    def __init__(
        self,
        model: Llama,
        *,
        slots: int,
        length: int,
        stop_ids: frozenset[int],
        seed: int,
        taps: tuple[int, ...] = (),
    ) -> None:
        config = model.config
        self.model, self.stop_ids, self.seed = model, stop_ids, seed
        dtype = model.embed_tokens.weight.dtype
        size = (config.num_layers, slots, config.num_kv_heads, length, config.head_dim)
        self.keys = torch.zeros(size, dtype=dtype)
        self.values = torch.zeros(size, dtype=dtype)
        self.cos, self.sin = rope_table(
            torch.arange(length), config.head_dim, config.rope.theta, dtype
        )
        self.taps = taps
        kept = (slots, length, len(taps) + 1, config.hidden_size) if taps else (0,)
        self.features = torch.zeros(kept, dtype=torch.float16)
        self.slots, self.length = slots, length
        self.jobs: list[Job | None] = [None] * slots
        self.out: list[list[int]] = [[] for _ in range(slots)]
        self.grammars: list[Grammar | None] = [None] * slots

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], *, refill: int | None = None) -> Iterator[Answer]:
        """Yield answers as they finish. Jobs of similar length should stand together.

        refill: admit new ones when so many slots are free; None waits for a sixth of them.
        """
        waiting = list(jobs)[::-1]
        refill = max(self.slots // 6, 1) if refill is None else refill
        most = max(self.slots // 3, 1)
        while waiting or any(job is not None for job in self.jobs):
            free = [slot for slot, job in enumerate(self.jobs) if job is None]
            if waiting and len(free) >= min(refill, len(waiting), self.slots):
                count = _whole_prompts(waiting, min(len(free), len(waiting), most))
                self._admit(free[:count], [waiting.pop() for _ in range(count)])
            else:
                self._step()
            yield from self._finished()

    def _admit(self, slots: list[int], jobs: list[Job]) -> None:
        """Prefill: the prompts run together, right-padded, and land in their slots. One that
        several jobs share runs once."""
        prompts = list(dict.fromkeys(job.prompt for job in jobs))
        which = torch.tensor([prompts.index(job.prompt) for job in jobs])
        width = max(map(len, prompts))
        if width + max(job.max_new for job in jobs) > self.length:
            raise ValueError(f"a prompt of {width} tokens does not fit into {self.length}")
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        x = self.model.embed_tokens(ids)
        where = torch.tensor(slots)
        for index, layer in enumerate(self.model.layers):
            self._tap(index, where[:, None], torch.arange(width), x, which)
            x, k, v = layer(x, self.cos[:width], self.sin[:width])
            self.keys[index, where, :, :width] = k[which]
            self.values[index, where, :, :width] = v[which]
        self._tap(len(self.model.layers), where[:, None], torch.arange(width), x, which)
        x = self.model.norm(x)
        if self.taps:
            self.features[where, :width, -1] = x[which].half()
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        logits = F.linear(x[torch.arange(len(prompts)), last], self.model.head_weight)[which]
        for slot, job in zip(slots, jobs, strict=True):
            self.jobs[slot], self.out[slot] = job, []
            self.grammars[slot] = None if job.grammar is None else Grammar(job.grammar())
        self._choose(slots, logits)

    def _step(self) -> None:
        """One token for every busy slot."""
        busy = [slot for slot, job in enumerate(self.jobs) if job is not None]
        # where most slots are busy all of them run: reading the cache in place is cheaper than
        # copying the busy rows; what idle rows compute and write is never looked at
        full = len(busy) * 4 > self.slots * 3
        ran = range(self.slots) if full else busy
        rows = torch.tensor(list(ran))
        position = torch.tensor([self._position(slot) for slot in ran])
        x = self.model.embed_tokens(torch.tensor([(self.out[s] or [0])[-1] for s in ran]))
        cos, sin = self.cos[position][:, None, None], self.sin[position][:, None, None]
        span = int(position.max()) + 1
        # [B,1,1,span]: a slot sees its own positions only, whatever an earlier job left behind
        visible = (torch.arange(span) <= position[:, None])[:, None, None]
        config = self.model.config
        group = config.num_heads // config.num_kv_heads
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, DecoderLayer)
            self._tap(index, rows, position, x)
            q, k, v = layer.self_attn.qkv(layer.input_layernorm(x)[:, None], cos, sin)
            self.keys[index, rows, :, position] = k[:, :, 0]
            self.values[index, rows, :, position] = v[:, :, 0]
            keys, values = self.keys[index, :, :, :span], self.values[index, :, :, :span]
            if not full:
                keys, values = keys[rows], values[rows]
            q = q.reshape(len(rows), config.num_kv_heads, group, config.head_dim)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
            x = x + layer.self_attn.o_proj(out.reshape(len(rows), -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self._tap(len(self.model.layers), rows, position, x)
        x = self.model.norm(x)
        if self.taps:
            self.features[rows, position, -1] = x.half()
        x = x[torch.tensor(busy)] if full else x
        self._choose(busy, F.linear(x, self.model.head_weight))

    def _tap(
        self, boundary: int, rows: Tensor, positions: Tensor, x: Tensor, which: Tensor | None = None
    ) -> None:
        """which: the row of x for each of `rows`, where that is not simply the next one."""
        if boundary in self.taps:
            told = x if which is None else x[which]
            self.features[rows, positions, self.taps.index(boundary)] = told.half()

    def _position(self, slot: int) -> int:
        """Where the slot's next input token stands; an idle slot's is anywhere."""
        job = self.jobs[slot]
        return len(job.prompt) + len(self.out[slot]) - 1 if job is not None else 0

    def _choose(self, slots: list[int], logits: Tensor) -> None:
        asked: list[Choice] = []
        for slot in slots:
            job = self.jobs[slot]
            assert job is not None
            number = uniform(self.seed, len(self.out[slot]), job.key) if job.temperature else 0.0
            asked.append(Choice(job.temperature, number, self.grammars[slot]))
        for slot, token in zip(slots, choose(logits, asked), strict=True):
            self.out[slot].append(token)

    def _finished(self) -> Iterator[Answer]:
        for slot, job in enumerate(self.jobs):
            if job is None or not self.out[slot]:
                continue
            if self.out[slot][-1] in self.stop_ids or len(self.out[slot]) >= job.max_new:
                self.jobs[slot] = None
                run = len(job.prompt) + len(self.out[slot]) - 1
                features = self.features[slot, :run].clone() if self.taps else None
                grammar = self.grammars[slot]
                yield Answer(
                    job, tuple(self.out[slot]), tuple(grammar.forced) if grammar else (),
                    tuple(grammar.overruled) if grammar else (), features,
                )  # fmt: skip


def _whole_prompts(waiting: Sequence[Job], most: int) -> int:
    """How many of the last jobs to take, at most `most`: all replies to a prompt together, so that
    it runs once, where that is possible."""
    for count in range(most, 0, -1):
        if count == len(waiting) or waiting[-count].prompt != waiting[-count - 1].prompt:
            return count
    return most
