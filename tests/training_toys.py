"""Toy material for the training tests: a random Llama, a byte tokenizer, a data folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from whiflash_engine.training.corpus import Corpus
from whiflash_engine.training.drafter_parts import DrafterShape
from whiflash_engine.training.drafter_run import Material
from whiflash_engine.training.generate import BatchGenerator, Job
from whiflash_engine.training.llama import Llama, load_llama, trainable_config
from whiflash_engine.training.model_files import fingerprint, write_json, write_tensors
from whiflash_engine.training.vocab import choose_vocab

TEMPLATE = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{%- for c in m.tool_calls or [] -%}"
    '<tool_call>\n{"name": {{ c.function.name | tojson }}, "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{%- endfor -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
TAPS = (1, 2, 3)
SCHEMA = {
    "type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"],
    "additionalProperties": False, "x-guidance": {"whitespace_flexible": False},
}  # fmt: skip


def toy_model(folder: Path, *, vocab: int = 61, seed: int = 0, layers: int = 4) -> Path:
    """A random model whose greedy continuations are not constant."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 256, "tie_word_embeddings": True,
    }  # fmt: skip
    write_json(folder / "config.json", values)
    model = Llama(trainable_config(folder))
    tensors = {
        f"model.{name}": torch.ones_like(p)
        if p.ndim == 1
        else torch.randn(p.shape, generator=generator) * 0.3
        for name, p in model.named_parameters()
    }
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def toy_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer without merges; returns the size of its vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {text: index for index, text in enumerate(special + alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>",
        unk_token="<|endoftext|>", pad_token="<|im_end|>", chat_template=TEMPLATE,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(vocab)


def toy_data(folder: Path) -> Path:
    """A data folder with a few rows of every kind, in train and dev."""
    tool = {
        "type": "function",
        "function": {
            "name": "add", "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }  # fmt: skip
    ids = []
    for split in ("train", "dev"):
        for source, kind in (
            ("bfcl", "tool"), ("seal_tools", "tool"), ("forms", "json"),
            ("sums", "reason"), ("talk", "chat"),
        ):  # fmt: skip
            lines: list[dict[str, object]] = []
            for number in range(4):
                ids.append(f"{source}-{split}{number}")
                lines.append({
                    "id": ids[-1], "kind": kind, "source": source,
                    "schema": SCHEMA if kind == "json" else None,
                    "messages": [{"role": "user", "content": f"{source} {number}?"}],
                    "tools": [tool] if kind == "tool" else None,
                })  # fmt: skip
            write_lines(folder / split / f"{source}.jsonl.gz", lines)
    (folder / "mixes").mkdir()
    for split in ("train", "dev"):
        chosen = [identity for identity in ids if f"-{split}" in identity]
        (folder / "mixes" / f"{split}_mix.ids").write_text("\n".join(chosen) + "\n")
    return folder


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for line in lines:
            stream.write(json.dumps(line) + "\n")


def toy_corpus(folder: Path, model_folder: Path, *, rows: int = 12, length: int = 24) -> Path:
    """A corpus of greedy continuations of random prompts, in float16 features."""
    model = load_llama(model_folder, torch.float32)
    generator = torch.Generator().manual_seed(3)
    for split in ("train", "dev"):
        jobs = [
            Job(
                f"{split}{i}",
                tuple(torch.randint(0, 61, (5 + i % 4,), generator=generator).tolist()),
                length,
            )
            for i in range(rows)
        ]
        batch = BatchGenerator(
            model, slots=4, length=64, stop_ids=frozenset(), seed=0, taps=TAPS
        )  # fmt: skip
        answers = {answer.job.key: answer for answer in batch.run(jobs, refill=2)}
        (folder / split).mkdir(parents=True)
        features = []
        with (folder / split / "rows-000.jsonl").open("w") as stream:
            for index, job in enumerate(jobs):
                answer = answers[job.key]
                assert answer.features is not None
                features.append(answer.features)
                row = {
                    "id": job.key, "kind": ("tool", "chat")[index % 2], "source": "toy",
                    "temperature": 0.0, "prompt": job.prompt, "response": answer.tokens,
                }  # fmt: skip
                stream.write(json.dumps(row) + "\n")
        import numpy as np

        np.save(folder / split / "features-000.npy", torch.cat(features).numpy())
    write_json(folder / "manifest.json", {"target": fingerprint(model_folder), "taps": list(TAPS)})
    return folder


def toy_material(root: Path) -> Material:
    """Everything frozen that a drafter's trainer needs, in float32, full draft vocabulary
    but for one token (so that the reduced-vocabulary path is taken)."""
    model_folder = toy_model(root / "model")
    corpus = toy_corpus(root / "corpus", model_folder)
    train, dev = Corpus(corpus, "train"), Corpus(corpus, "dev")
    train.require_target(model_folder)
    target = load_llama(model_folder, torch.float32)
    written, seen = train.token_counts()
    vocab = choose_vocab(written, seen, {0}, size=60, vocab_size=61)
    return Material(
        target=target, train=train, dev=dev, vocab=vocab,
        coverage=vocab.coverage(dev.samples),
        shape=DrafterShape(
            hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, rms_norm_eps=1e-5, rope_theta=10000.0, vocab_size=61,
            draft_vocab_size=60, max_position_embeddings=256,
        ),
        head=target.head_weight[vocab.ids], dtype=torch.float32,
    )  # fmt: skip
