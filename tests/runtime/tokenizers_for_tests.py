"""Small tokenizers of every kind that checkpoints bring, trained on this repository's own text."""

from __future__ import annotations

import json
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from places import ROOT, TEACHER

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
ENDS = (2, 3)


def _text() -> list[str]:
    files = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "edge_sdk").glob("*.py"))]
    return [path.read_text(encoding="utf-8") for path in files] + ['{"a": "b", "c": [1, 2.5], "d": null}'] * 50


@lru_cache
def byte_level(vocabulary: int = 2000, markers_special: bool = True) -> Tokenizer:
    """As GPT-2's, Qwen's and Nemotron's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIALS[:4],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(), trainer)
    tokenizer.add_tokens([AddedToken(marker, special=markers_special, normalized=False) for marker in SPECIALS[4:]])
    return tokenizer


@lru_cache
def sentencepiece(vocabulary: int = 1500) -> Tokenizer:
    """As Llama 2's: spaces as U+2581, other bytes as ``<0xNN>``, the text's first space not written."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIALS[:4],
        initial_alphabet=[chr(code) for code in range(0x20, 0x7F)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(), trainer)
    description = json.loads(tokenizer.to_str())
    words = description["model"]["vocab"]
    words |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    return Tokenizer.from_str(json.dumps(description))


@lru_cache
def unigram(vocabulary: int = 800) -> Tokenizer:
    """As T5's: SentencePiece without byte tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=SPECIALS[:4], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_text(), trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT's, whose decoder rewrites the text."""
    words = ["[UNK]", "</s>", "walk", "##ing", ",", "do", "n't", "run"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def scan() -> Tokenizer:
    """The demo's: whole words, decoded with spaces between them."""
    return Tokenizer.from_file(str(TEACHER / "tokenizer.json"))
