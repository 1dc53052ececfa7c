"""`edge-export engine` on NVIDIA's own builder: PyPI's TensorRT-RTX, which builds engines without a GPU."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import onnx
import pytest
from numpy.random import _generator

from builds import plugin_library
from edge_export.boards import find_board
from edge_export.engine import EngineRequest, make_engine
from edge_export.pack import Storage
from edge_export.tensorrt_builder import EngineBuilder, profile_ranges
from edge_export.tensorrt_graph import write_tensorrt_graph
from edge_sdk import Bundle
from edge_sdk.backends.trt import _deserialize
from edge_sdk.backends.trt_module import import_tensorrt
from edge_sdk.engine_files import EngineRecord, Limits, graph_id, read_records
from edge_sdk.errors import BackendError, ConfigError
from exported import TinyBundle

RTX = EngineRequest(backend="tensorrt-rtx", board="rtx-4090", max_prefill=64, max_context=256)
BODIES = msgspec.structs.replace(RTX, plugins="none")


@pytest.fixture(scope="module")
def rtx() -> object:
    """The module, where PyPI has it for this machine."""
    return pytest.importorskip("tensorrt_rtx", reason="PyPI's tensorrt-rtx-cu13 is not installed")


@pytest.fixture
def bundle(tiny_bundle: TinyBundle, tmp_path: Path) -> Bundle:
    """A tiny model with every operator in int4, to build engines in."""
    original = tiny_bundle("latent-experts", Storage(weights="int4", cache_dtype="float32"))
    return Bundle.open(shutil.copytree(original.path, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")))


def assert_recorded(bundle: Bundle, record: EngineRecord) -> None:
    assert read_records(bundle) == [record]
    engine = bundle.path / "engines" / record.file
    assert engine.stat().st_size == record.bytes > 0
    assert record.key.graph == graph_id(bundle)
    assert {path.name for path in engine.parent.iterdir()} == {engine.name, f"{record.key.stem}.json"}


@pytest.mark.usefixtures("rtx")
def test_an_engine_is_built_from_function_bodies(bundle: Bundle) -> None:
    record = make_engine(bundle.path, BODIES)
    assert record is not None
    assert_recorded(bundle, record)
    key = record.key
    assert (key.precision, key.compute_capability, key.gpu, key.plugins) == ("float16", "8.9", "", {})
    assert key.limits == Limits(batch=1, prefill=64, context=256, kept=32)


@pytest.mark.usefixtures("rtx")
def test_a_library_that_does_not_load_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    library = tmp_path / "libedge_plugins_trt.so"
    library.write_text("not a library")
    request = msgspec.structs.replace(RTX, plugins=str(library))
    with suppress(OSError):
        ctypes.CDLL("libtensorrt_rtx.so")
        pytest.skip("the system, or another test, has TensorRT-RTX under the name that its parser asks for")
    with pytest.raises(BackendError, match=r"libtensorrt_rtx\.so: expected .*found none"):
        make_engine(bundle.path, request)
    library.with_name("libedge_tensorrt_rtx_name.so").symlink_to(_generator.__file__)  # some library
    with pytest.raises(BackendError, match=r"a plugin library that tensorrt_rtx .* loads, found .*file too short"):
        make_engine(bundle.path, request)
    assert list((bundle.path / "engines").iterdir()) == []


@pytest.mark.usefixtures("rtx")
def test_an_engine_is_built_from_plugins(bundle: Bundle) -> None:
    request = msgspec.structs.replace(RTX, plugins=str(plugin_library()), precision="bfloat16")
    record = make_engine(bundle.path, request)
    assert record is not None
    assert_recorded(bundle, record)
    assert set(record.key.plugins) == {"Mamba2Mixer", "MoE", "CachedAttention", "QLinear"}


def test_a_node_that_nobody_knows_is_named(bundle: Bundle, rtx: object, tmp_path: Path) -> None:
    write_tensorrt_graph(bundle.path, tmp_path, "float16", {"MoE"})
    proto = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    for node in proto.graph.node:
        node.op_type = node.op_type.replace("MoE", "Unheard")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    builder = EngineBuilder(rtx, "tensorrt-rtx", "8.9")
    with pytest.raises(BackendError, match=r"node__symbolic\w*, Unheard\).*--plugins none"):
        builder.parse(tmp_path / "model.onnx")


def test_a_file_that_is_no_engine_is_refused_by_the_runtime(rtx: object, tmp_path: Path) -> None:
    (tmp_path / "some.engine").write_bytes(b"not an engine" * 100)
    with pytest.raises(BackendError, match=r"(?s)some\.engine: expected an engine for this GPU, found .*Serialization"):
        _deserialize(rtx, tmp_path / "some.engine")


def test_without_tensorrt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"pip install 'edge-sdk\[tensorrt-rtx\]'"):
        import_tensorrt("tensorrt-rtx")


def test_a_board_is_built_for_where_it_is(bundle: Bundle) -> None:
    orin = EngineRequest(board="orin-nx-16gb", plugins="none")
    with pytest.raises(ConfigError, match=r"compute capability 8\.7 here.*Copy the bundle to the board"):
        make_engine(bundle.path, orin)
    shutil.rmtree(bundle.path / "engines")
    assert make_engine(bundle.path, orin, dry_run=True) is None
    assert not (bundle.path / "engines").exists()
    with pytest.raises(ConfigError, match=r"TensorRT-RTX for orin-nx-16gb: expected .*8\.9.*found 8\.7"):
        make_engine(bundle.path, msgspec.structs.replace(BODIES, board="orin-nx-16gb"))
    with pytest.raises(ConfigError, match=r"one of here, orin-nano-4gb.*found raspberry"):
        find_board("raspberry", "tensorrt")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: the nearest to a full disk that a test can make."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_nothing(bundle: Bundle) -> None:
    with largest_file(10_000), pytest.raises(BackendError, match=f"room for .*{os.strerror(errno.EFBIG)}"):
        make_engine(bundle.path, BODIES)
    assert list((bundle.path / "engines").iterdir()) == []


def test_profiles_cover_decoding_and_blocks() -> None:
    decode, prefill = profile_ranges(Limits(batch=4, prefill=512, context=4096, kept=32))
    assert decode == {"batch": (1, 1, 4), "capacity": (256, 4096, 4096), "length": (1, 1, 1), "kept": (1, 1, 1)}
    assert prefill == decode | {"length": (2, 512, 512), "kept": (0, 1, 32)}


def test_the_command_describes_a_dry_run_where_there_is_no_torch(bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'torch' else find(name)\n"
        "from edge_export.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "engine", bundle.path, "--board", "thor-t5000", "--dry-run"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    for expected in ("thor-t5000, compute capability 11.0", "2 MoE", "length 2 to 512"):
        assert expected in result.stderr
