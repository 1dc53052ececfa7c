"""What a machine is found to have, which engine follows from it, and how `edge-sdk doctor` says so."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edge_sdk
from edge_plugins import missing_reason
from edge_sdk import Bundle, backends, doctor, machine
from edge_sdk.backends import choose_engine, engine_kinds, ort, ort_device
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.backends.ort_device import DeviceBuffers, check_providers, providers_for
from edge_sdk.backends.trt import TrtEngine
from edge_sdk.control.realtime import RealtimeLimits, describe_limits, read_limits
from edge_sdk.engine_files import EngineKey, EngineRecord, Limits, engine_path, graph_id
from edge_sdk.errors import BackendError
from edge_sdk.machine import Gpu, Machine, read_machine

ORIN = Gpu(name="Orin", compute_capability="8.7", multiprocessors=8, memory_bytes=16 << 30, driver_cuda="12.6")
JETSON = {
    "proc/meminfo": "MemTotal:       15990000 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
}


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name, text in JETSON.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "read_gpus", lambda root: ((ORIN,), ""))
    return read_machine(tmp_path)


@pytest.fixture
def plain_bundle(scan_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle without engines."""
    return Bundle(tmp_path / "plain", Bundle.open(scan_bundle, verify_hashes=False).manifest)


@pytest.fixture
def built_bundle(scan_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle with the record of an engine, which itself is none."""
    bundle = Bundle.open(
        shutil.copytree(scan_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")), verify_hashes=False
    )
    key = EngineKey(
        backend="tensorrt-rtx",
        version="0",
        compute_capability="8.7",
        gpu="",
        precision="float16",
        limits=Limits(batch=1, prefill=64, context=128, kept=1),
        plugins={},
        graph=graph_id(bundle),
    )
    record = EngineRecord(key=key, board="test", bytes=3, built="2026-01-01T00:00:00+00:00", build_seconds=0.0)
    (bundle.path / "engines").mkdir(exist_ok=True)
    engine_path(bundle, record).write_bytes(b"abc")
    engine_path(bundle, record).with_suffix(".json").write_bytes(msgspec.json.encode(record))
    return bundle


def test_a_jetson_is_described(jetson: Machine) -> None:
    assert jetson.board == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert jetson.jetpack == "6 (L4T 36.4.3)"
    assert jetson.cpu == "ARMv8 Processor rev 1 (v8l)"
    assert jetson.memory_bytes == 15990000 * 1024
    assert jetson.memory_free_bytes == 12000000 * 1024
    assert jetson.gpus == (ORIN,)


def test_a_machine_without_anything_is_described_too(tmp_path: Path) -> None:
    bare = read_machine(tmp_path)
    assert (bare.board, bare.jetpack, bare.memory_bytes) == ("", "", 0)
    assert bare.cores >= 1


def test_a_gpu_that_the_kernel_sees_and_the_process_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DRIVER", "libno-such-driver.so.1")
    assert read_machine(tmp_path).gpu_missing == "there is no NVIDIA driver (libno-such-driver.so.1)"
    information = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA RTX 4090\nIRQ: 5\n")
    assert "the kernel sees NVIDIA RTX 4090" in read_machine(tmp_path).gpu_missing


@pytest.mark.parametrize(
    ("providers", "tensorrt", "has_plugins", "engines", "expected"),
    [
        ([], {}, False, [], ["No ONNX Runtime", "No TensorRT: make the virtual"]),
        (["CPUExecutionProvider"], {}, False, [], ["No TensorRT: make the virtual"]),
        (["CPUExecutionProvider"], {"tensorrt": "10.3"}, False, [], ["No TensorRT plugins"]),
        (["CPUExecutionProvider"], {"tensorrt": "10.3"}, True, [], ["No TensorRT engine"]),
        (["CPUExecutionProvider"], {"tensorrt": "10.3"}, True, ["x.engine"], []),
    ],
)
def test_what_is_missing_comes_with_what_to_do(
    jetson: Machine,
    providers: list[str],
    tensorrt: dict[str, str],
    has_plugins: bool,
    engines: list[str],
    expected: list[str],
) -> None:
    installed = {"has_kernels": True, "has_plugins": has_plugins}
    advice = list(doctor._advice(jetson, providers, tensorrt, **installed, engines=engines))
    assert len(advice) == len(expected)
    assert all(text.startswith(start) for text, start in zip(advice, expected))
    installed["has_kernels"] = False
    slow = list(doctor._advice(jetson, providers, tensorrt, **installed, engines=engines))
    assert [text for text in slow if text not in advice] == [f"No native CPU kernels: {missing_reason()}"]
    no_gpu = msgspec.structs.replace(jetson, gpus=(), gpu_missing="error 999")
    assert (
        "error 999" in list(doctor._advice(no_gpu, providers, {}, has_kernels=True, has_plugins=False, engines=[]))[-1]
    )


def test_the_command_fits_on_a_screen_and_speaks_json(scan_bundle: Path) -> None:
    command = [sys.executable, "-m", "edge_sdk.cli", "doctor"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert len(shown.splitlines()) <= 24
    for expected in (f"Edge SDK      {edge_sdk.__version__}", "ONNX Runtime", "CPUExecutionProvider", "GPU"):
        assert expected in shown
    for name, value in describe_limits(read_limits()):
        assert f"{name:<13} {value}" in shown
    said = subprocess.run([*command, scan_bundle, "--json"], capture_output=True, text=True, check=True, timeout=60)
    report = json.loads(said.stdout)
    assert report["would_run"][-1] == "ort-cpu"
    assert report["machine"]["cores"] >= 1
    assert msgspec.convert(report["realtime"], RealtimeLimits, strict=False) == read_limits()


def test_the_best_that_a_machine_has_is_tried_first(
    plain_bundle: Bundle, built_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus: list[Gpu] = []
    providers = ["CPUExecutionProvider"]
    monkeypatch.setattr(machine, "read_gpus", lambda: (tuple(gpus), ""))
    monkeypatch.setattr(ort_device, "available_providers", lambda: providers)
    assert engine_kinds(built_bundle, "auto") == ["ort-cpu"]
    gpus.append(ORIN)
    assert engine_kinds(plain_bundle, "auto") == ["ort-cpu"]
    assert engine_kinds(built_bundle, "auto") == ["tensorrt", "ort-cpu"]
    providers[:0] = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert engine_kinds(built_bundle, "auto") == ["tensorrt", "ort-cuda", "ort-cpu"]
    assert engine_kinds(plain_bundle, "auto") == ["ort-cuda", "ort-cpu"]
    assert engine_kinds(plain_bundle, "tensorrt") == ["ort-tensorrt"]
    assert engine_kinds(built_bundle, "tensorrt") == ["tensorrt"]
    assert engine_kinds(plain_bundle, "cuda") == ["ort-cuda"]
    assert set(doctor.ENGINES) >= set(engine_kinds(built_bundle, "auto"))


def test_what_fails_is_passed_over_aloud(
    scan_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "engine_kinds", lambda bundle, device: ["tensorrt", "ort-cuda", "ort-cpu"])
    with caplog.at_level(logging.WARNING, logger="edge_sdk"):
        engine = choose_engine(Bundle.open(scan_bundle))
    assert isinstance(engine, OrtEngine)
    assert "on CPU" in engine.name
    assert "tensorrt is passed over" in caplog.text
    assert "ort-cuda is passed over" in caplog.text


def test_an_unknown_device_is_refused(scan_bundle: Path) -> None:
    with pytest.raises(BackendError, match="auto or cpu or cuda or tensorrt, found tpu"):
        choose_engine(Bundle.open(scan_bundle), device="tpu")


def test_a_tensorrt_engine_needs_a_gpu_and_its_own_tensorrt(
    plain_bundle: Bundle, built_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match=r"found none.*edge-export engine"):
        TrtEngine(plain_bundle)
    monkeypatch.setattr("edge_sdk.backends.trt.read_gpus", lambda: ((), "no driver"))
    with pytest.raises(BackendError, match="expected a GPU, found no driver"):
        TrtEngine(built_bundle)
    monkeypatch.setattr("edge_sdk.backends.trt.read_gpus", lambda: ((ORIN,), ""))
    with pytest.raises(BackendError, match=r"(Python finds no|needs) tensorrt-rtx"):
        TrtEngine(built_bundle)


def test_providers_follow_the_device(tmp_path: Path) -> None:
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert providers_for("cpu", everything, None) == [("CPUExecutionProvider", {})]
    assert providers_for("cuda", everything[1:], None)[1:] == ["CPUExecutionProvider"]
    (name, settings), *rest = providers_for("tensorrt", everything, tmp_path)
    assert (name, rest) == (everything[0], everything[1:])
    assert settings["trt_engine_cache_path"] == str(tmp_path)
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider, found CPU.*edge-sdk\[gpu\]"):
        providers_for("cuda", everything[2:], None)
    with pytest.raises(BackendError, match="to start, found only CPUExecutionProvider"):
        check_providers("cuda", everything[2:])
    check_providers("cuda", everything)


def test_states_on_a_device_say_what_states_in_numpy_say(scan_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(ort, "FIRST_CAPACITY", 4)
    engine = OrtEngine(Bundle.open(scan_bundle), threads=1, kernels="none")
    ids, answers = np.random.default_rng(0).integers(5, 24, (2, 12)), []
    for place in (engine.host, DeviceBuffers(onnxruntime.OrtValue, "cpu")):
        engine.place = place
        states = engine.empty_states(2)
        engine.step(ids[:, :7], states, logits="none")
        other = states.copy()
        engine.step(ids[:, :2], other)
        answers.append((engine.step(ids[:, 7:], states).copy(), engine.next_tokens(ids[:, :1], other)))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])
