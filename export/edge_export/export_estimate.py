"""What importing, exporting and packing a checkpoint will take, before a weight is read.

Bytes are exact, but for the few thousand of JSON that go with them. Memory is what this process holds by now, torch
and the traced graph included, and on top of it the largest of the parts that are read, converted and written one after
another. Time is what hashing and converting take at the speed of this processor, measured on a small matrix, plus
reading and writing at an assumed speed of the disk.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from edge_export.checkpoint import Checkpoint, TensorFiles, hashed_files
from edge_export.dry_run import DISK_BYTES_PER_SECOND, Estimate
from edge_export.importing import Dtype, shards_of, stored_bytes
from edge_export.pack import Storage, TracedExport, bundle_sources, trace_export
from edge_export.prequantized import DECODE_BYTES, NVFP4_BLOCK, decode_fp8, decode_nvfp4
from edge_export.quantize import CHUNK_NUMBERS, Bfloat16Linear, QuantLinear
from edge_export.weights import Place, leaf_of
from edge_sdk.telemetry import read_memory

PROBE_WIDTH = 2048
"""Of the square matrix that conversions are timed on."""

PROBE_BYTES = 1 << 24

CHUNK_COPIES = 5
"""Float32 copies of a chunk that quantising it makes, at the most."""

PACKING_COPIES = 5
"""Of the packed bytes of an int4 weight that are in memory besides them while they are packed: its values, one byte
each, as signed and unsigned integers, and half of that again."""


def estimate_import(source: Path, dtype: Dtype) -> Estimate:
    """Of :func:`edge_export.importing.import_checkpoint`."""
    files = Checkpoint(source).files
    shards = [sum(stored_bytes(files, name, dtype) for name in shard) for shard in shards_of(files, dtype)]
    read = sum(files.stored_bytes(name) for name in files)
    hashed = _hashed_bytes(source)
    work = max(_decode_memory(files, name) for name in files)
    seconds = hashed / hash_speed() + _decode_seconds(files) + (hashed + read + sum(shards)) / DISK_BYTES_PER_SECOND
    return Estimate(
        read_bytes=hashed + read,
        write_bytes=sum(shards),
        memory_bytes=read_memory().resident_bytes + 2 * max(shards) + work,  # safetensors copies what it writes
        seconds=seconds,
        largest="the largest file and the copy that safetensors writes",
    )


def estimate_export(checkpoint: Path, storage: Storage, plan: Path | None = None) -> Estimate:
    """Of :func:`edge_export.pack.export_graph`, whose first half, the tracing, is done for it."""
    started = time.perf_counter()
    traced = trace_export(checkpoint, storage, plan)
    parts = len(hashed_files(checkpoint))
    notes = traced.notes("+".join(["0" * 16] * parts), None if plan is None else "0" * 64)  # as long as the real ones
    graphs = sum(proto.ByteSize() for proto in traced.files(notes).values())
    seconds = time.perf_counter() - started
    written, held = traced.layout.file_bytes + graphs, read_memory()
    files, hashed = traced.source.files, _hashed_bytes(checkpoint)
    read = sum(files.stored_bytes(name) for name in files)
    leaves = leaf_memory(traced)
    largest = max(leaves, key=leaves.__getitem__)
    seconds += hashed / hash_speed() + _decode_seconds(files) + _conversion_seconds(traced)
    return Estimate(
        read_bytes=hashed + read,
        write_bytes=written,
        memory_bytes=max(held.peak_bytes, held.resident_bytes + leaves[largest]),
        seconds=seconds + (hashed + read + written) / DISK_BYTES_PER_SECOND,
        largest=largest,
    )


def estimate_bundle(checkpoint: Path, graph: Path) -> Estimate:
    """Of :func:`edge_export.pack.make_bundle`: the files are copied, hashed and checked."""
    with TemporaryDirectory() as aside:
        sources, _ = bundle_sources(checkpoint, graph, Path(aside))
        size, hashed = sum(path.stat().st_size for path in sources.values()), _hashed_bytes(checkpoint)
    seconds = (hashed + 2 * size) / hash_speed() + (hashed + 4 * size) / DISK_BYTES_PER_SECOND
    return Estimate(hashed + 3 * size, size, read_memory().peak_bytes, seconds)


def leaf_memory(traced: TracedExport) -> dict[str, int]:
    """By leaf of the model: bytes in memory at the most while it is read, converted and written."""
    tensors: dict[str, list[str]] = defaultdict(list)
    for name in traced.source.shapes:
        tensors[leaf_of(name, traced.leaves)].append(name)
    memory = {}
    for leaf, places in traced.layout.leaves.items():
        read = [_read_memory(traced.source, name) for name in tensors[leaf]]
        own = {traced.source.files.dtype(part) for name in tensors[leaf] for part in traced.source.sources(name)}
        made = [place for place in places if place.dtype != torch.float32 or own != {torch.float32}]
        work = max([_converting_memory(made), *(reading for _, reading in read)])
        memory[leaf] = sum(held for held, _ in read) + work
    return memory


def _read_memory(source: Checkpoint, name: str) -> tuple[int, int]:
    """Of one of HybridLM's tensors, and besides while it is read: the parts that it is joined from, or its decoding."""
    sources = source.sources(name)
    size = sum(math.prod(source.files[part]) * source.files.dtype(part).itemsize for part in sources)
    decoding = max((_decode_memory(source.files, part) for part in sources), default=0)
    return size, max(decoding, size if len(sources) > 1 else 0)


