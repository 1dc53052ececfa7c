"""``edge-export inspect``: what a checkpoint or config.json describes, and what it costs, without reading a weight."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from edge_export.arguments import chosen
from edge_export.checkpoint import read_config
from edge_export.models import make_model
from edge_export.pack import Storage
from edge_export.torch_layers import Experts
from edge_sdk.model import LayerSpec, ModelConfig
from edge_sdk.policy_spec import PolicySpec

if TYPE_CHECKING:
    import onnx_ir

app = typer.Typer()

FORMATS = {name: Storage(weights=name) for name in ("float32", "bfloat16", "int8", "int4")}
CONTEXTS = (4096, 32768, 131072)
"""Context lengths that a report names beside the model's longest, in tokens."""
PREFILL = 256
"""Tokens of the block whose activations a graph's report counts."""


class GraphReport(msgspec.Struct, frozen=True, kw_only=True):
    """A traced graph in numbers. Sizes are in bytes, of one row: ``length`` tokens fed to a context of ``context``."""

    weights: str
    operators: dict[str, int]
    """How many nodes of each kind; those of our domain as ``edge.<name>``."""
    weight_bytes: int
    state_bytes: int
    activation_bytes: int
    """Most that the values between nodes take at once, if each is freed behind its last use."""
    length: int
    context: int
    seconds: float
    """That tracing took."""

    @property
    def peak_bytes(self) -> int:
        """Memory of a step that writes its states in place; what a runtime adds for itself is not in it."""
        return self.weight_bytes + self.state_bytes + self.activation_bytes


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """A model in numbers. Sizes are in bytes, states those of one row."""

    family: str
    pattern: str
    layers: dict[str, int]
    """How many of each kind."""
    hidden: int
    vocab_size: int
    max_length: int
    parameters: int
    active_parameters: int
    """Without the experts that a token does not meet."""
    weight_bytes: dict[str, int | None]
    """By storage format; None where a width is no multiple of its block."""
    recurrent_bytes: int
    """States that do not grow with the context."""
    cache_bytes: dict[int, int]
    """Keys and values by context length, in float16."""
    settings: dict[str, dict[str, Any]]
    """What is not at its default, of the model and of each kind of layer."""
    graph: GraphReport | None = None


def stored_bytes(config: ModelConfig, storage: Storage) -> int | None:
    """Bytes of a model's weights in a storage format; None where a width is no multiple of its block."""
    with torch.device("meta"):
        model = make_model(config)
    if storage.weights == "float32":
        return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    total = 0
    leaves = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Embedding, Experts))]
    for leaf in leaves:
        bits = 16 if isinstance(leaf, nn.Embedding) or storage.weights == "bfloat16" else int(storage.weights[3:])
        if leaf is getattr(model, "lm_head", None) and storage.weights == "int4":
            bits = storage.head_bits
        for name, tensor in leaf.named_parameters():
            width = tensor.shape[-1] if isinstance(leaf, nn.Linear) else tensor.shape[-2]
            if name == "bias":
                total += tensor.nbytes
            elif bits == 16:
                total += 2 * tensor.numel()
            elif width % storage.block_size:
                return None
            else:
                total += tensor.numel() * bits // 8 + 4 * tensor.numel() // storage.block_size
    inside = {id(tensor) for leaf in leaves for tensor in leaf.parameters()}
    rest = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in inside]
    return total + sum(tensor.nbytes for tensor in rest)


def special_settings(spec: msgspec.Struct) -> dict[str, Any]:
    """The fields of a struct that have a default and another value."""
    values = {field.name: (getattr(spec, field.name), field.default) for field in msgspec.structs.fields(spec)}
    return {
        name: special_settings(value) if isinstance(value, msgspec.Struct) else value
        for name, (value, default) in values.items()
        if isinstance(value, msgspec.Struct) or (default is not msgspec.NODEFAULT and value != default)
    }


def describe_policy(spec: PolicySpec) -> dict[str, Any]:
    """What a policy sees and does, and the sizes of its encoder and decoder."""
    schema = spec.schema
    return {
        "observations": {item.name: list(item.shape) for item in schema.observations},
        "instruction": spec.instruction,
        "actions": [dim.name for dim in schema.action.dims],
        "rate_hz": schema.action.rate_hz,
        "chunk_length": schema.chunk_length,
        "head": schema.head,
        "stride": spec.stride,
        "encoder": msgspec.to_builtins(spec.encoder),
        "decoder": msgspec.to_builtins(spec.decoder),
    }


def describe(config: ModelConfig) -> ModelReport:
    """A model in numbers."""
    kinds: dict[str, list[LayerSpec]] = {}
    for spec in config.layers:
        kinds.setdefault(spec.kind, [])
        if spec not in kinds[spec.kind]:
            kinds[spec.kind].append(spec)
    of_model = special_settings(config)
    for name in ("max_length", "bos_token_id", "eos_token_ids", "pad_token_id"):
        of_model.pop(name, None)
    if config.policy is not None:
        of_model["policy"] = describe_policy(config.policy)
    settings = {"model": of_model} | {kind: special_settings(specs[0]) for kind, specs in kinds.items()}
    settings |= {kind: {"different_layers": len(specs)} | settings[kind] for kind, specs in kinds.items() if specs[1:]}
    recurrent = config.state_bytes(batch=1, capacity=0)
    contexts = sorted({*(length for length in CONTEXTS if length < config.max_length), config.max_length})
    return ModelReport(
        family=config.family,
        pattern=config.pattern,
        layers=dict(Counter(spec.kind for spec in config.layers)),
        hidden=config.hidden,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        parameters=config.parameters(),
        active_parameters=config.active_parameters(),
        weight_bytes={name: stored_bytes(config, storage) for name, storage in FORMATS.items()},
        recurrent_bytes=recurrent,
        cache_bytes={length: config.state_bytes(batch=1, capacity=length) - recurrent for length in contexts},
        settings={kind: found for kind, found in settings.items() if found},
    )


