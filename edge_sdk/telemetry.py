"""What a machine's sensors say while it computes: memory, temperatures, power; nothing where there are none."""

from __future__ import annotations

from pathlib import Path

import msgspec

ZONES = "sys/class/thermal/thermal_zone*"
RAILS = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
"""The power monitors of a Jetson, one channel per rail."""


class ProcessMemory(msgspec.Struct, frozen=True):
    """Of this process; weights that are mapped from a file count as far as they were read."""

    resident_bytes: int
    peak_bytes: int


def read_memory(root: Path = Path("/")) -> ProcessMemory:
    """What the kernel says of this process; zeros where it says nothing."""
    lines = (_text(root / "proc/self/status") or "").splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    resident, peak = (int(fields[name][0]) * 1024 if fields.get(name) else 0 for name in ("VmRSS", "VmHWM"))
    return ProcessMemory(resident, peak)


def read_temperatures(root: Path = Path("/")) -> dict[str, float]:
    """Degrees Celsius by thermal zone, those left out that are switched off."""
    found = {}
    for zone in sorted(root.glob(ZONES)):
        name, millidegrees = _text(zone / "type"), _number(zone / "temp")
        if name and millidegrees is not None:
            found[name] = millidegrees / 1e3
    return found


def read_power(root: Path = Path("/")) -> dict[str, float]:
    """Watts by rail."""
    found = {}
    for monitor in sorted(root.glob(RAILS)):
        for label in sorted(monitor.glob("in*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            name = _text(label)
            millivolts, milliamperes = (_number(monitor / f"{kind}{channel}_input") for kind in ("in", "curr"))
            if name and millivolts is not None and milliamperes is not None:
                found[name] = millivolts * milliamperes / 1e6
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # a sensor that is absent, or switched off with its part of the chip
        return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None
