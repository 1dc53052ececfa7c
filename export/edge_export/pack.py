"""Checkpoint to graph folder to bundle: what ``edge-export onnx`` and ``edge-export bundle`` do.

The tracer takes more than half as long to import as torch, and is imported where something is traced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import msgspec
import onnx
from onnx import ModelProto

from edge_export.checkpoint import Checkpoint, fingerprint
from edge_export.dry_run import require_room
from edge_export.episodes import recorded_parts
from edge_export.plan import plan_digest, read_plan, require_plan_for
from edge_export.quantize import Convert, as_it_is, convert, in_bfloat16, quantized
from edge_export.torch_model import AnyModel
from edge_export.weights import Layout, Leaf, Progress, lay_out, silent, stored_leaves, write_weights
from edge_sdk.bundle import GRAPH, WEIGHTS, Bundle, required_files, write_bundle
from edge_sdk.control.policy import POLICY_FILE
from edge_sdk.deploy.acceptance import add_acceptance
from edge_sdk.deploy.record import VERSION_KEY, parse_version
from edge_sdk.errors import CheckpointError, ConfigError, explain
from edge_sdk.files import resumable_directory
from edge_sdk.model import CacheDType, ModelConfig, StateDType
from edge_sdk.speculation import DRAFT, EMBED, ROLLBACK, VISION, GraphSpec, extra_graphs
from edge_sdk.text import TEMPLATE_FILE, read_template
from edge_sdk.traffic import WeightStorage, bundle_storage

if TYPE_CHECKING:
    import onnx_ir

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
MODEL_KEY = "edge.model"
WEIGHTS_KEY = "edge.weights"
CHECKPOINT_KEY = "edge.checkpoint_sha256"


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """How a graph stores weights and states."""

    weights: WeightFormat = "float32"
    block_size: int = 32
    """Values that share a scale, in int8 and int4."""
    head_bits: Literal[4, 8] = 8
    """Of the output head, when the weights are int4."""
    cache_dtype: CacheDType = "float16"
    state_dtype: StateDType = "float32"
    speculation: bool = False
    """Whether to export what drafting tokens and taking them back needs (docs/speculation.md)."""

    @property
    def label(self) -> str:
        """The weights in a word, for the manifest."""
        blocks = f"-block{self.block_size}" if self.weights.startswith("int") else ""
        return f"{self.weights}{blocks}" + ("-head4" if self.weights == "int4" and self.head_bits == 4 else "")

    @property
    def weight_storage(self) -> WeightStorage:
        """The weights, for what counts their bytes."""
        return bundle_storage(self.weights, block_size=self.block_size, head_bits=self.head_bits)

    def convert(self) -> Convert:
        """What becomes of a model's leaves."""
        if self.weights == "bfloat16":
            return in_bfloat16
        if self.weights == "float32":
            return as_it_is
        if self.weights == "int8":
            return quantized(8, self.block_size, head_bits=8)
        return quantized(4, self.block_size, self.head_bits)

    def describe(self, config: ModelConfig) -> ModelConfig:
        """The model with its states stored so, and a drafting head only if that is exported."""
        return msgspec.structs.replace(
            config,
            cache_dtype=self.cache_dtype,
            state_dtype=self.state_dtype,
            mtp=config.mtp if self.speculation else None,
            speculation=self.speculation,
        )

    def apply(self, model: AnyModel) -> AnyModel:
        """Stores a model's weights that way, in place, and describes its states so."""
        model.config = self.describe(model.config)
        return convert(model, self.convert())


@dataclass(frozen=True)
class TracedExport:
    """A checkpoint's graphs, and where each of their weights is to stand; no weight is read yet."""

    source: Checkpoint
    stored: ModelConfig
    label: str
    leaves: dict[str, Leaf]
    graphs: dict[str, onnx_ir.Model]
    layout: Layout

    def notes(self, checkpoint: str, plan: str | None) -> dict[str, str]:
        """The graphs' metadata, from the hashes of the checkpoint and of the plan if there is one."""
        versions = f"edge-sdk {version('edge-sdk')}, torch {version('torch')}, onnx {version('onnx')}"
        return {
            MODEL_KEY: msgspec.json.encode(self.stored).decode(),
            WEIGHTS_KEY: self.label,
            CHECKPOINT_KEY: checkpoint,
            "edge.exported_with": versions,
        } | ({} if plan is None else {"edge.plan_sha256": plan})

    def files(self, notes: Mapping[str, str]) -> dict[str, ModelProto]:
        """The graphs as they are stored, by file name; their weights stand in the file WEIGHTS beside them."""
        from edge_export.rollback import rollback_graph
        from edge_export.trace import graph_proto

        self.layout.point(Path(WEIGHTS))
        graphs, extra = dict(self.graphs), extra_graphs(self.stored)
        if ROLLBACK in extra:
            graphs[ROLLBACK] = rollback_graph(graphs[GRAPH], extra[ROLLBACK])
        specs = {GRAPH: GraphSpec(self.stored.inputs(), self.stored.outputs()), **extra}
        return {name: graph_proto(graphs[name], spec, notes) for name, spec in specs.items()}


