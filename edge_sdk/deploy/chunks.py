"""Files as lists of chunks, each named by its hash: what a board has already is recognised wherever it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from edge_sdk.bundle import MANIFEST, Bundle
from edge_sdk.deploy.signing import SIGNATURE

CHUNK_BYTES = 1 << 18
"""Of every chunk but a file's last: 13 s at 20 kB/s, and the hashes of 2.5 GB take 0.4 MB."""

Digest = bytes
"""SHA-256."""


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle as it is described to a board before any of it is sent."""

    manifest: bytes
    signature: bytes
    """Content of signature.json; empty where there is none."""
    chunks: dict[str, tuple[Digest, ...]]
    """By file that the manifest lists."""

    @property
    def bundle_id(self) -> str:
        """Names the bundle on the board: two have the same if all their files are the same."""
        return hashlib.sha256(self.manifest).hexdigest()


def offer(bundle: Bundle) -> Offer:
    """Reads all of a bundle."""
    signature = bundle.path / SIGNATURE
    return Offer(
        manifest=(bundle.path / MANIFEST).read_bytes(),
        signature=signature.read_bytes() if signature.exists() else b"",
        chunks={name: tuple(_digests(bundle.file(name))) for name in bundle.manifest.files},
    )


def digest(data: bytes | memoryview) -> Digest:
    """Of one chunk."""
    return hashlib.sha256(data).digest()


def chunk_count(size: int) -> int:
    """Of a file of so many bytes."""
    return -(-size // CHUNK_BYTES)


def read_chunk(path: Path, index: int) -> bytes:
    """One chunk of a file; shorter where the file is, empty where it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(descriptor, CHUNK_BYTES, index * CHUNK_BYTES)
    finally:
        os.close(descriptor)


class Known:
    """Where chunks lie on this machine; what is found there is believed only if its hash is right."""

    def __init__(self) -> None:
        self._places: dict[Digest, list[tuple[Path, int]]] = {}

    def add(self, folder: Path, chunks: Mapping[str, tuple[Digest, ...]]) -> None:
        """The chunks that a bundle's folder should hold."""
        for name, digests in chunks.items():
            for index, one in enumerate(digests):
                self._places.setdefault(one, []).append((folder / name, index))

    def read(self, wanted: Digest) -> bytes | None:
        """A chunk, or None."""
        found = (read_chunk(path, index) for path, index in self._places.get(wanted, ()))
        return next((data for data in found if digest(data) == wanted), None)


def _digests(path: Path) -> Iterator[Digest]:
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield digest(data)
