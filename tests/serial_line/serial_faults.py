"""A serial line of two pseudo-terminals that does to bytes what lines do: seeded, so that a failure comes again."""

from __future__ import annotations

import os
import pty
import random
import select
import tty
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Literal

Direction = Literal["to_robot", "to_host"]


@dataclass(frozen=True)
class Faults:
    """How likely each byte is to suffer what."""

    flip: float = 0.0
    lose: float = 0.0
    double: float = 0.0
    swap: float = 0.0
    """With the next one."""
    insert: float = 0.0
    """Noise before it."""
    repeat: float = 0.0
    """A block of bytes that were sent before, up to a few frames, comes once more."""

    def damage(self, data: bytes, memory: bytes, dice: random.Random) -> bytes:
        """What arrives of ``data``; ``memory`` is what was sent before it."""
        result = bytearray()
        for byte in data:
            if dice.random() < self.lose:
                continue
            if dice.random() < self.insert:
                result.append(dice.randrange(256))
            if dice.random() < self.repeat and memory:
                at = dice.randrange(len(memory))
                result += memory[at : at + 200]
            result.append(byte ^ (1 << dice.randrange(8) if dice.random() < self.flip else 0))
            if dice.random() < self.double:
                result.append(byte)
            if dice.random() < self.swap and len(result) > 1:
                result[-2:] = result[:-3:-1]
        return bytes(result)


class FaultyLine:
    """``host_path`` is a link to the host's terminal, as in /dev/serial/by-id; ``robot_path`` is the robot's."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.host_path = folder / "usb-robot"
        self.faults = Faults()
        self.cut: set[Direction] = set()
        """Directions in which nothing arrives."""
        self.shorted: set[Direction] = set()
        """Directions in which everything comes back to its sender."""
        self.held: set[Direction] = set()
        """Directions in which everything waits until it is let go."""
        self.flooded: set[Direction] = set()
        """Directions in which noise is sent as fast as it is taken."""
        self.paused = False
        """Nothing is taken from the host, so that its buffers fill."""
        self._dice = random.Random(seed)
        self._waiting: dict[Direction, bytes] = {"to_robot": b"", "to_host": b""}
        self._memory = b""
        self._lock = Lock()
        self._closing = Event()
        self._robot = self._terminal()
        self._host: tuple[int, int] | None = None
        self.robot_path = os.ttyname(self._robot[1])
        self.plug()
        self._thread = Thread(target=self._carry, daemon=True)
        self._thread.start()

    @staticmethod
    def _terminal() -> tuple[int, int]:
        master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        return master, slave

    def plug(self) -> None:
        """A new device by the same name."""
        with self._lock:
            self._host = self._terminal()
            self.host_path.symlink_to(os.ttyname(self._host[1]))

    def unplug(self) -> None:
        """The device is gone; who has it open gets errors."""
        with self._lock:
            assert self._host is not None
            self.host_path.unlink()
            for descriptor in self._host:
                os.close(descriptor)
            self._host = None

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        if self._host is not None:
            self.unplug()
        for descriptor in self._robot:
            os.close(descriptor)

    def _carry(self) -> None:
        while not self._closing.wait(0.0005):
            with self._lock:
                host = self._host[0] if self._host else None
                if host is not None and not self.paused:
                    self._pass(host, self._robot[0], "to_robot")
                self._pass(self._robot[0], host, "to_host")

    def _pass(self, source: int, sink: int | None, direction: Direction) -> None:
        data = os.read(source, 4096) if select.select([source], [], [], 0)[0] else b""
        arriving = self.faults.damage(data, self._memory, self._dice)
        if direction == "to_robot":
            self._memory = (self._memory + data)[-2000:]
        if direction in self.held:
            self._waiting[direction] += arriving
            return
        arriving, self._waiting[direction] = self._waiting[direction] + arriving, b""
        if direction in self.shorted:
            sink = source
        if direction in self.cut or sink is None:
            return
        if direction in self.flooded:
            arriving += self._dice.randbytes(4096)
        for at in range(0, len(arriving), 512):
            if not select.select([], [sink], [], 0)[1]:
                return  # a full buffer loses what does not fit
            try:
                os.write(sink, arriving[at : at + 512])
            except BlockingIOError:
                return
