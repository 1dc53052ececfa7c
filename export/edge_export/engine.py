"""Bundle to TensorRT engine: what ``edge-export engine`` does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec
from rich.table import Table

from edge_export.boards import HERE, check_is_here, find_board, formats_for
from edge_export.dry_run import Estimate, require_room, show_estimate
from edge_export.tensorrt_builder import EngineBuilder, profile_ranges
from edge_export.tensorrt_graph import ACTIVATIONS, Summary, write_tensorrt_graph
from edge_export.terminal import console
from edge_sdk.backends.trt_module import import_tensorrt, installed_library, load_plugins
from edge_sdk.boards import Board
from edge_sdk.bundle import ENGINES, GRAPH, WEIGHTS, Bundle
from edge_sdk.engine_files import (
    Backend,
    EngineKey,
    EngineRecord,
    Limits,
    Precision,
    Projections,
    engine_path,
    graph_id,
)
from edge_sdk.errors import BackendError, explain
from edge_sdk.files import new_file

KEPT = 32
"""Most logits of a row that one call returns, since memory for (batch, kept, vocab) float32 is set aside."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    board: str = HERE
    precision: Precision = "float16"
    projections: Projections = "plain"
    batch: int = 1
    max_prefill: int = 512
    max_context: int = 4096
    backend: Backend = "tensorrt"
    qlinear: Literal["plugin", "tensorrt"] = "plugin"
    plugins: str = "auto"
    """``auto`` is the installed library, ``none`` the operators' function bodies; or a path."""

    @property
    def claimed(self) -> frozenset[str]:
        """The operators whose nodes plugins compute."""
        if self.plugins == "none":
            return frozenset()
        return frozenset(ACTIVATIONS) - (frozenset() if self.qlinear == "plugin" else {"QLinear"})

    def library(self) -> Path | None:
        """The plugin library, None for none. Raises BackendError where there is none but should be."""
        if self.plugins == "none":
            return None
        return installed_library() if self.plugins == "auto" else Path(self.plugins).resolve()

    def limits(self, bundle: Bundle) -> Limits:
        """The largest shapes; no context is longer than the model's, no block longer than the context."""
        context = min(self.max_context, bundle.manifest.model.max_length)
        prefill = min(self.max_prefill, context)
        return Limits(batch=self.batch, prefill=prefill, context=context, kept=min(KEPT, prefill))


def make_engine(path: Path, request: EngineRequest, *, dry_run: bool = False) -> EngineRecord | None:
    """Builds an engine from the bundle at ``path`` into its ``engines/``, and says so; a dry run writes nothing.

    The engine and the JSON beside it appear whole or not at all. Raises BackendError or ConfigError where TensorRT, the
    plugin library, the GPU or the room on the disk is missing, or where TensorRT refuses the graph.
    """
    bundle = Bundle.open(path)
    model = bundle.manifest.model
    if model.vision is not None:
        todo = "It runs on ONNX Runtime only."
        raise BackendError(
            explain(str(path), expected="a model of text, or a policy", found="one that sees", todo=todo)
        )
    board = find_board(request.board, request.backend)
    formats, lossless = formats_for(board, request.projections), request.projections == "lossless"
    folder, weights = bundle.path / ENGINES, bundle.manifest.files[WEIGHTS].bytes
    if dry_run:
        summary = write_tensorrt_graph(bundle.path, None, request.precision, request.claimed, formats, lossless)
        _describe(bundle, board, request, summary)
        show_estimate(_estimate(weights, summary), folder)
        return None
    with _room_on_disk(folder):
        require_room(folder, weights)
        folder.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".building-") as temporary:
            graph = Path(temporary)
            summary = write_tensorrt_graph(bundle.path, graph, request.precision, request.claimed, formats, lossless)
            _describe(bundle, board, request, summary)
            record = _build(bundle, board, request, graph / GRAPH, summary)
    console.print(f"{engine_path(bundle, record)}: {record.bytes:,} bytes in {record.build_seconds:.1f} s")
    return record


def _estimate(weights: int, summary: Summary) -> Estimate:
    """Of a build: the engine is about as large as the bundle's weights or smaller, converted ones lie beside it."""
    return Estimate(
        read_bytes=weights,
        write_bytes=weights + summary.converted_bytes,
        memory_bytes=weights + summary.converted_bytes,
        seconds=None,
        largest="the weights; what TensorRT itself needs is not known",
        time_from="nothing: TensorRT's search depends on the GPU",
    )


