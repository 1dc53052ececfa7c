"""Servos on a pseudo-terminal that speak their vendors' published packet protocols, to drive the vendors' SDKs with."""

from __future__ import annotations

import os
import pty
import select
import time
import tty
from threading import Event, Thread
from typing import ClassVar

PING, READ, WRITE, SYNC_READ, SYNC_WRITE, STATUS = 1, 2, 3, 0x82, 0x83, 0x55
BROADCAST = 0xFE


class Servo:
    """A control table; the shaft is where its goal is as long as the torque is on."""

    def __init__(self, layout: dict[str, tuple[int, int]], position: int) -> None:
        self.layout = layout
        self.table = bytearray(256)
        self.heard_s = time.monotonic()
        self.history: list[tuple[str, int]] = []
        """What was written, by name."""
        self.set("position", position)

    def get(self, name: str) -> int:
        address, size = self.layout[name]
        return int.from_bytes(self.table[address : address + size], "little")

    def set(self, name: str, value: int) -> None:
        address, size = self.layout[name]
        self.table[address : address + size] = value.to_bytes(size, "little")

    def write(self, address: int, data: bytes) -> None:
        """As the vendor's manual has it: while the bus watchdog has bitten, goals are read-only."""
        name = next(name for name, place in self.layout.items() if place == (address, len(data)))
        value = int.from_bytes(data, "little")
        if name == "goal" and "watchdog" in self.layout and self.get("watchdog") == 0xFF:
            return
        self.history.append((name, value))
        self.set(name, value)
        if name == "torque" and value and "watchdog" in self.layout:
            self.set("goal", self.get("position"))  # an X servo forgets its goal
        if self.get("torque"):
            self.set("position", self.get("goal"))

    def look_at_the_clock(self) -> None:
        """The bus watchdog, in units of 20 ms."""
        if "watchdog" not in self.layout or not self.get("torque") or self.get("watchdog") in (0, 0xFF):
            return
        if time.monotonic() - self.heard_s > self.get("watchdog") * 0.02:
            self.set("watchdog", 0xFF)


class Bus:
    """A terminal with servos behind it; the subclasses know a protocol."""

    LAYOUT: ClassVar[dict[str, tuple[int, int]]]

    def __init__(self, positions: dict[int, int]) -> None:
        self.servos = {number: Servo(self.LAYOUT, position) for number, position in positions.items()}
        self.silent: set[int] = set()
        """Servos that do not answer."""
        self.damaged: set[int] = set()
        """Servos whose answers have a flipped bit."""
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self._closing = Event()
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        os.close(self._master)
        os.close(self._slave)

    def _serve(self) -> None:
        received = b""
        while not self._closing.is_set():
            if select.select([self._master], [], [], 0.005)[0]:
                received = self.take(received + os.read(self._master, 4096))
            for servo in self.servos.values():
                servo.look_at_the_clock()

    def take(self, received: bytes) -> bytes:
        """Acts on the whole packets; what is left of the bytes."""
        raise NotImplementedError

    def status(self, number: int, data: bytes) -> bytes:
        """An answer."""
        raise NotImplementedError

    def answer(self, number: int, data: bytes) -> None:
        if number in self.silent:
            return
        packet = bytearray(self.status(number, data))
        packet[-1] ^= number in self.damaged
        os.write(self._master, packet)

    def sync_read(self, address: int, size: int, numbers: bytes) -> None:
        for number in numbers:
            if number in self.servos:
                self.answer(number, bytes(self.servos[number].table[address : address + size]))

    def sync_write(self, address: int, size: int, parameters: bytes) -> None:
        for at in range(0, len(parameters), size + 1):
            number, data = parameters[at], parameters[at + 1 : at + 1 + size]
            if number in self.servos:
                self.servos[number].write(address, data)

    def heard(self) -> None:
        for servo in self.servos.values():
            servo.heard_s = time.monotonic()


def crc16(data: bytes) -> int:
    """Polynomial x^16 + x^15 + x^2 + 1, not reflected, from 0: https://emanual.robotis.com/docs/en/dxl/crc/."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x8005 if crc & 0x8000 else 0)) & 0xFFFF
    return crc


class DynamixelBus(Bus):
    """Protocol 2.0: FF FF FD 00, id, length (2), instruction, parameters, CRC-16 (2).

    https://emanual.robotis.com/docs/en/dxl/protocol2/
    """

    LAYOUT: ClassVar = {"torque": (64, 1), "watchdog": (98, 1), "goal": (116, 4), "position": (132, 4)}
    HEADER = b"\xff\xff\xfd\x00"

    def take(self, received: bytes) -> bytes:
        while (at := received.find(self.HEADER)) >= 0:
            received = received[at:]
            end = 7 + int.from_bytes(received[5:7], "little")
            if len(received) < max(end, 10):
                return received
            packet, received = received[:end], received[end:]
            if crc16(packet[:-2]) == int.from_bytes(packet[-2:], "little"):
                self.heard()
                inside = packet[7:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
                address, size = int.from_bytes(inside[1:3], "little"), int.from_bytes(inside[3:5], "little")
                {SYNC_READ: self.sync_read, SYNC_WRITE: self.sync_write}[inside[0]](address, size, inside[5:])
        return received[-3:]

    def status(self, number: int, data: bytes) -> bytes:
        inside = bytes([STATUS, 0]) + data
        inside = inside.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
        packet = self.HEADER + bytes([number]) + (len(inside) + 2).to_bytes(2, "little") + inside
        return packet + crc16(packet).to_bytes(2, "little")


class FeetechBus(Bus):
    """The SCS protocol: FF FF, id, length, instruction, parameters, the inverted sum of all but the header.

    The communication protocol manual of Feetech's serial bus servos.
    """

    LAYOUT: ClassVar = {"torque": (40, 1), "goal": (42, 2), "position": (56, 2)}

    def take(self, received: bytes) -> bytes:
        while (at := received.find(b"\xff\xff")) >= 0:
            received = received[at:]
            if len(received) < 4 or len(received) < 4 + received[3]:
                return received
            packet, received = received[: 4 + received[3]], received[4 + received[3] :]
            if ~sum(packet[2:-1]) & 0xFF == packet[-1]:
                self.heard()
                {SYNC_READ: self.sync_read, SYNC_WRITE: self.sync_write}[packet[4]](packet[5], packet[6], packet[7:-1])
        return received[-1:]

    def status(self, number: int, data: bytes) -> bytes:
        inside = bytes([number, len(data) + 2, 0]) + data
        return b"\xff\xff" + inside + bytes([~sum(inside) & 0xFF])
