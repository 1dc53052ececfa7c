"""A bundle whose model sees whole conversations."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge_sdk
from bundles import CHAT, changed, lettered
from edge_sdk import LanguageModel


@pytest.fixture(scope="session")
def chat_bundle(scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a template that shows the whole conversation."""
    return changed(scan_bundle, tmp_path_factory.mktemp("chat") / "bundle", CHAT)


@pytest.fixture
def chat_model(chat_bundle: Path) -> LanguageModel:
    """It, without a memory of earlier prompts."""
    return edge_sdk.load(chat_bundle, threads=1, prefix_cache_bytes=0)


@pytest.fixture(scope="session")
def json_bundle(scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a tokenizer of letters."""
    return lettered(scan_bundle, tmp_path_factory.mktemp("json") / "bundle")
