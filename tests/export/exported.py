"""Tiny checkpoints as bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_export.checkpoint import save_model
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.torch_model import HybridLM
from edge_sdk import Bundle
from places import TEACHER

TinyBundle = Callable[[str, Storage], Bundle]
"""A variant of tiny.py and how it is stored, to its bundle."""


def bundle_of(model: HybridLM, storage: Storage, folder: Path) -> Bundle:
    """A model's bundle, and beside it the checkpoint and the graph that it was made of."""
    save_model(model, folder / "checkpoint")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / "checkpoint" / name).write_bytes((TEACHER / name).read_bytes())
    export_graph(folder / "checkpoint", folder / "onnx", storage)
    return make_bundle(folder / "checkpoint", folder / "onnx", folder / "bundle")
