"""Tiny random LLaVA checkpoints that transformers made, and their bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import LlavaConfig, LlavaForConditionalGeneration

from edge_export.pack import Storage, export_graph, make_bundle
from edge_sdk import Bundle
from test_families import DECODER, TINY, randomise

SIDE, PATCH = 42, 14
IMAGE_TOKEN = 5
LETTERS = " abcdefghijklmnopqrstuvwxyz?.:\n"
VOCABULARY = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": IMAGE_TOKEN}
VOCABULARY |= dict(zip(LETTERS, (index for index in range(48) if index not in VOCABULARY.values())))
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    " {% endfor %}assistant: "
)


def tower(kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": f"{kind}_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        **changes,
    }


def make_checkpoint(folder: Path, kind: str = "siglip", language: str = "qwen3", **settings: Any) -> Path:
    """A random model; ``language``: a family of test_families."""
    text = TINY[language].base if language in TINY else DECODER
    defaults = {"vision_feature_select_strategy": "full" if kind == "siglip" else "default"}
    config = LlavaConfig(
        vision_config=tower(kind, **settings.pop("tower", {})),
        text_config={"model_type": language, **text, **settings.pop("text", {})},
        image_token_index=IMAGE_TOKEN,
        **defaults | settings,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, template: str = TEMPLATE) -> None:
    """Letters, and the image's token among the special ones."""
    tokenizer = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<image>", special=True), AddedToken("</s>", special=True)])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)


def make_sighted(checkpoint: Path, folder: Path, storage: Storage) -> Bundle:
    write_tokenizer(checkpoint)
    export_graph(checkpoint, folder / "onnx", storage)
    return make_bundle(checkpoint, folder / "onnx", folder / "bundle")
