"""The building blocks that target and drafters share: RMSNorm, RoPE, attention, SwiGLU.

All take one sequence: rows are positions, few (a draft block) or many (a prompt). In float32 on a
CPU they go through kernels of our own, where these can be compiled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from whiflash_engine.config import RopeConfig, require
from whiflash_engine.kernels.cpu import Kernels, kernels

MOST_ROWS: Final = 512
"""Of a pass through kernels of our own: as many as a piece of a prompt has."""
# Rows of a mask begin where a GPU's attention wants them; else it copies the mask in every layer.
_ALIGNED: Final = 16


class RMSNorm:
    """x w / sqrt(mean(x^2) + eps) over the last axis (arXiv 1910.07467).

    Where torch computes it in float32 on a CPU, as x (w sqrt(H)) / hypot(|x|, sqrt(H eps)): the
    same in four operators instead of nine.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps, size = weight, eps, weight.shape[0]
        self._lean = weight.device.type == "cpu" and weight.dtype == torch.float32
        self._scaled = weight * math.sqrt(size)
        self._floor = weight.new_tensor(math.sqrt(size * eps))

    def __call__(self, x: Tensor) -> Tensor:
        own = own_kernels(x, self.weight.shape[0] % 8 == 0 and self._lean)
        if own is not None:
            return own.rms_norm(x, self.weight, self.eps)
        if not self._lean:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        length = torch.linalg.vector_norm(x, 2, -1, keepdim=True)
        return x.div(length.hypot_(self._floor)).mul_(self._scaled)


