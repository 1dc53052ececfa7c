"""Copies of the demo's bundle with another template or tokenizer, which tests ask for what the demo's cannot do."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models

from edge_sdk.bundle import MANIFEST

CHAT = "<s>{% for message in messages %} {{ message.content }}{% if message.role == 'user' %} =>{% endif %}{% endfor %}"
"""Every turn stays in the context, unlike in the bundle's own template, which shows the model the last one only."""

LETTERS = '{}":, \nnameorgutslf'
"""What JSON of true, false, and a call of the tool ``on`` with the parameters ``fast`` and ``name`` is written in."""

HERMES = """{# <tool_call> <think> </think> #}
{% for message in messages %}{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>{{ call.function.name }}{{ call.function.arguments.name }}</tool_call>
{% endfor %}{% endfor %}
{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}
{% if enable_thinking %}<think>{% endif %}"""
"""As short as the context asks for."""


def changed(bundle: Path, folder: Path, template: str, tokenizer: str | None = None) -> Path:
    """A copy of a bundle with another template and, if given, another tokenizer."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, text in {"chat_template.jinja": template, "tokenizer.json": tokenizer}.items():
        if text is not None:
            (folder / name).write_text(text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            manifest["files"][name] = {"sha256": digest, "bytes": len(text.encode())}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def lettered(bundle: Path, folder: Path) -> Path:
    """A copy with a tokenizer of letters and a template with tools: what it says is chance, but it can say JSON."""
    markers = {"</think>": 0, "<tool_call>": 3, "</tool_call>": 4}
    vocab = {"~": 1, "</s>": 2, **markers} | {letter: 5 + index for index, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken(marker, special=False) for marker in markers])
    tokenizer.decoder = decoders.Fuse()
    return changed(bundle, folder, HERMES, tokenizer.to_str())
