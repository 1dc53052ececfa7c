"""TensorRT engines in a bundle's ``engines/``: files that a device built, each described by a JSON file beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edge_sdk.bundle import ENGINES, GRAPH, WEIGHTS, Bundle
from edge_sdk.errors import BackendError, explain

Precision = Literal["float32", "float16", "bfloat16"]
Backend = Literal["tensorrt", "tensorrt-rtx"]
Projections = Literal["plain", "lossless", "fp8", "nvfp4"]
"""The weights of an engine's layers: in its precision, or quantised; where that loses nothing, or all of them."""

GRAPH_VERSION = 1
"""Of TensorRT's version of the graph; it rises when edge_export.tensorrt_graph makes another one of the same bundle."""

NEXT_TOKEN = "next_token"
"""The output that TensorRT's version has besides: the likeliest token of each kept position, (batch, kept) int64."""

DECODE, PREFILL = 0, 1
"""Optimisation profiles of an engine: single tokens, and blocks."""

REBUILD = "Build one with `edge-export engine`."


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest shapes that an engine takes."""

    batch: int
    prefill: int
    """Tokens of a row that are fed at once."""
    context: int
    """Positions that the caches may hold."""
    kept: int
    """Logits of a row that one call returns."""


class EngineKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an engine was made of and for: it runs where all of this is the same.

    Defaults are not written, so that engines keep their names when a field is added.
    """

    backend: Backend
    version: str
    """Of TensorRT."""
    compute_capability: str
    """Of the GPU, such as ``8.7``."""
    gpu: str
    """The GPU's name; empty where it was built without one, by TensorRT-RTX."""
    precision: Precision
    projections: Projections = "plain"
    limits: Limits
    plugins: dict[str, str]
    """Version by name of the plugins in it."""
    graph: str
    """:func:`graph_id` of its bundle."""

    @property
    def stem(self) -> str:
        """Name of its files, without the ending."""
        digest = hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:12]
        capability = self.compute_capability.replace(".", "")
        return f"{self.backend}-{self.version}-sm{capability}-{self.number_types}-{digest}"

    @property
    def number_types(self) -> str:
        """Its precision, and the projections' own where they have one: ``float16`` or ``float16-nvfp4``."""
        return self.precision if self.projections == "plain" else f"{self.precision}-{self.projections}"


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON beside an engine."""

    key: EngineKey
    board: str
    bytes: int
    built: str
    """When, in UTC."""
    build_seconds: float

    @property
    def file(self) -> str:
        """The engine's file name."""
        return f"{self.key.stem}.engine"


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has to match: the GPU, the installed TensorRTs and the plugins that they find."""

    compute_capability: str
    gpu: str
    versions: Mapping[str, str]
    """Version by backend of each TensorRT that can be imported."""
    plugins: Mapping[str, Mapping[str, str]]
    """Version by name of the plugins that each of them finds."""


def graph_id(bundle: Bundle) -> str:
    """Identifies a bundle's graph with its weights, as TensorRT gets them."""
    files = bundle.manifest.files
    text = f"{GRAPH_VERSION} {files[GRAPH].sha256} {files[WEIGHTS].sha256}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_records(bundle: Bundle) -> list[EngineRecord]:
    """The engines of a bundle, newest first; a file that is no record, or one without its engine, is no engine."""
    records = []
    for path in (bundle.path / ENGINES).glob("*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=EngineRecord)
        except (msgspec.DecodeError, OSError):
            continue
        engine = path.with_name(record.file)
        if engine.is_file() and engine.stat().st_size == record.bytes:
            records.append(record)
    return sorted(records, key=lambda record: record.built, reverse=True)


def mismatch(key: EngineKey, device: Device, graph: str) -> str | None:
    """Why an engine does not run there, or None if it should."""
    return next(_mismatches(key, device, graph), None)


def _mismatches(key: EngineKey, device: Device, graph: str) -> Iterator[str]:
    if key.graph != graph:
        yield "it was built from another graph or other weights"
    version = device.versions.get(key.backend)
    if version is None:
        yield f"Python finds no {key.backend}"
    if key.version != version:
        yield f"it needs {key.backend} {key.version}, this is {version}"
    if key.compute_capability != device.compute_capability:
        yield f"it is for compute capability {key.compute_capability}, this GPU has {device.compute_capability}"
    if key.gpu not in ("", device.gpu):
        yield f"it is for {key.gpu}, this is {device.gpu}"
    for name, wanted in key.plugins.items():
        found = device.plugins.get(key.backend, {}).get(name, "none")
        if found != wanted:
            yield f"it needs the plugin {name} version {wanted}, found {found}"


def choose_record(records: Sequence[EngineRecord], device: Device, graph: str) -> EngineRecord:
    """The newest engine that runs there. Raises BackendError, which says of every engine why it does not."""
    reasons = []
    for record in records:
        reason = mismatch(record.key, device, graph)
        if reason is None:
            return record
        reasons.append(f"{record.file} ({reason})")
    raise BackendError(
        explain("The bundle's engines", expected="one for this GPU", found="; ".join(reasons) or "none", todo=REBUILD)
    )


def engine_path(bundle: Bundle, record: EngineRecord) -> Path:
    """Where an engine lies."""
    return bundle.path / ENGINES / record.file
