"""Small T5 models of random weights, saved as the published ones are."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import T5Config, T5ForConditionalGeneration, T5TokenizerFast

_WORDS = ["put", "the", "pot", "on", "blue", "cloth", "move", "sushi", "car", "road", "in", "to"]


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of T5's kind (a unigram model that marks beginnings of words)."""
    letters = [(chr(c), -12.0) for c in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    pieces += [(f"▁{word}", -5.0) for word in _WORDS] + letters
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)
    fast.save_pretrained(folder)
    # Published T5 models have none: transformers takes the kind from config.json.
    (folder / "tokenizer_config.json").unlink()


def write_t5(
    folder: Path, width: int = 64, decoder_layers: int = 2, d_ff: int = 128, safe: bool = False
) -> Path:
    """Encoder and decoder, as ``pytorch_model.bin`` or, if ``safe``, as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = T5Config(
        vocab_size=128,
        d_model=width,
        d_kv=16,
        d_ff=d_ff,
        num_layers=2,
        num_decoder_layers=decoder_layers,
        num_heads=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        T5ForConditionalGeneration(config).save_pretrained(folder, safe_serialization=safe)
    write_tokenizer(folder)
    return folder
