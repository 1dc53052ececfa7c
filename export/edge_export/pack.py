"""Checkpoint to graph folder to bundle: what ``edge-export onnx`` and ``edge-export bundle`` do."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Literal

import onnx

from edge_export.checkpoint import load_model, read_config
from edge_export.quantize import quantize
from edge_export.trace import save, trace
from edge_sdk.bundle import GRAPH, WEIGHTS, Bundle, write_bundle
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.files import new_directory, sha256
from edge_sdk.text import TEMPLATE_FILE, TOKENIZER_FILE

WeightFormat = Literal["float32", "int4"]
WEIGHTS_KEY = "edge.weights"
CHECKPOINT_KEY = "edge.checkpoint_sha256"


def export_graph(checkpoint: Path, folder: Path, *, weights: WeightFormat, block_size: int = 32) -> None:
    """Traces a checkpoint, quantised if ``weights`` says so, into ``folder``: model.onnx and its external data."""
    model = load_model(checkpoint)
    label: str = weights
    if weights == "int4":
        quantize(model, bits=4, block_size=block_size)
        label = f"int4-block{block_size}"
    proto = trace(model)
    notes = {
        WEIGHTS_KEY: label,
        CHECKPOINT_KEY: _fingerprint(checkpoint),
        "edge.exported_with": f"edge-sdk {version('edge-sdk')}, torch {version('torch')}, onnx {version('onnx')}",
    }
    onnx.helper.set_model_props(proto, notes)
    with new_directory(folder) as new:
        save(proto, new / GRAPH, WEIGHTS)


def make_bundle(checkpoint: Path, graph: Path, target: Path) -> Bundle:
    """Packs a graph folder and its checkpoint's tokenizer into a bundle.

    Raises CheckpointError when the graph was not made from this checkpoint or the tokenizer is missing.
    """
    sources = {name: graph / name for name in (GRAPH, WEIGHTS)}
    sources |= {name: checkpoint / name for name in (TOKENIZER_FILE, TEMPLATE_FILE)}
    for path in sources.values():
        if not path.is_file():
            raise CheckpointError(explain(str(path), expected="a file", found="none", todo="Export it first."))
    proto = onnx.load(str(graph / GRAPH), load_external_data=False)
    notes = {item.key: item.value for item in proto.metadata_props}
    if notes.get(CHECKPOINT_KEY) != _fingerprint(checkpoint):
        raise CheckpointError(
            explain(
                str(graph / GRAPH),
                expected=f"a graph traced from {checkpoint}",
                found="one from another checkpoint",
                todo="Run `edge-export onnx` again.",
            )
        )
    weights = notes.pop(WEIGHTS_KEY)
    return write_bundle(target, sources, model=read_config(checkpoint), weights=weights, provenance=notes)


def _fingerprint(checkpoint: Path) -> str:
    """Hash of the config and all weight files."""
    parts = [checkpoint / "config.json", *sorted(checkpoint.glob("*.safetensors"))]
    return "+".join(sha256(part)[:16] for part in parts)