def describe_graph(config: ModelConfig, storage: Storage, length: int = PREFILL) -> GraphReport:
    """Traces the model on fake tensors and counts what its graph holds."""
    from edge_export.trace import trace

    started = time.perf_counter()
    graph = trace(config, storage.convert(), storage.describe).graph
    seconds = time.perf_counter() - started
    stored = storage.describe(config)
    sizes = {"batch": 1, "length": length, "kept": 1, "capacity": config.max_length}
    return GraphReport(
        weights=storage.label,
        operators=dict(Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in graph).most_common()),
        weight_bytes=sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value),
        state_bytes=stored.state_bytes(batch=1, capacity=config.max_length),
        activation_bytes=activation_bytes(graph, sizes),
        length=length,
        context=config.max_length,
        seconds=seconds,
    )


def activation_bytes(graph: onnx_ir.Graph, sizes: Mapping[str, int]) -> int:
    """Most bytes that a graph's values take at once, each freed behind its last use; states are not counted.

    ``sizes`` are those of the dynamic axes. Raises ValueError for a value of unknown size.
    """
    states = {value for value in graph.outputs if str(value.name).startswith("present.")}
    last_use = {value: index for index, node in enumerate(graph) for value in node.inputs if value is not None}
    live = peak = 0
    for index, node in enumerate(graph):
        made = [value for value in node.outputs if value not in states]
        live += sum(_bytes_of(value, sizes) for value in made)
        peak = max(peak, live)
        used = {value for value in node.inputs if value is not None and value.producer() is not None}
        ended = [value for value in used if last_use[value] == index and value not in states]
        live -= sum(_bytes_of(value, sizes) for value in ended)
    return peak


def _bytes_of(value: onnx_ir.Value, sizes: Mapping[str, int]) -> int:
    if value.shape is None or value.dtype is None:
        raise ValueError(f"{value.name} has no shape")
    # an axis that the tracer left without a name counts positions
    dims = [dim if isinstance(dim, int) else _product(dim.value or "length", sizes) for dim in value.shape]
    return math.ceil(math.prod(dims) * value.dtype.itemsize)


def _product(name: str, sizes: Mapping[str, int]) -> int:
    """Of an axis, or of several that are one, as ``batch*kept``."""
    return math.prod(sizes[part.strip()] for part in name.split("*"))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder, or a config.json by itself.")],
    graph: Annotated[bool, typer.Option("--graph", help="Trace it too: operators and memory of its graph.")] = False,
    weights: Annotated[str, typer.Option(help="That the graph stores: float32, bfloat16, int8 or int4.")] = "bfloat16",
    length: Annotated[int, typer.Option(min=1, help="Tokens fed at once, for the graph's memory.")] = PREFILL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a checkpoint: layers, parameters, memory and special settings. No weight is read.

    For example: edge-export inspect CHECKPOINT --graph --weights int4
    """
    storage = chosen({"weights": weights}, Storage)
    config = read_config(path)
    report = describe(config)
    if graph:
        report = msgspec.structs.replace(report, graph=describe_graph(config, storage, length))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
        return
    show(report, Console())


def show(report: ModelReport, console: Console) -> None:
    """The report as tables."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("family", report.family)
    table.add_row("layers", f"{len(report.pattern)}: " + ", ".join(f"{n} {kind}" for kind, n in report.layers.items()))
    table.add_row("pattern", report.pattern)
    table.add_row("hidden, vocabulary", f"{report.hidden}, {report.vocab_size}")
    table.add_row("parameters", f"{report.parameters:,}")
    table.add_row("active per token", f"{report.active_parameters:,}")
    for name, size in report.weight_bytes.items():
        table.add_row(f"weights in {name}", "a width is no multiple of 32" if size is None else _gigabytes(size))
    table.add_row("states of a row", _gigabytes(report.recurrent_bytes))
    for context, size in report.cache_bytes.items():
        table.add_row(f"keys and values of {context} tokens", _gigabytes(size))
    for kind, settings in report.settings.items():
        table.add_row(f"settings: {kind}", "\n".join(f"{name} = {value}" for name, value in settings.items()))
    console.print(table)
    if report.graph is not None:
        console.print(_graph_table(report.graph))


def _graph_table(graph: GraphReport) -> Table:
    table = Table(title=f"graph in {graph.weights}, traced in {graph.seconds:.1f} s", show_header=False)
    for name, count in graph.operators.items():
        table.add_row(name, f"{count}")
    table.add_section()
    table.add_row("weights", _gigabytes(graph.weight_bytes))
    table.add_row(f"states at {graph.context} tokens", _gigabytes(graph.state_bytes))
    table.add_row(f"activations of {graph.length} tokens", _gigabytes(graph.activation_bytes))
    table.add_row("peak memory", _gigabytes(graph.peak_bytes))
    return table


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3f} GB"
