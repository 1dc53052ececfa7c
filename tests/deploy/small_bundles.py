"""Small bundles that are whole but hold no model, and stores to put them into."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edge_sdk import write_bundle
from edge_sdk.bundle import GRAPH, REQUIRED_FILES, WEIGHTS, Bundle
from edge_sdk.deploy.chunks import CHUNK_BYTES, offer, read_chunk
from edge_sdk.deploy.install import Installation
from edge_sdk.deploy.record import Slot
from edge_sdk.deploy.store import Store
from edge_sdk.model import AttentionSpec, Mamba2Spec, ModelConfig

LAYERS = (Mamba2Spec(heads=2, head_dim=8, groups=1, state=16), AttentionSpec(heads=2, kv_heads=2, head_dim=8))
MODEL = ModelConfig(
    family="test", vocab_size=9, hidden=16, layers=LAYERS, max_length=64, bos_token_id=1, eos_token_ids=(2,)
)


def noise(seed: str, size: int) -> bytes:
    """Bytes that are the same for the same seed."""
    return hashlib.shake_128(seed.encode()).digest(size)


def small_bundle(folder: Path, version: str | None, *, chunks: int = 0, weights: bytes | None = None) -> Bundle:
    """A bundle whose weights are of so many whole chunks and a bit; only graph and weights depend on the version."""
    sources = {}
    folder.mkdir(parents=True)
    for name in REQUIRED_FILES:
        path = folder / f"source.{name}"
        path.write_bytes(noise(f"{name} {version if name in (GRAPH, WEIGHTS) else ''}", 100))
        sources[name] = path
    sources[WEIGHTS].write_bytes(
        noise(f"weights {version}", chunks * CHUNK_BYTES + 100) if weights is None else weights
    )
    provenance = {} if version is None else {"version": version}
    return write_bundle(folder / "bundle", sources, model=MODEL, weights="float32", provenance=provenance)


def install(store: Store, bundle: Bundle, *, force: bool = False) -> tuple[Slot, int]:
    """All of an installation, without a wire; also how many chunks were missing."""
    with store.installing():
        installation = Installation(store, offer(bundle), force=force)
        missing = installation.begin()
        for name, index in missing:
            installation.receive(name, index, read_chunk(bundle.file(name), index))
        _, slot = installation.commit(lambda said: None)
    return slot, len(missing)


def runs(store: Store) -> str:
    """The version of the bundle that a board would run now, which must be whole."""
    bundle = Bundle.open(store.active_bundle())
    return bundle.manifest.provenance.get("version", "0")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a store but locks, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
