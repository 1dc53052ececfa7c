"""Sensors as a Jetson's sysfs has them, and machines without any."""

from __future__ import annotations

import resource
from pathlib import Path

from edge_sdk.telemetry import read_memory, read_power, read_temperatures


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_rails_are_volts_times_amperes(tmp_path: Path) -> None:
    monitor = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    for channel, name, millivolts, milliamperes in ((1, "VDD_IN", 19000, 500), (2, "VDD_CPU_GPU_CV", 18992, 40)):
        write(monitor / f"in{channel}_label", f"{name}\n")
        write(monitor / f"in{channel}_input", f"{millivolts}\n")
        write(monitor / f"curr{channel}_input", f"{milliamperes}\n")
    write(monitor / "in7_label", "sum of shunt voltages\n")  # which has no current
    assert read_power(tmp_path) == {"VDD_IN": 9.5, "VDD_CPU_GPU_CV": 0.75968}


def test_zones_that_are_switched_off_are_left_out(tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/thermal"
    write(zones / "thermal_zone0/type", "cpu-thermal\n")
    write(zones / "thermal_zone0/temp", "48250\n")
    write(zones / "thermal_zone1/type", "cv0-thermal\n")
    (zones / "thermal_zone1/temp").mkdir()  # reading it is an error, as it is on an Orin while CV is off
    assert read_temperatures(tmp_path) == {"cpu-thermal": 48.25}


def test_a_machine_without_sensors_has_none(tmp_path: Path) -> None:
    assert (read_power(tmp_path), read_temperatures(tmp_path)) == ({}, {})
    assert read_memory(tmp_path).resident_bytes == 0


def test_memory_is_what_the_kernel_says() -> None:
    memory = read_memory()
    assert 0 < memory.resident_bytes <= memory.peak_bytes
    assert abs(memory.peak_bytes - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) < 64 << 20