def _build(bundle: Bundle, board: Board, request: EngineRequest, graph: Path, summary: Summary) -> EngineRecord:
    started = time.perf_counter()
    if request.backend == "tensorrt":
        board = check_is_here(board)
    trt = import_tensorrt(request.backend)
    versions = load_plugins(trt, request.library())
    key = EngineKey(
        backend=request.backend,
        version=trt.__version__,
        compute_capability=board.compute_capability,
        gpu=board.gpu if request.backend == "tensorrt" else "",
        precision=request.precision,
        projections=request.projections,
        limits=request.limits(bundle),
        plugins={name: _version(versions, name) for name in summary.plugins},
        graph=graph_id(bundle),
    )
    builder = EngineBuilder(trt, key.backend, key.compute_capability)
    builder.parse(graph)
    builder.add_profiles(bundle.manifest.model, key.limits)
    engine = builder.build() if key.backend == "tensorrt-rtx" else _build_timed(builder, bundle, key)
    return _write(bundle, key, board.name, engine, time.perf_counter() - started)


def _build_timed(builder: EngineBuilder, bundle: Bundle, key: EngineKey) -> Any:
    """Builds with the timings of earlier builds and keeps those of this one. TensorRT-RTX measures nothing."""
    timings = bundle.path / ENGINES / f"timing-{key.version}-sm{key.compute_capability.replace('.', '')}.cache"
    builder.use_timing_cache(timings.read_bytes() if timings.exists() else b"")
    engine = builder.build()
    with new_file(timings) as temporary:
        temporary.write_bytes(builder.timing_cache())
    return engine


def _version(versions: dict[str, str], name: str) -> str:
    if name not in versions:
        raise BackendError(
            explain(
                "The plugin library",
                expected=f"a plugin {name}",
                found=", ".join(sorted(versions)) or "none",
                todo="Compile the library of this version (docs/tensorrt.md), or use --plugins none.",
            )
        )
    return versions[name]


def _write(bundle: Bundle, key: EngineKey, board: str, engine: Any, seconds: float) -> EngineRecord:
    """Writes the engine, then the JSON: whoever finds the JSON finds the engine."""
    content = memoryview(engine)
    record = EngineRecord(
        key=key,
        board=board,
        bytes=content.nbytes,
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(seconds, 1),
    )
    target = engine_path(bundle, record)
    with new_file(target) as temporary:
        temporary.write_bytes(content)
    with new_file(target.with_suffix(".json")) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return record


@contextmanager
def _room_on_disk(folder: Path) -> Iterator[None]:
    """Turns what the file system refuses, such as a full disk, into a BackendError; what was begun is removed."""
    try:
        yield
    except OSError as error:
        raise BackendError(
            explain(
                f"Writing into {folder}",
                expected="room for the engine, and for the weights that are converted",
                found=f"{error.strerror} ({error.filename})" if error.filename else error.strerror,
                todo="Free space there, or copy the bundle to where there is some.",
            )
        ) from error


def _describe(bundle: Bundle, board: Board, request: EngineRequest, summary: Summary) -> None:
    """One table of what is built."""
    model, limits = bundle.manifest.model, request.limits(bundle)
    states = model.state_bytes(limits.batch, limits.context)
    table = Table(show_header=False)
    for name, value in {
        "bundle": f"{bundle.path}: {bundle.manifest.weights}, layers {model.pattern}",
        "for": f"{board.name}, compute capability {board.compute_capability}, by {request.backend}",
        "precision": f"{request.precision}, {summary.casts} casts",
        "projections": _quantized(request, summary),
        "plugins": _counted(summary.plugins),
        "standard operators": _counted(summary.bodies),
        **{
            name: ", ".join(f"{axis} {sizes[0]} to {sizes[2]}" for axis, sizes in ranges.items())
            for name, ranges in zip(("decode", "prefill"), profile_ranges(limits))
        },
        "weights": f"{bundle.total_bytes():,} bytes in the bundle",
        "states": f"{states:,} bytes for {limits.batch} x {limits.context} positions, of {board.memory_bytes:,} in all",
    }.items():
        table.add_row(name, value)
    console.print(table)


def _quantized(request: EngineRequest, summary: Summary) -> str:
    if request.projections == "plain":
        return f"float ones in {request.precision}"
    made = ", ".join(f"{count} in {kind}" for kind, count in summary.projections.items()) or "none quantised"
    return f"{made}; {summary.kept} of them without loss"


def _counted(nodes: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in nodes.items()) or "none"