def swiglu(gate_up: Tensor) -> Tensor:
    """(n, 2 * inner), gate first -> (n, inner)."""
    own = own_kernels(gate_up, gate_up.shape[1] % 16 == 0)
    if own is not None:
        return own.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class Rope:
    """Rotary embedding, half-rotation layout, on a table that grows with use.

    Drafters are often published with a smaller `max_position_embeddings` than they are
    run at, so the table knows no upper limit.
    """

    def __init__(
        self, config: RopeConfig, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._frequencies, self._scale = _frequencies(config, head_dim)
        self._dtype, self._device = dtype, device
        self._tables = self._made(512)

    def _made(self, length: int) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(length, dtype=torch.float64), self._frequencies)
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        # the sign of rotate_half is folded into the table: (-x2, x1) * sin
        both = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return both[0].to(self._device, self._dtype), both[1].to(self._device, self._dtype)

    def table(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """cos and sin of `count` positions from `start` on, for `rotate`: (count, 1, head_dim)."""
        end, (cos, sin) = start + count, self._tables
        if end > len(cos):
            cos, sin = self._tables = self._made(max(end, 2 * len(cos)))  # both at once: threads
        return cos[start:end, None], sin[start:end, None]

    def __call__(self, x: Tensor, start: int) -> Tensor:
        """x: (n, heads, head_dim) at positions start..start+n-1 -> rotated, same shape."""
        return rotate(x, *self.table(start, x.shape[0]))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (n, heads, head_dim); cos and sin: of `Rope.table`. -> (n, heads, head_dim)."""
    n, heads, width = x.shape
    own = own_kernels(x, width % 16 == 0)
    if own is not None:
        return own.rotate(x, cos, sin)
    swapped = x.view(n, heads, 2, width // 2).flip(2).view(n, heads, width)
    return torch.addcmul(x * cos, swapped, sin)


def _frequencies(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies (head_dim / 2,) and the factor on cos and sin."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    inverse = config.theta**-exponents
    if config.kind == "linear":
        return inverse / config.factor, 1.0
    if config.kind == "llama3":  # Llama 3.1: long wavelengths are stretched, short ones kept
        wavelength = 2 * math.pi / inverse
        low = config.original_max_position / config.low_freq_factor
        high = config.original_max_position / config.high_freq_factor
        smooth = (config.original_max_position / wavelength - config.low_freq_factor) / (
            config.high_freq_factor - config.low_freq_factor
        )
        between = (1 - smooth) * inverse / config.factor + smooth * inverse
        inverse = torch.where(wavelength > low, inverse / config.factor, inverse)
        return torch.where((wavelength <= low) & (wavelength >= high), between, inverse), 1.0
    if config.kind == "yarn":  # arXiv 2309.00071, section 3
        return _yarn(config, head_dim, inverse)
    require(config.kind == "default", "rope_type", config.kind, "is not supported")
    return inverse, 1.0


def _yarn(config: RopeConfig, head_dim: int, inverse: Tensor) -> tuple[Tensor, float]:
    def dimension(rotations: float) -> float:
        period = config.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(period) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    steps = torch.arange(head_dim // 2, dtype=torch.float64)
    stretched = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
    scale = config.attention_factor or 0.1 * math.log(config.factor) + 1.0
    return inverse / config.factor * stretched + inverse * (1 - stretched), scale


@dataclass(slots=True)
class Sight:
    """Which keys the rows of one pass see; the rows are the last of the keys' positions.

    causal: a row sees no later key. window: it sees that many keys back, itself included.
    """

    causal: bool = True
    window: int | None = None
    # made once, as the layers of a pass are alike; for (rows, keys, group)
    _made: tuple[tuple[int, int, int], Tensor] | None = field(default=None, init=False)

    def mask(self, rows: int, keys: int, group: int, like: Tensor) -> Tensor | None:
        """(group * rows, keys) additive, or None when nothing would be masked. like: gives dtype
        and device, the same for one Sight."""
        if (rows == 1 or not self.causal) and (self.window is None or self.window >= keys):
            return None
        if self._made is None or self._made[0] != (rows, keys, group):
            own = torch.arange(keys - rows, keys, device=like.device)[:, None]
            other = torch.arange(keys, device=like.device)[None]
            hidden = other > own if self.causal else torch.zeros_like(other > own)
            if self.window is not None:
                hidden |= other <= own - self.window
            room = -(-keys // _ALIGNED) * _ALIGNED if like.device.type == "cuda" else keys
            mask = torch.zeros(group * rows, room, dtype=like.dtype, device=like.device)[:, :keys]
            mask.view(group, rows, keys).masked_fill_(hidden, -math.inf)
            self._made = (rows, keys, group), mask
        return self._made[1]

    def mask_at(self, places: Tensor, keys: int, group: int, like: Tensor) -> Tensor:
        """The same for rows at `places`, (n,) one after the other, which only the device knows;
        none sees a key behind the last of them."""
        own, other = places[:, None], torch.arange(keys, device=like.device)[None]
        hidden = other > (own if self.causal else own[-1:]).expand_as(own)
        if self.window is not None:
            hidden |= other <= own - self.window
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        return mask.masked_fill_(hidden, -math.inf).repeat(group, 1)


def attention(q: Tensor, keys: Tensor, values: Tensor, sight: Sight) -> Tensor:
    """Grouped-query attention of one sequence.

    q: (n, heads, head_dim); keys, values: (1, kv_heads, length, head_dim).
    -> (n, heads * head_dim).

    The query heads of one group become extra rows of their key head: no key is repeated,
    and it is three times as fast on a CPU as the operator's own grouping.
    """
    n, heads, head_dim = q.shape
    own = own_kernels(q, head_dim % 16 == 0)
    if own is not None:
        return own.attention(q, keys, values, causal=sight.causal, window=sight.window)
    return masked_attention(
        q, keys, values, sight.mask(n, keys.shape[2], heads // keys.shape[1], q)
    )


def masked_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """`attention` where a mask says what is seen: (heads / kv_heads * n, length), as `Sight` has
    it."""
    n, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    grouped = q.transpose(0, 1).reshape(1, kv_heads, heads // kv_heads * n, head_dim)
    if q.device.type == "cuda":
        out = _attention_of_gpu(grouped, keys, values, mask)
    else:
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    return out.reshape(heads, n, head_dim).transpose(0, 1).reshape(n, heads * head_dim)


def _attention_of_gpu(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """By the same kernel with a mask and without, so that a row is rounded alike in passes of all
    widths. Left to choose, torch may take cuDNN's, which plans anew for every number of keys."""
    if mask is not None:
        mask = mask.expand(1, q.shape[1], -1, -1)
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = kernel(q, keys, values, mask, False)[0]
    return out


def own_kernels(x: Tensor, fits: bool) -> Kernels | None:
    """The kernels, if they are for this. fits: whether the sizes are such as they take."""
    if not fits or x.shape[0] > MOST_ROWS or x.dtype != torch.float32 or x.device.type != "cpu":
        return None
    return kernels()
