"""Choosing among the TensorRT engines of a bundle, and laying their states out: all that needs no GPU."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_sdk import Bundle
from edge_sdk.backends import Wanted
from edge_sdk.backends.trt_layout import ALIGNMENT, Layout, calls, growth, state_addresses
from edge_sdk.engine_files import (
    Device,
    EngineKey,
    EngineRecord,
    Limits,
    choose_record,
    engine_path,
    graph_id,
    mismatch,
    read_records,
)
from edge_sdk.errors import BackendError
from edge_sdk.model import AttentionSpec, Mamba2Spec, ModelConfig

LIMITS = Limits(batch=2, prefill=512, context=4096, kept=32)
KEY = EngineKey(
    backend="tensorrt",
    version="10.3.0",
    compute_capability="8.7",
    gpu="Orin",
    precision="float16",
    limits=LIMITS,
    plugins={"MoE": "1"},
    graph="abc",
)
DEVICE = Device(
    compute_capability="8.7", gpu="Orin", versions={"tensorrt": "10.3.0"}, plugins={"tensorrt": {"MoE": "1"}}
)


@pytest.fixture
def bundle(scan_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle whose engines/ is the test's own."""
    (tmp_path / "engines").mkdir()
    return Bundle(tmp_path, Bundle.open(scan_bundle, verify_hashes=False).manifest)


def record(key: EngineKey = KEY, built: str = "2026-01-01T00:00:00+00:00") -> EngineRecord:
    return EngineRecord(key=key, board="orin-nx-16gb", bytes=3, built=built, build_seconds=1.0)


def write(bundle: Bundle, made: EngineRecord) -> EngineRecord:
    path = engine_path(bundle, made)
    path.write_bytes(b"abc")
    path.with_suffix(".json").write_bytes(msgspec.json.encode(made))
    return made


def changed(**fields: object) -> EngineKey:
    return msgspec.structs.replace(KEY, **fields)


def test_names_of_engines_outlive_new_fields_and_tell_formats_apart() -> None:
    assert KEY.stem == "tensorrt-10.3.0-sm87-float16-03094d851767"  # of an engine that was built before --projections
    assert msgspec.json.decode(msgspec.json.encode(KEY), type=EngineKey) == KEY
    assert changed(projections="nvfp4").stem.startswith("tensorrt-10.3.0-sm87-float16-nvfp4-")


def test_engines_are_found_newest_first_and_nothing_else_is(bundle: Bundle) -> None:
    assert read_records(bundle) == []
    old = write(bundle, record())
    new = write(bundle, record(changed(precision="bfloat16"), "2026-02-01T00:00:00+00:00"))
    truncated = write(bundle, record(changed(precision="float32")))
    engine_path(bundle, truncated).write_bytes(b"a")
    (bundle.path / "engines" / "other.json").write_text('{"some": "thing"}')
    (bundle.path / "engines" / "broken.json").write_text("{")
    assert read_records(bundle) == [new, old]


def test_names_tell_engines_apart() -> None:
    keys = [KEY, changed(graph="abd"), changed(limits=msgspec.structs.replace(LIMITS, batch=1)), changed(plugins={})]
    assert len({key.stem for key in keys}) == len(keys)
    assert all(key.stem.startswith("tensorrt-10.3.0-sm87-float16-") for key in keys)
    assert KEY.stem == changed().stem


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (KEY, None),
        (changed(gpu=""), None),
        (changed(plugins={}), None),
        (changed(graph="other"), "another graph or other weights"),
        (changed(version="10.13.3"), "needs tensorrt 10.13.3, this is 10.3.0"),
        (changed(backend="tensorrt-rtx"), "Python finds no tensorrt-rtx"),
        (changed(compute_capability="11.0"), "for compute capability 11.0, this GPU has 8.7"),
        (changed(gpu="Orin Nano"), "it is for Orin Nano, this is Orin"),
        (changed(plugins={"MoE": "2"}), "the plugin MoE version 2, found 1"),
        (changed(plugins={"QLinear": "1"}), "the plugin QLinear version 1, found none"),
    ],
)
def test_an_engine_runs_where_it_belongs(key: EngineKey, reason: str | None) -> None:
    found = mismatch(key, DEVICE, "abc")
    assert found is None if reason is None else reason in str(found)


