"""Sensors as a Jetson's sysfs has them, and machines without any."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from edge_sdk.server import metrics
from edge_sdk.server.metrics import Metrics, Record
from edge_sdk.server.work import Workers
from edge_sdk.telemetry import read_memory, read_power, read_temperatures


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def jetson(root: Path) -> None:
    """A power monitor and two thermal zones, of which one is switched off."""
    monitor = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    for channel, name, millivolts, milliamperes in ((1, "VDD_IN", 19000, 500), (2, "VDD_CPU_GPU_CV", 18992, 40)):
        write(monitor / f"in{channel}_label", f"{name}\n")
        write(monitor / f"in{channel}_input", f"{millivolts}\n")
        write(monitor / f"curr{channel}_input", f"{milliamperes}\n")
    write(monitor / "in7_label", "sum of shunt voltages\n")  # which has no current
    zones = root / "sys/class/thermal"
    write(zones / "thermal_zone0/type", "cpu-thermal\n")
    write(zones / "thermal_zone0/temp", "48250\n")
    write(zones / "thermal_zone1/type", "cv0-thermal\n")
    (zones / "thermal_zone1/temp").mkdir()  # reading it is an error, as it is on an Orin while CV is off


def test_rails_are_volts_times_amperes(tmp_path: Path) -> None:
    jetson(tmp_path)
    assert read_power(tmp_path) == {"VDD_IN": 9.5, "VDD_CPU_GPU_CV": 0.75968}


def test_zones_that_are_switched_off_are_left_out(tmp_path: Path) -> None:
    jetson(tmp_path)
    assert read_temperatures(tmp_path) == {"cpu-thermal": 48.25}


def test_a_machine_without_sensors_has_none(tmp_path: Path) -> None:
    assert (read_power(tmp_path), read_temperatures(tmp_path)) == ({}, {})
    assert read_memory(tmp_path).resident_bytes == 0


def test_memory_is_what_the_kernel_says() -> None:
    memory = read_memory()
    assert 0 < memory.resident_bytes <= memory.peak_bytes
    assert abs(memory.peak_bytes - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) < 64 << 20


def test_a_server_tells_of_its_machine_in_metrics_and_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetson(tmp_path)
    write(tmp_path / "proc/self/status", "VmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    caplog.set_level(logging.INFO)
    told = Metrics(Workers(1, 1), "an engine", tmp_path)
    text = generate_latest(told.registry).decode()
    assert 'edge_engine_info{engine="an engine"} 1.0\n' in text
    assert 'edge_temperature_celsius{zone="cpu-thermal"} 48.25\n' in text
    assert 'edge_power_watts{rail="VDD_IN"} 9.5\n' in text
    for _ in range(3):
        told.note(Record(path="/v1/models"))
    lines = [json.loads(record.message) for record in caplog.records]
    assert [line.get("path") for line in lines] == [None, *["/v1/models"] * 3]  # of the machine once in a minute
    assert lines[0] == {
        "engine": "an engine",
        "resident_bytes": 1 << 20,
        "peak_bytes": 2 << 20,
        "temperatures_celsius": {"cpu-thermal": 48.25},
        "power_watts": {"VDD_IN": 9.5, "VDD_CPU_GPU_CV": 0.75968},
    }
    monkeypatch.setattr(metrics, "MACHINE_S", 0.0)
    told.note(Record(path="/v1/models"))
    assert json.loads(caplog.records[-2].message) == lines[0]