def _converting_memory(places: list[Place]) -> int:
    """Of what is made of a leaf's tensors, and of the work on the largest of them."""
    work = {torch.uint8: PACKING_COPIES, torch.int8: 0}
    integers = [place.length * (2 if place.dtype == torch.uint8 else 1) for place in places if place.dtype in work]
    chunk = min(CHUNK_NUMBERS, max(integers, default=0)) * torch.float32.itemsize * CHUNK_COPIES
    copies = max((place.length * work.get(place.dtype, 1) for place in places), default=0)
    return sum(place.length for place in places) + copies + chunk


def _decode_memory(files: TensorFiles, name: str) -> int:
    return math.prod(files[name]) * DECODE_BYTES[files.kind(name)]


def _hashed_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in hashed_files(checkpoint))


def hash_speed() -> float:
    """Bytes per second of this processor's SHA-256."""
    zeros = bytes(PROBE_BYTES)
    return PROBE_BYTES / _seconds(lambda: hashlib.sha256(zeros))


def _conversion_seconds(traced: TracedExport) -> float:
    linear = nn.Linear(PROBE_WIDTH, PROBE_WIDTH, bias=False)
    ways: dict[torch.dtype, tuple[float, Callable[[], object]]] = {
        torch.uint8: (0.5, lambda: QuantLinear(linear, 4, 32)),
        torch.int8: (1.0, lambda: QuantLinear(linear, 8, 32)),
        torch.bfloat16: (2.0, lambda: Bfloat16Linear(linear)),
    }
    places = [place for of_leaf in traced.layout.leaves.values() for place in of_leaf]
    seconds = 0.0
    for dtype, (item_bytes, convert) in ways.items():
        if length := sum(place.length for place in places if place.dtype == dtype):
            seconds += _seconds(convert) * length / (item_bytes * PROBE_WIDTH**2)
    return seconds


def _decode_seconds(files: TensorFiles) -> float:
    """Of dequantising FP8 and NVFP4."""
    square, blocks = (PROBE_WIDTH, PROBE_WIDTH), (PROBE_WIDTH, PROBE_WIDTH // NVFP4_BLOCK)
    packed = torch.zeros(PROBE_WIDTH, PROBE_WIDTH // 2, dtype=torch.uint8)
    ways: dict[str, Callable[[], object]] = {
        "fp8": lambda: decode_fp8(torch.zeros(square, dtype=torch.float8_e4m3fn), torch.ones(())),
        "nvfp4": lambda: decode_nvfp4(packed, torch.zeros(blocks, dtype=torch.float8_e4m3fn), torch.ones(())),
    }
    seconds = 0.0
    for kind, decode in ways.items():
        if numbers := sum(math.prod(files[name]) for name in files if files.kind(name) == kind):
            seconds += _seconds(decode) * numbers / PROBE_WIDTH**2
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    """That something takes, the faster of two times."""
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
