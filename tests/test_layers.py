"""Norms, rotations and caches against their plain definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from whiflash_engine.cache import KVCache
from whiflash_engine.config import RopeConfig
from whiflash_engine.layers import RMSNorm, Rope, rotate

CPU = torch.device("cpu")


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e6, 1e18])
def test_rms_norm_is_its_definition(scale: float) -> None:
    x, weight, eps = _normal(5, 3, 48) * scale, _normal(48), 1e-5
    exact = x.double() / torch.sqrt(x.double().square().mean(-1, keepdim=True) + eps) * weight
    torch.testing.assert_close(RMSNorm(weight, eps)(x).double(), exact, atol=1e-6, rtol=1e-5)


def test_rms_norm_in_bfloat16_stays_there() -> None:
    x, weight = _normal(4, 48).bfloat16(), _normal(48).bfloat16()
    found = RMSNorm(weight, 1e-5)(x)
    assert found.dtype == torch.bfloat16
    exact = torch.nn.functional.rms_norm(x.float(), (48,), weight.float(), 1e-5)
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)


def test_a_rotation_turns_pairs_by_their_angle_and_leaves_other_heads_alone() -> None:
    rope = Rope(RopeConfig(), 8, torch.float32, CPU)
    x, start = _normal(3, 2, 8), 600  # past what the table begins with
    cos, sin = rope.table(start, 3)
    still = torch.ones(3, 1, 8)
    table = torch.cat((cos, still), 1), torch.cat((sin, 0 * still), 1)
    found = rotate(x, *table)
    assert torch.equal(found[:, 1], x[:, 1])
    torch.testing.assert_close(found[:, :1], rope(x[:, :1], start))
    frequencies = RopeConfig().theta ** -(torch.arange(0, 8, 2).double() / 8)
    for row in range(3):
        pairs = torch.complex(x[row, 0, :4].double(), x[row, 0, 4:].double())
        turned = pairs * torch.exp(1j * (start + row) * frequencies)
        torch.testing.assert_close(
            torch.cat((turned.real, turned.imag)), found[row, 0].double(), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_is_what_transformers_computes(truncate: bool) -> None:
    told = {
        "rope_type": "yarn", "factor": 32.0, "rope_theta": 150_000.0, "truncate": truncate,
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    wanted, scale = ROPE_INIT_FUNCTIONS["yarn"](
        LlamaConfig(head_dim=64, max_position_embeddings=131_072, rope_parameters=told), CPU
    )
    config = RopeConfig(150_000.0, "yarn", 32.0, original_max_position=4096, truncate=truncate)
    cos, sin = Rope(config, 64, torch.float64, CPU).table(1, 1)
    angles = torch.atan2(sin, cos).flatten()[32:]
    torch.testing.assert_close(angles, wanted.double(), atol=0, rtol=1e-6)
    assert cos.square().add(sin.square())[0, 0, 0] == pytest.approx(scale**2)


def test_places_are_where_write_writes() -> None:
    one, other = (KVCache(2, 3, 4, 8, torch.float32, CPU) for _ in range(2))
    for count in (2, 3):
        keys, values = _normal(count, 3, 4), -_normal(count, 3, 4)
        new, held = other.places(count)
        for layer in range(2):
            written = one.write(layer, keys + layer, values - layer)
            both = torch.cat((keys + layer, values - layer), 1)
            new[layer].copy_(both.transpose(0, 1))
            for kept, there in zip(written, held[2 * layer : 2 * layer + 2], strict=True):
                assert there.shape == (1, 3, one.length + count, 4)
                assert torch.equal(kept, there)
        one.advance(count)
        other.advance(count)
    for kept, there in zip(one.places(0)[1], other.places(0)[1], strict=True):
        assert torch.equal(kept, there)