def trace_export(
    checkpoint: Path, storage: Storage, plan: Path | None = None, digest: str | None = None
) -> TracedExport:
    """The first half of :func:`export_graph`. Without the checkpoint's ``digest`` a plan may be another one's."""
    from edge_export.trace import trace, trace_draft, trace_embed, trace_vision

    source = Checkpoint(checkpoint)
    config, label = source.config, storage.label
    if storage.speculation and config.vision is not None:
        raise ConfigError(
            explain("speculation", expected="a model of text", found="one that sees", todo="Export it without.")
        )
    shapes = make = storage.convert()
    if plan is not None:
        choice = read_plan(plan)
        require_plan_for(choice, checkpoint, config, digest)
        shapes, make, label = choice.convert(None), choice.convert(plan), choice.label
    graphs = {GRAPH: trace(config, shapes, storage.describe)}
    stored = storage.describe(config)
    extra = extra_graphs(stored)
    if DRAFT in extra:
        graphs[DRAFT] = trace_draft(config, shapes, storage.describe)
    if EMBED in extra:
        graphs |= {EMBED: trace_embed(config, shapes, storage.describe), VISION: trace_vision(config)}
    leaves = stored_leaves(source, make)
    return TracedExport(source, stored, label, leaves, graphs, lay_out(list(graphs.values()), leaves))


def export_graph(
    checkpoint: Path, folder: Path, storage: Storage, progress: Progress = silent, plan: Path | None = None
) -> None:
    """Traces a checkpoint, its weights stored as ``storage`` says, into ``folder``: model.onnx and its weights.

    With ``storage.speculation`` also the graphs of ``edge_sdk.speculation``, whose weights are in the same file.

    No weight is read to trace. Then they are read, converted and written one after another: the memory needed is
    that of the largest. With ``plan``, a folder that ``edge-export quantize`` wrote, the weights are stored as it says
    and only the states as ``storage`` does. An export that was interrupted goes on where it was, if nothing it depends
    on has changed. Raises CheckpointError for a checkpoint that contradicts its config, ConfigError for a plan that is
    not this checkpoint's, and OSError early if the disk is too full.
    """
    from edge_export.trace import save_graph

    digest = fingerprint(checkpoint)
    traced = trace_export(checkpoint, storage, plan, digest)
    notes = traced.notes(digest, None if plan is None else plan_digest(plan))
    files = traced.files(notes)
    require_room(folder, traced.layout.file_bytes + sum(proto.ByteSize() for proto in files.values()))
    with resumable_directory(folder, key=json.dumps(notes, sort_keys=True)) as new:
        write_weights(traced.layout, traced.leaves, new / WEIGHTS, progress)
        for name, proto in files.items():
            save_graph(proto, new / name)
        if traced.stored.policy is not None:
            traced.stored.policy.schema.write(new / POLICY_FILE)


def make_bundle(
    checkpoint: Path,
    graph: Path,
    target: Path,
    *,
    version: str | None = None,
    acceptance: bool = False,
    observations: Path | None = None,
) -> Bundle:
    """Packs a graph folder and its checkpoint's tokenizer into a bundle.

    ``version``: what boards compare, as ``1.4.0``. ``acceptance``: runs the bundle on this machine's CPU and stores
    what it answers, which boards check before they switch to it (docs/deploy.md); that takes the model's memory.
    ``observations``: episodes of which a policy is shown some for that; without them, observations are drawn.
    Raises CheckpointError when the graph was not made from this checkpoint or the tokenizer is missing, ConfigError for
    what is no version, and OSError before anything is written if the disk has no room.
    """
    if version is not None:
        parse_version(version)
    with TemporaryDirectory() as aside:
        sources, notes = bundle_sources(checkpoint, graph, Path(aside))
        if notes.get(CHECKPOINT_KEY) != fingerprint(checkpoint):
            raise _another_graph(checkpoint, graph)
        require_room(target, sum(path.stat().st_size for path in sources.values()))
        model = msgspec.json.decode(notes.pop(MODEL_KEY), type=ModelConfig)
        weights = notes.pop(WEIGHTS_KEY)
        if version is not None:
            notes[VERSION_KEY] = version
        recorded = [] if observations is None or model.policy is None else recorded_parts(observations, model.policy)
        bundle = write_bundle(target, sources, model=model, weights=weights, provenance=notes)
    return add_acceptance(target, recorded=recorded) if acceptance else bundle


def bundle_sources(checkpoint: Path, graph: Path, aside: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """A bundle's files by their names in it, and the graph's metadata. Raises CheckpointError if one is missing.

    A chat template that the checkpoint has in another file is written to the folder ``aside``.
    """
    _require_files({GRAPH: graph / GRAPH})
    proto = onnx.load(str(graph / GRAPH), load_external_data=False)
    notes = {item.key: item.value for item in proto.metadata_props}
    if MODEL_KEY not in notes:
        raise _another_graph(checkpoint, graph)
    model = msgspec.json.decode(notes[MODEL_KEY], type=ModelConfig)
    exported = (GRAPH, WEIGHTS, POLICY_FILE, *extra_graphs(model))
    sources = {name: (graph if name in exported else checkpoint) / name for name in required_files(model)}
    if TEMPLATE_FILE in sources and not sources[TEMPLATE_FILE].exists():
        sources[TEMPLATE_FILE] = aside / TEMPLATE_FILE
        sources[TEMPLATE_FILE].write_text(read_template(checkpoint), encoding="utf-8")
    _require_files(sources)
    return sources, notes


def _another_graph(checkpoint: Path, graph: Path) -> CheckpointError:
    return CheckpointError(
        explain(
            str(graph / GRAPH),
            expected=f"a graph that this version traced from {checkpoint}",
            found="one from another checkpoint or version",
            todo="Run `edge-export onnx` again.",
        )
    )


def _require_files(sources: Mapping[str, Path]) -> None:
    for path in sources.values():
        if not path.is_file():
            raise CheckpointError(explain(str(path), expected="a file", found="none", todo="Export it first."))
