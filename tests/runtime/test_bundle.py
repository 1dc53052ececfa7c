"""Bundles: what is whole opens, what is damaged is refused with a reason, and nothing leaves the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk import Bundle, write_bundle
from edge_sdk.bundle import GRAPH, MANIFEST, REQUIRED_FILES, WEIGHTS
from edge_sdk.errors import BundleError


@pytest.fixture
def copy(scan_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(scan_bundle, tmp_path / "bundle"))


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    edit(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    message = str(caught.value)
    assert "expected" in message
    assert "found" in message
    return message


def test_a_whole_bundle_opens(scan_bundle: Path) -> None:
    bundle = Bundle.open(scan_bundle)
    assert set(REQUIRED_FILES) <= set(bundle.manifest.files)
    assert bundle.manifest.model.family == "nemotron_h"
    assert bundle.total_bytes() == sum(bundle.file(name).stat().st_size for name in bundle.manifest.files)


def test_a_bundle_from_before_speculation_opens(copy: Path) -> None:
    def without(manifest: dict[str, Any]) -> None:
        del manifest["graphs"], manifest["model"]["mtp"], manifest["model"]["speculation"]

    expected = Bundle.open(copy).manifest
    edit_manifest(copy, without)
    assert Bundle.open(copy).manifest == expected


@pytest.mark.parametrize("name", [*REQUIRED_FILES, MANIFEST])
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert name in refusal(copy)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_truncated_file_is_refused_by_its_size(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1])
    assert f"{len(content)} bytes" in refusal(copy)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_refused(copy: Path, data: st.DataObject) -> None:
    path = copy / data.draw(st.sampled_from(REQUIRED_FILES))
    content = path.read_bytes()
    position, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    altered = bytearray(content)
    altered[position] ^= 1 << bit
    path.write_bytes(altered)
    assert "sha256" in refusal(copy)
    path.write_bytes(content)
    Bundle.open(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "..\\outside"])
def test_a_path_that_leaves_the_bundle_is_refused(copy: Path, name: str) -> None:
    edit_manifest(copy, lambda manifest: manifest["files"].update({name: manifest["files"][GRAPH]}))
    assert "leaves it" in refusal(copy)


def test_a_link_that_leaves_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / WEIGHTS, tmp_path / "elsewhere")
    (copy / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert "leaves it" in refusal(copy)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda manifest: manifest.update(format_version=99), "format_version"),
        (lambda manifest: manifest.pop("model"), "model"),
        (lambda manifest: manifest["model"].update(hidden="wide"), "hidden"),
        (lambda manifest: manifest["model"].update(hidden=-1), "positive"),
        (lambda manifest: manifest["model"]["layers"][0].update(type="gated_delta"), "gated_delta"),
        (lambda manifest: manifest["model"].update(rope_theta=10000), "rope_theta"),
        (lambda manifest: manifest["files"].pop(WEIGHTS), WEIGHTS),
        (lambda manifest: manifest["inputs"].pop(), "inputs"),
    ],
)
def test_a_wrong_manifest_is_refused(copy: Path, edit: Callable[[dict[str, Any]], object], expected: str) -> None:
    edit_manifest(copy, edit)
    assert expected in refusal(copy)


@given(content=st.binary(max_size=200))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rubbish_as_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    refusal(copy)


def test_writing_replaces_a_bundle_as_a_whole_or_not_at_all(copy: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(copy)
    sources = {name: shutil.copy(copy / name, tmp_path / name) for name in REQUIRED_FILES}
    details = {"model": bundle.manifest.model, "weights": "float32", "provenance": {"by": "a test"}}
    assert write_bundle(copy, sources, **details).manifest.provenance == {"by": "a test"}
    before = (copy / MANIFEST).read_bytes()
    Path(sources[WEIGHTS]).unlink()
    with pytest.raises(FileNotFoundError):
        write_bundle(copy, sources, **details)
    assert (copy / MANIFEST).read_bytes() == before
    Bundle.open(copy)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_what_a_device_made_for_itself_is_neither_checked_nor_copied(copy: Path, tmp_path: Path) -> None:
    (copy / "engines").mkdir(exist_ok=True)
    (copy / "engines" / "cpu-packed.bin").write_bytes(b"anything")
    bundle = Bundle.open(copy)
    sources = {name: Path(shutil.copy(copy / name, tmp_path / name)) for name in REQUIRED_FILES}
    write_bundle(copy, sources, model=bundle.manifest.model, weights="float32", provenance={})
    assert not (copy / "engines").exists()


def test_writing_over_something_else_is_refused(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    with pytest.raises(BundleError, match="something else"):
        write_bundle(folder, {}, model=Bundle.open(copy).manifest.model, weights="float32", provenance={})
