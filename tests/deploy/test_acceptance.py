"""The acceptance check: it passes where the bundle was exported, and finds weights that were altered afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edge_sdk import Bundle
from edge_sdk.bundle import GRAPH, MANIFEST, WEIGHTS
from edge_sdk.deploy.acceptance import ACCEPTANCE, add_acceptance, check
from edge_sdk.deploy.signing import make_keys, sign
from edge_sdk.deploy.store import Store
from edge_sdk.deploy.vectors import logits_error
from edge_sdk.errors import DeployError
from edge_sdk.files import sha256
from small_bundles import install, runs, tree


@pytest.fixture(scope="module")
def accepted(scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle with vectors."""
    folder = tmp_path_factory.mktemp("accepted") / "bundle"
    shutil.copytree(scan_bundle, folder, ignore=shutil.ignore_patterns("engines"))
    add_acceptance(folder, threads=1)
    return folder


def rehash(bundle: Path, **entries: Any) -> None:
    """Writes a manifest that fits the files, as one who alters a bundle would."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": sha256(bundle / name), "bytes": (bundle / name).stat().st_size}
    manifest["provenance"] |= entries
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def tensors(bundle: Path) -> dict[str, tuple[int, int]]:
    """Offset and length of each float weight in the file of weights."""
    graph = onnx.load(str(bundle / GRAPH), load_external_data=False).graph
    found = {}
    for tensor in graph.initializer:
        where = {item.key: item.value for item in tensor.external_data}
        if where and tensor.data_type == onnx.TensorProto.FLOAT:
            found[tensor.name] = (int(where.get("offset", 0)), int(where["length"]))
    return found


def alter(bundle: Path, name: str) -> None:
    """Turns the signs of a tensor's second half of values."""
    offset, length = tensors(bundle)[name]
    values = np.memmap(bundle / WEIGHTS, dtype=np.float32, mode="r+", offset=offset, shape=length // 4)
    values[len(values) // 2 :] *= -1
    values.flush()
    rehash(bundle, version="2")


def test_the_check_passes_where_the_bundle_was_exported(accepted: Path) -> None:
    measured = check(Bundle.open(accepted), device="cpu")
    assert measured.error < 1e-4
    assert measured.step_ms > 0
    with pytest.raises(DeployError, match=r"expected a step within 0.0001 ms"):
        check(Bundle.open(accepted), device="cpu", step_budget_ms=1e-4)


def test_the_error_is_that_of_the_worst_step_and_knows_no_constant() -> None:
    expected = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    found = expected + 7
    assert logits_error(found, expected) < 1e-6
    found[1] *= 1.25
    assert logits_error(found, expected) == pytest.approx(0.25, rel=1e-4)
    found[2, 3] = np.nan
    assert logits_error(found, expected) > 1e30


def test_a_tensor_that_was_altered_before_signing_is_found_and_nothing_changes(accepted: Path, tmp_path: Path) -> None:
    store, key = Store(tmp_path / "store"), make_keys(tmp_path / "key", "ours")
    store.configure(b'{"require_signature": true, "require_acceptance": true}', key.line().encode())
    good, bad = (Path(shutil.copytree(accepted, tmp_path / name)) for name in ("good", "bad"))
    rehash(good, version="1")
    sign(good, tmp_path / "key")
    slot, _ = install(store, Bundle.open(good))
    assert slot.step_ms is not None
    before = tree(store.folder)
    largest = max(tensors(bad), key=lambda name: tensors(bad)[name][1])
    alter(bad, largest)
    sign(bad, tmp_path / "key")
    with pytest.raises(DeployError, match=r"acceptance check on .*expected logits within 0.1 .*found an error of"):
        install(store, Bundle.open(bad))
    assert runs(store) == "1"
    assert {name: before[name] for name in before if not name.startswith("incoming")}.items() <= tree(
        store.folder
    ).items()


def test_most_altered_tensors_are_found(accepted: Path, tmp_path: Path) -> None:
    names = [name for name, (_, length) in tensors(accepted).items() if length >= 4096]
    found = 0
    for index, name in enumerate(names[::3]):
        bad = Path(shutil.copytree(accepted, tmp_path / str(index)))
        alter(bad, name)
        with pytest.raises(DeployError, match="found an error of"):
            check(Bundle.open(bad), device="cpu")
        found += 1
    assert found >= 3


@pytest.mark.parametrize("case", ["not an archive", "another kind", "other shapes", "ids outside", "a pickle"])
def test_vectors_that_are_not_known_are_refused(accepted: Path, tmp_path: Path, case: str) -> None:
    bundle = Path(shutil.copytree(accepted, tmp_path / "bundle"))
    with np.load(bundle / ACCEPTANCE) as loaded:
        arrays = dict(loaded)
    if case == "another kind":
        arrays["kind"] = np.array("actions")
    elif case == "other shapes":
        arrays["logits"] = arrays["logits"][..., :-1]
    elif case == "ids outside":
        arrays["input_ids"][0, 0] = 1 << 40
    elif case == "a pickle":
        arrays["logits"] = np.array([print], dtype=object)
    np.savez(bundle / ACCEPTANCE, **arrays)
    if case == "not an archive":
        (bundle / ACCEPTANCE).write_bytes(b"no")
    with pytest.raises(DeployError, match=r"acceptance.npz: expected vectors that this version knows"):
        check(reopened(bundle), device="cpu")


def reopened(bundle: Path) -> Bundle:
    rehash(bundle)
    return Bundle.open(bundle)


def test_a_bundle_without_vectors_is_taken_unless_they_are_asked_for(scan_bundle: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    install(store, Bundle.open(scan_bundle))
    store.configure(msgspec.json.encode({"require_acceptance": True}), None)
    with pytest.raises(DeployError, match="expected acceptance vectors, found none"):
        install(store, Bundle.open(scan_bundle))
