"""What is trained is what runs: the training models and the drafters compute the same.

Each side was written for its own purpose (all anchors at once; one round at a time), so that
either checks the other: slots, positions, masks, feedback, names of tensors.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.toys import TINY, tiny_dflash_parts, tiny_eagle3_parts, tiny_target
from whiflash_engine.config import SamplingConfig
from whiflash_engine.drafters.dflash import DFlashDrafter
from whiflash_engine.drafters.eagle3 import Eagle3Drafter
from whiflash_engine.features import FeatureLog
from whiflash_engine.sampling import Sampler
from whiflash_engine.training.dflash_model import DFlash
from whiflash_engine.training.drafter_parts import DrafterShape
from whiflash_engine.training.eagle3_model import Eagle3

pytestmark = pytest.mark.usefixtures("exact")

_LENGTH, _STEPS = 30, 4
_SHAPE = DrafterShape(
    hidden_size=TINY.hidden_size, intermediate_size=TINY.intermediate_size,
    num_attention_heads=TINY.num_heads, num_key_value_heads=TINY.num_kv_heads,
    head_dim=TINY.head_dim, rms_norm_eps=TINY.rms_norm_eps, rope_theta=TINY.rope.theta,
    vocab_size=TINY.vocab_size, draft_vocab_size=TINY.vocab_size, max_position_embeddings=1024,
)  # fmt: skip


class _Listener:
    """Chooses tokens that were told before, and keeps the logits it was shown."""

    greedy = False

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)
        self.logits: list[Tensor] = []

    def choose(self, logits: Tensor, position: int, start: int) -> tuple[list[int], None]:
        self.logits += logits
        return [next(self._tokens) for _ in logits], None


def _material(length: int) -> tuple[list[int], FeatureLog]:
    """length + 1 committed tokens, and the target's features of all but the last."""
    generator = torch.Generator().manual_seed(5)
    tokens: list[int] = torch.randint(TINY.vocab_size, (length + 1,), generator=generator).tolist()
    target = tiny_target()
    output = target.forward(tokens[:-1], target.new_cache(length), rows=1)
    log = FeatureLog(output.features.shape[1], torch.float32, torch.device("cpu"))
    log.append(output.features)
    return tokens, log


@torch.no_grad()
def test_eagle3_drafts_what_training_time_test_predicts() -> None:
    target = tiny_target()
    config, weights = tiny_eagle3_parts(target)
    head = Eagle3(_SHAPE, taps=len(target.taps))
    head.load_state_dict(weights)
    tokens, log = _material(_LENGTH)
    draft = [7, 11, 13, 17]

    drafter = Eagle3Drafter(config, weights, target, depth=_STEPS)
    state = drafter.new_state(64)
    drafter.ingest(state, log, tokens)
    listener = _Listener(draft)
    assert drafter.propose(state, tokens, _STEPS, listener).tokens == tuple(draft)

    taps = log.rows(0, _LENGTH).view(1, _LENGTH, len(target.taps), -1)
    embedded = [target.embed(torch.tensor([tokens[1:]]))]
    embedded += [target.embed(torch.tensor([[token]])) for token in draft[:-1]]
    rows = torch.tensor([[_LENGTH - 1]])
    states = head.unroll(taps, embedded, rows)
    for shown, trained in zip(listener.logits, states, strict=True):
        logits = head.norm(trained)[0, 0] @ target.head_rows(None).T
        torch.testing.assert_close(shown, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("known", [(), (7,), (7, 11, 13)])
def test_dflash_drafts_what_training_predicts_at_that_anchor(known: tuple[int, ...]) -> None:
    """Also where the first rows are clamped to tokens that are known."""
    target = tiny_target()
    config, weights = tiny_dflash_parts(target)
    model = DFlash(_SHAPE, layers=config.num_layers, taps=len(target.taps))
    model.load_state_dict(weights)
    tokens, log = _material(_LENGTH)

    drafter = DFlashDrafter(config, weights, target)
    for anchor in (1, 12, _LENGTH):
        part = FeatureLog(log.width, torch.float32, torch.device("cpu"))
        part.append(log.rows(0, anchor))
        state = drafter.new_state(64)
        drafter.ingest(state, part, tokens[: anchor + 1])
        rest = 4 - len(known)
        listener = _Listener([0] * rest)
        proposal = drafter.propose(state, tokens[: anchor + 1], 4, listener, known)
        assert proposal.tokens == (*known, *[0] * rest)

        # training sees the whole sequence and must not look past the anchor
        taps = log.rows(0, _LENGTH).view(1, _LENGTH, len(target.taps), -1)
        block = torch.tensor([[[tokens[anchor], *known, *[config.mask_token_id] * rest]]])
        normed = model(taps, target.embed(block), torch.tensor([[anchor]]))
        logits = normed[0, 0, 1 + len(known) :] @ target.head_rows(None).T
        torch.testing.assert_close(torch.stack(listener.logits), logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_known_tokens_are_certain_in_a_sampled_draft_of_dflash() -> None:
    target = tiny_target()
    drafter = DFlashDrafter(*tiny_dflash_parts(target), target)
    tokens, log = _material(_LENGTH)
    state = drafter.new_state(64)
    drafter.ingest(state, log, tokens)
    sampler = Sampler(SamplingConfig(temperature=1.0))
    proposal = drafter.propose(state, tokens, 4, sampler, (7, 11))
    assert proposal.q is not None and proposal.q.shape == (4, TINY.vocab_size)
    assert proposal.tokens[:2] == (7, 11)
    assert proposal.q[0, 7] == proposal.q[1, 11] == 1.0
    torch.testing.assert_close(proposal.q.sum(1), torch.ones(4))
    assert drafter.propose(state, tokens, 2, sampler, (7, 11, 13)).tokens == (7, 11)
