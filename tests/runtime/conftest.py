"""A bundle whose model sees whole conversations."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import edge_sdk
from edge_sdk import LanguageModel
from edge_sdk.bundle import MANIFEST

CHAT = "<s>{% for message in messages %} {{ message.content }}{% if message.role == 'user' %} =>{% endif %}{% endfor %}"
"""Every turn stays in the context, unlike in the bundle's own template, which shows the model the last one only."""


@pytest.fixture(scope="session")
def chat_bundle(scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a template that shows the whole conversation."""
    folder = Path(shutil.copytree(scan_bundle, tmp_path_factory.mktemp("chat") / "bundle"))
    (folder / "chat_template.jinja").write_text(CHAT)
    manifest = json.loads((folder / MANIFEST).read_text())
    digest = hashlib.sha256(CHAT.encode()).hexdigest()
    manifest["files"]["chat_template.jinja"] = {"sha256": digest, "bytes": len(CHAT)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def chat_model(chat_bundle: Path) -> LanguageModel:
    """It, without a memory of earlier prompts."""
    return edge_sdk.load(chat_bundle, threads=1, prefix_cache_bytes=0)
