"""Tiny GGUF files with a byte-level tokenizer, written from random `transformers` models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

SIZES = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
_MODELS: dict[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM,
}  # fmt: skip
_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def toy_model(kind: str, **extra: object) -> PreTrainedModel:
    """A random llama, qwen2 or qwen3 in float32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, rms_norm_eps=1e-5, **extra)
    model = _MODELS[kind](config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms of one and biases of zero hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.train(False)
    return model


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    quantised: GGMLQuantizationType = GGMLQuantizationType.F32,
    rope_freqs: Tensor | None = None,
    architecture: str | None = None,
    without: str = "",
) -> Path:
    """Write the model as llama.cpp's converter would; `without` leaves one tensor out."""
    kind = str(model.config.model_type)
    writer = GGUFWriter(path, architecture or kind)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, "qwen2" if kind != "llama" else "smollm")
    tensors = {_name(name): value for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["output.weight"]
    if rope_freqs is not None:
        tensors["rope_freqs.weight"] = rope_freqs
    for name, value in tensors.items():
        if name == without:
            continue
        if kind == "llama" and name.split(".")[-2] in ("attn_q", "attn_k"):
            value = _interleaved(value, name)
        data = value.float().numpy()
        if data.ndim == 1 or quantised == GGMLQuantizationType.F32:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, quantize(data, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    top = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
           "model.norm.weight": "output_norm.weight"}  # fmt: skip
    if name in top:
        return top[name]
    _, _, index, *middle, kind = name.split(".")
    return f"blk.{index}.{_NAMES['.'.join(middle)]}.{kind}"


def _interleaved(value: Tensor, name: str) -> Tensor:
    """The order of llama.cpp's converter: the halves of each rotated pair side by side."""
    heads = SIZES["num_attention_heads" if "attn_q" in name else "num_key_value_heads"]
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape).contiguous()


def _add_tokenizer(writer: GGUFWriter, pre: str) -> None:
    tokens = ["<|im_start|>", "<|im_end|>", *_byte_characters(), "he", "ll", "hell", "hello", "Ġw"]
    tokens += ["or"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["h e", "l l", "he ll", "hell o", "Ġ w", "o r"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def random_lora(model: PreTrainedModel, rank: int) -> dict[str, Tensor]:
    """PEFT-named pairs for every projection of the toy model."""
    generator = torch.Generator().manual_seed(3)
    pairs: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("_proj.weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            out, into = value.shape
            pairs[f"{stem}.lora_A.weight"] = torch.randn(rank, into, generator=generator)
            pairs[f"{stem}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return pairs


def write_adapter(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether the largest difference is below `tolerance` of the largest entry."""
    return float(np.abs((a - b).numpy()).max()) <= tolerance * float(b.abs().max())