def test_the_newest_engine_that_fits_is_chosen_or_every_reason_is_given() -> None:
    other, fits = record(changed(compute_capability="11.0")), record()
    assert choose_record([other, fits, record(changed(precision="float32"))], DEVICE, "abc") is fits
    with pytest.raises(BackendError, match=r"this GPU has 8\.7.*another graph.*edge-export engine"):
        choose_record([other, record(changed(graph="x"))], DEVICE, "abc")
    with pytest.raises(BackendError, match="found none"):
        choose_record([], DEVICE, "abc")


def test_other_weights_are_another_graph(bundle: Bundle) -> None:
    manifest = bundle.manifest
    weights = msgspec.structs.replace(manifest.files["model.onnx.data"], sha256="0" * 64)
    other = msgspec.structs.replace(manifest, files=manifest.files | {"model.onnx.data": weights})
    assert graph_id(bundle) == graph_id(Bundle(Path("elsewhere"), manifest))
    assert graph_id(bundle) != graph_id(Bundle(bundle.path, other))


CONFIG = ModelConfig(
    family="test",
    vocab_size=8,
    hidden=8,
    layers=(
        Mamba2Spec(heads=2, head_dim=4, groups=1, state=6),
        AttentionSpec(heads=4, kv_heads=2, head_dim=5),
    ),
    cache_dtype="int8",
)


def test_past_and_present_states_share_an_address() -> None:
    layout = Layout(CONFIG.past_specs(), batch=3, capacity=7)
    addresses = state_addresses(CONFIG, layout, base=1 << 20)
    assert len(addresses) == 2 * len(CONFIG.past_specs())
    taken = 1 << 20
    for past, present in zip(CONFIG.past_specs(), CONFIG.present_specs()):
        assert addresses[past.name] == addresses[present.name] >= taken
        assert addresses[past.name] % ALIGNMENT == 0
        taken = addresses[past.name] + layout.size(past)
    assert taken <= (1 << 20) + layout.offsets()[-1]


def test_growing_keeps_every_position() -> None:
    old, new, used = Layout(CONFIG.past_specs(), 3, 7), Layout(CONFIG.past_specs(), 3, 16), 5
    before = np.random.default_rng(0).integers(0, 256, old.offsets()[-1], dtype=np.uint8)
    after = np.zeros(new.offsets()[-1], dtype=np.uint8)
    for copy in growth(old, new, used):  # what cudaMemcpy2D does
        for row in range(copy.rows):
            source, target = copy.source + row * copy.source_pitch, copy.target + row * copy.target_pitch
            after[target : target + copy.width] = before[source : source + copy.width]
    for spec, here, there in zip(CONFIG.past_specs(), old.offsets(), new.offsets()):
        mine = before[here : here + old.size(spec)].view(spec.dtype).reshape(spec.sized(batch=3, capacity=7))
        theirs = after[there : there + new.size(spec)].view(spec.dtype).reshape(spec.sized(batch=3, capacity=16))
        if "capacity" in spec.shape:
            mine, theirs = mine[:, :, :used], theirs[:, :, :used]
        np.testing.assert_array_equal(theirs, mine)


@pytest.mark.parametrize(
    ("length", "wanted", "expected"),
    [
        (1, "last", [(0, 1, 1, 0)]),
        (1, "none", [(0, 1, 1, 0)]),
        (1, "all", [(0, 1, 1, 0)]),
        (512, "last", [(0, 512, 1, 1)]),
        (1025, "last", [(0, 512, 0, 1), (512, 1024, 0, 1), (1024, 1025, 1, 0)]),
        (600, "none", [(0, 512, 0, 1), (512, 600, 0, 1)]),
        (70, "all", [(0, 32, 32, 1), (32, 64, 32, 1), (64, 70, 6, 1)]),
    ],
)
def test_a_step_is_made_of_calls_that_the_engine_has_room_for(
    length: int, wanted: Wanted, expected: list[tuple[int, int, int, int]]
) -> None:
    made = [(call.start, call.end, call.kept, call.profile) for call in calls(length, wanted, LIMITS)]
    assert made == expected
