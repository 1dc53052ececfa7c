"""Hybrid Mamba-2 / attention / mixture-of-experts models on robots: ``edge_sdk.load(bundle)`` and go."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sdk.answer import Completion, Stream, Token
    from edge_sdk.bundle import Bundle, write_bundle
    from edge_sdk.control.model_policy import load_policy
    from edge_sdk.language import LanguageModel, load
    from edge_sdk.model import ModelConfig
    from edge_sdk.options import Options
    from edge_sdk.session import Session

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle",
    "write_bundle": "bundle",
    "Completion": "answer",
    "LanguageModel": "language",
    "Options": "options",
    "Session": "session",
    "Stream": "answer",
    "Token": "answer",
    "load": "language",
    "load_policy": "control.model_policy",
    "ModelConfig": "model",
}

__all__ = [
    "Bundle",
    "Completion",
    "LanguageModel",
    "ModelConfig",
    "Options",
    "Session",
    "Stream",
    "Token",
    "load",
    "load_policy",
    "write_bundle",
]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, so that ``import edge_sdk`` itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edge_sdk' has no attribute {name!r}")
    return getattr(import_module(f"edge_sdk.{_HOMES[name]}"), name)
