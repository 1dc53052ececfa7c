"""What a board remembers: which bundle is in which slot, which slot runs, and what the board asks of a new bundle."""

from __future__ import annotations

import re
from typing import Literal, Optional

import msgspec

from edge_sdk.bundle import Manifest
from edge_sdk.errors import ConfigError, explain

SlotName = Literal["a", "b"]
VERSION_KEY = "version"
"""In a manifest's provenance: `edge-export bundle --version` writes it, and the signature covers it."""
NO_VERSION = "0"

_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,3}", re.ASCII)


class Slot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one slot holds."""

    bundle_id: str
    version: str
    installed: str
    """UTC, ISO 8601."""
    signed_by: str = ""
    """Name of the trusted key; empty where no signature was asked for."""
    step_ms: Optional[float] = None
    """Median of a decoding step in the acceptance check; None where the bundle has none."""
    healthy: bool = False
    """Whether the service found itself well since the switch."""
    starts: int = 0
    """Of the service since the switch, until it is healthy."""
    failed: str = ""
    """Why the board rolled back from it."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The board's one record; replacing this file is the switch."""

    format_version: Literal[1] = 1
    active: Optional[SlotName] = None
    slots: dict[SlotName, Slot] = {}

    @property
    def running(self) -> Slot | None:
        """The active slot, if any."""
        return None if self.active is None else self.slots.get(self.active)

    @property
    def spare(self) -> SlotName:
        """The slot that is not active."""
        return "b" if self.active == "a" else "a"

    def put(self, name: SlotName, slot: Slot) -> Record:
        """With another content of one slot."""
        return msgspec.structs.replace(self, slots={**self.slots, name: slot})

    def switch(self, name: SlotName) -> Record:
        """With another slot active."""
        return msgspec.structs.replace(self, active=name)


class BoardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a board asks of a bundle: the content of board.json, all of it optional."""

    require_signature: bool = False
    require_acceptance: bool = False
    """Whether a bundle must bring vectors for the acceptance check."""
    minimum_version: str = NO_VERSION
    """Older bundles are refused unless forced, as those older than the active one are."""
    step_budget_ms: Optional[float] = None
    """What a decoding step may take, median, in the acceptance check."""
    acceptance_timeout_s: float = 600.0
    prepare: tuple[str, ...] = ()
    """A command that is run with the bundle's folder before the check, such as ``edge-export engine``."""
    prepare_timeout_s: float = 3600.0
    max_starts: int = 3
    """Starts without a healthy service after which the board rolls back."""
    two_at_once: bool = True
    """Whether the memory holds two servers: after a switch, the one before answers until the other has loaded."""
    figures: Optional[str] = None
    """The folder where control loops and servers say how they are doing, if not ``figures`` in the store."""
    healthy_after_s: float = 30.0
    """How long the service must answer before it counts as healthy."""

    def __post_init__(self) -> None:
        parse_version(self.minimum_version)
        if self.max_starts < 1:
            raise ConfigError(explain("max_starts", expected="at least 1", found=self.max_starts, todo="Correct it."))


def parse_version(text: str) -> tuple[int, ...]:
    """``1.4.0`` as (1, 4); zeros at the end count for nothing. Raises ConfigError."""
    if not _VERSION.fullmatch(text):
        todo = "Give the bundle one with `edge-export bundle --version`."
        raise ConfigError(explain("A version", expected="up to four numbers as 1.4.0", found=repr(text), todo=todo))
    numbers = [int(part) for part in text.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def version_of(manifest: Manifest) -> str:
    """A bundle's version; ``0`` where it has none. Raises ConfigError."""
    version = manifest.provenance.get(VERSION_KEY, NO_VERSION)
    parse_version(version)
    return version
